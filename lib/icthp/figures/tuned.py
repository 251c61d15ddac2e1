"""Figures about tuned generators: rewards while tuning, effects, GenEval, JPEG size, votes, the detector that checks them."""

import numpy as np
import pandas as pd

from .drawing import conclude
from .marks import (
    above,
    apart,
    below,
    chance,
    heights_of,
    in_words,
    listing,
    minus,
    name_ends,
    note,
    order_of,
    percent,
    points,
    rows_of,
    sentence,
    side_by_side,
    verb,
    whiskers,
)  # fmt: skip
from .palette import colour, label, marker
from .published import GENEVAL, SIZES, WIN_RATES

SMOOTH = 5  # steps
ENDS = {"mean": "", "low": "_low", "high": "_high"}
EFFECTS = {"jpeg_kb": "JPEG size, kB", "micro_richness": "richness", "score_aesthetic": "aesthetic score", "diversity": "diversity",
           "score_pickscore": "PickScore"}  # fmt: skip
QUALITIES = {"score_aesthetic": "aesthetic score", "micro_richness": "richness, read by the detector"}
DRAWN_BY = {"renderer": "rendered scenes", "i3": "I3's generator", "base": "untuned generator"}
ALONE = "_alone"  # ends the names of generators that lack a text encoder

# ---- while tuning -----------------------------------------------------------------------------------------------


