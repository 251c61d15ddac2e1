"""The microworld's own detector: which objects a picture shows, where, and how rich it is. It stands where GenEval has
Mask2Former."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from icthp.evaluation.geneval import ClipColours, Detection, Evaluator, Mask2Former, check, filter_detections
from icthp.files import atomic, save_json
from icthp.microworld import renderer
from icthp.microworld.scenes import COLOURS, SHAPES, Scenes
from icthp.scorers.states import fill, read_state


class Detector(nn.Module):
    """A centre-point detector: an image becomes a grid at a quarter of its side; each cell votes for an object's centre,
    its shape and its colour. A global head reads the richness.

    forward(pixels (b, 3, h, w) in [0, 1]) -> centre logits (b, h/4, w/4), shape and colour logits (b, 8, h/4, w/4),
    richness (b,)."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.config = {"width": width}
        w = width
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, w, 3, 2, 1), nn.ReLU())
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(w, w, 3, 1, d, d), nn.BatchNorm2d(w), nn.ReLU()) for d in (1, 2, 1, 2, 4, 1))
        self.cells = nn.Conv2d(w, 1 + len(SHAPES) + len(COLOURS), 1)
        self.richness = nn.Linear(2 * w, 1)

    def forward(self, pixels: Tensor):
        x = self.stem(pixels * 2 - 1)
        for block in self.body:
            x = x + block(x)
        pooled = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
        centre, shape, colour = self.cells(x).split([1, len(SHAPES), len(COLOURS)], 1)
        return centre[:, 0], shape, colour, self.richness(pooled)[:, 0]

    @torch.no_grad()
    def detect(self, pixels: Tensor, threshold: float = 0.4) -> list[list[Detection]]:
        """pixels (b, 3, h, w) in [0, 1] -> the objects of each picture, most certain first; a picture is 2 wide and high."""
        centre, shape, colour, _ = self(pixels)
        heat = centre.sigmoid()
        peak = (heat == F.max_pool2d(heat[:, None], 5, 1, 2)[:, 0]) & (heat > threshold)
        found = [[] for _ in pixels]
        side = heat.shape[-1]
        for i, row, col in peak.nonzero().tolist():
            label, hue = shape[i, :, row, col].argmax().item(), colour[i, :, row, col].argmax().item()
            x, y = ((k + 0.5) / side * 2 - 1 for k in (col, row))
            found[i].append(detection(SHAPES[label], COLOURS[hue], x, y, heat[i, row, col].item()))
        return [sorted(f, key=lambda d: -d.score) for f in found]

    @torch.no_grad()
    def measure(self, pixels: Tensor, tasks: list[dict] | None = None) -> dict:
        """{"micro_richness": (b,)} and, where each picture has a task of GenEval's metadata, "correct": is it fulfilled?"""
        seen = {"micro_richness": self(pixels)[3]}
        if not tasks:
            return seen
        return seen | {"correct": [check(filter_detections(found, task), task)[0] for found, task in zip(self.detect(pixels), tasks)]}

    def save(self, folder) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in self.state_dict().items()}
        atomic(Path(folder) / "model.safetensors", lambda partial: save_file(state, partial))
        save_json(Path(folder) / "config.json", self.config)

    @classmethod
    def load(cls, folder) -> "Detector":
        config = Path(folder) / "config.json"
        if not config.exists():
            raise FileNotFoundError(f"no detector in {folder}: `make data` makes it, `dvc pull` fetches it")
        model = cls(**json.loads(config.read_text(encoding="utf-8")))
        file = Path(folder) / "model.safetensors"
        return fill(model, read_state(file), file)


def load_detector(source: str, clip=None, device="cpu") -> Detector | Evaluator:
    """What looks at drawn pictures: the microworld's detector in a folder that `save` wrote, otherwise GenEval's, a Mask2Former of that
    folder or Hub name whose colours the scorer `clip` reads. FileNotFoundError where there is neither."""
    config = Path(source) / "config.json"
    if not Path(source).is_dir() and len(Path(source).parts) != 2:
        raise FileNotFoundError(f"{source} is no folder with a detector (`dvc pull` for data/), nor a name on the Hub")
    if config.exists() and "width" in json.loads(config.read_text(encoding="utf-8")):
        return Detector.load(source)
    try:
        return Evaluator(Mask2Former(source, device), ClipColours(clip))
    except OSError as error:  # so transformers says that there is no such folder or model
        raise FileNotFoundError(
            f"{source} is no folder with a detector (`dvc pull` for data/), nor a model that can be loaded: {error}"
        ) from error


def detection(label: str, colour: str, x: float, y: float, score: float) -> Detection:
    """An object by its centre in [-1, 1], right and down. The detector reads no sizes: each gets a box of a quarter of the side."""
    return Detection(label, score, (x - 0.25, y - 0.25, x + 0.25, y + 0.25), colour)


def targets(scenes: Scenes, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """What a perfect detector says of rendered scenes: heat (b, side, side) in [0, 1], 1 at centres; shape and colour
    (b, side, side) int64, -1 away from centres."""
    centres, _, present, is_b = renderer.layout(scenes)
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    squared = (axis - centres[..., :1]).square()[:, :, None, :] + (axis - centres[..., 1:]).square()[:, :, :, None]
    heat = (-squared / (2 * (2 / side * 0.8) ** 2)).exp() * present[..., None, None]  # (b, 3, side, side)
    near, which = heat.max(1)
    second = is_b.gather(1, which.flatten(1)).reshape(which.shape)
    pick = lambda name: torch.where(second, *(scenes.latents[name + k][:, None, None] for k in ("_b", "_a")))
    return near, *(torch.where(near > 0.3, pick(name), -1) for name in ("shape", "colour"))


def detector_loss(detector: nn.Module, pixels: Tensor, scenes: Scenes) -> Tensor:
    centre, shape, colour, richness = detector(pixels)
    heat, shapes, colours = (t.to(pixels.device) for t in targets(scenes, centre.shape[-1]))
    centre_loss = F.binary_cross_entropy_with_logits(centre, heat, pos_weight=torch.tensor(4.0, device=pixels.device))
    shape_loss, colour_loss = (F.cross_entropy(a, b, ignore_index=-1) for a, b in ((shape, shapes), (colour, colours)))
    return 8 * centre_loss + shape_loss + colour_loss + 4 * F.mse_loss(richness, scenes.richness.to(richness))
