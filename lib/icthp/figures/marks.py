"""What several figures are made of: names and numbers in a sentence, names beside the ends of lines, notes, rows of points."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from .palette import colour, label, marker

# ---- sentences --------------------------------------------------------------------------------------------------


def order_of(column: Iterable) -> list:
    """The values of a column, in order of first appearance."""
    return list(dict.fromkeys(column))


def listing(names: Iterable[str]) -> str:
    """Scorers or generators in a sentence: "CLIP, ICT and HP"."""
    *first, last = [label(name) for name in names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def verb(word: str, names: list) -> str:
    """ "win", of one name "wins"."""
    return word + "s" * (len(names) == 1)


def in_words(values: Mapping[str, float], form: str = ".2f") -> str:
    """Numbers of scorers or generators in a sentence: "CLIP 0.88, ICT 0.19"; a missing one is left out."""
    numbers = {name: f"{value:{form}}".replace("-", "\u2212") for name, value in dict(values).items() if value == value}
    return ", ".join(f"{label(name)} {number}" for name, number in numbers.items())


def percent(value: float) -> str:
    """ "73 %", whose parts stay in one line."""
    return f"{100 * value:.0f}\u00a0%"


def sentence(*parts: str) -> str:
    """The parts that say something, joined by semicolons, with a capital."""
    text = "; ".join(part for part in parts if part)
    return text[:1].upper() + text[1:]


def above(rows: pd.DataFrame, value: float = 0) -> list:
    """Names (the index) of the rows whose interval lies above the value."""
    return list(rows.index[rows["low"] > value])


def below(rows: pd.DataFrame, value: float = 0) -> list:
    """Names (the index) of the rows whose interval lies below the value."""
    return list(rows.index[rows["high"] < value])


def minus(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a paired difference, with that as mean, low and high in the place of the value itself."""
    rows = rows.dropna(subset="minus").drop(columns=["mean", "low", "high"])
    return rows.rename(columns={"minus": "mean", "minus_low": "low", "minus_high": "high"})


# ---- panels -----------------------------------------------------------------------------------------------------


def side_by_side(count: int, width: float = 8, height: float = 3.2, **options):
    """A figure of panels that share nothing but a look, and its axes."""
    figure, axes = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False, **options)
    figure.get_layout_engine().set(wspace=0.06)
    return figure, list(axes[0])


def note(figure, text: str) -> None:
    """What the numbers are, small, below the figure: scale, interval, what a hollow mark means."""
    figure.text(0.01, -0.02, text, ha="left", va="top", fontsize=9, color="0.35")


def chance(axis, value: float = 0.5) -> None:
    """A dotted line where a coin would be."""
    axis.axvline(value, color="0.2", lw=1.5, ls=":", zorder=1)


# ---- lines ------------------------------------------------------------------------------------------------------


def name_ends(axis, ends: Mapping[str, float], x: float, gap: float = 0.07, **text) -> None:
    """Names of lines beside their ends (name -> y) at x, moved apart so that each is legible. gap: the least distance of two names, as a
    part of the axis."""
    for name, y in apart(dict(ends), gap * np.ptp(axis.get_ylim())).items():
        style = {"color": colour(name), "fontsize": 10} | text
        axis.annotate(label(name), (x, y), xytext=(6, 0), textcoords="offset points", va="center", annotation_clip=False, **style)


def apart(heights: dict[str, float], step: float) -> dict[str, float]:
    """Heights by name, each at least a step from the next, as near as that allows to where they were."""
    names = sorted(heights, key=heights.get)
    y = np.array([heights[name] for name in names], dtype=float)
    for _ in range(200):
        missing = np.clip(step - np.diff(y), 0, None)
        if missing.max(initial=0) < 1e-6 * step:
            break
        y = y + np.append(0, missing / 2) - np.append(missing / 2, 0)
    return dict(zip(names, y.tolist()))


# ---- rows of points ---------------------------------------------------------------------------------------------


def whiskers(rows) -> list:
    """How far the interval reaches below and above the mean: of a frame two columns, of one row two lists of one number."""
    lower, upper = rows["mean"] - rows["low"], rows["high"] - rows["mean"]
    return [lower, upper] if isinstance(lower, pd.Series) else [[lower], [upper]]


def points(axis, rows: pd.DataFrame, names, shift: float = 0, **style) -> None:
    """A row of a frame with mean, low and high each line, from top to bottom, in the colour and with the marker of its name."""
    for y, name, row in zip(heights_of(names), names, rows.to_dict("records")):
        options = {"fmt": marker(name), "color": colour(name), "ms": 7, "elinewidth": 2} | style
        axis.errorbar(row["mean"], y + shift, xerr=whiskers(row), **options)


def rows_of(axis, names, is_named: bool = True, **text) -> None:
    """The lines of an axis for `points`: names at the left, or none."""
    axis.set_yticks(heights_of(names), [label(name) for name in names] if is_named else [""] * len(names), **text)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(visible=False, axis="y")


def heights_of(names) -> np.ndarray:
    """The y of each line, from top to bottom."""
    return np.arange(len(names))[::-1]
