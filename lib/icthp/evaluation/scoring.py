"""evaluation.scoring."""

import torch
from torch import Tensor

from icthp import images


@torch.no_grad()
def score_triplets(scorer, triplets, kind: str = "easy", batch: int = 128, prompts: list[str] | None = None) -> Tensor:
    """Scores (n, 3) of I1, I2, I3, as the scorer's own recipe reads them, with each row's own prompt of that kind, or with `prompts` (n)
    instead."""
    triplets, prompts, out = triplets.read_as(getattr(scorer, "preprocessing", None)), prompts or triplets.texts[kind], []
    for rows in torch.arange(len(triplets)).split(batch):
        own = [prompts[r] for r in rows.tolist()]
        out.append(torch.stack([scorer.score(p.to(scorer.device), own).cpu() for p in triplets.pixels(rows)], 1))
    return _no_nan(torch.cat(out), scorer, prompts)


def _no_nan(scores: Tensor, scorer, prompts) -> Tensor:
    """The scores (n,) or (n, k) themselves; ValueError names the scorer and the first row with a NaN."""
    wrong = scores.isnan().view(len(scores), -1).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        name = getattr(scorer, "name", "") or type(scorer).__name__
        raise ValueError(f"{name} scores NaN in {int(wrong.sum())} of {len(scores)} rows, first in row {row}: {prompts[row]!r}")
    return scores


@torch.no_grad()
def score_all(scorer, pixels: Tensor, prompts: list[str], batch: int = 128) -> Tensor:
    """Scores (n,) on the CPU of pixels (n, 3, h, w) with their prompts, a batch at a time."""
    parts = zip(pixels.split(batch), range(0, len(pixels), batch))
    return _no_nan(torch.cat([scorer.score(p.to(scorer.device), prompts[i : i + batch]).cpu() for p, i in parts]), scorer, prompts)


@torch.no_grad()
def score_files(score, table, levels: list[str], device="cpu") -> Tensor:
    """The same for picture files of any sizes: pictures.read_levels' table -> (rows, levels)."""
    one = lambda path, prompt: score(images.to_pixels(path)[None].to(device), [prompt]).item()
    return torch.tensor([[one(path, prompt) for path in row] for prompt, *row in table[["prompt", *levels]].itertuples(index=False)])
