"""Simulated annotators and the pairs that they order."""

import pytest
import torch

from faulty_pairs import faulty_pairs
from icthp import images
from icthp.microworld import annotators, axes, captions, render, sample
from perfect_detector import PerfectDetector


@pytest.mark.slow
def test_annotators_agree_as_people_do():
    g = torch.Generator().manual_seed(3)
    scenes = sample(3000, g)
    utilities = [annotators.utility(axes.plant_faults(scenes, g)[1]) for _ in range(2)]
    first = annotators.votes(*utilities, g)
    second = annotators.votes(*utilities, g)
    assert 0.69 < (first == second).float().mean() < 0.8


def test_votes_follow_the_documented_utility():
    g = torch.Generator().manual_seed(0)
    better, worse = torch.full((4000,), 1.0), torch.full((4000,), 0.5)
    assert annotators.votes(better, worse, g).float().mean() == pytest.approx(torch.tensor(2.4 * 0.5).sigmoid().item(), abs=0.02)
    good = {"alignment": torch.ones(1), "richness": torch.ones(1), "artefact": torch.zeros(1)}
    spoilt = good | {"artefact": torch.ones(1)}
    assert annotators.utility(good).item() == 4 and annotators.utility(spoilt).item() == 2.5


def test_the_chosen_picture_is_the_one_that_won(scenes):
    """Utilities far apart leave nothing to chance: the bright picture wins, whichever of the two it is."""
    scenes = scenes[:8]
    is_first = torch.arange(8) % 2 == 0
    dark, bright = torch.zeros(8, 3, 16, 16), torch.ones(8, 3, 16, 16)
    pixels = tuple(torch.where(bright_there[:, None, None, None], bright, dark) for bright_there in (is_first, ~is_first))
    utilities = tuple(1000 * part.mean((1, 2, 3)) for part in pixels)
    sources = [["a"] * 8, ["b"] * 8]
    pairs = annotators.voted_pairs(scenes, pixels, utilities, torch.Generator().manual_seed(0), sources)
    assert images.stack(list(pairs["image_2"])).min() > 0.9 and images.stack(list(pairs["image_1"])).max() < 0.1
    assert pairs["source_2"][:] == ["a", "b"] * 4 and pairs["source_1"][:] == ["b", "a"] * 4
    assert all(pairs["agreed"]) and pairs["easy_prompt"][:] == captions(scenes)


def test_pairs_are_jpeg_files(scenes):
    assert all(image.format == "JPEG" for image in faulty_pairs(scenes[:3])["image_1"])


def test_what_is_read_in_a_picture(scenes):
    """The alignment is the share of the prompt's units; the rest is the detector's."""

    class Reader(PerfectDetector):
        @staticmethod
        def measure(pixels):
            return {"micro_richness": torch.full((len(pixels),), 0.3), "micro_artefact": torch.full((len(pixels),), 0.6)}

    read = annotators.read_qualities(Reader, scenes, scenes)
    assert (read["alignment"] == 1).all() and (read["richness"] == 0.3).all() and (read["artefact"] == 0.6).all()
    assert render(scenes[:1]).shape == (1, 3, 64, 64)
