"""A collection of scored pictures to look at: a table, and one HTML page that sorts and groups. It is a file of its own, works without a
network, and shows prompts and names from elsewhere as text that can do nothing."""

import base64
import hashlib
import html
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from icthp import files, images
from icthp.evaluation.gallery import MARK, MEANINGLESS, account, is_named, summary, warning, with_scores

GROUPS = {"prompt": "no prompt", "folder": "no folder", "group": "no group"}  # columns to group by, and what an empty cell is called
CUT = "✂"  # before the part of a prompt that was not read
VOID = "it is of a microworld model, and the prompt is no sentence of the microworld"
MOST = 100  # sentences of one kind on the page
STYLE = """
body { font: 15px/1.45 sans-serif; margin: 1.5em auto; padding: 0 1em; max-width: 1500px; color: #222; background: #fff }
h1 { font-size: 1.5em; overflow-wrap: anywhere } h2 { font-size: 1.15em; margin: 1.6em 0 .5em; overflow-wrap: anywhere }
p { margin: .4em 0; overflow-wrap: anywhere }
.warning { border-left: 6px solid #b00020; background: #fbe9eb; padding: .6em 1em }
details { margin: .4em 0 } summary { cursor: pointer }
.bar { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ccc; padding: .5em 0; z-index: 1 }
.bar div { display: inline-block; margin: .15em 1.2em .15em 0 }
button { font: inherit; margin: .1em .15em; padding: .3em .7em; border: 1px solid #999; border-radius: 4px; background: #f4f4f4 }
button[aria-pressed=true] { background: #0b5c8f; border-color: #0b5c8f; color: #fff }
button:focus-visible, summary:focus-visible, .prompt:focus-visible { outline: 3px solid #e69f00; outline-offset: 1px }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(WIDTHpx, 42vw), 1fr)) }
figure { margin: 0; min-width: 0 } figcaption { font-size: 13px; overflow-wrap: anywhere } [hidden] { display: none }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #eee } img.small { image-rendering: pixelated }
.prompt { max-height: 9em; overflow: auto } .name { color: #666 }
.unread { color: #767676; text-decoration: underline dotted } .cut { color: #7a4a00 }
.scores { list-style: none; margin: .3em 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 .9em } .scores .on { font-weight: bold }
.void, .void s { color: #767676 } .void.on { font-weight: normal }
table { border-collapse: collapse } td, th { text-align: left; vertical-align: top }
td, th { padding: .25em 1em .25em 0; border-bottom: 1px solid #ddd }
th { color: #555; font-weight: normal } tbody th { color: #222; font-weight: bold }
@media (max-width: 700px) {
  .bar { position: static } thead { display: none } tr, td, tbody th { display: block; border: 0; padding: .1em 0 }
  tr { padding: .5em 0; border-bottom: 1px solid #ddd } td[data-label]::before { content: attr(data-label) ": "; color: #555 }
}
"""
SCRIPT = """
const main = document.querySelector("main"), figures = [...main.querySelectorAll("figure")], state = {...main.dataset};
const value = figure => Number(figure.getAttribute("data-" + state.score));
const order = figure => Number(figure.dataset.row);
function show() {
  const has = figure => !state.score || figure.hasAttribute("data-" + state.score);
  const sorted = [...figures].sort((a, b) => (state.score && has(a) && has(b) ? value(b) - value(a) : 0) || order(a) - order(b));
  const groups = new Map(), visible = figures.filter(has);
  for (const figure of figures) {
    figure.hidden = !has(figure);
    for (const item of figure.querySelectorAll("[data-of]")) item.classList.toggle("on", item.dataset.of === state.score);
  }
  for (const figure of [...visible].sort((a, b) => order(a) - order(b))) groups.set(title(figure), []);
  for (const figure of sorted) if (has(figure)) groups.get(title(figure)).push(figure);
  main.replaceChildren(...[...groups].map(([name, members]) => section(name, members)), section("", figures.filter(f => !has(f))));
  for (const kind of ["score", "group"])
    for (const button of document.querySelectorAll("button[data-" + kind + "]"))
      button.setAttribute("aria-pressed", button.dataset[kind] === state[kind]);
  const pressed = document.querySelector('.bar button[data-score][aria-pressed="true"]');
  document.querySelector("#shown").textContent = visible.length + " of " + figures.length + " pictures are shown" +
    (visible.length < figures.length ? "; the others have no number of " + pressed.textContent : "") +
    (state.score ? ". " + pressed.title : "") + ".";
}
const title = figure => state.group ? figure.getAttribute("data-group-" + state.group) : "";
function section(name, members) {
  const part = document.createElement("section"), grid = document.createElement("div");
  grid.className = "grid";
  grid.append(...members);
  if (name) part.append(Object.assign(document.createElement("h2"), {textContent: name, dir: "auto"}));
  part.append(grid);
  return part;
}
for (const kind of ["score", "group"])
  for (const button of document.querySelectorAll("button[data-" + kind + "]"))
    button.onclick = () => { state[kind] = button.dataset[kind]; show(); };
show();
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{digest}'">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
{account}
<div class="bar">{buttons}<p id="shown" aria-live="polite">{count} pictures are shown.</p>{legend}
<noscript><p>The buttons need the page's script: open the file in a browser, or trust it in JupyterLab.</p></noscript></div>
<main data-score="{first}" data-group=""><div class="grid">{figures}</div></main>
<h2>What the scores are</h2>
{summary}
{errors}
<script>{script}</script></body></html>
"""


