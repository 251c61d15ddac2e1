"""The playground: pictures of one scene by richness, noise and blur, three prompts for it, and what scorers make of both."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from icthp.microworld.grammar import captions
from icthp.microworld.renderer import render
from icthp.microworld.scenes import COLOURS, LEVELS, Scenes, held_out, sample

STYLES = ("short", "long", "wrong")  # of prompts
NOISE = 0.25  # standard deviation of a pixel's noise at strength 1
COARSE = 4  # side in pixels of what the blur averages
OTHER_COLOUR = 3  # places further in COLOURS

# ---- scenes and prompts -----------------------------------------------------------------------------------------


def first_held_out(counts: Sequence[int] = (3, 3, 2), seed: int = 0) -> Scenes:
    """The first held-out scenes of a seed, up to so many of each kind: one object, a pair, a group."""
    scenes = sample(512, torch.Generator().manual_seed(seed), richness=1)
    scenes = scenes[held_out(scenes)]
    kind = scenes.latents["kind"]
    return scenes[torch.cat([(kind == k).nonzero()[:count, 0] for k, count in enumerate(counts)])]


def prompts_by_style(scene: Scenes) -> dict[str, str]:
    """The prompts of one scene by STYLES: "short" names its objects; "long" also all that is drawn at richness 1; "wrong" is the short one
    with another colour of the first object."""
    colour = (scene.latents["colour_a"] + OTHER_COLOUR) % len(COLOURS)
    texts = captions(scene) + captions(scene.at(1), "long") + captions(scene.replace(colour_a=colour))
    return dict(zip(STYLES, texts))


# ---- pictures ---------------------------------------------------------------------------------------------------


def noise_field(size: int = 64, seed: int = 0) -> Tensor:
    """(3, size, size): the noise of every picture, normal, in multiples of 1/32 up to 127/32, so that a byte holds it."""
    field = torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))
    return field.mul(32).round().clamp(-127, 127) / 32


def level_renders(scene: Scenes, size: int = 64) -> Tensor:
    """(levels, 3, size, size) in [0, 1]: one scene at every level of richness, rounded to 8 bits as in a file."""
    every_level = scene[torch.zeros(LEVELS, dtype=torch.long)].at(torch.arange(LEVELS) / (LEVELS - 1))
    return render(every_level, size).mul(255).round() / 255


def blurred(pixels: Tensor) -> Tensor:
    """Pixels (n, 3, h, w) averaged over squares of 4 x 4 and enlarged again, linear between the squares' centres."""
    return F.interpolate(F.avg_pool2d(pixels, COARSE), pixels.shape[-2:], mode="bilinear")


def pictures(renders: Tensor, points: Tensor) -> Tensor:
    """Pixels (n, 3, h, w) in [0, 1] of one scene at points (n, 3), each richness, noise and blur in [0, 1].

    renders: `level_renders` of the scene. Between two levels the next layer fades in; blur goes linearly from the sharp picture to the
    `blurred` one; the noise field comes on top, its deviation up to NOISE. ValueError for points outside [0, 1]."""
    if points.min() < 0 or points.max() > 1:
        raise ValueError(f"richness, noise and blur lie in [0, 1], not in [{points.min():.3g}, {points.max():.3g}]")
    richness, noise, blur = points.to(renders).unbind(1)
    level = richness * (LEVELS - 1)
    below = level.floor().clamp(max=LEVELS - 2).long()
    weigh = lambda values: values[:, None, None, None]
    sharp = torch.lerp(renders[below], renders[below + 1], weigh(level - below))
    pixels = torch.lerp(sharp, blurred(sharp), weigh(blur))
    return (pixels + weigh(NOISE * noise) * noise_field(renders.shape[-1])).clamp(0, 1)


# ---- scores -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def scores(scorers: dict, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """(n, p, s): what each of s scorers says of each picture of pixels (n, 3, h, w) with each of p prompts."""
    return torch.stack([scorer.score_matrix(pixels, list(prompts)).cpu() for scorer in scorers.values()], -1)


@torch.no_grad()
def score_norms(scorers: dict, count: int = 256, seed: int = 1) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each scorer over `count` clean pictures of any richness with their own short prompts: what a score
    is measured against, so that scores of different scorers share an axis."""
    scenes = sample(count, torch.Generator().manual_seed(seed))
    pixels = render(scenes)
    every = {name: scorer.score(pixels, captions(scenes)) for name, scorer in scorers.items()}
    return {name: (values.mean().item(), values.std().item()) for name, values in every.items()}


# ---- a table of scores, and what lies between its points --------------------------------------------------------


def grid_points(stops: Sequence[Sequence[float]]) -> Tensor:
    """(n, 3): every combination of the stops of richness, noise and blur, the last one fastest."""
    return torch.cartesian_prod(*(torch.tensor(axis, dtype=torch.float64) for axis in stops))


def interpolate(values: Tensor, stops: Sequence[Sequence[float]], points: Tensor) -> Tensor:
    """(n, ...): values (a, b, c, ...) at the stops of three axes, multilinear at points (n, 3) between them. ValueError for points
    outside of the stops."""
    corners = [_neighbours(torch.tensor(axis, dtype=torch.float64), points[:, i].double()) for i, axis in enumerate(stops)]
    total = 0
    for picked in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3).tolist():
        index = [below + side for (below, _), side in zip(corners, picked)]
        weight = torch.stack([part if side else 1 - part for (_, part), side in zip(corners, picked)]).prod(0)
        total = total + values[tuple(index)] * weight.view(-1, *[1] * (values.ndim - 3))
    return total


def _neighbours(stops: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The last stop that is not above x (n,), as an index, and how far x is on the way to the next one, in [0, 1]."""
    if x.min() < stops[0] or x.max() > stops[-1]:
        raise ValueError(f"points lie between {stops[0]:g} and {stops[-1]:g}, not in [{x.min():.3g}, {x.max():.3g}]")
    below = (torch.searchsorted(stops, x.contiguous(), right=True) - 1).clamp(max=len(stops) - 2)
    return below, (x - stops[below]) / (stops[below + 1] - stops[below])
