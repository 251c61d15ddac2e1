"""Pairs I1 < I2 that people voted on, read from a folder, and the rows of triplets that are made of them."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import datasets
import torch
from torch import Tensor

from icthp import losses
from icthp.data.parquet import as_files, check_columns, read, shards
from icthp.images import stack

PAIRS = datasets.Features(  # I1 lost the vote, I2 won; agreed: a second annotator chose I2 as well, null if none was asked
    {"prompt_id": datasets.Value("int64"), "easy_prompt": datasets.Value("string"), "image_1": datasets.Image(),
     "image_2": datasets.Image(), "agreed": datasets.Value("bool"), "source_1": datasets.Value("string"),
     "source_2": datasets.Value("string")})  # fmt: skip
_OPTIONAL = ("prompt_id", "agreed", "source_1", "source_2")  # filled in by read_pairs


def read_pairs(folder, split: str, count: int = 0) -> datasets.Dataset:
    """The first `count` rows (0: all) of a split, {split}.parquet or its shards, with the columns of PAIRS. Where they are missing
    prompt_id becomes the row's number, the sources the folder's name, `agreed` null. FileNotFoundError and ValueError name what is
    missing, and a prompt_id that two rows have."""
    files = shards(folder, split, "`dvc pull` fetches data/, or name the folder of your own pairs")
    check_columns(files, set(PAIRS) - set(_OPTIONAL), f"pairs have {', '.join(PAIRS)}")
    defaults = {"prompt_id": lambda start, n: range(start, start + n), "agreed": lambda _, n: [None] * n}
    defaults |= {f"source_{i}": lambda _, n: [str(folder)] * n for i in (1, 2)}
    rows = read(files, PAIRS, needed=("prompt_id", "easy_prompt"), count=count, defaults=defaults)
    repeated = [prompt_id for prompt_id, n in Counter(rows["prompt_id"][:]).items() if n > 1]
    if repeated:
        raise ValueError(f"{files[0]}: prompt_id {repeated[0]} is there twice, and it seeds I3; give each row its own or drop the column")
    return rows


# ---- rows of triplets -------------------------------------------------------------------------------------------


@torch.no_grad()
def build_triplets(
    pairs: datasets.Dataset, refined: list[str], drawn: Iterable[dict], scorer, *, theta: float, constants: dict,
    near_miss: list[str] | None = None, units: Callable[[list[str], Tensor], Tensor] | None = None, batch: int = 64
) -> Iterator[dict]:  # fmt: skip
    """Rows of TRIPLETS, a batch in memory at a time. pairs: a table of PAIRS; refined: its refined prompts, drawn: its I3 as file contents
    {"bytes", "path"}, near_miss: its hard negatives, all in the same order. scorer: a ClipScorer, whose cosines give the labels of `theta`
    (`losses.ict_labels`). constants: columns with one value for all rows (seed, split, source_3). units(easy prompts, pixels
    (m, 3, h, w)) -> (m,): the share of the prompt's units in each picture."""
    files = as_files(pairs)
    drawn = iter(drawn)
    for start in range(0, len(refined), batch):
        part = slice(start, start + batch)
        columns = files[part] | {"refined_prompt": refined[part], "image_3": list(islice(drawn, batch))}
        columns |= {"near_miss": near_miss[part]} if near_miss else {}
        easy = columns["easy_prompt"]
        pixels = [_pixels(columns[f"image_{i}"], scorer) for i in (1, 2, 3)]
        columns |= _labels(scorer, pixels, easy, refined[part], theta)
        columns |= {f"units_{i}": units(easy, p).tolist() for i, p in enumerate(pixels, 1)} if units else {}
        for i in range(len(easy)):
            yield {name: values[i] for name, values in columns.items()} | constants


def _pixels(files: list[dict], scorer) -> Tensor:
    """(m, 3, h, w) in [0, 1], as the scorer's preprocessing caches them."""
    return stack([io.BytesIO(file["bytes"]) for file in files], scorer.preprocessing.for_cache)


def _labels(scorer, pixels: list[Tensor], easy: list[str], refined: list[str], theta: float) -> dict[str, list[float]]:
    """ICT targets of I1 and I2, and the cosines that they are made from."""
    clip_1, clip_2 = (scorer.score(p.to(scorer.device), easy).cpu() for p in pixels[:2])
    text_sim = (scorer.text_features(easy) * scorer.text_features(refined)).sum(-1).cpu()
    (e1, e2, _), (r1, r2, _) = (labels.T for labels in losses.ict_labels(clip_1, clip_2, text_sim, theta))
    columns = {"clip_1": clip_1, "clip_2": clip_2, "text_sim": text_sim, "E1": e1, "E2": e2, "R1": r1, "R2": r2}
    return {name: values.tolist() for name, values in columns.items()}
