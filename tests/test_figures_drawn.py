"""Every figure's title follows its numbers; a scorer or generator of one's own, and what was not measured, are drawn or left out."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from conftest import ROOT
from icthp import figures
from icthp.figures import marks, scorers, study, tuned

OWN = "my_rewards.py:EdgeScorer"


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def row(mean, half=0.05, **columns):
    return columns | {"mean": mean, "low": mean - half, "high": mean + half}


def title(figure) -> str:
    return figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")


def labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_yticklabels()]


def texts(axis) -> set[str]:
    return {text.get_text() for text in axis.texts}


# ---- sentences and marks ----------------------------------------------------------------------------------------


def test_names_and_numbers_make_a_sentence():
    assert [figures.listing(names) for names in ([], ["ict"], ["clip", OWN], ["clip", "ict", "hp"])] == [
        "", "ICT", "CLIP and EdgeScorer", "CLIP, ICT and HP"]  # fmt: skip
    assert figures.in_words({"clip": 0.876, "ict": np.nan, OWN: -1}, "+.1f") == "CLIP +0.9, EdgeScorer \u22121.0"
    assert marks.sentence("", "all falls", "", "HP rises") == "All falls; HP rises"


def test_above_and_below_go_by_the_ends_of_intervals():
    rows = pd.DataFrame([row(0.2), row(0.04), row(-0.2)], index=["a", "b", "c"])
    assert figures.above(rows) == ["a"] and figures.below(rows) == ["c"] and figures.above(rows, 0.18) == []


def test_names_at_the_ends_of_lines_do_not_touch():
    _, axis = plt.subplots()
    axis.set_ylim(0, 1)
    marks.name_ends(axis, {"clip": 0.5, "ict": 0.51, "hp": 0.505, "base": 0.1}, 1, gap=0.1)
    heights = {text.get_text(): text.xy[1] for text in axis.texts}
    assert all(abs(a - b) >= 0.0999 for a, b in itertools.combinations(heights.values(), 2)) and heights["untuned"] == 0.1
    assert heights["CLIP"] < heights["HP"] < heights["ICT"]


# ---- scorers ----------------------------------------------------------------------------------------------------


def levels(slopes: dict, scenes=20) -> pd.DataFrame:
    """Scores that change by a slope a level, with noise of a tenth."""
    noise = np.random.default_rng(0).normal(0, 0.1, (len(slopes), scenes, 5))
    return pd.DataFrame([
        {"scorer": name, "style": "short", "scene": scene, "level": level, "richness": level / 4,
         "score": slope * level + noise[i, scene, level]}
        for i, (name, slope) in enumerate(slopes.items()) for scene in range(scenes) for level in range(5)])  # fmt: skip


def test_the_paradox_is_told_from_the_scores():
    frame = levels({"clip": -1, "pickscore": 0, "hp": 1, OWN: 1})
    figure = figures.draw_paradox(frame[frame.scorer == "clip"], frame, "micro")
    assert title(figure) == "Drawn richer, the same scene scores lower with CLIP, and higher with HP and EdgeScorer"
    assert texts(figure.axes[1]) == {"CLIP", "PickScore", "HP", "EdgeScorer"} and texts(figure.axes[0]) == {"short prompt"}
    assert "no differently" in title(figures.draw_paradox(frame[:100], levels({"clip": 0}), "micro"))
    rates = pd.DataFrame([row(0.9), row(0.1)], index=["clip", OWN])
    assert labels(figures.draw_paradox_by_scorer(frame, rates, "micro").axes[1]) == ["CLIP", "EdgeScorer"]


def test_short_and_long_prompts_are_one_colour_and_two_dashes():
    frame = levels({"clip": -1})
    both = pd.concat([frame, frame.assign(style="long", score=0.5)])
    axis = figures.draw_paradox(both, frame, "micro").axes[0]
    assert {line.get_color() for line in axis.lines} == {figures.colour("clip")}
    assert len({line.get_linestyle() for line in axis.lines}) == 2 and texts(axis) == {"short prompt", "long prompt"}


def test_changes_are_measured_within_scenes():
    frame = levels({"clip": 0})
    frame["score"] += 5 * frame.scene - 0.1 * frame.level  # scenes differ far more than levels do
    changes = figures.changes_by_scorer(frame)
    assert changes.loc["clip", "high"] < 0


def accuracies(votes: dict, i3: dict) -> pd.DataFrame:
    means = {"i2_i1": votes, "i3_i2": i3, "i3_i1": i3}
    return pd.DataFrame(
        [row(mean, scorer=name, control="plain", pair=pair) for pair, by_name in means.items() for name, mean in by_name.items()]
    )


def against(peer: str, votes: dict) -> pd.DataFrame:
    return pd.DataFrame([row(value, against=peer, scorer=name, pair="i2_i1", p=0.001 if abs(value) > 0.05 else 0.4)
                         for name, value in votes.items()])  # fmt: skip


def test_accuracy_keeps_votes_apart_and_speaks_of_both():
    frame = accuracies({"clip": 0.6, "ict": 0.62, OWN: 0.4}, {"clip": 0.3, "ict": 0.99, OWN: 0.5})
    figure = figures.draw_accuracy(frame, against("clip", {"ict": 0.02, OWN: -0.2}), "micro")
    assert title(figure) == "On votes below CLIP: EdgeScorer; what holds by construction goes to ICT"
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title().split("\n")[1] for axis in panels] == ["votes", "by construction", "by construction"]
    assert panels[0].get_facecolor() != panels[1].get_facecolor() == panels[2].get_facecolor()
    published = [line for line in panels[0].lines if line.get_marker() == "D" and line.get_markerfacecolor() == "white"]
    assert np.allclose(published[0].get_xdata()[:2], [0.6429, 0.6465]) and np.isnan(published[0].get_xdata()[2])
    assert "no scorer differs from CLIP" in title(figures.draw_accuracy(frame, against("clip", {"ict": 0.02}), "micro"))
    assert title(figures.draw_accuracy(frame, pd.DataFrame(), "lab")) == "What holds by construction goes to ICT"


def test_axes_name_the_best_or_a_coin():
    agreement = pd.DataFrame([row(0.9, axis="alignment", scorer="clip"), row(0.7, axis="alignment", scorer=OWN),
                              row(0.5, axis="quality", scorer="clip"), row(0.52, axis="quality", scorer=OWN)])  # fmt: skip
    figure = figures.draw_axes(agreement, "micro")
    assert title(figure) == "On alignment CLIP agrees best, in 90 % of pairs; on quality no score is better than a coin"
    assert labels(figure.axes[0]) == ["CLIP", "EdgeScorer"]


def audit(**means) -> dict:
    return {f"audit_{pair}_{cue}_acc{end}": value for pair in scorers.AUDITED for cue, mean in means.items()
            for end, value in (("", mean), ("_low", mean - 0.1), ("_high", mean + 0.1))}  # fmt: skip


def test_the_audit_names_the_best_cue_that_beats_a_coin():
    frame = pd.DataFrame({"E1": [0.2, 0.5], "E2": [0.4, 0.6]})
    draw = lambda **means: figures.draw_labels_and_audit(frame, audit(**means), "micro")
    assert "and bytes alone tells I3 from I2 in 80 % of cases" in title(draw(format=0.5, bytes=0.8, all=0.99))
    assert "no simple cue" in title(draw(format=0.5, bytes=0.55, all=0.99))
    assert "no simple cue" in title(figures.draw_labels_and_audit(frame, {}, "lab"))


# ---- tuned generators -------------------------------------------------------------------------------------------

MEASURES = {"jpeg_kb": 2.0, "diversity": 0.2, "score_pickscore": 15.0, "geneval_mean": 0.8, "micro_richness": 0.4}


def effects(moved: dict, measures=MEASURES) -> pd.DataFrame:
    """Generators that differ from the untuned one by so much in every measure, each with an interval of 0.05."""
    return pd.DataFrame([
        row(value + change, model=name, measure=measure, minus=change, minus_low=change - 0.05, minus_high=change + 0.05)
        for measure, value in measures.items() for name, change in ({"base": 0.0} | moved).items()])  # fmt: skip


def test_effects_are_differences_and_their_signs_are_told():
    frame = effects({"clip": -0.2, OWN: 0.3, "ict": 0.01, "first_alone": -0.5})
    figure = figures.draw_effects(frame, "micro")
    assert title(figure) == "Pictures against untuned, richer: EdgeScorer; plainer: CLIP"
    assert labels(figure.axes[0]) == ["CLIP", "EdgeScorer", "ICT"] and len(figure.axes) == 4
    without = frame[~frame.measure.str.startswith("micro")]
    assert title(figures.draw_effects(without, "lab")) == "JPEG files against untuned, larger: EdgeScorer; smaller: CLIP"


def test_geneval_is_a_difference_beside_the_published_one():
    figure = figures.draw_geneval(effects({"clip": -0.2, OWN: 0.01}), "micro")
    assert title(figure) == "GenEval is 0.80 untuned; changes beyond chance: CLIP \u22120.20"
    assert labels(figure.axes[0]) == ["CLIP", "EdgeScorer"]
    published = dict(zip(labels(figure.axes[1]), figure.axes[1].lines[0].get_xdata()))
    assert published["CLIP"] == pytest.approx(0.13 - 0.69) and "untuned" not in published
    assert "no tuning moves it" in title(figures.draw_geneval(effects({OWN: 0.01}), "micro"))


def test_sizes_stand_beside_the_published_ones_where_there_are_any():
    figure = figures.draw_sizes(effects({"hp": 0.5, OWN: -0.2}), "micro")
    assert title(figure) == "JPEG files against untuned: HP +25 % (published +7 %)" and len(figure.axes) == 2
    figure = figures.draw_sizes(effects({OWN: -0.2}, {"jpeg_kb": 2.0}), "lab")  # no measure of quality
    assert title(figure) == "JPEG files change most with EdgeScorer: -10 % against untuned" and len(figure.axes) == 1


def test_votes_are_won_or_lost_by_intervals():
    votes = pd.DataFrame([row(0.5, model="base"), row(0.7, model="hp"), row(0.2, model=OWN), row(0.52, model="ict")])
    figure = figures.draw_votes(votes, "micro")
    assert title(figure) == "HP wins simulated votes against untuned pictures; EdgeScorer loses them"
    assert "wins or loses" in title(figures.draw_votes(votes[votes.model.isin(["base", "ict"])], "micro"))


def tuning_metrics(gain, before_half=0.0245):
    """64 untuned pictures whose rewards have a standard deviation of a tenth."""
    numbers = {"reward_before": (0.5, before_half), "reward_gain": (gain, 0.01), "jpeg_kb_before": (2, 0.1), "jpeg_kb_after": (3, 0.1)}
    ends = {"": 0, "_low": -1, "_high": 1}
    return {f"{name}{end}": mean + sign * half for name, (mean, half) in numbers.items() for end, sign in ends.items()} | {
        "reward_before_n": 64
    }


def test_gains_are_in_standard_deviations_from_step_0():
    history = pd.DataFrame({"step": range(20), "reward": np.linspace(0.5, 0.7, 20), "jpeg_kb": np.linspace(2, 3, 20)})
    metrics = {"clip": tuning_metrics(0.2), OWN: tuning_metrics(-0.001)}
    assert tuned.untuned_deviation(metrics["clip"]) == pytest.approx(0.1)
    figure = figures.draw_tuning({"clip": history, OWN: history}, metrics, "micro")
    assert title(figure) == "Tuning raises the own reward on held-out prompts, in sd: CLIP +2.0; no gain beyond chance on EdgeScorer"
    assert [line.get_ydata()[0] for axis in figure.axes for line in axis.lines[:2]] == [0, 0, 0, 0]
    assert "no gain" in title(figures.draw_tuning({OWN: history[:2]}, {OWN: metrics[OWN]}, "smoke")).lower()


def test_the_detector_is_checked_on_renders_first():
    shares = {("renderer", ""): 1.0, ("i3", "short"): 0.9, ("i3", "long"): 0.1, ("base", "short"): 0.8}
    bars = pd.DataFrame([row(mean, **{"drawn by": name, "prompt": prompt, "kind": kind}) for kind in ("one", "pair")
                         for (name, prompt), mean in shares.items()])  # fmt: skip
    figure = figures.draw_detector_check(bars, "micro")
    assert "100 % of rendered scenes" in title(figure)
    assert title(figure).endswith("from the short prompt: I3's generator 90 %, untuned generator 80 %")
    assert labels(figure.axes[0])[2] == "I3's generator, long prompt"


# ---- pictures ---------------------------------------------------------------------------------------------------


def test_pictures_carry_prompts_scores_and_what_is_fulfilled():
    pictures = {name: torch.rand(3, 3, 8, 8) for name in ("base", "hp", OWN)}
    scores = {name: pd.DataFrame({"clip": [0.6, 0.7, 0.8], "hp": hp}) for name, hp in
              (("base", [0.1, 0.2, 0.3]), ("hp", [0.8, 0.9, 1.0]), (OWN, [0.2, 0.2, 0.2]))}  # fmt: skip
    fulfilled = {"base": [True, True, False], "hp": [True, False, False], OWN: [False] * 3}
    figure = figures.draw_tuned_pictures(pictures, ["a star", "a ring", "a cross"], scores, "micro", fulfilled, columns=2)
    assert title(figure) == "Tuned on HP, pictures score 0.90 on it (0.20 untuned) and fulfil 33 % of the prompts (67 % untuned)"
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["a star", "a ring"] and len(figure.axes) == 6
    assert figure.axes[2].get_xlabel() == "CLIP 0.60 \u2713\nHP 0.80" and figure.axes[3].get_xlabel() == "CLIP 0.70 \u2717\nHP 0.90"
    assert "EdgeScorer" in figure.axes[4].get_ylabel()
    figure = figures.draw_tuned_pictures(pictures, ["a star"], scores, "lab")  # no detector that tells
    assert "fulfil" not in title(figure) and figure.axes[1].get_xlabel() == "CLIP 0.60\nHP 0.80"


# ---- the study --------------------------------------------------------------------------------------------------

HACKED = {"gain": [0, 1, 4], "other_clip": [0, -1, -4], "other_pickscore": [0, -1, -2], "micro_correct": [0.9, 0.8, 0.1]}


def tuning_runs(rows: dict, seeds=(0,)) -> pd.DataFrame:
    """row -> measure -> a value a step; the second seed's share of prompts is a tenth higher."""
    parts = [pd.DataFrame(measured).assign(row=name, seed=seed, step=[0, 20, 40]) for name, measured in rows.items() for seed in seeds]
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(micro_correct=frame.micro_correct + 0.1 * frame.seed)


