"""The larger scales rehearsed: lab's profile, all its stages, and paper's branches, at their own precision, on models in their publishers'
layouts (`lab.models`), shrunk and random. Exchanged are sources, sizes and counts alone. No number here says how good anything is, but
where brighter is better by construction a scorer of brightness must be perfect."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from icthp import data, params, pipelines
from lab import models, pictures

pytestmark = pytest.mark.slow
BRIGHTNESS = '''from icthp import scorers


class Brightness(scorers.Scorer):
    """The mean grey: perfect, where brighter is better."""

    needs_prompt = False

    def forward(self, pixels, prompts=None):
        return pixels.mean((1, 2, 3))
'''
OWN = "perfect.py:Brightness"
SMALL = {  # counts and sizes
    "shared": {"size": 64, "sampler_steps": 3, "device": "cpu", "generator_batch": 4, "rewards": ["clip", "icthp"],
               "watched": ["own", "perfect.py"]},
    "pick_high": {"generator_steps": 2, "audit_rows": 12, "audit_side": 48},
    "train_ict": {"steps": 3, "batch": 6, "warmup": 1, "validation": 0.2, "validate_every": 2},
    "train_hp": {"steps": 3, "batch": 6, "warmup": 1, "validation": 0.2, "validate_every": 2},
    "draft": {"steps": 3, "batch": 2, "rank": 2, "eval_every": 2, "eval_prompts": 4, "test_prompts": 4},
    "evaluate": {"geneval_images": 1, "test_prompts": 8},
}  # fmt: skip


def sources(own: str, scale: str) -> dict:
    """Folders in the place of names on the Hub."""
    generator = f"{own}/sd3_swap" if scale == "paper" else f"{own}/sd3"
    return {
        "shared": {"clip": f"local-dir:{own}/clip", "pickscore": f"local-dir:{own}/pickscore", "detector": f"{own}/mask2former",
                   "prompts": f"{own}/prompts", "pictures_table": f"{own}/levels/pictures.parquet",
                   "scorers": ["clip", "pickscore", "ict", "hp", "icthp", "imagereward", OWN],
                   "scorer_sources": f"imagereward={own}/imagereward"},
        "explanations": {"generator": generator, "photographs": f"{own}/photographs"},
        "pick_high": {"pairs": f"{own}/pairs", "generator": generator, "refiner_model": f"{own}/chat"},
        "draft": {"generator": generator},
        "evaluate": {"generator": generator, "votes": f"agiqa3k:{own}/votes"},
    }  # fmt: skip


def parameters(scale: str, *changes: dict) -> dict:
    """A profile with its sources, sizes and counts exchanged; nothing is added that it does not have."""
    values = params.read_params(ROOT / f"profiles/{scale}.yaml", needs_all=False)
    for change in changes:
        for section, named in change.items():
            assert named.keys() <= values[section].keys(), named.keys() - values[section].keys()
            values[section] |= named
    assert params.unset(values) == []
    return values


def write(folder: Path, values: dict) -> None:
    (folder / "params.yaml").write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """All models and data, in some seconds and 50 MB."""
    own = tmp_path_factory.mktemp("lab") / "own"
    own.mkdir()
    clip = models.clip(own / "clip")
    models.pickscore(own / "pickscore")
    models.sd3(own / "sd3", pictures.PROMPTS)
    models.sd3(own / "sd3_swap", pictures.PROMPTS, dual=(), first=pipelines.text_tower(clip, models.clip_tokenizer()))
    models.mask2former(own / "mask2former")
    models.chat(own / "chat", {prompt: json.dumps({"prompt": f"{prompt}, in soft morning light"}) for prompt in pictures.PROMPTS})
    models.imagereward(own / "imagereward", pictures.PROMPTS)
    pictures.prompt_files(own / "prompts")
    pictures.pairs(own / "pairs")
    pictures.levels(own / "levels")
    pictures.photographs(own / "photographs")
    pictures.agiqa3k(own / "votes")
    pictures.official(own / "official")
    assert sum(file.stat().st_size for file in own.rglob("*") if file.is_file()) < 50e6
    return own


def project(folder: Path, built: Path) -> Path:
    """The repository as it is here, without data/, with the models and a scorer of one's own."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith((".dvc/store", "tests/", "data.dvc")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(built, folder / "own")
    (folder / "perfect.py").write_text(BRIGHTNESS, encoding="utf-8")
    (folder / "dvc.lock").unlink(missing_ok=True)
    subprocess.run("git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm lab", shell=True, cwd=folder, check=True)
    return folder


