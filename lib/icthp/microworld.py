"""A procedural world whose information content is known exactly.

A scene is a table of discrete latents, all uniform and independent given its kind, so every information is a sum of
log2 of cardinalities. DESCRIBED latents are what a short prompt says. ALWAYS latents (backdrop, pose) are drawn at
every richness but never said. DETAILS is a sequence of undescribed layers; richness r in [0, 1] draws the first round(r * 8) of them,
and a long prompt names those that have a name.
"""

import functools
import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
RELATIONS = ("left of", "above")  # the converse phrasings would describe the same picture twice
COUNTS = ("two", "three")
MATERIALS = ("striped", "dotted", "checkered", "ringed", "banded", "gridded", "speckled", "wavy")
SCENERY = ("in a meadow", "on a beach", "on the ocean", "in a desert", "in a forest", "in the snow", "in a canyon", "on the moon")
TIMES = ("at noon", "at sunset", "at dusk", "at night")
LIGHTS = ("left", "upper left", "top", "upper right", "right", "lower right", "bottom", "lower left")
SHADOWS = ("short", "soft", "long", "hard")
SKIES = ("clouds", "rain", "stars", "lightning")
GROUNDS = ("pebbles", "flowers", "furrows", "ripples")

DESCRIBED = {"kind": 3, "shape_a": 8, "colour_a": 8, "shape_b": 8, "colour_b": 8, "relation": 2, "count": 2}
ALWAYS = {"backdrop": 8, "x": 4, "y": 4, "scale": 4}
DETAILS = (  # layer k is drawn when the level is at least k + 1
    {"scenery": 8}, {"time": 4}, {"material_a": 8, "material_b": 8}, {"light": 8}, {"shadow": 4},
    {"sky": 4, "sky_seed": 16}, {"ground": 4, "ground_seed": 16}, {"grain": 256},
)  # fmt: skip
NAMED = ("scenery", "time", "material_a", "material_b", "light", "shadow", "sky", "ground")  # what long prompts say
LEVELS = len(DETAILS) + 1
ONLY_IN = {"shape_b": 1, "colour_b": 1, "material_b": 1, "relation": 1, "count": 2}  # latent -> the one kind that has it

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


@dataclass
class Scenes:
    """b scenes: `latents` maps each name of the tables above to an int64 tensor (b,); `level` (b,) is 0 to 8."""

    latents: dict[str, Tensor]
    level: Tensor

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, index) -> "Scenes":
        return Scenes({k: v[index] for k, v in self.latents.items()}, self.level[index])

    @property
    def richness(self) -> Tensor:
        """(b,) in [0, 1]."""
        return self.level / (LEVELS - 1)

    def at(self, richness) -> "Scenes":
        """The same scenes, drawn at another richness: a number or (b,) in [0, 1], rounded to a level."""
        level = (torch.as_tensor(richness, dtype=torch.float64) * (LEVELS - 1)).round().long()
        if level.min() < 0 or level.max() >= LEVELS:
            raise ValueError(f"richness must lie in [0, 1], not {richness}")
        return Scenes(self.latents, level.expand(len(self)))

    def replace(self, **latents: Tensor) -> "Scenes":
        return Scenes({**self.latents, **latents}, self.level)


def sample(n: int, generator: torch.Generator, richness=None) -> Scenes:
    """n scenes with every latent uniform; the two objects of a pair differ. richness: None (uniform), number or (n,)."""
    tables = DESCRIBED | ALWAYS | {k: c for layer in DETAILS for k, c in layer.items()}
    s = {k: torch.randint(c, (n,), generator=generator) for k, c in tables.items()}
    object_a = s["shape_a"] * 8 + s["colour_a"]
    object_b = (object_a + 1 + torch.randint(63, (n,), generator=generator)) % 64  # uniform over the 63 others
    s["shape_b"], s["colour_b"] = object_b // 8, object_b % 8
    level = torch.randint(LEVELS, (n,), generator=generator)
    scenes = Scenes(s, level)
    return scenes if richness is None else scenes.at(richness)


def held_out(scenes: Scenes) -> Tensor:
    """(b,) bool: an eighth of all prompts, one colour for every shape of every kind, that no model is trained on."""
    s, kind = scenes.latents, scenes.latents["kind"]
    key = 3 * s["shape_a"] + 5 * s["colour_a"] + kind
    key = key + (kind == 1) * (s["shape_b"] + 3 * s["colour_b"] + 2 * s["relation"]) + (kind == 2) * 3 * s["count"]
    return key % 8 == 0


