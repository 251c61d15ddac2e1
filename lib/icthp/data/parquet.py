"""Tables of pictures in parquet files, whoever wrote them (datasets, pandas, DuckDB, polars, pyarrow) and however the Hub lays them out."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.fingerprint import generate_random_fingerprint

from icthp.images import decode_error

BATCH = 64  # rows in memory at a time


def shards(folder, split: str, remedy: str) -> list[str]:
    """The files of a split, in order: {split}.parquet or its shards, in `folder` or folder/data, or all files of a folder that has the
    split's name. FileNotFoundError says `remedy` if all are missing, or some by the count in their names."""
    folder = Path(folder)
    files = _find(folder, split)
    if not files:
        raise FileNotFoundError(f"{folder / split}.parquet is missing: {remedy}")
    matches = [match for p in files if (match := _shard_name(split).fullmatch(p.stem))]
    if len({(match[1] is None, match[3]) for match in matches}) > 1:
        raise ValueError(f"{files[0].parent} holds files of {split} of two writings, {files[0].name} and {files[-1].name}: keep one set")
    count = max((int(match[3]) for match in matches if match[3]), default=0)
    if len(files) < count:
        raise FileNotFoundError(f"{folder} has {len(files)} of the {count} files of {split}: {remedy}")
    return list(map(str, files))


def stream(path: Path, columns: Iterable[str], refusal: str, batch: int = BATCH) -> Iterator[dict]:
    """The rows of a foreign file, `batch` in memory. ValueError, the path and `refusal` first, for one that cannot be read or lacks a
    column."""
    columns = list(columns)
    try:
        table = pq.ParquetFile(path)
        names = table.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise ValueError(f"it has no column {', '.join(missing)}; it has {', '.join(names)}")
        for part in table.iter_batches(batch, columns=columns):
            yield from part.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} {refusal}: {error}") from error


def _find(folder: Path, split: str) -> list[Path]:
    if files := of_split(folder, split) or of_split(folder / "data", split):
        return files
    for place in (folder, folder / "data", folder / "default"):  # "default": of a data set without configurations, as the Hub converts it
        if files := [p for p in sorted((place / split).glob("*.parquet")) if not p.name.startswith(".")]:
            return files
    return []


def of_split(folder: Path, split: str) -> list[Path]:
    """The files in a folder that bear the split's name, in order."""
    return [p for p in sorted(folder.glob("*.parquet")) if _shard_name(split).fullmatch(p.stem)]


def _shard_name(split: str) -> re.Pattern:
    """Groups: 1 what follows the split's name, 3 the number of shards that the name counts."""
    return re.compile(rf"{re.escape(split)}(-\d+(-of-(\d+).*)?)?")


def check_columns(files: list[str], names, remedy: str) -> None:
    """ValueError for a file that has not all of these columns; it says `remedy`."""
    for file in files:
        present = _open(file).schema_arrow.names
        if missing := [name for name in names if name not in present]:
            raise ValueError(f"{file} has no column {', '.join(missing)}; {remedy}")


def read(files: list[str], features: datasets.Features, *, needed=(), count: int = 0,
         defaults: dict[str, Callable[[int, int], list]] | None = None) -> datasets.Dataset:  # fmt: skip
    """The columns of `features` as a table of exactly these types, its first `count` rows (0: all). A column that a file lacks is made by
    defaults[name](first row, number of rows). A picture is a file's contents, or a struct with its "bytes".

    The rows lie in a nameless file of the system's temporary folder (TMPDIR) that is mapped into memory and goes with the table: a batch
    is in memory, whatever the size, and nothing else is written. ValueError names file, column and row of a value that cannot have the
    type, and of an empty one in a column that is `needed`."""
    with tempfile.TemporaryDirectory(prefix="icthp-") as folder:
        try:
            with pa.ipc.new_file(f"{folder}/rows.arrow", features.arrow_schema) as file:
                for batch in _batches(files, features, needed, count, defaults or {}):
                    file.write_batch(batch)
        except OSError as error:
            raise OSError(f"{folder} cannot hold the rows of {files[0]}: set TMPDIR to a folder with more room ({error})") from error
        table = pa.ipc.open_file(pa.memory_map(f"{folder}/rows.arrow")).read_all()
    return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint=generate_random_fingerprint())


