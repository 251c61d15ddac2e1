"""Alarms on curves: levels, collapses and rates by their definitions on curves made by hand; no rule is chosen on the runs that it is
measured on; and the alarm that the monitor has, on the study's own runs."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from conftest import ROOT
from icthp import trainer, tuning
from icthp.tuning import alarm_figures, alarms

STEPS = [0, 5, 10, 15]


def a_run(correct, reward="hp", row="hp", seed=0, **columns):
    """Four looks; what is not given does not move."""
    still = dict.fromkeys(["gain", "other_clip", "other_pickscore", "other_ict", "other_icthp"], 0.0)
    names = {"row": row, "reward": reward, "seed": seed, "step": STEPS, "micro_correct": correct}
    return pd.DataFrame(names | still | {"diversity": 1.0, "kb": 2.0} | columns)


BROKEN = [0.8, 0.8, 0.3, 0.5]  # less than half of it at step 10
WHOLE = [0.8, 0.8, 0.7, 0.8]


# ---- levels -----------------------------------------------------------------------------------------------------


def test_what_shares_nothing_with_the_reward():
    names = ["clip", "pickscore", "ict", "hp", "icthp"]
    assert tuning.independent_names("icthp", names) == ["clip", "pickscore"]
    assert tuning.independent_names("ict", names) == tuning.independent_names("hp", names) == ["clip", "pickscore"]
    assert tuning.independent_names("clip", names) == ["pickscore", "ict", "hp", "icthp"]
    assert tuning.independent_names("my_rewards.py:EdgeScorer", names) == names


@pytest.mark.parametrize(
    ("shifts", "level"),
    [
        ({"clip": -1.0, "pickscore": -2.0}, 2.0),
        ({"clip": -1.0, "ict": -4.0, "hp": 4.0, "icthp": 3.0}, 1.0),  # these three count once, by their mean
        ({"ict": -4.0, "hp": -1.0, "icthp": -1.0, "clip": 0.0}, 2.0),
        ({"clip": 1.0, "pickscore": 0.5}, -0.5),
        ({}, 0.0),
    ],
)
def test_the_lowest_shift(shifts, level):
    assert alarms.lowest_shift(shifts) == pytest.approx(level)


def test_levels_follow_their_definitions():
    run = a_run(BROKEN, gain=[0, 1, 2, 3.0], other_clip=[0, 1, -2, -3.0], other_pickscore=[0, -1, -1, -1.0], other_ict=[0, 2, 4, 1.0],
                other_icthp=[0, 1, 3, 3.0], diversity=[1, 0.9, 0.5, 0.25], kb=[2, 2, 4, 1.0])  # fmt: skip
    levels = alarms.alarm_levels(run, "hp")
    assert levels.index.tolist() == STEPS
    assert levels["mean of all others"].tolist() == pytest.approx([0, -0.75, -1, 0])
    assert levels["mean of independent"].tolist() == pytest.approx([0, 0, 1.5, 2])  # ICT and ICT-HP are none for HP
    assert levels["lowest of independent"].tolist() == pytest.approx([0, 1, 2, 3])
    assert levels["fall from a peak"].tolist() == pytest.approx([0, 1, 3, 4])
    assert levels["CLIP"].tolist() == pytest.approx([0, -1, 2, 3]) and levels["PickScore"].tolist() == pytest.approx([0, 1, 1, 1])
    assert levels["reward less CLIP"].tolist() == pytest.approx([0, 0, 4, 6])
    assert levels["diversity"].tolist() == pytest.approx([0, 0.1, 0.5, 0.75])
    assert levels["JPEG size"].tolist() == pytest.approx([0, 0, np.log(2), np.log(2)])


def test_an_alarm_that_listens_to_the_reward_itself_hears_nothing():
    run = a_run(BROKEN, reward="clip", gain=[0, 1, 2, 3.0], other_clip=None, other_ict=[0, -1, -4, -4.0])
    levels = alarms.alarm_levels(run, "clip")
    assert (levels["CLIP"] <= 0).all() and (levels["reward less CLIP"] == 0).all()
    assert levels["mean of independent"].tolist() == levels["mean of all others"].tolist() == pytest.approx([0, 1 / 3, 4 / 3, 4 / 3])


# ---- the truth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drop", "step"), [(0.1, 10), (0.5, 10), (0.6, 10), (0.7, np.nan)])
def test_a_collapse_is_the_first_look_that_lost_more_than_a_share(drop, step):
    assert alarms.collapse_step(a_run(BROKEN), drop=drop) == pytest.approx(step, nan_ok=True)
    assert np.isnan(alarms.collapse_step(a_run(WHOLE), drop=0.2))
    assert alarms.collapse_step(a_run(WHOLE, micro_utility=[2, 0.5, 0.5, 2]), measure="micro_utility", drop=drop) == 5


def test_a_ring_is_the_first_look_above_the_threshold():
    level = pd.Series([0, 2.0, 1.0, 3.0], STEPS)
    assert alarms.first_ring(level, 1.5) == 5 and alarms.first_ring(level, 2.0) == 15 and np.isnan(alarms.first_ring(level, 3.0))


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_patience_ends_a_run_where_the_training_loop_does(seed, patience):
    rng = np.random.default_rng(seed)
    gain, fall = rng.normal(size=11).cumsum(), 1.5 + rng.normal(size=11).cumsum()
    run = pd.DataFrame({"step": np.arange(11) * 5, "gain": gain, "other_clip": -fall, "other_pickscore": 0.0, "micro_correct": 0.5,
                        "diversity": 1.0, "kb": 1.0})  # fmt: skip
    losses = [alarms.watched(*pair) for pair in zip(gain[1:], fall.clip(0)[1:])]
    model = torch.nn.Linear(1, 1)
    history = trainer.train(model, lambda model, i: (model.weight.sum(), {}), steps=10, lr=0.1, validate=lambda _, i: losses[i],
                            validate_every=1, patience=patience)  # fmt: skip
    found = alarms.with_patience(run, "hp", patience)
    validated = [record["val_loss"] for record in history]
    assert found["stop"] == 5 * len(history) and found["best"] == 5 * (1 + int(np.argmin(validated)))


def test_the_best_weights_are_those_before_the_ring():
    run = a_run(BROKEN, gain=[0, 1, 2, 3.0], other_clip=[0, -1, -alarms.THRESHOLD - 1, -9.0])
    assert alarms.with_patience(run, "hp", 1) == {"stop": 10, "best": 5, "gain": pytest.approx(1 / 3), "correct": 1}
    silent = alarms.with_patience(run.assign(other_clip=0.0), "hp", 1)
    assert silent == {"stop": 15, "best": 15, "gain": 1, "correct": pytest.approx(0.5 / 0.8)}


# ---- alarms against the truth -----------------------------------------------------------------------------------


@pytest.fixture
def runs():
    """HP collapses, and CLIP falls with it, but far only afterwards; ICT does not, and CLIP falls a little."""
    falls = {"other_clip": [0, -1, -2, -9.0]}
    return pd.concat([a_run(BROKEN, seed=0, **falls), a_run(BROKEN, seed=1, **falls), a_run(WHOLE, seed=2, other_clip=[0, 0, -1, -1.0]),
                      a_run(WHOLE, reward="ict", row="ict", other_clip=[0, 0, -1.5, 0.0])])  # fmt: skip


def test_peaks_end_at_the_collapse(runs):
    found = alarms.peaks(runs).query("alarm == 'CLIP'").set_index(["row", "seed"])
    assert found.peak.tolist() == [2, 2, 1, 1.5] and found.collapse.tolist()[:2] == [10, 10] and found.collapse.isna().sum() == 2


def test_counts_and_leads(runs):
    peaks = alarms.peaks(runs).query("alarm == 'CLIP'")
    assert alarms.counts(peaks, 1.2) == {"noticed": 2, "collapsing": 2, "false": 1, "calm": 2}
    assert alarms.counts(peaks, 5) == {"noticed": 0, "collapsing": 2, "false": 0, "calm": 2}
    assert alarms.leads(runs, "CLIP", 0.5).lead.tolist()[:2] == [5, 5]  # steps before the collapse
    late = alarms.leads(runs, "CLIP", 5)
    assert late.lead.tolist()[:2] == [-5, -5] and late.ring.isna().sum() == 2


def test_exact_intervals():
    assert alarms.exact_ci(0, 10) == pytest.approx((0, 1 - 0.025**0.1)) and alarms.exact_ci(10, 10) == pytest.approx((0.025**0.1, 1))
    assert alarms.exact_ci(0, 0) == (0, 1)


def test_a_count_in_words():
    assert alarms.format_count(9, 12) == "9 of 12 [0.43, 0.95]"


def test_alarms_are_compared_at_their_best_thresholds(runs):
    found = alarms.compare(runs)
    assert found.area.is_monotonic_decreasing and found.area["CLIP"] == 1 and found.area["PickScore"] == 0.5
    assert found.loc["CLIP", ["threshold", "noticed", "false", "lead"]].tolist() == [1.75, 2, 0, 0]
    assert alarms.compare(runs, drop=0.7).collapsing.tolist() == [0] * len(found)


def some_peaks(values, collapsing, alarm="a", reward="hp"):
    collapse = [10.0 if c else np.nan for c in collapsing]
    return pd.DataFrame({"row": reward, "reward": reward, "seed": range(len(values)), "alarm": alarm, "peak": values, "collapse": collapse})


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_how_often_a_collapsing_run_peaks_higher(seed):
    rng = np.random.default_rng(seed)
    values, collapsing = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.4
    curve = alarms.roc(some_peaks(values, collapsing))
    pairs = list(itertools.product(values[collapsing], values[~collapsing]))
    assert alarms.area(curve) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert curve.threshold.is_monotonic_decreasing and curve.hit.is_monotonic_increasing and curve.false.is_monotonic_increasing
    assert curve[["hit", "false"]].iloc[[0, -1]].values.tolist() == [[0, 0], [1, 1]]


def test_the_best_threshold_lies_in_the_gap():
    assert alarms.best_threshold(some_peaks([1, 2, 5, 7.0], [False, False, True, True])) == (3.5, 1.0)
    threshold, gain = alarms.best_threshold(some_peaks([1, 6, 5, 7.0], [False, False, True, True]))
    assert (threshold, gain) == (6.5, 0.5)  # of two equally good ones the higher


def test_a_threshold_is_never_chosen_on_the_runs_that_it_is_measured_on():
    """What is high for HP is low for ICT: the threshold of each comes from the other, and fails."""
    sides = [False, False, True, True]
    peaks = pd.concat([some_peaks([5, 6, 9, 10.0], sides, reward="hp"), some_peaks([0, 1, 2, 3.0], sides, reward="ict")])
    found = alarms.leave_one_out(peaks).set_index("reward")
    assert found.threshold.to_dict() == {"hp": 1.5, "ict": 7.5}
    assert found.loc["hp", ["noticed", "collapsing", "false", "calm"]].tolist() == [2, 2, 2, 2]
    assert found.loc["ict", ["noticed", "collapsing", "false", "calm"]].tolist() == [0, 2, 0, 2]


# ---- figures ----------------------------------------------------------------------------------------------------


def test_the_figure_of_a_run_marks_every_ring(tmp_path):
    picture = io.BytesIO()
    plt.imsave(picture, np.zeros((4, 4, 3)), format="jpg")
    pictures = pd.DataFrame({"step": [5, 10], "prompt": "a red circle", "image": picture.getvalue()})
    run = a_run(BROKEN, reward="EdgeScorer", gain=[0, 1, 2, 3.0], other_clip=[0, 0, -5, -5.0], other_hp=[0, 2, 2, 2.0])
    figure = alarm_figures.draw_run(run, pd.Series({"CLIP": 10.0, "never": np.nan, "early": 5.0}), pictures, "edges")
    _, scores, share, rings = figure.axes
    assert [label.get_text() for label in rings.get_yticklabels()] == ["never", "CLIP", "early"]  # from the last to the first
    marks = {line.get_ydata()[0]: line.get_xdata()[0] for line in rings.lines}
    assert marks[2] == 5 and marks[1] == 10 and marks[0] > 15
    assert any(np.allclose(line.get_ydata(), [0, 1, 2, 3]) for line in scores.lines) and np.allclose(share.lines[0].get_ydata(), BROKEN)
    title = figure.get_suptitle().replace("\n", " ")
    assert "break at step 10" in title and "highest at step 5, +0.4 sd" in title
    plt.close(figure)


def test_the_figure_of_all_alarms_draws_their_curves_and_leads(runs):
    summary = alarms.compare(runs)
    figure = alarm_figures.draw_alarms(runs, summary)
    roc_axis, lead_axis = figure.axes
    drawn = {line.get_label(): line for line in roc_axis.lines}
    curve = alarms.roc(alarms.peaks(runs).query("alarm == 'CLIP'"))
    assert drawn.keys() == alarm_figures.STYLES.keys() and np.allclose(drawn["CLIP"].get_ydata(), curve.hit)
    height = [label.get_text() for label in lead_axis.get_yticklabels()].index("CLIP")
    points = [line.get_xdata() for line in lead_axis.lines if len(line.get_xdata()) == 2 and abs(line.get_ydata()[0] - height) < 0.5]
    assert [0, 0] in [list(x) for x in points]  # CLIP rings at the collapse, in both runs
    plt.close(figure)


# ---- the study --------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study/tuning.py in an empty project, with a run of one row, as notebook 05 leaves it, for a reward in a file."""
    monkeypatch.syspath_prepend(ROOT / "study")
    import tuning as study

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    folder = tmp_path / "runs/edges-2/notebooks/examples/edges.py:EdgeScorer"
    folder.mkdir(parents=True)
    history = pd.DataFrame({"step": range(10), "val_loss": [np.nan] * 4 + [1.0] + [np.nan] * 4 + [2.0], "gain": 1.5, "kb": 3.0})
    history.to_parquet(folder / "history.parquet")
    (folder / "untuned.json").write_text('{"val_loss": 0.0, "gain": 0.0, "kb": 2.0}', encoding="utf-8")
    return study


