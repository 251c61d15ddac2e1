"""Aesthetic predictor v2.5: SigLIP's image feature and one affine map. Its released head is under AGPL-3: it is read here and never
comes with this library."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionModel

from icthp import kernels
from icthp.losses import upcast
from icthp.preprocessing import Preprocessing
from icthp.scorers.aesthetic import aesthetic_head
from icthp.scorers.base import Scorer, apply_head
from icthp.scorers.siglip import read_siglip
from icthp.scorers.states import clip_folder


class AestheticV25Scorer(Scorer):
    """Aesthetic predictor v2.5 (discus0434/aesthetic-predictor-v2-5@src/aesthetic_predictor_v2_5/siglip_v2_5.py): five linear layers
    without a non-linearity, here one, on the unit pooled feature of SigLIP's vision tower (so400m, 384 x 384). 1 to 10; from 5.5 on it
    counts as very good."""

    needs_prompt = False
    score_scale = "about 1 to 10"

    def __init__(self, vision: SiglipVisionModel, head: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.vision = vision
        self.head = head
        self.preprocessing = preprocessing

    def extra_repr(self) -> str:
        return str(self.preprocessing)

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        pixels = kernels.preprocess(pixels, self.preprocessing).to(self.vision.dtype)
        features = F.normalize(upcast(self.vision(pixel_values=pixels).pooler_output), dim=-1)
        return apply_head(self.head, features).squeeze(-1)


def load_aesthetic_v25(source: str) -> AestheticV25Scorer:
    """source: "SIGLIP,HEAD.pth", the folder of google/siglip-so400m-patch14-384, or "hf-hub:" and its name, and the file
    aesthetic_predictor_v2_5.pth (scoring_head.{0,2,4,6,8}.*; under AGPL-3, so fetch it yourself). FileNotFoundError, or ValueError for
    weights that do not fit."""
    if source.count(",") != 1:
        raise ValueError(f'the source of aesthetic v2.5 is "SIGLIP,HEAD.pth", not {source!r}')
    siglip, file = source.split(",")
    head = aesthetic_head(file)
    model, preprocessing = read_siglip(clip_folder(siglip))
    if head[0].in_features != (own := model.config.vision_config.hidden_size):
        raise ValueError(f"{file} reads {head[0].in_features} features and {siglip} gives {own}: name google/siglip-so400m-patch14-384")
    return AestheticV25Scorer(model.vision_model, head, preprocessing).requires_grad_(False).eval()
