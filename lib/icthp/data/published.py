"""The published datasets in this project's format: the official Pick-High release and Pick-a-Pic v2, both from a folder on
this machine. Each reader yields rows as it goes and puts those it leaves out, with the reason, into `rejects`."""

from collections.abc import Iterator
from itertools import count
from numbers import Real
from pathlib import Path

from icthp.data import frames
from icthp.data.parquet import shards, stream
from icthp.data.triplets import label_error
from icthp.images import decode_error

# ---- the official release ---------------------------------------------------------------------------------------

COLUMNS = {"easy_prompt": "easy_prompt", "refine_prompt": "refined_prompt", "easy_image_0": "image_1", "easy_image_1": "image_2",
           "refine_image": "image_3", "E1": "E1", "E2": "E2", "R1": "R1", "R2": "R2"}  # fmt: skip
PLACES = {"image_1": "pick_easy_img", "image_2": "pick_easy_img", "image_3": "pick_refine_img"}
ORIGIN = {"seed": -1, "source_1": "Pick-a-Pic v2", "source_2": "Pick-a-Pic v2", "source_3": "Stable Diffusion 3.5 Large"}


def read_pick_high(folder, split: str, rejects: list[dict]) -> Iterator[dict]:
    """Rows of TRIPLETS from {folder}/{split}.pkl and its pictures in pick_easy_img/{split} and pick_refine_img/{split}.

    prompt_id is the row's number; E2 is E2, which the released loader fills from R1. A row is left out when a label breaks
    an invariant, a prompt is empty, or a picture is missing, cannot be read or lies outside the folder. FileNotFoundError,
    ValueError or UnpicklingError names what is wrong with the table itself, of which `frames` calls nothing."""
    path = Path(folder) / f"{split}.pkl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: download the Pick-High dataset's {split} split into {folder}")
    columns = frames.columns(path, COLUMNS)
    for i, cells in enumerate(zip(*columns.values())):
        row = dict(zip(COLUMNS.values(), cells))
        row |= {name: _contents(Path(folder) / place / split, row[name]) for name, place in PLACES.items()}
        if reason := _row_error(row, ("easy_prompt", "refined_prompt"), PLACES) or label_error(row):
            rejects.append({"source": "pick_high", "split": split, "prompt_id": i, "reason": reason})
        else:
            yield row | {name: float(row[name]) for name in ("E1", "E2", "R1", "R2")} | {"prompt_id": i, "split": split} | ORIGIN


def _contents(folder: Path, name) -> dict:
    """{"bytes", "path": None} of folder / name; for a name that leads nowhere or out of it no bytes, but the "error"."""
    error = f"{str(name)[:200]!r} is missing in {folder}"
    contents = None
    try:
        path = folder / str(name).replace("\0", "?")
        if not path.resolve().is_relative_to(folder.resolve()):
            error = f"{name!r} leads outside {folder}; the table may be hostile"
        elif path.is_file():
            contents = path.read_bytes()
            error = ""
    except (OSError, ValueError):  # too long a name, or half a character in it
        pass
    return {"bytes": contents, "path": None} | ({"error": error} if error else {})


def _row_error(row: dict, prompts, pictures) -> str:
    """Why a row is left out, "" if it is not."""
    errors = {name: _text_error(row[name]) for name in prompts}
    errors |= {name: row[name].pop("error", "") or decode_error(row[name]["bytes"]) for name in pictures}
    return "; ".join(f"{name} {error}" for name, error in errors.items() if error)


def _text_error(text) -> str:
    """A pickle can hold half a character (a lone surrogate); no file of text can."""
    if not isinstance(text, str) or not text.strip():
        return "is empty"
    return "holds half a character" if any("\ud800" <= c <= "\udfff" for c in text) else ""


# ---- Pick-a-Pic v2 ----------------------------------------------------------------------------------------------

PICKAPIC = ("caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label", "model_0", "model_1")
REFUSAL = "is no shard of Pick-a-Pic v2 that can be read; download it again"


def read_pickapic(folder, split: str, rejects: list[dict], batch: int = 64) -> Iterator[dict]:
    """Rows of PAIRS from a folder of Pick-a-Pic v2, {split}-*.parquet in it or in its data/: the chosen picture is I2.

    prompt_id is the row's number in the split. Rows without a vote, ties, empty prompts, labels of another type and pictures that are
    no bytes or cannot be read are left out. FileNotFoundError or ValueError names a folder or file that is no part of it."""
    files = map(Path, shards(folder, split, "the folder should be a download of Pick-a-Pic v2"))
    number = count()
    for row in (row for path in files for row in stream(path, PICKAPIC, REFUSAL, batch)):
        i = next(number)
        reason = _vote_error(row)
        pair = {} if reason else _pair(row)
        if reason := reason or _row_error(pair, ("easy_prompt",), ("image_1", "image_2")):
            rejects.append({"source": "pairs", "split": split, "prompt_id": i, "reason": reason})
        else:
            yield pair | {"prompt_id": i}


def _vote_error(row: dict) -> str:
    """Why a row has no winner, "" if it has one."""
    labels = [row["label_0"], row["label_1"]]
    if row["has_label"] is None or row["has_label"] in (False, 0):
        return "no vote"
    if row["has_label"] not in (True, 1) or not all(isinstance(label, Real) for label in labels):
        return "a label is no number"
    return "" if set(labels) == {0, 1} else "a tie"


def _pair(row: dict) -> dict:
    """image_1, source_1 of the rejected picture, image_2, source_2 of the chosen one."""
    chosen = 0 if row["label_0"] == 1 else 1
    rejected = 1 - chosen
    pair = {"easy_prompt": row["caption"]}
    for i, side in ((1, rejected), (2, chosen)):
        pair[f"image_{i}"] = _picture(row[f"jpg_{side}"])
        pair[f"source_{i}"] = str(row[f"model_{side}"] or "unknown")
    return pair


def _picture(value) -> dict:
    """A file's bytes, as they are or as `datasets` wraps them; a path is not followed, for it could lead anywhere."""
    contents = value.get("bytes") if isinstance(value, dict) else value
    is_readable = contents is None or isinstance(contents, bytes)
    return {"bytes": contents, "path": None} | ({} if is_readable else {"error": "is no bytes of a file"})
