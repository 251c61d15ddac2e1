"""A collection of pictures: read, scored so that a killed run goes on, summed up. `gallery_page` shows it."""

import importlib.metadata
import json
import re
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from icthp import files, images
from icthp.data.sources import REFUSED, read_dataset
from icthp.evaluation import geneval
from icthp.scorers.jpeg import JpegScorer

ACROSS = "compares any pictures"
WITHIN = "compares pictures of one prompt, not of different ones"
ONE_SIZE = "compares pictures of one size in pixels"
BATCH = 1 << 24  # pixels of the pictures that are in memory at once; a larger picture is there alone
LOCK = threading.Lock()  # `is_truncated` sets a tokenizer to another length while it counts: no other thread may score with it then
LIBRARIES = ("torch", "pillow", "open_clip_torch", "transformers")
COLUMNS = ["error", "pixels", "cut"]  # that `score` adds to those of the scorers
SPLIT = r"[\w.-]+(?:\[[^\]]*\])?(?:\(\w+\))?"  # train, train[:2], train[10%:20%](pct1_dropremainder)


def read(source: str, out) -> pd.DataFrame:
    """image (full path) and prompt (None if it is missing) of a folder of pictures, a csv, jsonl or parquet table (`images.read_table`),
    a folder in GenEval's layout, or "dataset:NAME:SPLIT", a Hub dataset or a local folder of one with a column `image` and perhaps
    `prompt`, whose pictures are put into `out`/pictures (`read_dataset`). attrs["left_out"]: of a folder, {what is not among the rows:
    how many}."""
    if source.startswith("dataset:"):
        match = re.fullmatch(rf"dataset:(.+):({SPLIT}(?:\+{SPLIT})*)", source)
        if not match:
            raise ValueError(f"{source} names no split: say dataset:NAME:SPLIT")
        return read_dataset(*match.groups(), Path(out))
    if Path(source).is_dir() and any(Path(source).glob("[0-9]*/metadata.jsonl")):
        return geneval.read_folder(source)[["image", "prompt"]]
    return images.read_table(source)


# ---- scores -----------------------------------------------------------------------------------------------------


def score(scorers: dict, table: pd.DataFrame, store, shard: int = 64) -> pd.DataFrame:
    """The table with `error`, why a picture lacks scores, `pixels`, its "width x height", `cut`, the scorers that read only the beginning
    of its prompt, and a column a scorer, empty after an error or without the prompt that a scorer needs. scorers: by name.

    Each `shard` rows are kept under `store` as soon as they are scored, and read from there when pictures of the same contents, the same
    prompts and scorers come again, as long as code and libraries are the same. ValueError for an empty table."""
    if not len(table):
        raise ValueError("there is no picture to score")
    if taken := {"image", "prompt", REFUSED, *COLUMNS} & set(scorers):
        raise ValueError(f"a scorer may not be called {', '.join(sorted(taken))}: the table has such a column")
    table = _storable(table.drop(columns=[*COLUMNS, *scorers], errors="ignore").reset_index(drop=True))
    version = _version(scorers)
    parts = []
    with tqdm(total=len(table), desc="scoring", unit="pictures") as bar:
        for first in range(0, len(table), shard):
            rows = table.iloc[first : first + shard].reset_index(drop=True)
            file = Path(store) / f"{files.digest(_identities(rows), version)}.parquet"
            parts.append(_cached(file, partial(_scored, scorers, rows)))
            bar.update(len(rows))
    scored = pd.concat(parts, ignore_index=True)
    errors = [f"{images.printable(image)} {error}" if isinstance(error, str) else None for image, error in zip(table.image, scored.error)]
    whole = pd.concat([table, scored.assign(error=pd.Series(errors, dtype=object))], axis=1)
    whole.attrs = table.attrs
    return whole


