"""The renderer paints scenes: signed distance functions and procedural textures in torch, batched, on any device.

Coordinates x, y lie in [-1, 1], x to the right, y down. Every constant of the world (colours, shapes, patterns, marks) stands in a
tuple or tensor whose index is the latent's value. What `render` paints is fixed for ever: the trained models know these pictures.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from icthp.microworld.scenes import DETAILS, Scenes

# ---- colours, RGB in [0, 1] ---------------------------------------------------------------------------------------

_RGB = torch.tensor([
    [0.86, 0.14, 0.14], [0.97, 0.55, 0.10], [0.96, 0.87, 0.16], [0.16, 0.64, 0.24],
    [0.15, 0.33, 0.87], [0.56, 0.20, 0.72], [0.97, 0.97, 0.97], [0.07, 0.07, 0.08]])  # fmt: skip
_BACKDROP = torch.tensor([
    [0.84, 0.83, 0.72], [0.72, 0.81, 0.83], [0.83, 0.84, 0.81], [0.86, 0.75, 0.75],
    [0.77, 0.71, 0.75], [0.70, 0.78, 0.70], [0.80, 0.77, 0.86], [0.74, 0.74, 0.74]])  # fmt: skip
_SKY = torch.tensor([
    [0.56, 0.80, 0.96], [0.60, 0.84, 0.90], [0.45, 0.66, 0.90], [0.92, 0.82, 0.62],
    [0.62, 0.78, 0.66], [0.80, 0.86, 0.92], [0.90, 0.68, 0.52], [0.20, 0.20, 0.26]])  # fmt: skip
_GROUND = torch.tensor([
    [0.38, 0.66, 0.26], [0.88, 0.78, 0.52], [0.10, 0.38, 0.62], [0.82, 0.62, 0.32],
    [0.14, 0.36, 0.18], [0.94, 0.95, 0.98], [0.62, 0.30, 0.20], [0.56, 0.56, 0.56]])  # fmt: skip
_TINT = torch.tensor([[1.04, 1.04, 1.0], [1.12, 0.80, 0.58], [0.74, 0.64, 0.86], [0.34, 0.38, 0.60]])


# ---- where objects stand ----------------------------------------------------------------------------------------

_ROW = [[-0.47, 0], [0.47, 0], [0, 0]]
_COLUMN = [[0, -0.47], [0, 0.47], [0, 0]]
_TRIO = [[-0.5, 0.42], [0.5, 0.42], [0, -0.42]]
_SINGLE = [[0, 0], [0, 0], [0, 0]]
_ARRANGEMENTS = torch.tensor([_SINGLE, _ROW, _COLUMN, _ROW, _TRIO])  # single; pair left of, above; two, three of a kind
_NUMBER = torch.tensor([1, 2, 2, 2, 3])  # objects in each arrangement


def layout(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The up to three objects of each scene: centres (b, 3, 2) as x, y in [-1, 1], y down; sizes (b, 3) in the same unit;
    present (b, 3) bool, is this object there; is_b (b, 3) bool, is it the second object of a pair."""
    s = scenes.latents
    kind = s["kind"]
    arrangement = torch.where(kind == 0, 0, torch.where(kind == 1, 1 + s["relation"], 3 + s["count"]))
    number = _NUMBER[arrangement]
    jitter = (torch.stack([s["x"], s["y"]], -1) - 1.5) / 1.5
    centres = _ARRANGEMENTS[arrangement] + 0.08 * jitter[:, None]  # 2.5 px: what a generator of two hours can learn
    size = torch.where(number == 1, 0.50, torch.where(number == 2, 0.36, 0.32)) * (0.88 + 0.08 * s["scale"])
    slot = torch.arange(3)
    present = slot < number[:, None]
    is_b = (slot == 1) & (kind == 1)[:, None]
    return centres, size[:, None].expand(-1, 3), present, is_b


# ---- shapes and materials ---------------------------------------------------------------------------------------


def _heart(x: Tensor, y: Tensor) -> Tensor:
    lobes = torch.hypot(x.abs() - 0.42, y + 0.28) - 0.46
    return torch.minimum(lobes, torch.maximum(0.74 * x.abs() + 0.67 * y - 0.58, -y - 0.28))


def _star(x: Tensor, y: Tensor) -> Tensor:
    turn = torch.atan2(x, -y) * (5 / (2 * math.pi))
    tip = ((turn - turn.floor()) * 2 - 1).abs()  # 1 at the five tips, 0 between
    return (torch.hypot(x, y) - 0.36 - 0.62 * tip**1.4) * 0.6


