"""Two checkouts and one environment: the code that runs is that of the checkout where one stands, or nothing runs."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from conftest import ROOT

pytestmark = pytest.mark.slow  # processes of their own


@pytest.fixture
def checkouts(tmp_path):
    """Two checkouts of one project, each with its own icthp, in which ORIGIN says where; the first one's is imported, as an editable
    install has it. Yields the environment and both roots."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(ROOT / "lib/icthp", first / "lib/icthp", ignore=shutil.ignore_patterns("__pycache__"))
    (first / "params.yaml").write_text("shared: {}\nprobe: {x: 1}\n", encoding="utf-8")
    (first / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    source = "import icthp\nfrom icthp import run\nrun.enter_project()\nopen('seen.txt', 'w').write(icthp.ORIGIN)"
    cells = [nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), first / "p.ipynb")
    (first / "script.py").write_text(
        "import icthp\nfrom icthp import run\nrun.own_code()\nrun.enter_project()\nprint(icthp.ORIGIN)\n", "utf-8"
    )
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=first, check=True, capture_output=True
    )
    git("init", "-q"), git("add", "-A"), git("commit", "-qm", "x"), git("worktree", "add", "-q", str(second), "-b", "other")
    for root in (first, second):
        with open(root / "lib/icthp/__init__.py", "a", encoding="utf-8") as file:
            file.write(f"\nORIGIN = {root.name!r}\n")
    return os.environ | {"PYTHONPATH": str(first / "lib")}, first, second


def python(environment, folder, *words):
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_worktree_runs_its_own_code(checkouts):
    environment, first, second = checkouts
    done = python(environment, second, "-m", "icthp.run", "p.ipynb", "probe")
    assert done.returncode == 0, done.stderr
    assert (second / "seen.txt").read_text(encoding="utf-8") == "second" and not (first / "seen.txt").exists()
    assert [python(environment, root, "script.py").stdout for root in (first, second)] == ["first\n", "second\n"]


def test_training_of_a_worktree_starts_with_its_own_code(checkouts):
    environment, _, second = checkouts
    (second / "lib/icthp/trainer.py").write_text("raise SystemExit('the loop of ' + __import__('icthp').ORIGIN)", encoding="utf-8")
    done = python(environment, second, "-m", "icthp.train", "--stage", "ict")
    assert done.stderr.strip().splitlines()[-1] == "the loop of second"


def test_a_session_with_the_code_of_another_checkout_is_refused(checkouts):
    """As a notebook in a JupyterLab of the first checkout's environment; and a script whose Python does not heed PYTHONPATH."""
    environment, first, second = checkouts
    enter = "from icthp import run; run.enter_project()"
    assert python(environment, first, "-c", enter).returncode == 0
    said = python(environment, second, "-c", enter).stderr.strip().splitlines()[-1]
    assert said.startswith(
        f"ImportError: the icthp that runs is {first}/lib/icthp, not this project's own {second}/lib/icthp: start with PYTHON"
    )
    deaf = f"import sys; sys.path.insert(0, {str(first / 'lib')!r}); from icthp import run; run.own_code(); run.enter_project()"
    assert "ImportError: the icthp that runs is" in python(environment, second, "-I", "-c", deaf).stderr
