"""Held-out prompts while a generator is tuned: the numbers follow their definitions, snapshots come back, too few prompts are refused."""

import numpy as np
import pytest
import torch

from icthp import evaluation, scorers, tuning

TEXTS = ["a red circle", "two blue squares", "a green heart"]
SAMPLE_KWARGS = {"steps": 2, "size": 32, "seed": 3}


class Brightness(scorers.Scorer):
    needs_prompt = False

    def forward(self, pixels, prompts=None):
        return pixels.mean((1, 2, 3))


class Red(scorers.Scorer):
    needs_prompt = False

    def forward(self, pixels, prompts=None):
        return pixels[:, 0].mean((1, 2))


@pytest.fixture
def monitor(pipe, clip_folder, tmp_path):
    """Of a generator that draws other pictures than its baseline, which are random."""
    baseline = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clip_scorer = scorers.load("clip", f"local-dir:{clip_folder}")
    measure = lambda pixels: {"contrast": pixels.std((1, 2, 3))}
    return tuning.Monitor(pipe, TEXTS, Brightness(), {"red": Red(), "own": Brightness()}, clip_scorer, independent=["red"],
                          measure=measure, baseline=baseline, folder=tmp_path / "snapshots", **SAMPLE_KWARGS)  # fmt: skip


def test_its_numbers_follow_their_definitions(monitor, pipe):
    pixels = tuning.generate(pipe, TEXTS, **SAMPLE_KWARGS)
    found = monitor(pipe.transformer, 0)
    before = monitor.baseline["red"]
    shift = (Red().score(pixels).mean() - before.mean()) / before.std()
    features = monitor.clip_scorer.image_features(pixels)
    assert found["other_red"] == pytest.approx(shift.item(), rel=1e-5) and found["val_loss"] == pytest.approx(-shift.item(), rel=1e-5)
    assert found["score_red"] == Red().score(pixels).mean() and found["score_own"] == found["held_out_reward"] and "other_own" not in found
    assert found["held_out_reward"] == pixels.mean((1, 2, 3)).mean() and found["contrast"] == pixels.std((1, 2, 3)).mean()
    assert found["diversity"] == pytest.approx(evaluation.diversity(features, [0, 0, 0]).item())
    assert found["kb"] > 0 and not any(isinstance(value, torch.Tensor) and value.requires_grad for value in found.values())


def test_snapshots_come_back_in_order(monitor, pipe):
    for step in (9, 19, 4):
        monitor(pipe.transformer, step)
    snapshots = monitor.snapshots()
    pixels = tuning.generate(pipe, TEXTS, **SAMPLE_KWARGS)
    assert list(snapshots) == [4, 9, 19] and np.allclose(snapshots[4], pixels, atol=0.51 / 255)


def test_what_shares_nothing_with_the_reward():
    names = ["clip", "pickscore", "ict", "hp", "icthp"]
    assert tuning.independent_names("icthp", names) == ["clip", "pickscore"]
    assert tuning.independent_names("ict", names) == tuning.independent_names("hp", names) == ["clip", "pickscore"]
    assert tuning.independent_names("clip", names) == ["pickscore", "ict", "hp", "icthp"]
    assert tuning.independent_names("my_rewards.py:EdgeScorer", names) == names


@pytest.mark.parametrize("prompts, pictures, message", [(1, 1, "raise eval_prompts"), (3, 2, "3 prompts need as many pictures")])
def test_too_few_prompts_or_pictures_are_refused(pipe, tmp_path, prompts, pictures, message):
    with pytest.raises(ValueError, match=message):
        tuning.Monitor(
            pipe,
            TEXTS[:prompts],
            Brightness(),
            {},
            None,
            independent=[],
            measure=dict,
            baseline=torch.zeros(pictures, 3, 8, 8),
            folder=tmp_path,
        )
