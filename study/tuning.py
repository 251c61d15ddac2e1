"""The evidence behind notebook 05: `python study/tuning.py tune ROW SEED` tunes a generator by that notebook on one reward with one seed,
`... measure ROW SEED` draws with it and measures, `... table` puts all into study/tuning_rows.parquet, study/tuning.csv
and the curves into study/tuning_curves.csv. `make study` runs everything, and goes on after a kill."""

import io
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import results
import torch

import icthp
from icthp import evaluation, files, images, microworld, pipelines, run, tables, timing, tuning
from icthp.evaluation import geneval
from icthp.tuning import optimisers

RUNS = results.RUNS / "tuning"
CURVES = ["held_out_reward", "val_loss", "kb", "micro_correct", "micro_utility", "micro_richness", "micro_artefact", "micro_grid",
          "diversity", "score_clip", "score_pickscore", "score_ict", "score_hp"]  # fmt: skip
PICTURES = 4  # prompts whose pictures are kept, of each tuning's first seed
TIMED_STEPS = 5


def tune(row: str, seed: int, options: dict) -> None:
    """Notebook 05 with params.yaml's values but for these."""
    folder = RUNS / f"{row}-{seed}"
    run.run("runs/src/05_draft_k.ipynb", "draft", folder / "notebook.ipynb", out=str(folder), seed=seed, **of_seed(options, seed))


def of_seed(options: dict, seed: int) -> dict:
    return {name: value.format(seed=seed) if isinstance(value, str) else value for name, value in options.items()}


def measure(row: str, seed: int, options: dict, params: dict) -> pd.DataFrame:
    """One row a picture and measure, as notebook 06 measures: measure, index (its number), unit (its prompt), value. A row without a reward
    is the untuned generator."""
    shared, own = params["shared"], params["evaluate"]
    scorers = load_scorers(shared)
    pipe = pipelines.load_pipeline(own["generator"], transformer=own["transformer"])
    if options:
        tuning.load_lora(pipe, RUNS / f"{row}-{seed}" / options["reward"])
    sample_kwargs = {"steps": shared["sampler_steps"], "size": shared["size"], "guidance": own["guidance"]}
    draw = partial(tuning.generate, pipe, seed=100_000 * seed, **sample_kwargs)
    prompts = Path(shared["prompts"])
    tasks = [task for task in geneval.read_metadata(prompts / "geneval.jsonl") for _ in range(own["geneval_images"])]
    texts = tables.read_lines(prompts / "test.txt")[: own["test_prompts"]]
    detector = microworld.load_detector(shared["detector"], scorers["clip"])
    pictures = (pixels for part in evaluation.pictures_wanted(texts, tasks).parts(64) for pixels in draw(part.prompts, ids=part.ids))
    values, pixels = evaluation.evaluate_generator(pictures, texts, tasks, scorers, detector.measure, shown=len(texts))
    scenes = microworld.parse(texts, torch.Generator().manual_seed(0))
    qualities = microworld.read_qualities(detector, pixels, scenes)
    readings = {"alignment": qualities["alignment"], "quality": microworld.quality(qualities), "utility": microworld.utility(qualities)}
    values |= {f"micro_{name}": pd.Series(reading.numpy(), texts) for name, reading in readings.items()}
    if options:
        values["step_seconds"] = pd.Series(seconds_of_steps(options, params, scorers[options["reward"]]))
    return pd.concat([results.rows_of(name, series.index, series.to_numpy()) for name, series in values.items()], ignore_index=True)


def seconds_of_steps(options: dict, params: dict, scorer) -> list[float]:
    """Seconds of the processor that some steps of this tuning take: what its kind of gradient costs."""
    shared, own = params["shared"], params["draft"] | options
    pipe = pipelines.load_pipeline(own["generator"], transformer=own["transformer"])
    tuning.add_lora(pipe, own["rank"], seed=0)
    update = {"draft": partial(tuning.draft_step, k=own["k"], lv_samples=own["lv_samples"], anchor=own["anchor"], merge=True),
              "dpo": partial(tuning.fit_step, loss=partial(optimisers.dpo, beta=own["dpo_beta"]))}[own["method"]]  # fmt: skip
    prompts = tables.read_lines(Path(shared["prompts"]) / "train.txt")[: own["batch"]]
    cond = tuning.encode(pipe, prompts)
    reward = lambda pixels, rows: scorer.score(pixels, [prompts[i] for i in rows.tolist()])
    step = partial(
        update, pipe, *cond, reward, steps=shared["sampler_steps"], size=shared["size"], generator=torch.Generator().manual_seed(0)
    )
    return timing.benchmark({"step": step}, TIMED_STEPS)["step"]


def load_scorers(shared: dict) -> dict:
    return {name: icthp.load(name, source) for name, source in results.sources(shared).items()}


def curves(rows) -> pd.DataFrame:
    """Held-out prompts while the notebook tuned: mean over seeds, lowest and highest of them, a row a measure and step."""
    parts = []
    for row in rows:
        for seed, file in enumerate(sorted(RUNS.glob(f"{row}-*/*/history.parquet"))):
            history = pd.read_parquet(file).dropna(subset="val_loss")
            parts.append(history.reindex(columns=["step", *CURVES]).melt("step", var_name="measure").assign(row=row, seed=seed))
    grouped = pd.concat(parts).groupby(["row", "measure", "step"], sort=False).value
    return grouped.agg(["mean", "min", "max", "count"]).reset_index()


def pictures_of(row: str) -> pd.DataFrame:
    """What the first seed's generator drew of a few prompts at every look: row, step, prompt, image (JPEG contents)."""
    files_found = sorted(RUNS.glob(f"{row}-0/*/snapshots.parquet"))
    if not files_found:
        return pd.DataFrame()
    snapshots = pd.read_parquet(files_found[0]).groupby("step").head(PICTURES)
    pixels = images.stack([io.BytesIO(file["bytes"]) for file in snapshots.image])
    return snapshots.assign(row=row, image=[file["bytes"] for file in images.encode(pixels, "JPEG", quality=92)])


def main(argv: list[str]) -> None:
    run.enter_project()
    rows = run.read_params("study/params.yaml")["tuning"]
    if argv == ["table"]:
        found = results.summarise(results.collect("tuning", {"tuning": rows}), {"tuning": rows}, "base")
        results.write(found.assign(estimand=results.ESTIMAND), "study/tuning.csv")
        if list(RUNS.glob("*/*/history.parquet")):
            results.write(curves([row for row, options in rows.items() if options]), "study/tuning_curves.csv")
            pictures = pd.concat([pictures_of(row) for row, options in rows.items() if options], ignore_index=True)
            files.atomic(Path("study/tuning_pictures.parquet"), pictures.to_parquet)
        return
    job, row, seed = argv[0], argv[1], int(argv[2])
    torch.manual_seed(seed)
    if job == "tune":
        tune(row, seed, rows[row])
    else:
        RUNS.mkdir(parents=True, exist_ok=True)
        values = measure(row, seed, rows[row], run.read_params())
        files.atomic(RUNS / f"{row}-{seed}.parquet", values.to_parquet)


if __name__ == "__main__":
    run.own_code()
    main(sys.argv[1:])
