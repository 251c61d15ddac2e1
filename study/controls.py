"""The evidence behind notebooks 03 and 04: `python study/controls.py STAGE ROW SEED` trains one control with one seed and measures it,
`python study/controls.py table` puts all that is there into study/controls.csv. `make study` runs everything, and goes on after a kill."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from icthp import audit, evaluate, microworld, pick_high, pictures, run, scores, train

RUNS = Path("runs/study")
READ = run.read_params


class Statistics(scores.Scorer):
    """A logistic regression on differences of low-level cues (colour, edges, spectrum): Bradley-Terry without a network."""

    needs_prompt = False

    def __init__(self, triplets: pick_high.Triplets):
        super().__init__()
        one, two, three = (self.cues(part) for part in triplets.pixels(range(len(triplets))))
        better = np.concatenate([two - one, three - two])
        self.model = audit.ranker().fit(np.concatenate([better, -better]), np.repeat([1, 0], len(better)))

    @staticmethod
    def cues(pixels: torch.Tensor) -> np.ndarray:
        found = [audit.cues(file["bytes"]) for file in pictures.encode(pixels)]
        return np.stack([np.concatenate([cue[name] for name in ("colour", "edges", "spectrum")]) for cue in found])

    def forward(self, pixels, prompts=None):
        return torch.from_numpy(self.model.decision_function(self.cues(pixels))).float()


def trained(stage: str, row: str, seed: int, params: dict, options: dict) -> scores.Scorer:
    """The control of this name: trained here, or the product of two that were."""
    if row == "icthp":
        return scores.load("icthp", f"{RUNS}/ict/corrected-{seed},{RUNS}/hp/corrected-{seed}")
    if row == "base":
        return scores.load("clip", params["shared"]["clip"])
    if row == "statistics":
        return Statistics(pick_high.Triplets(params["shared"]["triplets"], "train", params["shared"]["size"]))
    function, out = train.STAGES[stage], RUNS / stage / f"{row}-{seed}"
    options = {"ict": f"local-dir:{RUNS}/ict/corrected-{seed}"} | options if options.get("text_lambda") else options
    function(**run.arguments(function, f"train_{stage}", options | {"out": str(out), "seed": seed}))
    return scores.load(stage, f"local-dir:{out}" if stage == "ict" else str(out))


def measured(scorer: scores.Scorer, params: dict) -> pd.DataFrame:
    """One row a test prompt or scene and measure: measure, unit (what was drawn), value."""
    test, parts = pick_high.Triplets(params["shared"]["triplets"], "test", params["shared"]["size"]), {}
    own = evaluate.score_triplets(scorer, test)
    units = test.texts["easy"]
    for pair, right in evaluate.preference(own).items():
        parts[pair] = units, right
    if scorer.needs_prompt:
        order = np.random.default_rng(0).permutation(len(test))
        others = {"notices_shuffled": [units[i] for i in order], "notices_near": [n or e for n, e in zip(test.texts["near"], units)]}
        for name, prompts in others.items():
            other = evaluate.score_triplets(scorer, test, prompts=prompts)
            parts[name] = units, evaluate.wins(own[:, 2], other[:, 2])
    scenes = microworld.sample(params["evaluate"]["paradox_scenes"], torch.Generator().manual_seed(params["shared"]["seed"]))
    with torch.no_grad():
        parts["paradox_rate"] = range(len(scenes)), evaluate.paradox_rate(evaluate.score_by_level(scorer.score, scenes))
    frames = [pd.DataFrame({"measure": name, "unit": list(map(str, u)), "value": v.double().numpy()}) for name, (u, v) in parts.items()]
    return pd.concat(frames, ignore_index=True)


def table(stages: dict[str, dict], against: str = "") -> pd.DataFrame:
    """Every row of the stages that was measured: mean over prompts and seeds, 95 % bootstrap over prompts of their means over seeds. Beside
    it `minus`, the mean paired difference from the row `against` of the stage, if given, and its p (evaluate.paired)."""
    rows = []
    for stage, row in ((stage, row) for stage, named in stages.items() for row in named):
        values = seeds_of(stage, row)
        if values is None:
            print(f"{stage} {row} was not measured")
            continue
        other = seeds_of(stage, against) if against not in ("", row) else None
        for measure, part in values.groupby("measure", sort=False):
            by_seed = part.groupby("seed").value.mean()
            entry = {"stage": stage, "row": row, "measure": measure} | evaluate.interval(part.value, part.unit)
            entry |= {"seeds": len(by_seed), "lowest_seed": by_seed.min(), "highest_seed": by_seed.max()}
            if other is not None and measure in set(other.measure):
                pair = [x[x.measure == measure].groupby("unit").value.mean() for x in (values, other)]
                apart = evaluate.paired(pair[0], pair[1].reindex(pair[0].index))
                entry |= {"minus": apart["mean"], "minus_low": apart["low"], "minus_high": apart["high"], "minus_p": apart["p"]}
            rows.append(entry)
    return pd.DataFrame(rows)


def seeds_of(stage: str, row: str) -> pd.DataFrame | None:
    """What was measured of a row with every seed, None if nothing was."""
    files = sorted((RUNS / stage).glob(f"{row}-[0-9]*.parquet"))
    return pd.concat([pd.read_parquet(file).assign(seed=seed) for seed, file in enumerate(files)]) if files else None


def stamp(found: pd.DataFrame, file: str) -> None:
    """Write a table of results with the commit and machine that made it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found = found.assign(commit=commit, machine=f"{os.cpu_count()} cores, {platform.machine()}")
    found.round(4).to_csv(file, index=False)
    print(found.to_string())


def main(argv: list[str]) -> None:
    run.enter_project()
    rows = READ(Path("study/params.yaml"))
    if argv == ["table"]:
        stamp(table({stage: rows[stage] for stage in ("ict", "hp")}, "corrected"), "study/controls.csv")
        return
    stage, row, seed = argv[0], argv[1], int(argv[2])
    params, options = READ(Path("params.yaml")), rows[stage][row]
    values = measured(trained(stage, row, seed, params, options), params)
    values.to_parquet(RUNS / stage / f"{row}-{seed}.parquet")
    print(stage, row, seed, values.groupby("measure", sort=False).value.mean().round(3).to_dict())


if __name__ == "__main__":
    run.own_code()
    main(sys.argv[1:])
