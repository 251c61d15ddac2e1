"""Tables and lists as people save them: texts stay texts, empty is missing, and what cannot be read is named by file and line."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from icthp import images, tables
from icthp.evaluation import geneval, human_votes

TEXTS = ["None", "NA", "null", "nan", "1984", "007", "True", "1e5", "2019-01-01", "-", " "]
TEXTS += ['a, "b"\nc', "x\u2028y\u0085z", "\U0001f600 café"]


def saved(folder, suffix, frame):
    """The frame in a file of this kind, as pandas writes it."""
    file = folder / f"t{suffix}"
    write = {".csv": frame.to_csv, ".parquet": frame.to_parquet, ".jsonl": frame.to_json, ".json": frame.to_json}[suffix]
    write(file, **({"orient": "records", "lines": suffix == ".jsonl"} if "json" in suffix else {"index": False}))
    return file


@pytest.mark.parametrize("suffix", tables.TABLES)
def test_texts_come_back_as_they_were_and_empty_cells_as_missing(tmp_path, suffix):
    frame = pd.DataFrame({"image": "a.png", "prompt": [*TEXTS, None, ""]}, dtype=object)
    table = images.read_table(saved(tmp_path, suffix, frame))
    assert table.prompt.tolist() == [*TEXTS, None, None] and set(table.image) == {str(tmp_path / "a.png")}


@pytest.mark.parametrize("suffix", tables.TABLES)
def test_votes_have_texts_for_axes_and_numbers_for_values(tmp_path, suffix):
    frame = pd.DataFrame({"prompt": ["1984", "NA"], "image": ["007.png", "null"], "axis": ["None", "1"], "value": [3, 0.5]})
    table = human_votes.read(str(saved(tmp_path, suffix, frame)))
    assert table.prompt.tolist() == ["1984", "NA"] and table.axis.tolist() == ["None", "1"]
    assert table.value.dtype == np.float64 and table.value.tolist() == [3, 0.5]
    assert table.image.tolist() == [str(tmp_path / name) for name in ("007.png", "null")]


@pytest.mark.parametrize("suffix", tables.TABLES)
def test_levels_are_read_in_the_same_way(tmp_path, suffix):
    frame = pd.DataFrame({"prompt": ["null"], "I1": ["1"], "I2": ["NA"]})
    table = images.read_levels(saved(tmp_path, suffix, frame), ["I1", "I2"])
    assert table.loc[0].tolist() == ["null", str(tmp_path / "1"), str(tmp_path / "NA")]


def test_a_csv_as_spreadsheets_save_it(tmp_path):
    """A byte order mark, CRLF, blank lines, quoted separators and line ends, a column without a name, an upper-case suffix."""
    text = '\ufeff,image,prompt\r\n0,a.png,"a cat, ""sitting""\r\nhere"\r\n\r\n1,b.png,6" tall\r\n2,c.png,\r\n'
    (tmp_path / "T.CSV").write_bytes(text.encode())
    table = images.read_table(tmp_path / "T.CSV")
    assert table.prompt.tolist() == ['a cat, "sitting"\r\nhere', '6" tall', None] and table["Unnamed: 0"].tolist() == ["0", "1", "2"]


BAD = {
    "t.csv": [
        (b"", "is empty; its first line must name the columns"),
        (b"image,prompt\n", "has no rows"),
        (b"image,prompt\na.png,a cat, sitting\n", "line 2 has 3 cells, not the 2 of image, prompt"),
        (b"image;prompt\na.png;a cat\n", "has no column `image`; it has image;prompt"),
        (b"image;prompt\na.png;a cat, sitting\n", "line 2 has 2 cells, not the 1 of image;prompt"),
        (b'image,prompt\na.png,"a cat\nb.png,x\n', "line 3 is no csv"),
        (b"image,prompt\na.png,caf\xe9\n", "line 2: byte 23 of the file is not UTF-8; save it as UTF-8"),
        ("image\na.png\n".encode("utf-16"), "line 1: byte 1 of the file is not UTF-8"),
        (b"image,image\na.png,b.png\n", "has two columns `image`"),
        (b"image,prompt\na.png,x\n,y\n", "column `image` names no file in row 1"),
        (b"image,prompt\na.png," + b"x" * 200_000, "line 2 is no csv: field larger than field limit"),
    ],
    "t.jsonl": [
        (b"\n", "has no column `image`"),
        (b'{"image": "a"}\n\n{"image": \n', "line 3 is no JSON"),
        (b'{"image": "a"}\n[1]\n', "line 2 is no JSON object"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b'{"image": "a", "prompt": 1984}\n', "column `prompt`, row 0 is 1984, which is no text"),
        (b'{"image": "a", "prompt": true}\n', "column `prompt`, row 0 is True, which is no text"),
        (b'{"image": 7}\n', "column `image`, row 0 is 7, which is no text"),
        (b'{"image": "a", "prompt": "x \\ud800"}\n', "row 0 holds half a character"),
    ],
    "t.json": [(b'{"image": "a"}', "is no list of JSON objects"), (b"[1]", "is no list of JSON objects"), (b"", "is no JSON")],
    "t.parquet": [(b"", "cannot be read as parquet"), (b"PAR1junkPAR1", "cannot be read as parquet")],
}


@pytest.mark.parametrize(("name", "content", "says"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_what_is_wrong_is_said_in_one_sentence_with_the_file(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        images.read_table(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name)) and says in message and "\n" not in message


def test_a_prompt_of_a_parquet_table_must_be_text(tmp_path):
    pd.DataFrame({"image": ["a.png"], "prompt": [1984]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="t.parquet: column `prompt`, row 0 is 1984, which is no text"):
        images.read_table(tmp_path / "t.parquet")
    pd.DataFrame({"image": ["a.png"], "prompt": pd.Categorical(["7"]), "n": [3], "list": [[1, 2]]}).to_parquet(tmp_path / "t.parquet")
    table = images.read_table(tmp_path / "t.parquet")
    assert table.prompt.tolist() == ["7"] and table.n.dtype == np.int64


@pytest.mark.parametrize("value", ["NA", "3,5", "good", "nan", "inf", "True", "1e999"])
def test_a_value_that_is_no_number_is_named(tmp_path, value):
    (tmp_path / "v.csv").write_text(f'prompt,image,axis,value\np,a.png,x,1\np,b.png,x,"{value}"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=f"v.csv: column `value`, row 1 is '{value}', which is no number"):
        human_votes.read(str(tmp_path / "v.csv"))


def test_an_empty_value_is_missing_and_an_empty_axis_is_refused(tmp_path):
    (tmp_path / "v.csv").write_text("prompt,image,axis,value\np,a.png,x,\np,b.png,x,1e-2\n", encoding="utf-8")
    values = human_votes.read(str(tmp_path / "v.csv")).value
    assert math.isnan(values[0]) and values[1] == 0.01
    (tmp_path / "v.csv").write_text("prompt,image,axis,value\np,a.png,,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="column `axis` is empty in row 0"):
        human_votes.read(str(tmp_path / "v.csv"))


# ---- lines, GenEval's jsonl, csv for people, lists -------------------------------------------------------------------


def test_only_a_line_feed_ends_a_line(tmp_path):
    prompts = ["a\u2028b", "c\u0085d", "e\x0cf\x0b", "NA"]
    (tmp_path / "p.txt").write_bytes(("\ufeff" + "\r\n".join(prompts) + "\r\n\r\n  \n").encode())
    assert tables.read_lines(tmp_path / "p.txt") == prompts
    (tmp_path / "p.txt").write_bytes(b"fine\ncaf\xe9")
    with pytest.raises(ValueError, match=r"p.txt, line 2: byte 9 of the file is not UTF-8"):
        tables.read_lines(tmp_path / "p.txt")


ASKED = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo\u2028of a bench"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_genevals_jsonl_in_any_prompt_and_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "m.jsonl").write_text(json.dumps(ASKED, ensure_ascii=False) + "\r\n\n", encoding=encoding, newline="")
    assert geneval.read_metadata(tmp_path / "m.jsonl") == [ASKED]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"tag": ', "line 2 is no JSON"),
        ("[]", "line 2 is no JSON object"),
        (json.dumps(ASKED | {"prompt": 7}), "line 2 has no prompt"),
        (json.dumps(ASKED | {"include": "bench"}), "line 2 has no include"),
    ],
)
def test_genevals_jsonl_names_file_and_line(tmp_path, line, says):
    (tmp_path / "m.jsonl").write_text(f"{json.dumps(ASKED)}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"m.jsonl, {says}"):
        geneval.read_metadata(tmp_path / "m.jsonl")


def test_a_spreadsheet_computes_nothing_of_a_csv_for_people(tmp_path):
    texts = ["=1+1", "+1", "-2", "@x", "\tx", "\rx", "a=b", "é\u2028", None]
    frame = pd.DataFrame({"prompt": texts, "score": -0.5})
    tables.write_csv(tmp_path / "new/t.csv", frame)
    read = tables.read_csv(tmp_path / "new/t.csv")
    assert read.prompt.tolist() == ["'=1+1", "'+1", "'-2", "'@x", "'\tx", "'\rx", "a=b", "é\u2028", None]
    assert set(read.score) == {"-0.5"} and [p.name for p in (tmp_path / "new").iterdir()] == ["t.csv"]


def test_lists_and_pairs_in_a_parameter():
    assert tables.names(" jpeg, clip,,a b ,") == ["jpeg", "clip", "a b"] and tables.names("") == []
    known = ["clip", "hp"]
    assert tables.pairs("sources", " clip=ViT-B-32/x  hp='my models/hp=1' ", known) == {"clip": "ViT-B-32/x", "hp": "my models/hp=1"}
    for text, says in [("clip=my models", "'models' is no name=value"), ("clip=", "'clip='"), ("=x", "'='"), ('hp="x', "not closed"),
                       ("clpi=x", "clpi is none of clip, hp")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^sources: .*{says}"):
            tables.pairs("sources", text, known)
