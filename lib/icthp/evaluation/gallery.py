"""A collection of pictures: read from where it lies, scored so that a killed run goes on, shown as a page that sorts."""

import base64
import html
import importlib.metadata
import io
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
CODE = "evaluation/gallery images preprocessing tables scorers kernels losses files imports"  # what scores hang on
ONE = threading.Lock()  # `cut` sets a tokenizer to another length while it counts: no other thread may score with it then
LIBRARIES = ("torch", "pillow", "open_clip_torch", "transformers")
SPLIT = r"[\w.-]+(?:\[[^\]]*\])?(?:\(\w+\))?"  # train, train[:2], train[10%:20%](pct1_dropremainder)


def read(source: str, out) -> pd.DataFrame:
    """image (full path) and prompt (None where there is none) of a folder of pictures, a csv, jsonl or parquet table (pictures.read_table),
    a folder in GenEval's layout, or "dataset:NAME:SPLIT", a Hub dataset or a local folder of one with a column `image` and perhaps
    `prompt`, whose pictures are put into `out`/pictures (sources.read_dataset). attrs["left_out"]: of a folder, what is not among the
    rows, {what: how many}."""
    if source.startswith("dataset:"):
        named = re.fullmatch(rf"dataset:(.+):({SPLIT}(?:\+{SPLIT})*)", source)
        if not named:
            raise ValueError(f"{source} names no split: say dataset:NAME:SPLIT")
        return read_dataset(*named.groups(), Path(out))
    if Path(source).is_dir() and any(Path(source).glob("[0-9]*/metadata.jsonl")):
        return geneval.read_folder(source)[["image", "prompt"]]
    return images.read_table(source)


# ---- scores -----------------------------------------------------------------------------------------------------


def score(scorers: dict, table: pd.DataFrame, store, shard: int = 64) -> pd.DataFrame:
    """The table with `error`, why a picture lacks scores, `pixels`, its "width x height", `cut`, which scorers read only the beginning of
    its prompt, and a column a scorer, empty where there is an error or no prompt for a scorer that needs one. scorers: by name. Each
    `shard` rows are kept under `store` as soon as they are scored, and read from there when pictures of the same contents, the same
    prompts and scorers come again, as long as code and libraries are the same. ValueError for an empty table."""
    if not len(table):
        raise ValueError("there is no picture to score")
    own = ["error", "pixels", "cut"]
    if taken := {"image", "prompt", REFUSED, *own} & set(scorers):
        raise ValueError(f"a scorer may not be called {', '.join(sorted(taken))}: the table has such a column")
    table, parts = _storable(table.drop(columns=[*own, *scorers], errors="ignore").reset_index(drop=True)), []
    told = [[name, repr(scorer), files.fingerprint(scorer)] for name, scorer in scorers.items()]
    told += [files.code(*CODE.split()), *map(importlib.metadata.version, LIBRARIES)]
    bar = tqdm(total=len(table), desc="scoring", unit="pictures")
    for first in range(0, len(table), shard):
        rows = table.iloc[first : first + shard].reset_index(drop=True)
        parts.append(_kept(Path(store) / f"{files.digest(_identities(rows), told)}.parquet", partial(_scored, scorers, rows)))
        bar.update(len(rows))
    bar.close()
    seen = pd.concat(parts, ignore_index=True)
    told = [f"{images.printable(i)} {why}" if isinstance(why, str) else None for i, why in zip(table.image, seen.error)]
    whole = pd.concat([table, seen.assign(error=pd.Series(told, dtype=object))], axis=1)
    whole.attrs = table.attrs
    return whole


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of mixed values, which no parquet file can hold, as texts; those that are named by a number get a text for a name."""
    mixed = [name for name in table.select_dtypes(object) if table[name].dropna().map(type).nunique() > 1 or _nested(table[name])]
    text = lambda cell: cell if isinstance(cell, str) or cell is None else json.dumps(cell, default=str)
    return table.assign(**{name: table[name].map(text) for name in mixed}).rename(columns=str)


def _nested(column: pd.Series) -> bool:
    return bool(column.map(lambda cell: isinstance(cell, (dict, list)) or isinstance(cell, int) and abs(cell) >= 1 << 63).any())


def _kept(file: Path, make) -> pd.DataFrame:
    """The frame in a file, made anew where there is none or it is broken."""
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError):  # pyarrow's errors are of these kinds
        files.atomic(file, make().to_parquet)
    return pd.read_parquet(file)


def _identities(rows: pd.DataFrame) -> list:
    """What tells each row apart: its picture's contents, not their name or time, and its prompt."""
    texts = rows[[name for name in ("prompt", REFUSED) if name in rows]].map(lambda text: text if isinstance(text, str) else None)
    return [[_contents(image), *row] for image, row in zip(rows.image, texts.itertuples(index=False))]


def _contents(image: str) -> str | None:
    try:
        return files.digest(Path(image)) if Path(image).is_file() else None
    except (OSError, ValueError):
        return None