def test_the_study_keeps_each_run_with_its_untuned_look(study):
    found = study.run_curves({"edges": {"reward": "notebooks/examples/edges.py:EdgeScorer"}})
    assert found.columns.tolist() == ["row", "reward", "seed", "step", *study.RUN_CURVES]
    assert found.step.tolist() == [0, 5, 10] and found.gain.tolist() == [0, 1.5, 1.5] and found.kb.tolist() == [2, 3, 3]
    assert set(zip(found.row, found.reward, found.seed)) == {("edges", "EdgeScorer", 2)}
    assert study.curves(["edges"], 10).step.unique().tolist() == [9]


def test_rows_that_were_not_run_again_stay_in_the_tables(study, tmp_path):
    """Line by line, with their commit; a line that says the same again keeps its own, one that says another thing is new."""
    earlier = pd.DataFrame(
        {"row": ["clip", "hp", "hp"], "step": [19, 19, 39], "mean": [0.5, 0.25, np.nan], "commit": "old", "machine": "m"}
    )
    earlier.to_csv("curves.csv", index=False)
    study.write(pd.DataFrame({"row": ["hp", "hp", "edges"], "step": [19, 39, 19], "mean": [0.3, np.nan, 0.1]}), "curves.csv")
    found = pd.read_csv("curves.csv")
    assert found.row.tolist() == ["clip", "hp", "hp", "edges"] and found["mean"].fillna(-1).tolist() == [0.5, 0.3, -1, 0.1]
    assert (found.commit == "old").tolist() == [True, False, True, False] and not list(tmp_path.glob("*.new.csv"))


