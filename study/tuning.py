"""The evidence behind notebook 05: `python study/tuning.py tune ROW SEED` tunes a generator by that notebook on one reward with one seed,
`... measure ROW SEED` draws with it and measures, `... table` puts all into study/tuning_rows.parquet, study/tuning.csv
and the curves into study/tuning_curves.csv. `make study` runs everything, and goes on after a kill."""

import sys
from pathlib import Path

import pandas as pd
import results
import torch

import icthp
from icthp import evaluation, files, microworld, pipelines, run, tables, tuning
from icthp.evaluation import geneval

READ, RUNS = run.read_params, results.RUNS / "tuning"
CURVES = ["held_out_reward", "val_loss", "kb", "micro_right", "micro_richness", "spread"]


def tune(row: str, seed: int, options: dict) -> None:
    """Notebook 05 with params.yaml's values but for these."""
    folder = RUNS / f"{row}-{seed}"
    run.run("runs/src/05_draft_k.ipynb", "draft", folder / "notebook.ipynb", out=str(folder), seed=seed, **options)


def measure(row: str, seed: int, options: dict, params: dict) -> pd.DataFrame:
    """One row a picture and measure, as notebook 06 measures: measure, index (its number), unit (its prompt), value. A row without a reward
    is the untuned generator."""
    shared, own = params["shared"], params["evaluate"]
    models = shared["models"]
    sources = {"clip": shared["clip"], "pickscore": shared["pickscore"], "ict": f"local-dir:{models}/ict", "hp": f"{models}/hp",
               "icthp": models}  # fmt: skip
    scorers = {name: icthp.load(name, source) for name, source in sources.items()}
    pipe = pipelines.load_pipeline(own["generator"])
    if options:
        tuning.load_lora(pipe, RUNS / f"{row}-{seed}" / options["reward"])
    prompts = Path(shared["prompts"])
    tasks = [task for task in geneval.read_metadata(prompts / "geneval.jsonl") for _ in range(own["geneval_images"])]
    texts = tables.read_lines(prompts / "test.txt")[: own["test_prompts"]]
    draw = lambda texts, ids: tuning.generate(
        pipe, texts, steps=shared["sampler_steps"], seed=100_000 * seed, ids=ids, size=shared["size"], guidance=own["guidance"]
    )
    values, _ = evaluation.evaluate_generator(
        draw, texts, tasks, scorers, microworld.load_detector(shared["detector"], scorers["clip"]).measure
    )
    frames = [pd.DataFrame({"measure": name, "index": range(len(v)), "unit": list(map(str, v.index)), "value": v.to_numpy()})
              for name, v in values.items()]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def curves(rows) -> pd.DataFrame:
    """What the notebook saw of held-out prompts while it tuned: mean over seeds, lowest and highest of them."""
    parts = []
    for row in rows:
        for seed, file in enumerate(sorted(RUNS.glob(f"{row}-*/*/history.parquet"))):
            seen = pd.read_parquet(file).dropna(subset="val_loss")
            parts.append(seen.reindex(columns=["step", *CURVES]).melt("step", var_name="measure").assign(row=row, seed=seed))
    grouped = pd.concat(parts).groupby(["row", "measure", "step"], sort=False).value
    return grouped.agg(["mean", "min", "max", "count"]).reset_index()


def main(argv: list[str]) -> None:
    run.enter_project()
    params, rows = READ(Path("params.yaml")), READ(Path("study/params.yaml"))["tuning"]
    if argv == ["table"]:
        found = results.table(results.collect("tuning", {"tuning": rows}), {"tuning": rows})
        results.write(found.assign(estimand=results.ESTIMAND), "study/tuning.csv")
        if list(RUNS.glob("*/*/history.parquet")):
            results.write(curves([row for row, options in rows.items() if options]), "study/tuning_curves.csv")
        return
    job, row, seed = argv[0], argv[1], int(argv[2])
    torch.manual_seed(seed)
    if job == "tune":
        tune(row, seed, rows[row])
    else:
        RUNS.mkdir(parents=True, exist_ok=True)
        files.atomic(RUNS / f"{row}-{seed}.parquet", measure(row, seed, rows[row], params).to_parquet)


if __name__ == "__main__":
    run.own_code()
    main(sys.argv[1:])