def marked(scorers: dict, table: pd.DataFrame) -> pd.DataFrame:
    """The table to look at: each picture's name, its prompt and, as texts, the scores of those scorers that have any, with MARK behind one
    that means nothing; and which scorers cut the prompt, if one was cut. scorers and table: `gallery.score`'s."""
    out = pd.DataFrame({"picture": [_name(row) for row in table.to_dict("records")], "prompt": table["prompt"].fillna("")})
    for name in with_scores(scorers, table):
        marks = is_named(table, MEANINGLESS, name).map({True: f" {MARK}", False: ""})
        out[name] = [f"{value:.3g}{mark}" if np.isfinite(value) else "" for value, mark in zip(table[name].astype(float), marks)]
    return out.assign(**{"cut by": table["cut"].fillna("")}) if table["cut"].notna().any() else out


def write_html(file, scorers: dict, table: pd.DataFrame, title: str, first: str | None = None, width: int = 220, notes=()) -> Path:
    """One page without other files: thumbnails `width` pixels wide, prompts and scores, buttons that sort by a score and group by prompt,
    folder or a column `group`, the `account` and the sentences `notes`, the `summary` and the errors. A number that means nothing is
    struck and marked, the end of a prompt that was not read too; a scorer without any number has no button. scorers and table:
    `gallery.score`'s; first: the score that it opens sorted by. Returns the file."""
    pictures = table[table["pixels"].notna()].reset_index(drop=True)
    names = with_scores(scorers, pictures)
    keys = {name: name if re.fullmatch("[a-z0-9_]+", name) and name != "row" else f"score.{i}" for i, name in enumerate(scorers)}
    groups = [name for name in GROUPS if name in pictures and 1 < pictures[name].nunique(dropna=False) < len(pictures)]
    rows = [_figure(i, row, {name: keys[name] for name in names}, groups, width) for i, row in enumerate(pictures.to_dict("records"))]
    if first in names:
        rows = [rows[i] for i in pictures[first].astype(float).reset_index(drop=True).sort_values(ascending=False, kind="stable").index]
    outcome = summary(scorers, table)
    page = PAGE.format(title=html.escape(title), style=STYLE.replace("WIDTH", str(width)), script=SCRIPT, digest=_digest(SCRIPT),
                       first=keys[first] if first in names else "", count=len(pictures), figures="".join(rows),
                       buttons=_buttons(names, keys, outcome, first, groups), legend=_legend(table),
                       account=_account(scorers, table, notes), summary=_summary(outcome.loc[names]),
                       errors=_errors(table.error.dropna()))  # fmt: skip
    return files.save_text(file, page)