@torch.no_grad()
def _scored(scorers: dict, rows: pd.DataFrame) -> pd.DataFrame:
    """error, pixels, cut and scores of a few pictures, those of one size together."""
    out = pd.DataFrame({name: pd.Series([None] * len(rows), dtype=object) for name in ("error", "pixels", "cut")})
    out = out.assign(**{name: np.nan for name in scorers})
    cuts = {name: cut_prompts(scorer, list(rows.prompt)) for name, scorer in scorers.items()}
    out["cut"] = [", ".join(name for name in scorers if cuts[name][i]) or None for i in range(len(rows))]
    groups, held = {}, 0  # {size: [(row, picture)]}, pixels in them
    for i, row in enumerate(rows.to_dict("records")):
        try:
            if isinstance(row.get(REFUSED), str):
                raise ValueError(row[REFUSED])
            pixels = images.read(row["image"])
        except ValueError as error:
            out.loc[i, "error"] = str(error).removeprefix(images.printable(row["image"])).strip()
            continue
        out.loc[i, "pixels"] = f"{pixels.shape[2]} x {pixels.shape[1]}"
        groups.setdefault(pixels.shape, []).append((i, pixels))
        held += pixels[0].numel()
        del pixels
        if held >= BATCH:
            held = _score_groups(scorers, rows, groups, out)
    _score_groups(scorers, rows, groups, out)
    return out


def _score_groups(scorers: dict, rows: pd.DataFrame, groups: dict, out: pd.DataFrame) -> int:
    """Write the scores of the groups into `out` and empty them -> 0, the pixels that they hold now."""
    while groups:
        index, pixels = zip(*groups.popitem()[1])
        pixels = pixels[0][None] if len(pixels) == 1 else torch.stack(pixels)
        for name, scorer in scorers.items():
            told = [k for k, i in enumerate(index) if not scorer.needs_prompt or isinstance(rows.prompt[i], str)]
            values = _values(scorer, pixels if len(told) == len(index) else pixels[told], [rows.prompt[index[k]] for k in told])
            for k, value in zip(told, values):
                if isinstance(value, str):
                    before = out.loc[index[k], "error"]
                    out.loc[index[k], "error"] = "; ".join([*([before] if before else []), f"has no score of {name}: {value}"])
                else:
                    out.loc[index[k], name] = value
    return 0


def _values(scorer, pixels: torch.Tensor, prompts: list[str]) -> list[float | str]:
    """A score for each picture, or why the scorer refuses it; the others are scored."""
    if not prompts:
        return []
    try:
        with ONE:
            return scorer.score(pixels.to(scorer.device), prompts if scorer.needs_prompt else None).double().tolist()
    except (OSError, ValueError) as error:  # Pillow's JPEG: no side above 65,500
        if len(prompts) == 1:
            return [str(error)]
    return [value for k in range(len(prompts)) for value in _values(scorer, pixels[k : k + 1], prompts[k : k + 1])]


def cut_prompts(scorer, prompts: list) -> list[bool]:
    """For each prompt, is it longer than a text tower of the scorer reads? False where there is none."""
    readers, texts = _readers(scorer), [p for p in prompts if isinstance(p, str)]
    if not readers or not texts:
        return [False] * len(prompts)
    with ONE:
        is_cut = dict(zip(texts, torch.stack([cut(texts).cpu() for cut in readers]).any(0).tolist()))
    return [isinstance(p, str) and is_cut[p] for p in prompts]


def _readers(scorer) -> list:
    """The functions `cut` of the scorer or of those of its parts that read prompts."""
    if not getattr(scorer, "needs_prompt", True):
        return []
    return [scorer.is_truncated] if hasattr(scorer, "is_truncated") else [cut for part in scorer.children() for cut in _readers(part)]


# ---- what was seen ----------------------------------------------------------------------------------------------


def summary(scorers: dict, table: pd.DataFrame) -> pd.DataFrame:
    """A row a scorer: what its number is, what it compares, how many pictures have one, how many scores are no number (NaN, infinite), how
    many prompts were cut, and the least, middle and greatest. scorers and table: `score`'s."""
    said = {name: {"number": s.score_scale, "compares": _compares(s)} | _counts(name, s, table) for name, s in scorers.items()}
    seen = table[list(scorers)].replace([np.inf, -np.inf], np.nan).agg(["min", "median", "max"]).T
    return pd.DataFrame(said).T.join(seen)


def _compares(scorer) -> str:
    if not any(isinstance(part, JpegScorer) for part in scorer.modules()):
        return WITHIN if scorer.needs_prompt else ACROSS
    return f"{WITHIN}; {ONE_SIZE}" if scorer.needs_prompt else ONE_SIZE


def _counts(name: str, scorer, table: pd.DataFrame) -> dict[str, int]:
    asked = table.error.isna() & (_has_prompt(table) | (not scorer.needs_prompt))
    finite = np.isfinite(table[name].astype(float))
    cut = table["cut"].map(lambda names: isinstance(names, str) and name in names.split(", "))
    return {"count": int(finite.sum()), "no number": int((asked & ~finite).sum()), "prompts cut": int(cut.sum())}


