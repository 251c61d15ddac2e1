"""Tables and lists that people bring: csv, jsonl, json, parquet and plain lines, in UTF-8. No type is guessed: a cell of a csv is its
text, an empty one is missing, and the caller declares which columns are numbers. ValueError names the file and its line or row."""

import contextlib
import csv
import io
import json
import math
import shlex
from decimal import Decimal
from numbers import Real
from pathlib import Path

import pandas as pd

from icthp.files import atomic


def decoded(file) -> str:
    """The text of a file, without a byte order mark. ValueError names the first byte that is not UTF-8."""
    content = Path(file).read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}: byte {error.start + 1} of the file is not UTF-8; save it as UTF-8") from error


def read_lines(file) -> list[str]:
    """The lines of a file, without blank ones. Only a line feed ends one, with or without a carriage return: a text may hold U+2028."""
    return [line for _, line in _lines(file)]


def _lines(file) -> list[tuple[int, str]]:
    """(its number from 1, text) of each line that is not blank."""
    numbered = enumerate(decoded(file).split("\n"), 1)
    return [(i, line.removesuffix("\r")) for i, line in numbered if line.strip()]


def read_csv(file, names: list[str] | None = None, **dialect) -> pd.DataFrame:
    """A frame of texts, None for an empty cell. names: the columns, for a file whose first line does not name them. dialect: of
    csv.reader, such as delimiter."""
    rows = _csv_rows(file, dialect)
    if names is None:
        if not rows:
            raise ValueError(f"{file} is empty; its first line must name the columns")
        names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(rows.pop(0)[1])]
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(f"{file}, line {line} has {len(row)} cells, not the {len(names)} of {', '.join(names)}: "
                             "put a text with a comma into double quotes")  # fmt: skip
    return pd.DataFrame([[cell or None for cell in row] for _, row in rows], columns=names, dtype=object)


def _csv_rows(file, dialect: dict) -> list[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row that is not blank."""
    parser = csv.reader(io.StringIO(decoded(file), newline=""), strict=True, **dialect)
    try:
        return [(parser.line_num, row) for row in parser if row]
    except csv.Error as error:
        raise ValueError(f"{file}, line {parser.line_num} is no csv: {error}") from error


def read_jsonl(file) -> list[tuple[int, dict]]:
    """(line, object) of each line that is not blank."""
    return [(i, _object(line, f"{file}, line {i}")) for i, line in _lines(file)]


def _object(text: str, where: str) -> dict:
    value = _json(text, where)
    if not isinstance(value, dict):
        raise ValueError(f'{where} is no JSON object, {{"name": value, ...}}')
    return value


def _json(text: str, where: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error


def read_json(file) -> list[dict]:
    """The objects of a file that is one JSON list of them."""
    rows = _json(decoded(file), str(file))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is no list of JSON objects, one a row")
    return rows


def _frame(rows: list[dict]) -> pd.DataFrame:
    """The rows with their values unchanged in columns of objects; None for a column that a row lacks."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def _read_parquet(file) -> pd.DataFrame:
    try:
        return pd.read_parquet(file).reset_index(drop=True)
    except Exception as error:  # pyarrow's errors, and pandas' for wrong metadata
        raise ValueError(f"{file} cannot be read as parquet: {str(error).partition(chr(10))[0]}") from error


def _read_jsonl_frame(file) -> pd.DataFrame:
    return _frame([row for _, row in read_jsonl(file)])


def _read_json_frame(file) -> pd.DataFrame:
    return _frame(read_json(file))


TABLES = {".csv": read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl_frame, ".json": _read_json_frame}


def read_columns(source, files: list[str], texts=(), numbers=(), optional=()) -> pd.DataFrame:
    """A table whose columns `files` name images relative to it -> the frame with their full paths, other columns as in `declared`.
    FileNotFoundError, or ValueError for another format and what `declared` refuses."""
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: give a folder of pictures or a table")
    suffix = source.suffix.lower()
    if suffix not in TABLES:
        raise ValueError(f"{source} is neither a folder nor a table: it must end in {', '.join(TABLES)}")
    table = declared(source, TABLES[suffix](source), texts, numbers, optional, files)
    return table.assign(**{name: [str(source.parent / path) for path in table[name]] for name in files})


def declared(source, table: pd.DataFrame, texts=(), numbers=(), optional=(), files=()) -> pd.DataFrame:
    """The table of a file, its columns as the caller declares them: `texts` and `files` are filled in every row; `numbers` become float64,
    NaN for an empty cell; `optional`, texts too, may be absent or empty (None). Other columns are unchanged.

    ValueError for a table without rows, a column that is missing or there twice, and a cell that is empty or of another type than
    declared."""
    _check_columns(source, table, [*files, *texts, *numbers], optional)
    columns = {}
    for name in (*files, *texts, *optional):
        if name in table:
            columns[name] = [_text(cell, f"{source}: column `{name}`, row {i}") for i, cell in enumerate(table[name])]
    for name in (*files, *texts):
        empty = [str(i) for i, cell in enumerate(columns[name]) if cell is None]
        if empty:
            what = "names no file" if name in files else "is empty"
            raise ValueError(f"{source}: column `{name}` {what} in row {', '.join(empty[:5])}; fill it in or drop the row")
    columns = {name: pd.Series(cells, dtype=object) for name, cells in columns.items()}
    for name in numbers:
        columns[name] = [_number(cell, f"{source}: column `{name}`, row {i}") for i, cell in enumerate(table[name])]
    return table.assign(**columns)


def _check_columns(source, table: pd.DataFrame, needed: list[str], optional) -> None:
    """ValueError for a table without rows, a needed column that is missing, one there twice, and an optional one in other letters."""
    spelled = [str(column).strip().lower() for column in table]
    missing = [name for name in needed if name not in table]
    missing += [name for name in optional if name not in table and name in spelled]
    if missing:
        raise ValueError(f"{source} has no column `{'`, `'.join(missing)}`; it has {', '.join(map(str, table.columns))}")
    if not table.columns.is_unique:
        raise ValueError(f"{source} has two columns `{table.columns[table.columns.duplicated()][0]}`; rename one")
    if not len(table):
        raise ValueError(f"{source} has no rows")


def _is_missing(cell) -> bool:
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell)) or cell is None


