"""Pictures corrupted on purpose, each in a known way and severity: what weak and overtuned generators do to them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CORRUPTIONS = ("blur", "blocks", "noise", "grid", "mush")
BLUR = 0.04  # largest deviation, in widths of the picture


def sample_severities(n: int, generator: torch.Generator) -> Tensor:
    """(n, 5) in [0, 1]: how far each of n pictures is to be corrupted, by CORRUPTIONS; a third not at all, the others in one or two."""
    kinds = torch.rand(n, len(CORRUPTIONS), generator=generator).argsort(1)[:, :2]
    severity = torch.rand(n, 2, generator=generator) * torch.tensor([1.0, 0.5])
    used = torch.rand(n, 2, generator=generator) < torch.tensor([2 / 3, 1 / 3])
    used[:, 1] &= used[:, 0]
    return torch.zeros(n, len(CORRUPTIONS)).scatter(1, kinds, severity * used)


def corrupt(pixels: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """pixels (b, 3, h, w) in [0, 1] with each of CORRUPTIONS of severity (b, 5) in [0, 1]: a Gaussian blur of up to a twenty-fifth of the
    side, blocks of a random colour, white noise, a grid of waves, edges moved by a smooth random field. Severity 0 changes nothing."""
    blur, blocks, noise, grid, mush = severity.to(pixels.dtype)[..., None, None, None].unbind(1)
    n, _, height, width = pixels.shape
    pixels = _warp(pixels, mush, generator)
    pixels = _blur(pixels, BLUR * width * blur)
    flat = torch.randn(n, 3, 8, 8, generator=generator)
    pixels = pixels + 0.1 * blocks * F.interpolate(flat, (height, width), mode="nearest")
    pixels = pixels + 0.25 * grid * _gratings(n, height, width, generator)
    return (pixels + 0.15 * noise * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def artefact(severity: Tensor) -> Tensor:
    """(b, 5) -> (b,) in [0, 1]: is the picture corrupted in any way? The union, as if the severities were independent chances."""
    return 1 - (1 - severity).prod(1)


def _warp(pixels: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Every edge moved by a smooth random field, by up to about a twentieth of the side."""
    n, _, height, width = pixels.shape
    field = torch.randn(n, 2, 10, 10, generator=generator)
    shift = F.interpolate(field, (height, width), mode="bicubic") * 0.06 * strength
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return F.grid_sample(pixels, torch.stack([x, y], -1) + shift.permute(0, 2, 3, 1), padding_mode="border", align_corners=True)


def _blur(pixels: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian, of a deviation (b, 1, 1, 1) in pixels."""
    n, channels, height, width = pixels.shape
    reach = math.ceil(3 * BLUR * width)  # three of the largest deviations
    offset = torch.arange(-reach, reach + 1)
    kernel = (-0.5 * (offset / deviation.clamp_min(1e-3)).square()).exp()  # (b, 1, 1, 2 reach + 1)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(channels, 0)
    rows = F.pad(pixels.reshape(1, -1, height, width), [reach] * 4, mode="replicate")
    rows = F.conv2d(rows, kernel, groups=n * channels)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=n * channels).reshape(n, channels, height, width)


def _gratings(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(n, 3, h, w) about in [-1, 1]: two crossed waves of one period of 3 to 9 pixels (at 64), any direction, phase and colour."""
    period = (3 + 6 * torch.rand(n, 1, 1, generator=generator)) * width / 64
    angle = math.pi * torch.rand(n, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(n, 2, 1, 1, generator=generator)
    second = torch.rand(n, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    u = (x * angle.cos() + y * angle.sin()) * 2 * math.pi / period
    v = (y * angle.cos() - x * angle.sin()) * 2 * math.pi / period
    colour = F.normalize(torch.randn(n, 3, generator=generator) + 0.8, dim=1)[..., None, None] * 3**0.5
    return ((u + phase[:, 0]).sin() + second * (v + phase[:, 1]).sin())[:, None] * colour / (1 + second)[:, None]
