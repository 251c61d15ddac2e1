"""Tables of results: cells with intervals, our names in words, what is missing stays missing; the index of figures."""

import pandas as pd

from conftest import ROOT
from icthp import figures

OWN = "my_rewards.py:EdgeScorer"


def row(mean, half=0.05, **columns):
    return columns | {"mean": mean, "low": mean - half, "high": mean + half}


def test_accuracy_has_both_means_and_the_p():
    means = {"i2_i1": 0.6, "i3_i2": 0.3, "i3_i1": 0.3}
    accuracy = pd.DataFrame([row(mean, scorer=name, control=control, pair=pair) for name in ("clip", "ict", OWN)
                             for control in ("plain", "shuffled") for pair, mean in means.items()])  # fmt: skip
    versus = pd.DataFrame([row(0.1, against=peer, scorer=name, pair="i2_i1", p=p)
                           for peer, name, p in (("clip", "ict", 0.001), ("clip", OWN, 0.5), ("pickscore", "clip", 0.7))])  # fmt: skip
    table = figures.tabulate_accuracy(accuracy, versus)
    assert list(table.index) == ["CLIP", "ICT", "EdgeScorer"] and table.loc["CLIP", "I2 > I1 (votes)"] == "0.60 [0.55, 0.65]"
    assert table.loc["ICT", "mean of the columns"] == "0.40" and table.loc["ICT", "published, mean of the columns"] == "0.88"
    assert list(table["p, I2 > I1 against CLIP"].fillna("")) == ["", "< 0.01", "0.50"]
    assert pd.isna(table.loc["EdgeScorer", "published, I2 > I1"])
    assert figures.tabulate_accuracy(accuracy, pd.DataFrame())["p, I2 > I1 against CLIP"].isna().all()  # one scorer alone has no versus


def tuned(*models) -> pd.DataFrame:
    rows = [row(0.5, model=model, measure=measure, minus=-0.1, minus_low=-0.2, minus_high=0.0) for model in models
            for measure in ("geneval_colors", "geneval_mean", "jpeg_kb", "score_clip")]  # fmt: skip
    return pd.DataFrame(rows)


def test_tuned_generators_are_columns_in_words():
    table = figures.tabulate_tuned(tuned("base", OWN, "first_alone"))
    assert list(table.columns) == ["untuned", "EdgeScorer"] and list(table.index) == ["jpeg_kb", "score_clip"]


def test_small_numbers_have_digits_that_say_something():
    means_of = {"sharpness": (0.0051, 0.0112), "kb": (1.9, 0.05)}
    rows = pd.DataFrame([row(mean, 0.001, model=model, measure=measure) for measure, means in means_of.items()
                         for model, mean in zip(("base", "hp"), means)])  # fmt: skip
    table = figures.pivot_cells(rows, "measure", "model")
    assert list(table.loc["sharpness"]) == ["0.005 [0.004, 0.006]", "0.011 [0.010, 0.012]"] and table.loc["kb", "hp"] == "0.05 [0.05, 0.05]"


def test_geneval_joins_the_published_rows():
    table = figures.tabulate_geneval(tuned("base", OWN))
    assert list(table.index[:2]) == ["untuned", "EdgeScorer"] and {"PickScore", "ImageReward"} < set(table.index)
    assert table.loc["untuned", "published_mean"] == "0.69" and table.loc["EdgeScorer", "colors"] == "0.50 [0.45, 0.55]"
    assert pd.isna(table.loc["EdgeScorer", "published_mean"]) and pd.isna(table.loc["PickScore", "colors"])


def test_the_transfer_stands_beside_its_differences_or_nowhere():
    table = figures.tabulate_transfer(tuned("base", "ict_text", "clip"))
    assert list(table.index) == ["untuned", "ICT's text tower"]
    assert table.loc["ICT's text tower", "geneval_mean, less"] == "-0.10 [-0.20, 0.00]" and "jpeg_kb" not in table
    assert figures.tabulate_transfer(tuned("base", "clip")).empty


def test_the_studys_tables_have_a_row_each():
    controls, effects = (pd.read_csv(ROOT / f"study/{name}.csv") for name in ("controls", "tuning"))
    table = figures.tabulate_controls(controls)
    assert list(table.index) == list(dict.fromkeys(zip(controls.stage, controls.row))) and table["i2_i1"].notna().all()
    table = figures.tabulate_tuning(effects)
    assert list(table.index) == list(dict.fromkeys(effects.row)) and pd.isna(table.loc["base", "step_seconds"])


def test_the_index_has_figures_and_tables_in_the_order_of_the_story(tmp_path):
    for name in ("fig5_axes.png", "fig5_axes.pdf", "fig1_paradox.png", "own.png", "accuracy.csv", "accuracy.tex"):
        (tmp_path / name).touch()
    found = figures.index(tmp_path)
    assert found.kind.to_dict() == {"fig1_paradox": "figure", "fig5_axes": "figure", "accuracy": "table", "own": "figure"}
    assert list(found.index) == ["fig1_paradox", "fig5_axes", "accuracy", "own"]
    assert found.shows["fig5_axes"] == figures.CAPTIONS["fig5_axes"] and found.shows["own"] == ""


def test_every_file_that_notebook_07_writes_has_a_caption():
    source = (ROOT / "notebooks/07_figures.ipynb").read_text(encoding="utf-8")
    assert not [name for name in figures.CAPTIONS if f'\\"{name}\\"' not in source]