# ---- information ------------------------------------------------------------------------------------------------


def _present(scenes: Scenes, name: str) -> Tensor:
    """(b,) 1.0 where this kind of scene has the latent at all."""
    if name not in ONLY_IN:
        return torch.ones(len(scenes), dtype=torch.float64)
    return (scenes.latents["kind"] == ONLY_IN[name]).double()


def _bits(scenes: Scenes, table: dict[str, int]) -> Tensor:
    return sum((math.log2(c) * _present(scenes, k) for k, c in table.items()), torch.zeros(len(scenes), dtype=torch.float64))


def information(scenes: Scenes) -> dict[str, Tensor]:
    """Exact self-information of each scene in bits, (b,) float64 each; averages over scenes are entropies.

    text: I(v;t) of the short prompt; a pair's objects differ, hence log2(63 / 64) off. private: I(v|t), pose and backdrop and
    the layers drawn. named: the part of private that the long prompt says, so I(v;t_long) = text + named.
    """
    drawn = [(scenes.level > k).double() for k in range(len(DETAILS))]
    text = _bits(scenes, DESCRIBED) + (scenes.latents["kind"] == 1) * math.log2(63 / 64)
    private = _bits(scenes, ALWAYS) + sum(d * _bits(scenes, layer) for d, layer in zip(drawn, DETAILS))
    named = sum(d * _bits(scenes, {k: c for k, c in layer.items() if k in NAMED}) for d, layer in zip(drawn, DETAILS))
    return {"text": text, "private": private, "named": named}


# ---- captions ---------------------------------------------------------------------------------------------------


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _caption(s: dict[str, int], level: int) -> str:
    material = [MATERIALS[s[k]] + " " if level >= 3 else "" for k in ("material_a", "material_b")]
    things = [m + COLOURS[s["colour_" + k]] + " " for m, k in zip(material, "ab")]
    article = ["an " if t[0] in "aeiou" else "a " for t in things]
    if s["kind"] == 2:
        text = f"{COUNTS[s['count']]} {things[0]}{_plural(SHAPES[s['shape_a']])}"
    else:
        text = article[0] + things[0] + SHAPES[s["shape_a"]]
    if s["kind"] == 1:
        text += f" {RELATIONS[s['relation']]} {article[1]}{things[1]}{SHAPES[s['shape_b']]}"
    text += f" {SCENERY[s['scenery']]}" * (level >= 1) + f" {TIMES[s['time']]}" * (level >= 2)
    text += f", light from the {LIGHTS[s['light']]}" * (level >= 4) + f", {SHADOWS[s['shadow']]} shadows" * (level >= 5)
    return text + f", {SKIES[s['sky']]}" * (level >= 6) + f", {GROUNDS[s['ground']]}" * (level >= 7)


def captions(scenes: Scenes, style: str = "short", generator: torch.Generator | None = None) -> list[str]:
    """One sentence a scene. style: "short" names the described latents; "long" also every named layer that is drawn;
    "web" is long with probability 0.1 + 0.8 * richness (as on the web, who shows more says more), else short."""
    if style not in ("short", "long", "web"):
        raise ValueError(f'caption style must be "short", "long" or "web", not {style!r}')
    long = torch.full((len(scenes),), style == "long")
    if style == "web":
        long = torch.rand(len(scenes), generator=generator) < 0.1 + 0.8 * scenes.richness
    rows = zip(*(v.tolist() for v in scenes.latents.values()))
    levels = (scenes.level * long).tolist()
    return [_caption(dict(zip(scenes.latents, row)), level) for row, level in zip(rows, levels)]


