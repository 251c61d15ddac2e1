"""What parameters name is watched by its contents, wherever it lies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT
from icthp import places, strip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, with folders inside and outside of it."""
    root = tmp_path / "project"
    for name in ("project/data/clip/config", "project/models/ict/w", "project/rewards.py", "outside/pairs/a", "outside/pairs/deep/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    monkeypatch.chdir(root)
    return root


def contents(values, watched):
    for place in watched:
        places.write_listing(place)
    return places.contents(values, watched)


@pytest.mark.parametrize("value, named", [
    ("data/clip", "data/clip"), ("local-dir:data/clip", "data/clip"), ("data/clip,models/ict", "data/clip models/ict"),
    ("rewards.py:Edges", "rewards.py"), ("dataset:data/clip:train", "data/clip"), (["clip", "rewards.py:Edges"], "rewards.py"),
    ("ViT-B-32/laion2b", ""), ("", ""), ("clip,ict", ""), (3, ""), (True, ""), ("x" * 5000, ""), ("a\0b", ""), ("hf-hub:a/b", ""),
    ("./data//clip/", "data/clip"), ('ir=data/clip head="rewards.py,models/ict"', "data/clip models/ict rewards.py"),
])  # fmt: skip
def test_what_a_value_names(project, value, named):
    assert [path.as_posix() for path in places.named_paths(value)] == named.split()


def test_contents_are_those_of_each_named_place_alone(project):
    outside = str(project.parent / "outside/pairs")
    values = {"clip": "local-dir:data/clip", "pairs": outside, "ict": "local-dir:models/ict", "out": "data", "steps": 3, "votes": ""}
    before = contents(values, ["data", outside])
    assert {name: list(found) for name, found in before.items()} == {"clip": ["data/clip"], "pairs": [outside]}
    (project / "data/other").write_text("x", encoding="utf-8")
    assert contents(values, ["data", outside]) == before
    Path(outside, "deep/c").touch()  # an addition
    added = contents(values, ["data", outside])
    assert added["pairs"] != before["pairs"] and added["clip"] == before["clip"]
    Path(outside, "deep/c").unlink()
    os.utime(Path(outside, "a"), (0, 0))  # contents count, times do not
    assert contents(values, ["data", outside]) == before


def test_a_single_file_is_watched(project):
    before = contents({"rewards": ["rewards.py:Edges"]}, ["rewards.py"])
    (project / "rewards.py").write_text("x = 1", encoding="utf-8")
    assert contents({"rewards": ["rewards.py:Edges"]}, ["rewards.py"])["rewards"].keys() == {"rewards.py"} != before["rewards"]


def test_what_nobody_watches_is_refused_with_the_remedy(project):
    with pytest.raises(ValueError, match=r"pairs names .*outside/pairs, which dvc does not watch: add it to the list `watched` of the"):
        contents({"pairs": str(project.parent / "outside/pairs")}, ["data"])


@pytest.mark.parametrize("named", ["data", "data/pairs", "data/pairs/deep", "data/pairs/a"])
def test_what_lies_behind_a_link_is_refused_with_the_remedy(project, named):
    """A change there would rerun nothing. Who names a folder beside the link, or watches the link itself, is not troubled."""
    outside = project.parent / "outside/pairs"
    (project / "data/pairs").symlink_to(outside)
    (project / "data/dangling").symlink_to("nowhere")
    with pytest.raises(
        ValueError, match=f"^params.yaml: x names {named}, where pairs is a link to {outside}, .* add it to the list `watched`"
    ):
        contents({"x": named}, ["data"])
    assert contents({"x": "data/clip", "y": "data/pairs/a"}, ["data/pairs", "data"]).keys() == {"x", "y"}


def test_what_stages_write_is_not_watched(project):
    for place in ("runs", "models/ict", f"{project}/models"):
        with pytest.raises(ValueError, match=f"`watched` has {place}, which stages write: leave it out"):
            places.write_listing(place)


def test_a_reward_of_ones_own_is_watched_by_its_file(project, capsys):
    """`draft` of this reward depends on what is written, of the others on nothing of it."""
    (project / "params.yaml").write_text("shared: {watched: [data, rewards.py]}\n", encoding="utf-8")
    places.write_listing("rewards.py"), places.write_listing("data")
    for reward in ("clip", "rewards.py:Edges"):
        assert places.main([reward, f"runs/src/rewards/{reward}.json"]) == 0
    read = lambda reward: json.loads((project / f"runs/src/rewards/{reward}.json").read_text(encoding="utf-8"))
    assert read("clip") == {} and read("rewards.py:Edges")["rewards"].keys() == {"rewards.py"}
    (project / "params.yaml").write_text("shared: {watched: [data]}\n", encoding="utf-8")
    assert places.main(["rewards.py:Edges", "x.json"]) == 1 and "add it to the list `watched`" in capsys.readouterr().err


@pytest.mark.parametrize("place, whole", [("data/", "data"), ("./data", "data"), ("../outside", "/outside")])
def test_a_place_has_one_name(project, place, whole):
    with pytest.raises(ValueError, match=f"`watched` has {place}: write .*{whole}"):
        places.write_listing(place)


# ---- strip and dvc ----------------------------------------------------------------------------------------------

PIPELINE = """
stages:
  watch: WATCH
  strip:
    cmd: python -m icthp.strip n.ipynb runs/src probe
    deps: [n.ipynb, runs/places]
    params: [shared, probe]
    outs: [runs/src/n.ipynb, runs/src/n.modules, runs/src/n.inputs]
  probe:
    cmd: cat runs/src/n.inputs > result
    deps: [runs/src/n.ipynb, runs/src/n.modules, runs/src/n.inputs]
    params: [probe]
    outs: [result]
"""


def notebook(path, *sources):
    parameters = nbformat.v4.new_code_cell('pairs = ""\nclip = ""', metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, sources)]), path)