def _has_prompt(table: pd.DataFrame) -> pd.Series:
    return table.prompt.map(lambda prompt: isinstance(prompt, str)).astype(bool)


def account(scorers: dict, table: pd.DataFrame) -> list[str]:
    """What became of the pictures, a sentence each: how many there are, what was left out and why, which prompts were cut, which sizes do
    not compare. scorers and table: `score`'s; the table's errors are not repeated."""
    bad, without = table.error.notna().sum(), (~_has_prompt(table)).sum()
    said = [f"Pictures: {len(table)}; not scored or not by all: {bad}; without a prompt: {without}."]
    if left_out := table.attrs.get("left_out"):
        said.append(f"Not looked at: {', '.join(f'{what} ({n})' for what, n in left_out.items())}.")
    counts = {name: _counts(name, scorer, table) for name, scorer in scorers.items()}
    said += [
        f"Prompts that {name} read only the beginning of, cut to its length: {n}." for name, c in counts.items() if (n := c["prompts cut"])
    ]
    said += [f"Scores of {name} that are no number: {n}." for name, c in counts.items() if (n := c["no number"])]
    sizes, sized = table["pixels"].nunique(), [name for name, s in scorers.items() if ONE_SIZE in _compares(s)]
    if sized and sizes > 1:
        said.append(f"Sizes: {sizes}. {', '.join(sized)} {ONE_SIZE}; between sizes it says nothing of quality.")
    return said


# ---- the page ---------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 1.5em; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({width}px, 1fr)); gap: 14px }}
figure {{ margin: 0 }} img {{ width: 100%; image-rendering: auto }} figcaption {{ font-size: 12px; overflow-wrap: anywhere }}
button {{ margin: 0 .4em .8em 0; padding: .3em .8em }} button[aria-pressed=true] {{ background: #0173b2; color: #fff }}
td, th {{ text-align: left; padding: .1em .9em .1em 0; font-weight: normal }} th {{ color: #666 }}
</style></head><body>
<h1>{title}</h1>
{account}
<p>{count} pictures are shown. Sort, best first:</p>
<p>{buttons}</p>
<main>{figures}</main>
<h2>What the scores are</h2>
{summary}
{errors}
<script>
document.querySelectorAll("button").forEach(button => button.onclick = () => {{
  const name = "data-" + button.dataset.score, main = document.querySelector("main");
  const value = figure => figure.hasAttribute(name) ? Number(figure.getAttribute(name)) : -Infinity;
  [...main.children].sort((a, b) => value(b) - value(a)).forEach(figure => main.append(figure));
  document.querySelectorAll("button").forEach(other => other.setAttribute("aria-pressed", other === button));
}});
</script></body></html>
"""


def write_html(file, scorers: dict, table: pd.DataFrame, title: str, first: str | None = None, width: int = 220) -> Path:
    """One page without other files: thumbnails, prompts and scores, a button a score that sorts by it, the `account`, the `summary` and the
    errors. first: the score that it opens sorted by."""
    shown = table[table["pixels"].notna()]
    shown = shown.sort_values(first, ascending=False) if first in scorers else shown
    keys = {name: name if re.fullmatch("[a-z0-9_-]+", name) else f"score.{i}" for i, name in enumerate(scorers)}  # an attribute's name
    button = lambda name: f'<button data-score="{keys[name]}" aria-pressed="{str(name == first).lower()}">{html.escape(name)}</button>'
    errors = [f"<li>{html.escape(error)}</li>" for error in table.error.dropna()]
    page = PAGE.format(title=html.escape(title), width=width, count=len(shown), buttons="".join(map(button, scorers)),
                       account="".join(f"<p>{html.escape(said)}</p>" for said in account(scorers, table)),
                       figures="".join(_figure(row, keys, width) for row in shown.to_dict("records")),
                       summary=summary(scorers, table).round(4).to_html(border=0, justify="left"),
                       errors=f"<h2>Not scored</h2><ul>{''.join(errors)}</ul>" if errors else "")  # fmt: skip
    return files.save_text(file, page)


def _figure(row: dict, keys: dict, width: int) -> str:
    own = {name: row[name] for name in keys if pd.notna(row[name])}
    data = " ".join(f'data-{keys[name]}="{value:.6g}"' for name, value in own.items() if np.isfinite(value))
    numbers = ", ".join(f"{html.escape(name)} {value:.3g}" for name, value in own.items())
    prompt = html.escape(row["prompt"]) if isinstance(row["prompt"], str) else ""
    cut = f"<br>only its beginning was read by {html.escape(row['cut'])}" if isinstance(row["cut"], str) else ""
    return (f'<figure {data}><img loading="lazy" alt="{prompt}" src="{_thumbnail(row["image"], width)}">'
            f"<figcaption>{prompt}{cut}<br>{numbers}<br>{html.escape(Path(row['image']).name)}</figcaption></figure>")  # fmt: skip


def _thumbnail(path: str, width: int) -> str:
    """A small JPEG as a data: address; none of a file that is gone since it was scored."""
    try:
        small = images.to_image(path)
    except ValueError:
        return "data:,"
    small.thumbnail((2 * width, 2 * width))
    small.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
