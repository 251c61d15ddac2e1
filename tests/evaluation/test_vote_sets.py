"""Published rankings and ratings, on small folders of their layouts with rows that are not as they should be, and TFRecord files."""

import json
import struct
import zipfile
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat
from vote_layout import ODD, touch

from icthp.evaluation import human_votes, tfrecord, vote_rows, vote_sets


def votes_of(table) -> list[tuple]:
    """(prompt, name of the picture, axis, value, comparison) of each row."""
    names = table.image.str.rpartition("/")[2]
    comparison = table.comparison if "comparison" in table else [None] * len(table)
    return [*zip(table.prompt, names, table.axis, table.value, comparison)]


# ---- HPDv2 ------------------------------------------------------------------------------------------------------


def hpdv2_row(**changed):
    people = [{"rank": [2, 1], "user_hash": "x"}]
    return {"prompt": ODD, "image_path": ["a.jpg", "b.jpg"], "rank": [2, 1], "raw_annotations": people} | changed


def write_hpdv2(folder, rows):
    touch(folder, "test/a.jpg", "test/b.jpg", "c.jpg")
    (folder / "test.json").write_text(json.dumps(rows), "utf-8")


def test_hpdv2_ranks_are_votes_within_their_row(tmp_path):
    write_hpdv2(tmp_path, [hpdv2_row(), hpdv2_row(rank=[1, 2])])
    table = human_votes.read(f"hpdv2:{tmp_path}")
    assert votes_of(table) == [(ODD, "a.jpg", "preference", -2, "0"), (ODD, "b.jpg", "preference", -1, "0"),
                               (ODD, "a.jpg", "preference", -1, "1"), (ODD, "b.jpg", "preference", -2, "1")]  # fmt: skip
    assert table.image[0] == str(tmp_path / "test/a.jpg") and table.attrs["left_out"] == {}
    agreed = human_votes.agreement(table.assign(score=[0, 1, 0, 1])).set_index("measure")
    assert agreed.loc["pairs", "mean"] == 0.5 and agreed.index.tolist() == ["pairs"]


BAD_RANKINGS = [
    (7, "prompt is empty or no text"), ({}, "prompt is empty or no text"), (hpdv2_row(prompt=" "), "prompt is empty or no text"),
    (hpdv2_row(prompt="half \ud800"), "prompt holds half a character"),
    (hpdv2_row(rank=[1]), "image_path and rank are not of one length"), (hpdv2_row(rank=[1, "2"]), "rank is no number"),
    (hpdv2_row(rank=[1, float("nan")]), "rank is no number"), (hpdv2_row(rank=[1, 10**400]), "rank is no number"),
    (hpdv2_row(rank=[1, True]), "rank is no number"), (hpdv2_row(rank=1), "rank is empty or no list"),
    (hpdv2_row(image_path=["a.jpg", None]), "image_path is empty or no text"),
    (hpdv2_row(image_path=["a.jpg", "d.jpg"]), "a picture is missing"), (hpdv2_row(image_path=["a.jpg", "."]), "a picture is missing"),
    (hpdv2_row(image_path=["a.jpg", "a\0.jpg"]), "a picture is missing"),
    (hpdv2_row(image_path=["a.jpg", "b" * 5000]), "a picture is missing"),
    (hpdv2_row(image_path=["a.jpg", "../c.jpg"]), "a picture lies outside the folder of the set"),
    (hpdv2_row(image_path=["a.jpg", "/etc/hostname"]), "a picture lies outside the folder of the set"),
    (hpdv2_row(image_path=["a.jpg", "link.jpg"]), "a picture lies outside the folder of the set"),
]  # fmt: skip


def test_a_bad_row_is_left_out_with_its_reason_and_stops_nothing(tmp_path):
    write_hpdv2(tmp_path, [hpdv2_row(), *(row for row, _ in BAD_RANKINGS), hpdv2_row()])
    (tmp_path / "test/link.jpg").symlink_to(tmp_path / "c.jpg")
    with pytest.warns(UserWarning, match=r"18 of 20 rows are left out: prompt is empty or no text \(3 times, first in row 1\)"):
        table = human_votes.read(f"hpdv2:{tmp_path}")
    assert sorted(set(table.comparison)) == ["0", "19"] and len(table) == 4
    assert table.attrs["left_out"] == Counter(reason for _, reason in BAD_RANKINGS)