RUNS = pd.read_csv(ROOT / "study/tuning_runs.csv")


def test_the_alarm_of_the_monitor_on_the_runs_of_the_study():
    """It notices far more collapses than the mean of all other scores, and the threshold is near the one that these runs choose."""
    peaks = alarms.peaks(RUNS)
    summary = alarms.compare(RUNS)
    rule = alarms.counts(peaks[peaks.alarm == "lowest of independent"], alarms.THRESHOLD)
    assert rule["noticed"] >= 0.9 * rule["collapsing"] >= 9 and rule["false"] <= 0.15 * rule["calm"]
    assert rule["noticed"] > 2 * summary.noticed["mean of all others"] and summary.area["lowest of independent"] > 0.95
    assert alarms.THRESHOLD == pytest.approx(summary.threshold["lowest of independent"], abs=0.2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_toy_reward_masks_the_mean(seed):
    """Just before the pictures break the mean of all other scores stands above the untuned generator's; CLIP and PickScore have fallen."""
    run = RUNS[(RUNS.row == "edges_k1") & (RUNS.seed == seed)]
    collapse = alarms.collapse_step(run)
    before = alarms.alarm_levels(run, "EdgeScorer").loc[collapse - 5]
    assert collapse > 40 and before["mean of all others"] < 0 < min(before["CLIP"], before["PickScore"])
    assert run.gain.iloc[-1] > 10 and run.micro_correct.iloc[-1] < 0.1


def test_patience_keeps_unbroken_weights_on_the_runs_of_the_study():
    unbroken = [alarms.with_patience(run, key[1], patience=2)["correct"] >= 0.5 for key, run in RUNS.groupby(alarms.RUN, sort=False)]
    assert np.mean(unbroken) > 0.95
