"""One interface for every scorer: score(pixels in [0, 1], prompts) -> Tensor (b,), differentiable in the pixels."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from icthp import hub, imagereward, kernels, pictures, weights
from icthp.losses import no_autocast
from icthp.share import Shared

SOURCES = {"clip": "local-dir:data/hub/clip", "pickscore": "local-dir:data/hub/pickscore", "ict": "local-dir:models/ict",
           "hp": "models/hp", "icthp": "models", "hpsv2": None, "imagereward": None,
           "aesthetic": None, "jpeg": ""}  # fmt: skip
MADE_BY = {"clip": "data", "pickscore": "data", "ict": "train_ict", "hp": "train_hp"}


class Scorer(nn.Module):
    """Base of all scorers. `needs_prompt` says whether prompts may be None; `unit` what the number means."""

    needs_prompt = True
    unit = "cosine"

    def score(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        """pixels (b, 3, h, w) float in [0, 1], or uint8, which is faster and has no gradient; b prompts, or None for scorers
        of the image alone -> (b,).

        Raises ValueError for pixels of another shape or range, or for a missing or miscounted prompt list."""
        check(pixels)
        if self.needs_prompt and (prompts is None or isinstance(prompts, str) or len(prompts) != len(pixels)):
            got = "none" if prompts is None else "one string" if isinstance(prompts, str) else len(prompts)
            raise ValueError(f"this scorer needs a list of {len(pixels)} prompts, one for each image, not {got}")
        return self(pixels, list(prompts) if self.needs_prompt else None)

    def table(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Every picture of pixels (b, 3, h, w) with every one of p prompts -> (b, p); scorers of two towers run each once."""
        check(pixels)
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list of texts, not one string")
        if not prompts:
            raise ValueError("prompts must hold at least one text")
        return self._table(pixels, list(prompts))

    def _table(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        if not self.needs_prompt:
            return self(pixels)[:, None].expand(-1, len(prompts))
        return torch.stack([self(pixels, [prompt] * len(pixels)) for prompt in prompts], 1)

    @torch.no_grad()
    def rank(self, prompt: str, images) -> list[tuple[int, float]]:
        """PIL images or paths of one prompt -> (index, score), best first."""
        scores = [self.score(pictures.read(i)[None].to(self.device), [prompt]).item() for i in images]
        return sorted(enumerate(scores), key=lambda pair: -pair[1])

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def check(pixels: Tensor) -> None:
    """Raises ValueError unless pixels are (b, 3, h, w), float in [0, 1] or uint8."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not (pixels.is_floating_point() or pixels.dtype == torch.uint8):
        raise ValueError(f"pixels must be float or uint8 (b, 3, h, w), not {pixels.dtype} {tuple(pixels.shape)}")
    if pixels.is_floating_point() and pixels.numel() and (pixels.min() < -0.01 or pixels.max() > 1.01):  # NaN scores NaN
        raise ValueError(f"pixels must lie in [0, 1], not [{pixels.min():.3g}, {pixels.max():.3g}]")


class ClipScorer(Scorer, Shared):
    """Cosine of an open_clip model's image and text features, times its logit scale when `scaled` (PickScore). `architecture`:
    open_clip's model_cfg, which saving needs."""

    def __init__(self, model, tokenizer, scaled: bool = False, architecture: dict | None = None):
        super().__init__()
        self.model, self.tokenizer, self.scaled, self.architecture = model, tokenizer, scaled, architecture
        self._hub_mixin_config = None  # open_clip's own file says all
        self.unit = "logit-scaled cosine" if scaled else "cosine"
        self.folded = False  # has the patch embedding taken over the normalisation?

    def fold(self) -> "ClipScorer":
        """The same scores, for use only: the normalisation moves into the patch embedding of a ViT, and saving is refused."""
        visual = self.model.visual
        if not self.folded and isinstance(visual, VisionTransformer):
            visual.conv1, self.folded = kernels.fold_normalisation(visual.conv1, visual.image_mean, visual.image_std), True
        return self

    def _save_pretrained(self, folder: Path) -> None:
        if self.folded:
            raise ValueError("a folded scorer is for use only: save the one that was loaded")
        hub.save_clip(self.model, self.tokenizer, self.architecture, folder, dtype=torch.float32)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_) -> "ClipScorer":
        return load_clip(model_id if Path(model_id).is_dir() else f"hf-hub:{model_id}")

    def extra_repr(self) -> str:
        """What tells scorers of equal weights apart."""
        return f"scaled={self.scaled}, mean={self.model.visual.image_mean}, std={self.model.visual.image_std}, folded={self.folded}"

    @property
    def size(self) -> int:
        """Side of the square that the image tower reads."""
        size = self.model.visual.image_size
        return size[0] if isinstance(size, (tuple, list)) else size

    def preprocess(self, pixels: Tensor) -> Tensor:
        """What the image tower reads, for pixels (b, 3, h, w) in [0, 1]."""
        visual = self.model.visual
        normal = (None, None) if self.folded else (visual.image_mean, visual.image_std)
        return kernels.preprocess(pixels, self.size, *normal).to(self.model.logit_scale.dtype)

    def image_features(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """(b, d), unit rows unless `normalize` is off."""
        return self.model.encode_image(self.preprocess(pixels), normalize=normalize)

    def cut(self, prompts: list[str]) -> Tensor:
        """(b,) bool: is a prompt longer than the text tower reads?"""
        read, whole = (self.tokenizer(prompts, context_length=n * self.model.context_length) for n in (1, 4))
        padding = whole[:, -1:]  # 0 or the end token; of a text that is longer still, the end token
        return (whole != padding).sum(1) > (read != padding).sum(1)

    def text_features(self, prompts: list[str]) -> Tensor:
        """(b, d) unit rows; each different prompt is encoded once."""
        unique = list(dict.fromkeys(prompts))
        features = self.model.encode_text(self.tokenizer(unique).to(self.device), normalize=True)
        place = {p: i for i, p in enumerate(unique)}
        return features[[place[p] for p in prompts]]

    def split(self, pixels: Tensor, prompts: list[str], common: Tensor) -> tuple[Tensor, Tensor]:
        """The cosine in two parts, (b,) each, which add up to it: text-relevant, and text-irrelevant, along `common` (d,), the
        unit mean of many text features (LongAlign, arXiv 2410.11817)."""
        image, text = self.image_features(pixels), self.text_features(prompts)
        irrelevant = (image @ common) * (text @ common)
        return (image * text).sum(-1) - irrelevant, irrelevant

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self._scale((self.image_features(pixels) * self.text_features(prompts)).sum(-1))

    def _table(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self._scale(self.image_features(pixels) @ self.text_features(prompts).T)

    def _scale(self, cosine: Tensor) -> Tensor:
        return cosine * self.model.logit_scale.exp() if self.scaled else cosine


def head(width: int, variant: str = "paper", outputs: int = 1) -> nn.Sequential:
    """HP's head on a (b, width) image embedding. "paper": LayerNorm and a GELU MLP, default init. "linear": one layer. "affine":
    five linear layers without a non-linearity between, dropout after the first three, as in the released model: one affine
    map. "released": the same, its weights drawn from N(0, 1 / (width + 1)), zero bias, so that it starts at 1e-10."""
    if variant not in ("paper", "linear", "affine", "released"):
        raise ValueError(f'head must be "paper", "linear", "affine" or "released", not {variant!r}')
    if variant == "paper":
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, outputs))
    if variant == "linear":
        return nn.Sequential(nn.Linear(width, outputs))
    widths, drops = [width, 1024, 128, 64, 16, outputs], [0.2, 0.2, 0.1]
    layers = []
    for i, (n, m) in enumerate(zip(widths, widths[1:])):
        linear = nn.Linear(n, m)
        if variant == "released":
            nn.init.normal_(linear.weight, std=1 / (width + 1))
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.Dropout(drops[i])] if i < len(drops) else [linear]
    return nn.Sequential(*layers)


