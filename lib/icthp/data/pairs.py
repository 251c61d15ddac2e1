"""Pairs I1 < I2 that people voted on, read from a folder, and the rows of triplets that are made of them."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
import pandas as pd
import torch
from torch import Tensor

from icthp import losses, threads
from icthp.data.parquet import as_files, check_columns, read, shards
from icthp.files import atomic, code, digest, fingerprint
from icthp.images import stack
from icthp.shards import is_whole_parquet, make_all

PAIRS = datasets.Features(  # I1 lost the vote, I2 won; agreed: a second annotator chose I2 as well, null if none was asked
    {"prompt_id": datasets.Value("int64"), "easy_prompt": datasets.Value("string"), "image_1": datasets.Image(),
     "image_2": datasets.Image(), "agreed": datasets.Value("bool"), "source_1": datasets.Value("string"),
     "source_2": datasets.Value("string")})  # fmt: skip
AT_ONCE = 64  # rows whose pictures are in memory
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


def pairs_fingerprint(folder, split: str) -> str:
    """A digest of the split's files."""
    return digest(*map(Path, shards(folder, split, "name the folder of your own pairs")))


def measure_triplets(
    pairs: datasets.Dataset, refined: list[str], drawn: Sequence[dict], scorer, *, folder, key="", batch: int = 256,
    units: Callable[[list[str], Tensor], Tensor] | None = None
) -> pd.DataFrame:  # fmt: skip
    """What the labels are made of, a row a triplet: clip_1 and clip_2, the cosines of I1 and I2 with the easy prompt, text_sim, that of the
    two prompts, and with units(easy prompts, pixels (m, 3, h, w)) -> (m,), the share of the prompt's units in each picture, units_1 to
    units_3.

    pairs: a table of PAIRS; refined: its refined prompts, drawn: its I3 as file contents {"bytes", "path"}, in the same order. scorer: a
    ClipScorer. Each `batch` rows become one file under `folder`, whole or not at all; any number of processes share the work
    (`shards.make_all`), and a later call with the same prompts, scorer, code and `key`, which tells the pictures apart, reads them."""
    parts = [slice(first, first + batch) for first in range(0, len(refined), batch)]
    version = [key, fingerprint(scorer), repr(scorer), code("data.pairs", "scorers"), units is not None]
    ids, easy = pairs["prompt_id"][:], pairs["easy_prompt"][:]
    places = [Path(folder) / f"{k:05d}-{digest(version, ids[part], easy[part], refined[part])}.parquet" for k, part in enumerate(parts)]

    def measure(k: int) -> None:
        firsts = range(parts[k].start, parts[k].start + len(ids[parts[k]]), AT_ONCE)
        some = [slice(first, min(first + AT_ONCE, parts[k].stop)) for first in firsts]
        found = [_measured(as_files(pairs)[part] | {"image_3": drawn[part]}, refined[part], scorer, units) for part in some]
        atomic(places[k], pd.concat(found).to_parquet)

    make_all(places, measure, lambda k: is_whole_parquet(places[k], len(ids[parts[k]])), "measure")
    return pd.concat(map(pd.read_parquet, places), ignore_index=True)


@torch.no_grad()
def _measured(rows: dict, refined: list[str], scorer, units) -> pd.DataFrame:
    easy = rows["easy_prompt"]
    pixels = [_pixels(rows[f"image_{i}"], scorer) for i in (1, 2, 3) if units or i < 3]
    found = {f"clip_{i}": scorer.score(p.to(scorer.device), easy) for i, p in enumerate(pixels[:2], 1)}
    found["text_sim"] = (scorer.text_features(easy) * scorer.text_features(refined)).sum(-1)
    found |= {f"units_{i}": units(easy, p) for i, p in enumerate(pixels, 1)} if units else {}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in found.items()})


def _pixels(files: list[dict], scorer) -> Tensor:
    """(m, 3, h, w) in [0, 1], as the scorer's preprocessing caches them."""
    size = scorer.preprocessing.for_cache
    return torch.cat(threads.each(lambda file: stack([io.BytesIO(file["bytes"])], size), files))


def build_triplets(
    pairs: datasets.Dataset, refined: list[str], drawn: Sequence[dict], measured: pd.DataFrame, *, theta: float, constants: dict,
    near_miss: list[str] | None = None, batch: int = 64
) -> Iterator[dict]:  # fmt: skip
    """Rows of TRIPLETS, a batch in memory at a time. pairs, refined, drawn: as in `measure_triplets`, whose answer is `measured`;
    near_miss: the hard negatives of the prompts, in the same order. theta: of the labels (`losses.ict_labels`). constants: columns with
    one value for all rows (seed, split, source_3)."""
    columns = measured.to_dict("list") | _labels(measured, theta) | {"refined_prompt": refined}
    columns |= {"near_miss": near_miss} if near_miss else {}
    files = as_files(pairs)
    for start in range(0, len(refined), batch):
        part = slice(start, start + batch)
        rows = files[part] | {name: values[part] for name, values in columns.items()} | {"image_3": drawn[part]}
        for i in range(len(rows["image_3"])):
            yield {name: values[i] for name, values in rows.items()} | constants


def _labels(measured: pd.DataFrame, theta: float) -> dict[str, list[float]]:
    """ICT targets of I1 and I2."""
    cosines = (torch.tensor(measured[name].to_numpy(copy=True)) for name in ("clip_1", "clip_2", "text_sim"))
    easy, refined = losses.ict_labels(*cosines, theta)
    return {f"{letter}{i + 1}": labels[:, i].tolist() for letter, labels in (("E", easy), ("R", refined)) for i in range(2)}
