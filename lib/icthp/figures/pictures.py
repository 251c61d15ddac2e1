"""Pictures side by side, with prompts above and numbers below: of tuned generators, of recipes of tuning."""

import io
import textwrap

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from PIL import Image

from .drawing import conclude
from .marks import note, order_of, percent
from .palette import colour, label
from .study import REWARDS

ALONE = "last step only, no anchor"
ANCHORED = "all steps and an anchor"


def draw_tuned_pictures(pictures: dict, prompts: list[str], scores: dict[str, pd.DataFrame], scale: str, fulfilled=None, columns=6):
    """A row a generator, a column a prompt, the same noise in a column. Under a picture: CLIP's score, that of the tuned
    reward, and whether the prompt is fulfilled; at the left the share of fulfilled prompts.

    pictures: generator -> (n, 3, h, w) in [0, 1]; scores: generator -> a frame of at least n scores by scorer; fulfilled: generator -> n
    bools, where a detector can tell."""
    names, columns = list(pictures), min(columns, len(prompts))
    figure, axes = plt.subplots(len(names), columns, figsize=(1.35 * columns, 1.7 * len(names)), squeeze=False, layout="constrained")
    for line, name in zip(axes, names):
        for i, axis in enumerate(line):
            _picture(axis, pictures[name][i])
            axis.set_xlabel(_numbers(name, scores[name].iloc[i], fulfilled and fulfilled[name][i]), fontsize=9, labelpad=2)
        line[0].set_ylabel(_of_generator(name, fulfilled), fontsize=10, color=colour(name), fontweight="bold")
    for axis, prompt in zip(axes[0], prompts):
        axis.set_title(textwrap.fill(prompt, 16), fontsize=10, loc="left")
    conclude(figure, _pictures_found(names, scores, fulfilled))
    marks = "; \u2713: the prompt is fulfilled" if fulfilled else ""
    note(figure, f"{scale} scale; below: the scores of CLIP and of the tuned reward{marks}")
    return figure


def _picture(axis, pixels) -> None:
    axis.imshow(np.asarray(pixels).transpose(1, 2, 0).clip(0, 1))
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _numbers(name: str, row: pd.Series, is_fulfilled) -> str:
    """ "CLIP 0.70 \u2713" and, below, the tuned reward's score."""
    mark = "" if is_fulfilled is None else " \u2713" if is_fulfilled else " \u2717"
    own = f"\n{label(name)} {row[name]:.2f}" if name in row.index and name != "clip" else ""
    return f"CLIP {row['clip']:.2f}{mark}{own}"


def _of_generator(name: str, fulfilled: dict | None) -> str:
    text = label(name) if name == "base" or name.startswith("ict_text") else f"tuned on\n{label(name)}"
    return text + (f"\n{percent(np.mean(fulfilled[name]))} \u2713" if fulfilled else "")


def _pictures_found(names: list[str], scores: dict, fulfilled: dict | None) -> str:
    """About the generator that, of those that gained on their own score, fulfils the fewest prompts."""
    base = scores["base"]
    gains = {name: (scores[name][name].mean() - base[name].mean()) / base[name].std() for name in names if name != "base" and name in base}
    gains = {name: gain for name, gain in gains.items() if gain > 0}
    if not gains:
        return "The same prompts and noise, drawn by each generator"
    named = min(gains, key=lambda name: np.mean(fulfilled[name])) if fulfilled else max(gains, key=gains.get)
    text = f"Tuned on {label(named)}, pictures score {scores[named][named].mean():.2f} on it ({base[named].mean():.2f} untuned)"
    if fulfilled:
        text += f" and fulfil {percent(np.mean(fulfilled[named]))} of the prompts ({percent(np.mean(fulfilled['base']))} untuned)"
    return text


# ---- recipes ----------------------------------------------------------------------------------------------------


def draw_recipes(pictures: pd.DataFrame, curves: pd.DataFrame, scale: str):
    """What each reward draws at its last look, a row a reward: at the left DRaFT-1 with nothing that holds, at the right all steps and an
    anchor. pictures: row, step, prompt, image (file contents); curves: as for `draw_collapse`, whose prompts fulfilled stand below."""
    last = pictures[pictures.step == pictures.groupby("row").step.transform("max")]
    names = [name for name in REWARDS if {name, f"{name}_k1"} & set(last.row)]
    prompts = order_of(last.prompt)
    figure, axes = plt.subplots(len(names), 2 * len(prompts) + 1, figsize=(8.5, 1.22 * len(names)), squeeze=False,
                                width_ratios=[1] * len(prompts) + [0.25] + [1] * len(prompts))  # fmt: skip
    figure.subplots_adjust(left=0.01, right=0.99, top=0.86, bottom=0.05, wspace=0.06, hspace=0.3)
    for axis in axes.flat:
        axis.set_axis_off()
    shares = {row: _last_share(curves, row) for row in order_of(last.row)}
    for head, suffix, block in ((ALONE, "_k1", axes[:, : len(prompts)]), (ANCHORED, "", axes[:, len(prompts) + 1 :])):
        for axis, prompt in zip(block[0], prompts):
            axis.set_title(textwrap.fill(prompt, 11), fontsize=9.5, loc="left")
        block[0, 0].text(0, 1.75, head, fontsize=11, fontweight="bold", transform=block[0, 0].transAxes)
        for line, name in zip(block, names):
            _draw_recipe(line, last[last.row == name + suffix].image, name, shares.get(name + suffix))
    conclude(figure, _recipes_found(shares))
    note(figure, f"{scale} scale, one seed's pictures, the same noise; shares: means of {curves['count'].max():.0f} seeds")
    return figure


def _draw_recipe(line, contents, name: str, share: float | None) -> None:
    for axis, content in zip(line, contents):
        _picture(axis, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1) / 255)
    if share is not None:
        text = f"{label(name)}: {percent(share)} of prompts fulfilled"
        line[0].text(0, -0.04, text, va="top", fontsize=10, color=colour(name), transform=line[0].transAxes)


def _last_share(curves: pd.DataFrame, row: str) -> float:
    part = curves[(curves.row == row) & (curves.measure == "micro_correct")].sort_values("step")
    return part["mean"].iloc[-1] if len(part) else float("nan")


def _recipes_found(shares: dict[str, float]) -> str:
    gaps = {row: share - shares[f"{row}_k1"] for row, share in shares.items() if f"{row}_k1" in shares}
    best = max(gaps, key=gaps.get, default=None)
    if best is None or not gaps[best] > 0:
        return "The same prompts and noise, drawn after tuning without and with an anchor"
    return f"{ANCHORED.capitalize()} keep prompts: {label(best)} fulfils {percent(shares[best])}, without {percent(shares[best + '_k1'])}"
