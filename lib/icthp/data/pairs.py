"""data.pairs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from icthp import losses
from icthp.data.parquet import as_files
from icthp.data.parquet import check_columns
from icthp.data.parquet import read
from icthp.data.parquet import shards
from icthp.images import stack
from itertools import islice
from numbers import Real
from pathlib import Path
from torch import Tensor
import PIL
import copy
import datasets
import html
import io
import itertools
import math
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch



PAIRS = datasets.Features(  # I1 lost the vote, I2 won; agreed: a second annotator chose I2 as well, null if none was asked
    {"prompt_id": datasets.Value("int64"), "easy_prompt": datasets.Value("string"), "image_1": datasets.Image(),
     "image_2": datasets.Image(), "agreed": datasets.Value("bool"), "source_1": datasets.Value("string"),
     "source_2": datasets.Value("string")})  # fmt: skip
_FILLED = ("prompt_id", "agreed", "source_1", "source_2")  # read_pairs can do without


def read_pairs(folder, split: str, count: int = 0) -> datasets.Dataset:
    """The first `count` rows (0: all) of a split, {split}.parquet or its shards, with the columns of PAIRS. Where they are missing
    prompt_id becomes the row's number, the sources the folder's name, `agreed` null. FileNotFoundError and ValueError name what lacks."""
    files = shards(folder, split, "`dvc pull` fetches data/, or name the folder of your own pairs")
    check_columns(files, set(PAIRS) - set(_FILLED), f"pairs have {', '.join(PAIRS)}")
    filled = {"prompt_id": lambda start, n: range(start, start + n), "agreed": lambda _, n: [None] * n}
    filled |= {f"source_{i}": lambda _, n: [str(folder)] * n for i in (1, 2)}
    rows = read(files, PAIRS, needed=("prompt_id", "easy_prompt"), count=count, defaults=filled)
    twice = [i for i, n in Counter(rows["prompt_id"][:]).items() if n > 1]
    if twice:
        raise ValueError(f"{files[0]}: prompt_id {twice[0]} is there twice, and it seeds I3; give each row its own or drop the column")
    return rows


# ---- rows -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def build_triplets(
    pairs: datasets.Dataset, refined: list[str], drawn: Iterable[dict], scorer, *, theta: float, constants: dict,
    near_miss: list[str] | None = None, units: Callable[[list[str], Tensor], Tensor] | None = None, batch: int = 64
) -> Iterator[dict]:  # fmt: skip
    """Rows of TRIPLETS, a batch in memory at a time. pairs: a table of PAIRS; refined: its prompts, drawn: its I3 as
    file contents {"bytes", "path"}, in the same order; scorer: a ClipScorer. constants: columns with one value for all rows
    (seed, split, source_3). units(easy prompts, pixels (m, 3, h, w)) -> (m,): what share of the prompt's units
    is in each picture."""
    files, drawn = as_files(pairs), iter(drawn)
    for start in range(0, len(refined), batch):
        part = slice(start, start + batch)
        columns = files[part] | {"refined_prompt": refined[part]}
        columns |= {"image_3": list(islice(drawn, batch))} | ({"near_miss": near_miss[part]} if near_miss else {})
        easy = columns["easy_prompt"]
        pixels = [stack([io.BytesIO(file["bytes"]) for file in columns[f"image_{i}"]], scorer.preprocessing.for_cache) for i in (1, 2, 3)]
        one, two = (scorer.score(p.to(scorer.device), easy).cpu() for p in pixels[:2])
        similar = (scorer.text_features(easy) * scorer.text_features(refined[part])).sum(-1).cpu()
        (e1, e2, _), (r1, r2, _) = (labels.T for labels in losses.ict_labels(one, two, similar, theta))
        columns |= {"clip_1": one, "clip_2": two, "text_sim": similar, "E1": e1, "E2": e2, "R1": r1, "R2": r2}
        columns |= {f"units_{i}": units(easy, p) for i, p in enumerate(pixels, 1)} if units else {}
        columns = {name: c.tolist() if isinstance(c, Tensor) else c for name, c in columns.items()}
        yield from ({name: c[i] for name, c in columns.items()} | constants for i in range(len(easy)))
