"""The utility as a reward: where the detector is sure, the smooth form is the decided one; votes are the annotators' own."""

from itertools import product

import pytest
import torch

from icthp import microworld
from icthp.microworld import annotators, oracle, tasks
from icthp.microworld.scenes import COLOURS, SHAPES
from perfect_detector import PerfectDetector, true_objects

SIDE = 16


def sure(scenes):
    """The logits of a detector that is sure of these scenes' objects, at the cells of their centres."""
    centre, shape, colour = torch.full((len(scenes), SIDE, SIDE), -30.0), *torch.zeros(2, len(scenes), 8, SIDE, SIDE)
    for i, objects in enumerate(true_objects(scenes)):
        for found in objects:
            left, top, right, bottom = found.box
            col, row = (int(((low + high) / 2 + 1) / 2 * SIDE) for low, high in ((left, right), (top, bottom)))
            centre[i, row, col] = 30
            shape[i, SHAPES.index(found.label), row, col] = colour[i, COLOURS.index(found.colour), row, col] = 30
    return centre, shape, colour


@pytest.mark.parametrize("shift", [0, 1])
def test_of_a_sure_detector_it_is_the_share_of_units(shift):
    """With its own prompts every unit is there; with others' it is what `prompt_coverage` counts."""
    scenes = microworld.sample(300, torch.Generator().manual_seed(0))
    asked = scenes[torch.arange(300).roll(shift)]
    smooth = oracle.smooth_coverage(*sure(scenes), asked)
    decided = tasks.prompt_coverage(PerfectDetector(), scenes, asked)
    agree = (smooth - decided).abs() < 1e-4
    assert agree.double().mean() > 0.98 and (shift or smooth.mean() > 0.99)  # a relation of cells may differ from one of centres


def test_counts_are_those_of_every_combination():
    p = torch.tensor([0.9, 0.2, 0.5, 0.0], dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    for events in product((0, 1), repeat=4):
        expected[sum(events)] += torch.tensor([x if e else 1 - x for x, e in zip(p, events)]).prod()
    assert torch.allclose(oracle.count_probabilities(p, 4), expected) and torch.allclose(oracle.count_probabilities(p, 2), expected[:3])


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return microworld.Detector(width=8).eval().requires_grad_(False)


def test_the_reward_and_its_gradient(detector):
    scenes = microworld.sample(6, torch.Generator().manual_seed(1))
    prompts = microworld.captions(scenes)
    pixels = microworld.render(scenes).requires_grad_()
    value = oracle.UtilityScorer(detector).score(pixels, prompts)
    gradient = torch.autograd.grad(value.sum(), pixels)[0]
    assert value.shape == (6,) and gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    decided = oracle.UtilityScorer(detector, smooth=False).score(pixels, prompts)
    assert not decided.requires_grad
    assert torch.allclose(decided, annotators.utility(annotators.read_qualities(detector, pixels, scenes)))
    with pytest.raises(ValueError, match="not a sentence of the microworld"):
        oracle.UtilityScorer(detector).score(pixels[:1], ["a photo of a cat"])


def test_its_votes_are_the_annotators(detector):
    """How often one of two pictures is preferred is Bradley and Terry's probability."""
    scenes = microworld.sample(2, torch.Generator().manual_seed(1))
    pixels, prompts = microworld.render(scenes), microworld.captions(scenes[:1]) * 2
    plain, noisy = (oracle.UtilityScorer(detector, smooth=False, votes=votes) for votes in (False, True))
    torch.manual_seed(0)
    drawn = noisy.score(pixels.repeat(1000, 1, 1, 1), prompts * 1000).view(1000, 2)
    value = plain.score(pixels, prompts)
    expected = torch.sigmoid(annotators.BT_SCALE * (value[0] - value[1]))
    assert (drawn[:, 0] > drawn[:, 1]).double().mean().item() == pytest.approx(expected.item(), abs=0.05)
    assert repr(plain) != repr(noisy)
