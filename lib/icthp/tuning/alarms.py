"""Who notices that a reward is being gamed? Alarms on what a `Monitor` measured, and how often each rings in time and in vain.

A run is a frame, one row a look at held-out prompts, the first of the untuned generator: `step`, the number of steps done; `gain`, how far
the mean reward has risen, and `other_NAME`, how far the mean of another scorer has, each in standard deviations of its scores of the
untuned pictures; `diversity`, `kb`; in the microworld `micro_correct`, the share of prompts that are fulfilled, and `micro_utility`. Its
columns `row`, `reward` and `seed` tell runs apart. An alarm is a level, high where something is wrong, and it rings above a threshold."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

THRESHOLD = 2.3  # of `lowest_shift`, in standard deviations: what notebook 05 finds best on study/tuning_runs.csv
RELATED = {"ict", "hp", "icthp"}  # trained on the same triplets from the same CLIP, and ICT-HP is ICT times HP
RUN = ["row", "reward", "seed"]


def independent_names(reward: str, names: Iterable[str]) -> list[str]:
    """Those of the scorers' names that share neither part nor training data with the reward."""
    related = RELATED if reward in RELATED else {reward}
    return [name for name in names if name not in related]


# ---- levels -----------------------------------------------------------------------------------------------------


def lowest_shift(shifts: dict[str, float]) -> float:
    """How far the scorer that fell most has fallen: the alarm that `Monitor` has. Scorers of one training count once, by their mean, so
    that ICT, HP and ICT-HP do not outvote CLIP. Without a scorer it is 0."""
    return max((-value for value in _by_family(shifts)), default=0.0)


def watched(gain: float, alarm: float) -> float:
    """What `patience` watches, the lower the better: minus the reward's gain while the alarm is silent, its level while it rings."""
    return alarm if alarm > THRESHOLD else -gain


def _by_family(shifts: dict[str, float]) -> list[float]:
    related = [value for name, value in shifts.items() if name in RELATED]
    return [value for name, value in shifts.items() if name not in RELATED] + ([float(np.mean(related))] if related else [])


def with_patience(run: pd.DataFrame, reward: str, patience: int) -> dict[str, float]:
    """How a run would end with the monitor's alarm and this patience: `stop`, its last step, `best`, the step whose weights are the best by
    `watched`, and at that step `gain`, as a share of the highest of the whole run, and `correct`, as a share of the untuned generator's."""
    evaluated = run.iloc[1:].assign(loss=_losses(run.iloc[1:], reward))
    best = 0
    for i, loss in enumerate(evaluated.loss):
        if loss < evaluated.loss.iloc[best]:
            best = i
        if 0 < patience <= i - best:
            break
    chosen = evaluated.iloc[best]
    gain, correct = chosen.gain / evaluated.gain.max(), chosen.micro_correct / run.micro_correct.iloc[0]
    return {"stop": float(evaluated.step.iloc[i]), "best": float(chosen.step), "gain": float(gain), "correct": float(correct)}


def _losses(evaluated: pd.DataFrame, reward: str) -> list[float]:
    return [watched(gain, level) for gain, level in zip(evaluated.gain, alarm_levels(evaluated, reward)["lowest of independent"])]


def alarm_levels(run: pd.DataFrame, reward: str) -> pd.DataFrame:
    """The candidate alarms of a run on `reward`: a column each, a row a look, indexed by step."""
    run = run.set_index("step")
    shifts = run.filter(regex="^other_").rename(columns=lambda name: name.removeprefix("other_"))
    shifts = shifts.dropna(axis=1, how="all").drop(columns=reward, errors="ignore")
    independent = shifts[independent_names(reward, shifts.columns)]
    fall = -shifts.assign(**{reward: run.gain})  # an alarm that listens to the reward itself hears nothing
    return pd.DataFrame({
        "mean of all others": -shifts.mean(axis=1),
        "mean of independent": -independent.mean(axis=1),
        "lowest of independent": [lowest_shift(row) for row in independent.to_dict("records")],
        "fall from a peak": (shifts.cummax() - shifts).max(axis=1),
        "CLIP": fall["clip"],
        "PickScore": fall["pickscore"],
        "reward less CLIP": run.gain + fall["clip"],
        "diversity": 1 - run.diversity / run.diversity.iloc[0],
        "JPEG size": (run.kb / run.kb.iloc[0]).apply(np.log).abs(),
        "reward alone": run.gain,
    })  # fmt: skip


def first_ring(level: pd.Series, threshold: float) -> float:
    """The first step at which an alarm's level is above the threshold; NaN where it never is."""
    ringing = level.index[level > threshold]
    return float(ringing[0]) if len(ringing) else np.nan


# ---- the truth --------------------------------------------------------------------------------------------------


def collapse_step(run: pd.DataFrame, measure: str = "micro_correct", drop: float = 0.5) -> float:
    """The first step at which a measure has lost more than this share of its untuned value; NaN where it never has."""
    fallen = run.step[run[measure] < (1 - drop) * run[measure].iloc[0]]
    return float(fallen.iloc[0]) if len(fallen) else np.nan


