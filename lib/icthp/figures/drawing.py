"""What figures are made of: means with intervals, grids of pictures, pictures that move."""

import textwrap

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image

from .marks import heights_of, whiskers


def errorbar(axis, x, rows, **kwargs) -> None:
    """Means with their intervals over x, from a frame with the columns mean, low and high (`evaluation.bootstrap_ci`)."""
    axis.errorbar(x, rows["mean"], whiskers(rows), **({"fmt": "o", "ms": 4} | kwargs))


def forest(axis, rows, labels, title: str, palette) -> None:
    """One line a row of a frame with mean, low and high, from top to bottom; a label and a colour of `palette` each."""
    y = heights_of(rows)
    axis.errorbar(rows["mean"], y, xerr=whiskers(rows), fmt="none", ecolor="0.5")
    axis.scatter(rows["mean"], y, color=palette, s=25, zorder=3)
    axis.set_yticks(y, labels)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_title(title, fontsize=9)


def conclude(figure, text: str) -> None:
    """What the figure shows, as its title: one sentence, left-aligned above all panels; make it from the numbers drawn."""
    width = int(9.5 * figure.get_figwidth())  # characters in a line
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), x=0.01, y=1.0, ha="left", va="bottom", fontsize=13, fontweight="bold")


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
    """Its lines, the long ones broken."""
    return "\n".join([part for line in text.splitlines() for part in textwrap.wrap(line, length)][:lines])
