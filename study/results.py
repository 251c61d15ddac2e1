"""What the study keeps and tells: the value of every row of every run in study/NAME_rows.parquet, from which study/NAME.csv is computed,
anew too where the runs are gone."""

import os
import platform
import subprocess
from pathlib import Path

import pandas as pd

from icthp import evaluation, files

RUNS = Path("study/runs")
ESTIMAND = "mean over rows, interval over prompts and seeds"
COLUMNS = ["stage", "row", "seed", "measure", "index", "unit", "value"]


def collect(name: str, stages: dict[str, dict]) -> pd.DataFrame:
    """Every value of every run of these stages, a row a measure and test row or picture (COLUMNS; unit: its prompt or scene), kept in
    study/NAME_rows.parquet. What was kept of a run that is no longer in study/runs stays."""
    file, found = Path(f"study/{name}_rows.parquet"), []
    for stage, row in ((stage, row) for stage, named in stages.items() for row in named):
        for path in sorted((RUNS / stage).glob(f"{row}-[0-9]*.parquet")):
            found.append(pd.read_parquet(path).assign(stage=stage, row=row, seed=int(path.stem.rpartition("-")[2])))
    run = ["stage", "row", "seed"]
    if file.exists():
        kept, new = pd.read_parquet(file), {tuple(part[run].iloc[0]) for part in found}
        found.append(kept[[tuple(key) not in new for key in kept[run].itertuples(index=False)]])
    if not found:
        raise FileNotFoundError(f"neither {RUNS} nor {file} holds a measured run: `make study` makes them")
    values = pd.concat(found)[COLUMNS].astype({"value": "float32"}).reset_index(drop=True)
    files.atomic(file, lambda partial: values.to_parquet(partial, compression="zstd", index=False))
    return values


def table(values: pd.DataFrame, stages: dict[str, dict], against: str = "") -> pd.DataFrame:
    """A row of a table each row of the stages and measure: mean over rows and seeds, 95 % bootstrap over prompts and over seeds, lowest and
    highest seed. Beside it `minus`, the mean paired difference from the row `against` of the stage, if given, and its p, which conditions
    on the trainings (statistics.paired)."""
    rows = []
    for stage, row in ((stage, row) for stage, named in stages.items() for row in named):
        mine = values[(values.stage == stage) & (values.row == row)]
        if mine.empty:
            print(f"{stage} {row} was not measured")
        for measure, part in mine.groupby("measure", sort=False):
            other = values[(values.stage == stage) & (values.row == against) & (values.measure == measure)]
            entry = {"stage": stage, "row": row, "measure": measure} | _summary(part)
            rows.append(entry | (_minus(part, other) if row != against and len(other) else {}))
    return pd.DataFrame(rows)


def _summary(part: pd.DataFrame) -> dict:
    by_seed = part.groupby("seed").value.mean()
    found = evaluation.bootstrap_ci(part.value, part.unit, part.seed)
    return found | {"n": part["index"].nunique(), "seeds": len(by_seed), "lowest_seed": by_seed.min(), "highest_seed": by_seed.max()}


def _minus(part: pd.DataFrame, other: pd.DataFrame) -> dict:
    """The differences of the same row with the same seed."""
    pair = part.merge(other, on=["seed", "index", "unit"], suffixes=("", "_other"), validate="one_to_one")
    if pair.empty:
        return {}
    found = evaluation.permutation_test(pair.value, pair.value_other, pair.unit, pair.seed)
    names = {"mean": "minus", "low": "minus_low", "high": "minus_high", "p": "minus_p_given_trainings"}
    return {name: found[key] for key, name in names.items()}


def write(found: pd.DataFrame, file: str) -> None:
    """A table of results as csv, with the commit and machine that made it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found = found.assign(commit=commit, machine=f"{os.cpu_count()} cores, {platform.machine()}").round(4)
    files.atomic(Path(file), lambda partial: found.to_csv(partial, index=False))
    print(found.to_string())
