"""scorers.combined."""

import torch
from torch import Tensor, nn

from icthp import kernels
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer
from icthp.scorers.clip import ClipScorer
from icthp.scorers.hp import HpScorer


class IctHpScorer(Scorer):
    """ICT * HP, one image at a time, in training and in use."""

    score_scale = "cosine times (0 to 1)"

    def __init__(self, ict: ClipScorer, hp: HpScorer):
        super().__init__()
        self.ict, self.hp = ict, hp

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = self._square(pixels)
        return self.ict(pixels, prompts) * self.hp(pixels)

    def _score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = self._square(pixels)
        return self.ict.score_matrix(pixels, prompts) * self.hp.score_matrix(pixels, prompts)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return self.ict.is_truncated(prompts)

    @property
    def preprocessing(self) -> Preprocessing | None:
        own = self.ict.preprocessing
        return own if own.without_normalization == self.hp.preprocessing.without_normalization else None

    def _square(self, pixels: Tensor) -> Tensor:
        """Resized once where both towers ask for the same."""
        return pixels if self.preprocessing is None else kernels.preprocess(pixels, self.preprocessing.for_cache)


class CombinedScorer(Scorer):
    """A weighted sum of scores, or with `product` their product; each is first cut to its (low, high), beyond which it has no
    gradient: a high end is the hinge that keeps a reward from being chased for ever. parts: [(scorer, weight, low, high)],
    None for an open end."""

    score_scale = "combined scores"

    def __init__(self, parts: list[tuple[Scorer, float, float | None, float | None]], product: bool = False):
        super().__init__()
        if not parts:
            raise ValueError("a combined score needs at least one part")
        self.scorers = nn.ModuleList(part[0] for part in parts)
        self.bounds, self.product = [part[1:] for part in parts], product
        self.needs_prompt = any(part[0].needs_prompt for part in parts)

    def extra_repr(self) -> str:
        return f"weight, low, high={self.bounds}, product={self.product}"

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return torch.stack([s.is_truncated(prompts) for s in self.scorers]).any(0)

    def forward(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        cut = lambda x, low, high: x if low is None and high is None else x.clamp(low, high)
        values = [weight * cut(s(pixels, prompts), low, high) for s, (weight, low, high) in zip(self.scorers, self.bounds)]
        return torch.stack(values).prod(0) if self.product else torch.stack(values).sum(0)
