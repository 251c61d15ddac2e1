"""The pictures of the README and of docs/: one that moves, and copies of figures."""

import io
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from PIL import Image

from icthp import figures, microworld, params

COPIED = ("fig1_paradox", "fig4_triplets", "fig5_accuracy", "fig10_collapse")
SCENE = 4  # of those that notebook 06 measures


def frame(pixels: torch.Tensor, caption: str, means: pd.DataFrame, level: int) -> Image.Image:
    """One scene (3, h, w) at a level, and each scorer's mean score up to it. means: a row a level, a column a scorer."""
    figure, (picture, curves) = plt.subplots(
        1,
        2,
        figsize=(7.2, 3),
        gridspec_kw={"width_ratios": [1, 1.5], "wspace": 0.12, "left": 0.02, "right": 0.8, "bottom": 0.18, "top": 0.95},
    )
    picture.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    picture.set(xticks=[], yticks=[], xlabel=caption)
    for name in means:
        curves.plot(means.index[: level + 1], means[name][: level + 1], color=figures.colour(name), lw=2)
        curves.plot(means.index[level], means[name].iloc[level], figures.marker(name), color=figures.colour(name), ms=8,
                    label=figures.label(name))  # fmt: skip
    curves.set(xlim=(-0.03, 1.03), ylim=(means.min().min() - 0.1, means.max().max() + 0.1), yticks=[], xlabel="richness of the picture",
               ylabel="score, in its own sd")  # fmt: skip
    curves.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    plt.close(figure)
    return Image.open(drawn).convert("RGB")


def moving(out: Path, runs: Path = Path("runs")) -> None:
    """The paradox as a GIF: the scene grows richer, the scores move."""
    levels = pd.read_parquet(runs / "evaluate/tables/levels.parquet")
    means = levels.pivot_table(index="richness", columns="scorer", values="score", sort=False)
    means = (means - means.iloc[0]) / levels.groupby("scorer").score.std()[means.columns]
    values = params.read_params()
    scenes = microworld.sample(values["evaluate"]["micro_scenes"], torch.Generator().manual_seed(values["shared"]["seed"]))
    scene = scenes[torch.tensor([SCENE])]
    caption = f"\u201c{microworld.captions(scene)[0]}\u201d"
    frames = [frame(microworld.render(scene.at(richness))[0], caption, means, i) for i, richness in enumerate(means.index)]
    frames = [image.quantize(64, dither=Image.Dither.NONE) for image in frames]
    milliseconds = [1500, *[600] * (len(frames) - 2), 2500]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=True)


def main(out: Path = Path("docs/pictures"), figures_folder: Path = Path("figures")) -> None:
    out.mkdir(exist_ok=True)
    figures.style()
    moving(out / "paradox.gif")
    for name in COPIED:
        figure = Image.open(figures_folder / f"{name}.png").convert("RGB").quantize(64, dither=Image.Dither.NONE)
        figure.save(out / f"{name}.png", optimize=True)  # a quarter of the bytes: git keeps every version
