"""scorers.jpeg."""

from torch import Tensor

from icthp import images, preprocessing
from icthp.scorers.base import Scorer


class JpegScorer(Scorer):
    """kB (1,000 bytes) of the JPEG at quality 95; not differentiable. side: every picture is first cut and scaled to a square of so many
    pixels, as CLIP does it; without one the number compares only pictures of one size."""

    needs_prompt = False

    def __init__(self, side: int | None = None):
        super().__init__()
        self.side, self.score_scale = side, "kB at quality 95" + (f", at {side} x {side} pixels" if side else "")

    def extra_repr(self) -> str:
        return f"side={self.side}"

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        pixels = pixels if self.side is None else preprocessing.resize_center_crop(pixels, self.side)
        return images.jpeg_bytes(pixels).to(pixels.device) / 1000
