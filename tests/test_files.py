"""Files are whole or absent: shown with writes that fail half-way, in a process that may write small files only."""

import json
import re
import subprocess
import sys
import threading

import nbformat
import pytest
import torch

from conftest import ROOT
from icthp import files

SMALL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


def limited(code: str, *arguments) -> subprocess.CompletedProcess:
    """Run Python that can write no file over 4 KiB."""
    return subprocess.run([sys.executable, "-c", SMALL + code, *map(str, arguments)], capture_output=True, text=True)


WRITERS = {
    "text": "from icthp import files; files.save_text(sys.argv[1], 'x' * 10_000)",
    "json": "from icthp import files; files.save_json(sys.argv[1], {'a' * 9: list(range(5000))})",
    "torch": "import torch; from icthp import files; files.atomic(sys.argv[1], lambda p: torch.save(torch.zeros(9000), p))",
    "safetensors": "import torch, safetensors.torch as s; from icthp import files\n"
    "files.atomic(sys.argv[1], lambda p: s.save_file({'a': torch.zeros(9000)}, p))",
    "parquet": "import numpy as np, pandas as pd; from icthp import files\n"
    "files.atomic(sys.argv[1], pd.DataFrame({'a': np.random.rand(9000)}).to_parquet)",
    "csv": "import numpy as np, pandas as pd; from icthp import files\n"
    "files.atomic(sys.argv[1], pd.DataFrame({'a': np.random.rand(9000)}).to_csv)",
    "figure": "import matplotlib; matplotlib.use('Agg'); from matplotlib import pyplot as plt; from icthp import figures\n"
    "from pathlib import Path; figures.save(plt.figure(figsize=(9, 9)), Path(sys.argv[1]).stem, Path(sys.argv[1]).parent)",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_that_fails_half_way_leaves_the_old_file(kind, tmp_path):
    name = "out.png" if kind == "figure" else "out"
    (tmp_path / name).write_text("old", encoding="utf-8")
    done = limited(WRITERS[kind], tmp_path / name)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("OSError") and str(tmp_path / name) in last, done.stderr[-500:]
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text(encoding="utf-8") == "old"


def test_a_folder_that_fails_half_way_stays_as_it_was(tmp_path):
    """The first file would fit, the second does not: neither arrives, and what lay there is untouched."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "notes.txt"):
        (folder / name).write_text("old", encoding="utf-8")
    code = """
from icthp import files
def write(folder):
    (folder / "config.json").write_text("new")
    (folder / "model.bin").write_bytes(bytes(10_000))
files.atomic_folder(sys.argv[1], write)
"""
    done = limited(code, folder)
    assert done.returncode == 1 and f"{folder} could not be written" in done.stderr
    assert {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir()} == {"config.json": "old", "notes.txt": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_gets_its_files_and_keeps_the_others(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").write_text("mine", encoding="utf-8")

    def write(folder):
        (folder / "sub").mkdir()
        (folder / "sub/a").write_text("a", encoding="utf-8")

    files.atomic_folder(tmp_path / "model", write)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == ["model/notes.txt", "model/sub/a"]


def test_what_fails_for_another_reason_is_raised_as_it_is(tmp_path):
    def write(partial):
        partial.write_text("half", encoding="utf-8")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        files.atomic(tmp_path / "a", write)
    assert not list(tmp_path.iterdir())


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    wrong = []

    def write(k):
        try:
            files.save_text(tmp_path / "one", str(k) * 1000)
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(set((tmp_path / "one").read_text(encoding="utf-8"))) == 1 and len(list(tmp_path.iterdir())) == 1


def test_json_knows_no_nan_and_keeps_text(tmp_path):
    with pytest.raises(ValueError, match="m.json"):
        files.save_json(tmp_path / "m.json", {"a": float("nan")})
    assert not (tmp_path / "m.json").exists()
    assert json.loads(files.save_json(tmp_path / "m.json", {"é": "\U0001f600"}).read_text(encoding="utf-8")) == {"é": "\U0001f600"}


def test_digests_tell_contents_apart_and_nothing_else(tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    a, b, c = (files.digest(tmp_path / name) for name in "abc")
    assert a == b != c and files.digest(["a", "b"]) != files.digest(["ab"]) and files.digest("a", "b") != files.digest("ab")
    model = torch.nn.Linear(2, 2)
    before = files.fingerprint(model)
    model.weight.data[0, 0] += 1
    assert files.fingerprint(model) != before


def test_a_fingerprint_sees_where_a_weight_is():
    one, two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    two.load_state_dict({"weight": one.weight.T.clone(), "bias": one.bias})
    assert (
        files.fingerprint(one) != files.fingerprint(two) and len({files.fingerprint(one.bfloat16()), files.fingerprint(one.float())}) == 2
    )


def test_the_digest_of_code_names_a_module_that_is_not_there():
    assert files.code("images", "tuning.lora") != files.code("images")
    with pytest.raises(ValueError, match="icthp has no module 'pictures'"):
        files.code("images", "pictures")


def test_the_digest_of_code_ignores_comments(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "icthp/files.py"))
    (tmp_path / "icthp/kernels").mkdir(parents=True)
    found = []
    for text in ("x = 1", "x  =  1  # one", "x = 2"):
        (tmp_path / "icthp/kernels/resize.py").write_text(text, encoding="utf-8")
        files.code.cache_clear()
        found.append(files.code("kernels"))
    files.code.cache_clear()
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_write_whole_files(path):
    """Results go through icthp.files; what is written in the open belongs to work folders, or to A1, which nothing resumes."""
    source = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
    assert not re.search(r"\.to_(parquet|csv)\(out|json\.dump\(|\.write_text\(json", source)


def test_a_folder_that_is_a_link_to_another_disk(tmp_path, monkeypatch):
    """The temporary folder lies inside, so that no rename crosses disks; "." is a folder too."""
    (tmp_path / "far").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "far", target_is_directory=True)
    folders = []

    def write(folder):
        folders.append(folder.resolve())
        (folder / "a").write_text("a", encoding="utf-8")

    files.atomic_folder(tmp_path / "model", write)
    monkeypatch.chdir(tmp_path / "far")
    files.atomic_folder(".", write)
    assert all(folder.is_relative_to(tmp_path / "far") for folder in folders) and [p.name for p in (tmp_path / "far").iterdir()] == ["a"]
    files.save_text(tmp_path / ("字" * 79), "a name of 237 bytes")
