"""The published datasets in this project's format: the official Pick-High release and Pick-a-Pic v2, both from a folder on
this machine. Each reader yields rows as it goes and puts those it leaves out, with the reason, into `rejects`."""

import pickle
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq

from icthp.pick_high import broken
from icthp.pictures import problem

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
    """Reads a pickled pandas frame and nothing else: a file that names any other function is refused, not run, and no module is imported
    for it."""

    def find_class(self, module: str, name: str):
        module = module.replace("numpy.core.", "numpy._core.")  # as numpy 1 wrote it
        if name in _ADMITTED.get(module.split(".")[0], "").split() and (module in sys.modules or module == "__builtin__"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"this file wants to call {module}.{name}, which no table needs; it may be hostile")


COLUMNS = {"easy_prompt": "easy_prompt", "refine_prompt": "refined_prompt", "easy_image_0": "image_1", "easy_image_1": "image_2",
           "refine_image": "image_3", "E1": "E1", "E2": "E2", "R1": "R1", "R2": "R2"}  # fmt: skip
PLACES = {"image_1": "pick_easy_img", "image_2": "pick_easy_img", "image_3": "pick_refine_img"}

ORIGIN = {"seed": -1, "source_1": "Pick-a-Pic v2", "source_2": "Pick-a-Pic v2", "source_3": "Stable Diffusion 3.5 Large"}


def official(folder, split: str, rejects: list[dict]) -> Iterator[dict]:
    """Rows of TRIPLETS from {folder}/{split}.pkl and its pictures in pick_easy_img/{split} and pick_refine_img/{split}.

    prompt_id is the row's number; E2 is E2, which the released loader fills from R1. A row is left out when a label breaks
    an invariant, a prompt is empty, or a picture is missing, cannot be read or lies outside the folder. FileNotFoundError,
    ValueError or UnpicklingError names what is wrong with the table itself."""
    path = Path(folder) / f"{split}.pkl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: download the Pick-High dataset's {split} split into {folder}")
    with open(path, "rb") as file:
        frame = FrameUnpickler(file).load()
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    for i, row in enumerate(frame[list(COLUMNS)].rename(columns=COLUMNS).to_dict("records")):
        row |= {name: _contents(Path(folder) / place / split, row[name]) for name, place in PLACES.items()}
        if reason := _reason(row, ("easy_prompt", "refined_prompt"), PLACES) or broken(row):
            rejects.append({"source": "pick_high", "split": split, "prompt_id": i, "reason": reason})
        else:
            yield row | {name: float(row[name]) for name in ("E1", "E2", "R1", "R2")} | {"prompt_id": i, "split": split} | ORIGIN


def _contents(folder: Path, name) -> dict:
    """{"bytes", "path": None} of folder / name; no bytes but "trouble" for a name that leads nowhere or out of it."""
    path = folder / str(name).replace("\0", "?")
    if not path.resolve().is_relative_to(folder.resolve()):
        return {"bytes": None, "path": None, "trouble": f"{name!r} leads outside {folder}; the table may be hostile"}
    if not path.is_file():
        return {"bytes": None, "path": None, "trouble": f"{name!r} is missing in {folder}"}
    return {"bytes": path.read_bytes(), "path": None}


def _reason(row: dict, prompts, pictures) -> str:
    """Why a row is left out, "" if it is not."""
    empty = [f"{name} is empty" for name in prompts if not isinstance(row[name], str) or not row[name].strip()]
    trouble = {name: row[name].pop("trouble", "") or problem(row[name]["bytes"]) for name in pictures}
    return "; ".join(empty + [f"{name} {why}" for name, why in trouble.items() if why])


# ---- Pick-a-Pic v2 ----------------------------------------------------------------------------------------------

PICKAPIC = ("caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label", "model_0", "model_1")


def pickapic(folder, split: str, rejects: list[dict], batch: int = 64) -> Iterator[dict]:
    """Rows of PAIRS from a folder of Pick-a-Pic v2, {split}-*.parquet in it or in its data/: the picture that won is I2.

    prompt_id is the row's number in the split. Rows without a vote, ties, empty prompts and pictures that cannot be read are left out."""
    files = sorted(Path(folder).glob(f"{split}-*.parquet")) or sorted(Path(folder).glob(f"data/{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} has no {split}-*.parquet: it should be a download of Pick-a-Pic v2")
    number = count()
    for path in files:
        table = pq.ParquetFile(path)
        missing = [name for name in PICKAPIC if name not in table.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.schema_arrow.names)}")
        for part in table.iter_batches(batch, columns=list(PICKAPIC)):
            for row in part.to_pylist():
                pair, i = _pair(row), next(number)
                if reason := _vote(row) or _reason(pair, ("easy_prompt",), ("image_1", "image_2")):
                    rejects.append({"source": "pairs", "split": split, "prompt_id": i, "reason": reason})
                else:
                    yield pair | {"prompt_id": i}


def _vote(row: dict) -> str:
    if not row["has_label"]:
        return "no vote"
    return "" if {row["label_0"], row["label_1"]} == {0, 1} else "a tie"


def _pair(row: dict) -> dict:
    won = 0 if row["label_0"] == 1 else 1
    sides = {1: 1 - won, 2: won}
    pictures = {f"image_{i}": {"bytes": row[f"jpg_{k}"], "path": None} for i, k in sides.items()}
    return {"easy_prompt": row["caption"], **pictures, **{f"source_{i}": row[f"model_{k}"] or "unknown" for i, k in sides.items()}}