def test_a_collapse_is_the_own_reward_up_and_prompts_down_from_step_0():
    steady = HACKED | {"gain": [0, 0.1, 0.1], "micro_correct": [0.9, 0.9, 0.85]}
    figure = figures.draw_collapse(tuning_runs({"ict_k1": HACKED, "ict": steady, "clip_k1": steady}, seeds=(0, 1)), "micro")
    assert title(figure) == "ICT rises on the own score while CLIP and PickScore fall; prompts fulfilled go from 0.95 to 0.15 on ICT"
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    solid, dashed = ([line for line in lines if line.get_linestyle() == style] for style in ("-", "--"))
    assert [list(line.get_ydata()) for line in solid] == [[0, 0.1, 0.1], [0, 1, 4]] and solid[0].get_xdata()[0] == 0
    assert [list(line.get_ydata()) for line in dashed] == [[0, -1, -3]]  # CLIP's would be PickScore alone: another set
    assert dashed[0].get_color() == figures.colour("ict") and texts(figure.axes[1]) == {"CLIP", "ICT"}
    assert "while" not in title(figures.draw_collapse(tuning_runs({"clip_k1": steady}), "micro"))


def test_a_reward_of_ones_own_collapses_beside_them():
    figure = figures.draw_collapse(tuning_runs({"ict_k1": HACKED, "edges_k1": HACKED}), "micro")
    assert texts(figure.axes[0]) == texts(figure.axes[1]) == {"ICT", "edges"} and title(figure).startswith("ICT and edges rise on")


