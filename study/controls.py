"""The evidence behind notebooks 03 and 04: `python study/controls.py STAGE ROW SEED` trains one control with one seed and measures it,
`python study/controls.py table` puts all that is there into study/controls_rows.parquet and study/controls.csv. `make study` runs
everything, and goes on after a kill."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import results
import torch
from results import RUNS

import icthp
from icthp import data, evaluation, files, images, microworld, run, scorers, train
from icthp.data import audit

READ = run.read_params


class Statistics(scorers.Scorer):
    """A logistic regression on differences of low-level cues (colour, edges, spectrum): Bradley-Terry without a network."""

    needs_prompt = False

    def __init__(self, triplets: data.Triplets):
        super().__init__()
        one, two, three = (self.cues(part) for part in triplets.pixels(range(len(triplets))))
        better = np.concatenate([two - one, three - two])
        self.model = audit.ranker().fit(np.concatenate([better, -better]), np.repeat([1, 0], len(better)))

    @staticmethod
    def cues(pixels: torch.Tensor) -> np.ndarray:
        found = [audit.cues(file["bytes"]) for file in images.encode(pixels)]
        return np.stack([np.concatenate([cue[name] for name in ("colour", "edges", "spectrum")]) for cue in found])

    def forward(self, pixels, prompts=None):
        return torch.from_numpy(self.model.decision_function(self.cues(pixels))).float()


def trained(stage: str, row: str, seed: int, params: dict, options: dict, out: Path) -> scorers.Scorer:
    """The control of this name: trained here, with its model in `out`, or the product of two that were."""
    if row == "icthp":
        return icthp.load("icthp", f"{RUNS}/ict/corrected-{seed},{RUNS}/hp/corrected-{seed}")
    if row == "base":
        return icthp.load("clip", params["shared"]["clip"])
    if row == "statistics":
        return Statistics(data.Triplets(params["shared"]["triplets"], "train", params["shared"]["size"]))
    function = train.STAGES[stage]
    options = {"ict": f"local-dir:{RUNS}/ict/corrected-{seed}"} | options if options.get("text_lambda") else options
    function(**run.arguments(function, f"train_{stage}", options | {"out": str(out), "seed": seed}))
    return icthp.load(stage, f"local-dir:{out}" if stage == "ict" else str(out))


def measured(scorer: scorers.Scorer, params: dict) -> pd.DataFrame:
    """One row a test row or scene and measure: measure, index (its number), unit (its prompt or scene), value."""
    test, parts = data.Triplets(params["shared"]["triplets"], "test", params["shared"]["size"]), {}
    own = evaluation.score_triplets(scorer, test)
    units, near = np.array(test.texts["easy"]), test.texts["near"]
    for pair, right in evaluation.preference(own).items():
        parts[pair] = units, right
    if scorer.needs_prompt:
        order = np.random.default_rng(0).permutation(len(test))
        others = {"notices_shuffled": [units[i] for i in order], "notices_near": [n or e for n, e in zip(near, units)]}
        for name, prompts in others.items():
            other = evaluation.score_triplets(scorer, test, prompts=prompts)
            counts = [i for i, miss in enumerate(near) if miss or name != "notices_near"]  # a row without a near miss does not count
            parts[name] = units[counts], evaluation.pairwise_accuracy(own[:, 2], other[:, 2])[counts]
    scenes = microworld.sample(params["evaluate"]["micro_scenes"], torch.Generator().manual_seed(params["shared"]["seed"]))
    with torch.no_grad():
        parts["paradox_rate"] = range(len(scenes)), evaluation.paradox_rate(microworld.score_by_level(scorer.score, scenes))
    frames = [pd.DataFrame({"measure": name, "index": range(len(u)), "unit": list(map(str, u)), "value": v.double().numpy()})
              for name, (u, v) in parts.items()]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def main(argv: list[str]) -> None:
    run.enter_project()
    rows = READ(Path("study/params.yaml"))
    if argv == ["table"]:
        stages = {stage: rows[stage] for stage in ("ict", "hp")}
        found = results.table(results.collect("controls", stages), stages, "corrected")
        results.write(found.assign(estimand=results.ESTIMAND), "study/controls.csv")
        return
    stage, row, seed = argv[0], argv[1], int(argv[2])
    params, options = READ(Path("params.yaml")), rows[stage][row]
    out = RUNS / stage / f"{row}-{seed}"
    values = measured(trained(stage, row, seed, params, options, out), params)
    files.atomic(out.with_name(f"{out.name}.parquet"), values.to_parquet)
    print(stage, row, seed, values.groupby("measure", sort=False).value.mean().round(3).to_dict())


if __name__ == "__main__":
    run.own_code()
    main(sys.argv[1:])
