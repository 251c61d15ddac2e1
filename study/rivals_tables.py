"""The tables of the bench: study/rivals_rows.parquet, every evaluation of every run, also after study/runs is deleted, and what follows
from it, study/rivals.csv (gains at equal budgets) and study/rivals_runs.csv (one row a run)."""

from pathlib import Path

import numpy as np
import pandas as pd
import results

from icthp import files, microworld

ROWS, SEARCH, SECONDS = Path("study/rivals_rows.parquet"), Path("study/rivals_search.csv"), Path("study/rivals_seconds.csv")
TABLE, DIRECTIONS = Path("study/rivals.csv"), Path("study/rivals_directions.csv")
RUN = ["method", "reward_name", "seed"]
MEASURES = ("utility", "reward", "alignment", "richness", "artefact")
BUDGETS = {"equivalents": (8000, 24000), "rewards": (400,), "seconds": (10, 20)}  # of a run, which goes on
LONGER = "_longer"  # at the end of a reward's name, of runs with a larger budget
LOST_ALIGNMENT, LOST_UTILITY = 0.15, 0.3  # below the untuned generator's: collapsed


def collect(runs: Path) -> pd.DataFrame:
    """Every evaluation of the runs that are done, a row a held-out prompt, as `read` gives them: without the seconds of the machine that a
    run happened to run on. A run that is no longer in `runs` stays as it was."""
    found = [pd.read_parquet(path).assign(**dict(zip(RUN, run_of(path)))) for path in sorted(runs.glob("*-*-*.parquet"))]
    done = {tuple(part[RUN].iloc[0]) for part in found}
    if ROWS.exists():
        earlier = pd.read_parquet(ROWS)
        found.append(earlier[[run not in done for run in earlier[RUN].itertuples(index=False, name=None)]])
    rows = pd.concat([part.drop(columns=["utility", "seconds"], errors="ignore") for part in found])
    rows = rows.sort_values([*RUN, "step"], kind="stable", ignore_index=True)
    digits = {name: 2 if name in MEASURES else 4 for name in rows.select_dtypes("float")}  # of single prompts: a third of the bytes
    rows = rows.round(digits).astype(dict.fromkeys(digits, "float32"))
    files.atomic(ROWS, lambda partial: rows.to_parquet(partial, compression="zstd", compression_level=19, index=False))
    return read()


def read() -> pd.DataFrame:
    """The rows of ROWS, with the utility that their qualities give."""
    rows = pd.read_parquet(ROWS)
    return rows.assign(utility=microworld.utility(rows))


def write_seconds(measured) -> None:
    """What a step takes, measured one after the other on one machine: ((method, reward_name), seconds), ..."""
    table = [dict(zip(RUN, pair)) | {"seconds": seconds} for pair, seconds in measured]
    results.write(pd.DataFrame(table), str(SECONDS))