def test_strip_writes_what_changes_when_numbers_may(project):
    (project / "params.yaml").write_text(
        "shared: {clip: local-dir:data/clip, seed: 1, watched: [data]}\nprobe: {pairs: x/y}\n", encoding="utf-8"
    )
    notebook(project / "n.ipynb", "1 + 1")
    places.write_listing("data")
    assert strip.main(["n.ipynb", "runs/src", "probe"]) == 0
    made = {path.suffix: path.read_bytes() for path in (project / "runs/src").iterdir()}
    assert made.keys() == {".ipynb", ".modules", ".inputs"}
    found = json.loads(made[".inputs"])
    assert found["shared"] == {"clip": "local-dir:data/clip"} and found["places"].keys() == {"clip"}

    saved = nbformat.read(project / "n.ipynb", 4)  # as JupyterLab leaves it
    saved.cells[1].outputs, saved.cells[1].execution_count = [nbformat.v4.new_output("stream", text="2")], 7
    saved.metadata.kernelspec = {"name": "other", "display_name": "Other", "language": "python"}
    saved.metadata["toc-autonumbering"] = True
    saved.cells[1].metadata.update({"editable": True, "slideshow": {"slide_type": ""}, "jupyter": {"source_hidden": True}})
    nbformat.write(saved, project / "n.ipynb")
    assert strip.main(["n.ipynb", "runs/src", "probe"]) == 0
    assert {path.suffix: path.read_bytes() for path in (project / "runs/src").iterdir()} == made


@pytest.mark.parametrize("content", ["", "hello", "[]", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}'])
def test_strip_names_what_is_no_notebook(project, capsys, content):
    (project / "n.ipynb").write_text(content, encoding="utf-8")
    assert strip.main(["n.ipynb", "runs/src"]) == 1
    assert capsys.readouterr().err.startswith("n.ipynb: n.ipynb is no notebook") and not (project / "runs").exists()


def dvc(project, *words):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "lib"), "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(["dvc", *words], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_changed_folder_outside_reruns_the_stage_that_reads_it_and_no_other_time(project):
    outside = project.parent / "outside/pairs"
    text = f"shared: {{watched: [data, {outside}], rewards: [a]}}\nprobe: {{pairs: 'local-dir:{outside}', clip: ViT-B-32}}\n"
    (project / "params.yaml").write_text(text, encoding="utf-8")
    watch = (ROOT / "dvc.yaml").read_text(encoding="utf-8").partition("  watch:")[2].partition("\n\n")[0]
    watch = watch.replace("      - lib/icthp/places.py\n", "")  # which is not in this project
    (project / "dvc.yaml").write_text(PIPELINE.replace(" WATCH", watch), encoding="utf-8")
    notebook(project / "n.ipynb", "1 + 1")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    dvc(project, "init", "-q")
    dvc(project, "repro")
    assert "up to date" in dvc(project, "status") and "Running" not in dvc(project, "repro")

    (outside / "deep/b").write_text("other", encoding="utf-8")
    assert str(outside) in dvc(project, "status")
    assert "Running stage 'probe'" in dvc(project, "repro") and "up to date" in dvc(project, "status")
    (outside / "new").touch()  # an addition alone
    (project / "params.yaml").write_text(text.replace("rewards: [a]", "rewards: [a, b]"), encoding="utf-8")  # declared by nobody
    assert "Running stage 'probe'" in dvc(project, "repro") and "up to date" in dvc(project, "status")
    (project / "params.yaml").write_text(text, encoding="utf-8")
    (project / "data/clip/config").write_text("read by nobody", encoding="utf-8")
    assert "Running stage 'probe'" not in dvc(project, "repro")
    assert oct((outside / "deep/b").stat().st_mode)[-3:] != "444" and (outside / "deep/b").read_text(encoding="utf-8") == "other"
