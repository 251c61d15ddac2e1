"""The lab scale rehearsed: its own profile, all stages by dvc, at its own precision, on models in their publishers' layouts
(`lab.models`), shrunk and random. Exchanged are sources, sizes and counts alone. No number here says how good anything is, but where
brighter is better by construction a scorer of brightness must be perfect."""

import re
import shutil
import sys

import nbformat
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from icthp import data
from lab import models, pictures
from lab.project import OWN, SMALL, build, parameters, project, read, refused, run, sources, stage, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """All stages at lab's profile, by dvc."""
    folder = project(tmp_path_factory.mktemp("project"), build(tmp_path_factory.mktemp("lab") / "own"))
    write(folder, parameters("lab", SMALL, sources("own", "lab")))
    run(["dvc", "repro"], folder)
    return folder


def test_a_perfect_scorer_is_perfect(lab):
    metrics = read(lab / "runs/evaluate/metrics.json")
    assert metrics[f"{OWN}_plain_i2_i1_acc"] == metrics[f"{OWN}_same_encoding_i2_i1_acc"] == 1 and metrics[f"{OWN}_quality_pairs"] == 1
    assert metrics[f"paradox_rate_short_{OWN}"] == 0 and metrics[f"spearman_short_{OWN}"] == 1 and metrics[f"{OWN}_alignment_pairs"] == 0


def test_every_scorer_of_the_table_is_measured(lab):
    metrics = read(lab / "runs/evaluate/metrics.json")
    for name in ("clip", "pickscore", "ict", "hp", "icthp", "imagereward", OWN):
        assert 0 <= metrics[f"{name}_plain_i3_i2_acc"] <= 1 and f"base_score_{name}" in metrics and f"clip_score_{name}" in metrics
    assert {
        "base_geneval_mean",
        "icthp_geneval_mean",
        "icthp_jpeg_kb",
        "clip_diversity",
        "paradox_rate_short_imagereward",
    } <= metrics.keys()
    history = pd.read_parquet(lab / "models/draft/icthp/history.parquet")
    assert {"score_imagereward", "other_imagereward", "held_out_reward"} <= set(history.columns)
    assert "imagereward" not in history and history.reward.notna().all() and len(history) == 3


def test_what_only_the_microworld_knows_is_nowhere(lab):
    """No metric, table, figure or sentence of a result speaks of it; its cells stand in the executed notebooks, and were not run."""
    for file in [*lab.glob("runs/*/*.json"), *lab.glob("models/**/metrics.json")]:
        assert not [name for name in read(file) if "micro" in name], file
    results = [*lab.glob("figures/*"), *lab.glob("runs/*/figures/*"), *lab.glob("runs/*/tables/*")]
    assert len(results) > 20 and not [file for file in results if "micro" in file.name]
    texts = [file for file in results if file.suffix in (".md", ".tex", ".csv")]
    assert texts and not [file for file in texts if re.search(r"micro|richness|utility", file.read_text(encoding="utf-8"))]
    executed = [nbformat.read(file, 4) for file in lab.glob("runs/notebooks/*.ipynb") if not file.name.endswith(".source.ipynb")]
    assert len(executed) == 9
    for notebook in executed:
        for cell in notebook.cells:
            printed = "".join(str(o.get("text", "")) + str(o.get("data", {}).get("text/plain", "")) for o in cell.get("outputs", []))
            assert "micro" not in printed, printed[:300]
            if "micro" in cell.metadata.get("tags", []):
                assert cell.cell_type == "code" and not cell.outputs and cell.source.startswith("# Not run at this scale")


def test_sixteen_bits_where_they_are_meant(lab):
    lora = load_file(lab / "models/draft/clip/pytorch_lora_weights.safetensors")
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in lora.items())
    metrics = read(lab / "models/draft/icthp/metrics.json")
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values() if isinstance(value, float))


def test_triplets_are_those_of_photographs(lab):
    test = data.Triplets(lab / "runs/pick_high/dataset", "test", 64)
    assert len(test) == 10 and all(text.endswith("in soft morning light") for text in test.texts["refined"])
    assert test.texts["near"][0] and read(lab / "runs/pick_high/metrics.json")["rejected"] == 0
    assert not any(name.startswith("micro") for name in read(lab / "runs/pick_high/metrics.json"))


def test_a_second_run_does_nothing_and_other_pairs_run_it_again(lab):
    assert "Running stage" not in run(["dvc", "repro"], lab)
    shutil.copy(lab / "own/pairs/test.parquet", lab / "own/pairs/kept.parquet")
    pictures.pairs(lab / "own/new", test=8)
    shutil.copy(lab / "own/new/test.parquet", lab / "own/pairs/test.parquet")
    try:
        assert "pick_high" in run(["dvc", "status", "pick_high"], lab) + run(["dvc", "repro", "--dry"], lab)
    finally:
        shutil.move(lab / "own/pairs/kept.parquet", lab / "own/pairs/test.parquet")
        shutil.rmtree(lab / "own/new")


def test_weights_of_two_processes_are_evaluated_and_not_trained_again(lab):
    """`torchrun -m icthp.train`, then the stage, as dvc runs it: it removes what is not to stay."""
    for name in ("ict", "hp"):
        shutil.rmtree(lab / f"models/{name}")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "icthp.train", "--stage", name]
        run([sys.executable, *launch], lab)
        weights = lab / f"models/{name}/open_clip_model.safetensors"
        before = weights.read_bytes()
        run(["dvc", "repro", "-s", f"train_{name}"], lab)
        assert weights.read_bytes() == before and (lab / f"models/{name}/metrics.json").exists()
        assert set(pd.read_parquet(lab / f"models/{name}/history.parquet").processes) == {2}


def test_workers_draw_what_the_stages_then_find(lab):
    """Two of them share 02's pictures and labels; the stage itself draws nothing more."""
    work = lab / "runs/pick_high"
    before = {file.name: file.read_bytes() for file in work.glob("i3/*/*.parquet")}
    shutil.rmtree(work / "i3")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "icthp.run", "--work"]
    run([sys.executable, *launch, "notebooks/02_pick_high.ipynb", "pick_high"], lab)
    drawn = {file.name: file.read_bytes() for file in work.glob("i3/*/*.parquet")}
    assert drawn == before and len(list((lab / "runs/notebooks").glob("02_pick_high-worker-*[!e].ipynb"))) >= 2
    times = {file: file.stat().st_mtime_ns for file in work.glob("i3/*/*.parquet")}
    stage("02_pick_high", "pick_high", lab)
    assert times == {file: file.stat().st_mtime_ns for file in work.glob("i3/*/*.parquet")}


def test_a_chat_model_that_babbles_is_said_before_the_generator_is_loaded(lab):
    """Its prompts are none that it answers: all rows are rejected."""
    models.chat(lab / "own/babbler", {"something else": "no JSON"})
    try:
        assert "all 20 rows of train are rejected (20 no answer)" in refused(lab, "refiner_model=own/babbler")
    finally:
        shutil.rmtree(lab / "own/babbler")
