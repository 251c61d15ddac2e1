"""Keep hours of results where a change cannot touch them: `python study/keep.py [STAGE ROW SEED]` trains and measures one control again, by
default `ict corrected 0`, in a folder of its own. Equal to the kept result to the last digit, every result of the study is taken as one of
today's code (`dvc commit`); unequal, it says what differs and keeps nothing. Choose a row that the change would have touched."""

import subprocess
import sys
import tempfile
from pathlib import Path

import controls
import pandas as pd
import results

from icthp import run

WHERE = ["measure", "index", "unit"]


def differences(earlier: pd.DataFrame, again: pd.DataFrame) -> list[str]:
    """A sentence for each measure whose rows or values are not the same in both; values are compared exactly. Empty where all are."""
    both = earlier.merge(again, on=WHERE, how="outer", suffixes=("_earlier", "_again"), indicator=True, validate="one_to_one")
    return [sentence for measure, part in both.groupby("measure", sort=False) if (sentence := _difference(measure, part))]


def _difference(measure: str, part: pd.DataFrame) -> str:
    lone = int((part["_merge"] != "both").sum())
    if lone:
        return f"{measure}: {lone} of {len(part)} rows are in one of the two alone"
    same = part.value_earlier.eq(part.value_again) | (part.value_earlier.isna() & part.value_again.isna())
    far = (part.value_earlier - part.value_again).abs().max()
    return "" if same.all() else f"{measure}: {int((~same).sum())} of {len(part)} values differ, by {far:.3g} at most"


def probe(stage: str, row: str, seed: int, out: Path) -> pd.DataFrame:
    """The control trained and measured again, with its model in `out`."""
    params = run.read_params()
    options = run.read_params("study/params.yaml")[stage][row]
    return controls.measured(controls.trained(stage, row, seed, params, options, out), params)


def main(argv: list[str]) -> int:
    run.enter_project()
    if len(argv) not in (0, 3):
        print(f'{" ".join(argv)} is no row of the study: name its stage, row and seed, as in ROW="hp corrected 0"', file=sys.stderr)
        return 1
    stage, row, seed = argv or ["ict", "corrected", "0"]
    result = results.RUNS / stage / f"{row}-{seed}.parquet"
    if not result.exists():
        print(f"{result} is missing, so there is nothing to keep: `make study` makes it", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        found = differences(pd.read_parquet(result), probe(stage, row, int(seed), Path(folder)))
    if found:
        print(f"{result} is not what today's code gives; nothing is kept (run `make study`)", *found, sep="\n", file=sys.stderr)
        return 1
    if subprocess.run(["dvc", "commit", "-q", "-f"], cwd="study").returncode:
        print("dvc keeps nothing, for the reason above; where a result is missing, `make study` goes on", file=sys.stderr)
        return 1
    print(f"{result} is what today's code gives: the study's results are kept")
    return 0


if __name__ == "__main__":
    run.own_code()
    sys.exit(main(sys.argv[1:]))
