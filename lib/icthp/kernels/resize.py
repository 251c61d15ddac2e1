"""CLIP's preprocessing with its gradient: pictures.fit_square and normalisation, each direction one product with a matrix."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from icthp import pictures


def preprocess(pixels: Tensor, size: int, mean=None, std=None, *, impl: str = "auto") -> Tensor:
    """pictures.fit_square, then (x - mean) / std for three means and stds, where given -> (b, 3, size, size).

    pixels (b, 3, h, w) in [0, 1], differentiable, gradients deterministic; or uint8, which the CPU resizes in integers as Pillow
    does, without gradient. impl: "aten" resizes by torch's own kernel, "gemm" by matrix products, which every device and type
    knows; "auto": "gemm" on a GPU, where the antialiased kernel is slow, fails on big pictures and knows no bfloat16. The
    backward pass is by matrix products in both."""
    if impl not in ("auto", "aten", "gemm"):
        raise ValueError(f'impl must be "auto", "aten" or "gemm", not {impl!r}')
    impl = ("gemm" if pixels.is_cuda else "aten") if impl == "auto" else impl
    if pixels.dtype == torch.uint8:
        pixels = pictures.fit_square(pixels, size).float() / 255 if impl == "aten" else pixels.float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = _FitSquare.apply(pixels, size, impl)
    return pixels if mean is None else normalise(pixels, mean, std)


def normalise(pixels: Tensor, mean, std) -> Tensor:
    """(x - mean) / std, three each, in one multiplication and addition."""
    scale, shift = ([1 / s for s in std], [-m / s for m, s in zip(mean, std)])
    scale, shift = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device)[:, None, None] for v in (scale, shift))
    return torch.addcmul(shift, pixels, scale)


@functools.lru_cache(maxsize=64)
def matrix(n: int, out: int, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(stop - start, n): the rows start to stop of the map that resizes n numbers to `out`; what torch makes of the identity."""
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    rows = F.interpolate(torch.eye(n, dtype=wide)[None, None], (out, n), mode="bicubic", antialias=True)[0, 0]
    return rows[start:stop].contiguous().to(device, dtype)


class _FitSquare(torch.autograd.Function):
    """pictures.fit_square: two directions, each cut to [0, 1]."""

    @staticmethod
    def forward(ctx, pixels, size, impl):
        shape = pixels.shape[-2:]
        square = pictures.square_of(*shape, size)
        steps, inside = [], []
        for dim in square.order:
            steps.append((dim, shape[dim], square.shape[dim], square.start[dim], square.start[dim] + size))
            pixels = _along(pixels, *steps[-1], impl)
            inside.append((pixels >= 0) & (pixels <= 1))
            pixels = pixels.clamp(0, 1)
        ctx.steps, ctx.inside = steps, inside
        return pixels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        for (dim, *spec), inside in zip(reversed(ctx.steps), reversed(ctx.inside)):
            rows = matrix(*spec, gradient.dtype, gradient.device)
            gradient = gradient * inside
            gradient = rows.mT @ gradient if dim == 0 else gradient @ rows
        return gradient, None, None


def _along(x: Tensor, dim: int, n: int, out: int, start: int, stop: int, impl: str) -> Tensor:
    """The height (dim 0) or width (1) of x (b, 3, h, w), n, resized to `out`, of which start to stop are kept."""
    if impl == "aten":
        shape = (out, x.shape[-1]) if dim == 0 else (x.shape[-2], out)
        return F.interpolate(x, shape, mode="bicubic", antialias=True).narrow(dim - 2, start, stop - start)
    rows = matrix(n, out, start, stop, x.dtype, x.device)
    return rows @ x if dim == 0 else x @ rows.mT
