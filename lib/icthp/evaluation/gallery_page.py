"""A collection of scored pictures as one HTML page that sorts."""

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from icthp import files, images
from icthp.evaluation.gallery import account, summary

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


def write_html(file, scorers: dict, table: pd.DataFrame, title: str, first: str | None = None, width: int = 220, notes=()) -> Path:
    """One page without other files: thumbnails `width` pixels wide, prompts and scores, a button a score that sorts by it, the `account`
    and the sentences `notes`, the `summary` and the errors. scorers and table: `gallery.score`'s; first: the score that it opens sorted
    by. Returns the file."""
    pictures = table[table["pixels"].notna()]
    pictures = pictures.sort_values(first, ascending=False) if first in scorers else pictures
    keys = {name: name if re.fullmatch("[a-z0-9_-]+", name) else f"score.{i}" for i, name in enumerate(scorers)}  # an attribute's name
    errors = [f"<li>{html.escape(error)}</li>" for error in table.error.dropna()]
    page = PAGE.format(title=html.escape(title), width=width, count=len(pictures),
                       buttons="".join(_button(name, key, name == first) for name, key in keys.items()),
                       account="".join(f"<p>{html.escape(line)}</p>" for line in (*account(scorers, table), *notes)),
                       figures="".join(_figure(row, keys, width) for row in pictures.to_dict("records")),
                       summary=summary(scorers, table).round(4).to_html(border=0, justify="left"),
                       errors=f"<h2>Not scored</h2><ul>{''.join(errors)}</ul>" if errors else "")  # fmt: skip
    return files.save_text(file, page)


def _button(name: str, key: str, is_pressed: bool) -> str:
    return f'<button data-score="{key}" aria-pressed="{str(is_pressed).lower()}">{html.escape(name)}</button>'


def _figure(row: dict, keys: dict, width: int) -> str:
    scores = {name: row[name] for name in keys if pd.notna(row[name])}
    data = " ".join(f'data-{keys[name]}="{value:.6g}"' for name, value in scores.items() if np.isfinite(value))
    numbers = ", ".join(f"{html.escape(name)} {value:.3g}" for name, value in scores.items())
    prompt = html.escape(row["prompt"]) if isinstance(row["prompt"], str) else ""
    truncated = f"<br>only its beginning was read by {html.escape(row['cut'])}" if isinstance(row["cut"], str) else ""
    return (f'<figure {data}><img loading="lazy" alt="{prompt}" src="{_thumbnail(row["image"], width)}">'
            f"<figcaption>{prompt}{truncated}<br>{numbers}<br>{html.escape(Path(row['image']).name)}</figcaption></figure>")  # fmt: skip


def _thumbnail(path: str, width: int) -> str:
    """A small JPEG as a data: address; none of a file that is gone since it was scored."""
    try:
        small = images.to_image(path)
    except ValueError:
        return "data:,"
    small.thumbnail((2 * width, 2 * width))
    small.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
