"""The study's results: the value of every row of every run in study/NAME_rows.parquet, from which study/NAME.csv is computed, also
after the runs themselves are deleted."""

import os
import platform
import subprocess
from pathlib import Path

import pandas as pd

from icthp import evaluation, files

RUNS = Path("study/runs")
ESTIMAND = "mean over rows, interval over prompts and seeds"
RUN = ["stage", "row", "seed"]
COLUMNS = [*RUN, "measure", "index", "unit", "value"]

SMALL = {
    "compression": "zstd",
    "compression_level": 19,
    "index": False,
    "use_dictionary": ["stage", "row", "measure", "unit", "value"],
    "column_encoding": {"index": "DELTA_BINARY_PACKED"},
}  # of parquet: in git each byte counts twice


def sources(shared: dict) -> dict[str, str]:
    """Of each scorer that the project has trained or fetched, by params.yaml's `shared`."""
    models = shared["models"]
    return {
        "clip": shared["clip"],
        "pickscore": shared["pickscore"],
        "ict": f"local-dir:{models}/ict",
        "hp": f"{models}/hp",
        "icthp": models,
    }


def rows_of(measure: str, units, values) -> pd.DataFrame:
    """Values of one measure as rows: measure, index (the number of a test row, scene or picture), unit (its prompt or scene), value."""
    units = list(map(str, units))
    return pd.DataFrame({"measure": measure, "index": range(len(units)), "unit": units, "value": values})


def collect(name: str, stages: dict[str, dict]) -> pd.DataFrame:
    """Every value of every run of these stages, a row a measure and test row or picture (COLUMNS; unit: its prompt or scene), written to
    study/NAME_rows.parquet. Rows of a run that is no longer in study/runs stay there."""
    file = Path(f"study/{name}_rows.parquet")
    found = []
    for stage, rows in stages.items():
        for row in rows:
            found += [_read(path, stage, row) for path in sorted((RUNS / stage).glob(f"{row}-[0-9]*.parquet"))]
    if file.exists():
        earlier = pd.read_parquet(file)
        measured_again = {tuple(part[RUN].iloc[0]) for part in found}
        found.append(earlier[[tuple(run) not in measured_again for run in earlier[RUN].itertuples(index=False)]])
    if not found:
        raise FileNotFoundError(f"neither {RUNS} nor {file} holds a measured run: `make study` makes them")
    values = pd.concat(found)[COLUMNS].round({"value": 4}).astype({"value": "float32"}).reset_index(drop=True)
    files.atomic(file, lambda partial: values.to_parquet(partial, **SMALL))
    return values


def _read(path: Path, stage: str, row: str) -> pd.DataFrame:
    """The values of one run, with its stage, row and seed."""
    return pd.read_parquet(path).assign(stage=stage, row=row, seed=int(path.stem.rpartition("-")[2]))


def summarise(values: pd.DataFrame, stages: dict[str, dict], against: str = "") -> pd.DataFrame:
    """A row of a table each row of the stages and measure: mean over rows and seeds, 95 % bootstrap over prompts and over seeds, lowest and
    highest seed. Beside it `minus`, the mean paired difference from the row `against` of the stage, if given, and its p, which conditions
    on the trainings (evaluation.permutation_test)."""
    rows = []
    for stage, row in ((stage, row) for stage, named in stages.items() for row in named):
        own = values[(values.stage == stage) & (values.row == row)]
        if own.empty:
            print(f"{stage} {row} was not measured")
        for measure, part in own.groupby("measure", sort=False):
            reference = values[(values.stage == stage) & (values.row == against) & (values.measure == measure)]
            entry = {"stage": stage, "row": row, "measure": measure} | _summary(part)
            rows.append(entry | (_minus(part, reference) if row != against and len(reference) else {}))
    return pd.DataFrame(rows)


def _summary(part: pd.DataFrame) -> dict:
    by_seed = part.groupby("seed").value.mean()
    found = evaluation.bootstrap_ci(part.value, part.unit, part.seed)
    return found | {"n": part["index"].nunique(), "seeds": len(by_seed), "lowest_seed": by_seed.min(), "highest_seed": by_seed.max()}


def _minus(part: pd.DataFrame, reference: pd.DataFrame) -> dict:
    """The differences of the same row with the same seed."""
    pair = part.merge(reference, on=["seed", "index", "unit"], suffixes=("", "_reference"), validate="one_to_one")
    if pair.empty:
        return {}
    found = evaluation.permutation_test(pair.value, pair.value_reference, pair.unit, pair.seed)
    names = {"mean": "minus", "low": "minus_low", "high": "minus_high", "p": "minus_p_given_trainings"}
    return {name: found[key] for key, name in names.items()}


def write(found: pd.DataFrame, file: str) -> None:
    """A table of results as csv, with the commit and machine that made it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found = found.assign(commit=commit, machine=f"{os.cpu_count()} cores, {platform.machine()}").round(4)
    files.atomic(Path(file), lambda partial: found.to_csv(partial, index=False))
    print(found.to_string())
