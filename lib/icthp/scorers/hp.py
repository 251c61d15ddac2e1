"""HP: the human preference score of an image alone, its heads, its folder and the released layout."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from icthp import kernels
from icthp.files import read_json
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer, apply_head
from icthp.scorers.clip import ClipScorer, hub_options, load_clip
from icthp.scorers.hub import HubMixin
from icthp.scorers.states import fill, folder_of, read_state

RELEASED_HEAD = "hp_scorer/mlp_pytorch_model.bin"


def make_head(width: int, variant: str = "paper", outputs: int = 1) -> nn.Sequential:
    """HP's head, (b, width) image embedding -> (b, outputs). "paper": LayerNorm and a GELU MLP, default init. "linear": one layer.
    "affine": five linear layers without a non-linearity between, dropout after the first three, as in the released model: one affine
    map. "released": the same, its weights drawn with standard deviation 1 / (width + 1), zero bias, so that it starts at 1e-10.
    ValueError for another variant."""
    if variant not in ("paper", "linear", "affine", "released"):
        raise ValueError(f'head must be "paper", "linear", "affine" or "released", not {variant!r}')
    if variant == "paper":
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, outputs))
    if variant == "linear":
        return nn.Sequential(nn.Linear(width, outputs))
    widths = [width, 1024, 128, 64, 16, outputs]
    drops = [0.2, 0.2, 0.1]
    layers = []
    for i, (n, m) in enumerate(zip(widths, widths[1:])):
        linear = nn.Linear(n, m)
        if variant == "released":
            nn.init.normal_(linear.weight, std=1 / (width + 1))
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.Dropout(drops[i])] if i < len(drops) else [linear]
    return nn.Sequential(*layers)


class HpScorer(Scorer, HubMixin):
    """HP: sigmoid(head(image embedding)) in (0, 1), of the embedding before normalisation; it reads no prompt. The head runs outside
    autocast: scores that differ by less than bfloat16's 0.004 stay apart. config: `make_head`'s arguments."""

    needs_prompt = False
    score_scale = "probability-like, 0 to 1"

    def __init__(self, clip: ClipScorer, head: nn.Module, config: dict | None = None):
        super().__init__()
        self.clip = clip
        self.head = head
        self.config = config or {}

    @property
    def preprocessing(self) -> Preprocessing:
        return self.clip.preprocessing

    def fold(self) -> "HpScorer":
        """The same scores in eval mode: a head without a non-linearity becomes one linear layer."""
        if self.config.get("variant") not in ("linear", "affine", "released"):
            return self
        folded = HpScorer(self.clip, kernels.fold_linear(self.head), self.config | {"variant": "linear"})
        folded.card = self.card
        return folded

    def logits(self, pixels: Tensor) -> Tensor:
        """pixels (b, 3, h, w) -> (b, outputs): the score before its sigmoid, and of a head with two outputs the log of its variance."""
        return apply_head(self.head, self.clip.image_features(pixels, normalize=False))

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return torch.sigmoid(self.logits(pixels)[:, 0])

    def _save_pretrained(self, folder: Path) -> None:
        """The tuned CLIP in open_clip's format, the head beside it; the mixin writes config.json."""
        self.clip._save_pretrained(folder)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}, folder / "hp.safetensors")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict | None = None, **options) -> "HpScorer":
        return load_hp(*hub_options(model_id, options)).eval()


def load_hp(source: str, options: dict | None = None) -> HpScorer:
    """A folder that HpScorer.save_pretrained wrote, or the released layout: hp_backbone/pytorch_model.bin and
    hp_scorer/mlp_pytorch_model.bin; a path, "local-dir:folder" or "hf-hub:org/repo". options: snapshot_download's options. ValueError
    names a file that is not HP's."""
    folder = folder_of(source, **(options or {}))
    if (folder / RELEASED_HEAD).exists() and not (folder / "hp.safetensors").exists():
        return _load_released(folder)
    config = _read_config(folder / "config.json")
    head = fill(make_head(**config), read_state(folder / "hp.safetensors"), folder / "hp.safetensors")
    return HpScorer(load_clip(f"local-dir:{folder}"), head, config).with_card(folder)


def _load_released(folder: Path) -> HpScorer:
    clip = load_clip(f"local-dir:{folder / 'hp_backbone'}")
    path = folder / RELEASED_HEAD
    state = {name.removeprefix("layers."): value for name, value in read_state(path).items()}
    if "0.weight" not in state:
        raise ValueError(f"{path} has no layers.0.weight: it is not the released head of HP")
    config = {"width": state["0.weight"].shape[1], "variant": "released"}
    return HpScorer(clip, fill(make_head(**config), state, path), config)


def _read_config(path: Path) -> dict:
    """The arguments of make_head in HP's config.json."""
    config = read_json(path)
    fields = "HP's head has width, variant and outputs"
    if "width" not in config:
        raise ValueError(f"{path} lacks `width`; {fields}")
    if unknown := sorted(config.keys() - {"width", "variant", "outputs"}):
        raise ValueError(f"{path} has an unknown {', '.join(unknown)}; {fields}")
    return config
