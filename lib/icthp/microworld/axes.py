"""Votes on two axes apart: renders with planted faults, so that the truth of each is known."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from icthp.corruptions import artefact, corrupt, sample_severities
from icthp.images import encode
from icthp.microworld.annotators import quality
from icthp.microworld.grammar import captions
from icthp.microworld.renderer import render
from icthp.microworld.scenes import Scenes, held_out, sample

# ---- planted faults ---------------------------------------------------------------------------------------------


def plant_faults(scenes: Scenes, generator: torch.Generator, size: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """Renders with faults: attributes go wrong, richness is low, the picture is corrupted.

    Returns pixels (b, 3, size, size) in [0, 1] and the truth, (b,) float32 each: alignment, the share of the prompt's shapes and
    colours that are drawn; richness, at most 5/8; artefact in [0, 1], `corruptions.artefact`.
    """
    uniform = lambda: torch.rand(len(scenes), generator=generator)
    s = scenes.latents
    wrong = {name: uniform() < 0.18 for name in ("shape_a", "colour_a", "shape_b", "colour_b")}
    attributes = {name: torch.where(w, _another(s[name], uniform()), s[name]) for name, w in wrong.items()}
    drawn = scenes.replace(**attributes).at(uniform() * 0.6)
    severity = sample_severities(len(scenes), generator)
    pixels = corrupt(render(drawn, size), severity, generator)
    return pixels, {"alignment": _alignment(s["kind"], wrong), "richness": drawn.richness.float(), "artefact": artefact(severity)}


def _another(value: Tensor, uniform: Tensor) -> Tensor:
    """(b,) one of the seven other values in 0 to 7; `uniform` (b,) in [0, 1) chooses it."""
    return (value + 1 + (uniform * 7).long()) % 8


def _alignment(kind: Tensor, wrong: dict[str, Tensor]) -> Tensor:
    """(b,) the share of right attributes: two of a scene with one object or group, four of a pair."""
    is_pair = (kind == 1).float()
    errors = sum(w.float() * (is_pair if name.endswith("_b") else 1) for name, w in wrong.items())
    return 1 - errors / (2 + 2 * is_pair)


# ---- the table --------------------------------------------------------------------------------------------------


def axis_votes(count: int, generator: torch.Generator, folder, pictures: int = 4) -> pd.DataFrame:
    """A table of votes as `human_votes.read` gives it (prompt, image, axis, value): `pictures` of each of `count` held-out scenes, written
    into `folder` as PNG. axis "alignment": the share of the described attributes that is right; "quality": `annotators.quality`."""
    scenes = sample(count * 12, generator)
    scenes = scenes[held_out(scenes)][:count]
    scenes = scenes[torch.arange(len(scenes)).repeat_interleave(pictures)]
    pixels, truth = plant_faults(scenes, generator)
    names = _write(pixels, Path(folder))
    axes = {"alignment": truth["alignment"], "quality": quality(truth)}
    parts = [pd.DataFrame({"prompt": captions(scenes), "image": names, "axis": axis, "value": values}) for axis, values in axes.items()]
    return pd.concat(parts, ignore_index=True)


def _write(pixels: Tensor, folder: Path) -> list[str]:
    """The paths of the pictures, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.png" for i in range(len(pixels))]
    for path, file in zip(paths, encode(pixels)):
        path.write_bytes(file["bytes"])
    return [str(path) for path in paths]
