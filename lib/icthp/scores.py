"""One interface for every scorer: score(pixels in [0, 1], prompts) -> Tensor (b,), differentiable in the pixels."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from icthp import hub, imagereward, kernels, pictures, recipe, weights
from icthp.files import digest, save_json
from icthp.imagereward import ImageRewardScorer
from icthp.losses import no_autocast
from icthp.recipe import Recipe
from icthp.scorer import Scorer, through, wide
from icthp.scorer import check as check
from icthp.share import Shared

PROBE = "A  photo of 2 “red” cats, R&amp;D and a café \U0001f600."  # tokenizers differ in what they do with it
SOURCES = {"clip": "local-dir:data/hub/clip", "pickscore": "local-dir:data/hub/pickscore", "ict": "local-dir:models/ict",
           "hp": "models/hp", "icthp": "models", "hpsv2": None, "imagereward": None,
           "aesthetic": None, "jpeg": ""}  # fmt: skip
MADE_BY = {"clip": "`dvc pull` fetches data/", "pickscore": "`dvc pull` fetches data/",
           "ict": "`dvc repro train_ict` makes it", "hp": "`dvc repro train_hp` makes it"}  # fmt: skip


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
        said, own = folder / "open_clip_config.json", recipe.to_open_clip(self.recipe)
        more = {key: own[key] for key, usual in recipe.DEFAULTS.items() if own[key] != usual}
        if more:  # what open_clip's own writer leaves out
            config = json.loads(said.read_text(encoding="utf-8"))
            save_json(said, config | {"preprocess_cfg": config["preprocess_cfg"] | more})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, scaled: bool = False, **where) -> "ClipScorer":
        return load_clip(*_place(model_id, where), scaled=scaled).eval()

    def extra_repr(self) -> str:
        """What tells scorers of equal weights apart."""
        tokens = digest(self.architecture, self.tokenizer([PROBE]).tolist())  # equal weights may be read by other heads or other tokens
        return f"scaled={self.scaled}, {self.recipe}, folded={self.folded}, tokens={tokens}"

    @property
    def recipe(self) -> Recipe:
        """What is done to a picture before the image tower reads it."""
        return recipe.of_tower(self.model.visual)

    @property
    def size(self) -> int | tuple[int, int]:
        """Side of the square that the image tower reads; (height, width) where it reads none."""
        return self.recipe.side

    def preprocess(self, pixels: Tensor) -> Tensor:
        """What the image tower reads, for pixels (b, 3, h, w) in [0, 1]."""
        own = self.recipe.shape_only if self.folded else self.recipe
        return kernels.preprocess(pixels, own).to(self.model.logit_scale.dtype)

    def image_features(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """(b, d) in float32 at least, unit rows unless `normalize` is off."""
        return _unit(self.model.encode_image(self.preprocess(pixels), normalize=False), normalize)

    def cut(self, prompts: list[str]) -> Tensor:
        """(b,) bool: is a prompt longer than the text tower reads?"""
        read, whole = (self.tokenizer(prompts, context_length=n * self.model.context_length) for n in (1, 4))
        padding = whole[:, -1:]  # 0 or the end token; of a text that is longer still, the end token
        return (whole != padding).sum(1) > (read != padding).sum(1)

    def text_features(self, prompts: list[str]) -> Tensor:
        """(b, d) unit rows in float32 at least; each different prompt is encoded once."""
        unique = list(dict.fromkeys(prompts))
        features = _unit(self.model.encode_text(self.tokenizer(unique).to(self.device), normalize=False))
        place = {p: i for i, p in enumerate(unique)}
        return features[[place[p] for p in prompts]]

    def split(self, pixels: Tensor, prompts: list[str], common: Tensor) -> tuple[Tensor, Tensor]:
        """The cosine in two parts, (b,) each, which add up to it: text-relevant, and text-irrelevant, along `common` (d,), the
        unit mean of many text features (LongAlign, arXiv 2410.11817)."""
        image, text = self.image_features(pixels), self.text_features(prompts)
        with no_autocast(image.device):
            irrelevant = (image @ common.to(image.dtype)) * (text @ common.to(text.dtype))
            return (image * text).sum(-1) - irrelevant, irrelevant

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self._scale((self.image_features(pixels) * self.text_features(prompts)).sum(-1))

    def _table(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        image, text = self.image_features(pixels), self.text_features(prompts)
        with no_autocast(image.device):
            return self._scale(image @ text.T)

    def _scale(self, cosine: Tensor) -> Tensor:
        return cosine * wide(self.model.logit_scale).exp() if self.scaled else cosine


def _unit(features: Tensor, normalize: bool = True) -> Tensor:
    return nn.functional.normalize(wide(features), dim=-1) if normalize else wide(features)


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

    @property
    def recipe(self) -> Recipe:
        return self.clip.recipe

    def fold(self) -> "HpScorer":
        """The same scores in eval mode: a head without a non-linearity becomes one linear layer."""
        if self.config.get("variant") not in ("linear", "affine", "released"):
            return self
        folded = HpScorer(self.clip, kernels.hp_head(self.head), self.config | {"variant": "linear"})
        folded.card = self.card
        return folded

    def raw(self, pixels: Tensor) -> Tensor:
        """(b, outputs): the score before its sigmoid, and the logarithm of its variance where the head has one."""
        return through(self.head, self.clip.image_features(pixels, normalize=False))

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return torch.sigmoid(self.raw(pixels)[:, 0])

    def _save_pretrained(self, folder: Path) -> None:
        """The tuned CLIP in open_clip's format, the head beside it; the mixin writes config.json."""
        self.clip._save_pretrained(folder)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}, folder / "hp.safetensors")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict | None = None, **where) -> "HpScorer":
        return load_hp(*_place(model_id, where)).eval()


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

    def cut(self, prompts: list[str]) -> Tensor:
        return self.ict.cut(prompts)

    @property
    def recipe(self) -> Recipe | None:
        own = self.ict.recipe
        return own if own.shape_only == self.hp.recipe.shape_only else None

    def _square(self, pixels: Tensor) -> Tensor:
        """Resized once where both towers ask for the same."""
        return pixels if self.recipe is None else kernels.preprocess(pixels, self.recipe.kept)


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

    def cut(self, prompts: list[str]) -> Tensor:
        return torch.stack([s.cut(prompts) for s in self.scorers]).any(0)

    def forward(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        cut = lambda x, low, high: x if low is None and high is None else x.clamp(low, high)
        values = [weight * cut(s(pixels, prompts), low, high) for s, (weight, low, high) in zip(self.scorers, self.bounds)]
        return torch.stack(values).prod(0) if self.product else torch.stack(values).sum(0)


class JpegScorer(Scorer):
    """kB (1,000 bytes) of the JPEG at quality 95; not differentiable. side: every picture is first cut and scaled to a square of so many
    pixels, as CLIP does it; without one the number compares only pictures of one size."""

    needs_prompt = False

    def __init__(self, side: int | None = None):
        super().__init__()
        self.side, self.unit = side, "kB at quality 95" + (f", at {side} x {side} pixels" if side else "")

    def extra_repr(self) -> str:
        return f"side={self.side}"

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        pixels = pixels if self.side is None else pictures.fit_square(pixels, self.side)
        return pictures.jpeg_bytes(pixels).to(pixels.device) / 1000


class AestheticScorer(Scorer):
    """LAION's aesthetic predictor: linear layers on a unit CLIP ViT-L/14 image feature, about 1 to 10."""

    needs_prompt = False
    unit = "about 1 to 10"

    def __init__(self, clip: ClipScorer, head_: nn.Module):
        super().__init__()
        self.clip, self.head = clip, head_

    @property
    def recipe(self) -> Recipe:
        return self.clip.recipe

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return through(self.head, self.clip.image_features(pixels)).squeeze(-1)


def aesthetic_head(path) -> nn.Module:
    """LAION's released heads (.pth, read with weights_only): one linear layer, or the MLP without non-linearities."""
    state = weights.read_state(path)
    names = [k for k, v in state.items() if k.endswith("weight") and v.ndim == 2]
    if not names or any(k.replace("weight", "bias") not in state for k in names):
        raise ValueError(f"{path} holds no linear layers with their biases: name one of LAION's heads")
    layers = [nn.Linear(*reversed(state[k].shape)) for k in names]
    for layer, key in zip(layers, names):
        layer.weight.data, layer.bias.data = state[key].float(), state[key.replace("weight", "bias")].float()
    return kernels.hp_head(nn.Sequential(*layers))


def _place(model_id: str, where: dict) -> tuple[str, dict]:
    """A folder, or a source on the Hub with huggingface_hub's options (revision, cache_dir, token ...); TypeError for any other keyword."""
    unknown = where.keys() - {"revision", "cache_dir", "force_download", "local_files_only", "token"}
    if unknown:
        raise TypeError(f"from_pretrained has no keyword {', '.join(sorted(unknown))}")
    return (model_id, {}) if Path(model_id).is_dir() else (f"hf-hub:{model_id}", where)


def load_clip(source: str, where: dict | None = None, scaled: bool = False) -> ClipScorer:
    """Any source that weights.read_clip takes; a path alone is a folder. where: snapshot_download's options."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    model, tokenizer = weights.read_clip(source, **(where or {}))
    scorer = ClipScorer(model, tokenizer, scaled, weights.model_config(source, **(where or {})))
    return scorer.with_card(weights.folder_of(source)) if source.startswith("local-dir:") else scorer


def load_hp(source: str, where: dict | None = None) -> HpScorer:
    """A folder that HpScorer.save_pretrained wrote, or the released layout: hp_backbone/pytorch_model.bin and
    hp_scorer/mlp_pytorch_model.bin."""
    folder = weights.folder_of(source, **(where or {}))
    released = folder / "hp_scorer/mlp_pytorch_model.bin"
    if released.exists() and not (folder / "hp.safetensors").exists():
        clip = load_clip(f"local-dir:{folder / 'hp_backbone'}")
        state = {name.removeprefix("layers."): value for name, value in weights.read_state(released).items()}
        if "0.weight" not in state:
            raise ValueError(f"{released} has no layers.0.weight: it is not the released head of HP")
        config = {"width": state["0.weight"].shape[1], "variant": "released"}
        return HpScorer(clip, weights.fill(head(**config), state, released), config)
    config = weights.read_json(folder / "config.json")
    if "width" not in config or (unknown := config.keys() - {"width", "variant", "outputs"}):
        said = f"has an unknown {', '.join(sorted(unknown))}" if "width" in config else "lacks `width`"
        raise ValueError(f"{folder / 'config.json'} {said}; HP's head has width, variant and outputs")
    head_ = weights.fill(head(**config), weights.read_state(folder / "hp.safetensors"), folder / "hp.safetensors")
    return HpScorer(load_clip(f"local-dir:{folder}"), head_, config).with_card(folder)


def load(name: str, source: str | None = None, *, device=None, dtype=None) -> Scorer:
    """A scorer by name, frozen, in eval mode: clip, ict, hp, icthp, pickscore, hpsv2, imagereward, aesthetic, jpeg.

    source: see weights.read_clip for clip, ict, pickscore, hpsv2; a folder or "hf-hub:8y/HP" for hp; "ICT,HP" or their parent
    for icthp; imagereward.load's folder; "CLIP,head.pth" for aesthetic; "512" for jpeg at 512 x 512 pixels. None: the micro
    scale's folders. Raises ValueError for an unknown name or weights that do not fit, FileNotFoundError where a folder is missing."""
    if name not in SOURCES:
        raise ValueError(f"no scorer is called {name!r}; there are {', '.join(SOURCES)}")
    source = SOURCES[name] if source is None else source
    if source is None:
        raise ValueError(f"{name} has no weights at the micro scale: pass source=, e.g. an open_clip folder")
    parts = _parts(name, source)
    for made, folder in parts:
        if made != "head" and "hf-hub:" not in folder and ("local-dir:" in folder or made in OWN) and not _holds_weights(made, folder):
            remedy = MADE_BY.get(made, "name the publisher's folder")
            raise FileNotFoundError(f"{folder} has no weights: {remedy}, looked for {_looked_for(made)}")
    scorer = _build(name, [folder for _, folder in parts]).requires_grad_(False).eval().to(device=device, dtype=dtype)
    scorer.name = name
    return scorer


OWN = {"hp": ("hp.safetensors", "hp_scorer/mlp_pytorch_model.bin"), "imagereward": ("ImageReward.pt",)}


def _holds_weights(name: str, source: str) -> bool:
    """Is a folder there and finished? One that a killed training left holds only its checkpoint."""
    folder = weights.folder_of(source)
    return any((folder / file).exists() for file in OWN[name]) if name in OWN else weights.weights_in(folder) is not None


def _looked_for(name: str) -> str:
    return " or ".join(OWN.get(name, weights.FILES[:2])) + (" and the like" if name not in OWN else "")


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
        if sources[0] and not sources[0].isdecimal():
            raise ValueError(f'the source of jpeg is a side in pixels, as "512", or "" for pictures as they are, not {sources[0]!r}')
        return JpegScorer(int(sources[0]) if sources[0] else None)
    if name == "hp":
        return load_hp(*sources).fold()
    if name == "icthp":
        return IctHpScorer(load_clip(sources[0]), load_hp(sources[1]).fold())
    if name == "aesthetic":
        return AestheticScorer(load_clip(sources[0]), aesthetic_head(sources[1]))
    if name == "imagereward":
        return ImageRewardScorer(*imagereward.load(*sources))
    scorer = load_clip(*sources, scaled=name == "pickscore")
    if name == "hpsv2":  # the publisher's rule, whatever the weights' own architecture does
        open_clip.set_model_preprocess_cfg(scorer.model, recipe.to_open_clip(recipe.of_hps(scorer.recipe)))
    return scorer
