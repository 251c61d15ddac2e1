"""The whole repository as a stranger gets it: a clone, its data, the pipeline at smoke scale, from the first stage to the last."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists() or not (ROOT / "data.dvc").exists(), reason="needs a git clone with data.dvc")


def shell(command, cwd, check=True):
    done = subprocess.run(command, shell=True, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


EDGES = """from icthp.scorers import Scorer


class EdgeScorer(Scorer):
    needs_prompt = False
    score_scale = "mean absolute difference of neighbours"

    def forward(self, pixels, prompts=None):
        return pixels.diff(dim=-1).abs().mean((1, 2, 3))
"""
OWN = "my_rewards.py:EdgeScorer"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The committed files and the present ones over them, so that the test speaks of the working tree."""
    folder = tmp_path_factory.mktemp("clone") / "icthp"
    shell(f"git clone -q --no-local {ROOT} {folder}", ROOT)  # packed as for a stranger, without what no commit holds
    changed = shell("git ls-files --modified --others --exclude-standard", ROOT).splitlines()
    for name in changed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "my_rewards.py").write_text(EDGES, encoding="utf-8")  # a scorer of one's own: its file, and the parameters that name it
    smoke = (folder / "profiles/smoke.yaml").read_text(encoding="utf-8")
    assert "rewards: [clip, ict, hp, icthp]" in smoke and "watched: [data]" in smoke
    named = smoke.replace("rewards: [clip, ict, hp, icthp]", f"rewards: [icthp, {OWN}]")
    (folder / "params.yaml").write_text(named.replace("watched: [data]", "watched: [data, my_rewards.py]"), encoding="utf-8")
    (folder / "dvc.lock").unlink(missing_ok=True)
    shell("dvc pull -q data.dvc", folder)
    return folder


@needs_git
def test_the_pipeline_runs_to_the_end_after_a_kill_and_then_does_nothing(clone):
    """Killed in its first minute, started again, and once more when all is done."""
    first = subprocess.Popen(["dvc", "repro"], cwd=clone, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             start_new_session=True)  # fmt: skip
    for _ in range(600):
        time.sleep(0.2)
        if list(clone.glob("models/*/work/checkpoint.pt")):  # a training has begun
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    shell("dvc repro", clone)
    assert "up to date" in shell("dvc repro", clone) and "Running stage" not in shell("dvc repro", clone)
    assert "up to date" in shell("dvc status", clone)  # of the study, which nobody ran here, it says nothing

    for suffix in ("png", "pdf"):
        assert len(list((clone / "figures").glob(f"*.{suffix}"))) == 19
    assert len(list((clone / "figures").glob("*.tex"))) == len(list((clone / "figures").glob("*.md"))) == 7
    metrics = json.loads((clone / "runs/evaluate/metrics.json").read_text(encoding="utf-8"))
    assert {"clip_plain_i2_i1_acc", "icthp_geneval_mean", "micro_base_pair_short_correct"} <= metrics.keys()
    assert {f"{OWN}_geneval_mean", f"{OWN}_jpeg_kb"} <= metrics.keys()
    assert "EdgeScorer" in (clone / "figures/tuned.md").read_text(encoding="utf-8")
    for reward in ("icthp", OWN):
        assert "reward_gain_low" in json.loads((clone / f"models/draft/{reward}/metrics.json").read_text(encoding="utf-8"))
    assert "runs/evaluate/summary.json" in shell("dvc metrics show --md", clone)
    shell("git add -A && git -c user.name=a -c user.email=a@b commit -qm run", clone)
    (clone / "runs/evaluate/summary.json").write_text(
        json.dumps(json.loads((clone / "runs/evaluate/summary.json").read_text(encoding="utf-8")) | {"base_jpeg_kb": 0})
    )
    assert "base_jpeg_kb" in shell("dvc metrics diff", clone)
    shell("dvc checkout -f runs/evaluate/summary.json", clone)
    site = shell("mkdocs build", clone)  # it ends with an error where a link leads nowhere
    pages = {p.name for p in (clone / "site/notebooks").glob("*.html")}
    assert {"01_scoring_paradox.html", "01b_explanations.html", "05_draft_k-icthp.html", "07_figures.html"} <= pages, site

    path = clone / "notebooks/01_scoring_paradox.ipynb"  # as JupyterLab leaves it: run, saved with outputs
    notebook = nbformat.read(path, 4)
    notebook.cells[2].outputs, notebook.cells[2].execution_count = [nbformat.v4.new_output("stream", text="hello")], 1
    notebook.metadata.kernelspec = {"name": "other", "display_name": "Other", "language": "python"}
    nbformat.write(notebook, path)
    again = shell("dvc repro", clone)
    assert again.count("Running stage") == 1 and "Running stage 'strip@paradox'" in again
