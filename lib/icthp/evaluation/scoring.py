"""Run a scorer over triplets, pictures or files, a batch at a time. A NaN stops the run: it would lose every comparison in silence."""

import torch
from torch import Tensor

from icthp import images


@torch.no_grad()
def score_triplets(scorer, triplets, kind: str = "easy", batch: int = 128, prompts: list[str] | None = None) -> Tensor:
    """Scores (n, 3) on the CPU of I1, I2, I3, as the scorer's own preprocessing reads them, with each row's prompt of that kind ("easy",
    "refined", "near"), or with `prompts` (n) instead. ValueError names the scorer and the first row with a NaN."""
    triplets = triplets.read_as(getattr(scorer, "preprocessing", None))
    prompts = prompts or triplets.texts[kind]
    scores = []
    for rows in torch.arange(len(triplets)).split(batch):
        part = [prompts[row] for row in rows.tolist()]
        scores.append(torch.stack([scorer.score(p.to(scorer.device), part).cpu() for p in triplets.pixels(rows)], 1))
    return _no_nan(torch.cat(scores), scorer, prompts)


@torch.no_grad()
def score_all(scorer, pixels: Tensor, prompts: list[str], batch: int = 128) -> Tensor:
    """Scores (n,) on the CPU of pixels (n, 3, h, w) with their prompts. ValueError names the scorer and the first row with a NaN."""
    scores = []
    for start in range(0, len(pixels), batch):
        part = slice(start, start + batch)
        scores.append(scorer.score(pixels[part].to(scorer.device), prompts[part]).cpu())
    return _no_nan(torch.cat(scores), scorer, prompts)


@torch.no_grad()
def score_files(score, table, levels: list[str], device="cpu") -> Tensor:
    """Scores (rows, levels) of picture files of any sizes: a table of `images.read_levels`, whose columns `levels` name the files.
    score(pixels (1, 3, h, w), [prompt]) -> (1,)."""
    scores = []
    for prompt, *files in table[["prompt", *levels]].itertuples(index=False):
        scores.append([score(images.to_pixels(file)[None].to(device), [prompt]).item() for file in files])
    return torch.tensor(scores)


def _no_nan(scores: Tensor, scorer, prompts) -> Tensor:
    """The scores (n,) or (n, k) themselves; ValueError names the scorer and the first row with a NaN."""
    is_nan = scores.isnan().view(len(scores), -1).any(1)
    if is_nan.any():
        row = int(is_nan.nonzero()[0])
        name = getattr(scorer, "name", "") or type(scorer).__name__
        raise ValueError(f"{name} scores NaN in {int(is_nan.sum())} of {len(scores)} rows, first in row {row}: {prompts[row]!r}")
    return scores
