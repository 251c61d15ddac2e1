"""A Python file of one's own: the one place that runs code which a parameter names, as "rewards/edge.py:EdgeScorer".

Only a file below the project's root is run. The name of its module holds the digest of its text, so that what it defines is told apart from
an earlier version of it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from icthp.files import digest
from icthp.project import project_root

ENDING = ".py"


def is_custom(name) -> bool:
    """Is it a text of the form "file.py:name"?"""
    return isinstance(name, str) and f"{ENDING}:" in name


def load_function(name: str) -> Callable:
    """The function of "file.py:function": a loss or an update for `tuning`, say. Errors as those of `load_module`; ValueError where the
    file defines no such function."""
    path, _, function_name = name.rpartition(":")
    module = load_module(path)
    found = vars(module).get(function_name)
    if not callable(found) or getattr(found, "__module__", "") != module.__name__:
        own = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise ValueError(f"{module.__file__} defines no function {function_name!r}; it defines {', '.join(own) or 'none'}")
    return found


def load_module(path: str) -> ModuleType:
    """The file's module, run once a text. The file is named from the working directory or from the project's root, and lies below the root,
    symbolic links resolved (without a project: below the working directory). FileNotFoundError for a missing file, ValueError for one
    outside of the project or an error in it."""
    file = _find_file(path)
    return _run(file, file.read_bytes())


def _find_file(path: str) -> Path:
    here = Path.cwd()
    root = (project_root(here) or here).resolve()
    file = next((folder / path for folder in (here, root) if (folder / path).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{path} is not there: name a Python file of the project {root}")
    file = file.resolve()
    if not file.is_relative_to(root) or file.suffix != ENDING:
        raise ValueError(f"{path} is {file}, and only a {ENDING} file below the project {root} is run: put it there")
    return file


def _run(file: Path, text: bytes) -> ModuleType:
    """The file's module, under a name of its own, from exactly this text: no compiled copy is read or written. It is run once, so that its
    classes are the same in every scorer."""
    module = ModuleType(f"custom_{digest(text)}")
    module.__file__ = str(file)
    known = sys.modules.get(module.__name__)
    if known and known.__file__ == module.__file__:
        return known
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        exec(compile(text, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        remedy = "; it runs alone, so write into it what it needs of files beside it" if isinstance(error, ImportError) else ""
        raise ValueError(f"{file} cannot be run: {describe(error)}{remedy}") from error
    return module


def describe(error: BaseException) -> str:
    """Its type and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
