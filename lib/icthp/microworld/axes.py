"""Votes on two axes apart: pictures by a generator that errs, whose errors are known."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from icthp.images import encode
from icthp.microworld.annotators import UTILITY, weak_generator
from icthp.microworld.grammar import captions
from icthp.microworld.scenes import held_out, sample


def quality(truth: dict[str, Tensor]) -> Tensor:
    """(b,) what the simulated annotators' utility says of a picture beside its alignment: richness - 1.5 artefact."""
    return truth["richness"] + UTILITY["artefact"] * truth["artefact"]


def axis_votes(count: int, generator: torch.Generator, folder, pictures: int = 4) -> pd.DataFrame:
    """A table of votes as `human_votes.read` gives it (prompt, image, axis, value): `pictures` of each of `count` held-out scenes, written
    into `folder` as PNG. axis "alignment": the share of described attributes that the picture has right; "quality": see `quality`."""
    scenes = sample(count * 12, generator)
    scenes = scenes[held_out(scenes)][:count]
    scenes = scenes[torch.arange(len(scenes)).repeat_interleave(pictures)]
    pixels, truth = weak_generator(scenes, generator)
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