def curves(rows: dict, steps=(19, 39)) -> pd.DataFrame:
    """row -> measure -> the mean at each step."""
    found = [{"row": name, "measure": measure, "step": step, "mean": mean} for name, measured in rows.items()
             for measure, means in measured.items() for step, mean in zip(steps, means)]  # fmt: skip
    return pd.DataFrame(found).assign(count=3)


def controls(changes: dict) -> pd.DataFrame:
    frame = pd.DataFrame([row(0.6 + change, stage=stage, row=name, measure=measure, seeds=3, minus=change, minus_low=change - 0.05,
                              minus_high=change + 0.05) for (stage, name, measure), change in changes.items()])  # fmt: skip
    return frame.assign(minus=frame.minus.where(frame.row != "corrected"))


def test_controls_are_in_words_and_share_one_range_a_measure():
    frame = controls({("ict", "corrected", "i2_i1"): 0, ("ict", "units", "i2_i1"): 0.01, ("ict", "units", "paradox_rate"): 0.3,
                      ("ict", "corrected", "paradox_rate"): 0, ("ict", "corrected", "i3_i2"): 0, ("ict", "units", "i3_i2"): 0,
                      ("hp", "corrected", "i2_i1"): 0, ("hp", "text", "i2_i1"): 0.02, ("hp", "text", "paradox_rate"): 0.01})  # fmt: skip
    figure = figures.draw_controls(frame, "micro")
    assert title(figure) == "None of 2 changes moves the votes beyond chance; most of the paradox returns with I3 must earn its label (ICT)"
    assert labels(figure.axes[0]) == ["ICT as here", "I3 must earn its label"]
    assert figure.axes[0].get_xlim() == figure.axes[3].get_xlim()
    assert not any("_" in text for axis in figure.axes for text in labels(axis))


