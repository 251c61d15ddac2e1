"""The one place that writes figures and tables to files."""

from functools import partial
from pathlib import Path

from icthp.files import atomic, save_text


def save(figure, name: str, folder="figures") -> Path:
    """Write folder/name.png and name.pdf, both without version and date, so that the same figure is the same file. Returns the PNG."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, omitted in ((".png", "Software"), (".pdf", "CreationDate")):
        atomic(folder / f"{name}{suffix}", partial(figure.savefig, bbox_inches="tight", metadata={omitted: None}))
    return folder / f"{name}.png"


def format_ci(row, digits: int = 2) -> str:
    """ "mean [low, high]" of a row with these three, e.g. "0.61 [0.55, 0.66]"."""
    mean, low, high = (f"{row[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(frame, name: str, folder="figures", caption: str = "") -> None:
    """Write folder/name.csv, .md and .tex (booktabs) of a frame, whose numbers are rounded already."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic(folder / f"{name}.csv", frame.to_csv)
    save_text(folder / f"{name}.md", (f"{caption}\n\n" if caption else "") + frame.fillna("").to_markdown(disable_numparse=True) + "\n")
    escaped = frame.map(str, na_action="ignore").rename(index=str, columns=str)
    latex = escaped.to_latex(na_rep="", escape=True, caption=caption or None, label=f"tab:{name}")
    save_text(folder / f"{name}.tex", latex)