def _text(cell, where: str) -> str | None:
    """None for an empty cell. A number is refused: 7 may have been 007."""
    if _is_missing(cell):
        return None
    if not isinstance(cell, str):
        raise ValueError(f"{where} is {repr(cell)[:60]}, which is no text; store the column as texts")
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a character (a lone surrogate): {cell!r}") from error
    return cell or None


def _number(cell, where: str) -> float:
    """NaN for an empty cell."""
    if _is_missing(cell) or isinstance(cell, str) and not cell:
        return math.nan
    if isinstance(cell, (str, Real, Decimal)) and not isinstance(cell, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(value := float(cell)):
                return value
    raise ValueError(f"{where} is {cell!r}, which is no number; write one like 3.5, or leave the cell empty")


def write_csv(file, table: pd.DataFrame) -> Path:
    """A csv for people, as in RFC 4180, whole or absent. A text that a spreadsheet would compute (=, +, -, @, tab or carriage return in
    front) gets a ' before it."""
    plain = table.astype(object).map(_quote_formula).rename(columns=_quote_formula)
    return atomic(file, lambda partial: plain.to_csv(partial, index=False, encoding="utf-8", lineterminator="\r\n"))


def _quote_formula(cell):
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


# ---- lists in a parameter ----------------------------------------------------------------------------------------


def names(text: str) -> list[str]:
    """The names in a list such as "jpeg, clip"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def pairs(parameter: str, text: str, known: list[str]) -> dict[str, str]:
    """The {name: value} of a text such as 'clip=ViT-B-32 hp="my models/hp"', quoted as in a shell. ValueError names the parameter and a
    part that is no pair, or a name that is not `known`."""
    try:
        parts = [part.partition("=") for part in shlex.split(text)]
    except ValueError as error:
        raise ValueError(f"{parameter}: a quote in {text} is not closed") from error
    for name, equals, value in parts:
        if not (name and equals and value):
            raise ValueError(f'{parameter}: {name + equals!r} is no name=value; put a value with a space in quotes: name="my value"')
        if name not in known:
            raise ValueError(f"{parameter}: {name} is none of {', '.join(known)}")
    return {name: value for name, _, value in parts}