@pytest.mark.parametrize("row, reason", BAD_RANKINGS)
def test_each_bad_row_has_its_reason(tmp_path, row, reason):
    write_hpdv2(tmp_path, [row])
    (tmp_path / "test/link.jpg").symlink_to(tmp_path / "c.jpg")
    with pytest.raises(ValueError, match=f"test.json holds no vote that can be used: {reason}"):
        human_votes.read(f"hpdv2:{tmp_path}")


@pytest.mark.parametrize("content, message", [
    ("[]", "holds no vote that can be used: it has no rows"), ("{}", "is no list of rows"), ("[" * 100_000, "is no JSON"),
    ("version https://git-lfs.github.com/spec/v1\n", "is no JSON"),
])  # fmt: skip
def test_a_file_without_rows_is_named(tmp_path, content, message):
    (tmp_path / "test.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"test.json {message}"):
        human_votes.read(f"hpdv2:{tmp_path}")


# ---- ImageRewardDB ----------------------------------------------------------------------------------------------


def write_imagereward_db(folder, split="test", **changed):
    names = [f"images/{split}/{split}_1/{n}.webp" for n in "ab"]
    rows = {"image_path": names, "prompt_id": ["1-1"] * 2, "prompt": [ODD] * 2, "classification": "x", "image_amount_in_total": 2,
            "rank": [1, 2], "overall_rating": [7, 2], "image_text_alignment_rating": [6, 3], "fidelity_rating": [5, 4]}  # fmt: skip
    touch(folder, *names)
    pd.DataFrame(rows | changed).to_parquet(folder / f"metadata-{split}.parquet")


def test_imagereward_db_has_a_ranking_and_three_ratings(tmp_path):
    write_imagereward_db(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="metadata-test.parquet is missing"):
        human_votes.read(f"imagerewarddb:{tmp_path}")
    table = human_votes.read(f"imagerewarddb:{tmp_path}", split="train")
    wide = table.pivot(index="image", columns="axis", values="value").reset_index(drop=True)
    assert wide.to_dict("list") == {"alignment": [6, 3], "fidelity": [5, 4], "overall": [7, 2], "preference": [-1, -2]}
    assert table.comparison.dropna().tolist() == ["1-1"] * 2 and set(table.axis[table.comparison.notna()]) == {"preference"}
    agreed = human_votes.agreement(table.assign(score=1.0 * (table.image.str[-6] == "a")))
    assert set(agreed.measure[agreed.axis == "preference"]) == {"pairs"}
    assert set(agreed.measure[agreed.axis == "overall"]) == {"pairs", "spearman", "tau_c"}
    assert agreed[agreed.measure == "pairs"]["mean"].tolist() == [1] * 4


def test_imagereward_db_tells_how_to_unpack_and_what_is_missing(tmp_path):
    write_imagereward_db(tmp_path, rank=[1, None])
    with pytest.warns(UserWarning, match="1 of 2 rows are left out: rank is no number"):
        assert len(human_votes.read(f"imagerewarddb:{tmp_path}")) == 4
    (tmp_path / "images/test/test_1").rename(tmp_path / "elsewhere")
    (tmp_path / "images/test/test_1.zip").touch()
    with pytest.raises(FileNotFoundError, match="images/test has no unpacked pictures: run `for i in .*unzip"):
        human_votes.read(f"imagerewarddb:{tmp_path}")
    touch(tmp_path, "images/test/test_1/c.webp")
    pd.DataFrame({"image_path": ["x"]}).to_parquet(tmp_path / "metadata-test.parquet")
    with pytest.raises(ValueError, match="metadata-test.parquet cannot be read, fetch it again: it has no column prompt_id"):
        human_votes.read(f"imagerewarddb:{tmp_path}")
    (tmp_path / "metadata-test.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="metadata-test.parquet cannot be read"):
        human_votes.read(f"imagerewarddb:{tmp_path}")


# ---- AIGCIQA2023 ------------------------------------------------------------------------------------------------

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def write_xlsx(path, texts):
    """Rows of column A, a number, and column C, a text, as spreadsheets write them: texts shared, one of them in two runs."""
    shared = "".join(f'<si><r><t xml:space="preserve">{t[:1]}</t></r><r><t>{t[1:]}</t></r></si>' for t in texts)
    rows = "".join(f'<row r="{i}"><c r="A{i}"><v>7</v></c><c r="C{i}" t="s"><v>{i - 1}</v></c></row>' for i in range(1, len(texts) + 1))
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("xl/sharedStrings.xml", f"<sst {MAIN}>{shared}</sst>")
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {MAIN}><sheetData>{rows}</sheetData></worksheet>")


def write_aigciqa2023(folder, count=16):
    """Two models of two prompts of four pictures."""
    write_xlsx(folder / "AIGCIQA2023_Prompts.xlsx", ["a corgi, café", "a &lt;b&gt; girl"])
    touch(folder, *(f"Image/allimg/{i}.png" for i in range(count)))
    (folder / "DATA/MOS").mkdir(parents=True)
    for k in (1, 2, 3):
        savemat(folder / f"DATA/MOS/mosz{k}.mat", {"MOSz": 100 * k + np.arange(count, dtype=float)[:, None]})


def test_aigciqa2023_numbers_pictures_by_model_prompt_and_copy(tmp_path):
    write_aigciqa2023(tmp_path)
    table = human_votes.read(f"aigciqa2023:{tmp_path}")
    assert table.columns.tolist() == human_votes.COLUMNS and len(table) == 48
    assert table.axis[:3].tolist() == ["quality", "authenticity", "alignment"] and table.value[3:6].tolist() == [101, 201, 301]
    by_prompt = table.groupby("prompt", sort=False).image.unique().map(lambda paths: [int(p.split("/")[-1][:-4]) for p in paths])
    assert by_prompt.to_dict() == {"a corgi, café": [0, 1, 2, 3, 8, 9, 10, 11], "a <b> girl": [4, 5, 6, 7, 12, 13, 14, 15]}


def test_aigciqa2023_files_that_are_not_as_published_are_named(tmp_path):
    write_aigciqa2023(tmp_path)
    (tmp_path / "Image/allimg/3.png").unlink()
    opinions = np.arange(16.0)
    opinions[5] = np.nan
    savemat(tmp_path / "DATA/MOS/mosz2.mat", {"MOSz": opinions})
    with pytest.warns(UserWarning, match="2 of 16 rows are left out: a picture is missing .*; authenticity is no number"):
        assert len(human_votes.read(f"aigciqa2023:{tmp_path}")) == 42
    unreadable = "mosz2.mat has no MOSz that can be read"
    few = r"has opinions on \[16, 12, 16\] pictures, not four a model"
    for content, message in (({"MOSz": np.arange(12.0)}, few), ({"other": 1.0}, unreadable), ({"MOSz": "text"}, unreadable)):
        savemat(tmp_path / "DATA/MOS/mosz2.mat", content)
        with pytest.raises(ValueError, match=message):
            human_votes.read(f"aigciqa2023:{tmp_path}")
    (tmp_path / "DATA/MOS/mosz2.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(200))
    with pytest.raises(ValueError, match=unreadable):
        human_votes.read(f"aigciqa2023:{tmp_path}")
    (tmp_path / "AIGCIQA2023_Prompts.xlsx").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="AIGCIQA2023_Prompts.xlsx is no table of prompts that can be read"):
        human_votes.read(f"aigciqa2023:{tmp_path}")


def test_a_table_of_prompts_without_its_column_or_too_large_is_refused(tmp_path, monkeypatch):
    write_xlsx(tmp_path / "t.xlsx", ["a"])
    with pytest.raises(ValueError, match="column B is empty"):
        vote_sets._column(tmp_path / "t.xlsx", "B")
    monkeypatch.setattr(vote_sets, "LARGEST", 10)
    with pytest.raises(ValueError, match="it unpacks to more than 10 bytes"):
        vote_sets._column(tmp_path / "t.xlsx", "C")


# ---- EvalMuse-40K -----------------------------------------------------------------------------------------------


def evalmuse_row(**changed):
    return {"prompt_id": "01", "prompt": ODD, "type": "real", "img_path": "SDXL/1.png", "total_score": [3, 4, 5],
            "element_score": "{'cat (animal)': [1, 0], \"a 'red' hat (object)\": [1, 1]}", "promt_meaningless": [0]} | changed  # fmt: skip


def write_evalmuse(folder, rows):
    touch(folder, "images/SDXL/1.png")
    (folder / "train_list.json").write_text(json.dumps(rows), "utf-8")


@pytest.mark.parametrize("element_score", [
    evalmuse_row()["element_score"], '{"cat (animal)": [1, 0], "hat": [1, 1]}', {"cat (animal)": [1, 0], "hat": [1, 1]},
])  # fmt: skip
def test_evalmuse_means_its_ratings_and_elements(tmp_path, element_score):
    write_evalmuse(tmp_path, [evalmuse_row(element_score=element_score)])
    assert votes_of(human_votes.read(f"evalmuse:{tmp_path}")) == [
        (ODD, "1.png", "alignment", 4, None), (ODD, "1.png", "elements", 0.75, None)]  # fmt: skip


@pytest.mark.parametrize("element_score", [
    "__import__('pathlib').Path('made').touch()", "{'a': __import__('os').getpid()}", "{'a': [1", "(" * 5000, "{" * 200_000, "", "[]", "7",
    "{}", "{'a': []}", "{'a': [None]}", "{'a': ['1']}", None,
])  # fmt: skip
def test_evalmuse_never_runs_what_a_row_says(tmp_path, monkeypatch, element_score):
    monkeypatch.chdir(tmp_path)
    write_evalmuse(tmp_path, [evalmuse_row(element_score=element_score)])
    with pytest.raises(ValueError, match="element_score is"):
        human_votes.read(f"evalmuse:{tmp_path}")
    assert not (tmp_path / "made").exists()


# ---- TFRecord ---------------------------------------------------------------------------------------------------


def crc_by_division(data: bytes) -> int:
    """CRC-32C by its definition: bits are read low first, the first 32 are inverted, 32 zeros follow, and the remainder of the division by
    the polynomial is inverted and read low first."""
    bits = "".join(f"{byte:08b}"[::-1] for byte in data)
    number = (int(bits, 2) ^ (0xFFFFFFFF << len(bits) - 32)) << 32
    for shift in range(len(bits) + 31, 31, -1):
        if number >> shift & 1:
            number ^= 0x11EDC6F41 << shift - 32
    return int(f"{number ^ 0xFFFFFFFF:032b}"[::-1], 2)


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    crc = crc_by_division(length)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    return length + struct.pack("<I", masked) + record + b"none"  # the last check is not compared


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes, shorter than 16384."""
    size = len(content)
    return bytes([number << 3 | 2]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + content


def example(**features: bytes) -> bytes:
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, content)) for name, content in features.items()))


def byte_list(*values: bytes) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def floats(*values: float) -> bytes:
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))


LITERAL = bytes.fromhex("0a0f 0a0d 0a0173 1208 1206 0a04 0000003f")  # {"s": [0.5]}, written down by the format's definition


def test_the_check_is_castagnolis():
    assert tfrecord.crc32c(b"123456789") == 0xE3069283  # the check value that catalogues of CRCs give
    for data in (bytes(8), b"\xff" * 8, bytes(range(40))):
        assert tfrecord.crc32c(data) == crc_by_division(data)


def test_an_example_is_read_as_protobuf_has_it():
    assert example(s=floats(0.5)) == LITERAL and tfrecord.example(LITERAL) == {"s": [0.5]}
    one_by_one = field(2, b"".join(b"\x0d" + struct.pack("<f", v) for v in (1.5, -2)))
    integers = field(3, field(1, b"\x07\xac\x02" + b"\xff" * 9 + b"\x01"))
    single = field(3, b"\x08\x2a\x08\x01")
    unknown = b"\x18\x01" + b"\x29" + bytes(8) + b"\x35" + bytes(4) + field(7, b"x")  # of later versions
    record = example(b=byte_list(b"\xff" * 300, b""), f=one_by_one, i=integers, j=single, e=b"") + unknown
    assert tfrecord.example(record) == {"b": [b"\xff" * 300, b""], "f": [1.5, -2], "i": [7, 300, -1], "j": [42, 1], "e": []}
    assert tfrecord.example(b"") == {}


@pytest.mark.parametrize("record", [
    b"\x0a\x05abc", b"\x0a", b"\x08\x01", b"\x0b", b"\xff" * 20, LITERAL[:-1], field(1, field(1, field(2, b""))), field(1, b"\x08\x01"),
    example(s=field(2, field(1, b"abc"))), field(1, field(1, field(1, b"\xff\xfe"))),
])  # fmt: skip
def test_a_record_that_is_no_example_is_refused_or_empty(record):
    try:
        assert not tfrecord.example(record)
    except ValueError:
        pass


def test_a_file_of_records(tmp_path):
    file = tmp_path / "t.tfrecord"
    file.write_bytes(framed(LITERAL) + framed(b"\x0a\x05abc") + framed(b"") + framed(LITERAL))
    assert [*tfrecord.examples(file)] == [{"s": [0.5]}, {}, {}, {"s": [0.5]}] and len([*tfrecord.records(file)]) == 4
    whole = file.read_bytes()
    for content, message in ((whole[:-5], "ends within a record"), (whole[:73], "is no TFRecord file after byte 70"),
                             (whole[:3], "is no TFRecord file after byte 0"), (b"version https://git-lfs.github.com/", "git lfs pull"),
                             (whole[:1] + b"\x01" + whole[2:], "is no TFRecord file after byte 0")):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"t.tfrecord.*{message}"):
            list(tfrecord.records(file))
    file.write_bytes(b"")
    assert not list(tfrecord.records(file))


# ---- RichHF-18K -------------------------------------------------------------------------------------------------


def richhf_record(name=b"test/u-0.png", scores=(0.25, 0.5, 0.75, 1.0), **more):
    values = dict(zip(vote_sets.SCORES.values(), map(floats, scores)))
    return example(filename=byte_list(name), artifact_map=byte_list(bytes(300)), **(values | more))


def write_richhf(folder, records, split="test", place="pickapic_v1/data"):
    (folder / f"{split}.tfrecord").write_bytes(b"".join(map(framed, records)))
    rows = {"caption": [ODD, "", "a dog", "a dog"],
            "image_0_uid": ["u-0", "u-2", "u-0", "u-4"], "image_1_uid": ["u-1", "u-3", "u-5", "u-6"],
            "jpg_0": [b"zero", b"two", b"other", None], "jpg_1": [b"one", b"three", b"five", b"six"]}  # fmt: skip
    (folder / place).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / place / f"{vote_sets.PICKAPIC_SPLIT[split]}-00000-of-00001-ab.parquet")


def test_richhf_finds_its_pictures_in_pick_a_pic(tmp_path):
    write_richhf(tmp_path, [richhf_record(), richhf_record(b"u-5.jpg")], "dev")
    table = human_votes.read(f"richhf:{tmp_path}", tmp_path / "out", split="dev")
    assert table.prompt.tolist() == [ODD] * 4 + ["a dog"] * 4 and table.value.tolist() == [0.25, 0.5, 0.75, 1] * 2
    assert table.axis[:4].tolist() == ["aesthetics", "plausibility", "alignment", "overall"]
    contents = [open(path, "rb").read() for path in table.image.unique()]
    assert contents == [b"zero", b"five"] and len(list((tmp_path / "out").iterdir())) == 2


def test_richhf_leaves_out_records_without_scores_or_pictures(tmp_path):
    unknown = [richhf_record(name) for name in (b"u-9.png", b"u-2.png", b"u-4.png", b"\xff.png")]
    no_score = [richhf_record(b"u-1.png", overall_score=b""), richhf_record(b"u-6.png", scores=(float("nan"),) * 4)]
    records = [richhf_record(), b"\x0a\x05abc", *unknown, *no_score]
    write_richhf(tmp_path, records, place="pickapic_v1")
    with pytest.warns(UserWarning, match="7 of 8 rows are left out"):
        table = human_votes.read(f"richhf:{tmp_path}", tmp_path / "out")
    assert len(table) == 4 and table.attrs["left_out"] == {
        "the record has no filename": 1, "the filename is no picture of Pick-a-Pic v1": 4, "overall_score is no number": 1,
        "aesthetics_score is no number": 1}  # fmt: skip


def test_richhf_says_what_it_needs(tmp_path):
    write_richhf(tmp_path, [richhf_record()])
    with pytest.raises(ValueError, match="test.tfrecord keeps its pictures inside its tables: give `out`"):
        human_votes.read(f"richhf:{tmp_path}")
    next((tmp_path / "pickapic_v1/data").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="RichHF-18K has no pictures; download yuvalkirstain/pickapic_v1"):
        human_votes.read(f"richhf:{tmp_path}", tmp_path / "out")


# ---- shared -----------------------------------------------------------------------------------------------------


def test_a_picture_inside_a_table_is_written_once_and_no_path_is_followed(tmp_path):
    first = vote_rows.write_picture({"bytes": b"x", "path": "/etc/hostname"}, tmp_path / "out")
    changed = (tmp_path / "out").stat().st_mtime_ns
    assert vote_rows.write_picture(b"x", tmp_path / "out") == first and (tmp_path / "out").stat().st_mtime_ns == changed
    for cell in (None, b"", {"bytes": None, "path": "/etc/hostname"}, "/etc/hostname", 7):
        with pytest.raises(ValueError, match="a picture is missing"):
            vote_rows.write_picture(cell, tmp_path / "out")