def _batches(files: list[str], features: datasets.Features, needed, count: int, defaults: dict) -> Iterator[pa.RecordBatch]:
    start = 0
    for file in files:
        present = set(_open(file).schema_arrow.names)
        for row, batch in _rows(file, [name for name in features if name in present]):
            batch = batch.slice(0, count - start) if count else batch
            columns = []
            for name, feature in features.items():
                if name in present:
                    columns.append(_column(file, name, batch[name], feature, row, name in needed))
                else:
                    columns.append(pa.array(defaults[name](start, len(batch)), feature.pa_type))
            yield pa.RecordBatch.from_arrays(columns, schema=features.arrow_schema)
            start += len(batch)
            if count and start == count:
                return


def _open(file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet, fetch or write it again: {error}") from error


def _rows(file: str, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, rows), a batch at a time."""
    batches = _open(file).iter_batches(BATCH, columns=columns)
    start = 0
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is damaged after row {start}, fetch or write it again: {error}") from error
        if batch is None:
            return
        yield start, batch
        start += len(batch)


def _column(file: str, name: str, values: pa.Array, feature, start: int, needed: bool) -> pa.Array:
    """The values as the feature's type; `start`: the row of the first."""
    is_picture = isinstance(feature, datasets.Image)
    try:
        out = _pictures(values) if is_picture else values.cast(feature.pa_type)
    except (pa.ArrowException, TypeError) as error:
        wanted = "pictures" if is_picture else str(feature.pa_type)
        rows = f"in rows {start} to {start + len(values) - 1}"
        raise ValueError(f"{file}: column {name} holds {values.type} {rows} that cannot become {wanted}: {error}") from error
    if needed and (row := out.is_null().index(True).as_py()) >= 0:
        raise ValueError(f"{file}: {name} of row {start + row} is empty: fill it in or drop the row")
    return out


def _pictures(values: pa.Array) -> pa.Array:
    """As datasets.Image() stores them. A path without contents is null: a table may not name any file of this machine."""
    kind = values.type
    path = pa.nulls(len(values), pa.string())
    if pa.types.is_struct(kind) and "bytes" in kind.names:
        path = pc.struct_field(values, "path").cast(pa.string()) if "path" in kind.names else path
        values = pc.struct_field(values, "bytes")
    elif not any(is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null)):
        raise TypeError("a picture is the contents of its file, or a struct with them as `bytes`")
    values = values.cast(pa.binary())
    return pa.StructArray.from_arrays([values, path], ["bytes", "path"], mask=values.is_null())


# ---- tables in memory -------------------------------------------------------------------------------------------


def as_files(rows: datasets.Dataset) -> datasets.Dataset:
    """The same table, its pictures as file contents {"bytes", "path"}, not decoded; plain structs and contents without a path too."""
    for name in picture_columns(rows):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def picture_columns(rows: datasets.Dataset) -> list[str]:
    """The columns of pictures, also of a table that does not say so."""
    return [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image) or _holds_bytes(feature)]


def _holds_bytes(feature) -> bool:
    return isinstance(feature, dict) and "bytes" in feature or getattr(feature, "dtype", "") in ("binary", "large_binary")


def unreadable(rows: datasets.Dataset) -> list[str]:
    """For each row why one of its pictures cannot be read, "" if all can."""
    names = picture_columns(rows)
    return [_first_decode_error(row, names) for row in as_files(rows)]


def _first_decode_error(row: dict, names: list[str]) -> str:
    for name in names:
        if error := decode_error((row[name] or {}).get("bytes")):
            return f"{name} {error}"
    return ""
