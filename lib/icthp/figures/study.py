"""Figures of the three-seed study: controls, collapse, what keeps a reward in check."""

import pandas as pd
from matplotlib import pyplot as plt

from .drawing import conclude
from .marks import above, below, heights_of, listing, minus, name_ends, note, rows_of, sentence, side_by_side, verb, whiskers
from .palette import colour, label, marker

MONITORS = ("clip", "pickscore")  # learnt from none of the triplets, so that they testify for or against ICT, HP and ICT-HP
REWARDS = (*MONITORS, "ict", "hp", "icthp", "edges")

CONTROLS = {
    "ict": {"base": "CLIP, untrained", "corrected": "ICT as here", "released": "all released defects", "e2_from_r1": "E2 filled from R1",
            "constant_weights": "constant negative weights", "rounded": "losses in bfloat16", "sums": "sums, not means",
            "bradley_terry": "Bradley-Terry objective", "hard_negatives": "with hard negatives", "units": "I3 must earn its label",
            "theta_085": "a lower θ"},
    "hp": {"corrected": "HP as here", "released": "all released defects", "text": "text in the loss",
           "text_softmax": "the same, with softmax", "text_softmax_sum": "the same, summed", "hinge_on_logits": "hinges before the sigmoid",
           "affine_head": "affine head", "affine_head_tiny_start": "affine head, tiny start", "embeddings_train": "embeddings train too",
           "linear_probe": "linear probe", "bradley_terry": "Bradley-Terry objective", "uncertain": "with uncertainty",
           "statistics": "colour, edges, spectrum only", "corrupted_losers": "corrupted I3 loses too", "icthp": "ICT-HP, the product"},
}  # fmt: skip
CONTROL_MEASURES = {"i2_i1": "I2 > I1, votes", "i3_i2": "I3 > I2, by construction", "paradox_rate": "paradox rate"}

REMEDIES = {
    "hp_k1": "HP, last step only", "hp_k1_slow": "a third of the rate", "hp_lv4": "DRaFT-LV, 4 noises", "hp_k1_anchor_03": "anchor 0.3",
    "hp_k1_losers": "corrupted losers", "hp_k2": "2 steps", "hp_k4": "4 steps", "hp_anchor_01": "4 steps, anchor 0.1",
    "hp": "4 steps, anchor 0.3", "hp_anchor_1": "4 steps, anchor 1", "hp_losers": "4 steps, anchor, losers",
    "icthp_k1": "ICT-HP, last step only", "icthp_k4": "4 steps", "icthp_anchor_01": "4 steps, anchor 0.1",
    "icthp": "4 steps, anchor 0.3", "icthp_dpo": "DPO"}  # fmt: skip
REMEDY_MEASURES = {"geneval_mean": "GenEval: prompts kept", "micro_utility": "utility", "step_seconds": "seconds a step"}

# ---- controls ---------------------------------------------------------------------------------------------------


def draw_controls(controls: pd.DataFrame, scale: str):
    """Each change of the recipe alone, ICT above, HP below, one range of x a measure. controls: stage, row, measure, mean, low, high and
    minus, minus_low, minus_high, the difference from the row "corrected" of the stage."""
    names = {stage: [row for row in CONTROLS[stage] if row in set(controls[controls.stage == stage].row)] for stage in CONTROLS}
    heights = [len(rows) for rows in names.values()]
    figure, axes = plt.subplots(2, 3, figsize=(7.5, 0.27 * sum(heights) + 0.8), sharex="col", layout="constrained",
                                gridspec_kw={"height_ratios": heights})  # fmt: skip
    for line, (stage, rows) in zip(axes, names.items()):
        for axis, measure in zip(line, CONTROL_MEASURES):
            part = controls[(controls.stage == stage) & (controls.measure == measure)].set_index("row").reindex(rows)
            _draw_rows(axis, part, [stage if row == "corrected" else "" for row in rows])
            axis.axvline(part["mean"].get("corrected"), color=colour(stage), lw=1, zorder=0)
            rows_of(axis, [CONTROLS[stage][row] for row in rows], axis is line[0], fontsize=10)
    for axis, title in zip(axes[0], CONTROL_MEASURES.values()):
        axis.set_title(title)
    conclude(figure, _controls_found(controls))
    note(figure, f"{scale} scale, {_seeds(controls)} seeds, 95 % over prompts and seeds; line: as here")
    return figure


