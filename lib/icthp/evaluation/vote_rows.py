"""Rows of a published set of votes, each checked by itself: one that cannot be used is left out and counted, and never stops the rest."""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from icthp import files
from icthp.data.parquet import stream
from icthp.tables import decoded


class Vote(NamedTuple):
    """What people think of a picture on one axis, the higher the better. comparison: an id of the pair or ranking within which alone the
    value has a meaning, None for one that compares with those of all pictures of the prompt."""

    prompt: str
    image: str
    axis: str
    value: float
    comparison: str | None = None


def gather(source, rows: Iterable, votes_of: Callable[..., list[Vote]]) -> pd.DataFrame:
    """The votes of all rows; votes_of(i, row) gives those of row i, or raises ValueError with the reason why it is left out. A warning
    tells the reasons, attrs["left_out"] counts them. ValueError if no vote is left."""
    votes, left_out, first = [], Counter(), {}
    for i, row in enumerate(rows):
        try:
            votes += votes_of(i, row)
        except ValueError as error:
            left_out[str(error)] += 1
            first.setdefault(str(error), i)
    reasons = "; ".join(f"{reason} ({n} times, first in row {first[reason]})" for reason, n in left_out.items())
    if not votes:
        raise ValueError(f"{source} holds no vote that can be used: {reasons or 'it has no rows'}")
    if left_out:
        warnings.warn(f"{source}: {left_out.total()} of {i + 1} rows are left out: {reasons}", stacklevel=4)
    table = pd.DataFrame(votes)
    table = table.drop(columns="comparison") if table.comparison.isna().all() else table
    table.attrs["left_out"] = dict(left_out)
    return table


# ---- files ------------------------------------------------------------------------------------------------------


def require(*paths: Path) -> Path:
    """The first of these paths that is there."""
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError(f"{paths[0]} is missing: it is a file of the published set, to be put there as it is")


def json_rows(path: Path) -> list:
    """The list that a JSON file holds, whatever its rows are. ValueError names a file with anything else."""
    content = decoded(path)
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} is no list of rows")
    return rows


def parquet_rows(path: Path, columns: Iterable[str]) -> Iterator[dict]:
    """The rows of a parquet file of a set. ValueError names a file that cannot be read or lacks a column."""
    return stream(path, columns, "cannot be read, fetch it again")


def picture(folder: Path, name: str) -> str:
    """The path of a picture inside a folder. ValueError for a name that leads nowhere or, links followed, out of the folder: a foreign
    table may name any file of this machine."""
    is_inside, is_there = True, False
    with suppress(OSError, ValueError, RuntimeError):  # too long a name, a null character, a circle of links
        is_inside = (folder / name).resolve().is_relative_to(folder.resolve())
        is_there = (folder / name).is_file()
    if not is_inside:
        raise ValueError("a picture lies outside the folder of the set")
    if not is_there:
        raise ValueError("a picture is missing")
    return str(folder / name)


def write_picture(cell, out) -> str:
    """The path of a picture that a table holds, written into `out` under the digest of its contents. cell: a file's bytes, as they are or
    as `datasets` wraps them; a path in it is not followed."""
    contents = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(contents, bytes) or not contents:
        raise ValueError("a picture is missing")
    file = Path(out) / files.digest(contents)
    if not file.exists():
        files.atomic(file, lambda partial: partial.write_bytes(contents))
    return str(file)


def need_out(out, source) -> None:
    if out is None:
        raise ValueError(f"{source} keeps its pictures inside its tables: give `out`, a folder to write them into")


# ---- cells ------------------------------------------------------------------------------------------------------


def field(row, name: str, kind: Callable):
    """A cell of a row as `kind` takes it: text, number, texts or numbers. ValueError says what is wrong with it."""
    return kind(row.get(name) if isinstance(row, dict) else None, name)


def text(value, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is empty or no text")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{name} holds half a character")
    return value


def number(value, name: str) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise ValueError(f"{name} is no number")


def texts(value, name: str) -> list[str]:
    return _each(value, name, text)


def numbers(value, name: str) -> list[float]:
    return _each(value, name, number)


def _each(value, name: str, kind: Callable) -> list:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is empty or no list")
    return [kind(v, name) for v in value]
