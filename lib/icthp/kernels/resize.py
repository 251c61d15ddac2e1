"""A model's preprocessing with its gradient: recipe.fit and normalisation, each direction a product with a banded matrix."""

import functools

import torch
from torch import Tensor

from icthp.losses import no_autocast
from icthp.preprocessing import Axis, from_side, pad, plan, resize_center_crop

BAND = 32  # rows of the matrix that a processor multiplies at once; a GPU multiplies all
LARGEST = 16  # times the area kept: up to there torch resizes bytes whole, beyond only what is kept is made


def preprocess(pixels: Tensor, size, mean=None, std=None) -> Tensor:
    """recipe.fit, then (x - mean) / std for three means and stds, where given or where the recipe has them -> (b, 3, height, width).

    pixels (b, 3, h, w) in [0, 1], of any floating type on any device, differentiable, gradients deterministic; or uint8, which
    the CPU resizes in integers as Pillow does, without gradient. size: a Recipe, or the side of CLIP's geometry. With its gradient twice
    as fast as torch's antialiased kernel on a CPU, which knows no bfloat16, and fails for large reductions on a GPU. What the cut
    leaves out is never made: a picture of one pixel's width costs no more than a square."""
    recipe = from_side(size)
    mean, std = (recipe.mean, recipe.std) if mean is None else (mean, std)
    steps = plan(recipe, *pixels.shape[-2:])
    if pixels.dtype == torch.uint8 and not pixels.is_cuda and recipe.clipped and _area(steps) <= LARGEST * recipe.size[0] * recipe.size[1]:
        pixels = resize_center_crop(pixels, recipe).float() / 255
    elif steps.nothing:
        pixels = pad(pixels if pixels.is_floating_point() else pixels.float() / 255, recipe, recipe.fill)
    else:
        pixels = pad(_Fit.apply(_needed(pixels, steps, recipe.filter), steps, recipe.filter, recipe.clipped), recipe, recipe.fill)
    return pixels if mean is None else normalise(pixels, mean, std)


def normalise(pixels: Tensor, mean, std) -> Tensor:
    """(x - mean) / std, three each, in one multiplication and addition."""
    scale, shift = ([1 / s for s in std], [-m / s for m, s in zip(mean, std)])
    scale, shift = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device)[:, None, None] for v in (scale, shift))
    return torch.addcmul(shift, pixels, scale)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _area(steps) -> int:
    return steps.axes[0].whole * steps.axes[1].whole


def _needed(pixels: Tensor, steps, filter: str) -> Tensor:
    """The part of the pictures that the kept pixels are made of."""
    for dim, axis in enumerate(steps.axes):
        first, matrix = rows(axis, filter, _wide(pixels.dtype))
        if matrix.shape[1] < axis.source:  # a cut that takes all costs a copy in the backward pass
            pixels = pixels.narrow(dim - 2, first, matrix.shape[1])
    return pixels


@functools.lru_cache(maxsize=16)
def rows(axis: Axis, filter: str, dtype: torch.dtype) -> tuple[int, Tensor]:
    """(first, matrix): `matrix` (stop - start, n) makes the kept numbers from the n that begin at `first`. Its weights are bit for bit
    those of torch's antialiased kernel in float32 (aten/src/ATen/native/cpu/UpSampleKernel.cpp), which rounds after each step."""
    rounded = lambda x: x.to(dtype).double()
    number = lambda x: rounded(torch.tensor(x, dtype=torch.float64))
    scale = rounded(number(axis.source) / number(axis.whole))
    wide, reach = scale.clamp(min=1), 2 if filter == "bicubic" else 1
    centre = rounded(scale * (torch.arange(axis.start, axis.stop).double() + 0.5))
    edge = lambda sign: rounded(rounded(centre + sign * rounded(reach * wide)) + 0.5).long().clamp(0, axis.source)
    low, high = edge(-1), edge(1)
    place = torch.arange(int((high - low).max()))
    x = rounded(rounded(rounded(rounded(low[:, None] + place) - centre[:, None]) + 0.5) * rounded(1 / wide)).abs()
    weights = torch.where(place < (high - low)[:, None], _filter(x, filter, rounded), 0)
    total = functools.reduce(lambda a, b: rounded(a + b), weights.unbind(1))
    first = int(low.min())
    matrix = weights.new_zeros(len(low), int(high.max()) - first + len(place))
    matrix.scatter_(1, low[:, None] - first + place, rounded(weights / total[:, None]))
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
    """The matrix of `rows`, or its transposed, as blocks: [(rows of the block, the columns that it needs, the block)]."""
    matrix = rows(axis, filter, _wide(dtype))[1]
    matrix, width = (matrix.mT, max(1, BAND * axis.source // axis.whole)) if transposed else (matrix, BAND)
    blocks, width = [], width if device.type == "cpu" else len(matrix)
    for i in range(0, len(matrix), width):
        block = matrix[i : i + width]
        used = block.any(0).nonzero().flatten().tolist() or [0]
        columns = slice(0, matrix.shape[1]) if len(block) == len(matrix) else slice(used[0], used[-1] + 1)
        blocks.append((slice(i, i + len(block)), columns, block[:, columns].contiguous().to(device, dtype)))
    return blocks


def _product(x: Tensor, blocks: list) -> Tensor:
    """(.., m, w) -> (.., n, w): the matrix times x, each block's rows from its columns; bytes become numbers a block at a time."""
    if len(blocks) == 1:
        return blocks[0][2] @ x.to(blocks[0][2].dtype)
    y = x.new_empty(*x.shape[:-2], blocks[-1][0].stop, x.shape[-1], dtype=blocks[0][2].dtype)
    for rows_, columns, block in blocks:
        y[..., rows_, :] = block @ x[..., columns, :].to(block.dtype)
    return y


class _Fit(torch.autograd.Function):
    """recipe.fit but for its border: two directions, each perhaps cut to [0, 1]. The width is the height of the transposed picture."""

    @staticmethod
    def forward(ctx, pixels, steps, filter, clipped):
        ctx.steps, ctx.filter, ctx.inside = steps, filter, []
        scale = None if pixels.is_floating_point() else 255
        dtype = torch.float32 if scale else pixels.dtype
        with no_autocast(pixels.device):
            for dim in steps.order:
                pixels = _product(_upright(pixels, dim), bands(steps.axes[dim], filter, False, dtype, pixels.device))
                pixels, scale = pixels if scale is None else pixels.div_(scale), None
                ctx.inside.append((pixels >= 0) & (pixels <= 1) if clipped and ctx.needs_input_grad[0] else None)
                pixels = _upright(pixels.clamp_(0, 1) if clipped else pixels, dim)
        return pixels.contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with no_autocast(gradient.device):
            for dim, inside in zip(reversed(ctx.steps.order), reversed(ctx.inside)):
                blocks = bands(ctx.steps.axes[dim], ctx.filter, True, gradient.dtype, gradient.device)
                gradient = _upright(gradient, dim)
                gradient = _upright(_product(gradient if inside is None else gradient * inside, blocks), dim)
        return gradient, None, None, None


def _upright(x: Tensor, dim: int) -> Tensor:
    return x.mT if dim == 1 else x
