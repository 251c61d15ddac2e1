"""Figures about scorers: the paradox, the label hierarchy and its shortcuts, preference accuracy, two axes apart."""

import pandas as pd
import seaborn as sns

from .drawing import conclude
from .marks import (
    above,
    below,
    chance,
    heights_of,
    listing,
    name_ends,
    note,
    order_of,
    percent,
    points,
    rows_of,
    sentence,
    side_by_side,
    whiskers,
)  # fmt: skip
from .palette import colour, label, marker
from .published import ACCURACY

CUES = {"format": "file format", "bytes": "bytes", "colour": "colour", "edges": "edges", "spectrum": "spectrum", "all": "all together"}
AUDITED = {"i2_i1": ("o", "white", "I2 > I1 (votes)"), "i3_i2": ("s", "0.15", "I3 > I2, as they come"),
           "i3_i2_matched": ("^", "0.6", "I3 > I2, matched in format, colour, spectrum")}  # fmt: skip

# ---- the paradox ------------------------------------------------------------------------------------------------


def draw_paradox(one_clip: pd.DataFrame, levels: pd.DataFrame, scale: str):
    """Left: CLIP's score of the same scenes drawn richer and richer, a line a style of prompt. Right: every scorer on the short prompt, in
    standard deviations of its scores. Both frames: scorer, style, scene, level, richness in [0, 1], score (`evaluation.long_table`)."""
    figure, axes = side_by_side(2, height=3.6)
    _draw_styles(axes[0], one_clip)
    _draw_levels(axes[1], levels)
    conclude(figure, _paradox_found(levels))
    note(figure, f"{scale} scale; bands: 95 % over scenes")
    return figure


def draw_paradox_by_scorer(levels: pd.DataFrame, rates: pd.DataFrame, scale: str):
    """Left: every scorer along richness, short prompt. Right: how often the richer of two pictures scores lower. rates: mean, low and high,
    indexed by scorer."""
    figure, axes = side_by_side(2, height=3.6)
    _draw_levels(axes[0], levels)
    names = list(rates.index)
    points(axes[1], rates, names)
    rows_of(axes[1], names)
    chance(axes[1])
    axes[1].set(xlabel="share of pairs: the richer scores lower", xlim=(-0.02, 1.02), title="paradox rate")
    conclude(figure, _paradox_found(levels))
    note(figure, f"{scale} scale; bands and bars: 95 % over scenes; dotted: a coin")
    return figure


def _draw_styles(axis, one_clip: pd.DataFrame) -> None:
    ends = {}
    for (style, part), dashes in zip(one_clip.groupby("style", sort=False), ("-", "--", ":")):
        sns.lineplot(part, x="richness", y="score", color=colour("clip"), ls=dashes, marker=marker("clip"), seed=0, ax=axis)
        ends[f"{style} prompt"] = part[part.level == part.level.max()].score.mean()
    axis.set(xlabel="richness of the picture", ylabel="CLIP's cosine with the prompt", title="one CLIP, the same scenes")
    name_ends(axis, ends, one_clip.richness.max(), gap=0.1, color=colour("clip"))


def standardised(levels: pd.DataFrame) -> pd.DataFrame:
    """With the column `standard`: the score in standard deviations of its scorer's, from its mean."""
    scores = levels.groupby("scorer").score
    return levels.assign(standard=(levels.score - scores.transform("mean")) / scores.transform("std"))


def _draw_levels(axis, levels: pd.DataFrame) -> None:
    levels = standardised(levels)
    ends = {}
    for name, part in levels.groupby("scorer", sort=False):
        style = {"color": colour(name), "marker": marker(name), "ms": 6, "seed": 0, "ax": axis}
        sns.lineplot(part, x="richness", y="standard", **style)
        ends[name] = part[part.level == part.level.max()].standard.mean()
    axis.set(xlabel="richness of the picture", ylabel="score, in standard deviations", title="all scorers, short prompt")
    name_ends(axis, ends, levels.richness.max())


