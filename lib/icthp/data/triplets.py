"""Pick-High triplets I1 < I2 < I3: how a row is made, checked, written in shards and read in batches."""

import copy
import html
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from itertools import islice
from numbers import Real
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from icthp import losses, threads
from icthp.data.pairs import PAIRS
from icthp.data.parquet import as_files, check_columns, of_split, read, shards
from icthp.data.prompts import prompt_groups
from icthp.files import atomic, atomic_folder, code, digest, save_text
from icthp.images import decode_error, stack
from icthp.preprocessing import Preprocessing, from_side
from icthp.shards import make_all

_TEXTS = ("refined_prompt", "near_miss", "source_3", "split")
_NUMBERS = ("E1", "E2", "R1", "R2", "clip_1", "clip_2", "text_sim", "units_1", "units_2", "units_3")
TRIPLETS = datasets.Features(
    PAIRS
    | {"image_3": datasets.Image(), "seed": datasets.Value("int64")}
    | {name: datasets.Value("string") for name in _TEXTS}
    | {name: datasets.Value("float32") for name in _NUMBERS}
)
OPTIONAL = {"near_miss", "agreed", "clip_1", "clip_2", "text_sim", "units_1", "units_2", "units_3"}  # null where unknown


def label_error(row: dict) -> str:
    """Which invariant of the labels a row breaks, "" if none: E1 <= E2 <= 1, and R1 / E1 = R2 / E2 = a cosine."""
    e1, e2, r1, r2 = (float(row[name]) if isinstance(row[name], Real) else math.nan for name in ("E1", "E2", "R1", "R2"))
    reasons = {
        "a label is no number": not all(map(math.isfinite, (e1, e2, r1, r2))),
        "E1 is above E2": e1 > e2 + 1e-5,
        "E2 is above 1": e2 > 1 + 1e-5,
        "R is larger than E": abs(r1) > abs(e1) + 1e-5 or abs(r2) > abs(e2) + 1e-5,
        "R1 / E1 is not R2 / E2": abs(r1 * e2 - r2 * e1) > 1e-4,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _checked(rows: Iterable[dict], where: str) -> Iterator[dict]:
    """The rows; ValueError at the first that lacks what is not OPTIONAL, breaks an invariant or repeats a prompt_id."""
    ids = set()
    for row in rows:
        if error := _missing(row) or label_error(row) or ("its prompt_id is there twice" if row["prompt_id"] in ids else ""):
            raise ValueError(f"{where}, prompt_id {row.get('prompt_id')}: {error}")
        ids.add(row["prompt_id"])
        yield row


def _missing(row: dict) -> str:
    missing = [name for name in TRIPLETS if row.get(name) is None and name not in OPTIONAL]
    return f"{', '.join(missing)} missing" if missing else ""


def write_triplets(rows: Iterable[dict], folder, split: str, features: datasets.Features = TRIPLETS, shard: int = 256) -> int:
    """Rows as {folder}/{split}-00000.parquet ..., one shard in memory; a column that a row lacks is null. The files of the split that
    were there, under whatever names the Hub gives them, go when all new ones are written; until then they are untouched. Returns the
    number of rows. Triplets are checked: ValueError for a row that breaks an invariant of the labels, lacks what is not OPTIONAL, or
    repeats a prompt_id."""
    folder = Path(folder)
    rows = iter(_checked(rows, f"{folder}, {split}") if features is TRIPLETS else rows)
    sizes = []
    atomic_folder(folder, lambda partial: sizes.extend(_write_shards(rows, partial, folder / split, features, shard)))
    for old in of_split(folder, split):
        if not old.stem.removeprefix(f"{split}-").isdecimal() or int(old.stem[-5:]) >= len(sizes):
            old.unlink()
    return sum(sizes)


def _write_shards(rows: Iterator[dict], partial: Path, place: Path, features: datasets.Features, shard: int) -> Iterator[int]:
    """Write files of `shard` rows into the folder `partial`, yield the number of rows of each; `place`: their later name, for messages."""
    for number in itertools.count():
        part = list(islice(rows, shard))
        if not part:
            return
        name = f"{place.name}-{number:05d}.parquet"
        first = number * shard
        table = _table(part, features, f"{place.parent / name}, rows {first} to {first + len(part) - 1}")
        pq.write_table(table, partial / name, row_group_size=64)
        yield len(part)


def _table(rows: list[dict], features: datasets.Features, where: str) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, features.arrow_schema)
    except (pa.ArrowException, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: a value is not of its column's type: {error}") from error


CARD = """---
configs:
- config_name: default
  data_files:
{files}
task_categories:
- text-to-image
---
# Pick-High triplets ({scale})

Each row: an easy prompt, a refined one, and three pictures I1 < I2 < I3. I2 over I1 is a vote ({voter}). I3 over I2 holds **by
construction**: I3 was drawn by `{generator}` from the refined prompt, and nobody compared it.

| split | rows |
|---|---|
{counts}

- `E1`, `E2` (easy prompt) and `R1`, `R2` (refined prompt): targets of the ICT score with theta = {theta}; those of I3 are 1. `clip_1`,
  `clip_2`, `text_sim`: the cosines they were made from.
- `prompt_id`: the row of the table of pairs; with `seed` it fixes I3's noise. `source_1` to `source_3`: where each picture comes from.
- `units_1` to `units_3`: share of the easy prompt's units found in each picture; `near_miss`: the easy prompt with one unit changed. Null
  where unknown; the paper's variant uses neither.
- Pictures are stored as they came: {formats}. File format and size alone may tell I3 apart; see the audit in `metrics.json`.
"""


def write_dataset_card(folder, rows: dict[str, int], **facts) -> None:
    """The dataset's README.md: splits with their numbers of rows, and the facts that CARD names."""
    files = "\n".join(f"  - split: {split}\n    path: {split}-*.parquet" for split in rows)
    counts = "\n".join(f"| {split} | {n:,} |" for split, n in rows.items())
    file = Path(folder) / "README.md"
    escaped = {name: html.escape(" ".join(str(fact).split()), quote=False) for name, fact in facts.items()}
    try:
        card = CARD.format(files=files, counts=counts, **escaped)
    except KeyError as error:
        raise ValueError(f"{file} needs the fact {error}: give it to write_dataset_card") from error
    save_text(file, card)


# ---- reading ----------------------------------------------------------------------------------------------------


CHUNK = 2048  # rows of a file of decoded pictures: 0.9 GB of pictures of 224 x 224 pixels


def _is_whole(file: Path) -> bool:
    try:
        np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # there is none, or it is cut
        return False
    return True


class Triplets:
    """One split of a folder of triplets, decoded a batch at a time. `texts[kind]` ("easy", "refined", "near") and `column(name)` are whole
    columns; `rows`, the table with its pictures, is read when it is first asked for. Equal ids in `groups` (n,): the same prompt, as CLIP's
    tokenizer reads it, or as `tokenizer` does, that of the tower that is trained. size: the side of the square that is cut out of a picture
    as CLIP does it, or the Preprocessing of the tower that reads it."""

    def __init__(self, folder, split: str, size, tokenizer=None):
        self.files = shards(folder, split, "`dvc repro pick_high` makes it, or run that notebook first")
        check_columns(self.files, TRIPLETS, "`dvc repro pick_high` writes a table that has them")
        self.split = split
        self.preprocessing = from_side(size).for_cache
        self.change = None  # file contents -> file contents, before they are decoded
        self._cached = None  # the decoded pictures, (rows, 3, 3, height, width) uint8 for each CHUNK rows
        without_pictures = datasets.Features({name: f for name, f in TRIPLETS.items() if not isinstance(f, datasets.Image)})
        self._columns = read(self.files, without_pictures, needed=("easy_prompt", "refined_prompt"))
        names = {"easy": "easy_prompt", "refined": "refined_prompt", "near": "near_miss"}
        self.texts = {kind: self._columns[name][:] for kind, name in names.items()}
        self.groups = torch.tensor(prompt_groups(self.texts["easy"], tokenizer), dtype=torch.int64)

    def read_as(self, preprocessing: Preprocessing | None = None, change: Callable[[bytes], bytes] | None = None) -> "Triplets":
        """The same triplets as a tower of another preprocessing reads them, or with every picture's file changed first."""
        preprocessing = self.preprocessing if preprocessing is None else preprocessing.for_cache
        change = change or self.change
        if (preprocessing, change) == (self.preprocessing, self.change):
            return self
        self._contents  # noqa: B018  read once, for all copies
        other = copy.copy(self)
        other.preprocessing = preprocessing
        other.change = change
        other._cached = None
        return other

    @property
    def size(self) -> int | tuple[int, int]:
        """Side of square pictures; (height, width) of others."""
        return self.preprocessing.side

    @cached_property
    def rows(self) -> datasets.Dataset:
        return read(self.files, TRIPLETS, needed=("image_1", "image_2", "image_3"))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the files' bytes: a copied or touched file is the same data, whatever its name."""
        return digest(*map(Path, self.files))

    def __len__(self) -> int:
        return len(self.groups)

    def column(self, name: str) -> Tensor:
        """A column of numbers (n,); ValueError names the first row that is null or not finite."""
        values = self._columns[name][:]
        if values and all(v is None for v in values):
            raise ValueError(f"{self.files[0]}: these triplets have no {name}: what wrote them does not know it")
        for row, value in enumerate(values):
            if value is None or isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.files[0]}: {name} of row {row} of {self.split} is {value}: fill it in or drop the row")
        return torch.tensor(values)

    def labels(self, variant: str = "paper", theta: float | None = None) -> tuple[Tensor, Tensor]:
        """ICT targets, easy (n, 3) and refined (n, 3). "paper": E and R as written, or anew for another theta; 1 for I3.
        "released": R1 stands in for E2, as in the released loader. "units": E_i, I3's too, is the share of the prompt's
        units found in the picture."""
        if variant not in ("paper", "released", "units"):
            raise ValueError(f'variant must be "paper", "released" or "units", not {variant!r}')
        if variant == "units":
            if theta is not None:
                raise ValueError('variant "units" takes no theta: its labels are no cosines')
            return self._unit_labels()
        if theta is None:
            easy, refined = self._written_labels("E"), self._written_labels("R")
        else:
            easy, refined = losses.ict_labels(*(self.column(name) for name in ("clip_1", "clip_2", "text_sim")), theta)
        if variant == "released":
            easy[:, 1] = refined[:, 0]
        return easy, refined

    def _written_labels(self, letter: str) -> Tensor:
        return torch.stack([self.column(f"{letter}1"), self.column(f"{letter}2"), torch.ones(len(self))], 1)

    def _unit_labels(self) -> tuple[Tensor, Tensor]:
        if not any(value is not None for value in self._columns["units_3"][:]):
            raise ValueError(f'{self.files[0]}: variant "units" needs units_1 to units_3, which only the microworld\'s detector can read: '
                             'take variant "paper"')  # fmt: skip
        easy = torch.stack([self.column(f"units_{i}") for i in (1, 2, 3)], 1)
        return easy, torch.cat([easy[:, :2] * self.column("text_sim")[:, None], easy[:, 2:]], 1)

    # ---- pictures -----------------------------------------------------------------------------------------------

    def cache(self, folder) -> "Triplets":
        """From now on `pixels` reads files of bytes in `folder`, (rows, 3, 3, height, width) for each CHUNK rows, which are made here if
        these pictures, this preprocessing and this code have none: each picture is decoded and resized once, and rounded to 1/255. Any
        number of processes that call this share the work (`shards.make_all`). What another data set or older code of this split left in
        `folder` goes then; a run that reads it keeps it until it ends. Returns the triplets themselves; ValueError for pictures that
        `read_as` changes first."""
        if self.change:
            raise ValueError("pictures that were changed first are not kept: they would be taken for the data's own")
        version = digest(code("data.triplets"), PIL.__version__, torch.__version__)
        name = f"{self.split}-{self.fingerprint}-{digest(list(self.preprocessing))}-{version}"
        files = [Path(folder) / f"{name}-{k:05d}.npy" for k in range(math.ceil(len(self) / CHUNK))]
        make_all(files, lambda k: atomic(files[k], partial(self._decode_chunk, k)), lambda k: _is_whole(files[k]), "decode")
        self._cached = [np.load(file, mmap_mode="r") for file in files]  # these very files, whatever becomes of their names
        self._remove_older(files[0])
        return self

    def _remove_older(self, file: Path) -> None:
        split, data, _, version, _ = file.stem.rsplit("-", 4)
        for old in file.parent.glob("*.npy"):
            name = old.stem.rsplit("-", 4)
            if len(name) == 5 and name[0] == split and (name[1], name[3]) != (data, version):
                with suppress(OSError):  # another run was faster
                    old.unlink()

    def _decode_chunk(self, k: int, file: Path) -> None:
        rows = range(k * CHUNK, min((k + 1) * CHUNK, len(self)))
        parts = [self.pixels(part).movedim(1, 0).mul(255).round().byte() for part in torch.tensor(rows).split(256)]
        np.save(file, torch.cat(parts).numpy())

    def pixels(self, rows) -> Tensor:
        """Pictures I1, I2, I3 of m rows (numbers): (3, m, 3, height, width) in [0, 1]; ValueError names one that cannot be read."""
        rows = [int(r) for r in rows]
        if self._cached is not None:
            found = np.stack([self._cached[row // CHUNK][row % CHUNK] for row in rows])
            return torch.from_numpy(found).movedim(0, 1).float() / 255
        part = self._contents[rows]
        wanted = [(name, row, file["bytes"]) for name in ("image_1", "image_2", "image_3") for row, file in zip(rows, part[name])]
        return torch.stack(threads.each(lambda picture: self._decode(*picture), wanted, "decode")).unflatten(0, (3, -1))

    @cached_property
    def _contents(self) -> datasets.Dataset:
        return as_files(self.rows)

    def _decode(self, name: str, row: int, contents: bytes) -> Tensor:
        try:
            return stack([io.BytesIO(self.change(contents) if self.change else contents)], self.preprocessing)[0]
        except ValueError as error:
            raise ValueError(f"{self.files[0]}: {name} of row {row} of {self.split} {decode_error(contents) or error}") from error

    def prompts(self, kind: str, rows) -> list[str]:
        """The prompts of some rows; kind: "easy", "refined" or "near"."""
        return [self.texts[kind][int(row)] for row in rows]
