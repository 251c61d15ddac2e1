"""SigLIP and SigLIP 2: the probability that an image and a text belong together, from transformers' or open_clip's folders."""

from pathlib import Path

import open_clip
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel

from icthp import preprocessing
from icthp.files import read_json
from icthp.losses import upcast
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer
from icthp.scorers.clip import ClipScorer, load_clip
from icthp.scorers.configs import is_open_clip
from icthp.scorers.states import clip_folder, fill, read_state, under, weights_in
from icthp.scorers.tokenizers import FolderTokenizer


class SiglipScorer(Scorer):
    """SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786): sigmoid(scale * cosine + bias). The image is squashed to a square; the
    text is padded to 64 tokens, which are all read. Tuned on choices it is RE-N-Y/imscore@src/imscore/preference/model.py's scorer,
    whose number is `logits`. clip: the cosine, with a logit_scale and a logit_bias."""

    score_scale = "probability of a match, 0 to 1"

    def __init__(self, clip: ClipScorer):
        super().__init__()
        self.clip = clip

    @property
    def preprocessing(self) -> Preprocessing:
        return self.clip.preprocessing

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return self.clip.is_truncated(prompts)

    def logits(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """(b,): the score before its sigmoid."""
        return self._scale(self.clip(pixels, prompts))

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.logits(pixels, prompts).sigmoid()

    def _score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self._scale(self.clip.score_matrix(pixels, prompts)).sigmoid()

    def _scale(self, cosine: Tensor) -> Tensor:
        return cosine * upcast(self.clip.model.logit_scale).exp() + upcast(self.clip.model.logit_bias)


class SiglipTowers(nn.Module):
    """transformers' SiglipModel under open_clip's interface."""

    def __init__(self, model: SiglipModel, config: Preprocessing):
        super().__init__()
        self.visual, self.text = model.vision_model, model.text_model
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias
        self.context_length = model.config.text_config.max_position_embeddings
        self.visual.image_size = config.size
        open_clip.set_model_preprocess_cfg(self, preprocessing.to_open_clip(config))

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        features = self.visual(pixel_values=pixels).pooler_output
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        features = self.text(input_ids=tokens).pooler_output
        return nn.functional.normalize(features, dim=-1) if normalize else features


class SiglipTokenizer(FolderTokenizer):
    """In lower case and padded at the end, as both versions were trained, whatever the folder's own class does."""

    def __init__(self, folder: Path, context_length: int):
        super().__init__(folder, context_length)
        self.tokenizer.padding_side = "right"

    def __call__(self, texts: list[str] | str, context_length: int | None = None) -> Tensor:
        return super().__call__([text.lower() for text in ([texts] if isinstance(texts, str) else texts)], context_length)


def load_siglip(source: str) -> SiglipScorer:
    """A folder or "hf-hub:org/repo" in transformers' layout (`model_type` siglip, which SigLIP 2 has too at one resolution), or any
    source of open_clip that checkpoints.read_clip takes. FileNotFoundError, or ValueError for weights that do not fit."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    folder = clip_folder(source) if ":" in source else None
    if folder is None or is_open_clip(folder):
        clip = load_clip(source)
    else:
        towers = SiglipTowers(*read_siglip(folder))
        clip = ClipScorer(towers, SiglipTokenizer(folder, towers.context_length))
    if getattr(clip.model, "logit_bias", None) is None:
        raise ValueError(f"{source} has no logit_bias: it is a CLIP and no SigLIP, load it as clip")
    return SiglipScorer(clip).requires_grad_(False).eval()


def read_siglip(folder: Path) -> tuple[SiglipModel, Preprocessing]:
    """Model in eval mode and preprocessing of a transformers folder; the weights may be under RE-N-Y/pickscore-siglip's names (model.*).
    FileNotFoundError, or ValueError for another model or weights that do not fit."""
    path = folder / "config.json"
    if (model_type := read_json(path).get("model_type")) != "siglip":
        raise ValueError(f"{path}: `model_type` is {model_type!r}; only siglip is read, SigLIP or SigLIP 2 at one resolution")
    file = weights_in(folder) or folder / "model.safetensors"
    state = read_state(file)
    model = fill(SiglipModel(SiglipConfig.from_pretrained(folder)), under("model.", state) or state, file)
    return model, _preprocessing(folder, model.config.vision_config.image_size)


def _preprocessing(folder: Path, side: int) -> Preprocessing:
    """By preprocessor_config.json, else SigLIP's own: squashed to the square, mean and std 0.5."""
    path = folder / "preprocessor_config.json"
    own = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    config = own | (read_json(path) if path.is_file() else {})
    return preprocessing.from_transformers(config | {"image_processor_type": None, "do_center_crop": False}, side, path)