def _draw_rows(axis, rows: pd.DataFrame, names: list[str]) -> None:
    """A row a line, with a grey interval, in the colour and with the marker of its name; "" is grey."""
    y = heights_of(names)
    axis.errorbar(rows["mean"], y, xerr=whiskers(rows), fmt="none", ecolor="0.5", elinewidth=1.5)
    for x, height, name in zip(rows["mean"], y, names):
        axis.plot(x, height, marker(name) if name else "o", color=colour(name) if name else "0.45", ms=6)


def _seeds(rows: pd.DataFrame) -> str:
    fewest, most = rows.seeds.min(), rows.seeds.max()
    return f"{most}" if fewest == most else f"{fewest} to {most}"


def _controls_found(controls: pd.DataFrame) -> str:
    """How many changes move the votes, and which bring most of the paradox back."""
    rows = minus(controls).set_index(["stage", "row"]).drop(index=("ict", "base"), errors="ignore")
    votes, paradox = (rows[rows.measure == measure] for measure in ("i2_i1", "paradox_rate"))
    moved = len(above(votes)) + len(below(votes))
    back = paradox.loc[above(paradox), "mean"].nlargest(2).index
    named = " and ".join(f"{CONTROLS[stage].get(row, row)} ({label(stage)})" for stage, row in back)
    found = f"{moved or 'none'} of {len(votes)} changes move{'s' * (moved < 2)} the votes beyond chance"
    return sentence(found, f"most of the paradox returns with {named}" if named else "")


# ---- collapse ---------------------------------------------------------------------------------------------------


