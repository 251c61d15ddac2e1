"""evaluation.generator."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from icthp import images
from icthp.evaluation.metrics import diversity, vendi
from icthp.evaluation.scoring import score_all


@torch.no_grad()
def evaluate_generator(draw, prompts: list[str], tasks: list[dict], scorers: dict, measure) -> tuple[dict[str, pd.Series], Tensor]:
    """What a generator is worth: {measure: one value a picture, indexed by its prompt}, and its pictures of the prompts (n, 3, h, w).

    draw(prompts, ids) -> pixels, from the noises of these ids, all different. tasks: GenEval's metadata, a picture each, drawn 256 at
    once; measure(pixels, tasks) -> {measure: a value a picture}, among them "correct". scorers: by name; "clip" also measures diversity,
    between two pictures of a prompt and, as Vendi score, among each eight prompts. geneval_mean is the mean of the tasks' means, as
    GenEval has it, rescaled so that the bootstrap over its index equals one within each task."""
    rows = pd.DataFrame({"tag": [t["tag"] for t in tasks], "prompt": [t["prompt"] for t in tasks]})
    rows["correct"] = _judged(draw, tasks, measure)
    values = {f"geneval_{task}": part.set_index("prompt").correct for task, part in rows.groupby("tag", sort=False)}
    values["geneval_mean"] = _stratified(rows)
    far = max(10_000, len(tasks), len(prompts))
    pixels, again = (draw(prompts, range(k * far, k * far + len(prompts))) for k in (1, 2))
    per_picture = {"jpeg_kb": images.jpeg_bytes(pixels) / 1000} | images.statistics(pixels)
    per_picture |= {name: v for name, v in measure(pixels, None).items() if name != "correct"}
    per_picture |= {f"score_{name}": score_all(scorer, pixels, prompts) for name, scorer in scorers.items()}
    values |= {name: pd.Series(np.asarray(v, dtype=np.float64), prompts) for name, v in per_picture.items()}
    one, two = (
        torch.cat([scorers["clip"].image_features(p.to(scorers["clip"].device)).cpu() for p in x.split(64)]) for x in (pixels, again)
    )
    values["diversity"] = pd.Series(diversity(torch.cat([one, two]), list(range(len(one))) * 2).numpy(), prompts)
    whole = max(len(one) // 8 * 8, min(len(one), 8))  # a last, shorter group could not reach eight
    values["vendi"] = pd.Series(vendi(one[:whole], np.arange(whole) // 8).numpy())
    return values, pixels


def _judged(draw, tasks: list[dict], measure, batch: int = 256) -> list[float]:
    """Is each task's picture right? `batch` pictures in memory at a time."""
    right = []
    for first in range(0, len(tasks), batch):
        part = tasks[first : first + batch]
        pixels = draw([task["prompt"] for task in part], range(first, first + len(part)))
        right += [float(r) for r in measure(pixels, part)["correct"]]
    return right


def _stratified(rows: pd.DataFrame) -> pd.Series:
    """`correct` of rows with tag and prompt, scaled so that its mean is the mean of the tags' means and varies only within them."""
    mean, size = (rows.groupby("tag").correct.transform(how) for how in ("mean", "size"))
    of_tags = rows.groupby("tag").correct.mean()
    values = (rows.correct - mean) * len(rows) / (len(of_tags) * size) + of_tags.mean()
    return values.set_axis(rows.tag + ": " + rows.prompt)  # two tasks may ask the same prompt