class HpScorer(Scorer, Shared):
    """HP: sigmoid(head(image embedding)) in (0, 1), the embedding not normalised; the prompt plays no part. The head is
    outside autocast: scores that differ by less than bfloat16's 0.004 stay apart. config: `head`'s arguments."""

    needs_prompt = False
    unit = "probability-like, 0 to 1"

    def __init__(self, clip: ClipScorer, head_: nn.Module, config: dict | None = None):
        super().__init__()
        self.clip, self.head, self.config = clip, head_, config or {}

    def fold(self) -> "HpScorer":
        """The same scores in eval mode: a head without a non-linearity becomes one linear layer."""
        if self.config.get("variant") not in ("linear", "affine", "released"):
            return self
        folded = HpScorer(self.clip, kernels.hp_head(self.head), self.config | {"variant": "linear"})
        folded.card = self.card
        return folded

    def raw(self, pixels: Tensor) -> Tensor:
        """(b, outputs): the score before its sigmoid, and the logarithm of its variance where the head has one."""
        features = self.clip.image_features(pixels, normalize=False)
        with no_autocast(features.device):
            return self.head(features.to(next(self.head.parameters()).dtype))

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return torch.sigmoid(self.raw(pixels)[:, 0])

    def _save_pretrained(self, folder: Path) -> None:
        """The tuned CLIP in open_clip's format, the head beside it; the mixin writes config.json."""
        self.clip._save_pretrained(folder)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}, folder / "hp.safetensors")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_) -> "HpScorer":
        return load_hp(model_id if Path(model_id).is_dir() else f"hf-hub:{model_id}")


