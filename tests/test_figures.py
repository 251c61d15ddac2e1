import numpy as np
import torch
from matplotlib import pyplot as plt

from icthp import figures


def test_gallery_shows_each_picture_where_it_belongs():
    pixels = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 8, 6)
    figure = figures.show(pixels, [f"title {i}" for i in range(5)], columns=3, rows=["first", "second"])
    shown = [axis.images[0].get_array()[0, 0, 0] for axis in figure.axes if axis.images]
    assert np.allclose(shown, torch.linspace(0, 1, 5)) and len(figure.axes) == 6
    assert [axis.get_ylabel() for axis in figure.axes][::3] == ["first", "second"]
    assert figure.axes[4].get_xlabel() == "title 4"
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
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
