"""The reader of pickled tables: honest ones of any pandas, and forged ones, which may neither run code nor end the process."""

import base64
import copyreg
import gzip
import pickle
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from icthp.data import frames

PANDAS_1 = (
    "c-n<h&2H2%5Kgk$Qhr3K5Ktt<fm6BU#Gw*MizvU12vTnxD$7Z{o2ZEs*^b(ks8kO0NAj)1L+~8D2yX&2&aQR~m2hNx?99yfjpsWKzrPuHZrJsf%be>dYm|t_"
    "iq`_{_1E0+x6ZzRr(fX+Hf_l2i30n0*}arTD9I}w)m-w4P#Wy5S5=ekf9%f~Ztu?`SXHKa5dwCNb+Rq9{YtQuV#xWP?CN&fXRo`;lw2u3#jH$;tdZKNE;Hmf"
    "bdF%JVQ%Mg0kQWDw*3@NVHY-IAHU!PiZwgT&9tRTY%qQX=V$%@f%RWNk|aC7akwS+45a7VtDbi}!k2joc(ki&S0W9Ge22O!Gs;7mW1rH*0j<T&;&!o4@WtKB"
    ";2Sn5w-%7aqpJY#_<bw9V73!*@dPmj|3eApD4({L3;Xg{VI#uX!zKnle?anX^lR38{}4ov<;5%UV1acC<h^mZ*SR<pI!d`lh1_6L9Iy{`hYwP`x5K&Zw34HK"
    ";9t5S9-ccQKE9_v##!QQ919yt5?s=qP_aAq;Z^90%L&2n(!K;)d`_@GhAV?Iu%R|hi=~hu(C}SOK?~{_)qoNwigUTMS{Uv)?_ry{F(~9Cuq$j_@rg4Z@TzJK"
    "G|RgdMZk?<6;B1K_)K?c^at*GM#u"
)  # pandas 1.5.3 with numpy 1.26: {"s": ["é", None], "f": float32 [1, 2], "i": [1, 2], "o": [0.5, "x"]}
PANDAS_2 = (
    "c-n<h&2H2%5Kgk$Qhr3Kkf2D21E+Gyi9;nSEuyGEBZAZ$hstuY-c3};iEKyhN>nNb`Xl+);URbqUW7M+8Sk!k3zcwWd+f~2_l@T}jlb{q0zce(%hiyZq-eBA"
    "Mw-_G-0ipA@?CFV!HchO0-G*o^;m;@w(MRhE41R$BsEujEVKc4?~QDV!;jN5hPy|z2qvrCEJDDou}-yBaVQ1LDaJdiu5Kp@^XcnO+KOw<CzzILQ8da}-4&KR"
    "``#1WElloRt{@G*!A_XNIqbt`8sZn7LAmDoLpy1y6c>$N!sW&Ef6s;6kY(B4ZybI}0}J`(&T0^x4)AGS10LOK-c?9LA>qD}RY7?ua~e{bG@`Y<Ti!3%3BG)I"
    "9el$@)z$*Ce0me$gK*l5Ae!w2Ts}vP-v3adIm)N4<-)%FRoH-V4zP>S&mWMz8~mCzKRgC8#R}4uw70-I2lC#y-t3_`7ADELL5bX9N*u8dbcYX8zIXk(?Zq-g"
    "0l~j?V?4a_L_&PeaD=nM*?1N%R;0MBJELOv+>@KoHCJPT-=}>EvizK3e=OG)W#D3Cn-)tUL!c4*oPrh<GO7VJP88>QXSJ~0b3VW}b8At_C*W4tNb<2aA9E?2"
    "Bg2MWiz47wFv)X)GQKcfp8NqZUq>k"
)  # the same by pandas 2.2.3 with numpy 2.2