def draw_tuning(histories: dict[str, pd.DataFrame], metrics: dict[str, dict], scale: str):
    """Left: each tuned reward's gain in standard deviations of its scores of the untuned pictures. Right: JPEG size. Lines: training
    batches, means over five steps; the points at their ends: held-out prompts before and after. histories: reward -> step, reward,
    jpeg_kb; metrics: reward -> notebook 05's."""
    figure, (gain_axis, size_axis) = side_by_side(2, height=3.4)
    for name, history in histories.items():
        smooth = history[["reward", "jpeg_kb"]].rolling(min(SMOOTH, len(history))).mean().dropna().reset_index(drop=True)
        style = {"color": colour(name), "marker": marker(name), "markevery": max(1, len(smooth) // 6), "ms": 6}
        gain_axis.plot((smooth.reward - smooth.reward[0]) / untuned_deviation(metrics[name]), **style)
        size_axis.plot(100 * (smooth.jpeg_kb / smooth.jpeg_kb[0] - 1), **style)
    gains, sizes = held_out_gains(metrics), held_out_growth(metrics)
    last = max(len(history) for history in histories.values())
    for axis, rows in ((gain_axis, gains), (size_axis, sizes)):
        for i, (name, row) in enumerate(rows.iterrows()):
            axis.errorbar(last * (1.02 + 0.025 * i), row["mean"], yerr=whiskers(row), fmt=marker(name), color=colour(name), ms=6)
        name_ends(axis, rows["mean"], last * (1.02 + 0.025 * len(rows)))
    gain_axis.set(xlabel="step", ylabel="gain of the own reward, in sd")
    size_axis.set(xlabel="step", ylabel="JPEG size, % more than untuned")
    conclude(figure, _tuning_found(gains))
    note(figure, f"{scale} scale; sd: of the untuned pictures' scores; lines: training batches; points at the end: held-out prompts, 95 %")
    return figure


def untuned_deviation(metrics: dict) -> float:
    """The standard deviation of the reward over the untuned pictures, from the width of the interval of its mean."""
    width = metrics["reward_before_high"] - metrics["reward_before_low"]
    return max(width / (2 * 1.96) * metrics["reward_before_n"] ** 0.5, 1e-12)


def held_out_gains(metrics: dict[str, dict]) -> pd.DataFrame:
    """Mean, low and high of each reward's gain on held-out prompts, in standard deviations; indexed by reward."""
    rows = {name: {end: row[f"reward_gain{suffix}"] for end, suffix in ENDS.items()} for name, row in metrics.items()}
    deviations = pd.Series({name: untuned_deviation(row) for name, row in metrics.items()})
    return pd.DataFrame(rows).T.div(deviations, axis=0)


def held_out_growth(metrics: dict[str, dict]) -> pd.DataFrame:
    """Mean, low and high of the JPEG size after tuning, in % more than before; indexed by reward."""
    rows = {name: {end: 100 * (row[f"jpeg_kb_after{suffix}"] / row["jpeg_kb_before"] - 1) for end, suffix in ENDS.items()}
            for name, row in metrics.items()}  # fmt: skip
    return pd.DataFrame(rows).T


def _tuning_found(gains: pd.DataFrame) -> str:
    rises = gains.loc[above(gains), "mean"].sort_values()
    rest = gains.index.difference(rises.index, sort=False)
    raised = f"tuning raises the own reward on held-out prompts, in sd: {in_words(rises, '+.1f')}" if len(rises) else ""
    return sentence(raised, f"no gain beyond chance on {listing(rest)}" if len(rest) else "")


# ---- effects ----------------------------------------------------------------------------------------------------


def differences(tuned: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Mean, low and high of each tuned generator less the untuned one, indexed by model, of a frame with minus, minus_low, minus_high."""
    rows = tuned[(tuned.measure == measure) & (tuned.model != "base") & ~tuned.model.str.endswith(ALONE)]
    return minus(rows).set_index("model")[["mean", "low", "high"]]


def untuned_mean(tuned: pd.DataFrame, measure: str) -> float:
    """Of the untuned generator."""
    return tuned[(tuned.measure == measure) & (tuned.model == "base")]["mean"].iloc[0]


def draw_effects(tuned: pd.DataFrame, scale: str):
    """What tuning changed, by measures that the reward does not see: paired differences from the untuned generator, a panel a measure."""
    measures = [measure for measure in EFFECTS if measure in set(tuned.measure)]
    names = list(differences(tuned, measures[0]).index)
    figure, axes = side_by_side(len(measures), height=1.2 + 0.38 * max(len(names), 3))
    for axis, measure in zip(axes, measures):
        points(axis, differences(tuned, measure).reindex(names), names)
        rows_of(axis, names, axis is axes[0])
        axis.axvline(0, color="0.3", lw=1)
        axis.margins(x=0.15)
        axis.locator_params(axis="x", nbins=4)
        axis.set_title(EFFECTS[measure])
    conclude(figure, _effects_found(tuned))
    note(figure, f"tuned less untuned, {scale} scale, 95 % over prompts")
    return figure


def _effects_found(tuned: pd.DataFrame) -> str:
    is_micro = "micro_richness" in set(tuned.measure)
    kind, more, less = ("pictures", "richer", "plainer") if is_micro else ("JPEG files", "larger", "smaller")
    rows = differences(tuned, "micro_richness" if is_micro else "jpeg_kb")
    parts = [f"{adjective}: {listing(names)}" for adjective, names in ((more, above(rows)), (less, below(rows))) if names]
    return sentence(f"{kind} against untuned, {'; '.join(parts)}") if parts else f"No tuning changes the {kind} beyond chance"


# ---- GenEval ----------------------------------------------------------------------------------------------------


def draw_geneval(tuned: pd.DataFrame, scale: str):
    """GenEval's mean of each tuned generator less the untuned one's, ours with interval; at the right as published, without."""
    rows = differences(tuned, "geneval_mean")
    names = list(rows.index)
    published = (GENEVAL["mean"] - GENEVAL.loc["base", "mean"]).drop("base")
    figure, axes = side_by_side(2, height=1.1 + 0.38 * max(len(names), len(published)), width_ratios=[1.3, 1])
    points(axes[0], rows, names)
    rows_of(axes[0], names)
    axes[1].plot(published, heights_of(published), "D", mfc="white", mec="0.3", ms=7)
    rows_of(axes[1], list(published.index))
    for axis, title in zip(axes, (f"ours ({scale})", "published (SD3.5-Large-Turbo)")):
        axis.axvline(0, color="0.3", lw=1)
        axis.margins(x=0.12)
        axis.set(xlabel="GenEval, tuned less untuned", title=title)
    conclude(figure, _geneval_found(rows, untuned_mean(tuned, "geneval_mean")))
    note(figure, "mean of the six tasks by GenEval's rules; bars: 95 % over prompts, task by task")
    return figure


def _geneval_found(rows: pd.DataFrame, untuned: float) -> str:
    moved = rows.loc[[*below(rows), *above(rows)], "mean"].sort_values()
    if moved.empty:
        return f"GenEval is {untuned:.2f} untuned, and no tuning moves it beyond chance"
    return f"GenEval is {untuned:.2f} untuned; changes beyond chance: {in_words(moved, '+.2f')}"


# ---- JPEG size, votes -------------------------------------------------------------------------------------------


def draw_sizes(tuned: pd.DataFrame, scale: str):
    """JPEG size against quality: at the left published pairs, at the right ours with intervals; arrows from the untuned generator."""
    quality = next((measure for measure in QUALITIES if measure in set(tuned.measure)), None)
    figure, axes = side_by_side(1 + bool(quality), height=3.4, width=8 if quality else 4.2)
    _draw_places(axes[0], SIZES, dict.fromkeys(SIZES.index, "D"), ["hp", "icthp"], {"base": "SD3.5-Turbo, untuned"})
    axes[0].set(ylabel="aesthetic score", title="published, 1024 pixels")
    if quality:
        _draw_own_sizes(axes[1], tuned[~tuned.model.str.endswith(ALONE)], quality)
        axes[1].set(ylabel=QUALITIES[quality], title=f"ours ({scale})")
    for axis in axes:
        axis.set_xlabel("JPEG, kB at quality 95")
    conclude(figure, _sizes_found(tuned))
    note(figure, "arrows start at the untuned generator; bars: 95 % over prompts")
    return figure


def _draw_own_sizes(axis, tuned: pd.DataFrame, quality: str) -> None:
    x, y = (tuned[tuned.measure == measure].set_index("model") for measure in ("jpeg_kb", quality))
    for name in x.index:
        axis.errorbar(x.loc[name, "mean"], y.loc[name, "mean"], whiskers(y.loc[name]), whiskers(x.loc[name]), color=colour(name))
    places = pd.DataFrame({"x": x["mean"], "y": y["mean"]})
    _draw_places(axis, places, {name: marker(name) for name in places.index}, [name for name in places.index if name != "base"], {})


def _draw_places(axis, places: pd.DataFrame, shapes: dict[str, str], tuned: list[str], texts: dict[str, str]) -> None:
    """Generators at their places (x, y), each with its name, and arrows from the untuned one to the tuned ones."""
    for name, (x, y) in places.iterrows():
        if name in tuned:
            axis.annotate("", (x, y), tuple(places.loc["base"]), arrowprops={"arrowstyle": "->", "color": "0.6", "lw": 1})
        axis.plot(x, y, shapes[name], color=colour(name), ms=7)
    axis.margins(0.35, 0.15)
    for name, y in apart(dict(places.iloc[:, 1]), 0.08 * np.ptp(axis.get_ylim())).items():
        place = places.iloc[:, 0][name], y
        axis.annotate(texts.get(name, label(name)), place, xytext=(9, 0), textcoords="offset points", va="center", fontsize=10,
                      color=colour(name))  # fmt: skip


def _sizes_found(tuned: pd.DataFrame) -> str:
    change = 100 * differences(tuned, "jpeg_kb")["mean"] / untuned_mean(tuned, "jpeg_kb")
    published = 100 * (SIZES.jpeg_kb / SIZES.jpeg_kb["base"] - 1)
    names = [name for name in published.index if name in change.index]
    if names:
        return "JPEG files against untuned: " + ", ".join(
            f"{label(name)} {change[name]:+.0f} % (published {published[name]:+.0f} %)" for name in names
        )
    largest = change.abs().idxmax()
    return f"JPEG files change most with {label(largest)}: {change[largest]:+.0f} % against untuned"


def draw_votes(votes: pd.DataFrame, scale: str):
    """The simulated judge's win rates over the untuned generator; published ones, by people, as hollow diamonds. votes: model, mean, low,
    high."""
    rows = votes[(votes.model != "base") & ~votes.model.str.endswith(ALONE)].set_index("model")
    names = list(rows.index)
    figure, (axis,) = side_by_side(1, width=7, height=1.1 + 0.4 * max(len(names), 3))
    points(axis, rows, names)
    rows_of(axis, names)
    for name, rate in WIN_RATES.items():
        if name in names:
            axis.plot(rate, heights_of(names)[names.index(name)], "D", mfc="white", mec="0.3", ms=8, zorder=3)
    chance(axis)
    axis.set(xlabel="share of votes won against the untuned generator", xlim=(0, 1))
    conclude(figure, _votes_found(rows))
    note(figure, f"{scale} scale, a simulated judge, 95 % over prompts; hollow: published, by people; dotted: a coin")
    return figure


def _votes_found(rows: pd.DataFrame) -> str:
    better, worse = above(rows, 0.5), below(rows, 0.5)
    if not better and not worse:
        return "No tuned generator wins or loses the simulated votes beyond chance"
    won_by = f"{listing(better)} {verb('win', better)} simulated votes against untuned pictures" if better else ""
    return sentence(won_by, f"{listing(worse)} {verb('lose', worse)} them" if worse else "")


# ---- the detector -----------------------------------------------------------------------------------------------


def draw_detector_check(bars: pd.DataFrame, scale: str):
    """The share of pictures in which the detector finds all that the short prompt says, a panel a kind of scene: rendered ones, and those
    of the untuned generators with the short prompt and with the longest. bars: drawn by, prompt ("" for renders), kind, mean, low, high."""
    lines = order_of(bars[["drawn by", "prompt"]].itertuples(index=False, name=None))
    names = [DRAWN_BY[name] + (f", {prompt} prompt" if prompt else "") for name, prompt in lines]
    figure, axes = side_by_side(bars.kind.nunique(), height=1.1 + 0.38 * len(lines))
    for axis, (kind, rows) in zip(axes, bars.groupby("kind", sort=False)):
        for y, line in zip(heights_of(lines), lines):
            row = rows.set_index(["drawn by", "prompt"]).loc[line]
            fill = "white" if line[1] == "long" else "0.25"
            axis.errorbar(row["mean"], y, xerr=whiskers(row), fmt="o", color="0.25", mfc=fill, ms=7)
        rows_of(axis, names, axis is axes[0])
        axis.set(title={"one": "one object"}.get(kind, f"a {kind} of objects"), xlabel="share correct", xlim=(-0.06, 1.06))
    conclude(figure, _detector_found(bars))
    note(figure, f"{scale} scale, held-out scenes, 95 % over scenes; correct: all that the short prompt says is found")
    return figure


def _detector_found(bars: pd.DataFrame) -> str:
    correct = bars[bars.prompt != "long"].groupby("drawn by", sort=False)["mean"].mean()
    drawn = ", ".join(f"{DRAWN_BY[name]} {percent(correct[name])}" for name in ("i3", "base"))
    return f"The detector finds the whole prompt in {percent(correct['renderer'])} of rendered scenes; drawn from the short prompt: {drawn}"
