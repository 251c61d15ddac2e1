"""What a generator is worth: GenEval's tasks, scores, size, statistics and diversity of what it draws."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from icthp import images
from icthp.evaluation.metrics import diversity, vendi
from icthp.evaluation.scoring import score_all


@torch.no_grad()
def evaluate_generator(draw, prompts: list[str], tasks: list[dict], scorers: dict, measure) -> tuple[dict[str, pd.Series], Tensor]:
    """{measure: one value a picture, indexed by its prompt}, and the generator's pictures of the n prompts (n, 3, h, w) in [0, 1].

    draw(prompts, ids) -> pixels, from the noises of these ids, all different. tasks: GenEval's metadata, a picture each, drawn 256 at
    once; measure(pixels, tasks or None) -> {measure: a value a picture}, with tasks "correct" among them. scorers: by name; "clip" also
    measures diversity, between two pictures of a prompt and, as Vendi score, among each eight prompts. geneval_mean is the mean of the
    tasks' means, as GenEval has it, rescaled so that the bootstrap over its index equals a stratified one over tasks."""
    values = _geneval(draw, tasks, measure)
    first_id = max(10_000, len(tasks), len(prompts))  # beyond the ids of the tasks
    pixels = draw(prompts, range(first_id, first_id + len(prompts)))
    second = draw(prompts, range(2 * first_id, 2 * first_id + len(prompts)))
    per_picture = {"jpeg_kb": images.jpeg_bytes(pixels) / 1000} | images.statistics(pixels)
    per_picture |= {name: v for name, v in measure(pixels, None).items() if name != "correct"}
    per_picture |= {f"score_{name}": score_all(scorer, pixels, prompts) for name, scorer in scorers.items()}
    values |= {name: pd.Series(np.asarray(v, dtype=np.float64), prompts) for name, v in per_picture.items()}
    values |= _diversity(_image_features(scorers["clip"], pixels), _image_features(scorers["clip"], second), prompts)
    return values, pixels


def _geneval(draw, tasks: list[dict], measure) -> dict[str, pd.Series]:
    rows = pd.DataFrame({"tag": [t["tag"] for t in tasks], "prompt": [t["prompt"] for t in tasks]})
    rows["correct"] = _correct(draw, tasks, measure)
    values = {f"geneval_{task}": part.set_index("prompt").correct for task, part in rows.groupby("tag", sort=False)}
    return values | {"geneval_mean": _stratified(rows)}


def _correct(draw, tasks: list[dict], measure, batch: int = 256) -> list[float]:
    """1 for each task that its picture fulfils, else 0; `batch` pictures in memory at a time."""
    correct = []
    for first in range(0, len(tasks), batch):
        part = tasks[first : first + batch]
        pixels = draw([task["prompt"] for task in part], range(first, first + len(part)))
        correct += [float(c) for c in measure(pixels, part)["correct"]]
    return correct


def _stratified(rows: pd.DataFrame) -> pd.Series:
    """`correct` of rows with tag and prompt, scaled so that its mean is the mean of the tags' means and varies only within them."""
    mean, size = (rows.groupby("tag").correct.transform(how) for how in ("mean", "size"))
    tag_means = rows.groupby("tag").correct.mean()
    values = (rows.correct - mean) * len(rows) / (len(tag_means) * size) + tag_means.mean()
    return values.set_axis(rows.tag + ": " + rows.prompt)  # two tasks may ask the same prompt


def _image_features(scorer, pixels: Tensor) -> Tensor:
    return torch.cat([scorer.image_features(p.to(scorer.device)).cpu() for p in pixels.split(64)])


def _diversity(features: Tensor, second: Tensor, prompts: list[str]) -> dict[str, pd.Series]:
    """Of the features (n, d) of a first and a second picture of each prompt."""
    n = len(features)
    complete = max(n // 8 * 8, min(n, 8))  # a last, shorter group could not reach eight
    pairs = diversity(torch.cat([features, second]), list(range(n)) * 2)
    eights = vendi(features[:complete], np.arange(complete) // 8)
    return {"diversity": pd.Series(pairs.numpy(), prompts), "vendi": pd.Series(eights.numpy())}
