"""Captions of scenes in a small grammar, and their inverse: a prompt is parsed into a scene that fits it."""

import re

import torch

from icthp.microworld.scenes import (
    COLOURS,
    COUNTS,
    GROUNDS,
    LIGHTS,
    MATERIALS,
    RELATIONS,
    SCENERY,
    SHADOWS,
    SHAPES,
    SKIES,
    TIMES,
    Scenes,
    sample,
)

# ---- captions ---------------------------------------------------------------------------------------------------


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _caption(s: dict[str, int], level: int) -> str:
    """One scene's sentence; `level` is the number of layers of DETAILS that it may name."""
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
    """One sentence a scene. style: "short" names the described latents; "long" also every layer that is drawn and has a name;
    "web" is long with probability 0.1 + 0.8 * richness (who shows more on the web says more), else short. ValueError: another style."""
    if style not in ("short", "long", "web"):
        raise ValueError(f'caption style must be "short", "long" or "web", not {style!r}')
    long = torch.full((len(scenes),), style == "long")
    if style == "web":
        long = torch.rand(len(scenes), generator=generator) < 0.1 + 0.8 * scenes.richness
    rows = zip(*(v.tolist() for v in scenes.latents.values()))
    levels = (scenes.level * long).tolist()
    return [_caption(dict(zip(scenes.latents, row)), level) for row, level in zip(rows, levels)]


# ---- parsing ----------------------------------------------------------------------------------------------------

_A, _B = (  # one regular expression for each object
    f"(?:(?P<material_{k}>{'|'.join(MATERIALS)}) )?(?P<colour_{k}>{'|'.join(COLOURS)}) (?P<shape_{k}>{'|'.join(SHAPES)})" for k in "ab"
)
_GRAMMAR = re.compile(
    rf"(?:an?|(?P<count>two|three)) {_A}(?:e?s)?(?: (?P<relation>left of|above) an? {_B})?"
    rf"(?: (?P<scenery>{'|'.join(SCENERY)}))?(?: (?P<time>{'|'.join(TIMES)}))?(?:, light from the (?P<light>{'|'.join(LIGHTS)}))?"
    rf"(?:, (?P<shadow>{'|'.join(SHADOWS)}) shadows)?(?:, (?P<sky>{'|'.join(SKIES)}))?(?:, (?P<ground>{'|'.join(GROUNDS)}))?"
)
_VALUES = {"shape_a": SHAPES, "shape_b": SHAPES, "colour_a": COLOURS, "colour_b": COLOURS, "material_a": MATERIALS,
          "material_b": MATERIALS, "relation": RELATIONS, "count": COUNTS, "scenery": SCENERY, "time": TIMES,
          "light": LIGHTS, "shadow": SHADOWS, "sky": SKIES, "ground": GROUNDS}  # fmt: skip


def parse(prompts: list[str], generator: torch.Generator) -> Scenes:
    """The inverse of `captions`: scenes at richness 1 with the attributes that the prompts name; all others are drawn uniformly.
    ValueError: a sentence outside the grammar."""
    scenes = sample(len(prompts), generator, richness=1)
    for i, prompt in enumerate(prompts):
        match = _GRAMMAR.fullmatch(prompt)
        if match is None or match["relation"] and match["count"]:
            raise ValueError(f'not a sentence of the microworld: {prompt!r}; say "a red circle left of a blue square"')
        attributes = {k: _VALUES[k].index(v) for k, v in match.groupdict().items() if v is not None}
        attributes["kind"] = 1 if "relation" in attributes else 2 if "count" in attributes else 0
        for name, value in attributes.items():
            scenes.latents[name][i] = value
    return scenes
