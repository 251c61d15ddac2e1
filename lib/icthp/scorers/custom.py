"""A scorer of one's own: a class in a Python file of the project, loaded by "rewards/edge.py:EdgeScorer".

    class EdgeScorer(icthp.scorers.Scorer):
        needs_prompt = False
        score_scale = "mean absolute difference of neighbours"

        def forward(self, pixels, prompts=None):  # (b, 3, h, w) floats in [0, 1] -> (b,)
            return pixels.diff(dim=-1).abs().mean((1, 2, 3))

Only a file below the project's root is run. The digest of its text is part of the scorer's repr, so that cached scores and interrupted
tunings notice a change; other files that it imports are not in the digest.
"""

import inspect
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from icthp.files import digest
from icthp.project import project_root
from icthp.scorers.base import Scorer

ENDING = ".py"


def is_custom(name) -> bool:
    """Is it a text of the form "file.py:Class"?"""
    return isinstance(name, str) and f"{ENDING}:" in name


def load_custom(name: str, source: str | None = None) -> Scorer:
    """The class of "file.py:Class", made with `source` if one is given. The file is named from the working directory or from the
    project's root, and lies below the root, symbolic links resolved (without a project: below the working directory).

    Raises FileNotFoundError for a missing file, and ValueError for one outside of the project, an error in it, a missing class, one
    that is no subclass of Scorer defined there or has no forward(pixels, prompts), and an error in its constructor. The scorer's own
    forward raises ValueError for scores that are not (b,)."""
    path, _, class_name = name.rpartition(":")
    file = _find_file(path)
    text = file.read_bytes()
    module = _run(file, text)
    scorer = _make(_find_class(module, class_name, file), source, file)
    scorer.provenance = f" of source={source!r}, code={digest(text)}"
    scorer.register_forward_pre_hook(_to_float)
    scorer.register_forward_hook(_check_scores)
    return scorer


def _to_float(scorer: Scorer, args: tuple) -> tuple:
    """A user's forward never sees bytes, whose differences and means would be wrong."""
    pixels, *prompts = args
    return (pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels, *prompts)


def _check_scores(scorer: Scorer, args: tuple, scores) -> None:
    count = len(args[0])
    if not isinstance(scores, torch.Tensor) or scores.shape != (count,):
        found = f"a tensor {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise ValueError(f"{scorer.name}.forward gave {found} for {count} images: it must return a tensor ({count},), a score for each")


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
    module = ModuleType(f"custom_scorer_{digest(text)}")
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
        raise ValueError(f"{file} cannot be run: {_describe(error)}{remedy}") from error
    return module


def _find_class(module: ModuleType, name: str, file: Path) -> type[Scorer]:
    own = {key: value for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__}
    if name not in own:
        raise ValueError(f"{file} defines no class {name!r}; it defines {', '.join(own) or 'none'}")
    found = own[name]
    if not issubclass(found, Scorer):
        raise ValueError(f"{name} of {file} is no subclass of icthp.scorers.Scorer")
    if found.forward is nn.Module.forward:
        raise ValueError(f"{name} of {file} has no forward(pixels, prompts), which makes the scores")
    if not _takes_prompts(found):
        raise ValueError(f"{name}.forward of {file} takes no prompts: write forward(self, pixels, prompts=None)")
    if found.__repr__ is not Scorer.__repr__:
        raise ValueError(f"{name} of {file} has a __repr__ of its own, and Scorer's tells scorers apart: call it extra_repr")
    return found


def _takes_prompts(scorer_class: type[Scorer]) -> bool:
    try:
        inspect.signature(object.__new__(scorer_class).forward).bind("pixels", "prompts")
    except TypeError:
        return False
    return True


def _make(scorer_class: type[Scorer], source: str | None, file: Path) -> Scorer:
    try:
        scorer = scorer_class() if source is None else scorer_class(source)
        return scorer.eval().requires_grad_(False)  # fails without super().__init__(), and for layers without weights yet
    except (Exception, SystemExit) as error:
        arguments = "" if source is None else repr(source)
        raise ValueError(f"{scorer_class.__name__}({arguments}) of {file} failed: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    """Its type and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