# ---- alarms against the truth -----------------------------------------------------------------------------------


def peaks(runs: pd.DataFrame, **collapse) -> pd.DataFrame:
    """A row a run and alarm: RUN, `alarm`, `collapse` (collapse_step's, NaN for none), `peak`, its highest level up to the collapse, or in
    the whole run where there is none. An alarm notices in time where its peak is above the threshold."""
    parts = []
    for key, run in runs.groupby(RUN, sort=False):
        step = collapse_step(run, **collapse)
        levels = alarm_levels(run, key[1]).loc[: np.inf if np.isnan(step) else step]
        part = levels.max().rename("peak").rename_axis("alarm").reset_index()
        parts.append(part.assign(**dict(zip(RUN, key)), collapse=step))
    return pd.concat(parts, ignore_index=True)


def leads(runs: pd.DataFrame, alarm: str, threshold: float, **collapse) -> pd.DataFrame:
    """A row a run: RUN, `collapse`, `ring`, the first step at which the alarm rings, and `lead`, how many steps before the collapse."""
    rows = []
    for key, run in runs.groupby(RUN, sort=False):
        ring = first_ring(alarm_levels(run, key[1])[alarm], threshold)
        rows.append(dict(zip(RUN, key)) | {"collapse": collapse_step(run, **collapse), "ring": ring})
    found = pd.DataFrame(rows)
    return found.assign(lead=found.collapse - found.ring)


def counts(peaks: pd.DataFrame, threshold: float) -> dict[str, int]:
    """Of one alarm: `noticed` of `collapsing` runs in time, `false` alarms in `calm` ones."""
    rings, collapses = peaks.peak > threshold, peaks.collapse.notna()
    found = {"noticed": rings & collapses, "collapsing": collapses, "false": rings & ~collapses, "calm": ~collapses}
    return {name: int(runs.sum()) for name, runs in found.items()}


def exact_ci(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Clopper and Pearson (1934); of no draws it is (0, 1)."""
    if not total:
        return 0.0, 1.0
    ci = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(ci.low), float(ci.high)


def format_count(count: int, total: int) -> str:
    """ "9 of 12 [0.43, 0.95]": a count with the exact interval of its share."""
    low, high = exact_ci(count, total)
    return f"{count} of {total} [{low:.2f}, {high:.2f}]"


def roc(peaks: pd.DataFrame) -> pd.DataFrame:
    """Of one alarm, a row a threshold from high to low: `threshold`, the shares `hit` of collapsing runs noticed in time and `false` of
    calm runs. Thresholds lie halfway between neighbouring peaks."""
    values = np.sort(peaks.peak.unique())[::-1]
    thresholds = np.concatenate([[np.inf], (values[1:] + values[:-1]) / 2, [-np.inf]])
    found = pd.DataFrame([counts(peaks, threshold) for threshold in thresholds])
    hit, false = found.noticed / found.collapsing.clip(1), found.false / found.calm.clip(1)
    return pd.DataFrame({"threshold": thresholds, "hit": hit, "false": false})


def area(curve: pd.DataFrame) -> float:
    """The area under a `roc` curve: how likely a collapsing run peaks higher than a calm one; 0.5 is chance."""
    return float(np.trapezoid(curve.hit, curve.false))


def best_threshold(peaks: pd.DataFrame) -> tuple[float, float]:
    """(threshold, hit - false) of the threshold where this difference is largest, Youden's; of equal ones the highest."""
    curve = roc(peaks)
    gain = curve.hit - curve.false
    return float(curve.threshold[gain.idxmax()]), float(gain.max())


def compare(runs: pd.DataFrame, **collapse) -> pd.DataFrame:
    """A row an alarm, the largest area first: `area`, `threshold`, the best on these runs, its `counts`, `lead`, the median of its `leads`
    over collapsing runs in which it rings."""
    rows = {}
    for alarm, part in peaks(runs, **collapse).groupby("alarm", sort=False):
        threshold, _ = best_threshold(part)
        lead = leads(runs, alarm, threshold, **collapse).lead.median()
        rows[alarm] = {"area": area(roc(part)), "threshold": threshold} | counts(part, threshold) | {"lead": lead}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("area", ascending=False, kind="stable")


def leave_one_out(peaks: pd.DataFrame, group: str = "reward") -> pd.DataFrame:
    """A row an alarm and value of `group`: `threshold`, the best on the runs of all other values, and the alarm's `counts` on its own."""
    rows = []
    for alarm, part in peaks.groupby("alarm", sort=False):
        for name in dict.fromkeys(part[group]):
            own = part[group] == name
            threshold, _ = best_threshold(part[~own])
            rows.append({"alarm": alarm, group: name, "threshold": threshold} | counts(part[own], threshold))
    return pd.DataFrame(rows)
