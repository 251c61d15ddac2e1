"""The library's packages: who imports whom, how long a file is, what a package says of itself and what it hands on.

All of it is read from the source; the last test alone starts a Python that imports the library."""

import ast
import graphlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT
from source import python_of, trees

LIB = ROOT / "lib/icthp"

# From low to high: a module imports from the rows above its own, and a package also from itself. Nothing imports the microworld.
LAYERS = """
imports  params  project  timing  chat  losses  information  preprocessing  isolation  freezing  optimizers  corruptions
shards  precision  threads  metering  notebook_client
files
tables  run  places  figures  checkpointing  custom  scorers.states
preflight
trainer  pipelines  kernels  strip
images
scorers
data
evaluation  objectives
tuning
train
microworld
blueprints
plan
"""
LONGEST = 300  # lines of a file; the kernels are excused


# ---- the source -------------------------------------------------------------------------------------------------


def modules(lib: Path) -> dict[str, Path]:
    """Dotted name below icthp -> file; a package has its own name, icthp itself the empty one."""
    found = {}
    for path in sorted(lib.rglob("*.py")):
        parts = path.relative_to(lib).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_package(name: str, files: dict[str, Path]) -> bool:
    return name in files and files[name].name == "__init__.py"


def stubs(lib: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(package, name that it hands on) -> (module, name there), from each package's __init__.pyi."""
    found = {}
    for path in lib.rglob("__init__.pyi"):
        package = ".".join(path.parent.relative_to(lib).parts)
        for node in ast.parse(python_of(path)).body:
            for alias in node.names:
                found[package, alias.asname or alias.name] = ".".join(filter(None, (package, node.module))), alias.name
    return found


def imported(tree: ast.Module, files: dict[str, Path], handed_on: dict) -> Iterator[str]:
    """Modules of icthp that a piece of Python imports, wherever in it. What a package hands on counts as its module; a name that it does
    not have is given as "package.name"."""
    aliases = {}  # local name -> package
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("icthp.") for alias in node.names if alias.name.startswith("icthp."))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "icthp":
            origin = node.module.removeprefix("icthp").strip(".")
            for alias in node.names:
                target = resolved(origin, alias.name, files, handed_on)
                if is_package(target, files):
                    aliases[alias.asname or alias.name] = target
                else:
                    yield target
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield resolved(aliases[node.value.id], node.attr, files, handed_on)


def resolved(origin: str, name: str, files: dict[str, Path], handed_on: dict) -> str:
    """The module that `from icthp.origin import name` reads; "origin.name" if there is none."""
    full = f"{origin}.{name}".strip(".")
    if full in files or origin and not is_package(origin, files):
        return full if full in files else origin
    return handed_on[origin, name][0] if (origin, name) in handed_on else full


def graph(lib: Path) -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    files, handed_on = modules(lib), stubs(lib)
    return {name: {*imported(ast.parse(python_of(path)), files, handed_on)} - {name} for name, path in files.items()}


# ---- the import graph -------------------------------------------------------------------------------------------


def layer_of(module: str) -> tuple[int, str] | None:
    """(row, entry) of LAYERS for a module, by its longest prefix that is an entry."""
    rows = {entry: row for row, line in enumerate(LAYERS.strip().splitlines()) for entry in line.split()}
    while module and module not in rows:
        module = module.rpartition(".")[0]
    return (rows[module], module) if module else None


def wrong_arrows(imports: dict[str, set[str]]) -> list[str]:
    """What is wrong with an import graph, a line each: a circle, an arrow upwards or to a neighbour, a module without a layer."""
    lines = []
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        lines.append("a circle: " + " <- ".join(error.args[1]))
    for module, targets in imports.items():
        if module and not layer_of(module):
            lines.append(f"{module} is in no row of LAYERS")
        for target in targets:
            here, there = layer_of(module), layer_of(target)
            if here and there and here[1] != there[1] and here[0] <= there[0]:
                lines.append(f"{module} imports {target}, which is not below it")
    return sorted(lines)


def test_imports_go_downwards_and_never_in_a_circle():
    assert not wrong_arrows(graph(LIB))


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "icthp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "icthp"


