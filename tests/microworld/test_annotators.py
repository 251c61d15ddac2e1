"""Simulated annotators and the pairs that they order."""

import pytest
import torch

from icthp.microworld import annotators, sample


@pytest.mark.slow
def test_annotators_agree_as_people_do():
    g = torch.Generator().manual_seed(3)
    scenes = sample(3000, g)
    _, truth_a = annotators.weak_generator(scenes, g)
    _, truth_b = annotators.weak_generator(scenes, g)
    utilities = annotators.utility(truth_a), annotators.utility(truth_b)
    first = annotators.votes(*utilities, g)
    second = annotators.votes(*utilities, g)
    assert 0.69 < (first == second).float().mean() < 0.77


def test_the_truth_of_weak_pictures_stays_in_its_range():
    _, truth = annotators.weak_generator(sample(200, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1))
    assert set(truth["alignment"].unique().tolist()) <= {0, 0.25, 0.5, 0.75, 1}
    assert truth["richness"].max() <= 5 / 8 and truth["artefact"].max() < 1  # 0.6, rounded to a level
