"""Simulated annotators: what they read in a picture, what it is worth to them, how they vote; the pairs I1 < I2 of the microworld, its
Pick-a-Pic, are ordered by them."""

import datasets
import torch
from torch import Tensor

from icthp.data.pairs import PAIRS
from icthp.images import encode
from icthp.microworld.grammar import captions
from icthp.microworld.scenes import Scenes
from icthp.microworld.tasks import prompt_coverage

UTILITY = {"alignment": 3.0, "richness": 1.0, "artefact": -1.5}  # documented taste of the simulated annotators
BT_SCALE = 2.4  # Bradley-Terry: two annotators agree on some 70 % of the pairs in data/, as people do


def read_qualities(detector, pixels: Tensor, scenes: Scenes) -> dict[str, Tensor]:
    """What the annotators see in pixels (b, 3, h, w) of the scenes' short prompts, by the detector's eyes, (b,) in [0, 1] each: alignment,
    the share of the prompt's units that are there; richness; artefact, how far the picture is corrupted, and its parts."""
    measured = {name.removeprefix("micro_"): values for name, values in detector.measure(pixels).items()}
    return {"alignment": prompt_coverage(detector, pixels, scenes)} | measured


def quality(qualities: dict[str, Tensor]) -> Tensor:
    """(b,) what a picture is worth beside its alignment: richness - 1.5 artefact."""
    return sum(UTILITY[name] * qualities[name] for name in ("richness", "artefact"))


def utility(qualities: dict[str, Tensor]) -> Tensor:
    """(b,) documented utility of a picture: 3 alignment + richness - 1.5 artefact."""
    return UTILITY["alignment"] * qualities["alignment"] + quality(qualities)


def votes(utility_a: Tensor, utility_b: Tensor, generator: torch.Generator) -> Tensor:
    """(b,) bool, does one simulated annotator prefer a? Bradley-Terry: P = sigmoid(BT_SCALE (utility_a - utility_b))."""
    preference = torch.sigmoid(BT_SCALE * (utility_a - utility_b))
    return torch.rand(len(utility_a), generator=generator) < preference


def voted_pairs(
    scenes: Scenes, pixels: tuple[Tensor, Tensor], utilities: tuple[Tensor, Tensor], generator: torch.Generator, sources=None
) -> datasets.Dataset:
    """Two pictures of each scene's short prompt, pixels (b, 3, h, w) in [0, 1] twice, as JPEG at quality 75 in the columns of
    `data.pairs.PAIRS`. One vote by their utilities orders them: image_1 is rejected, image_2 chosen; `agreed` says whether a second vote is
    the same. sources: for each of the two, b names of what drew it."""
    a_wins = votes(*utilities, generator)
    agreed = votes(*utilities, generator) == a_wins
    sources = sources or [["microworld"] * len(scenes)] * 2
    columns = {"prompt_id": range(len(scenes)), "easy_prompt": captions(scenes), "agreed": agreed.tolist()}
    for i, chosen in ((1, ~a_wins), (2, a_wins)):  # is the first of the two this one?
        ordered = torch.where(chosen[:, None, None, None], *pixels)
        columns[f"image_{i}"] = encode(ordered, "JPEG", quality=75)
        columns[f"source_{i}"] = [a if first else b for first, a, b in zip(chosen.tolist(), *sources)]
    return datasets.Dataset.from_dict(columns, features=PAIRS)
