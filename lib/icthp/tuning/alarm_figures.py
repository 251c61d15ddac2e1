"""Two figures about alarms: one run with every alarm's first ring, and all alarms compared."""

import io
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from icthp import figures
from icthp.figures.marks import name_ends
from icthp.tuning import alarms

STYLES = {"lowest of independent": ("#b2182b", "-"), "CLIP": (figures.colour("clip"), "-"), "mean of independent": ("0.1", ":"),
          "mean of all others": ("0.45", "--"), "diversity": ("0.6", "-."), "JPEG size": ("0.75", "-")}  # fmt: skip
MEAN = "mean of all others"
HALF = 9  # of a picture's width, in steps


def draw_run(run: pd.DataFrame, rings: pd.Series, pictures: pd.DataFrame, name: str):
    """From top to bottom: pictures, scores, the share of prompts fulfilled, and the first ring of each alarm; grey from the collapse on.

    run: of tuning.alarms, for a reward in a file; rings: alarm -> step, NaN for never; pictures: step, prompt, image (contents of a JPEG
    file), of one prompt; name: of the reward."""
    curves = run.set_index("step")
    last = curves.index[-1]
    figure, axes = plt.subplots(4, 1, figsize=(7.5, 8.4), sharex=True, height_ratios=[1.1, 2.2, 1.1, 2], layout="constrained")
    picture_axis, score_axis, share_axis, ring_axis = axes
    _draw_pictures(picture_axis, pictures)
    mean = -alarms.alarm_levels(run, run.reward.iloc[0])[MEAN]
    _draw_scores(score_axis, curves, mean, f"{name}, the reward")
    share_axis.plot(curves.micro_correct, "k-o", ms=5)
    share_axis.set(ylabel="prompts\nfulfilled", ylim=(-0.05, 1.05), yticks=[0, 0.5, 1])
    _draw_rings(ring_axis, rings, last)
    ring_axis.set(xlabel=f"steps of tuning on {name} (micro scale; hollow: never rings)", xticks=np.linspace(0, last, 5))
    collapse = alarms.collapse_step(run)
    for axis in axes[1:]:
        axis.axvspan(collapse, last, color="0.9", zorder=0)
    figures.conclude(figure, f"The pictures break at step {collapse:.0f}. The mean of all others is highest at step {mean.idxmax()}, "
                             f"{mean.max():+.1f} sd from the untuned")  # fmt: skip
    return figure


def _draw_pictures(axis, pictures: pd.DataFrame) -> None:
    for step, file in zip(pictures.step, pictures.image):
        axis.imshow(plt.imread(io.BytesIO(file), "jpg"), extent=(step - HALF, step + HALF, 0, 1), aspect="auto")
    axis.set(yticks=[], ylim=(0, 1))
    axis.set_title(" ".join(pictures.prompt[:1]), loc="left")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(bottom=False)


def _draw_scores(axis, curves: pd.DataFrame, mean: pd.Series, reward: str) -> None:
    lines = {reward: curves.gain, MEAN: mean} | {name: curves[f"other_{name}"] for name in ("hp", "ict", "clip")}
    heavy = {reward: {"color": "k", "lw": 3}, MEAN: {"color": "0.45", "lw": 3, "ls": "--"}}
    for name, line in lines.items():
        axis.plot(line, **heavy.get(name, {"color": figures.colour(name), "marker": figures.marker(name), "ms": 5}))
    last = curves.index[-1]
    axis.set(ylabel="score, sd of untuned", xlim=(0, 1.35 * last))
    name_ends(axis, {name: line.iloc[-1] for name, line in lines.items()}, last)


def _draw_rings(axis, rings: pd.Series, last: float) -> None:
    rings = rings.sort_values(kind="stable")
    for y, step in enumerate(rings[::-1]):
        never = np.isnan(step)
        axis.plot(last + 4 if never else step, y, "kv", ms=8, mfc="white" if never else "k", clip_on=False)
    _name_lines(axis, rings.index)


def _name_lines(axis, names: Iterable[str]) -> None:
    """A name a line, from top to bottom."""
    names = list(names)[::-1]
    axis.set(yticks=range(len(names)), ylim=(-0.7, len(names) - 0.3))
    axis.set_yticklabels(names, fontsize=9)


def draw_alarms(runs: pd.DataFrame, summary: pd.DataFrame):
    """Left, for every threshold, collapses noticed in time over false alarms; right, how many steps before the collapse each alarm rings at
    its threshold, a point a run. summary: `alarms.compare` of the runs."""
    figure, (roc_axis, lead_axis) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    peaks = alarms.peaks(runs)
    for height, (alarm, (colour, dashes)) in enumerate(reversed(STYLES.items())):
        curve = alarms.roc(peaks[peaks.alarm == alarm])
        roc_axis.step(curve.false, curve.hit, where="post", color=colour, ls=dashes, lw=2.5, label=alarm)
        leads = alarms.leads(runs, alarm, summary.threshold[alarm]).dropna(subset="collapse").lead.sort_values()
        lead_axis.plot(leads, height + np.linspace(-0.3, 0.3, len(leads)), "o", color=colour, ms=4)
        lead_axis.plot(leads.median(), height, "|", color="k", ms=20, mew=2.5)
    roc_axis.set(xlabel="false alarms, of calm runs (micro scale)", ylabel="noticed in time, of collapses", xlim=(-0.02, 1), ylim=(0, 1.03))
    roc_axis.legend(fontsize=9, loc="lower right", reverse=True)
    lead_axis.axvline(0, color="k", lw=1)
    lead_axis.set(xlabel="steps from ring to collapse (bar: median)")
    _name_lines(lead_axis, STYLES)
    lowest, mean = summary.area["lowest of independent"], summary.area[MEAN]
    figures.conclude(figure, f"The lowest independent score tells collapsing runs from calm ones: {lowest:.2f} of the area is below its "
                             f"curve; the mean of all others has {mean:.2f}")  # fmt: skip
    return figure
