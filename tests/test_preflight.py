"""What is missing is said before the first stage."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import ROOT
from icthp import params, preflight, strip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Prompts, pairs and a detector of one's own; the parameters that name them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    for name in ("train.txt", "test.txt"):
        (tmp_path / "prompts" / name).write_text("a cat\n", encoding="utf-8")
    (tmp_path / "prompts/geneval.jsonl").write_text(
        '{"tag": "single_object", "include": [{"class": "computer mouse"}]}\n', encoding="utf-8"
    )
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector/config.json").write_text(json.dumps({"id2label": {"0": "mouse", "1": "cat"}}), encoding="utf-8")
    (tmp_path / "pairs").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({name: ["x"] for name in ("easy_prompt", "image_1", "image_2")}), tmp_path / f"pairs/{split}.parquet")
    (tmp_path / "pictures.jsonl").write_text('{"prompt": "a cat", "I1": "1.png", "I2": "2.png"}\n', encoding="utf-8")
    shared = {"prompts": "prompts", "detector": "detector", "pictures_table": "pictures.jsonl", "levels": "I1,I2", "micro": False}
    return tmp_path, {"shared": shared, "pick_high": {"pairs": "pairs"}}


def test_a_project_that_lacks_nothing(project):
    assert preflight.problems(project[1]) == []


@pytest.mark.parametrize("section, name, value, says", [
    ("shared", "prompts", "???", "shared.prompts is not set"),
    ("pick_high", "pairs", "elsewhere", "elsewhere/train.parquet is missing: name the folder of your pairs"),
    ("shared", "levels", "I1,I3", "pictures.jsonl has no column `I3`"),
    ("shared", "pictures_table", "", "without the microworld 01 and 06 need real pictures"),
    ("shared", "prompts", "nowhere", "nowhere/train.txt"),
])  # fmt: skip
def test_what_a_parameter_names_is_missing(project, section, name, value, says):
    found = project[1]
    found[section][name] = value
    assert any(says in sentence for sentence in preflight.problems(found)), preflight.problems(found)


def test_what_files_lack(project):
    folder, found = project
    (folder / "prompts/geneval.jsonl").write_text('{"tag": "single_object", "include": [{"class": "ring"}]}\n', encoding="utf-8")
    (folder / "prompts/test.txt").write_text("\n", encoding="utf-8")
    pq.write_table(pa.table({"easy_prompt": ["x"]}), folder / "pairs/test.parquet")
    sentences = preflight.problems(found)
    for says in (
        "test.txt is empty",
        "asks for ring, which the detector detector does not know",
        "test.parquet has no column image_1, image_2",
    ):
        assert any(says in sentence for sentence in sentences), sentences


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_a_profile_refuses_until_its_user_has_named_what_is_theirs(scale, tmp_path, monkeypatch, capsys):
    """Before the first stage, in one sentence; what is the user's is marked in the profile itself."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "lib/icthp", tmp_path / "lib/icthp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / f"profiles/{scale}.yaml", tmp_path / "params.yaml")
    assert strip.main([str(ROOT / "notebooks/02_pick_high.ipynb"), str(tmp_path / "src"), "pick_high"]) == 1
    error = capsys.readouterr().err
    for name in ("shared.prompts", "shared.pictures_table", "pick_high.pairs"):
        assert name in error
    assert "???" in error and len(error.strip().splitlines()) == 1


def test_micro_and_smoke_lack_nothing():
    for file in ("params.yaml", "profiles/smoke.yaml"):
        assert params.unset(params.read_params(ROOT / file)) == []