def timed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the seconds that SECONDS gives their steps: runs were made on several machines. ValueError for a run without."""
    seconds = pd.read_csv(SECONDS).set_index(RUN[:2]).seconds
    runs = pd.MultiIndex.from_arrays([rows.method, rows.reward_name.str.removesuffix(LONGER)])
    if missing := {"-".join(run) for run in set(runs) - set(seconds.index)}:
        raise ValueError(f"no seconds of {', '.join(sorted(missing))} in {SECONDS}: python study/rivals.py time")
    return rows.assign(seconds=(rows.step * seconds.reindex(runs).to_numpy()).astype("float32"))


def run_of(path: Path) -> tuple[str, str, int]:
    method, reward, seed = path.stem.split("-")
    return method, reward, int(seed)


def done() -> set[tuple[str, str, int]]:
    """The runs in ROWS."""
    return set(pd.read_parquet(ROWS, columns=RUN).drop_duplicates().itertuples(index=False, name=None)) if ROWS.exists() else set()


# ---- equal budgets ----------------------------------------------------------------------------------------------


def gains(rows: pd.DataFrame, cost: str, budget: float, measures=MEASURES) -> pd.DataFrame:
    """Each run's `measures` at this cost less those before it, between two evaluations on a straight line; a row a run, measure and prompt,
    in the columns of `results`. Runs that ended with less are left out, but for some percent: a run's steps are counted by the cost of its
    first three, and some methods draw theirs."""
    parts = []
    for run, part in rows.groupby(RUN, sort=False):
        spent = part.groupby("step")[cost].first()
        if spent.iloc[-1] < 0.9 * budget:
            continue
        for measure in measures:
            values = part.pivot(index="step", columns="prompt", values=measure)
            gain = [np.interp(budget, spent, values[prompt]) - values[prompt].iloc[0] for prompt in values]
            parts.append(
                results.rows_of(f"{measure}@{cost}={budget:g}", values.columns, gain).assign(stage=run[1], row=run[0], seed=run[2])
            )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=results.COLUMNS)


def stopped(rows: pd.DataFrame, measure: str = "utility") -> pd.DataFrame:
    """Each run's `measure` where its own reward was highest on the way, less that before, as `gains` gives them: of each half of the
    prompts at the evaluation that the other half prefers, so that no picture is both asked and measured."""
    parts = []
    for run, part in rows.groupby(RUN, sort=False):
        values, rewards = (part.pivot(index="step", columns="prompt", values=name) for name in (measure, "reward"))
        gain, half = np.empty(len(values.columns)), np.arange(len(values.columns)) % 2
        for one in (0, 1):
            best = rewards.loc[:, half != one].mean(axis=1).to_numpy().argmax()
            gain[half == one] = (values.iloc[best] - values.iloc[0])[half == one]
        parts.append(results.rows_of(f"{measure}@stopped", values.columns, gain).assign(stage=run[1], row=run[0], seed=run[2]))
    return pd.concat(parts, ignore_index=True)


def per_run(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a run: what it ended with, its costs, and the equivalents at its first collapsed evaluation (NaN where there is none)."""
    table = []
    for run, part in rows.groupby(RUN, sort=False):
        means = part.groupby("step").mean(numeric_only=True)
        first, last = means.iloc[0], means.iloc[-1]
        collapsed = (means.alignment < first.alignment - LOST_ALIGNMENT) | (means.utility < first.utility - LOST_UTILITY)
        at = means.equivalents[collapsed].iloc[0] if collapsed.any() else np.nan
        ends = {f"{name}_gain": last[name] - first[name] for name in MEASURES} | {"vendi": last.vendi, "vendi_before": first.vendi}
        costs = {name: last[name] for name in ("equivalents", "forwards", "graphs", "rewards", "reward_gradients", "seconds", "distance")}
        best = {"best_utility_gain": means.utility.max() - first.utility, "collapsed_at": at, "steps": means.index[-1]}
        table.append(dict(zip(RUN, run)) | ends | best | costs)
    return pd.DataFrame(table)


def searched() -> set[str]:
    """The runs in SEARCH."""
    return set(pd.read_csv(SEARCH).run) if SEARCH.exists() else set()


def write_search(folder: Path) -> None:
    """A row a run of the search: what the reward and the measured utility had gained at its end. A run without a file stays as it was."""
    table = []
    for path in sorted(folder.glob("*.parquet")):
        rows = pd.read_parquet(path)
        first, last = (rows[rows.step == step] for step in (rows.step.min(), rows.step.max()))
        gained = {name: last[name].mean() - first[name].mean() for name in ("reward", "utility")}
        table.append({"run": path.stem, "method": path.stem.partition("-")[0]} | gained | {"seconds": last.seconds.iloc[0]})
    found = pd.DataFrame(table)
    if SEARCH.exists():
        earlier = pd.read_csv(SEARCH)
        found = pd.concat([found, earlier[~earlier.run.isin(found.run if len(found) else [])]], ignore_index=True)
    results.write(found.sort_values("run", ignore_index=True), str(SEARCH))


def main(config: dict, wanted: int, runs: Path) -> None:
    rows = timed(collect(runs))
    stages = {reward: sorted(part.method.unique()) for reward, part in rows.groupby("reward_name", sort=False)}
    budgets = [(cost, budget) for cost, several in BUDGETS.items() for budget in several]
    ends = {("equivalents", config[part]["budget"]) for part in ("bench", "longer")}  # all measures there, elsewhere the utility alone
    parts = [gains(rows, *budget, MEASURES if budget in ends else ("utility",)) for budget in budgets]
    values = pd.concat([*parts, stopped(rows)], ignore_index=True)
    found = results.summarise(values, stages, "draft_1").drop(columns="minus_p_given_trainings", errors="ignore")
    results.write(found.assign(estimand=results.ESTIMAND), str(TABLE))
    results.write(per_run(rows), "study/rivals_runs.csv")
    print(f"{len(rows.groupby(RUN))} of {wanted} runs are done")