def _digest(script: str) -> str:
    """By which the page allows this script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# ---- above and below the pictures -------------------------------------------------------------------------------


def _account(scorers: dict, table: pd.DataFrame, notes) -> str:
    """The warning as a banner, how many pictures there are, the notes, and the rest folded away."""
    alarm = warning(scorers, table)
    banner = f'<p class="warning" role="note">{html.escape(alarm)}</p>' if alarm else ""
    first, *rest = [f"<p>{html.escape(line)}</p>" for line in account(scorers, table) if line != alarm]
    if len(rest) > MOST:
        rest = [*rest[:MOST], f"<p>And {len(rest) - MOST} sentences more.</p>"]
    folded = f"<details><summary>What was left out, cut, or could not be used: {len(rest)} remarks</summary>{''.join(rest)}</details>"
    return banner + first + "".join(f"<p>{html.escape(note)}</p>" for note in notes) + (folded if rest else "")


def _legend(table: pd.DataFrame) -> str:
    marks = []
    if table[MEANINGLESS].notna().any():
        marks.append(f'<span class="void"><s>0.12</s> {MARK}</span> this number means nothing: {VOID}')
    if table["cut"].notna().any():
        marks.append(f'{CUT} <span class="unread">grey, dotted</span> the end of a prompt that a scorer did not read')
    return f"<p>{'<br>'.join(marks)}.</p>" if marks else ""


def _buttons(names: list[str], keys: dict, outcome: pd.DataFrame, first: str | None, groups: list[str]) -> str:
    sorts = [_button("score", "", "as read", first not in names)]
    for name in names:
        count, void = outcome.loc[name, ["count", "meaningless"]]
        title = f"{name} {outcome.compares[name]}" + (f"; {void} of its {count} numbers mean nothing" if void else "")
        sorts.append(_button("score", keys[name], f"{name} {MARK}" if void == count else name, name == first, title))
    joins = [_button("group", "", "not at all", True), *(_button("group", name, name, False) for name in groups)]
    return _bar("Sort, best first", sorts) + (_bar("Group by", joins) if groups else "")


def _bar(title: str, buttons: list[str]) -> str:
    return f'<div role="group" aria-label="{title}">{title}: {"".join(buttons)}</div>'


def _button(kind: str, key: str, text: str, is_pressed: bool, title: str = "") -> str:
    pressed = str(is_pressed).lower()
    return f'<button data-{kind}="{key}" aria-pressed="{pressed}" title="{html.escape(title)}">{html.escape(text)}</button>'


def _summary(outcome: pd.DataFrame) -> str:
    """A table that becomes a list on a narrow screen; an extreme that is none is left empty."""
    columns = list(outcome)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ["", *columns])
    rows = []
    for name, row in zip(outcome.index, outcome.to_dict("records")):
        texts = {column: f"{row[column]:.4g}" if isinstance(row[column], float) else str(row[column]) for column in columns}
        cells = "".join(f'<td data-label="{column}">{html.escape(text)}</td>' for column, text in texts.items() if text != "nan")
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _errors(errors: pd.Series) -> str:
    lines = "".join(f"<li>{html.escape(error)}</li>" for error in errors)
    return f"<h2>Not scored</h2><ul>{lines}</ul>" if lines else ""


# ---- one picture ------------------------------------------------------------------------------------------------


def _name(row: dict) -> str:
    """A picture's name, below the folder that was read."""
    folder = row.get("folder")
    name = Path(row["image"]).name
    return f"{folder}/{name}" if isinstance(folder, str) and folder != "." else name


def _figure(i: int, row: dict, keys: dict, groups: list[str], width: int) -> str:
    scores = {name: row[name] for name in keys if pd.notna(row[name])}
    data = "".join(f' data-{keys[name]}="{value:.6g}"' for name, value in scores.items() if np.isfinite(value))
    data += "".join(f' data-group-{name}="{html.escape(str(row[name]) if pd.notna(row[name]) else GROUPS[name])}"' for name in groups)
    void = _names(row[MEANINGLESS])
    numbers = "".join(_number(name, keys[name], value, name in void) for name, value in scores.items())
    address, is_small = _thumbnail(row["image"], width)
    name = html.escape(_name(row))
    return (f'<figure data-row="{i}"{data}><img{" class=small" if is_small else ""} loading="lazy" alt="{name}" src="{address}">'
            f'<figcaption>{_prompt(row)}<ul class="scores">{numbers}</ul><bdi class="name">{name}</bdi></figcaption></figure>')  # fmt: skip


def _names(cell) -> list[str]:
    return cell.split(", ") if isinstance(cell, str) else []


def _number(name: str, key: str, value: float, is_void: bool) -> str:
    text = html.escape(name)
    if not is_void:
        return f'<li data-of="{key}">{text} {value:.3g}</li>'
    return f'<li class="void" data-of="{key}" title="means nothing: {VOID}">{text} <s>{value:.3g}</s> {MARK}</li>'


def _prompt(row: dict) -> str:
    """The prompt, what each scorer did not read of it dotted, and a sentence that says how much they read."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        return ""
    reads = dict(zip(_names(row["cut"]), map(int, _names(row["cut_at"]))))  # {scorer: characters}
    ends = sorted({*reads.values()})
    parts = [html.escape(prompt[: ends[0]] if ends else prompt)]
    for start, end in zip(ends, [*ends[1:], len(prompt)]):
        blind = html.escape(", ".join(name for name, n in reads.items() if n <= start))
        parts.append(f'{CUT}<span class="unread" title="not read by {blind}">{html.escape(prompt[start:end])}</span>')
    lengths = "; ".join(f"{', '.join(name for name in reads if reads[name] == n)} read {n} of {len(prompt)} characters" for n in ends)
    note = f'<p class="cut">{CUT} {html.escape(lengths)}</p>' if reads else ""
    return f'<p class="prompt"><bdi>{"".join(parts)}</bdi></p>{note}'


def _thumbnail(path: str, width: int) -> tuple[str, bool]:
    """A small JPEG as a data: address, and whether the picture itself is smaller; no address of a file that is gone since it was scored."""
    try:
        small = images.to_image(path)
    except ValueError:
        return "data:,", False
    is_small = max(small.size) < width
    small.thumbnail((2 * width, 2 * width))
    small.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), is_small
