"""The annotators' utility as a reward: an oracle that no real world has. Smooth, for whoever needs its gradient; with the annotators'
noise, for whoever learns from votes."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from icthp.corruptions import artefact
from icthp.evaluation import geneval
from icthp.microworld.annotators import BT_SCALE, read_qualities, utility
from icthp.microworld.detector import Detector, detection
from icthp.microworld.grammar import parse
from icthp.microworld.scenes import COLOURS, SHAPES, Scenes
from icthp.microworld.tasks import geneval_metadata
from icthp.scorers.base import Scorer

OBJECTS = 8  # the likeliest of a picture, all others are left out


class UtilityScorer(Scorer):
    """What a picture is worth to the simulated annotators, `utility`, by a detector's eyes.

    smooth: with `smooth_coverage` in the place of decisions, so that it has a gradient. votes: with noise of the annotators' own, a
    standard Gumbel variable over BT_SCALE, so that the order of two pictures is one vote of theirs; from torch's random numbers."""

    score_scale = "utility: 3 alignment + richness - 1.5 artefact"

    def __init__(self, detector: Detector, *, smooth: bool = True, votes: bool = False):
        super().__init__()
        self.detector = detector
        self.smooth = smooth
        self.votes = votes

    def extra_repr(self) -> str:
        return f"smooth={self.smooth}, votes={self.votes}"

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        scenes = parse(prompts, torch.Generator().manual_seed(0))
        value = utility(smooth_qualities(self.detector, pixels, scenes) if self.smooth else read_qualities(self.detector, pixels, scenes))
        if self.votes:
            value = value - torch.empty_like(value).exponential_().log() / BT_SCALE
        return value


def smooth_qualities(detector: Detector, pixels: Tensor, scenes: Scenes) -> dict[str, Tensor]:
    """`read_qualities` with a gradient: {"alignment", "richness", "artefact"}, (b,) in [0, 1] each."""
    centre, shape, colour, richness, severity = detector(pixels)
    coverage = smooth_coverage(centre, shape, colour, scenes)
    return {"alignment": coverage, "richness": richness, "artefact": artefact(severity)}


def smooth_coverage(centre: Tensor, shape: Tensor, colour: Tensor, scenes: Scenes) -> Tensor:
    """The expected share of the units of each scene's short prompt, (b,) in [0, 1], where the detector's probabilities stand in the place
    of its decisions, as if its objects were independent: what `prompt_coverage` is for a detector that is sure.

    centre (b, h, w), shape and colour (b, 8, h, w): logits of a `Detector`, whose objects are the maxima of 5 x 5 cells."""
    heat = centre.sigmoid()
    peaks = heat * (heat == F.max_pool2d(heat[:, None], 5, 1, 2)[:, 0])
    present, cells = peaks.flatten(1).topk(min(OBJECTS, heat[0].numel()))
    of_cells = lambda logits: logits.flatten(2).softmax(1).gather(2, cells[:, None].expand(-1, logits.shape[1], -1))
    shape, colour = of_cells(shape), of_cells(colour)
    shares = []
    for i in range(len(centre)):
        units = _units(present[i], shape[i], colour[i], cells[i], heat.shape[-1], geneval_metadata(scenes[i : i + 1]))
        shares.append(torch.stack(units).mean())
    return torch.stack(shares)


def _units(present: Tensor, shape: Tensor, colour: Tensor, cells: Tensor, side: int, metadata: dict) -> list[Tensor]:
    """How likely each unit of `tasks.units_found` is. present (m,): is there an object? shape, colour (8, m): what it is."""
    found, matched = [], []
    for entry in metadata["include"]:
        objects = present * shape[SHAPES.index(entry["class"])]
        counts = count_probabilities(objects, entry["count"])
        found.append(counts[-1] if metadata["tag"] == "counting" else 1 - counts[:-1].sum())
        if "color" in entry:
            coloured = objects * colour[COLOURS.index(entry["color"])]
            found.append(1 - count_probabilities(coloured, entry["count"])[:-1].sum())
        if "position" in entry:
            relation, other = entry["position"]
            both = objects[:, None] * matched[other][None, :] * _in_relation(cells.tolist(), side, relation).to(objects)
            found.append(1 - (1 - both).prod())
        matched.append(objects)
    return found


def count_probabilities(p: Tensor, most: int) -> Tensor:
    """(most + 1,): how likely 0, 1, ... most of independent events of probabilities p (m,) happen."""
    counts = F.one_hot(torch.tensor(0), most + 1).to(p)
    for event in p:
        counts = counts * (1 - event) + F.pad(counts[:-1], (1, 0)) * event
    return counts


def _in_relation(cells: list[int], side: int, relation: str) -> Tensor:
    """(m, m) bool: is the object of the first cell in this relation to that of the second?"""
    places = [divmod(cell, side) for cell in cells]
    return torch.tensor([[relation in _relations(a[1] - b[1], a[0] - b[0], side) for b in places] for a in places])


@cache
def _relations(across: int, down: int, side: int) -> set[str]:
    """Of an object so many cells to the right of another and below it."""
    first, second = detection("", "", 2 * across / side, 2 * down / side, 1.0), detection("", "", 0.0, 0.0, 1.0)
    return geneval.relations(first, second) if across or down else set()
