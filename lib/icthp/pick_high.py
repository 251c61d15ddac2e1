"""Pick-High triplets I1 < I2 < I3: schema and the official release's files."""

import pickle
from pathlib import Path

import datasets
import torch
from torch import Tensor

from icthp import microworld
from icthp.pictures import encode, stack

PAIRS = datasets.Features(
    {"easy_prompt": datasets.Value("string"), "image_1": datasets.Image(), "image_2": datasets.Image(),
     "agreed": datasets.Value("bool")})  # I1 lost the vote, I2 won; agreed: a second annotator chose I2 as well  # fmt: skip
TRIPLETS = datasets.Features(
    PAIRS | {"refined_prompt": datasets.Value("string"), "image_3": datasets.Image(), "clip_1": datasets.Value("float32"),
             "clip_2": datasets.Value("float32"), "text_sim": datasets.Value("float32")})  # raw cosines; theta comes later  # fmt: skip


def legacy_pairs(scenes: microworld.Scenes, generator: torch.Generator) -> datasets.Dataset:
    """The microworld's Pick-a-Pic: two legacy pictures of each prompt, JPEG at quality 75, ordered by one vote."""
    (a, truth_a), (b, truth_b) = (microworld.legacy(scenes, generator) for _ in range(2))
    utility_a, utility_b = microworld.utility(truth_a), microworld.utility(truth_b)
    first, second = (microworld.votes(utility_a, utility_b, generator) for _ in range(2))
    won, lost = (torch.where(w[:, None, None, None], a, b) for w in (first, ~first))
    columns = {"easy_prompt": microworld.captions(scenes), "image_1": encode(lost, "JPEG", quality=75),
               "image_2": encode(won, "JPEG", quality=75), "agreed": (first == second).tolist()}  # fmt: skip
    return datasets.Dataset.from_dict(columns, features=PAIRS)


def read_pairs(path, count: int = 0) -> datasets.Dataset:
    """The first `count` rows (0: all) of a parquet table with the columns of PAIRS; others are left out."""
    rows = datasets.Dataset.from_parquet(str(path))
    missing = [name for name in PAIRS if name not in rows.column_names]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; pairs have {', '.join(PAIRS)} (`agreed` may be all true)")
    return rows.select_columns(list(PAIRS)).select(range(min(count or len(rows), len(rows))))


class Triplets:
    """A table of triplets on disk, decoded a batch at a time. `texts[kind]`, `numbers[name]` are whole columns."""

    def __init__(self, path, size: int):
        rows = datasets.Dataset.from_parquet(str(path))
        missing = [name for name in TRIPLETS if name not in rows.column_names]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; `dvc repro pick_high` writes a table that has them")
        self.rows, self.size = rows, size
        self.texts = {kind: list(rows[f"{kind}_prompt"]) for kind in ("easy", "refined")}
        self.numbers = {name: torch.tensor(rows[name][:]) for name in ("clip_1", "clip_2", "text_sim", "agreed")}
        ids = {prompt: i for i, prompt in enumerate(dict.fromkeys(self.texts["easy"]))}
        self.groups = torch.tensor([ids[prompt] for prompt in self.texts["easy"]])  # equal ids: the same prompt

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, rows) -> Tensor:
        """Pictures I1, I2, I3 of some rows: (3, m, 3, size, size) in [0, 1]."""
        part = self.rows[[int(r) for r in rows]]
        return torch.stack([stack(part[f"image_{i}"], self.size) for i in (1, 2, 3)])

    def prompts(self, kind: str, rows) -> list[str]:
        return [self.texts[kind][int(r)] for r in rows]


# ---- the official release ---------------------------------------------------------------------------------------

_ADMITTED = {  # by package, over pandas 1 to 3 and numpy 1 and 2: containers, dtypes and their rebuilding functions, no more
    "pandas": "DataFrame Series Index RangeIndex Int64Index DatetimeIndex _new_Index _new_DatetimeIndex "
    "Categorical CategoricalDtype DatetimeTZDtype Int64Dtype StringDtype NA NAType Timestamp _unpickle_timestamp "
    "BlockManager SingleBlockManager new_block _unpickle_block "
    "ArrowStringArray DatetimeArray IntegerArray StringArray __pyx_unpickle_NDArrayBacked",
    "numpy": "ndarray dtype _reconstruct _frombuffer scalar",
    "pyarrow": "_restore_array py_buffer type_for_alias",
    "builtins": "slice set frozenset bytearray complex",
    "__builtin__": "slice set frozenset bytearray complex",
    "datetime": "date datetime timedelta timezone",
    "_codecs": "encode",
}


class FrameUnpickler(pickle.Unpickler):
    """Reads a pickled pandas frame and nothing else: a file that names any other function is refused, not run."""

    def find_class(self, module: str, name: str):
        if name in _ADMITTED.get(module.split(".")[0], "").split():
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"this file wants to call {module}.{name}, which no table needs; it may be hostile")


def read_official(folder, split: str) -> list[dict]:
    """Rows of the official release: {folder}/{split}.pkl beside pick_easy_img/{split} and pick_refine_img/{split}.

    Each row: easy_prompt, refined_prompt, image_1, image_2, image_3 (paths), E1, E2, R1, R2. E2 is E2: the released
    loader fills it from R1. Raises FileNotFoundError or ValueError that names the file or the missing column.
    """
    path = Path(folder) / f"{split}.pkl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: download the Pick-High dataset's {split} split into {folder}")
    with open(path, "rb") as file:
        frame = FrameUnpickler(file).load()
    names = {"easy_prompt": "easy_prompt", "refine_prompt": "refined_prompt", "easy_image_0": "image_1", "easy_image_1": "image_2",
             "refine_image": "image_3", "E1": "E1", "E2": "E2", "R1": "R1", "R2": "R2"}  # fmt: skip
    missing = [n for n in names if n not in frame.columns]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    rows = [{names[k]: row[k] for k in names} for row in frame.to_dict("records")]
    for row in rows:
        for name, place in (("image_1", "pick_easy_img"), ("image_2", "pick_easy_img"), ("image_3", "pick_refine_img")):
            row[name] = _inside(Path(folder) / place / split, row[name])
    return rows


def _inside(folder: Path, name: str) -> Path:
    """folder / name; a name that leads out of the folder is refused."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"picture name {name!r} leads outside {folder}; the table may be hostile")
    return folder / name
