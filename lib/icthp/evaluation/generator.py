"""What a generator is worth: GenEval's tasks, scores, size, statistics and diversity of what it draws."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from icthp import images
from icthp.evaluation.metrics import diversity, vendi
from icthp.evaluation.scoring import score_all


class Wanted(NamedTuple):
    """The pictures that tell what a generator is worth: one a task, then two a prompt, each from a noise of its own."""

    prompts: list[str]
    ids: list[int]  # of the noises

    def parts(self, size: int) -> Iterator["Wanted"]:
        """Some at a time."""
        for i in range(0, len(self.ids), size):
            yield Wanted(self.prompts[i : i + size], self.ids[i : i + size])


def pictures_wanted(prompts: list[str], tasks: list[dict]) -> Wanted:
    """What to draw for `evaluate_generator`, in its order. tasks: GenEval's metadata."""
    first_id = max(10_000, len(tasks), len(prompts))  # beyond the ids of the tasks
    ids = [*range(len(tasks)), *(first_id + i for i in range(len(prompts))), *(2 * first_id + i for i in range(len(prompts)))]
    return Wanted([*(task["prompt"] for task in tasks), *prompts, *prompts], ids)


@torch.no_grad()
def evaluate_generator(
    pictures: Iterable[Tensor], prompts: list[str], tasks: list[dict], scorers: dict, measure, *, batch: int = 64, shown: int = 8
) -> tuple[dict[str, pd.Series], Tensor]:
    """{measure: one value a picture, indexed by its prompt}, and the first `shown` pictures of prompts (m, 3, h, w) in [0, 1].

    pictures (3, h, w) in [0, 1]: those of `pictures_wanted(prompts, tasks)`, of which `batch` are in memory at once. measure(pixels, tasks
    or None) -> {measure: a value a picture}, with tasks "correct" among them. scorers: by name; "clip" also measures diversity, between
    two pictures of a prompt and, as Vendi score, among each eight prompts. geneval_mean is the mean of the tasks' means, as GenEval has
    it, rescaled so that the bootstrap over its index equals a stratified one over tasks. ValueError for scorers without clip."""
    if "clip" not in scorers:
        raise ValueError(f"the diversity of pictures is measured by CLIP's features: add clip to the scorers {', '.join(scorers)}")
    pictures = iter(pictures)
    correct = [float(c) for pixels, part in _batches(pictures, tasks, batch) for c in measure(pixels, part)["correct"]]
    per_picture, first, pictures_shown = [], [], []
    for pixels, texts in _batches(pictures, prompts, batch):
        per_picture.append(pd.DataFrame(_measured(pixels, texts, scorers, measure), index=texts))
        first.append(_image_features(scorers["clip"], pixels))
        pictures_shown += pixels[: max(0, shown - len(pictures_shown))]
    second = [_image_features(scorers["clip"], pixels) for pixels, _ in _batches(pictures, prompts, batch)]
    values = _geneval(tasks, correct) | dict(pd.concat(per_picture).items())
    return values | _diversity(torch.cat(first), torch.cat(second), prompts), torch.stack(pictures_shown)


def _batches(pictures: Iterator[Tensor], rows: list, batch: int) -> Iterator[tuple[Tensor, list]]:
    """The next pictures, one a row, with their rows."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        yield torch.stack(list(islice(pictures, len(part)))), part


def _measured(pixels: Tensor, prompts: list[str], scorers: dict, measure) -> dict[str, np.ndarray]:
    """Size, statistics, what `measure` reads, and every score of pictures."""
    found = {"jpeg_kb": images.jpeg_bytes(pixels) / 1000} | images.statistics(pixels)
    found |= {name: values for name, values in measure(pixels, None).items() if name != "correct"}
    found |= {f"score_{name}": score_all(scorer, pixels, prompts) for name, scorer in scorers.items()}
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def _geneval(tasks: list[dict], correct: list[float]) -> dict[str, pd.Series]:
    rows = pd.DataFrame({"tag": [t["tag"] for t in tasks], "prompt": [t["prompt"] for t in tasks], "correct": correct})
    values = {f"geneval_{task}": part.set_index("prompt").correct for task, part in rows.groupby("tag", sort=False)}
    return values | {"geneval_mean": _stratified(rows)}


def _stratified(rows: pd.DataFrame) -> pd.Series:
    """`correct` of rows with tag and prompt, scaled so that its mean is the mean of the tags' means and varies only within them."""
    mean, size = (rows.groupby("tag").correct.transform(how) for how in ("mean", "size"))
    tag_means = rows.groupby("tag").correct.mean()
    values = (rows.correct - mean) * len(rows) / (len(tag_means) * size) + tag_means.mean()
    return values.set_axis(rows.tag + ": " + rows.prompt)  # two tasks may ask the same prompt


def _image_features(scorer, pixels: Tensor) -> Tensor:
    return scorer.image_features(pixels.to(scorer.device)).cpu()


def _diversity(features: Tensor, second: Tensor, prompts: list[str]) -> dict[str, pd.Series]:
    """Of the features (n, d) of a first and a second picture of each prompt."""
    n = len(features)
    complete = max(n // 8 * 8, min(n, 8))  # a last, shorter group could not reach eight
    pairs = diversity(torch.cat([features, second]), list(range(n)) * 2)
    eights = vendi(features[:complete], np.arange(complete) // 8)
    return {"diversity": pd.Series(pairs.numpy(), prompts), "vendi": pd.Series(eights.numpy())}
