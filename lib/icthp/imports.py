"""Which modules of icthp a piece of Python reaches, by what it imports, and a digest of each that comments and docstrings leave alone."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "icthp"


def code_digest(source: str) -> str:
    """20 hexadecimal digits of Python source as Python reads it: comments, docstrings and layout do not count, nor does the version of
    Python that computes it."""
    return hashlib.sha256(repr(_plain(ast.parse(source))).encode()).hexdigest()[:20]


def _plain(node):
    """A syntax tree as nested lists, without docstrings and empty fields."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    if documented and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    return [type(node).__name__, *([name, _plain(value)] for name, value in fields.items())]


def reached(source: str, lib: Path, but=frozenset(), beside: Path | None = None) -> dict[str, Path]:
    """The modules that `source` imports anywhere in it, and those that they import in turn: dotted name -> file.

    source: Python.  lib: the folder that holds icthp/.  but: modules and packages that are neither counted nor followed.
    beside: the folder of a script, whose neighbours it imports by their bare names."""
    found: dict[str, Path] = {}
    waiting = [(source, "", beside)]
    while waiting:
        text, inside, folder = waiting.pop()
        for name, file in _imported(text, inside, lib, folder):
            if name not in found and not any(name == left or name.startswith(f"{left}.") for left in but):
                found[name] = file
                own = name if file.name == "__init__.py" else name.rpartition(".")[0]
                waiting.append((file.read_text(encoding="utf-8"), own, folder))
    return found


def _imported(source: str, inside: str, lib: Path, beside: Path | None) -> Iterator[tuple[str, Path]]:
    """What one piece of Python imports itself, as (dotted name, file). inside: the package that it belongs to, for relative imports."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(_absolute(node, inside), alias.name) for alias in node.names]
        for module, name in names:
            if module.partition(".")[0] == PACKAGE:
                yield from _modules(module, name, lib)
            elif beside and (beside / f"{module}.py").exists():
                yield module, beside / f"{module}.py"


def _absolute(node: ast.ImportFrom, inside: str) -> str:
    """The module that a `from` names, with the dots of a relative one resolved."""
    if not node.level:
        return node.module or ""
    above = inside.split(".")[: len(inside.split(".")) - node.level + 1]
    return ".".join([*above, *filter(None, [node.module])])


def _modules(module: str, name: str, lib: Path) -> Iterator[tuple[str, Path]]:
    """The modules that Python reads for `from module import name`, or for `import module` where name is ""."""
    parts = module.split(".")
    for depth in range(2, len(parts) + 1):  # the packages on the way
        package = lib.joinpath(*parts[:depth]) / "__init__.py"
        if package.exists():
            yield ".".join(parts[:depth]), package
    folder = lib.joinpath(*parts)
    if not folder.is_dir():
        if (file := folder.with_suffix(".py")).exists():
            yield module, file
    elif name in ("", "*"):
        yield from _whole(module, folder)
    elif (folder / name).is_dir():
        yield from _whole(f"{module}.{name}", folder / name)
    elif (file := folder / f"{name}.py").exists():
        yield f"{module}.{name}", file
    elif (origin := _handed_on(folder / "__init__.pyi", module, name)) not in (None, (module, name)):
        yield from _modules(*origin, lib)


def _whole(module: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Every module of a package."""
    for file in sorted(folder.rglob("*.py")):
        inner = file.relative_to(folder).with_suffix("").parts
        yield ".".join([module, *(part for part in inner if part != "__init__")]), file


def _handed_on(stub: Path, module: str, name: str) -> tuple[str, str] | None:
    """The module and the name there that a package's stub gives for `name`, by a line like `from .load import load as load`."""
    body = ast.parse(stub.read_text(encoding="utf-8")).body if stub.exists() else []
    lines = [(node, alias) for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return next(((_absolute(node, module), alias.name) for node, alias in lines if (alias.asname or alias.name) == name), None)