def _version(scorers: dict) -> list:
    """What scores depend on besides the rows: the scorers' settings and weights, code and libraries."""
    models = [[name, repr(scorer), files.fingerprint(scorer)] for name, scorer in scorers.items()]
    return [*models, files.code("evaluation.gallery", "scorers"), *map(importlib.metadata.version, LIBRARIES)]


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of mixed values, which no parquet file can hold, as texts; those that are named by a number get a text for a name."""
    mixed = [name for name in table.select_dtypes(object) if table[name].dropna().map(type).nunique() > 1 or _is_nested(table[name])]
    return table.assign(**{name: table[name].map(_text) for name in mixed}).rename(columns=str)


def _text(cell) -> str | None:
    return cell if isinstance(cell, str) or cell is None else json.dumps(cell, default=str)


def _is_nested(column: pd.Series) -> bool:
    """Has it a list, a dict, or an integer above 64 bits?"""
    return bool(column.map(lambda cell: isinstance(cell, (dict, list)) or isinstance(cell, int) and abs(cell) >= 1 << 63).any())


def _cached(file: Path, make) -> pd.DataFrame:
    """The frame in a file, made anew if that is missing or cannot be read."""
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError):  # pyarrow's errors are of these kinds
        files.atomic(file, make().to_parquet)
    return pd.read_parquet(file)


def _identities(rows: pd.DataFrame) -> list:
    """What tells each row apart: its picture's contents, not their name or time, and its prompt."""
    texts = rows[[name for name in ("prompt", REFUSED) if name in rows]].map(lambda cell: cell if isinstance(cell, str) else None)
    return [[_contents(image), *row] for image, row in zip(rows.image, texts.itertuples(index=False))]


def _contents(image: str) -> str | None:
    try:
        return files.digest(Path(image)) if Path(image).is_file() else None
    except (OSError, ValueError):
        return None


