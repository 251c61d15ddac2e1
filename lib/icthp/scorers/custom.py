"""A scorer of one's own: a class in a Python file of the project, loaded by "rewards/edge.py:EdgeScorer".

    class EdgeScorer(icthp.scorers.Scorer):
        needs_prompt = False
        score_scale = "mean absolute difference of neighbours"

        def forward(self, pixels, prompts=None):  # (b, 3, h, w) floats in [0, 1] -> (b,)
            return pixels.diff(dim=-1).abs().mean((1, 2, 3))

The digest of the file's text is part of the scorer's repr, so that cached scores and interrupted tunings notice a change; other files that
it imports are not in the digest.
"""

import inspect
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from icthp.custom import describe, load_module
from icthp.scorers.base import Scorer


def load_custom(name: str, source: str | None = None) -> Scorer:
    """The class of "file.py:Class", made with `source` if one is given. The file is named from the working directory or from the
    project's root, and lies below the root, symbolic links resolved (without a project: below the working directory).

    Raises FileNotFoundError for a missing file, and ValueError for one outside of the project, an error in it, a missing class, one
    that is no subclass of Scorer defined there or has no forward(pixels, prompts), and an error in its constructor. The scorer's own
    forward raises ValueError for scores that are not (b,)."""
    path, _, class_name = name.rpartition(":")
    module = load_module(path)
    file = Path(module.__file__)
    scorer = _make(_find_class(module, class_name, file), source, file)
    scorer.provenance = f" of source={source!r}, code={module.__name__.removeprefix('custom_')}"
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
        raise ValueError(f"{scorer_class.__name__}({arguments}) of {file} failed: {describe(error)}") from error
