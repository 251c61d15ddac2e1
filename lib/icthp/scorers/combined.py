"""Scorers of several scorers: ICT-HP, their product, and weighted sums with bounds."""

import torch
from torch import Tensor, nn

from icthp import kernels
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer
from icthp.scorers.clip import ClipScorer
from icthp.scorers.hp import HpScorer


class IctHpScorer(Scorer):
    """ICT * HP of one image, the same in training and in scoring (arXiv 2507.19002)."""

    score_scale = "cosine times (0 to 1)"

    def __init__(self, ict: ClipScorer, hp: HpScorer):
        super().__init__()
        self.ict = ict
        self.hp = hp

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = self._resize_once(pixels)
        return self.ict(pixels, prompts) * self.hp(pixels)

    def _score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = self._resize_once(pixels)
        return self.ict.score_matrix(pixels, prompts) * self.hp.score_matrix(pixels, prompts)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return self.ict.is_truncated(prompts)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """ICT's, if HP's resizes the same way, else None."""
        own = self.ict.preprocessing
        return own if own.without_normalization == self.hp.preprocessing.without_normalization else None

    def _resize_once(self, pixels: Tensor) -> Tensor:
        """Resized for both towers if they ask for the same."""
        return pixels if self.preprocessing is None else kernels.preprocess(pixels, self.preprocessing.for_cache)


class CombinedScorer(Scorer):
    """A weighted sum of scores, or with `product` their product; each is first clamped to its (low, high), beyond which it has no
    gradient: a high bound keeps a reward from being optimised for ever. parts: [(scorer, weight, low, high)], None for an open
    bound. ValueError for no parts."""

    score_scale = "combined scores"

    def __init__(self, parts: list[tuple[Scorer, float, float | None, float | None]], product: bool = False):
        super().__init__()
        if not parts:
            raise ValueError("a combined score needs at least one part")
        self.scorers = nn.ModuleList(part[0] for part in parts)
        self.bounds = [part[1:] for part in parts]
        self.product = product
        self.needs_prompt = any(part[0].needs_prompt for part in parts)

    def extra_repr(self) -> str:
        return f"weight, low, high={self.bounds}, product={self.product}"

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return torch.stack([s.is_truncated(prompts) for s in self.scorers]).any(0)

    def forward(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        values = [weight * _clamp(s(pixels, prompts), low, high) for s, (weight, low, high) in zip(self.scorers, self.bounds)]
        return torch.stack(values).prod(0) if self.product else torch.stack(values).sum(0)


def _clamp(x: Tensor, low: float | None, high: float | None) -> Tensor:
    return x if low is None and high is None else x.clamp(low, high)