def changes_by_scorer(levels: pd.DataFrame) -> pd.DataFrame:
    """Mean, low and high (95 %, normal) of each scorer's change from a scene's plainest to its richest picture; indexed by scorer."""
    wide = standardised(levels).pivot(index=["scorer", "scene"], columns="level", values="standard")
    change = (wide[wide.columns.max()] - wide[wide.columns.min()]).groupby("scorer", sort=False)
    half = 1.96 * change.std() / change.count() ** 0.5
    return pd.DataFrame({"mean": change.mean(), "low": change.mean() - half, "high": change.mean() + half}).reindex(order_of(levels.scorer))


def _paradox_found(levels: pd.DataFrame) -> str:
    changes = changes_by_scorer(levels)
    falls, rises = below(changes), above(changes)
    if not falls and not rises:
        return "Drawn richer, the same scene scores no differently, beyond chance"
    parts = [f"{word} with {listing(names)}" for word, names in (("lower", falls), ("higher", rises)) if names]
    return f"Drawn richer, the same scene scores {', and '.join(parts)}"


# ---- labels, and what else tells I3 ------------------------------------------------------------------------------


def draw_labels_and_audit(labels: pd.DataFrame, audit: dict, scale: str):
    """Left: how the labels E1 and E2 are distributed, beside E3, which is 1. Right: how well a logistic regression on simple cues tells the
    better picture. labels: columns E1, E2, a row a triplet; audit: the metrics of notebook 02."""
    figure, axes = side_by_side(2, height=3.6, width_ratios=[1, 1.25])
    for column, dashes in (("E1", ":"), ("E2", "--")):
        sns.ecdfplot(labels, x=column, ax=axes[0], ls=dashes, lw=2, color="0.3", label=f"{column}, of I{column[1]}")
    axes[0].axvline(1, color="0.1", lw=3, label="E3, of I3")
    axes[0].set(xlabel="label: how much of the prompt is there", ylabel="share of triplets below", title="I3's label is a constant")
    axes[0].set(xlim=(min(0, labels.min().min()) - 0.02, 1.05))
    axes[0].legend(loc="upper left", fontsize=9)
    _draw_audit(axes[1], audit)
    conclude(figure, _audit_found(audit))
    note(figure, f"{scale} scale; right: accuracy of a logistic regression, 95 % intervals; dotted: a coin")
    return figure


def audited(audit: dict, pair: str) -> pd.DataFrame:
    """Mean, low and high of each cue's accuracy on a pair, in the order of CUES; no row for a cue that was not audited."""
    found = {cue: f"audit_{pair}_{cue}_acc" for cue in CUES if f"audit_{pair}_{cue}_acc" in audit}
    rows = {cue: [audit[key], audit[f"{key}_low"], audit[f"{key}_high"]] for cue, key in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def _draw_audit(axis, audit: dict) -> None:
    for i, (pair, (shape, fill, title)) in enumerate(AUDITED.items()):
        rows = audited(audit, pair).reindex(list(CUES))
        style = {"fmt": shape, "mfc": fill, "color": "0.3", "mec": "0.2", "label": title}
        axis.errorbar(rows["mean"], heights_of(CUES) + 0.22 * (1 - i), xerr=whiskers(rows), **style)
    rows_of(axis, list(CUES.values()))
    chance(axis)
    axis.set(xlabel="accuracy", xlim=(0.35, 1.03), title="what else tells the better picture")
    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.4, -0.18))


def _audit_found(audit: dict) -> str:
    rows = audited(audit, "i3_i2").drop(index="all", errors="ignore")
    if not above(rows, 0.5):
        return "I3's label is 1 whatever it shows; no simple cue tells I3 from I2"
    best = rows["mean"].idxmax()
    return f"I3's label is 1 whatever it shows, and {CUES[best]} alone tells I3 from I2 in {percent(rows.loc[best, 'mean'])} of cases"


# ---- accuracy ---------------------------------------------------------------------------------------------------