_A, _B = (  # one regular expression for each object
    f"(?:(?P<material_{k}>{'|'.join(MATERIALS)}) )?(?P<colour_{k}>{'|'.join(COLOURS)}) (?P<shape_{k}>{'|'.join(SHAPES)})" for k in "ab"
)
_GRAMMAR = re.compile(
    rf"(?:an?|(?P<count>two|three)) {_A}(?:e?s)?(?: (?P<relation>left of|above) an? {_B})?"
    rf"(?: (?P<scenery>{'|'.join(SCENERY)}))?(?: (?P<time>{'|'.join(TIMES)}))?(?:, light from the (?P<light>{'|'.join(LIGHTS)}))?"
    rf"(?:, (?P<shadow>{'|'.join(SHADOWS)}) shadows)?(?:, (?P<sky>{'|'.join(SKIES)}))?(?:, (?P<ground>{'|'.join(GROUNDS)}))?"
)
_WORDS = {"shape_a": SHAPES, "shape_b": SHAPES, "colour_a": COLOURS, "colour_b": COLOURS, "material_a": MATERIALS,
          "material_b": MATERIALS, "relation": RELATIONS, "count": COUNTS, "scenery": SCENERY, "time": TIMES,
          "light": LIGHTS, "shadow": SHADOWS, "sky": SKIES, "ground": GROUNDS}  # fmt: skip


def parse(prompts: list[str], generator: torch.Generator) -> Scenes:
    """The inverse of `captions`: what a prompt says is kept, what it leaves open is drawn uniformly, at richness 1.

    Raises ValueError for a sentence outside the grammar.
    """
    scenes = sample(len(prompts), generator, richness=1)
    for i, prompt in enumerate(prompts):
        match = _GRAMMAR.fullmatch(prompt)
        if match is None or match["relation"] and match["count"]:
            raise ValueError(f'not a sentence of the microworld: {prompt!r}; say "a red circle left of a blue square"')
        said = {k: _WORDS[k].index(v) for k, v in match.groupdict().items() if v is not None}
        said["kind"] = 1 if "relation" in said else 2 if "count" in said else 0
        for name, value in said.items():
            scenes.latents[name][i] = value
    return scenes


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


# ---- legacy generators and simulated votes ------------------------------------------------------------------------

UTILITY = {"alignment": 3.0, "richness": 1.0, "artefact": -1.5}  # documented taste of the simulated annotators
DISCERNMENT = 2.1  # Bradley-Terry slope: two annotators agree on about 70 to 75 % of pairs, as people do


def legacy(scenes: Scenes, generator: torch.Generator, size: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """What an old generator makes of the prompts: attributes go wrong, richness is low, blur and blocks appear.

    Returns pixels (b, 3, size, size) and (b,) float32 truths: alignment, the share of described attributes kept;
    richness; artefact, the strength of blur and blocks in [0, 1].
    """
    n, s = len(scenes), scenes.latents
    rand = lambda: torch.rand(n, generator=generator)
    wrong = {k: rand() < 0.18 for k in ("shape_a", "colour_a", "shape_b", "colour_b")}
    fresh = {k: torch.where(w, (s[k] + 1 + (rand() * 7).long()) % 8, s[k]) for k, w in wrong.items()}
    drawn = scenes.replace(**fresh).at(rand() * 0.6)
    has_b = (s["kind"] == 1).float()
    errors = sum(w.float() * (has_b if k.endswith("_b") else 1) for k, w in wrong.items())
    artefact = rand() ** 2
    pixels = _spoil(render(drawn, size), artefact, generator)
    return pixels, {"alignment": 1 - errors / (2 + 2 * has_b), "richness": drawn.richness.float(), "artefact": artefact}


def _spoil(pixels: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    size = pixels.shape[-1]
    soft = F.interpolate(F.avg_pool2d(pixels, 4), (size, size), mode="bilinear")
    blocks = F.interpolate(torch.randn(len(pixels), 3, 8, 8, generator=generator), (size, size), mode="nearest")
    s = strength[:, None, None, None]
    return (torch.lerp(pixels, soft, s) + 0.06 * s * blocks).clamp(0, 1)


def utility(truth: dict[str, Tensor]) -> Tensor:
    """(b,) documented utility of a picture: 3 alignment + richness - 1.5 artefact."""
    return sum(weight * truth[name] for name, weight in UTILITY.items())


def votes(utility_a: Tensor, utility_b: Tensor, generator: torch.Generator) -> Tensor:
    """(b,) bool, True where one simulated annotator prefers a: Bradley-Terry with slope DISCERNMENT."""
    preference = torch.sigmoid(DISCERNMENT * (utility_a - utility_b))
    return torch.rand(len(utility_a), generator=generator) < preference
