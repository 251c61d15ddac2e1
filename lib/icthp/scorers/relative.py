"""A score of the difference between two prompts, SRPO's relative reward."""

from collections.abc import Callable

from torch import Tensor

from icthp.scorers.base import Scorer


class RelativeScorer(Scorer):
    """(1 + k) s(x, positive(prompt)) - s(x, negative(prompt)) of any scorer s that reads a prompt (arXiv 2509.06942;
    Tencent-Hunyuan/SRPO@fastvideo/SRPO.py, which puts a word before the prompt): what s likes in every picture cancels out, what tells the
    two prompts apart stays. positive, negative: functions of the prompt. ValueError for a scorer of the image alone."""

    score_scale = "difference of two scores"

    def __init__(self, scorer: Scorer, positive: Callable[[str], str], negative: Callable[[str], str], k: float = 0.0):
        super().__init__()
        if not scorer.needs_prompt:
            raise ValueError(f"{scorer.name or type(scorer).__name__} reads no prompt, so two prompts cannot differ for it")
        self.scorer, self.positive, self.negative, self.k = scorer, positive, negative, k

    def extra_repr(self) -> str:
        return f"k={self.k}"

    def is_truncated(self, prompts: list[str]) -> Tensor:
        positive, negative = (self.scorer.is_truncated([*map(change, prompts)]) for change in (self.positive, self.negative))
        return positive | negative

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        positive, negative = (self.scorer(pixels, [*map(change, prompts)]) for change in (self.positive, self.negative))
        return (1 + self.k) * positive - negative