@torch.no_grad()
def _scored(scorers: dict, rows: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS and scores of a few pictures, those of one size together, BATCH pixels in memory."""
    out = pd.DataFrame({name: pd.Series([None] * len(rows), dtype=object) for name in COLUMNS})
    out = out.assign(**{name: np.nan for name in scorers})
    truncated = {name: truncated_prompts(scorer, list(rows.prompt)) for name, scorer in scorers.items()}
    out["cut"] = [", ".join(name for name in scorers if truncated[name][i]) or None for i in range(len(rows))]
    groups = {}  # {size: [(row, picture)]}
    size = 0  # pixels in the groups
    for i, row in enumerate(rows.to_dict("records")):
        try:
            pixels = _read_row(row)
        except ValueError as error:
            out.loc[i, "error"] = str(error).removeprefix(images.printable(row["image"])).strip()
            continue
        out.loc[i, "pixels"] = f"{pixels.shape[2]} x {pixels.shape[1]}"
        groups.setdefault(pixels.shape, []).append((i, pixels))
        size += pixels[0].numel()
        del pixels
        if size >= BATCH:
            _score_groups(scorers, rows, groups, out)
            size = 0
    _score_groups(scorers, rows, groups, out)
    return out


def _read_row(row: dict) -> torch.Tensor:
    if isinstance(row.get(REFUSED), str):
        raise ValueError(row[REFUSED])
    return images.read(row["image"])


def _score_groups(scorers: dict, rows: pd.DataFrame, groups: dict, out: pd.DataFrame) -> None:
    """Write the scores of the groups into `out` and empty them."""
    while groups:
        index, pixels = zip(*groups.popitem()[1])
        pixels = pixels[0][None] if len(pixels) == 1 else torch.stack(pixels)
        for name, scorer in scorers.items():
            valid = [k for k, i in enumerate(index) if not scorer.needs_prompt or isinstance(rows.prompt[i], str)]
            prompts = [rows.prompt[index[k]] for k in valid]
            values = _values(scorer, pixels if len(valid) == len(index) else pixels[valid], prompts)
            for k, value in zip(valid, values):
                _write_score(out, index[k], name, value)


def _write_score(out: pd.DataFrame, row: int, name: str, value: float | str) -> None:
    """A score into its column, an error beside those of other scorers."""
    if isinstance(value, str):
        before = out.loc[row, "error"]
        out.loc[row, "error"] = "; ".join([*([before] if before else []), f"has no score of {name}: {value}"])
    else:
        out.loc[row, name] = value


def _values(scorer, pixels: torch.Tensor, prompts: list[str]) -> list[float | str]:
    """A score for each picture, or why the scorer refuses it; the others are scored."""
    if not prompts:
        return []
    try:
        with LOCK:
            return scorer.score(pixels.to(scorer.device), prompts if scorer.needs_prompt else None).double().tolist()
    except (OSError, ValueError) as error:  # Pillow's JPEG: no side above 65,500
        if len(prompts) == 1:
            return [str(error)]
    return [value for k in range(len(prompts)) for value in _values(scorer, pixels[k : k + 1], prompts[k : k + 1])]


def truncated_prompts(scorer, prompts: list) -> list[bool]:
    """For each prompt, is it longer than the scorer reads? False for a prompt that is missing, and of a scorer that reads none."""
    texts = [p for p in prompts if isinstance(p, str)]
    if not texts or not scorer.needs_prompt:
        return [False] * len(prompts)
    with LOCK:
        is_truncated = dict(zip(texts, scorer.is_truncated(texts).tolist()))
    return [isinstance(p, str) and is_truncated[p] for p in prompts]


# ---- the outcome ------------------------------------------------------------------------------------------------


def summary(scorers: dict, table: pd.DataFrame) -> pd.DataFrame:
    """A row a scorer: what its number is, what it compares, how many pictures have one, how many scores are no number (NaN, infinite), how
    many prompts were cut, and the least, middle and greatest. scorers and table: `score`'s."""
    rows = {name: {"number": s.score_scale, "compares": _compares(s)} | _counts(name, s, table) for name, s in scorers.items()}
    extremes = table[list(scorers)].replace([np.inf, -np.inf], np.nan).agg(["min", "median", "max"]).T
    return pd.DataFrame(rows).T.join(extremes)


def _compares(scorer) -> str:
    if not any(isinstance(part, JpegScorer) for part in scorer.modules()):
        return WITHIN if scorer.needs_prompt else ACROSS
    return f"{WITHIN}; {ONE_SIZE}" if scorer.needs_prompt else ONE_SIZE


def _counts(name: str, scorer, table: pd.DataFrame) -> dict[str, int]:
    scored = table.error.isna() & (_has_prompt(table) | (not scorer.needs_prompt))
    finite = np.isfinite(table[name].astype(float))
    truncated = table["cut"].map(lambda names: isinstance(names, str) and name in names.split(", "))
    return {"count": int(finite.sum()), "no number": int((scored & ~finite).sum()), "prompts cut": int(truncated.sum())}


def _has_prompt(table: pd.DataFrame) -> pd.Series:
    return table.prompt.map(lambda prompt: isinstance(prompt, str)).astype(bool)


def account(scorers: dict, table: pd.DataFrame) -> list[str]:
    """What became of the pictures, a sentence each: how many there are, what was left out and why, which prompts were cut, which sizes do
    not compare. scorers and table: `score`'s; the table's errors are not repeated."""
    incomplete = table.error.notna().sum()
    without_prompt = (~_has_prompt(table)).sum()
    lines = [f"Pictures: {len(table)}; not scored or not by all: {incomplete}; without a prompt: {without_prompt}."]
    if left_out := table.attrs.get("left_out"):
        lines.append(f"Not looked at: {', '.join(f'{what} ({n})' for what, n in left_out.items())}.")
    counts = {name: _counts(name, scorer, table) for name, scorer in scorers.items()}
    for name, count in counts.items():
        if n := count["prompts cut"]:
            lines.append(f"Prompts that {name} read only the beginning of, cut to its length: {n}.")
    for name, count in counts.items():
        if n := count["no number"]:
            lines.append(f"Scores of {name} that are no number: {n}.")
    sizes = table["pixels"].nunique()
    size_bound = [name for name, scorer in scorers.items() if ONE_SIZE in _compares(scorer)]
    if size_bound and sizes > 1:
        lines.append(f"Sizes: {sizes}. {', '.join(size_bound)} {ONE_SIZE}; between sizes it says nothing of quality.")
    return lines
