"""`make` after a kill: what was left half made is made anew, offline, with a stand-in for Python that notes what it is asked."""

import shutil
import subprocess

import pytest

from conftest import ROOT

STUB = """#!/bin/sh
echo "$@" >> asked
case "$*" in *venv*) mkdir -p .venv/bin && cp stub .venv/bin/python;; *requirements.lock*) test ! -e offline;; esac
"""


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "stub").write_text(STUB, encoding="utf-8")
    (tmp_path / "stub").chmod(0o755)
    return tmp_path


def make(folder):
    """The exit status, and what Python was asked since the last call."""
    (folder / "asked").unlink(missing_ok=True)
    status = subprocess.run(["make", ".venv/ready", "PYTHON=./stub"], cwd=folder, capture_output=True).returncode
    return status, (folder / "asked").read_text(encoding="utf-8").splitlines() if (folder / "asked").exists() else []


def test_a_killed_venv_is_made_anew(folder):
    """Killed before pip was there: a python and no more."""
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to("/bin/false")
    (folder / "stub").write_text(STUB.replace("&& cp", "&& rm -f .venv/bin/python && cp"), encoding="utf-8")
    status, asked = make(folder)
    assert status == 0 and "--clear" in asked[0] and "-r requirements.lock" in asked[1] and (folder / ".venv/ready").exists()
    assert make(folder) == (0, [])


def test_an_interrupted_install_is_repeated_in_the_same_venv(folder):
    (folder / "offline").touch()
    status, asked = make(folder)
    assert status != 0 and len(asked) == 2 and not (folder / ".venv/ready").exists()
    (folder / "offline").unlink()
    status, asked = make(folder)
    assert status == 0 and "venv" not in asked[0] and "-r requirements.lock" in asked[0] and (folder / ".venv/ready").exists()
