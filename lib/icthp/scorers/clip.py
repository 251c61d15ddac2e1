"""CLIP and what has its form (ICT, PickScore, HPS v2): the cosine of an image's and a text's features; reading and writing it."""

import copy
from functools import partial
from pathlib import Path

import open_clip
import torch
from open_clip.push_to_hf_hub import save_for_hf
from torch import Tensor, nn

from icthp import kernels, preprocessing
from icthp.files import atomic_folder, digest, read_json, save_json
from icthp.losses import no_autocast, upcast
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer
from icthp.scorers.checkpoints import read_clip
from icthp.scorers.configs import CONFIG, model_config
from icthp.scorers.hub import HubMixin
from icthp.scorers.states import folder_of
from icthp.scorers.tokenizers import to_transformers

PROBE = "A  photo of 2 “red” cats, R&amp;D and a café \U0001f600."  # tokenizers differ in what they do with it


class ClipScorer(Scorer, HubMixin):
    """Cosine of an open_clip model's image and text features, times its logit scale when `scaled` (PickScore). `architecture`:
    open_clip's model_cfg, which saving needs."""

    def __init__(self, model: open_clip.CLIP, tokenizer, scaled: bool = False, architecture: dict | None = None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.scaled = scaled
        self.architecture = architecture
        self.score_scale = "logit-scaled cosine" if scaled else "cosine"
        self._hub_mixin_config = None  # the mixin's file; open_clip's own holds everything

    def _save_pretrained(self, folder: Path) -> None:
        save_clip(self.model, self.tokenizer, self.architecture, folder, dtype=torch.float32)
        own = preprocessing.to_open_clip(self.preprocessing)
        extra = {key: own[key] for key, default in preprocessing.DEFAULTS.items() if own[key] != default}
        if extra:  # fields that open_clip's own writer leaves out
            config = read_json(folder / CONFIG)
            save_json(folder / CONFIG, config | {"preprocess_cfg": config["preprocess_cfg"] | extra})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, scaled: bool = False, **options) -> "ClipScorer":
        return load_clip(*hub_options(model_id, options), scaled=scaled).eval()

    def extra_repr(self) -> str:
        """What tells scorers of equal weights apart: other heads or other tokens may read the same weights."""
        tokens = digest(self.architecture, self.tokenizer([PROBE]).tolist())
        return f"scaled={self.scaled}, {self.preprocessing}, tokens={tokens}"

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to an image before the image tower reads it."""
        return preprocessing.from_tower(self.model.visual)

    @property
    def size(self) -> int | tuple[int, int]:
        """Side of the square that the image tower reads; (height, width) if it reads no square."""
        return self.preprocessing.side

    def preprocess(self, pixels: Tensor) -> Tensor:
        """What the image tower reads, for pixels (b, 3, h, w) in [0, 1]."""
        return kernels.preprocess(pixels, self.preprocessing).to(self.model.logit_scale.dtype)

    def image_features(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """pixels (b, 3, h, w) -> (b, d) in float32 at least, unit rows if `normalize`."""
        return _unit(self.model.encode_image(self.preprocess(pixels), normalize=False), normalize)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        """(b,) bool: is a prompt longer than the text tower reads?"""
        length = self.model.context_length
        ids = self.tokenizer(prompts, context_length=length)
        longer = self.tokenizer(prompts, context_length=4 * length)
        padding = longer[:, -1:]  # 0 or the end token; of a text that is longer still, the end token
        return (longer != padding).sum(1) > (ids != padding).sum(1)

    def text_features(self, prompts: list[str]) -> Tensor:
        """(b, d) unit rows in float32 at least; each different prompt is encoded once."""
        unique = list(dict.fromkeys(prompts))
        features = _unit(self.model.encode_text(self.tokenizer(unique).to(self.device), normalize=False))
        index = {p: i for i, p in enumerate(unique)}
        return features[[index[p] for p in prompts]]

    def decompose(self, pixels: Tensor, prompts: list[str], common: Tensor) -> tuple[Tensor, Tensor]:
        """The cosine of pixels (b, 3, h, w) and b prompts in two parts, (b,) each, which add up to it: text-relevant, and text-irrelevant,
        along `common` (d,), the unit mean of text features (LongAlign, arXiv 2410.11817)."""
        image, text = self.image_features(pixels), self.text_features(prompts)
        with no_autocast(image.device):
            irrelevant = (image @ common.to(image.dtype)) * (text @ common.to(text.dtype))
            return (image * text).sum(-1) - irrelevant, irrelevant

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self._scale((self.image_features(pixels) * self.text_features(prompts)).sum(-1))

    def _score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        image, text = self.image_features(pixels), self.text_features(prompts)
        with no_autocast(image.device):
            return self._scale(image @ text.T)

    def _scale(self, cosine: Tensor) -> Tensor:
        return cosine * upcast(self.model.logit_scale).exp() if self.scaled else cosine


def _unit(features: Tensor, normalize: bool = True) -> Tensor:
    return nn.functional.normalize(upcast(features), dim=-1) if normalize else upcast(features)


def hub_options(model_id: str, options: dict) -> tuple[str, dict]:
    """A folder, or a source on the Hub with huggingface_hub's options (revision, cache_dir, token ...); TypeError for any other keyword."""
    unknown = options.keys() - {"revision", "cache_dir", "force_download", "local_files_only", "token"}
    if unknown:
        raise TypeError(f"from_pretrained has no keyword {', '.join(sorted(unknown))}")
    return (model_id, {}) if Path(model_id).is_dir() else (f"hf-hub:{model_id}", options)


def load_clip(source: str, options: dict | None = None, scaled: bool = False) -> ClipScorer:
    """Any source that checkpoints.read_clip takes; a path alone is a folder. options: snapshot_download's options."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    model, tokenizer = read_clip(source, **(options or {}))
    scorer = ClipScorer(model, tokenizer, scaled, model_config(source, **(options or {})))
    return scorer.with_card(folder_of(source)) if source.startswith("local-dir:") else scorer


def load_hps(source: str) -> ClipScorer:
    """HPS v2: a CLIP that reads images by its publisher's rule, whatever the weights' own config says."""
    scorer = load_clip(source)
    open_clip.set_model_preprocess_cfg(scorer.model, preprocessing.to_open_clip(preprocessing.from_hps(scorer.preprocessing)))
    return scorer


def save_clip(model: open_clip.CLIP, tokenizer, config: dict, folder, dtype=torch.float16) -> None:
    """Write `folder` so that open_clip.create_model_from_pretrained("local-dir:folder") reads it. config: open_clip's model_cfg."""
    model = copy.deepcopy(model).to("cpu", dtype)
    atomic_folder(folder, partial(_write_clip, model, to_transformers(tokenizer), config))


def _write_clip(model: open_clip.CLIP, tokenizer, config: dict, folder: Path) -> None:
    save_for_hf(model, tokenizer, config, str(folder), safe_serialization=True)