class IctHpScorer(Scorer):
    """ICT * HP, one image at a time, in training and in use."""

    unit = "cosine times (0 to 1)"

    def __init__(self, ict: ClipScorer, hp: HpScorer):
        super().__init__()
        self.ict, self.hp = ict, hp

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = self._square(pixels)
        return self.ict(pixels, prompts) * self.hp(pixels)

    def _table(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = self._square(pixels)
        return self.ict.table(pixels, prompts) * self.hp.table(pixels, prompts)

    def _square(self, pixels: Tensor) -> Tensor:
        """Resized once where both towers read the same size."""
        return kernels.preprocess(pixels, self.ict.size) if self.ict.size == self.hp.clip.size else pixels


class CombinedScorer(Scorer):
    """A weighted sum of scores, or with `product` their product; each is first cut to its (low, high), beyond which it has no
    gradient: a high end is the hinge that keeps a reward from being chased for ever. parts: [(scorer, weight, low, high)],
    None for an open end."""

    unit = "combined scores"

    def __init__(self, parts: list[tuple[Scorer, float, float | None, float | None]], product: bool = False):
        super().__init__()
        if not parts:
            raise ValueError("a combined score needs at least one part")
        self.scorers = nn.ModuleList(part[0] for part in parts)
        self.bounds, self.product = [part[1:] for part in parts], product
        self.needs_prompt = any(part[0].needs_prompt for part in parts)

    def extra_repr(self) -> str:
        return f"weight, low, high={self.bounds}, product={self.product}"

    def forward(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        cut = lambda x, low, high: x if low is None and high is None else x.clamp(low, high)
        values = [weight * cut(s(pixels, prompts), low, high) for s, (weight, low, high) in zip(self.scorers, self.bounds)]
        return torch.stack(values).prod(0) if self.product else torch.stack(values).sum(0)


class JpegScorer(Scorer):
    """kB (1,000 bytes) of the JPEG at quality 95; not differentiable."""

    needs_prompt = False
    unit = "kB at quality 95"

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return pictures.jpeg_bytes(pixels).to(pixels.device) / 1000


class ImageRewardScorer(Scorer):
    """ImageReward (arXiv 2304.05977): BLIP's text tower reads the prompt while it looks at the picture; linear layers on its
    first token, (r - 0.1672) / 1.0333."""

    unit = "standard deviations of ImageReward's own data"

    def __init__(self, vision: nn.Module, text: nn.Module, head_: nn.Module, tokenizer):
        super().__init__()
        self.vision, self.text, self.head, self.tokenizer = vision, text, head_, tokenizer

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        size = self.vision.config.image_size
        pixels = kernels.preprocess(pixels, size, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD).to(self.head[0].weight.dtype)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt").to(pixels.device)
        told = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen)
        return (self.head(told.last_hidden_state[:, 0]).squeeze(-1) - 0.16717362830052426) / 1.0333394966054072


class AestheticScorer(Scorer):
    """LAION's aesthetic predictor: linear layers on a unit CLIP ViT-L/14 image feature, about 1 to 10."""

    needs_prompt = False
    unit = "about 1 to 10"

    def __init__(self, clip: ClipScorer, head_: nn.Module):
        super().__init__()
        self.clip, self.head = clip, head_

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return self.head(self.clip.image_features(pixels)).squeeze(-1)


def aesthetic_head(path) -> nn.Module:
    """LAION's released heads (.pth, read with weights_only): one linear layer, or the MLP without non-linearities."""
    state = weights.read_state(path)
    names = [k for k, v in state.items() if k.endswith("weight") and v.ndim == 2]
    layers = [nn.Linear(*reversed(state[k].shape)) for k in names]
    for layer, key in zip(layers, names):
        layer.weight.data, layer.bias.data = state[key].float(), state[key.replace("weight", "bias")].float()
    return kernels.hp_head(nn.Sequential(*layers))


def load_clip(source: str, scaled: bool = False) -> ClipScorer:
    """Any source that weights.read_clip takes; a path alone is a folder."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    scorer = ClipScorer(*weights.read_clip(source), scaled, weights.model_config(source))
    return scorer.with_card(weights.folder_of(source)) if source.startswith("local-dir:") else scorer


def load_hp(source: str) -> HpScorer:
    """A folder that HpScorer.save_pretrained wrote, or the released layout: hp_backbone/pytorch_model.bin and
    hp_scorer/mlp_pytorch_model.bin."""
    folder = weights.folder_of(source)
    if (released := folder / "hp_scorer/mlp_pytorch_model.bin").exists():
        clip = load_clip(f"local-dir:{folder / 'hp_backbone'}")
        state = {name.removeprefix("layers."): value for name, value in weights.read_state(released).items()}
        config = {"width": state["0.weight"].shape[1], "variant": "released"}
        return HpScorer(clip, weights.fill(head(**config), state, released), config)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    head_ = weights.fill(head(**config), load_file(folder / "hp.safetensors"), folder / "hp.safetensors")
    return HpScorer(load_clip(f"local-dir:{folder}"), head_, config).with_card(folder)


def load(name: str, source: str | None = None, *, device=None, dtype=None) -> Scorer:
    """A scorer by name, frozen, in eval mode: clip, ict, hp, icthp, pickscore, hpsv2, imagereward, aesthetic, jpeg.

    source: see weights.read_clip for clip, ict, pickscore, hpsv2; a folder or "hf-hub:8y/HP" for hp; "ICT,HP" or their parent
    for icthp; imagereward.load's folder; "CLIP,head.pth" for aesthetic. None: the micro scale's folders. Raises ValueError
    for an unknown name or weights that do not fit, FileNotFoundError where a folder is missing."""
    if name not in SOURCES:
        raise ValueError(f"no scorer is called {name!r}; there are {', '.join(SOURCES)}")
    source = SOURCES[name] if source is None else source
    if source is None:
        raise ValueError(f"{name} has no weights at the micro scale: pass source=, e.g. an open_clip folder")
    parts = _parts(name, source)
    for made, folder in parts:
        if made != "head" and "hf-hub:" not in folder and ("local-dir:" in folder or made == "hp") and not _holds_weights(made, folder):
            remedy = f"`dvc repro {MADE_BY[made]}` makes it (`dvc pull` for data/)" if made in MADE_BY else "name the publisher's folder"
            raise FileNotFoundError(f"{folder} has no weights: {remedy}")
    return _build(name, [folder for _, folder in parts]).requires_grad_(False).eval().to(device=device, dtype=dtype)


def _holds_weights(name: str, source: str) -> bool:
    """Is a folder there and finished? One that a killed training left holds only its checkpoint."""
    own = {"hp": ("hp.safetensors", "hp_scorer/mlp_pytorch_model.bin"), "imagereward": ("ImageReward.pt",)}
    files = own.get(name, ("open_clip_config.json", *weights.FILES))
    return any((weights.folder_of(source) / file).exists() for file in files)


def _parts(name: str, source: str) -> list[tuple[str, str]]:
    """(scorer, its source) of each model that a scorer is made of."""
    if name == "icthp":
        ict, hp = source.split(",") if "," in source else (f"{source}/ict", f"{source}/hp")
        return [("ict", ict if ":" in ict else f"local-dir:{ict}"), ("hp", hp)]
    if name == "aesthetic":
        if source.count(",") != 1:
            raise ValueError(f'the source of aesthetic is "CLIP,head.pth", not {source!r}')
        return list(zip(("clip", "head"), source.split(",")))
    return [(name, source)]


def _build(name: str, sources: list[str]) -> Scorer:
    if name == "jpeg":
        return JpegScorer()
    if name == "hp":
        return load_hp(*sources).fold()
    if name == "icthp":
        return IctHpScorer(load_clip(sources[0]), load_hp(sources[1]).fold())
    if name == "aesthetic":
        return AestheticScorer(load_clip(sources[0]), aesthetic_head(sources[1]))
    if name == "imagereward":
        return ImageRewardScorer(*imagereward.load(*sources))
    return load_clip(*sources, scaled=name == "pickscore")