def test_every_control_and_tuned_row_of_the_study_is_in_words():
    found = pd.read_csv(ROOT / "study/controls.csv")
    assert {stage: set(rows.row) for stage, rows in found.groupby("stage")} == {stage: set(rows) for stage, rows in study.CONTROLS.items()}
    assert set(study.REMEDIES) <= set(pd.read_csv(ROOT / "study/tuning.csv").row)


def test_remedies_name_what_raises_utility_most():
    changes = {"base": 0, "hp_k1": -0.4, "hp": 0.1, "icthp": 0.2}
    means = {"micro_utility": (2, 1), "geneval_mean": (0.8, -1), "step_seconds": (1, 0)}
    frame = pd.DataFrame([
        row(start + sign * change, row=name, measure=measure, seeds=3, minus=change, minus_low=change - 0.05, minus_high=change + 0.05)
        for name, change in changes.items() for measure, (start, sign) in means.items()])  # fmt: skip
    assert title(figures.draw_remedies(frame, "micro")) == (
        "ICT-HP, 4 steps, anchor 0.3, raises utility most, 2.00 to 2.20; GenEval goes from 0.80 to 0.60")  # fmt: skip
    assert "Nothing raises" in title(figures.draw_remedies(frame[frame.row.isin(["base", "hp_k1"])], "micro"))


def test_recipes_stand_side_by_side():
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    drawn = pd.DataFrame([{"row": name, "step": step, "prompt": prompt, "image": content.getvalue()} for name in ("hp_k1", "hp", "clip")
                          for step in (20, 40) for prompt in ("a star", "a ring")])  # fmt: skip
    shares = {"hp_k1": {"micro_correct": [0.5, 0.1]}, "hp": {"micro_correct": [0.5, 0.4]}, "clip": {"micro_correct": [0.7, 0.7]}}
    figure = figures.draw_recipes(drawn, curves(shares), "micro")
    assert title(figure) == "All steps and an anchor keep prompts: HP fulfils 40 %, without 10 %"
    assert sum(bool(axis.images) for axis in figure.axes) == 6  # two prompts, three recipes


def test_the_framework_has_no_arrow_from_labels_to_hp():
    from icthp.figures.framework import ARROWS, BOXES

    assert ("triplets", "hp") in ARROWS and ("labels", "hp") not in ARROWS and {name for pair in ARROWS for name in pair} == set(BOXES)
    assert "order" in title(figures.draw_framework())