def test_a_circle_and_an_arrow_upwards_are_found(tmp_path):
    lib = plant(tmp_path, {
        "files.py": "", "tables.py": "def f():\n    from icthp import scorers\n    return scorers.load()\n",
        "images.py": "from icthp.data import read\n", "data/pairs.py": "import icthp.images\n", "data/__init__.py": "",
        "data/__init__.pyi": "from .pairs import read as read\n", "scorers/loading.py": "from icthp import files\n",
        "scorers/__init__.py": "", "scorers/__init__.pyi": "from .loading import load as load\n", "rooms.py": "",
        "run.py": "from icthp import figures"})  # fmt: skip
    lib.joinpath("figures.py").touch()
    assert wrong_arrows(graph(lib)) == [
        "a circle: data.pairs <- images <- data.pairs", "images imports data.pairs, which is not below it", "rooms is in no row of LAYERS",
        "run imports figures, which is not below it", "tables imports scorers.loading, which is not below it"]  # fmt: skip


# ---- files ------------------------------------------------------------------------------------------------------


def test_no_file_is_too_long():
    lines = {name: len(python_of(path).splitlines()) for name, path in modules(LIB).items()}
    assert not {name: n for name, n in lines.items() if n > LONGEST and not name.startswith("kernels.")}


def test_functions_are_short():
    nodes = [node for path in modules(LIB).values() for node in ast.walk(ast.parse(python_of(path)))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert statistics.median(node.end_lineno - node.lineno + 1 for node in functions) < 12


# ---- packages ---------------------------------------------------------------------------------------------------

PACKAGES = sorted(name for name in modules(LIB) if is_package(name, modules(LIB)))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_each_of_its_modules_is(package):
    prefix = package and package + "."
    members = {name.removeprefix(prefix) for name in modules(LIB) if name.startswith(prefix)} - {""}
    text = ast.get_docstring(ast.parse(python_of(modules(LIB)[package]))) or ""
    assert not {name for name in members if "." not in name and not re.search(rf"\b{name}\b", text)}


def test_every_module_says_what_it_is():
    texts = {name: ast.get_docstring(ast.parse(python_of(path))) or "" for name, path in modules(LIB).items()}
    assert not {name for name, text in texts.items() if len(text.split()) < 4}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_name_that_a_package_hands_on_is_defined(package):
    files = modules(LIB)
    for (origin, name), (module, there) in stubs(LIB).items():
        if origin == package and f"{module}.{there}".strip(".") not in files:
            assert module in files, f"{package}.{name}: there is no module {module}"
            assert there in defined(ast.parse(python_of(files[module]))), f"{module} defines no {there}"


def defined(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


CALLERS = ("lib/icthp/**/*.py", "study/*.py", "docs/*.py", "tests/**/*.py", "notebooks/*.ipynb")


def test_every_name_that_a_package_is_asked_for_is_there():
    files, handed_on = modules(LIB), stubs(LIB)
    asked = {(path, name) for path, tree in trees(ROOT, *CALLERS).items() for name in imported(tree, files, handed_on)}
    assert not sorted(f"{path}: icthp.{name}" for path, name in asked if name not in files)


# ---- docs/renames.md --------------------------------------------------------------------------------------------


def rows_of(section: str) -> list[list[str]]:
    """The cells of a section's table in docs/renames.md, each as the list of its `names`."""
    text = (ROOT / "docs/renames.md").read_text(encoding="utf-8")
    lines = text.split(f"\n## {section}\n")[1].split("\n## ")[0].splitlines()
    return [[re.findall("`(.+?)`", cell) for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def is_there(name: str) -> bool:
    """Is "module.name" defined, or handed on by the package "module"?"""
    module, _, last = name.rpartition(".")
    files, handed_on = modules(LIB), stubs(LIB)
    return (module, last) in handed_on or module in files and last in defined(ast.parse(python_of(files[module])))


def test_every_module_and_name_of_the_renames_is_there():
    files = modules(LIB)
    for [old], [new], names in rows_of("Modules"):
        assert old not in files or is_package(old, files), f"{old} is still a module"
        assert new in files, f"{new} is no module"
        assert not [name for name in names if not is_there(f"{new}.{name}")], f"{new} lacks a name that was in {old}"
    assert not [new for [_], [new] in rows_of("Names") if not is_there(new)]
    assert not [old for [old], [_] in rows_of("Names") if is_there(old)]


# ---- the time of an import --------------------------------------------------------------------------------------


def test_importing_the_library_is_quick_and_loads_no_framework():
    code = "import sys, icthp; print(*{'torch', 'diffusers', 'transformers', 'open_clip', 'pandas'} & {*sys.modules})"
    seconds = []
    for _ in range(3):  # the quickest of three: the machine may be busy
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code], cwd=ROOT / "lib", capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == ""
        seconds.append(int(re.search(r"\|\s*(\d+) \| icthp$", done.stderr, re.MULTILINE)[1]) / 1e6)
    assert min(seconds) < 0.3
