"""The microworld's detector: which objects a picture shows, where, how rich it is, how far it is corrupted. It has the place of GenEval's
Mask2Former."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from icthp.corruptions import CORRUPTIONS, artefact, corrupt, sample_severities
from icthp.evaluation.geneval import ClipColours, Detection, Evaluator, Mask2Former, check, filter_detections
from icthp.files import atomic, save_json
from icthp.microworld import renderer
from icthp.microworld.scenes import COLOURS, SHAPES, Scenes
from icthp.scorers.states import fill, read_state


class Detector(nn.Module):
    """A centre-point detector: an image becomes a grid at a quarter of its side; each cell votes for an object's centre,
    its shape and its colour. A global head reads the richness and the severity of each corruption.

    forward(pixels (b, 3, h, w) in [0, 1]) -> centre logits (b, h/4, w/4), shape and colour logits (b, 8, h/4, w/4),
    richness (b,) in [0, 1] and severities (b, 5) in [0, 1], by `CORRUPTIONS`."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.config = {"width": width}
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, width, 3, 2, 1), nn.ReLU())
        self.body = nn.ModuleList(_dilated(width, dilation) for dilation in (1, 2, 1, 2, 4, 1))
        self.cells = nn.Conv2d(width, 1 + len(SHAPES) + len(COLOURS), 1)
        self.whole = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1 + len(CORRUPTIONS)), nn.Sigmoid())

    def features(self, pixels: Tensor, blocks: int | None = None) -> Tensor:
        """pixels (b, 3, h, w) in [0, 1] -> (b, width, h/4, w/4) after the first `blocks` of its body, all for None."""
        x = self.stem(pixels * 2 - 1)
        for block in self.body[:blocks]:
            x = x + block(x)
        return x

    def forward(self, pixels: Tensor):
        x = self.features(pixels)
        pooled = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
        centre, shape, colour = self.cells(x).split([1, len(SHAPES), len(COLOURS)], 1)
        whole = self.whole(pooled)
        return centre[:, 0], shape, colour, whole[:, 0], whole[:, 1:]

    @torch.no_grad()
    def detect(self, pixels: Tensor, threshold: float = 0.4) -> list[list[Detection]]:
        """pixels (b, 3, h, w) in [0, 1] -> the objects of each picture, most certain first; a picture is 2 wide and high. A centre is a
        maximum of its 5 x 5 cells whose probability is above the threshold."""
        centre, shape, colour, *_ = self(pixels)
        heat = centre.sigmoid()
        peak = (heat == F.max_pool2d(heat[:, None], 5, 1, 2)[:, 0]) & (heat > threshold)
        found = [[] for _ in pixels]
        side = heat.shape[-1]
        for i, row, col in peak.nonzero().tolist():
            label = SHAPES[shape[i, :, row, col].argmax().item()]
            hue = COLOURS[colour[i, :, row, col].argmax().item()]
            x = (col + 0.5) / side * 2 - 1
            y = (row + 0.5) / side * 2 - 1
            found[i].append(detection(label, hue, x, y, heat[i, row, col].item()))
        return [sorted(objects, key=lambda d: -d.score) for objects in found]

    @torch.no_grad()
    def measure(self, pixels: Tensor, tasks: list[dict] | None = None) -> dict:
        """{"micro_richness", "micro_artefact" and its parts, "micro_blur" and the others of `CORRUPTIONS`: (b,) in [0, 1]}; with `tasks`,
        GenEval's metadata of each picture, also "correct", b bools: is it fulfilled?"""
        *_, richness, severity = self(pixels)
        stats = {"micro_richness": richness, "micro_artefact": artefact(severity)}
        stats |= {f"micro_{name}": severity[:, i] for i, name in enumerate(CORRUPTIONS)}
        if tasks:
            stats["correct"] = [check(filter_detections(found, task), task)[0] for found, task in zip(self.detect(pixels), tasks)]
        return stats

    def save(self, folder) -> None:
        """Write model.safetensors and config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in self.state_dict().items()}
        atomic(Path(folder) / "model.safetensors", lambda partial: save_file(state, partial))
        save_json(Path(folder) / "config.json", self.config)

    @classmethod
    def load(cls, folder) -> "Detector":
        """The detector of a folder that `save` wrote. FileNotFoundError: the folder has no config.json."""
        config = Path(folder) / "config.json"
        if not config.exists():
            raise FileNotFoundError(f"no detector in {folder}: `make data` makes it, `dvc pull` fetches it")
        model = cls(**json.loads(config.read_text(encoding="utf-8")))
        file = Path(folder) / "model.safetensors"
        return fill(model, read_state(file), file)


def _dilated(width: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, 1, dilation, dilation), nn.BatchNorm2d(width), nn.ReLU())


def load_detector(source: str, clip=None, device="cpu") -> Detector | Evaluator:
    """The detector that measures drawn pictures: the microworld's, if `source` is a folder that `save` wrote; else GenEval's, a Mask2Former
    of that folder or Hub name, whose colours the scorer `clip` names. FileNotFoundError: `source` holds neither."""
    config = Path(source) / "config.json"
    if not Path(source).is_dir() and len(Path(source).parts) != 2:
        raise FileNotFoundError(f"{source} is no folder with a detector (`dvc pull` for data/), nor a name on the Hub")
    if config.exists() and "width" in json.loads(config.read_text(encoding="utf-8")):
        return Detector.load(source)
    try:
        return Evaluator(Mask2Former(source, device), ClipColours(clip))
    except OSError as error:  # transformers raises it for a missing folder or model
        raise FileNotFoundError(
            f"{source} is no folder with a detector (`dvc pull` for data/), nor a model that can be loaded: {error}"
        ) from error


def detection(label: str, colour: str, x: float, y: float, score: float) -> Detection:
    """An object by its centre in [-1, 1], right and down. The detector reads no sizes: each gets a box of a quarter of the side."""
    return Detection(label, score, (x - 0.25, y - 0.25, x + 0.25, y + 0.25), colour)


# ---- training ---------------------------------------------------------------------------------------------------


def targets(scenes: Scenes, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """The output of a perfect detector for rendered scenes: heat (b, side, side) in [0, 1], 1 at centres; shape and colour
    (b, side, side) int64, the latent's value near a centre, -1 elsewhere."""
    centres, _, present, is_b = renderer.layout(scenes)
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    squared = (axis - centres[..., :1]).square()[:, :, None, :] + (axis - centres[..., 1:]).square()[:, :, :, None]
    heat = (-squared / (2 * (2 / side * 0.8) ** 2)).exp() * present[..., None, None]  # (b, 3, side, side)
    heat, nearest = heat.max(1)
    cell_is_b = is_b.gather(1, nearest.flatten(1)).reshape(nearest.shape)

    def label(name: str) -> Tensor:
        value = torch.where(cell_is_b, scenes.latents[name + "_b"][:, None, None], scenes.latents[name + "_a"][:, None, None])
        return torch.where(heat > 0.3, value, -1)

    return heat, label("shape"), label("colour")


def detector_loss(detector: nn.Module, pixels: Tensor, scenes: Scenes, generator: torch.Generator) -> Tensor:
    """The scalar loss of a detector on renders, pixels (b, 3, h, w), two in three of which are corrupted here: centres, shapes and
    colours, the richness that the scene has, and the severity of each corruption."""
    severity = sample_severities(len(pixels), generator)
    pixels = corrupt(pixels, severity, generator)
    centre, shape, colour, richness, found = detector(pixels)
    heat, true_shape, true_colour = (t.to(pixels.device) for t in targets(scenes, centre.shape[-1]))
    centre_loss = F.binary_cross_entropy_with_logits(centre, heat, pos_weight=torch.tensor(4.0, device=pixels.device))
    shape_loss = F.cross_entropy(shape, true_shape, ignore_index=-1)
    colour_loss = F.cross_entropy(colour, true_colour, ignore_index=-1)
    richness_loss = F.mse_loss(richness, scenes.richness.to(richness))
    severity_loss = F.binary_cross_entropy(found, severity.to(found))
    return 8 * centre_loss + shape_loss + colour_loss + 4 * richness_loss + 4 * severity_loss
