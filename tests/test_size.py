"""What a fresh machine downloads stays small."""

import subprocess
from pathlib import Path

import pytest

from conftest import ROOT


def size(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_a_shallow_clone_takes_at_most_45_megabytes(tmp_path):
    subprocess.run(["git", "clone", "-q", "--depth", "1", ROOT.as_uri(), tmp_path / "clone"], check=True)
    assert size(tmp_path / "clone") <= 45e6


@pytest.mark.skipif(not (ROOT / "data").exists(), reason="data/ is not there: dvc pull data.dvc")
def test_data_takes_at_most_20_megabytes():
    assert size(ROOT / "data") <= 20e6
