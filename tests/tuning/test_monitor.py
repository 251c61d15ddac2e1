"""Held-out prompts while a generator is tuned: the numbers follow their definitions, snapshots come back, too few prompts are refused."""

import datasets
import numpy as np
import pytest
import torch

from icthp import evaluation, scorers, tuning
from icthp.tuning import alarms
from icthp.tuning import monitor as monitor_module

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
    own = Brightness()
    return tuning.Monitor(pipe, TEXTS, own, {"red": Red(), "own": own}, clip_scorer, independent=["red"],
                          measure=measure, baseline=baseline, folder=tmp_path / "snapshots", **SAMPLE_KWARGS)  # fmt: skip


def test_its_numbers_follow_their_definitions(monitor, pipe):
    pixels = tuning.generate(pipe, TEXTS, **SAMPLE_KWARGS)
    found = monitor(pipe.transformer, 0)
    shift = lambda scorer, before: ((scorer.score(pixels).mean() - before.mean()) / before.std()).item()
    assert found["other_red"] == pytest.approx(shift(Red(), monitor.baseline["red"]), rel=1e-5)
    assert found["gain"] == pytest.approx(shift(Brightness(), monitor.baseline["own"]), rel=1e-5) and "other_own" not in found
    assert found["score_red"] == pytest.approx(Red().score(pixels).mean().item())
    assert found["score_own"] == found["held_out_reward"] == pytest.approx(pixels.mean().item(), rel=1e-5)
    assert found["contrast"] == pytest.approx(pixels.std((1, 2, 3)).mean().item())
    features = monitor.clip_scorer.image_features(pixels)
    assert found["diversity"] == pytest.approx(evaluation.diversity(features, [0, 0, 0]).item())
    assert found["alarm"] == -found["other_red"]  # of one independent scorer
    assert found["kb"] > 0 and all(type(value) is float for value in found.values())
    assert found.keys() == monitor.untuned.keys() and monitor.untuned["gain"] == monitor.untuned["other_red"] == 0


def test_a_reward_that_is_none_of_the_scorers_is_measured_too(pipe, monitor, tmp_path):
    own = tuning.Monitor(pipe, TEXTS, Red(), {"bright": monitor.scorer}, monitor.clip_scorer, independent=["bright"], measure=dict_of_none,
                         baseline=torch.rand(3, 3, 32, 32), folder=tmp_path, **SAMPLE_KWARGS)  # fmt: skip
    found = own(pipe.transformer, 0)
    assert {"score_bright", "other_bright", "gain", "held_out_reward"} <= found.keys() and "score_" not in found
    assert found["held_out_reward"] == pytest.approx(tuning.generate(pipe, TEXTS, **SAMPLE_KWARGS)[:, 0].mean().item(), rel=1e-5)


def dict_of_none(pixels):
    return {}


@pytest.mark.parametrize("fall, gain, watched", [(0.5, 2.0, -2.0), (alarms.THRESHOLD + 1, 2.0, alarms.THRESHOLD + 1), (-1.0, -0.3, 0.3)])
def test_patience_watches_the_gain_until_the_alarm_rings(monitor, monkeypatch, fall, gain, watched):
    """`val_loss` falls as long as the reward rises unalarmed; a ring is worse than any look before it, however far the reward has risen."""
    shifts = {"red": -fall, "own": gain}
    monkeypatch.setattr(
        monitor_module, "_shift", lambda scores, before: shifts[next(n for n, b in monitor.baseline.items() if b is before)]
    )
    found = monitor(None, 0)
    assert found["alarm"] == fall and found["val_loss"] == watched


def test_snapshots_come_back_in_order(monitor, pipe, tmp_path):
    for step in (9, 19, 4):
        monitor(pipe.transformer, step)
    snapshots = monitor.snapshots()
    pixels = tuning.generate(pipe, TEXTS, **SAMPLE_KWARGS)
    assert list(snapshots) == [4, 9, 19] and np.allclose(snapshots[4], pixels, atol=0.51 / 255)
    monitor.write_snapshots(tmp_path / "snapshots.parquet", [9, 19])
    table = datasets.Dataset.from_parquet(str(tmp_path / "snapshots.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table["step"][:] == [10] * 3 + [20] * 3 and table["prompt"][:] == TEXTS * 2
    assert np.abs(np.asarray(table[0]["image"]).transpose(2, 0, 1) / 255 - pixels[0].numpy()).max() < 0.51 / 255


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
