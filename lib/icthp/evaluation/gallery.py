"""A collection of pictures: read, scored so that a killed run goes on, summed up. `gallery_page` shows it.

A scorer of the microworld scores any picture and any text, and its number looks like any other. So each such number is marked where it
means nothing: in the column `meaningless`, and by MARK wherever it is shown.
"""

import importlib.metadata
import json
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from icthp import files, images
from icthp.data.sources import REFUSED
from icthp.evaluation import picture_sources
from icthp.scorers.clip import ClipScorer
from icthp.scorers.jpeg import JpegScorer

ACROSS = "compares any pictures"
WITHIN = "compares pictures of one prompt, not of different ones"
ONE_SIZE = "compares pictures of one size in pixels"
BATCH = 1 << 24  # pixels of the pictures that are in memory at once; a larger picture is there alone
LOCK = threading.Lock()  # `is_truncated` sets a tokenizer to another length while it counts: no other thread may score with it then
LIBRARIES = ("torch", "pillow", "open_clip_torch", "transformers")
COLUMNS = ["error", "pixels", "cut", "cut_at"]  # that `score` adds to those of the scorers
MEANINGLESS = "meaningless"  # a column more
MARK = "†"  # behind a number that means nothing
WARNING = ("Microworld models, meaningless here: {names}. They know the microworld's pictures and sentences alone. The prompts of {rows} "
           f"of {{of}} pictures are no such sentences, or are missing: the numbers there, marked {MARK}, mean nothing. "
           "A photograph whose prompt is such a sentence is not noticed.")  # fmt: skip
MICRO_CARD = re.compile(r"^# .+ \((?:micro|smoke) scale\)$", re.MULTILINE)  # the title of `scorers.write_model_card`
MICRO_VOCABULARY = 5_000  # tokens; the microworld's tokenizers have fewer, a published CLIP's has 49,408
read = picture_sources.read


# ---- meaning ----------------------------------------------------------------------------------------------------


def is_micro(scorer) -> bool:
    """Does a part of the scorer know the microworld alone? Its model card says so, or the vocabulary in its folder: that of the
    microworld's sentences, in which any other word is spelt in letters."""
    return any(map(_is_micro_part, scorer.modules()))


def _is_micro_part(part) -> bool:
    if MICRO_CARD.search(getattr(part, "card", "") or ""):
        return True
    text = (part.architecture or {}).get("text_cfg", {}) if isinstance(part, ClipScorer) else {}
    return text.get("vocab_size", MICRO_VOCABULARY) < MICRO_VOCABULARY


def _meaningless(scorers: dict, table: pd.DataFrame, is_sentence) -> list[str | None]:
    """For each row the scorers whose number means nothing there."""
    names = ", ".join(name for name, scorer in scorers.items() if is_micro(scorer)) or None
    own = set(filter(is_sentence, set(table.prompt.dropna()))) if names and is_sentence else set()
    return [None if prompt in own else names for prompt in table.prompt]


def is_named(table: pd.DataFrame, column: str, name: str) -> pd.Series:
    """Is a scorer among those that `cut` or `meaningless` names, row by row?"""
    return table[column].map(lambda names: isinstance(names, str) and name in names.split(", ")).astype(bool)


# ---- scores -----------------------------------------------------------------------------------------------------


def score(scorers: dict, table: pd.DataFrame, store, shard: int = 64, is_sentence: Callable[[str], bool] | None = None) -> pd.DataFrame:
    """The table with `error`, why a picture lacks scores, `pixels`, its "width x height", `cut`, the scorers that read only the beginning
    of its prompt, `cut_at`, the characters that each of them reads, a column a scorer, empty after an error or without the prompt that it
    needs, and `meaningless`, the scorers that know the microworld alone (`is_micro`) unless the prompt is one of its sentences, as
    is_sentence(prompt) says; by default none is. scorers: by name.

    Each `shard` rows are kept under `store` as soon as they are scored, and read from there when pictures of the same contents, the same
    prompts and scorers come again, as long as code and libraries are the same. ValueError for an empty table."""
    if not len(table):
        raise ValueError("there is no picture to score")
    if not scorers:
        raise ValueError("there is no scorer to score with")
    if taken := {"image", "prompt", "folder", REFUSED, MEANINGLESS, *COLUMNS} & set(scorers):
        raise ValueError(f"a scorer may not be called {', '.join(sorted(taken))}: the table has such a column")
    table = _storable(table.drop(columns=[MEANINGLESS, *COLUMNS, *scorers], errors="ignore").reset_index(drop=True))
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
    meaningless = pd.Series(_meaningless(scorers, table, is_sentence), dtype=object)
    whole = pd.concat([table, scored.assign(error=pd.Series(errors, dtype=object)), meaningless.rename(MEANINGLESS)], axis=1)
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
    lengths = {name: read_lengths(scorer, list(rows.prompt)) for name, scorer in scorers.items()}
    truncated = [{name: str(n) for name in scorers if (n := lengths[name][i]) is not None} for i in range(len(rows))]
    out["cut"] = [", ".join(names) or None for names in truncated]
    out["cut_at"] = [", ".join(names.values()) or None for names in truncated]
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


