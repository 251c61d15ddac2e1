"""scorers.clip."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPTokenizer

from icthp import kernels, preprocessing
from icthp.files import atomic_folder, digest, save_json
from icthp.losses import no_autocast, upcast
from icthp.pipelines import cpu_copy
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer
from icthp.scorers.checkpoints import model_config, read_clip
from icthp.scorers.hub import HubMixin
from icthp.scorers.states import folder_of


def save_clip(model: open_clip.CLIP, tokenizer, config: dict, folder, dtype=torch.float16) -> None:
    """Write `folder` so that open_clip.create_model_from_pretrained("local-dir:folder") reads it."""
    write = lambda partial: save_for_hf(
        cpu_copy(model, dtype), _in_transformers_format(tokenizer), config, str(partial), safe_serialization=True
    )
    atomic_folder(folder, write)


def _in_transformers_format(tokenizer) -> CLIPTokenizer:
    """open_clip's own byte-pair tokenizer, or one that it or transformers loaded, as the latter saves them."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        start, end = "<start_of_text>", "<end_of_text>"  # its names for them
        return CLIPTokenizer(tokenizer.encoder, list(tokenizer.bpe_ranks), model_max_length=tokenizer.context_length,
                             bos_token=start, eos_token=end, unk_token=end, pad_token=end)  # fmt: skip
    return getattr(tokenizer, "tokenizer", tokenizer)


PROBE = "A  photo of 2 “red” cats, R&amp;D and a café \U0001f600."  # tokenizers differ in what they do with it


class ClipScorer(Scorer, HubMixin):
    """Cosine of an open_clip model's image and text features, times its logit scale when `scaled` (PickScore). `architecture`:
    open_clip's model_cfg, which saving needs."""

    def __init__(self, model, tokenizer, scaled: bool = False, architecture: dict | None = None):
        super().__init__()
        self.model, self.tokenizer, self.scaled, self.architecture = model, tokenizer, scaled, architecture
        self._hub_mixin_config = None  # open_clip's own file says all
        self.score_scale = "logit-scaled cosine" if scaled else "cosine"
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
        save_clip(self.model, self.tokenizer, self.architecture, folder, dtype=torch.float32)
        said, own = folder / "open_clip_config.json", preprocessing.to_open_clip(self.preprocessing)
        more = {key: own[key] for key, usual in preprocessing.DEFAULTS.items() if own[key] != usual}
        if more:  # what open_clip's own writer leaves out
            config = json.loads(said.read_text(encoding="utf-8"))
            save_json(said, config | {"preprocess_cfg": config["preprocess_cfg"] | more})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, scaled: bool = False, **where) -> "ClipScorer":
        return load_clip(*hub_options(model_id, where), scaled=scaled).eval()

    def extra_repr(self) -> str:
        """What tells scorers of equal weights apart."""
        tokens = digest(self.architecture, self.tokenizer([PROBE]).tolist())  # equal weights may be read by other heads or other tokens
        return f"scaled={self.scaled}, {self.preprocessing}, folded={self.folded}, tokens={tokens}"

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to a picture before the image tower reads it."""
        return preprocessing.from_tower(self.model.visual)

    @property
    def size(self) -> int | tuple[int, int]:
        """Side of the square that the image tower reads; (height, width) where it reads none."""
        return self.preprocessing.side

    def preprocess(self, pixels: Tensor) -> Tensor:
        """What the image tower reads, for pixels (b, 3, h, w) in [0, 1]."""
        own = self.preprocessing.without_normalization if self.folded else self.preprocessing
        return kernels.preprocess(pixels, own).to(self.model.logit_scale.dtype)

    def image_features(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """(b, d) in float32 at least, unit rows unless `normalize` is off."""
        return _unit(self.model.encode_image(self.preprocess(pixels), normalize=False), normalize)

    def is_truncated(self, prompts: list[str]) -> Tensor:
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

    def decompose(self, pixels: Tensor, prompts: list[str], common: Tensor) -> tuple[Tensor, Tensor]:
        """The cosine in two parts, (b,) each, which add up to it: text-relevant, and text-irrelevant, along `common` (d,), the
        unit mean of many text features (LongAlign, arXiv 2410.11817)."""
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


def hub_options(model_id: str, where: dict) -> tuple[str, dict]:
    """A folder, or a source on the Hub with huggingface_hub's options (revision, cache_dir, token ...); TypeError for any other keyword."""
    unknown = where.keys() - {"revision", "cache_dir", "force_download", "local_files_only", "token"}
    if unknown:
        raise TypeError(f"from_pretrained has no keyword {', '.join(sorted(unknown))}")
    return (model_id, {}) if Path(model_id).is_dir() else (f"hf-hub:{model_id}", where)


def load_clip(source: str, where: dict | None = None, scaled: bool = False) -> ClipScorer:
    """Any source that weights.read_clip takes; a path alone is a folder. where: snapshot_download's options."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    model, tokenizer = read_clip(source, **(where or {}))
    scorer = ClipScorer(model, tokenizer, scaled, model_config(source, **(where or {})))
    return scorer.with_card(folder_of(source)) if source.startswith("local-dir:") else scorer