_SDF = (  # signed distance in units of the object's size; x right, y down
    lambda x, y: torch.hypot(x, y) - 0.88,
    lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.76,
    lambda x, y: torch.maximum(y - 0.05, 0.866 * x.abs() - 0.5 * (y - 0.05)) - 0.52,
    _star,
    lambda x, y: (torch.hypot(x, y) - 0.66).abs() - 0.24,
    lambda x, y: torch.minimum(torch.maximum(x.abs() - 0.9, y.abs() - 0.3), torch.maximum(x.abs() - 0.3, y.abs() - 0.9)),
    _heart,
    lambda x, y: (x.abs() / 0.66 + y.abs() / 0.95 - 1) * 0.52,
)
_PATTERN = (  # materials: 0 or 1 over the object's own coordinates, about 12 px of period at 64 px
    lambda x, y: ((x + y) * 1.9) % 1 < 0.5,
    lambda x, y: torch.hypot((x * 1.9) % 1 - 0.5, (y * 1.9) % 1 - 0.5) < 0.32,
    lambda x, y: ((x * 1.7).floor() + (y * 1.7).floor()) % 2 < 1,
    lambda x, y: (torch.hypot(x, y) * 2.6) % 1 < 0.5,
    lambda x, y: (y * 2.1) % 1 < 0.5,
    lambda x, y: torch.minimum((x * 2.0) % 1, (y * 2.0) % 1) < 0.27,
    lambda x, y: torch.sin(x * 17.3 + torch.sin(y * 11.1) * 3) * torch.sin(y * 19.7 + torch.sin(x * 9.7) * 3) > 0.25,
    lambda x, y: (y * 1.9 + 0.22 * torch.sin(x * 7)) % 1 < 0.5,
)


def _by_code(functions, code: Tensor, *grids: Tensor) -> Tensor:
    """functions[code[i]](*(grid[i] for each grid)) for every i, one call a function; grids (b, h, w)."""
    out = torch.empty_like(grids[0])
    for k, function in enumerate(functions):
        rows = (code == k).nonzero()[:, 0]
        if len(rows):
            out[rows] = function(*(grid[rows] for grid in grids)).to(out.dtype)
    return out


