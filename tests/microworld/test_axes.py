"""Votes on two axes apart, of pictures whose errors are known."""

import pandas as pd
import torch

from icthp import microworld
from icthp.evaluation import human_votes
from icthp.microworld import axes


def test_a_table_of_votes_of_held_out_scenes(tmp_path):
    votes = microworld.axis_votes(5, torch.Generator().manual_seed(0), tmp_path)
    assert list(votes.columns) == human_votes.COLUMNS and len(votes) == 2 * 5 * 4 and votes.image.nunique() == 20
    assert (votes.groupby("prompt").image.nunique() % 4 == 0).all() and votes[votes.axis == "alignment"].value.between(0, 1).all()
    again = microworld.axis_votes(5, torch.Generator().manual_seed(0), tmp_path)
    pd.testing.assert_frame_equal(votes, again)


def test_planted_faults_stay_in_their_range(scenes):
    pixels, truth = axes.plant_faults(scenes, torch.Generator().manual_seed(1))
    assert set(truth["alignment"].unique().tolist()) <= {0, 0.25, 0.5, 0.75, 1} and 0 <= pixels.min() and pixels.max() <= 1
    assert truth["richness"].max() <= 5 / 8  # 0.6, rounded to a level
    assert 0 < (truth["artefact"] == 0).float().mean() < 1 and truth["artefact"].max() < 1


def test_quality_is_the_utility_without_its_alignment():
    truth = {name: torch.rand(10, generator=torch.Generator().manual_seed(1)) for name in ("alignment", "richness", "artefact")}
    rest = microworld.utility(truth) - microworld.UTILITY["alignment"] * truth["alignment"]
    assert torch.allclose(axes.quality(truth), rest, atol=1e-6)
