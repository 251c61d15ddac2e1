"""The columns of a pickled pandas table from a stranger. A pickle is a program that calls what it names, and even numpy's own functions
crash the process, or worse, when it hands them forged arguments. So nothing that it names is called: its calls become `Call`, inert
records, and the cells are read out of the records of the few kinds that a table of texts and numbers is made of."""

import io
import math
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

_ADMITTED = {  # by package, over pandas 1 to 3 and numpy 1 and 2: what tables name. Another name says that the file is no table
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
_NUMBERS = {"b1", "f2", "f4", "f8"} | {f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)}
_MAX_TUPLES = 10_000  # one in another: to hash these takes a megabyte of the stack, and there are eight


class Call:
    """A call that a pickle asked for and did not get: `name`, `args`, and the `state` that was to be set on the result."""

    name = ""

    def __new__(cls, *args):
        self = super().__new__(cls)
        self.args = args
        self.state = None
        return self

    def __setstate__(self, state):
        self.state = state


class _Recorder(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if name not in _ADMITTED.get(module.split(".")[0], "").split():
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no table needs; it may be hostile")
        return type(name, (Call,), {"name": name})


def columns(path, names: Iterable[str]) -> dict[str, list]:
    """The named columns of the pandas table that was pickled into `path`: {name: a list of str, int, float, bool, and None for all other
    cells}. UnpicklingError and ValueError name `path` and what is wrong with it."""
    try:
        table = _recorded(Path(path).read_bytes())
        if getattr(table, "name", "") != "DataFrame":
            raise ValueError(f"it holds a {getattr(table, 'name', '') or type(table).__name__}, not a pandas DataFrame")
        return _columns(table, list(names))
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(f"{path} is no pickled table: {' '.join(str(error).split())}") from None
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no pickled table that can be read: {error}") from None
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError, EOFError) as error:  # forged records
        raise ValueError(f"{path} is no pickled table that can be read: it is broken inside ({type(error).__name__})") from None


def _recorded(contents: bytes):
    """The pickle's object, made of plain values and Calls. Its instructions are checked first: those that need far more memory than the
    file, or more of the stack than there is, are refused."""
    tuples = 0
    for instruction, value, _ in pickletools.genops(contents):  # ValueError for what is cut or no pickle
        tuples += instruction.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        if tuples > _MAX_TUPLES or instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and value > len(contents):
            raise pickle.UnpicklingError(f"{instruction.name} would take far more memory than a table needs; it may be hostile")
    return _Recorder(io.BytesIO(contents)).load()


def _columns(table: Call, names: list[str]) -> dict[str, list]:
    """By name; the manager of a frame holds blocks of rows (one a column of the frame), each with their places among the columns."""
    blocks, axes = table.state["_mgr"].args
    labels = _lists(axes[0].args[1]["data"])[0] if "data" in axes[0].args[1] else []
    if missing := [name for name in names if name not in labels]:
        raise ValueError(f"it has no column {', '.join(missing)}; it has {', '.join(map(str, labels))}")
    found = {}
    for block in blocks:
        values, places = block.args[:2]
        places = range(*places.args) if places.name == "slice" else _lists(places)[0]
        wanted = {place: row for row, place in enumerate(places[: len(labels)]) if labels[place] in names}
        if wanted:
            rows = _lists(values)
            found |= {labels[place]: rows[row] for place, row in wanted.items()}
    if {len(found[name]) for name in names} != {len(found[names[0]])}:
        raise ValueError("its columns have different lengths")
    return {name: found[name] for name in names}


def _lists(values: Call) -> list[list]:
    """The rows of an array of at most two axes, as lists of plain cells."""
    if values.name == "ArrowStringArray":
        return [_arrow_texts(*values.state.get("_pa_array", values.state.get("_data")).args[0])]
    if values.name == "__pyx_unpickle_NDArrayBacked" and values.args[0].name == "StringArray":
        return _lists(*(part for part in values.state if getattr(part, "name", "") == "_reconstruct"))
    if values.name == "_frombuffer":
        contents, kind, shape, order = values.args
    elif values.name == "_reconstruct":
        shape, kind, fortran, contents = values.state[-4:]
        order = "F" if fortran else "C"
    else:
        raise ValueError(f"a column is made by {values.name}: save it as text or as plain numbers")
    cells = list(map(_cell, contents)) if _type_code(kind) == "O8" else _numbers(contents, kind)
    if math.prod(shape) != len(cells) or len(shape) not in (1, 2) or min(shape) < 0:
        raise ValueError("an array's shape is not that of its cells")
    rows = shape[0] if len(shape) == 2 else 1
    width = len(cells) // max(1, rows)
    return [cells[i::rows] if order == "F" else cells[i * width : (i + 1) * width] for i in range(rows)]


def _type_code(kind: Call) -> str:
    return "O8" if kind.args[0] == "O" else kind.args[0]


def _numbers(contents, kind: Call) -> list:
    if kind.name != "dtype" or _type_code(kind) not in _NUMBERS:
        raise ValueError(f"a column's type is {_type_code(kind)}: save it as text or as plain numbers")
    order = kind.state[1] if kind.state and kind.state[1] in ("<", ">") else "<"
    return np.frombuffer(_bytes(contents), order + _type_code(kind)).tolist()


def _bytes(value) -> bytes:
    """Bytes as the pickle protocols write them: as they are, or through bytearray and an encoded text."""
    while isinstance(value, Call) and value.name in ("bytearray", "py_buffer") and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, Call) and value.name in ("bytearray", "encode"):
        value = value.args[0].encode("latin-1")
    if not isinstance(value, (bytes, bytearray)):
        raise ValueError("a column's bytes are none")
    return bytes(value)


def _cell(value):
    if isinstance(value, Call) and value.name == "scalar":
        return _numbers(value.args[1], value.args[0])[0]
    is_int64 = isinstance(value, int) and abs(value) < 2**63  # a larger one is no float
    return value if isinstance(value, (str, float)) or is_int64 else None


def _arrow_texts(kind: Call, length: int, _nulls, start: int, buffers: list, *_) -> list[str | None]:
    """The texts of an Arrow array, its offsets checked against its bytes before anything reads them."""
    kinds = {"string": pa.string(), "large_string": pa.large_string()}
    if kind.args[0] not in kinds or len(buffers) != 3:
        raise ValueError(f"a column's Arrow type is {kind.args[0]}: save it as text")
    copies = [pa.py_buffer(_bytes(b)) if b is not None else None for b in buffers]
    array = pa.Array.from_buffers(kinds[kind.args[0]], length, copies, -1, start)
    array.validate(full=True)
    return array.to_pylist()
