"""microworld.renderer."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from icthp.microworld.scenes import DETAILS, Scenes

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


# ---- renderer ---------------------------------------------------------------------------------------------------


def layout(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Objects of each scene: centres (b, 3, 2) as x, y in [-1, 1] (y down), sizes (b, 3), present (b, 3), is_b (b, 3)."""
    s = scenes.latents
    kind, count, relation = s["kind"], s["count"], s["relation"]
    single = torch.zeros(3, 2)
    row, column = torch.tensor([[-0.47, 0], [0.47, 0], [0, 0]]), torch.tensor([[0, -0.47], [0, 0.47], [0, 0]])
    trio = torch.tensor([[-0.5, 0.42], [0.5, 0.42], [0, -0.42]])
    table = torch.stack([single, row, column, row, trio])
    which = torch.where(kind == 0, 0, torch.where(kind == 1, 1 + relation, 3 + count))
    number = torch.tensor([1, 2, 2, 2, 3])[which]
    jitter = (torch.stack([s["x"], s["y"]], -1) - 1.5) / 1.5
    centres = table[which] + 0.08 * jitter[:, None]  # 2.5 px: what a generator of two hours can learn
    size = torch.where(number == 1, 0.50, torch.where(number == 2, 0.36, 0.32)) * (0.88 + 0.08 * s["scale"])
    slot = torch.arange(3)
    return centres, size[:, None].expand(-1, 3), slot < number[:, None], (slot == 1) & (kind == 1)[:, None]


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


@functools.cache
def _tables(size: int, device) -> tuple[Tensor, Tensor]:
    """256 grain fields and 16 smooth fields (n, size, size), fixed for ever: a seed latent picks one."""
    g = torch.Generator().manual_seed(2507)
    grain = torch.randn(256, 1, 64, 64, generator=g)
    smooth = F.interpolate(torch.randn(16, 1, 9, 9, generator=g), (64, 64), mode="bicubic", align_corners=True)
    both = torch.cat([grain, smooth])
    both = both if size == 64 else F.interpolate(both, (size, size), mode="nearest")
    return both[:256, 0].to(device), both[256:, 0].to(device)


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
CHUNK = 64  # scenes rendered together: larger ones fall out of a CPU's cache


def render(scenes: Scenes, size: int = 64, device="cpu") -> Tensor:
    """Pixels (b, 3, size, size) in [0, 1] float32 on `device`; the same scenes give the same picture everywhere."""
    scenes = Scenes({k: v.to(device) for k, v in scenes.latents.items()}, scenes.level.to(device))
    return torch.cat([_render(scenes[i : i + CHUNK], size, device) for i in range(0, len(scenes), CHUNK)])


def _render(scenes: Scenes, size: int, device) -> Tensor:
    axis = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    drawn = [(scenes.level > k).float() * (0.6 + 0.3 * scenes.richness) for k in range(len(DETAILS))]
    drawn = [d.to(torch.float32)[:, None, None] for d in drawn]
    grain, smooth = _tables(size, str(device))
    image = _background(scenes, drawn, x, y, smooth)
    image = _objects(scenes, image, drawn, x, y, 2 / size)
    return (image + 0.045 * (drawn[7] * grain[scenes.latents["grain"]])[:, None]).clamp(0, 1)


def _background(scenes: Scenes, drawn: list[Tensor], x: Tensor, y: Tensor, smooth: Tensor) -> Tensor:
    s, dev = scenes.latents, x.device
    colour = lambda table, name: table.to(dev)[s[name]][..., None, None]
    image = colour(_BACKDROP, "backdrop").expand(-1, 3, *x.shape)
    below = ((y - 0.15) * 12).sigmoid()
    view = torch.lerp(colour(_SKY, "scenery") * (1 + 0.15 * y), colour(_GROUND, "scenery") * (1.1 - 0.2 * y), below)
    view = _mix(view, torch.ones_like(view), drawn[5] * 0.75 * (1 - below) * _marks(_SKY_MARKS, s["sky"], s["sky_seed"], smooth, x, y))
    view = _mix(view, view * 0.55, drawn[6] * below * _marks(_GROUND_MARKS, s["ground"], s["ground_seed"], smooth, x, y))
    view = _mix(view, view * colour(_TINT, "time"), drawn[1].expand(-1, *x.shape))
    return _mix(image, view, drawn[0].expand(-1, *x.shape))


def _marks(functions, code: Tensor, seed: Tensor, smooth: Tensor, x: Tensor, y: Tensor) -> Tensor:
    field, offset = smooth[seed], seed[:, None, None] / len(smooth)
    return _by_code(functions, code, *(grid.expand_as(field) for grid in (x, y, field, offset)))


def _objects(scenes: Scenes, image: Tensor, drawn: list[Tensor], x: Tensor, y: Tensor, pixel: float) -> Tensor:
    s = scenes.latents
    centres, sizes, present, is_b = (t.to(x.device) for t in layout(Scenes({k: v.cpu() for k, v in s.items()}, scenes.level.cpu())))
    angle = s["light"].float()[:, None, None] * (math.pi / 4)
    light_x, light_y = -angle.cos(), -angle.sin()  # towards the light; y down, 0 is left, pi / 2 is the top
    for slot in range(3):
        rows = present[:, slot].nonzero()[:, 0]
        if not len(rows):
            continue
        pick = lambda name, r=rows, k=slot: torch.where(is_b[r, k], s[name + "_b"][r], s[name + "_a"][r])
        r, lx, ly = sizes[rows, slot, None, None], light_x[rows], light_y[rows]
        u, v = (x - centres[rows, slot, 0, None, None]) / r, (y - centres[rows, slot, 1, None, None]) / r
        shape, d = pick("shape"), [layer[rows] for layer in drawn]
        distance = _by_code(_SDF, shape, u, v) * r / pixel  # in pixels
        picture = _cast_shadow(image[rows], s["shadow"][rows], shape, u, v, lx, ly, d[4])
        skin = _skin(_RGB.to(x.device)[pick("colour")], pick("material"), u, v, lx, ly, distance, d)
        image = image.index_copy(0, rows, _mix(picture, skin, (0.5 - distance).clamp(0, 1)))
    return image


def _cast_shadow(image, shadow, shape, u, v, lx, ly, strength) -> Tensor:
    length = torch.tensor([0.25, 0.4, 0.75, 0.45], device=u.device)[shadow][:, None, None]
    blur = torch.tensor([5.0, 3.0, 5.0, 14.0], device=u.device)[shadow][:, None, None]
    away = _by_code(_SDF, shape, u + lx * length, v + ly * length)
    return _mix(image, image * 0.35, strength * (-away * blur).sigmoid())


def _skin(colour, material, u, v, lx, ly, distance, drawn) -> Tensor:
    colour = colour[..., None, None].expand(-1, 3, *u.shape[1:])
    dark = colour.mean(1, keepdim=True) < 0.25
    contrast = torch.where(dark, colour + 0.38, colour * 0.42)
    skin = _mix(colour, contrast, drawn[2] * _by_code(_PATTERN, material, u, v))
    shade = (u * lx + v * ly).clamp(-1, 1)  # 1 on the lit side
    skin = skin * (1 + 0.30 * drawn[3] * shade)[:, None]
    gloss = (1 - ((u - 0.4 * lx) ** 2 + (v - 0.4 * ly) ** 2) * 9).clamp_min(0) ** 2
    skin = _mix(skin, torch.ones_like(skin), 0.8 * drawn[3] * gloss)
    return _mix(skin, torch.where(dark, colour + 0.25, colour * 0.6), (1.2 + distance).clamp(0, 1) * 0.8)  # thin outline
