"""The evidence behind notebook 05: `python study/tuning.py tune ROW SEED` tunes a generator by that notebook on one reward with one seed,
`... measure ROW SEED` draws with it and measures, `... table` puts all into study/tuning_rows.parquet, study/tuning.csv
and the curves into study/tuning_curves.csv (means over seeds) and study/tuning_runs.csv (each run, for alarms), where rows that were
not run again stay as they are. `make study` runs everything, and goes on after a kill."""

import io
import json
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
RUN_CURVES = ["gain", "other_clip", "other_pickscore", "other_ict", "other_hp", "other_icthp",
              "micro_correct", "micro_utility", "diversity", "kb"]  # fmt: skip
EVAL_EVERY = 5  # steps between two looks, so that alarms can be told apart
MEAN_EVERY = 20  # those of study/tuning_curves.csv and of the pictures
PICTURES = 4  # prompts whose pictures are kept, of each tuning's first seed after its last step; of SHOWN's at each look
SHOWN = ("edges_k1",)  # in notebook 05; in git each look of every row would be two megabytes more
TIMED_STEPS = 5


def tune(row: str, seed: int, options: dict) -> None:
    """Notebook 05 with params.yaml's values but for these."""
    folder = RUNS / f"{row}-{seed}"
    options = {"eval_every": EVAL_EVERY} | of_seed(options, seed)
    run.run("runs/src/05_draft_k.ipynb", "draft", folder / "notebook.ipynb", out=str(folder), seed=seed, **options)


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
        reward = options["reward"]
        scorer = scorers[reward] if reward in scorers else icthp.load(reward)
        values["step_seconds"] = pd.Series(seconds_of_steps(options, params, scorer))
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


def histories(row: str) -> dict[int, pd.DataFrame]:
    """Seed -> what the monitor measured of held-out prompts while the notebook tuned, a row a look."""
    found = sorted(RUNS.glob(f"{row}-[0-9]*/**/history.parquet"))
    seed_of = lambda file: int(file.relative_to(RUNS).parts[0].rpartition("-")[2])
    return {seed_of(file): pd.read_parquet(file).dropna(subset="val_loss") for file in found}


def curves(rows, every: int = 1) -> pd.DataFrame:
    """Held-out prompts while the notebook tuned: mean over seeds, lowest and highest of them, a row a measure and step, of the looks after
    a multiple of `every` steps."""
    parts = []
    for row in rows:
        for seed, history in histories(row).items():
            history = history[(history.step + 1) % every == 0]
            parts.append(history.reindex(columns=["step", *CURVES]).melt("step", var_name="measure").assign(row=row, seed=seed))
    grouped = pd.concat(parts).groupby(["row", "measure", "step"], sort=False).value
    return grouped.agg(["mean", "min", "max", "count"]).reset_index()


def run_curves(rows: dict) -> pd.DataFrame:
    """The same of each run, as `tuning.alarms` reads it: a row a look, with the number of steps done, 0 for the untuned generator."""
    parts = []
    for row, options in rows.items():
        for seed, history in histories(row).items():
            [file] = RUNS.glob(f"{row}-{seed}/**/untuned.json")
            untuned = pd.DataFrame([json.loads(file.read_text(encoding="utf-8"))])
            part = pd.concat([untuned.assign(step=0), history.assign(step=history.step + 1)]).reindex(columns=["step", *RUN_CURVES])
            parts.append(part.assign(row=row, reward=options["reward"].rpartition(":")[2], seed=seed))
    return pd.concat(parts)[["row", "reward", "seed", "step", *RUN_CURVES]]


def pictures_of(row: str) -> pd.DataFrame:
    """What the first seed's generator drew of a few prompts, at its last look, for SHOWN at all: row, step, prompt, image (a JPEG)."""
    files_found = sorted(RUNS.glob(f"{row}-0/**/snapshots.parquet"))
    if not files_found:
        return pd.DataFrame()
    snapshots = pd.read_parquet(files_found[0])
    wanted = snapshots.step % MEAN_EVERY == 0 if row in SHOWN else snapshots.step == snapshots.step.max()
    snapshots = snapshots[wanted].groupby("step").head(PICTURES)
    pixels = images.stack([io.BytesIO(file["bytes"]) for file in snapshots.image])
    return snapshots.assign(row=row, image=[file["bytes"] for file in images.encode(pixels, "JPEG", quality=92)])


def with_earlier(found: pd.DataFrame, file: str) -> pd.DataFrame:
    """`found` after those lines of a table whose row of the study was not run again; a line that says the same as one of `file` is that
    one, with its commit and machine."""
    if not Path(file).exists():
        return found
    earlier = pd.read_csv(file)
    where = [column for column in earlier if column in found and column not in ("commit", "machine")]
    known = found.merge(earlier, "left", on=where, suffixes=("", "_earlier"))
    made = {name: known[f"{name}_earlier"].fillna(known[name]).to_numpy() for name in ("commit", "machine")}
    return pd.concat([earlier[~earlier.row.isin(found.row)], found.assign(**made)], ignore_index=True)


def write(found: pd.DataFrame, file: str) -> None:
    """As results.write does, with the earlier lines."""
    partial = Path(file).with_suffix(".new.csv")
    try:
        results.write(found, str(partial))
        files.atomic(Path(file), lambda place: with_earlier(pd.read_csv(partial), file).to_csv(place, index=False))
    finally:
        partial.unlink(missing_ok=True)


def main(argv: list[str]) -> None:
    run.enter_project()
    rows = run.read_params("study/params.yaml")["tuning"]
    if argv == ["table"]:
        found = results.summarise(results.collect("tuning", {"tuning": rows}), {"tuning": rows}, "base")
        write(found.assign(estimand=results.ESTIMAND), "study/tuning.csv")
        tuned = {row: options for row, options in rows.items() if histories(row)}
        if tuned:
            write(curves(tuned, MEAN_EVERY), "study/tuning_curves.csv")
            write(run_curves(tuned), "study/tuning_runs.csv")
            pictures = Path("study/tuning_pictures.parquet")
            earlier = pd.read_parquet(pictures) if pictures.exists() else pd.DataFrame({"row": []})
            found = [earlier[~earlier.row.isin(tuned)], *(pictures_of(row) for row in tuned)]
            files.atomic(pictures, pd.concat(found, ignore_index=True).to_parquet)
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