def run(command: list, folder: Path, **environment) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(folder / "lib"), "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=os.environ | own | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def stage(notebook: str, section: str, folder: Path, *pairs, **environment) -> str:
    return run([sys.executable, "-m", "icthp.run", f"notebooks/{notebook}.ipynb", section, *pairs], folder, **environment)


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lab(built, tmp_path_factory):
    """All stages at lab's profile, by dvc."""
    folder = project(tmp_path_factory.mktemp("project"), built)
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


# ---- paper's branches -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper(built, tmp_path_factory):
    """A project at paper's profile: no guidance, four steps, an endpoint, ICT's text tower in the generator."""
    folder = project(tmp_path_factory.mktemp("paper"), built)
    own = SMALL | {"shared": SMALL["shared"] | {"sampler_steps": 4, "rewards": ["ict"]}}
    values = parameters("paper", own, sources("own", "paper"))
    values["pick_high"]["refiner_url"] = "https://nowhere.invalid/v1"
    values["evaluate"] |= {"swap_text": True, "votes": ""}
    assert values["draft"]["guidance"] == values["evaluate"]["guidance"] == 0 and values["pick_high"]["refiner"] == "endpoint"
    write(folder, values)
    return folder


def test_the_official_release_trains_and_is_evaluated(paper):
    """A4 reads it, 03 to 06 take it; the row that breaks an invariant is left out by name; ICT's text tower takes CLIP's place."""
    stage_of_a4 = [sys.executable, "-m", "papermill", "notebooks/A4_published_data.ipynb", "runs/a4.ipynb", "-k", "python3"]
    (paper / "runs").mkdir(exist_ok=True)
    run([*stage_of_a4, "-p", "out", "runs/published", "-p", "official", "own/official"], paper)
    rejects = pd.read_csv(paper / "runs/published/rejects.csv")
    assert len(rejects) == 1 and "E1 is above E2" in rejects.reason[0]
    values = json.loads((paper / "params.yaml").read_text(encoding="utf-8"))
    write(paper, values | {"shared": values["shared"] | {"triplets": "runs/published/pick_high"}})
    stage("03_train_ict", "train_ict", paper)
    stage("04_train_hp", "train_hp", paper)
    stage("05_draft_k", "draft", paper, "reward=ict")
    stage("06_evaluate", "evaluate", paper)
    metrics = read(paper / "runs/evaluate/metrics.json")
    assert metrics[f"{OWN}_plain_i3_i1_acc"] == 1 and {"ict_text_geneval_mean", "ict_text_alone_diversity"} <= metrics.keys()
    assert not [name for name in metrics if "micro" in name or name.endswith("_pairs")]


def refused(folder: Path, *pairs: str) -> str:
    """What 02 says when it stops; it has loaded no generator."""
    command = [sys.executable, "-m", "icthp.run", "notebooks/02_pick_high.ipynb", "pick_high", "out=runs/refused", *pairs]
    own = {"PYTHONPATH": str(folder / "lib"), "OPENAI_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Loading pipeline components" not in done.stderr + done.stdout
    return done.stderr


def test_a_refiner_that_nobody_reaches_is_said_before_the_generator_is_loaded(paper):
    assert "nowhere.invalid" in refused(paper)


def test_a_chat_model_that_babbles_is_said_before_the_generator_is_loaded(lab):
    """Its prompts are none that it answers: all rows are rejected."""
    models.chat(lab / "own/babbler", {"something else": "no JSON"})
    try:
        assert "all 20 rows of train are rejected (20 no answer)" in refused(lab, "refiner_model=own/babbler")
    finally:
        shutil.rmtree(lab / "own/babbler")
