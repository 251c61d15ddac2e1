"""Pick-High triplets I1 < I2 < I3: how a row is made, checked, written in shards and read in batches."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from icthp import losses
from icthp.data.pairs import PAIRS
from icthp.data.parquet import as_files
from icthp.data.parquet import check_columns
from icthp.data.parquet import of_split
from icthp.data.parquet import read
from icthp.data.parquet import shards
from icthp.data.prompts import prompt_groups
from icthp.files import atomic
from icthp.files import atomic_folder
from icthp.files import code
from icthp.files import digest
from icthp.files import save_text
from icthp.images import decode_error
from icthp.images import stack
from icthp.preprocessing import Preprocessing
from icthp.preprocessing import from_side
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



_KINDS = {"int64": "seed", "string": "refined_prompt near_miss source_3 split",
          "float32": "E1 E2 R1 R2 clip_1 clip_2 text_sim units_1 units_2 units_3"}  # fmt: skip
TRIPLETS = datasets.Features(
    PAIRS | {"image_3": datasets.Image()} | {name: datasets.Value(kind) for kind, names in _KINDS.items() for name in names.split()}
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
    """The rows, until one lacks what is not OPTIONAL, breaks an invariant or repeats a prompt_id: ValueError."""
    seen = set()
    for row in rows:
        missing = [name for name in TRIPLETS if row.get(name) is None and name not in OPTIONAL]
        twice = "its prompt_id is there twice" if row.get("prompt_id") in seen else ""
        if reason := f"{', '.join(missing)} missing" if missing else label_error(row) or twice:
            raise ValueError(f"{where}, prompt_id {row.get('prompt_id')}: {reason}")
        seen.add(row["prompt_id"])
        yield row


def write_triplets(rows: Iterable[dict], folder, split: str, features: datasets.Features = TRIPLETS, shard: int = 256) -> int:
    """Rows as {folder}/{split}-00000.parquet ..., one shard in memory; a column that a row lacks is null. The files of the split that
    were there, under whatever names the Hub gives them, go when all new ones are written; until then they are untouched. Returns the
    number of rows. Triplets are checked: ValueError for a row that breaks an invariant of the labels, lacks what is not OPTIONAL, or
    repeats a prompt_id."""
    rows, folder, count = iter(_checked(rows, f"{folder}, {split}") if features is TRIPLETS else rows), Path(folder), 0

    def write_all(partial_: Path) -> None:
        nonlocal count
        for number in itertools.count():
            if not (part := list(islice(rows, shard))):
                return
            file = f"{split}-{number:05d}.parquet"
            pq.write_table(_table(part, features, f"{folder / file}, rows {count} to {count + len(part) - 1}"), partial_ / file,
                           row_group_size=64)  # fmt: skip
            count += len(part)

    atomic_folder(folder, write_all)
    for old in of_split(folder, split):
        if not old.stem.removeprefix(f"{split}-").isdecimal() or int(old.stem[-5:]) * shard >= count:
            old.unlink()
    return count


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
    plain = {name: html.escape(" ".join(str(fact).split()), quote=False) for name, fact in facts.items()}
    try:
        card = CARD.format(files=files, counts=counts, **plain)
    except KeyError as error:
        raise ValueError(f"{file} needs the fact {error}: give it to write_card") from error
    save_text(file, card)


# ---- reading ----------------------------------------------------------------------------------------------------


DECODING = ("data/triplets", "data/parquet", "images", "preprocessing", "kernels")  # the modules on which a decoded picture depends


class Triplets:
    """One split of a folder of triplets, decoded a batch at a time. `texts[kind]` and `column(name)` are whole columns; `rows`, the table
    with its pictures, is read when it is first asked for. Equal ids in `groups` (n,): the same prompt, as CLIP's tokenizer reads it, or as
    `tokenizer` does, that of the tower that is trained. size: the side of the square that is cut out of a picture as CLIP does it, or the
    Recipe of the tower that is to read it."""

    def __init__(self, folder, split: str, size, tokenizer=None):
        self.files = shards(folder, split, "`dvc repro pick_high` makes it, or run that notebook first")
        check_columns(self.files, TRIPLETS, "`dvc repro pick_high` writes a table that has them")
        self.split, self.preprocessing, self.bytes, self.change = split, from_side(size).for_cache, None, None
        plain = datasets.Features({name: f for name, f in TRIPLETS.items() if not isinstance(f, datasets.Image)})
        self._columns = read(self.files, plain, needed=("easy_prompt", "refined_prompt"))
        self.texts = {kind: self._columns[f"{kind}_prompt"][:] for kind in ("easy", "refined")} | {"near": self._columns["near_miss"][:]}
        self.groups = torch.tensor(prompt_groups(self.texts["easy"], tokenizer), dtype=torch.int64)

    def read_as(self, recipe: Preprocessing | None = None, change: Callable[[bytes], bytes] | None = None) -> "Triplets":
        """The same triplets as a tower of another recipe reads them, or with every picture's file changed first."""
        recipe, change = self.preprocessing if recipe is None else recipe.for_cache, change or self.change
        if (recipe, change) == (self.preprocessing, self.change):
            return self
        self._contents  # noqa: B018  read once, for all that see them
        other = copy.copy(self)
        other.preprocessing, other.change, other.bytes = recipe, change, None
        return other

    @property
    def size(self) -> int | tuple[int, int]:
        """Side of the square pictures; (height, width) where they are none."""
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
        """A column of numbers (n,); ValueError names the first row where it is null or no number."""
        values = self._columns[name][:]
        wrong = next((i for i, v in enumerate(values) if v is None or isinstance(v, float) and not math.isfinite(v)), None)
        if wrong is not None:
            if all(v is None for v in values):
                raise ValueError(f"{self.files[0]}: these triplets have no {name}: what wrote them does not know it")
            raise ValueError(f"{self.files[0]}: {name} of row {wrong} of {self.split} is {values[wrong]}: fill it in or drop the row")
        return torch.tensor(values)

    def labels(self, variant: str = "paper", theta: float | None = None) -> tuple[Tensor, Tensor]:
        """ICT targets, easy (n, 3) and refined (n, 3). "paper": E and R as written, or anew for another theta; 1 for I3.
        "released": R1 stands in for E2, as in the released loader. "units": E_i, I3's too, is the share of the prompt's
        units found in the picture."""
        if variant == "units" and theta is not None:
            raise ValueError('variant "units" takes no theta: its labels are no cosines')
        if variant not in ("paper", "released", "units"):
            raise ValueError(f'variant must be "paper", "released" or "units", not {variant!r}')
        if variant == "units":
            easy = torch.stack([self.column(f"units_{i}") for i in (1, 2, 3)], 1)
            return easy, torch.cat([easy[:, :2] * self.column("text_sim")[:, None], easy[:, 2:]], 1)
        if theta is not None:
            easy, refined = losses.ict_labels(*(self.column(name) for name in ("clip_1", "clip_2", "text_sim")), theta)
        else:
            easy, refined = (torch.stack([*(self.column(f"{k}{i}") for i in (1, 2)), torch.ones(len(self))], 1) for k in "ER")
        if variant == "released":
            easy[:, 1] = refined[:, 0]
        return easy, refined

    def cache(self, folder) -> "Triplets":
        """From now on `pixels` reads a file of bytes in `folder`, (n, 3, 3, height, width), which is made here if these pictures, this
        recipe and this code have none: each picture is decoded and resized once, and rounded to 1/255. What another data set or older
        code of this split left in `folder` goes then; a run that reads it keeps it until it ends."""
        if self.change:
            raise ValueError("pictures that were changed first are not kept: they would be taken for the data's own")
        how = digest(code(*DECODING), PIL.__version__, torch.__version__)
        file = Path(folder) / f"{self.split}-{self.fingerprint}-{digest(list(self.preprocessing))}-{how}.npy"
        try:
            self.bytes = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # there is none, or it is cut
            atomic(file, self._decode_all)
            self._remove_older(file)
        return self

    def _remove_older(self, file: Path) -> None:
        split, data, _, how = file.stem.rsplit("-", 3)
        for old in file.parent.glob("*.npy"):
            name = old.stem.rsplit("-", 3)
            if len(name) == 4 and name[0] == split and (name[1], name[3]) != (data, how):
                with suppress(OSError):  # another run was faster
                    old.unlink()

    def _decode_all(self, file: Path) -> None:
        self.bytes = None
        store = np.lib.format.open_memmap(file, "w+", np.uint8, (len(self), 3, 3, *self.preprocessing.size))
        for start in range(0, len(self), 256):
            part = range(start, min(start + 256, len(self)))
            store[part.start : part.stop] = self.pixels(part).movedim(1, 0).mul(255).round().byte().numpy()
        store.flush()
        self.bytes = np.load(file, mmap_mode="r")  # this very file, whatever becomes of its name

    def pixels(self, rows) -> Tensor:
        """Pictures I1, I2, I3 of some rows: (3, m, 3, height, width) in [0, 1]; ValueError names one that cannot be read."""
        rows = [int(r) for r in rows]
        if self.bytes is not None:
            return torch.from_numpy(self.bytes[rows]).movedim(0, 1).float() / 255
        part, names = self._contents[rows], ("image_1", "image_2", "image_3")
        return torch.stack([torch.stack([self._pixels(name, r, f["bytes"]) for r, f in zip(rows, part[name])]) for name in names])

    @cached_property
    def _contents(self) -> datasets.Dataset:
        return as_files(self.rows)

    def _pixels(self, name: str, row: int, contents: bytes) -> Tensor:
        try:
            return stack([io.BytesIO(self.change(contents) if self.change else contents)], self.preprocessing)[0]
        except ValueError as error:
            raise ValueError(f"{self.files[0]}: {name} of row {row} of {self.split} {decode_error(contents) or error}") from error

    def prompts(self, kind: str, rows) -> list[str]:
        return [self.texts[kind][int(r)] for r in rows]
