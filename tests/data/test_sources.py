"""Data sets as pictures of our own: which files a row may name, rows without a picture, splits, the home folder."""

import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from conftest import ROOT
from icthp import images
from icthp.data import sources
from icthp.evaluation import gallery
from icthp.scorers import loading


@pytest.fixture
def dataset(tmp_path):
    """Write a local data set of given rows {"bytes", "path"}; its folder."""

    def make(rows):
        features = datasets.Features({"image": datasets.Image(decode=False), "prompt": datasets.Value("string")})
        table = pa.Table.from_pydict({"image": rows, "prompt": ["a"] * len(rows)}, features.arrow_schema)
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "set/data/train-00000-of-00001.parquet")
        return tmp_path / "set"

    return make


def png(value=0):
    return images.encode(torch.full((1, 3, 9, 9), value / 255))[0]["bytes"]


def test_a_row_may_name_only_files_of_its_own_data_set(dataset, tmp_path):
    """A foreign table names a private picture, by its path, by a way round and through a link: nothing of it is copied."""
    (tmp_path / "private.png").write_bytes(png(77))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/own.png").write_bytes(png(5))
    (tmp_path / "set/link.png").symlink_to(tmp_path / "private.png")
    names = [str(tmp_path / "private.png"), "../private.png", "link.png", "/etc/passwd", "own.png", str(tmp_path / "set/own.png")]
    folder = dataset([{"bytes": None, "path": name} for name in names])
    table = gallery.read(f"dataset:{folder}:train", tmp_path / "out")
    table = gallery.score({"jpeg": loading.load("jpeg")}, table, tmp_path / "store")
    assert table.jpeg.notna().tolist() == [False] * 4 + [True] * 2 and table.error[:4].str.contains("outside the data set").all()
    copied = [f.read_bytes() for f in (tmp_path / "out/pictures").iterdir()]
    assert len(copied) == 2 and set(copied) == {png(5)}


def test_an_imagefolder_with_a_link_out_of_it(tmp_path):
    (tmp_path / "private.png").write_bytes(png(77))
    (tmp_path / "set/train").mkdir(parents=True)
    (tmp_path / "set/train/a.png").write_bytes(png(5))
    (tmp_path / "set/train/b.png").symlink_to(tmp_path / "private.png")
    table = gallery.read(f"dataset:{tmp_path / 'set'}:train", tmp_path / "out")
    assert table[sources.REFUSED].notna().tolist() == [False, True] and len(list((tmp_path / "out/pictures").iterdir())) == 1


@pytest.mark.parametrize("bad", [None, {"bytes": None, "path": "gone.png"}, {"bytes": b"", "path": None}, {"bytes": b"x", "path": None}])
def test_a_row_without_a_picture_is_listed(dataset, tmp_path, bad):
    good = {"bytes": png(), "path": None}
    table = gallery.read(f"dataset:{dataset([good, bad, good])}:train", tmp_path / "out")
    jpeg = {"jpeg": loading.load("jpeg")}
    table = gallery.score(jpeg, table, tmp_path / "store")
    assert table.jpeg.notna().tolist() == table.error.isna().tolist() == [True, False, True]
    assert "not scored or not by all: 1" in gallery.account(jpeg, table)[0]


@pytest.mark.parametrize("split, count", [("train", 5), ("train[:2]", 2), ("train[1:]+train[:1]", 5), ("train[:40%]", 2)])
def test_a_split_as_datasets_writes_it(dataset, tmp_path, split, count):
    folder = dataset([{"bytes": png(i), "path": None} for i in range(5)])
    assert len(gallery.read(f"dataset:{folder}:{split}", tmp_path / "out")) == count


@pytest.mark.slow
def test_a_local_data_set_leaves_nothing_in_the_home_folder(dataset, tmp_path):
    folder = dataset([{"bytes": png(), "path": None}])
    (tmp_path / "home").mkdir()
    code = f"from icthp.evaluation import gallery; print(len(gallery.read('dataset:{folder}:train', '{tmp_path}/out')))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT / "lib"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr[-2000:]
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()] and [p.name for p in (tmp_path / "out").iterdir()] == ["pictures"]