@pytest.mark.parametrize("old", [PANDAS_1, PANDAS_2])
def test_tables_of_older_pandas_are_read(tmp_path, old):
    (tmp_path / "t.pkl").write_bytes(zlib.decompress(base64.b85decode(old)))
    assert frames.columns(tmp_path / "t.pkl", "sfio") == {"s": ["é", None], "f": [1, 2], "i": [1, 2], "o": [0.5, "x"]}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_texts_and_numbers_of_any_kind_are_read(tmp_path, protocol):
    frame = pd.DataFrame({"arrow": ["é", "b", None], "object": np.array(["a", None, "b"], dtype=object), "float": np.float32([1, 2, 3]),
                          "big": np.array([1, 2, 3], ">i8"), "bool": [True, False, True], "mixed": [np.float64(0.5), "bad", 10**400],
                          "python": pd.array(["a", None, "c"], dtype=pd.StringDtype("python")), "nan": [1.5, 2.5, np.nan],
                          "list": [[1], {"k": 2}, (3,)], "t": pd.to_datetime(["2025-01-01"] * 3), "cat": pd.Categorical(["a", "b", "a"]),
                          "n": pd.array([1, None, 3])}, index=[5, 9, 7])  # fmt: skip
    frame.iloc[::2].to_pickle(tmp_path / "t.pkl", protocol=protocol)
    names = ["bool", "mixed", "arrow", "object", "float", "big", "python", "list"]
    read = frames.columns(tmp_path / "t.pkl", names)
    assert list(read) == names and read["arrow"] == ["é", None] and read["object"] == ["a", "b"] and read["float"] == [1, 3]
    assert read["big"] == [1, 3] and read["bool"] == [True, True] and read["python"] == ["a", "c"]
    assert read["mixed"] == [0.5, None] and read["list"] == [None, None]
    assert np.isnan(frames.columns(tmp_path / "t.pkl", ["nan"])["nan"][1])
    for name in ("t", "cat", "n"):
        with pytest.raises(ValueError, match=r"t\.pkl.*save it as text or as plain numbers"):
            frames.columns(tmp_path / "t.pkl", [name])


# ---- forged files -------------------------------------------------------------------------------------------------


class Forged:
    """What a pickle calls when it is opened by pickle.load."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def with_values(values) -> bytes:
    """A pickled table of the one column "a", whose cells are `values` (Forged)."""
    frame = pd.DataFrame({"a": [0.5, 0.25]})
    block = Forged(pd._libs.internals._unpickle_block, values, slice(0, 1, 1), 2)
    manager = Forged(pd.core.internals.managers.BlockManager, (block,), list(frame._mgr.axes))
    return pickle.dumps(Forged(pd.DataFrame, state={"_mgr": manager, "_typ": "dataframe"}))


def arrow(offsets, text=b"ab", length=2, start=0):
    buffers = [None, pa.py_buffer(np.array(offsets, "<i8").tobytes()), pa.py_buffer(text)]
    array = Forged(pa.lib._restore_array, (Forged(pa.lib.type_for_alias, "large_string"), length, 0, start, buffers, [], None))
    column = Forged(copyreg.__newobj__, pd.arrays.ArrowStringArray, state={"_pa_array": array, "_dtype": pd.StringDtype("pyarrow")})
    column.__class__ = type("New", (Forged,), {"__class__": pd.arrays.ArrowStringArray})  # as the instruction for new objects wants it
    return column


def array_of(dtype, contents):
    return Forged(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1, 2), dtype, False, contents))


NOT_OBJECTS = Forged(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))  # objects that do not say that they are
CRASHES = {
    "an offset past the text": lambda: arrow([0, 1, 2**40]),
    "an offset below the text": lambda: arrow([-(2**40), 1, 2]),
    "offsets that fall": lambda: arrow([2, 1, 0]),
    "a longer array than its offsets": lambda: arrow([0, 1, 2], length=2**40),
    "a later start than its offsets": lambda: arrow([0, 1, 2], start=2**61),
    "a negative length": lambda: arrow([0, 1, 2], length=-5),
    "no text": lambda: arrow([0, 1, 2], text=b""),
    "half a letter": lambda: arrow([0, 1, 2], text="é".encode()),
    "objects over bytes": lambda: array_of(NOT_OBJECTS, b"A" * 16),
    "fewer objects than the shape says": lambda: array_of(np.dtype("O"), [1]),
    "an array over foreign bytes": lambda: Forged(np.ndarray, (1, 2), "O", bytearray(b"A" * 16)),
    "a frombuffer of objects": lambda: Forged(np._core.numeric._frombuffer, b"A" * 16, NOT_OBJECTS, (1, 2), "C"),
    "a shape below zero": lambda: Forged(np._core.numeric._frombuffer, b"A" * 16, np.dtype("f8"), (-1, -2), "C"),
}
READ = """
import sys
from icthp.data import frames
for path in sys.argv[1:]:
    try:
        print(frames.columns(path, ["a"]))
    except ValueError as error:
        print("ValueError:", error)