def draw_accuracy(accuracy: pd.DataFrame, versus: pd.DataFrame, scale: str):
    """Votes at the left, apart from the two columns that hold by construction; the published numbers as hollow diamonds. accuracy: scorer,
    control, pair, mean, low, high; versus: against, scorer, pair, p and the paired difference mean, low, high."""
    rows = accuracy[accuracy.control == "plain"]
    names = order_of(rows.scorer)
    figure, axes = side_by_side(4, height=0.9 + 0.42 * len(names), width_ratios=[1.3, 0.02, 1, 1])
    axes.pop(1).set_axis_off()  # a gap
    titles = ("I2 > I1\nvotes", "I3 > I2\nby construction", "I3 > I1\nby construction")
    for axis, pair, title in zip(axes, ACCURACY.columns, titles):
        _draw_pair(axis, rows[rows.pair == pair].set_index("scorer").reindex(names), pair)
        rows_of(axis, names, axis is axes[0])
        axis.set(title=title, xlabel="accuracy", facecolor="white" if axis is axes[0] else "0.95")
    conclude(figure, _accuracy_found(rows, versus))
    note(figure, f"{scale} scale, 95 % over prompts; hollow: published; dotted: a coin")
    return figure


def _draw_pair(axis, rows: pd.DataFrame, pair: str) -> None:
    names = list(rows.index)
    points(axis, rows, names, shift=0.1)
    axis.plot(ACCURACY[pair].reindex(names), heights_of(names) - 0.2, "D", mfc="white", mec="0.3", ms=6, ls="none")
    chance(axis)
    if pair == "i2_i1":
        axis.margins(x=0.1)
    else:
        axis.set(xlim=(-0.03, 1.05), xticks=[0, 0.5, 1])


def _accuracy_found(rows: pd.DataFrame, versus: pd.DataFrame) -> str:
    """Votes by the paired differences from CLIP, the I3 column by intervals above a coin."""
    on_i3 = above(rows[rows.pair == "i3_i2"].set_index("scorer"), 0.5)
    by_construction = f"what holds by construction goes to {listing(on_i3)}" if on_i3 else "what holds by construction goes to no scorer"
    if not len(versus) or "clip" not in set(versus.against):
        return sentence(by_construction)
    on_votes = versus[(versus.against == "clip") & (versus.pair == "i2_i1")].set_index("scorer")
    better, worse = above(on_votes), below(on_votes)
    parts = [f"{word} CLIP: {listing(names)}" for word, names in (("above", better), ("below", worse)) if names]
    return sentence("on votes " + (", ".join(parts) or "no scorer differs from CLIP by more than chance"), by_construction)


# ---- two axes ---------------------------------------------------------------------------------------------------


def draw_axes(agreement: pd.DataFrame, scale: str):
    """How often each scorer orders two pictures of one prompt as a judge of one axis does, a panel an axis. agreement: axis, scorer, mean,
    low, high, of the measure "pairs"."""
    names = order_of(agreement.scorer)
    by_axis = {title: rows.set_index("scorer").reindex(names) for title, rows in agreement.groupby("axis", sort=False)}
    figure, axes = side_by_side(len(by_axis), height=1.2 + 0.36 * len(names))
    for axis, (title, rows) in zip(axes, by_axis.items()):
        points(axis, rows, names)
        rows_of(axis, names, axis is axes[0])
        chance(axis)
        axis.set(xlabel="share of pairs ordered as the judge does", xlim=(0.2, 1.03), title=title)
    conclude(figure, sentence(*(_axis_found(title, rows) for title, rows in by_axis.items())))
    note(figure, f"{scale} scale, 95 % over prompts; dotted: a coin")
    return figure


def _axis_found(title: str, rows: pd.DataFrame) -> str:
    better = above(rows, 0.5)
    if not better:
        return f"on {title} no score is better than a coin"
    best = rows["mean"].idxmax()
    return f"on {title} {label(best)} agrees best, in {percent(rows.loc[best, 'mean'])} of pairs"
