"""A data set of the Hub, or a local folder of one, as picture files of our own: no row may name a file that is not the data set's."""

import tempfile
from pathlib import Path

import datasets
import huggingface_hub
import pandas as pd

from icthp import files, images

REFUSED = "why a picture was refused"  # a column's name that no foreign table has


def read_dataset(name: str, split: str, out: Path) -> pd.DataFrame:
    """image (a file in `out`/pictures) and prompt (None if it is missing) of each row. If the picture of some row is missing or may
    not be read, the column REFUSED says why. ValueError for a data set without a column of pictures.

    Of a local data set nothing is written into the home folder; one of the Hub is downloaded into the cache of the Hub's libraries."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, ignore_cleanup_errors=True) as work:
        rows = datasets.load_dataset(name, split=split, cache_dir=work if Path(name).exists() else None)
        if "image" not in rows.column_names:
            raise ValueError(f"the dataset {name} has no column `image`; it has {', '.join(rows.column_names)}")
        try:
            rows = rows.cast_column("image", datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"the column `image` of the dataset {name} holds no pictures: {error}") from error
        roots = _roots(name, work)
        pictures = [_copy(row["image"], out / f"pictures/{i:06d}", roots) for i, row in enumerate(rows)]
        prompts = _texts(rows["prompt"][:], name) if "prompt" in rows.column_names else [None] * len(rows)
    table = pd.DataFrame(pictures, columns=["image", REFUSED]).astype(object).assign(prompt=pd.Series(prompts, dtype=object))
    return table[["image", "prompt", REFUSED] if table[REFUSED].notna().any() else ["image", "prompt"]]


def _texts(prompts: list, name: str) -> list[str | None]:
    """None where a prompt is missing or empty. ValueError for what is no text: a metadata.csv's 7 may have been 007."""
    for row, prompt in enumerate(prompts):
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"the dataset {name}: the prompt of row {row} is {str(prompt)[:60]!r}, which is no text; "
                             "store the column as texts, in a metadata.jsonl for a folder of pictures")  # fmt: skip
    return [prompt or None for prompt in prompts]


def _roots(name: str, work: str) -> list[Path]:
    """The folders in which a data set's own pictures lie, the first for relative names."""
    folder = Path(name).resolve()
    if folder.exists():
        is_snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("datasets--")
        blobs = [folder.parents[1]] if is_snapshot else []  # the Hub's snapshots link to them
        return [folder, Path(work).resolve(), *blobs]
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return [cache.resolve(), (Path(datasets.config.HF_DATASETS_CACHE) / "downloads/extracted").resolve()]


def _copy(picture: dict | None, place: Path, roots: list[Path]) -> tuple[str, str | None]:
    """Copy a row's picture to a file whose name begins with `place` -> (the file, None), or (the name of no file, why there is none)."""
    try:
        contents = _contents(picture, roots)
    except (OSError, ValueError) as error:
        return f"{place}-none", str(error)
    file = place.with_name(f"{place.name}-{files.digest(contents)[:8]}")
    if not file.exists():
        files.atomic(file, lambda partial: partial.write_bytes(contents))
    return str(file), None


def _contents(picture: dict | None, roots: list[Path]) -> bytes:
    """A foreign table may name any file of this machine: only those inside the data set are read, links followed."""
    if not picture or not (picture["bytes"] or picture["path"]):
        raise ValueError("the row has no picture")
    if picture["bytes"]:
        return picture["bytes"]
    path = (roots[0] / picture["path"]).resolve()
    if not any(path.is_relative_to(root) for root in roots):
        raise ValueError(f"{images.printable(picture['path'])} lies outside the data set; put the file or its bytes into it")
    if not path.is_file():
        raise ValueError(f"{images.printable(picture['path'])} is no file of the data set")
    return path.read_bytes()
