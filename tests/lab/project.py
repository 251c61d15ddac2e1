"""A project at lab's or paper's own profile, of which sources, sizes and counts alone are exchanged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from icthp import params, pipelines
from lab import models, pictures

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


def build(own: Path) -> Path:
    """All models and data, in some seconds and 50 MB."""
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


def refused(folder: Path, *pairs: str) -> str:
    """What 02 says when it stops; it has loaded no generator."""
    command = [sys.executable, "-m", "icthp.run", "notebooks/02_pick_high.ipynb", "pick_high", "out=runs/refused", *pairs]
    own = {"PYTHONPATH": str(folder / "lib"), "OPENAI_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Loading pipeline components" not in done.stderr + done.stdout
    return done.stderr
