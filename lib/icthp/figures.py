"""The style of all figures, colour-blind safe, and the one place that writes them."""

import textwrap
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from PIL import Image

from icthp.files import atomic, save_text

COLOURS = dict(zip(("clip", "pickscore", "ict", "hp", "icthp", "base", "jpeg"), sns.color_palette("colorblind", 7).as_hex()))
COLOURS |= {"ict_text": "0.45", "imagereward": "#56b4e9", "hpsv2": "#999933", "aesthetic": "#882255"}
MARKERS = dict(zip(COLOURS, "osD^vXP*<>h"))  # so that lines stay apart in grey
NAMES = {"clip": "CLIP", "pickscore": "PickScore", "ict": "ICT", "hp": "HP", "icthp": "ICT-HP", "base": "untuned", "jpeg": "JPEG",
         "imagereward": "ImageReward", "hpsv2": "HPS v2", "aesthetic": "Aesthetic", "random": "random",
         "ict_text": "ICT's text tower", "ict_text_alone": "ICT's tower alone",
         "first_alone": "first encoder alone", "second_alone": "second encoder alone"}  # fmt: skip


def label(name: str) -> str:
    """What a scorer or generator is called in figures; of a class in a file, FILE.py:CLASS, the class."""
    return NAMES.get(name, name.rpartition(":")[2])


def colour(name: str) -> str:
    return COLOURS.get(name, "0.3")


def marker(name: str) -> str:
    return MARKERS.get(name, ".")


def style() -> None:
    """Set matplotlib's defaults: legible at 600 px, no ink that says nothing."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    mpl.rcParams.update({"figure.dpi": 110, "savefig.dpi": 150, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.titlesize": 11, "axes.labelsize": 10,
                         "legend.frameon": False, "image.interpolation": "nearest"})  # fmt: skip


def save(figure, name: str, folder="figures") -> Path:
    """Write folder/name.png and name.pdf, both without version and date, so that the same figure is the same file. Returns the PNG."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, omitted in ((".png", "Software"), (".pdf", "CreationDate")):
        atomic(folder / f"{name}{suffix}", partial(figure.savefig, bbox_inches="tight", metadata={omitted: None}))
    return folder / f"{name}.png"


def errorbar(axis, x, rows, **kwargs) -> None:
    """Means with their intervals over x, from a frame with the columns mean, low and high (`evaluation.bootstrap_ci`)."""
    axis.errorbar(x, rows["mean"], [rows["mean"] - rows["low"], rows["high"] - rows["mean"]], **({"fmt": "o", "ms": 4} | kwargs))


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


def forest(axis, rows, labels, title: str, palette) -> None:
    """One line a row of a frame with mean, low and high, from top to bottom; a label and a colour of `palette` each."""
    y = np.arange(len(rows))[::-1]
    axis.errorbar(rows["mean"], y, xerr=[rows["mean"] - rows["low"], rows["high"] - rows["mean"]], fmt="none", ecolor="0.5")
    axis.scatter(rows["mean"], y, color=palette, s=25, zorder=3)
    axis.set_yticks(y, labels)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_title(title, fontsize=9)


def image_grid(pixels: torch.Tensor, titles=None, columns: int = 8, rows=None, heads=None, width: float = 1.5):
    """A figure of pixels (n, 3, h, w) in [0, 1], `columns` wide, each picture `width` inches; lists of texts: titles under pictures, `rows`
    left of lines, `heads` above columns."""
    lines = -(-len(pixels) // columns)
    height = width * pixels.shape[-2] / pixels.shape[-1] + (0.45 if titles else 0.05)
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for i, (axis, picture) in enumerate(zip(axes.flat, pixels)):
        axis.imshow(np.asarray(picture.detach().float().cpu().clamp(0, 1).permute(1, 2, 0)))
        if titles:
            axis.set_xlabel(_wrap(titles[i]), fontsize=6)
    for axis, text in zip(axes[:, 0], rows or []):
        axis.set_ylabel(_wrap(text, 18), fontsize=9)
    for axis, text in zip(axes[0], heads or []):
        axis.set_title(text, fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def animate(frames: list[torch.Tensor], file, zoom: int = 2, milliseconds: int = 500) -> None:
    """Write a GIF that repeats; each of the frames (n, 3, h, w) in [0, 1] is one line of n pictures."""
    images = []
    for frame in frames:
        line = torch.cat(list(frame), -1).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
        images.append(Image.fromarray(line.mul(255).round().byte().permute(1, 2, 0).numpy()))
    images[0].save(file, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def _wrap(text: str, length: int = 26, lines: int = 4) -> str:
    return "\n".join(textwrap.wrap(text, length)[:lines])
