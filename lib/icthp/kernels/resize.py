"""CLIP's preprocessing with its gradient: pictures.fit_square and normalisation, each direction a product with a banded matrix."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from icthp import pictures
from icthp.losses import no_autocast

BAND = 32  # rows of the matrix that a processor multiplies at once; a GPU multiplies all


def preprocess(pixels: Tensor, size: int, mean=None, std=None) -> Tensor:
    """pictures.fit_square, then (x - mean) / std for three means and stds, where given -> (b, 3, size, size).

    pixels (b, 3, h, w) in [0, 1], of any floating type on any device, differentiable, gradients deterministic; or uint8, which
    the CPU resizes in integers as Pillow does, without gradient. With its gradient twice as fast as torch's antialiased kernel on a CPU,
    which knows no bfloat16, and fails for large reductions on a GPU."""
    if pixels.dtype == torch.uint8:
        pixels = (pixels if pixels.is_cuda else pictures.fit_square(pixels, size)).float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = _FitSquare.apply(pixels, size)
    return pixels if mean is None else normalise(pixels, mean, std)


def normalise(pixels: Tensor, mean, std) -> Tensor:
    """(x - mean) / std, three each, in one multiplication and addition."""
    scale, shift = ([1 / s for s in std], [-m / s for m, s in zip(mean, std)])
    scale, shift = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device)[:, None, None] for v in (scale, shift))
    return torch.addcmul(shift, pixels, scale)


@functools.lru_cache(maxsize=64)
def bands(n: int, out: int, start: int, stop: int, transposed: bool, dtype: torch.dtype, device: torch.device) -> list:
    """The rows start to stop of the (out, n) matrix that resizes n numbers to `out`, which is what torch makes of the identity, or
    its transposed, as blocks: [(rows of the block, the columns that it needs, the block)]."""
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    rows = F.interpolate(torch.eye(n, dtype=wide)[None, None], (out, n), mode="bicubic", antialias=True)[0, 0, start:stop]
    rows, width = (rows.mT, max(1, BAND * n // out)) if transposed else (rows, BAND)
    blocks, width = [], width if device.type == "cpu" else len(rows)
    for i in range(0, len(rows), width):
        block = rows[i : i + width]
        used = block.any(0).nonzero().flatten().tolist() or [0]
        columns = slice(0, rows.shape[1]) if len(block) == len(rows) else slice(used[0], used[-1] + 1)
        blocks.append((slice(i, i + len(block)), columns, block[:, columns].contiguous().to(device, dtype)))
    return blocks


def _product(x: Tensor, blocks: list) -> Tensor:
    """(.., m, w) -> (.., n, w): the matrix times x, each block's rows from its columns."""
    if len(blocks) == 1:
        return blocks[0][2] @ x
    y = x.new_empty(*x.shape[:-2], blocks[-1][0].stop, x.shape[-1])
    for rows, columns, block in blocks:
        y[..., rows, :] = block @ x[..., columns, :]
    return y


class _FitSquare(torch.autograd.Function):
    """pictures.fit_square: two directions, each cut to [0, 1]. The width is the height of the transposed picture."""

    @staticmethod
    def forward(ctx, pixels, size):
        shape = pixels.shape[-2:]
        square = pictures.square_of(*shape, size)
        ctx.steps, ctx.inside = [], []
        with no_autocast(pixels.device):
            for dim in square.order:
                spec = shape[dim], square.shape[dim], square.start[dim], square.start[dim] + size
                ctx.steps.append((dim, spec))
                pixels = _product(_upright(pixels, dim), bands(*spec, False, pixels.dtype, pixels.device))
                ctx.inside.append((pixels >= 0) & (pixels <= 1))
                pixels = _upright(pixels.clamp_(0, 1), dim)
        return pixels.contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with no_autocast(gradient.device):
            for (dim, spec), inside in zip(reversed(ctx.steps), reversed(ctx.inside)):
                blocks = bands(*spec, True, gradient.dtype, gradient.device)
                gradient = _upright(_product(_upright(gradient, dim) * inside, blocks), dim)
        return gradient, None


def _upright(x: Tensor, dim: int) -> Tensor:
    return x.mT if dim == 1 else x
