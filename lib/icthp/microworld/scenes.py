"""Scenes: draws of discrete latents whose information is known exactly.

The latents of a scene are uniform and independent given its kind (0 one object, 1 a pair, 2 two or three of a kind), so every mutual
information is a sum of log2 of cardinalities. A short prompt names the DESCRIBED latents. ALWAYS latents (backdrop, pose) are drawn at
every richness, and no prompt names them. DETAILS is a sequence of layers; richness r in [0, 1] draws the first round(8 r) of them, and
a long prompt names those that have a name.
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

# ---- latents and their cardinalities ----------------------------------------------------------------------------

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
    """b scenes: `latents` maps each name above to an int64 tensor (b,); `level` (b,) int64, 0 to 8, is the number of layers drawn."""

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
        """The same scenes at another richness: a number or (b,) in [0, 1], rounded to a level. ValueError: outside this range."""
        level = (torch.as_tensor(richness, dtype=torch.float64) * (LEVELS - 1)).round().long()
        if level.min() < 0 or level.max() >= LEVELS:
            raise ValueError(f"richness must lie in [0, 1], not {richness}")
        return Scenes(self.latents, level.expand(len(self)))

    def replace(self, **latents: Tensor) -> "Scenes":
        """The same scenes with other values, (b,) int64, of the named latents."""
        return Scenes({**self.latents, **latents}, self.level)


def sample(n: int, generator: torch.Generator, richness=None) -> Scenes:
    """n scenes with every latent uniform; the two objects of a pair differ. richness in [0, 1]: None (a uniform level), number or (n,)."""
    details = {name: c for layer in DETAILS for name, c in layer.items()}
    s = {name: torch.randint(c, (n,), generator=generator) for name, c in (DESCRIBED | ALWAYS | details).items()}
    object_a = s["shape_a"] * 8 + s["colour_a"]
    object_b = (object_a + 1 + torch.randint(63, (n,), generator=generator)) % 64  # uniform over the 63 others
    s["shape_b"] = object_b // 8
    s["colour_b"] = object_b % 8
    level = torch.randint(LEVELS, (n,), generator=generator)
    scenes = Scenes(s, level)
    return scenes if richness is None else scenes.at(richness)


def held_out(scenes: Scenes) -> Tensor:
    """(b,) bool: an eighth of all prompts, one colour for every shape of every kind, that no model is trained on."""
    s = scenes.latents
    kind = s["kind"]
    key = 3 * s["shape_a"] + 5 * s["colour_a"] + kind
    key = key + (kind == 1) * (s["shape_b"] + 3 * s["colour_b"] + 2 * s["relation"]) + (kind == 2) * 3 * s["count"]
    return key % 8 == 0


# ---- information ------------------------------------------------------------------------------------------------


def _present(scenes: Scenes, name: str) -> Tensor:
    """(b,) 1.0 where this kind of scene has the latent at all."""
    if name not in ONLY_IN:
        return torch.ones(len(scenes), dtype=torch.float64)
    return (scenes.latents["kind"] == ONLY_IN[name]).double()


def _bits(scenes: Scenes, cardinalities: dict[str, int]) -> Tensor:
    """(b,) float64: the entropy of these latents in each scene."""
    bits = torch.zeros(len(scenes), dtype=torch.float64)
    for name, cardinality in cardinalities.items():
        bits = bits + math.log2(cardinality) * _present(scenes, name)
    return bits


def information(scenes: Scenes) -> dict[str, Tensor]:
    """Exact self-information of each scene in bits, (b,) float64 each; averages over scenes are entropies.

    text: I(v;t) of the short prompt, less log2(64 / 63) for a pair, whose objects differ. private: I(v|t), of backdrop, pose and
    the layers drawn. named: the part of private that the long prompt names, so I(v;t_long) = text + named.
    """
    drawn = [(scenes.level > k).double() for k in range(len(DETAILS))]
    text = _bits(scenes, DESCRIBED) + (scenes.latents["kind"] == 1) * math.log2(63 / 64)
    private = _bits(scenes, ALWAYS) + sum(d * _bits(scenes, layer) for d, layer in zip(drawn, DETAILS))
    named_latents = [{name: c for name, c in layer.items() if name in NAMED} for layer in DETAILS]
    named = sum(d * _bits(scenes, layer) for d, layer in zip(drawn, named_latents))
    return {"text": text, "private": private, "named": named}
