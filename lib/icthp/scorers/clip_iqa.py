"""CLIP-IQA: is an image nearer to a text that praises it or to the opposite? CLIP's ResNet reads it at its own resolution."""

import copy

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from icthp import kernels
from icthp.losses import no_autocast, upcast
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer
from icthp.scorers.clip import load_clip

PAIRS = (("Good photo.", "Bad photo."),)
SCALE = 100.0  # of the cosines: the logit scale at which OpenAI's training ended
SMALLEST = 32  # pixels of a side, which the ResNet halves five times


class ClipIqaScorer(Scorer):
    """CLIP-IQA (arXiv 2207.12396): softmax(100 cosines)[good] of an image with two opposite texts; of several `pairs` (good, bad), the
    mean, as IQA-PyTorch@pyiqa/archs/clipiqa_arch.py has it. The image keeps its resolution, since the attention pool has no positional
    embedding (torchmetrics@src/torchmetrics/functional/multimodal/clip_iqa.py)."""

    needs_prompt = False
    score_scale = "probability of the good text, 0 to 1"

    def __init__(self, clip: open_clip.CLIP, tokenizer, pairs=PAIRS):
        super().__init__()
        self.pairs = pairs
        with torch.no_grad():
            self.register_buffer("texts", clip.encode_text(tokenizer([text for pair in pairs for text in pair]), normalize=True))
        self.visual = copy.deepcopy(clip.visual)
        pool = self.visual.attnpool
        pool.positional_embedding = nn.Parameter(torch.zeros_like(pool.positional_embedding[:1]))  # one row fits every resolution

    def extra_repr(self) -> str:
        return f"pairs={self.pairs}"

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        height, width = pixels.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"CLIP-IQA reads images of at least {SMALLEST} x {SMALLEST} pixels, not {height} x {width}: enlarge them")
        own = Preprocessing((height, width), "none", mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
        features = upcast(self.visual(kernels.preprocess(pixels, own).to(self.texts.dtype)))
        with no_autocast(features.device):
            logits = SCALE * nn.functional.normalize(features, dim=-1) @ upcast(self.texts).T
        return logits.unflatten(1, (-1, 2)).softmax(-1)[..., 0].mean(1)


def load_clip_iqa(source: str, pairs=PAIRS) -> ClipIqaScorer:
    """Any source that checkpoints.read_clip takes, of a CLIP with a ResNet: OpenAI's "RN50/openai", or a folder of it. ValueError for
    another CLIP."""
    clip = load_clip(source)
    if not isinstance(clip.model.visual, ModifiedResNet):
        raise ValueError(f"{source} has a {type(clip.model.visual).__name__}: CLIP-IQA needs CLIP's ResNet, as RN50/openai has it")
    return ClipIqaScorer(clip.model, clip.tokenizer, pairs).requires_grad_(False).eval()
