"""A model's preprocessing with its gradient: resizing, cropping and normalisation, each direction a product with a banded matrix."""

import functools
import math

import torch
from torch import Tensor

from icthp.losses import no_autocast
from icthp.preprocessing import Axis, Plan, from_side, pad, plan, resize_center_crop

BAND = 32  # rows of the matrix that a processor multiplies at once; a GPU multiplies all
LARGEST = 16  # times the kept area: torch resizes bytes whole up to here; beyond, only the kept pixels are made


def preprocess(pixels: Tensor, size, mean=None, std=None) -> Tensor:
    """preprocessing.resize_center_crop, then (x - mean) / std for three means and stds, if given or if `size` has them
    -> (b, 3, height, width).

    pixels (b, 3, h, w) in [0, 1], of any floating type on any device, differentiable, gradients deterministic; or uint8, which
    the CPU resizes in integers as Pillow does, without gradient. size: a Preprocessing, or the side of CLIP's geometry. With its
    gradient twice as fast as torch's antialiased kernel on a CPU, which knows no bfloat16, and fails for large reductions on a
    GPU. Pixels outside the crop are never made: an image one pixel wide costs no more than a square."""
    config = from_side(size)
    mean, std = (config.mean, config.std) if mean is None else (mean, std)
    steps = plan(config, *pixels.shape[-2:])
    if pixels.dtype == torch.uint8 and not pixels.is_cuda and config.clipped and _area(steps) <= LARGEST * math.prod(config.size):
        pixels = resize_center_crop(pixels, config).float() / 255
    elif steps.is_identity:
        pixels = pad(pixels if pixels.is_floating_point() else pixels.float() / 255, config, config.fill)
    else:
        pixels = _ResizeCrop.apply(_crop_source(pixels, steps, config.filter), steps, config.filter, config.clipped)
        pixels = pad(pixels, config, config.fill)
    return pixels if mean is None else normalize(pixels, mean, std)


def normalize(pixels: Tensor, mean, std) -> Tensor:
    """(x - mean) / std, three each, in one multiplication and addition; pixels (b, 3, h, w)."""
    column = lambda values: torch.tensor(values, dtype=pixels.dtype, device=pixels.device)[:, None, None]
    scale = column([1 / s for s in std])
    shift = column([-m / s for m, s in zip(mean, std)])
    return torch.addcmul(shift, pixels, scale)


def _upcast(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _area(steps: Plan) -> int:
    return steps.axes[0].resized * steps.axes[1].resized


def _crop_source(pixels: Tensor, steps: Plan, filter: str) -> Tensor:
    """The part of the images that the kept pixels are made of."""
    for dim, axis in enumerate(steps.axes):
        first, matrix = rows(axis, filter, _upcast(pixels.dtype))
        if matrix.shape[1] < axis.source:  # narrowing to everything would cost a copy in the backward pass
            pixels = pixels.narrow(dim - 2, first, matrix.shape[1])
    return pixels


@functools.lru_cache(maxsize=16)
def rows(axis: Axis, filter: str, dtype: torch.dtype) -> tuple[int, Tensor]:
    """(first, matrix): `matrix` (stop - start, n) makes the kept pixels of a line from its n pixels that begin at `first`. Its weights
    are bit for bit those of torch's antialiased kernel in float32 (aten/src/ATen/native/cpu/UpSampleKernel.cpp), which rounds after
    each step."""
    rounded = lambda x: x.to(dtype).double()
    number = lambda x: rounded(torch.tensor(x, dtype=torch.float64))
    scale = rounded(number(axis.source) / number(axis.resized))
    stretch = scale.clamp(min=1)
    reach = 2 if filter == "bicubic" else 1
    centre = rounded(scale * (torch.arange(axis.start, axis.stop).double() + 0.5))
    edge = lambda sign: rounded(rounded(centre + sign * rounded(reach * stretch)) + 0.5).long().clamp(0, axis.source)
    low, high = edge(-1), edge(1)
    tap = torch.arange(int((high - low).max()))
    x = rounded(rounded(rounded(rounded(low[:, None] + tap) - centre[:, None]) + 0.5) * rounded(1 / stretch)).abs()
    weights = torch.where(tap < (high - low)[:, None], _filter(x, filter, rounded), 0)
    total = functools.reduce(lambda a, b: rounded(a + b), weights.unbind(1))
    first = int(low.min())
    matrix = weights.new_zeros(len(low), int(high.max()) - first + len(tap))
    matrix.scatter_(1, low[:, None] - first + tap, rounded(weights / total[:, None]))
    return first, matrix[:, : int(high.max()) - first].to(dtype)


def _filter(x: Tensor, filter: str, rounded) -> Tensor:
    """Pillow's triangle, or its cubic with a = -0.5, at distances x >= 0."""
    if filter == "bilinear":
        return (1 - x).clamp(min=0)
    inner = rounded(rounded(rounded(1.5 * x - 2.5) * x) * x + 1)
    outer = rounded(rounded(rounded(-0.5 * x + 2.5) * x - 4) * x + 2)
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0))