def _mix(image: Tensor, colour: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(image, colour, mask[:, None])


# ---- scenery ----------------------------------------------------------------------------------------------------


@functools.cache
def _random_fields(size: int, device: str) -> tuple[Tensor, Tensor]:
    """256 grain fields and 16 smooth fields (n, size, size), the same in every process: a seed latent picks one."""
    generator = torch.Generator().manual_seed(2507)
    grain = torch.randn(256, 1, 64, 64, generator=generator)
    smooth = F.interpolate(torch.randn(16, 1, 9, 9, generator=generator), (64, 64), mode="bicubic", align_corners=True)
    fields = torch.cat([grain, smooth])
    if size != 64:
        fields = F.interpolate(fields, (size, size), mode="nearest")
    return fields[:256, 0].to(device), fields[256:, 0].to(device)


_SKY_MARKS = (  # f: a smooth random field picked by the seed latent, o: the seed in [0, 1), which shifts the marks
    lambda x, y, f, o: (f * 1.6 - 0.4).clamp(0, 1),
    lambda x, y, f, o: (x * 5 + y * 2 + o) % 1 < 0.2,
    lambda x, y, f, o: torch.sin(x * 19 + o * 9) * torch.sin(y * 19 + x * 5 + o * 7) > 0.8,
    lambda x, y, f, o: (((x * 1.6 + o) % 1 - 0.5).abs() - (y * 1.9 + o * 3) % 1 + 0.3).abs() < 0.09,
)
_GROUND_MARKS = (
    lambda x, y, f, o: torch.sin(x * 21 + f * 3) * torch.sin(y * 27 + f * 3) > 0.5,
    lambda x, y, f, o: torch.hypot((x * 4 + o) % 1 - 0.5, (y * 5 + o * 3) % 1 - 0.5) < 0.28,
    lambda x, y, f, o: ((x * 6) / (y + 1.2) + o) % 1 < 0.4,
    lambda x, y, f, o: (y * 7 + 0.3 * torch.sin(x * 8 + f * 2) + o) % 1 < 0.35,
)


def _background(scenes: Scenes, drawn: list[Tensor], x: Tensor, y: Tensor, smooth: Tensor) -> Tensor:
    """(b, 3, h, w): the plain backdrop, and over it the scenery with its marks in the sky and on the ground, tinted by the time of day."""
    s = scenes.latents
    below = ((y - 0.15) * 12).sigmoid()  # 1 under the horizon
    sky = _colour(_SKY, s["scenery"], x.device) * (1 + 0.15 * y)
    ground = _colour(_GROUND, s["scenery"], x.device) * (1.1 - 0.2 * y)
    view = torch.lerp(sky, ground, below)
    sky_marks = _marks(_SKY_MARKS, s["sky"], s["sky_seed"], smooth, x, y)
    view = _mix(view, torch.ones_like(view), drawn[5] * 0.75 * (1 - below) * sky_marks)
    ground_marks = _marks(_GROUND_MARKS, s["ground"], s["ground_seed"], smooth, x, y)
    view = _mix(view, view * 0.55, drawn[6] * below * ground_marks)
    view = _mix(view, view * _colour(_TINT, s["time"], x.device), drawn[1].expand(-1, *x.shape))
    backdrop = _colour(_BACKDROP, s["backdrop"], x.device).expand(-1, 3, *x.shape)
    return _mix(backdrop, view, drawn[0].expand(-1, *x.shape))


def _colour(palette: Tensor, code: Tensor, device) -> Tensor:
    """(b, 3, 1, 1): the palette's colour of each code."""
    return palette.to(device)[code][..., None, None]


def _marks(functions, code: Tensor, seed: Tensor, smooth: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(b, h, w) in [0, 1]: where the marks of each scene lie."""
    field = smooth[seed]
    offset = seed[:, None, None] / len(smooth)
    return _by_code(functions, code, *(grid.expand_as(field) for grid in (x, y, field, offset)))


# ---- objects ----------------------------------------------------------------------------------------------------


def _objects(scenes: Scenes, image: Tensor, drawn: list[Tensor], x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """The image with its objects and their shadows painted over it, one slot of `layout` after the other; `pixel` is a pixel's side."""
    s = scenes.latents
    on_cpu = Scenes({k: v.cpu() for k, v in s.items()}, scenes.level.cpu())
    centres, sizes, present, is_b = (t.to(x.device) for t in layout(on_cpu))
    angle = s["light"].float()[:, None, None] * (math.pi / 4)
    light_x, light_y = -angle.cos(), -angle.sin()  # towards the light; 0 is left, pi / 2 is the top
    for slot in range(3):
        rows = present[:, slot].nonzero()[:, 0]
        if not len(rows):
            continue
        shape, colour, material = (
            torch.where(is_b[rows, slot], s[name + "_b"][rows], s[name + "_a"][rows]) for name in ("shape", "colour", "material")
        )
        size = sizes[rows, slot, None, None]
        u = (x - centres[rows, slot, 0, None, None]) / size
        v = (y - centres[rows, slot, 1, None, None]) / size
        lx, ly = light_x[rows], light_y[rows]
        layers = [layer[rows] for layer in drawn]
        distance = _by_code(_SDF, shape, u, v) * size / pixel  # in pixels
        ground = _cast_shadow(image[rows], s["shadow"][rows], shape, u, v, lx, ly, layers[4])
        skin = _skin(_RGB.to(x.device)[colour], material, u, v, lx, ly, distance, layers)
        image = image.index_copy(0, rows, _mix(ground, skin, (0.5 - distance).clamp(0, 1)))
    return image


def _cast_shadow(image, shadow, shape, u, v, lx, ly, strength) -> Tensor:
    """The image, darkened where the shape would lie if it were moved away from the light."""
    length = torch.tensor([0.25, 0.4, 0.75, 0.45], device=u.device)[shadow][:, None, None]
    blur = torch.tensor([5.0, 3.0, 5.0, 14.0], device=u.device)[shadow][:, None, None]
    distance = _by_code(_SDF, shape, u + lx * length, v + ly * length)
    return _mix(image, image * 0.35, strength * (-distance * blur).sigmoid())


def _skin(colour, material, u, v, lx, ly, distance, drawn) -> Tensor:
    """(b, 3, h, w): an object's surface; its material, the shade and gloss of the light, and a thin outline."""
    colour = colour[..., None, None].expand(-1, 3, *u.shape[1:])
    dark = colour.mean(1, keepdim=True) < 0.25
    contrast = torch.where(dark, colour + 0.38, colour * 0.42)
    skin = _mix(colour, contrast, drawn[2] * _by_code(_PATTERN, material, u, v))
    shade = (u * lx + v * ly).clamp(-1, 1)  # 1 on the lit side
    skin = skin * (1 + 0.30 * drawn[3] * shade)[:, None]
    gloss = (1 - ((u - 0.4 * lx) ** 2 + (v - 0.4 * ly) ** 2) * 9).clamp_min(0) ** 2
    skin = _mix(skin, torch.ones_like(skin), 0.8 * drawn[3] * gloss)
    outline = torch.where(dark, colour + 0.25, colour * 0.6)
    return _mix(skin, outline, (1.2 + distance).clamp(0, 1) * 0.8)


# ---- the picture ------------------------------------------------------------------------------------------------

CHUNK = 64  # scenes rendered together: larger ones fall out of a CPU's cache


def render(scenes: Scenes, size: int = 64, device="cpu") -> Tensor:
    """Pixels (b, 3, size, size) in [0, 1], float32, on `device`; the same scenes give the same picture everywhere."""
    scenes = Scenes({k: v.to(device) for k, v in scenes.latents.items()}, scenes.level.to(device))
    return torch.cat([_render(scenes[i : i + CHUNK], size, device) for i in range(0, len(scenes), CHUNK)])


def _render(scenes: Scenes, size: int, device) -> Tensor:
    axis = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    drawn = [_opacity(scenes, layer) for layer in range(len(DETAILS))]
    grain, smooth = _random_fields(size, str(device))
    image = _background(scenes, drawn, x, y, smooth)
    image = _objects(scenes, image, drawn, x, y, 2 / size)
    return (image + 0.045 * (drawn[7] * grain[scenes.latents["grain"]])[:, None]).clamp(0, 1)


def _opacity(scenes: Scenes, layer: int) -> Tensor:
    """(b, 1, 1) in [0, 0.9]: 0 where the layer of DETAILS is not drawn, else the stronger, the richer the scene."""
    opacity = (scenes.level > layer).float() * (0.6 + 0.3 * scenes.richness)
    return opacity.to(torch.float32)[:, None, None]
