"""Files of weights: what cannot be read, or holds no numbers, is one sentence that names it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from icthp.microworld import detector
from icthp.scorers import aesthetic, loading, states
from icthp.scorers.hp import HpScorer, make_head

GOOD = {"a": torch.ones(3)}


def bad_file(folder, kind):
    """A file that cannot be read."""
    file = folder / f"model.{'pt' if kind in ('list', 'numbers', 'cut.pt', 'text.pt', 'code') else 'safetensors'}"
    save_file(GOOD, file) if file.suffix == ".safetensors" else torch.save(GOOD, file)
    if kind in ("cut", "cut.pt"):
        file.write_bytes(file.read_bytes()[:-8])
    elif kind in ("empty", "pointer", "text", "text.pt"):
        contents = {"pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "empty": b""}
        file.write_bytes(contents.get(kind, b"<html>not found</html>"))
    elif kind in ("list", "numbers", "code"):
        torch.save({"list": [1, 2], "numbers": {"epoch": 3}, "code": shutil.copy}[kind], file)
    elif kind == "nan":
        save_file({"a": torch.tensor([1.0, torch.nan]), "b": torch.ones(1)}, file)
    return file


@pytest.mark.parametrize(
    ("kind", "says"),
    {
        "cut": "cannot be read as a safetensors file, perhaps it is cut",
        "text": "cannot be read as a safetensors file",
        "empty": "is empty: fetch it again",
        "pointer": "is a Git LFS pointer.*git lfs pull",
        "cut.pt": r"cannot be read as a torch \(weights_only\) file",
        "text.pt": "holds more than tensors, which weights_only refuses to run",
        "list": "holds no state dict",
        "numbers": "holds no state dict",
        "code": "holds more than tensors, which weights_only refuses to run",
        "nan": "holds NaN or infinite values in a",
    }.items(),
)
def test_a_broken_file_is_one_sentence(tmp_path, kind, says):
    file = bad_file(tmp_path, kind)
    with pytest.raises(ValueError, match=f"{file.name} (?:{says})") as error:
        states.read_state(file)
    assert "\n" not in str(error.value) and "weights_only=False" not in str(error.value) and "arbitrary code" not in str(error.value)


def test_shards_stay_in_their_folder(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for name, wrong, says in (
        ("../other.safetensors", ValueError, "no file beside it"),
        ("gone.safetensors", FileNotFoundError, "gone.safe"),
    ):
        index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
        with pytest.raises(wrong, match=says):
            states.read_state(index)
    for contents in ("[]", "{", '{"weight_map": 3}'):
        index.write_text(contents, encoding="utf-8")
        with pytest.raises(ValueError, match="is no index of shards"):
            states.read_state(index)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(clip_folder, tmp_path, value):
    """CLIP's, HP's head, the aesthetic head and the detector, with the file and the key."""
    clip = loading.load("clip", f"local-dir:{clip_folder}")
    hp = HpScorer(clip, make_head(16), {"width": 16}).eval()
    hp.save_pretrained(tmp_path / "hp")
    detector.Detector(8).save(tmp_path / "detector")
    keys = {"hp/open_clip_model.safetensors": "visual.proj", "hp/hp.safetensors": "1.bias", "detector/model.safetensors": "cells.bias"}
    load = {"hp/open_clip_model.safetensors": lambda: loading.load("clip", f"local-dir:{tmp_path}/hp"),
            "hp/hp.safetensors": lambda: loading.load("hp", str(tmp_path / "hp")),
            "detector/model.safetensors": lambda: detector.Detector.load(tmp_path / "detector")}  # fmt: skip
    for file, key in keys.items():
        good = load_file(tmp_path / file)
        save_file(good | {key: torch.full_like(good[key], value)}, tmp_path / file)
        with pytest.raises(ValueError, match=f"{file} holds NaN or infinite values in {key}"):
            load[file]()
        save_file(good, tmp_path / file)
        load[file]()
    torch.save({"weight": torch.full((1, 16), value), "bias": torch.ones(1)}, tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="linear.pth holds NaN"):
        aesthetic.aesthetic_head(tmp_path / "linear.pth")