def read_lengths(scorer, prompts: list) -> list[int | None]:
    """For each prompt, how many characters the longest beginning has that the scorer reads whole; None for a prompt that is not cut."""
    texts = list({p for p, is_cut in zip(prompts, truncated_prompts(scorer, prompts)) if is_cut})
    low, high = [0] * len(texts), list(map(len, texts))  # read whole, and cut
    for _ in range(max(high, default=0).bit_length()):
        middle = [(a + b) // 2 for a, b in zip(low, high)]
        is_cut = truncated_prompts(scorer, [text[:n] for text, n in zip(texts, middle)])
        low = [a if c else n for a, n, c in zip(low, middle, is_cut)]
        high = [n if c else b for b, n, c in zip(high, middle, is_cut)]
    return list(map(dict(zip(texts, low)).get, prompts))


# ---- the outcome ------------------------------------------------------------------------------------------------


def summary(scorers: dict, table: pd.DataFrame) -> pd.DataFrame:
    """A row a scorer: what its number is, what it compares, how many pictures have one, how many of these mean nothing, how many are no
    number (NaN, infinite), how many prompts were cut, and least, middle and greatest of what means something. scorers, table: `score`'s."""
    rows = {name: {"number": s.score_scale, "compares": _compares(s)} | _counts(name, s, table) for name, s in scorers.items()}
    extremes = {name: meaningful(table, name).agg(["min", "median", "max"]) for name in scorers}
    return pd.DataFrame(rows).T.join(pd.DataFrame(extremes).T)


def _compares(scorer) -> str:
    if not any(isinstance(part, JpegScorer) for part in scorer.modules()):
        return WITHIN if scorer.needs_prompt else ACROSS + " of the microworld" * is_micro(scorer)
    return f"{WITHIN}; {ONE_SIZE}" if scorer.needs_prompt else ONE_SIZE


def meaningful(table: pd.DataFrame, name: str) -> pd.Series:
    """A scorer's finite numbers that mean something."""
    return table.loc[np.isfinite(table[name].astype(float)) & ~is_named(table, MEANINGLESS, name), name]


def _counts(name: str, scorer, table: pd.DataFrame) -> dict[str, int]:
    scored = table.error.isna() & (table.prompt.notna() | (not scorer.needs_prompt))
    finite = np.isfinite(table[name].astype(float))
    return {"count": int(finite.sum()), "meaningless": int(finite.sum()) - len(meaningful(table, name)),
            "no number": int((scored & ~finite).sum()), "prompts cut": int(is_named(table, "cut", name).sum())}  # fmt: skip


def with_scores(scorers: dict, table: pd.DataFrame) -> list[str]:
    """The scorers that have a number for some picture."""
    return [name for name in scorers if np.isfinite(table[name].astype(float)).any()]


def warning(scorers: dict, table: pd.DataFrame) -> str:
    """Which numbers mean nothing and why, "" if all mean something. scorers and table: `score`'s."""
    names = [name for name in with_scores(scorers, table) if _counts(name, scorers[name], table)["meaningless"]]
    return WARNING.format(names=", ".join(names), rows=table[MEANINGLESS].notna().sum(), of=len(table)) if names else ""


def account(scorers: dict, table: pd.DataFrame) -> list[str]:
    """What became of the pictures, a sentence each: how many there are, the `warning`, what was left out and why, which prompts were cut
    or cannot be used, which sizes do not compare. scorers and table: `score`'s; the table's errors are not repeated."""
    absent = table[["error", "prompt"]].isna().sum()
    lines = [f"Pictures: {len(table)}; not scored or not by all: {len(table) - absent.error}; without a prompt: {absent.prompt}."]
    lines += filter(None, [warning(scorers, table)])
    if empty := ", ".join(name for name in scorers if name not in with_scores(scorers, table)):
        lines.append(f"Without a number for any picture, and not shown: {empty}.")
    if left_out := table.attrs.get("left_out"):
        lines.append(f"Not looked at: {', '.join(f'{what} ({n})' for what, n in left_out.items())}.")
    lines += [f"Prompts: {problem}." for problem in table.attrs.get("problems", [])]
    for name, scorer in scorers.items():
        count = _counts(name, scorer, table)
        if n := count["prompts cut"]:
            lines.append(f"Prompts that {name} read only the beginning of, cut to its length: {n}.")
        if n := count["no number"]:
            lines.append(f"Scores of {name} that are no number: {n}.")
    size_bound = ", ".join(name for name, scorer in scorers.items() if ONE_SIZE in _compares(scorer))
    if size_bound and (sizes := table["pixels"].nunique()) > 1:
        lines.append(f"Sizes: {sizes}. {size_bound} {ONE_SIZE}; between sizes it says nothing of quality.")
    return lines
