import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt

from icthp import figures


def test_a_grid_has_each_picture_in_its_place():
    pixels = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 8, 6)
    figure = figures.image_grid(pixels, [f"title {i}" for i in range(5)], columns=3, rows=["first", "second"])
    corners = [axis.images[0].get_array()[0, 0, 0] for axis in figure.axes if axis.images]
    assert np.allclose(corners, torch.linspace(0, 1, 5)) and len(figure.axes) == 6
    assert [axis.get_ylabel() for axis in figure.axes][::3] == ["first", "second"]
    assert figure.axes[4].get_xlabel() == "title 4"
    plt.close(figure)


def test_lines_of_a_title_stay_apart():
    figure = figures.image_grid(torch.zeros(1, 3, 8, 8), ["CLIP 0.857\nPickScore 16.2\n" + "a long prompt " * 3], columns=1)
    assert figure.axes[0].get_xlabel().splitlines()[:2] == ["CLIP 0.857", "PickScore 16.2"]
    assert len(figure.axes[0].get_xlabel().splitlines()) == 4
    plt.close(figure)


def test_a_figure_is_the_same_file_each_time(tmp_path):
    def draw(folder):
        figure, axis = plt.subplots()
        axis.plot([0, 1], [1, 0])
        png = figures.save(figure, "f", folder)
        plt.close(figure)
        return png.read_bytes(), png.with_suffix(".pdf").read_bytes()

    assert draw(tmp_path / "a") == draw(tmp_path / "b")


def test_every_scorer_has_a_name_and_colours_differ():
    assert set(figures.COLOURS) <= set(figures.NAMES)
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS) == len(set(figures.MARKERS.values()))


def test_a_table_is_written_in_three_formats(tmp_path):
    frame = pd.DataFrame({"a_b": ["0.5 [0.4, 0.6]", None], "c %": [1, 2]}, index=["CLIP", "I2 > I1"])
    figures.table(frame, "t", tmp_path, "What it says.")
    assert pd.read_csv(tmp_path / "t.csv", index_col=0).loc["CLIP", "a_b"] == "0.5 [0.4, 0.6]"
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "What it says." and lines[-1].replace(" ", "") == "|I2>I1||2|"
    latex = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert r"a\_b & c \%" in latex and r"\toprule" in latex and "nan" not in latex.lower() and r"\caption{What it says.}" in latex


def test_a_forest_reads_from_top_to_bottom():
    rows = pd.DataFrame({"mean": [0.1, 0.9], "low": [0.0, 0.8], "high": [0.2, 1.0]})
    figure, axis = plt.subplots()
    figures.forest(axis, rows, ["first", "second"], "t", ["r", "b"])
    assert dict(zip([t.get_text() for t in axis.get_yticklabels()], axis.get_yticks())) == {"first": 1, "second": 0}
    assert axis.collections[-1].get_offsets().tolist() == [[0.1, 1], [0.9, 0]]
    plt.close(figure)


def test_an_interval_as_text_of_any_row():
    row = {"mean": 0.6123, "low": 0.55, "high": 0.661}
    assert (
        figures.format_ci(row) == figures.format_ci(pd.Series(row)) == "0.61 [0.55, 0.66]" and figures.format_ci(row, 1) == "0.6 [0.6, 0.7]"
    )


def test_a_scorer_of_a_file_has_a_label_a_colour_and_a_marker():
    name = "rewards/edge.py:EdgeScorer"
    assert figures.label("icthp") == "ICT-HP" and figures.label(name) == "EdgeScorer"
    assert figures.colour(name) not in figures.COLOURS.values() and figures.marker(name) not in figures.MARKERS.values()
