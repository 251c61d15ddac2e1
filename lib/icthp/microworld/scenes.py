"""A procedural world whose information content is known exactly.

A scene is a table of discrete latents, all uniform and independent given its kind, so every information is a sum of
log2 of cardinalities. DESCRIBED latents are what a short prompt says. ALWAYS latents (backdrop, pose) are drawn at
every richness but never said. DETAILS is a sequence of undescribed layers; richness r in [0, 1] draws the first round(r * 8) of them,
and a long prompt names those that have a name.
"""

import math
from dataclasses import dataclass

import torch
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
