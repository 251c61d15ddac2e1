"""A reward of one's own, and a warning: it prefers whatever has edges. A generator that is tuned on it draws garbage."""

from icthp.scorers import Scorer


class EdgeScorer(Scorer):
    """The mean absolute difference of neighbouring pixels, in [0, 1]; it reads no prompt and was never trained."""

    needs_prompt = False
    score_scale = "mean absolute difference of neighbouring pixels"

    def forward(self, pixels, prompts=None):
        return (pixels.diff(dim=-1).abs().mean((1, 2, 3)) + pixels.diff(dim=-2).abs().mean((1, 2, 3))) / 2
