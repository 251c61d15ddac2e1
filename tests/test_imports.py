"""A stage's digest of the modules that it reaches: those that it imports and no others, in a flat tree and in one of packages."""

import json
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT
from icthp import imports, strip

CODE = '"""A module."""\n\n\ndef double(x):\n    """Twice x."""\n    return 2 * x  # a comment\n'


@pytest.mark.parametrize("other", [
    CODE.replace("A module.", "Another word."), CODE.replace("  # a comment", ""), CODE.replace('    """Twice x."""\n', ""),
    CODE.replace("(x):", "(\n    x,\n):"), "# a licence\n" + CODE,
])  # fmt: skip
def test_comments_docstrings_and_layout_leave_a_digest(other):
    assert other != CODE and imports.code_digest(other) == imports.code_digest(CODE)


@pytest.mark.parametrize("other", [
    CODE.replace("2 * x", "2.0 * x"), CODE.replace("double", "twice"), CODE.replace("2 * x", "x * 2"), CODE + "y = 'double'\n",
    CODE.replace("return 2 * x", "return '2 * x'"), CODE.replace("(x)", "(x=None)"),
])  # fmt: skip
def test_a_change_of_code_changes_a_digest(other):
    assert imports.code_digest(other) != imports.code_digest(CODE)


def test_a_digest_is_the_same_for_every_python():
    """Fixed, as dvc.lock may come from another version; ast.dump differs between them."""
    assert imports.code_digest(CODE) == "9c0ccdbb113ef2ebf9aa"


# ---- which modules ----------------------------------------------------------------------------------------------

TREE = {
    "__init__.py": "",
    "run.py": "from icthp.files import save",
    "figures.py": "from icthp import files",
    "files.py": "",
    "losses.py": "import torch",
    "alone.py": "",
    "scorers/__init__.py": "import lazy_loader\n__getattr__, _, _ = lazy_loader.attach_stub(__name__, __file__)",
    "scorers/__init__.pyi": "from . import base as base\nfrom .clip import Clip as Clip, Clip as Default\nfrom .load import load as load",
    "scorers/base.py": "from icthp.files import save",
    "scorers/clip.py": "from .base import Scorer\n\ndef read():\n    from ..losses import ict_loss",
    "scorers/load.py": "from . import clip",
    "scorers/deep/__init__.py": "from .inner import x",
    "scorers/deep/inner.py": "from ... import alone",
    "kernels/__init__.py": "from icthp.kernels.fold import fold as fold",
    "kernels/fold.py": "",
    "kernels/other.py": "",
}
CASES = {
    "from icthp import losses": "losses",
    "import icthp.losses as l": "losses",
    "def f():\n    from icthp.losses import ict_loss": "losses",
    "from icthp.scorers.base import Scorer": "scorers scorers.base files",
    "from icthp.scorers import load": "scorers scorers.load scorers.clip scorers.base files losses",
    "from icthp.scorers import Default": "scorers scorers.clip scorers.base files losses",
    "from icthp.scorers import base": "scorers scorers.base files",
    "from icthp import scorers": "scorers scorers.base scorers.clip scorers.load scorers.deep scorers.deep.inner files losses alone",
    "import icthp.scorers": "scorers scorers.base scorers.clip scorers.load scorers.deep scorers.deep.inner files losses alone",
    "from icthp.scorers.deep.inner import x": "scorers scorers.deep scorers.deep.inner alone",
    "from icthp.kernels import fold": "kernels kernels.fold",
    "from icthp.kernels.other import x": "kernels kernels.fold kernels.other",
    "from icthp.scorers import nothing_there": "scorers",
    "from icthp import run, figures, losses": "losses",
    "import torch, icthp_other\nfrom pathlib import Path": "",
}


@pytest.fixture
def tree(tmp_path):
    """lib/icthp with packages that hand on names lazily, by a stub, and eagerly."""
    for name, text in TREE.items():
        (tmp_path / "lib/icthp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib/icthp" / name).write_text(text, encoding="utf-8")
    return tmp_path / "lib"


@pytest.mark.parametrize("source", CASES)
def test_what_an_import_reaches(tree, source):
    found = imports.reached(source, tree, ("icthp.run", "icthp.figures"))
    assert {name.removeprefix("icthp.") for name in found} == set(CASES[source].split())
    assert all(file.exists() for file in found.values())


def test_a_script_reaches_its_neighbours(tree):
    """And what these import."""
    beside = tree.parent / "study"
    beside.mkdir()
    (beside / "controls.py").write_text("import results", encoding="utf-8")
    (beside / "results.py").write_text("from icthp import losses", encoding="utf-8")
    assert set(strip.modules("import results", tree, script=beside / "controls.py")) == {"controls", "results", "icthp.losses"}


def test_a_change_in_a_reached_module_changes_the_digests_and_no_other_one_does(tree):
    source = "from icthp.scorers.base import Scorer"
    before, files = strip.modules(source, tree), tree / "icthp"
    for name in ("losses.py", "run.py", "figures.py", "scorers/load.py"):
        (files / name).write_text(TREE[name] + "\nx = 1", encoding="utf-8")
    (files / "files.py").write_text("# a comment", encoding="utf-8")
    assert strip.modules(source, tree) == before
    (files / "files.py").write_text("x = 1", encoding="utf-8")
    changed = strip.modules(source, tree)
    assert {name for name in changed if changed[name] != before[name]} == {"icthp.files"} and changed.keys() == before.keys()


def test_magics_of_ipython_are_read_and_what_is_no_python_is_left_out():
    sources = ["%matplotlib inline\nfrom icthp import losses", "!ls", "this is no python", "from icthp import train"]
    code = strip.code_of(
        nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources), nbformat.v4.new_markdown_cell("import x")])
    )
    assert "from icthp import losses" in code and "from icthp import train" in code and "no python" not in code
    assert set(imports.reached(code, ROOT / "lib")) >= {"icthp.losses", "icthp.train"}


# ---- today's notebooks ------------------------------------------------------------------------------------------

STORY = sorted((ROOT / "notebooks").glob("0*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", STORY, ids=lambda p: p.stem)
def test_what_a_notebook_of_the_story_imports_exists(path):
    """And is watched: every icthp module that it names itself is among those reached, but for the two that change no number."""
    code = strip.code_of(nbformat.read(path, 4))
    names = set(imports.reached(code, ROOT / "lib"))
    assert names and all((ROOT / "lib" / Path(*name.split("."))).with_suffix(".py").exists()
                         or (ROOT / "lib" / Path(*name.split(".")) / "__init__.py").exists() for name in names)  # fmt: skip
    but_pictures = strip.modules(code, ROOT / "lib"), strip.modules(code, ROOT / "lib", "figures")
    assert not {"icthp.run", "icthp.figures"} & set(but_pictures[0]) and ("icthp.figures" in but_pictures[1]) == ("icthp.figures" in names)
    assert json.dumps(but_pictures[0])