"""


def test_forged_arrays_are_refused_by_a_process_that_lives_on(tmp_path):
    paths = [tmp_path / f"{kind}.pkl" for kind in CRASHES]
    for path in paths:
        path.write_bytes(with_values(CRASHES[path.stem]()))
    done = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True, timeout=120)
    answers = done.stdout.splitlines()
    assert done.returncode == 0 and len(answers) == len(paths)
    for path, answer in zip(paths, answers):
        assert answer.startswith(f"ValueError: {path} is no pickled table that can be read: ")


def test_a_forged_table_is_read_where_its_values_are_right(tmp_path):
    """So that the tests above fail for the values' sake, not for the forger's."""
    for values in (array_of(np.dtype("f8"), np.array([0.5, 0.25]).tobytes()), array_of(np.dtype("O"), [0.5, 0.25])):
        (tmp_path / "t.pkl").write_bytes(with_values(values))
        assert frames.columns(tmp_path / "t.pkl", ["a"]) == {"a": [0.5, 0.25]}
    (tmp_path / "t.pkl").write_bytes(with_values(arrow([0, 1, 2])))
    assert frames.columns(tmp_path / "t.pkl", ["a"]) == {"a": ["a", "b"]}


# ---- damaged and hostile files ------------------------------------------------------------------------------------

HONEST = pickle.dumps(pd.DataFrame({"a": ["x", "y"]}))
NO_TABLES = {
    "a dict": (pickle.dumps({"a": 1}), "it holds a dict"),
    "a series": (pickle.dumps(pd.Series([1])), "it holds a Series"),
    "nothing": (b"", "exhausted"),
    "gzip": (gzip.compress(HONEST), "unknown"),
    "half": (HONEST[: len(HONEST) // 2], ""),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "unknown"),
    "a frame without parts": (pickle.dumps(Forged(pd.DataFrame)), "broken inside"),
    "a foreign object": (b"\x80\x04\x8c\x01xQ.", "persistent"),
    "a place for two thousand million things": (b"\x80\x04}r\xff\xff\xff\x7f.", "far more memory"),
    "bytes that are not there": (b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b".", "only 1 remain"),
    "a tuple in a million tuples as a key": (b"\x80\x04})" + b"\x85" * 10**6 + b"K\x01s.", "far more memory"),
}


@pytest.mark.parametrize("kind", NO_TABLES)
def test_a_file_that_is_no_table_is_named(tmp_path, kind):
    contents, reason = NO_TABLES[kind]
    (tmp_path / "t.pkl").write_bytes(contents)
    with pytest.raises((ValueError, pickle.UnpicklingError), match=rf"t\.pkl is no pickled table.*{reason}"):
        frames.columns(tmp_path / "t.pkl", ["a"])


@pytest.mark.slow
def test_any_damage_to_a_file_is_named(tmp_path):
    """Each byte set to 0, 127 and 255 in turn: the columns, or one of the two errors with the file's name."""
    path = tmp_path / "t.pkl"
    read = 0
    for at in range(2, len(HONEST)):
        for value in (0, 127, 255):
            path.write_bytes(HONEST[:at] + bytes([value]) + HONEST[at + 1 :])
            try:
                read += len(frames.columns(path, ["a"])["a"]) == 2
            except (ValueError, pickle.UnpicklingError) as error:
                assert str(path) in str(error)
    assert 0 < read < 3 * len(HONEST)
