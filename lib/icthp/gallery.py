"""A collection of pictures: read from where it lies, scored so that a killed run goes on, shown as a page that sorts."""

import base64
import hashlib
import html
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from icthp import geneval, pictures
from icthp.files import atomic, fingerprint, save_text

ACROSS = "compares any pictures"
WITHIN = "compares pictures of one prompt, not of different ones"


def read(source: str, out) -> pd.DataFrame:
    """image (full path) and prompt (None where there is none) of a folder of pictures, a csv, jsonl or parquet table (pictures.read_table),
    a folder in GenEval's layout, or "dataset:NAME:SPLIT", a Hub dataset or a local folder of one with a column `image` and perhaps
    `prompt`, whose pictures are put into `out`/pictures."""
    if source.startswith("dataset:"):
        name, _, split = source.removeprefix("dataset:").rpartition(":")
        if not name:
            raise ValueError(f"{source} names no split: say dataset:NAME:SPLIT")
        return _dataset(name, split, Path(out) / "pictures")
    if Path(source).is_dir() and any(Path(source).glob("[0-9]*/metadata.jsonl")):
        return geneval.read_folder(source)[["image", "prompt"]]
    return pictures.read_table(source)


def _dataset(name: str, split: str, folder: Path) -> pd.DataFrame:
    rows = datasets.load_dataset(name, split=split)
    if "image" not in rows.column_names:
        raise ValueError(f"the dataset {name} has no column `image`; it has {', '.join(rows.column_names)}")
    table, files = rows.cast_column("image", datasets.Image(decode=False)), []
    for i, row in enumerate(table):
        contents = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        files.append(folder / f"{i:06d}-{hashlib.sha256(contents).hexdigest()[:8]}")
        if not files[-1].exists():
            atomic(files[-1], lambda partial, contents=contents: partial.write_bytes(contents))
    prompts = table["prompt"] if "prompt" in rows.column_names else [None] * len(rows)
    return pd.DataFrame({"image": list(map(str, files)), "prompt": pd.Series(list(prompts), dtype=object)})


# ---- scores -----------------------------------------------------------------------------------------------------


def score(scorers: dict, table: pd.DataFrame, store, shard: int = 64) -> pd.DataFrame:
    """The table with `error`, why a picture cannot be read, and a column a scorer, empty where there is an error or no prompt for a
    scorer that needs one. scorers: by name. Each `shard` rows are kept under `store` as soon as they are scored, and read from there
    when the same files, prompts and scorers, of the same weights, come again. ValueError for an empty table."""
    if not len(table):
        raise ValueError("there is no picture to score")
    table, parts = table.drop(columns=["error", *scorers], errors="ignore"), []
    weights = {name: [repr(scorer), fingerprint(scorer)] for name, scorer in scorers.items()}
    bar = tqdm(total=len(table), desc="scoring", unit="pictures")
    for first in range(0, len(table), shard):
        rows = table.iloc[first : first + shard].reset_index(drop=True)
        file = Path(store) / f"{_digest(rows, weights)}.parquet"
        if not file.exists():
            atomic(file, _scored(scorers, rows).to_parquet)
        parts.append(pd.read_parquet(file))
        bar.update(len(rows))
    bar.close()
    return pd.concat([table.reset_index(drop=True), pd.concat(parts, ignore_index=True)], axis=1)


def _digest(rows: pd.DataFrame, weights: dict) -> str:
    state = lambda p: (p, *((s := Path(p).stat()).st_size, s.st_mtime_ns)) if Path(p).exists() else (p,)
    told = [[*state(image), prompt] for image, prompt in rows[["image", "prompt"]].itertuples(index=False)]
    return hashlib.sha256(json.dumps([told, weights]).encode()).hexdigest()[:20]


@torch.no_grad()
def _scored(scorers: dict, rows: pd.DataFrame) -> pd.DataFrame:
    """error and scores of a few pictures, those of one size together."""
    out = pd.DataFrame({"error": pd.Series([None] * len(rows), dtype=object)} | {name: np.nan for name in scorers}, index=rows.index)
    sizes = {}
    for i, image in rows.image.items():
        try:
            pixels = pictures.read(image)
            sizes.setdefault(pixels.shape, []).append((i, pixels))
        except ValueError as error:
            out.loc[i, "error"] = str(error)
    for group in sizes.values():
        for name, scorer in scorers.items():
            told = [(i, p) for i, p in group if not scorer.needs_prompt or isinstance(rows.prompt[i], str)]
            if told:
                index, pixels = zip(*told)
                prompts = [rows.prompt[i] for i in index] if scorer.needs_prompt else None
                out.loc[list(index), name] = scorer.score(torch.stack(pixels).to(scorer.device), prompts).double().cpu().numpy()
    return out


def summary(scorers: dict, table: pd.DataFrame) -> pd.DataFrame:
    """A row a scorer: what its number is, what it compares, and what was seen of it. scorers: as in `score`."""
    said = {name: {"number": s.unit, "compares": WITHIN if s.needs_prompt else ACROSS} for name, s in scorers.items()}
    seen = table[list(scorers)].agg(["count", "min", "median", "max"]).T
    return pd.DataFrame(said).T.join(seen)


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
<p>{count} pictures. Sort, best first:</p>
<p>{buttons}</p>
<main>{figures}</main>
<h2>What the scores are</h2>
{summary}
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
    """One page without other files: thumbnails, prompts and scores, a button a score that sorts by it, and the `summary`. first: the
    score that it opens sorted by."""
    shown = table[table.error.isna()]
    shown = shown.sort_values(first, ascending=False) if first in scorers else shown
    button = lambda name: f'<button data-score="{name}" aria-pressed="{str(name == first).lower()}">{name}</button>'
    page = PAGE.format(title=html.escape(title), width=width, count=len(shown), buttons="".join(map(button, scorers)),
                       figures="".join(_figure(row, scorers, width) for row in shown.to_dict("records")),
                       summary=summary(scorers, table).round(4).to_html(border=0, justify="left"))  # fmt: skip
    return save_text(file, page)


def _figure(row: dict, scorers: dict, width: int) -> str:
    own = {name: row[name] for name in scorers if pd.notna(row[name])}
    data = " ".join(f'data-{name}="{value:.6g}"' for name, value in own.items())
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in own.items())
    prompt = html.escape(row["prompt"]) if isinstance(row["prompt"], str) else ""
    return (f'<figure {data}><img loading="lazy" alt="{prompt}" src="{_thumbnail(row["image"], width)}">'
            f"<figcaption>{prompt}<br>{numbers}<br>{html.escape(Path(row['image']).name)}</figcaption></figure>")  # fmt: skip


def _thumbnail(path: str, width: int) -> str:
    with Image.open(path) as image:
        small = pictures.upright(image).convert("RGB")
    small.thumbnail((2 * width, 2 * width))
    small.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