@functools.lru_cache(maxsize=64)
def bands(axis: Axis, filter: str, transposed: bool, dtype: torch.dtype, device: torch.device) -> list:
    """The matrix of `rows`, or its transpose, as blocks: [(rows of the block, the columns that it needs, the block)]."""
    matrix = rows(axis, filter, _upcast(dtype))[1]
    height = BAND
    if transposed:
        matrix = matrix.mT
        height = max(1, BAND * axis.source // axis.resized)
    if device.type != "cpu":
        height = len(matrix)
    blocks = []
    for i in range(0, len(matrix), height):
        block = matrix[i : i + height]
        used = block.any(0).nonzero().flatten().tolist() or [0]
        columns = slice(0, matrix.shape[1]) if len(block) == len(matrix) else slice(used[0], used[-1] + 1)
        blocks.append((slice(i, i + len(block)), columns, block[:, columns].contiguous().to(device, dtype)))
    return blocks


def _product(x: Tensor, blocks: list) -> Tensor:
    """(.., m, w) -> (.., n, w): the matrix times x, each block's rows from its columns; bytes become floats a block at a time."""
    if len(blocks) == 1:
        return blocks[0][2] @ x.to(blocks[0][2].dtype)
    y = x.new_empty(*x.shape[:-2], blocks[-1][0].stop, x.shape[-1], dtype=blocks[0][2].dtype)
    for block_rows, columns, block in blocks:
        y[..., block_rows, :] = block @ x[..., columns, :].to(block.dtype)
    return y


class _ResizeCrop(torch.autograd.Function):
    """resize_center_crop without its border: two directions, each clipped to [0, 1] if `clipped`. The width is resized as the height
    of the transposed image."""

    @staticmethod
    def forward(ctx, pixels, steps, filter, clipped):
        ctx.steps, ctx.filter, ctx.inside = steps, filter, []
        divisor = None if pixels.is_floating_point() else 255
        dtype = torch.float32 if divisor else pixels.dtype
        with no_autocast(pixels.device):
            for dim in steps.order:
                pixels = _product(_rows_first(pixels, dim), bands(steps.axes[dim], filter, False, dtype, pixels.device))
                if divisor:
                    pixels = pixels.div_(divisor)
                    divisor = None
                ctx.inside.append((pixels >= 0) & (pixels <= 1) if clipped and ctx.needs_input_grad[0] else None)
                pixels = _rows_first(pixels.clamp_(0, 1) if clipped else pixels, dim)
        return pixels.contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with no_autocast(gradient.device):
            for dim, inside in zip(reversed(ctx.steps.order), reversed(ctx.inside)):
                blocks = bands(ctx.steps.axes[dim], ctx.filter, True, gradient.dtype, gradient.device)
                gradient = _rows_first(gradient, dim)
                gradient = _rows_first(_product(gradient if inside is None else gradient * inside, blocks), dim)
        return gradient, None, None, None


def _rows_first(x: Tensor, dim: int) -> Tensor:
    """Transposed if the direction `dim` is the width; its own inverse."""
    return x.mT if dim == 1 else x