def draw_collapse(runs: pd.DataFrame, scale: str, suffix: str = "_k1"):
    """DRaFT-1 with nothing that holds, from step 0. Left: each reward's own score of held-out prompts (solid) and, for each but CLIP and
    PickScore, the mean of these two (dashed), the same alarm for all; in standard deviations of the untuned pictures. Right: the share of
    prompts fulfilled. runs: `study/tuning_runs.csv`: row, seed, step (0: untuned), gain, other_clip, other_pickscore, micro_correct."""
    figure, (score_axis, prompt_axis) = side_by_side(2, height=3.9)
    runs = runs.assign(alarm=runs[[f"other_{monitor}" for monitor in MONITORS]].mean(axis=1))
    gains, alarms, fulfilled = (by_step(runs, measure, suffix) for measure in ("gain", "alarm", "micro_correct"))
    alarms = alarms.drop(columns=list(MONITORS), errors="ignore")  # theirs would be the other one alone: another set
    for axis, frame, options in ((score_axis, gains, {}), (score_axis, alarms, {"mfc": "white", "ls": "--"}), (prompt_axis, fulfilled, {})):
        for name in frame:
            style = {"color": colour(name), "marker": marker(name), "ms": 6, "markevery": max(1, len(frame) // 4)} | options
            axis.plot(frame[name], **style)
    _draw_band(prompt_axis, runs, suffix)
    score_axis.axhline(0, color="0.3", lw=1)
    score_axis.set(ylabel="sd from the untuned pictures", title="solid: own reward; dashed: CLIP, PickScore")
    prompt_axis.set(ylabel="share of held-out prompts", ylim=(-0.03, 1), title="prompt fulfilled")
    for axis, frame in ((score_axis, gains), (prompt_axis, fulfilled)):
        axis.set(xlabel="steps of tuning")
        name_ends(axis, frame.iloc[-1], frame.index[-1])
    conclude(figure, _collapse_found(gains.iloc[-1], alarms.iloc[-1], fulfilled))
    counted = runs[runs.row.str.endswith(suffix)].groupby("row").seed.nunique().to_frame("seeds")
    band = "means of {} seeds (band: lowest and highest)" if counted.seeds.max() > 1 else "{} seed"
    note(figure, f"{scale} scale, DRaFT-1 without anchor, {band.format(_seeds(counted))}")
    return figure


def by_step(runs: pd.DataFrame, measure: str, suffix: str = "_k1") -> pd.DataFrame:
    """Means over seeds by steps done, a column a reward of the rows that end in the suffix."""
    means = runs.pivot_table(index="step", columns="row", values=measure)
    return means.reindex(columns=[name + suffix for name in REWARDS if name + suffix in means]).rename(
        columns=lambda row: row.removesuffix(suffix)
    )


def _draw_band(axis, runs: pd.DataFrame, suffix: str) -> None:
    """From the lowest to the highest seed."""
    for name in REWARDS:
        seeds = runs[runs.row == name + suffix].groupby("step").micro_correct.agg(["min", "max"])
        axis.fill_between(seeds.index, seeds["min"], seeds["max"], color=colour(name), alpha=0.12, lw=0)


def _collapse_found(gains: pd.Series, alarms: pd.Series, fulfilled: pd.DataFrame) -> str:
    """From the last step."""
    masked = [name for name in alarms.index if gains[name] > 0 > alarms[name]]
    rise = f"{listing(masked)} {verb('rise', masked)} on the own score while CLIP and PickScore fall" if masked else ""
    worst = fulfilled.iloc[-1].idxmin()
    before, after = fulfilled[worst].iloc[[0, -1]]
    return sentence(rise, f"prompts fulfilled go from {before:.2f} to {after:.2f} on {label(worst)}")


# ---- remedies ---------------------------------------------------------------------------------------------------


def draw_remedies(effects: pd.DataFrame, scale: str):
    """One thing at a time against DRaFT-1, then together, for HP and ICT-HP. effects: row, measure, mean, low, high and the paired
    difference from the untuned generator (`study/tuning.csv`)."""
    names = [row for row in REMEDIES if row in set(effects.row)]
    figure, axes = side_by_side(len(REMEDY_MEASURES), height=0.8 + 0.27 * len(names))
    for axis, (measure, title) in zip(axes, REMEDY_MEASURES.items()):
        part = effects[effects.measure == measure].set_index("row")
        _draw_rows(axis, part.reindex(names), [name.split("_")[0] for name in names])
        if "base" in part.index:
            axis.axvline(part.loc["base", "mean"], color="0.3", lw=1, ls="--", zorder=0)
        rows_of(axis, [REMEDIES[name] for name in names], axis is axes[0], fontsize=10)
        axis.set_title(title)
    conclude(figure, _remedies_found(effects, names))
    note(figure, f"{scale} scale, {_seeds(effects)} seeds, 95 % over prompts and seeds; dashed: untuned")
    return figure


def _remedies_found(effects: pd.DataFrame, names: list[str]) -> str:
    """Which row raises the utility most, if one does beyond chance, and what it keeps of GenEval."""
    cells = effects.set_index(["measure", "row"])
    rows = cells.loc["micro_utility"].reindex(names)
    if not (rows.minus_low > 0).any():
        return "Nothing raises utility beyond chance over the untuned generator's"
    best = rows.minus[rows.minus_low > 0].idxmax()
    reward = label(best.split("_")[0])
    before, after = (cells["mean"].unstack("measure").loc[row] for row in ("base", best))
    return (f"{reward}, {REMEDIES[best].removeprefix(reward + ', ')}, raises utility most, {before.micro_utility:.2f} to "
            f"{after.micro_utility:.2f}; GenEval goes from {before.geneval_mean:.2f} to {after.geneval_mean:.2f}")  # fmt: skip
