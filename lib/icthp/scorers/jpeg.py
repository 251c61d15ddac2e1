"""The size of an image's JPEG file: a crude measure of its detail, which needs no model."""

from torch import Tensor

from icthp import images, preprocessing
from icthp.scorers.base import Scorer


class JpegScorer(Scorer):
    """kB (1,000 bytes) of the JPEG at quality 95; not differentiable. side: every image is first resized and cropped to a square of
    that many pixels, as for CLIP; without one, only images of one size compare."""

    needs_prompt = False

    def __init__(self, side: int | None = None):
        super().__init__()
        self.side = side
        self.score_scale = "kB at quality 95" + (f", at {side} x {side} pixels" if side else "")

    def extra_repr(self) -> str:
        return f"side={self.side}"

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        pixels = pixels if self.side is None else preprocessing.resize_center_crop(pixels, self.side)
        return images.jpeg_bytes(pixels).to(pixels.device) / 1000


def make_jpeg(source: str) -> JpegScorer:
    """source: a side in pixels such as "512", or "" for images of any size. ValueError for anything else."""
    if source and not source.isdecimal():
        raise ValueError(f'the source of jpeg is a side in pixels, as "512", or "" for pictures as they are, not {source!r}')
    return JpegScorer(int(source) if source else None)
