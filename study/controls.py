"""The evidence behind notebooks 03 and 04: `python study/controls.py STAGE ROW SEED` trains one control with one seed and measures it,
`python study/controls.py table` puts all that is there into study/controls_rows.parquet and study/controls.csv. `make study` runs
everything, and goes on after a kill."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import results
import torch
from results import RUNS

import icthp
from icthp import data, evaluation, files, images, microworld, run, scorers, train
from icthp.data import audit
from icthp.evaluation import human_votes


class Statistics(scorers.Scorer):
    """A logistic regression on differences of low-level cues (colour, edges, spectrum): Bradley-Terry without a network."""

    needs_prompt = False

    def __init__(self, triplets: data.Triplets):
        super().__init__()
        one, two, three = (self.cues(pixels) for pixels in triplets.pixels(range(len(triplets))))
        better = np.concatenate([two - one, three - two])
        self.model = audit.ranker().fit(np.concatenate([better, -better]), np.repeat([1, 0], len(better)))

    @staticmethod
    def cues(pixels: torch.Tensor) -> np.ndarray:
        """(b, 3, h, w) in [0, 1] -> (b, d), the cues of the pictures as files."""
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
    test = data.Triplets(params["shared"]["triplets"], "test", params["shared"]["size"])
    scores = evaluation.score_triplets(scorer, test)
    values = {pair: (test.texts["easy"], correct) for pair, correct in evaluation.preference(scores).items()}
    if scorer.needs_prompt:
        values |= notices(scorer, test, scores)
    scenes = microworld.sample(params["evaluate"]["micro_scenes"], torch.Generator().manual_seed(params["shared"]["seed"]))
    with torch.no_grad():
        values["paradox_rate"] = range(len(scenes)), evaluation.paradox_rate(microworld.score_by_level(scorer.score, scenes))
    values |= agrees(scorer, params)
    return pd.concat([results.rows_of(name, units, part.double().numpy()) for name, (units, part) in values.items()], ignore_index=True)


def notices(scorer: scorers.Scorer, test: data.Triplets, scores: torch.Tensor) -> dict:
    """{measure: (prompts, values)}: does I3 score higher with its own prompt than with another row's, or with a hard negative, on the rows
    that have one?"""
    easy = np.array(test.texts["easy"])
    order = np.random.default_rng(0).permutation(len(test))
    negatives = [negative or prompt for negative, prompt in zip(test.texts["near"], easy)]
    has_negative = [i for i, negative in enumerate(test.texts["near"]) if negative]
    values = {}
    for control, prompts, rows in (("shuffled", easy[order].tolist(), range(len(test))), ("hard_negative", negatives, has_negative)):
        rows = list(rows)
        control_scores = evaluation.score_triplets(scorer, test, prompts=prompts)
        values[f"notices_{control}"] = easy[rows], evaluation.pairwise_accuracy(scores[:, 2], control_scores[:, 2])[rows]
    return values


def agrees(scorer: scorers.Scorer, params: dict) -> dict:
    """{measure: (prompts, values)}: does the scorer order two pictures of one prompt as a judge of alignment, or of quality, does? The
    pictures are those of notebook 06."""
    generator = torch.Generator().manual_seed(params["shared"]["seed"] + 3)
    with tempfile.TemporaryDirectory() as folder:
        voted = microworld.axis_votes(params["evaluate"]["micro_voted_scenes"], generator, folder)
        pictures = voted[["image", "prompt"]].drop_duplicates()
        scores = evaluation.score_all(scorer, images.stack(list(pictures.image), params["shared"]["size"]), list(pictures.prompt))
    scored = voted.merge(pictures.assign(score=scores.numpy()))
    found = {axis: human_votes.ordered_pairs(part) for axis, part in scored.groupby("axis", sort=False)}
    return {f"agrees_{axis}": (prompts, torch.from_numpy(values)) for axis, (values, prompts) in found.items()}


def main(argv: list[str]) -> None:
    run.enter_project()
    rows = run.read_params("study/params.yaml")
    if argv == ["table"]:
        stages = {stage: rows[stage] for stage in ("ict", "hp")}
        found = results.summarise(results.collect("controls", stages), stages, "corrected")
        results.write(found.assign(estimand=results.ESTIMAND), "study/controls.csv")
        return
    stage, row, seed = argv[0], argv[1], int(argv[2])
    params = run.read_params()
    out = RUNS / stage / f"{row}-{seed}"
    values = measured(trained(stage, row, seed, params, rows[stage][row], out), params)
    files.atomic(out.with_name(f"{out.name}.parquet"), values.to_parquet)
    print(stage, row, seed, values.groupby("measure", sort=False).value.mean().round(3).to_dict())


if __name__ == "__main__":
    run.own_code()
    main(sys.argv[1:])
