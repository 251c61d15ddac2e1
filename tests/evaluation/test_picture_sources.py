"""Folders of pictures with prompts beside them: which file speaks for a picture, what is skipped, and that nothing outside is read."""

import json
import os
from pathlib import Path

import datasets
import pandas as pd
import pytest
from geneval_layout import write_folder
from PIL import Image

from icthp.evaluation import gallery, picture_sources
from icthp.scorers import loading


@pytest.fixture
def album(tmp_path):
    return tmp_path / "album"


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(file)


def text(file, contents):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(contents) if isinstance(contents, bytes) else file.write_text(contents, encoding="utf-8")


def prompts(album, **options):
    """{path below the album: prompt}, and the table."""
    table = picture_sources.read_folder(album, **options)
    names = [os.path.relpath(image, album) for image in table.image]
    return dict(zip(names, table.prompt)), table


# ---- folders --------------------------------------------------------------------------------------------------------


def test_folders_inside_folders_are_read_and_what_is_hidden_is_counted(album):
    for name in ("a.png", "b/c.png", "b/d/e.png", ".f.png", ".g/h.png", "out/i.png"):
        picture(album / name)
    text(album / "b/notes.txt", "x")
    text(album / "b/README", "x")
    found, table = prompts(album, out=album / "out")
    assert list(found) == ["a.png", "b/c.png", "b/d/e.png"] and table.folder.tolist() == [".", "b", "b/d"]
    skipped = ("hidden files", "hidden folders", "the folder of results", "files that end in .txt", "files without an ending")
    assert table.attrs == {"problems": [], "left_out": dict.fromkeys(skipped, 1)}


def test_results_written_into_the_folder_itself_hide_nothing(album):
    picture(album / "a.png")
    assert len(picture_sources.read_folder(album, out=album)) == 1


def test_no_link_leads_out_of_the_folder(album, tmp_path):
    for name in ("album/a.png", "outside/secret.png", "album/b/c.png"):
        picture(tmp_path / name)
    text(tmp_path / "outside/secret.txt", "the secret")
    links = {"stolen.png": "outside/secret.png", "a.txt": "outside/secret.txt", "prompt.txt": "outside/secret.txt",
             "metadata.csv": "outside/secret.txt", "folder": "outside", "own.png": "album/b/c.png", "back": "album"}  # fmt: skip
    for name, target in links.items():
        (album / name).symlink_to(tmp_path / target)
    (album / "loop.png").symlink_to(album / "loop.png")
    found, table = prompts(album)
    assert found == {"a.png": None, "loop.png": None, "own.png": None, "b/c.png": None}
    assert table.attrs["left_out"] == {"links to folders": 2, "links that lead out of the folder": 1}
    assert sorted(table.attrs["problems"]) == [f"{name} is a link that leads out of the folder, and is not read"
                                               for name in ("a.txt", "metadata.csv", "prompt.txt")]  # fmt: skip


def test_a_folder_that_is_a_link_itself_is_read(album, tmp_path):
    picture(album / "b/c.png")
    (tmp_path / "link").symlink_to(album)
    assert picture_sources.read_folder(tmp_path / "link").folder.tolist() == ["b"]


def test_a_pipe_is_no_prompt(album):
    picture(album / "a.png")
    os.mkfifo(album / "a.txt")
    found, table = prompts(album)
    assert found == {"a.png": None} and table.attrs["problems"] == ["a.txt is no regular file, and is not read"]


def test_names_that_are_not_utf8_are_text_everywhere(album):
    picture(album / "a.png")
    place = os.path.join(os.fsencode(album), b"\xff")
    os.mkdir(place)
    os.rename(album / "a.png", os.path.join(place, b"\xfe.png"))
    with open(os.path.join(place, b"\xfe.txt"), "wb"):
        pass
    _, table = prompts(album)
    assert table.folder.tolist() == ["\\xff"] and table.attrs["problems"][0].startswith("\\xff/\\xfe.txt is empty")
    table.to_parquet(album / "t.parquet")


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_the_nearest_file_speaks_for_a_picture(album):
    """Its own text, then a table of its folder, a table above, the text of its folder, a text above."""
    for name in ("a.png", "a.jpg", "b.png", "x/c.png", "x/d.png", "x/e.png", "x/y/f.png", "x/y/g.png"):
        picture(album / name)
    text(album / "prompt.txt", "root\n")
    text(album / "a.txt", "\ufeff  own \r\n")
    text(album / "metadata.csv", "file_name,text\na.png,of the table\nx/c.png,from above\nx/d.png,from above\nx/y/f.png,\n")
    text(album / "x/metadata.jsonl", json.dumps({"file_name": "d.png", "prompt": "beside"}))
    text(album / "x/y/prompt.txt", "y, two\nlines")
    found, table = prompts(album)
    assert found == {"a.jpg": "own", "a.png": "own", "b.png": "root", "x/c.png": "from above", "x/d.png": "beside", "x/e.png": "root",
                     "x/y/f.png": "y, two\nlines", "x/y/g.png": "y, two\nlines"}  # fmt: skip
    assert not table.attrs["problems"] and not table.attrs["left_out"]


@pytest.mark.parametrize("columns, expected", [
    ({"caption": "c"}, "c"), ({"text": "t", "caption": "c"}, "t"), ({"caption": "c", "text": "t", "prompt": "p"}, "p")])  # fmt: skip
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_prompt_comes_before_text_before_caption(album, columns, expected, ending):
    picture(album / "a.png")
    frame = pd.DataFrame([{"file_name": "a.png"} | columns])
    frame.to_csv(album / "metadata.csv", index=False) if ending == "csv" else frame.to_json(
        album / "metadata.jsonl", orient="records", lines=True
    )
    assert prompts(album)[0] == {"a.png": expected}


def test_the_same_rows_as_imagefolder_reads(album, tmp_path):
    for i in range(3):
        picture(album / f"train/{i}.png")
    text(album / "train/metadata.csv", 'file_name,text\n0.png,"one, two"\n./1.png,b\n2.png,c\n')
    ours = prompts(album)[0]
    rows = datasets.load_dataset("imagefolder", data_dir=str(album), split="train", cache_dir=str(tmp_path / "cache"))
    assert [ours[f"train/{i}.png"] for i in range(3)] == rows["text"][:]


BAD = {
    "is empty": b"", "is empty:": b" \n\t", "byte 3 of the file is not UTF-8": b"a \xff",
    "has 20,001 bytes; what holds prompts has at most 20,000": b"a" * 20_001,
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("name", ["a.txt", "prompt.txt"])
def test_a_prompt_that_cannot_be_used_is_named_and_stops_nothing(album, reason, name):
    """It is not replaced by a prompt from further away, which may be another's."""
    for file in ("a.png", "x/b.png"):
        picture(album / "sub" / file)
    text(album / "prompt.txt", "from above")
    text(album / "sub/x/prompt.txt", "own")
    text(album / "sub" / name, BAD[reason])
    found, table = prompts(album)
    assert found == {"sub/a.png": None, "sub/x/b.png": "own"}
    [problem] = table.attrs["problems"]
    assert problem.startswith(f"sub/{name}") and reason in problem and "\n" not in problem


TABLES = {
    "line 2 has 3 cells": "file_name,text\na.png,b,c\n",
    "needs the columns file_name and one of prompt, text, caption; it has image, text": "image,text\na.png,b\n",
    "it has file_name": "file_name\na.png\n", "has a column twice": "file_name,text,text\na.png,b,c\n", "is empty": "",
    "is not UTF-8": b"file_name,text\na,\xff",
    "lies outside of the table's folder, in rows: 2; the first names '../x.png'": "file_name,text\n../x.png,b\n/etc/x.png,c\n",
    "names no file, in rows: 1": "file_name,text\n,b\n",
    "names files that are no pictures of this folder: 2; the first is 'n.png'": "file_name,text\nn.png,b\nz.png,c\n",
    "the prompt has more than 20,000 characters, in rows: 1": f"file_name,text\na.png,{'b' * 20_001}\n",
}  # fmt: skip


@pytest.mark.parametrize("reason", TABLES)
def test_a_table_that_cannot_be_used_is_named_and_stops_nothing(album, reason):
    for name in ("x.png", "sub/a.png", "sub/b.png"):
        picture(album / name)
    text(album / "sub/b.txt", "own")
    text(album / "sub/metadata.csv", TABLES[reason])
    found, table = prompts(album)
    assert found == {"x.png": None, "sub/a.png": None, "sub/b.png": "own"}
    [problem] = table.attrs["problems"]
    assert problem.startswith("sub/metadata.csv") and reason in problem and "\n" not in problem


@pytest.mark.parametrize("row, reason", [
    ('{"file_name": "a.png", "text": 7}', "the prompt is no text"), ('{"file_name": "a.png", "text": "\\ud800"}', "half a character"),
    ('{"file_name": ["a.png"], "text": "b"}', "names no file"), ("[1]", "line 1 is no JSON object"), ("{", "line 1 is no JSON"),
    ('{"file_name": "\\ud800\\u0000.png", "text": "b"}', "no pictures of this folder"),
    ('{"file_name": "x/../../a.png", "text": "b"}', "outside of the table's folder")])  # fmt: skip
def test_odd_rows_of_jsonl(album, row, reason):
    picture(album / "a.png")
    text(album / "metadata.jsonl", row)
    found, table = prompts(album)
    assert found == {"a.png": None} and reason in " ".join(table.attrs["problems"])
    table.to_parquet(album / "t.parquet")


def test_only_what_cannot_be_resolved_is_refused(album):
    """Tables of one folder that contradict each other; not where they agree, nor where the picture's own text decides."""
    for name in "abcd":
        picture(album / f"{name}.png")
    text(album / "metadata.csv", "file_name,text\na.png,one\nb.png,one\nc.png,one\nd.png,one\nd.png,two\n")
    rows = [json.dumps({"file_name": name, "text": prompt}) for name, prompt in (("a.png", "two"), ("b.png", "one"), ("c.png", "two"))]
    text(album / "metadata.jsonl", "\n".join(rows))
    text(album / "c.txt", "own")
    found, table = prompts(album)
    assert found == {"a.png": None, "b.png": "one", "c.png": "own", "d.png": None}
    assert table.attrs["problems"] == [
        "a.png has no prompt, for there are 2 different ones in metadata.csv and metadata.jsonl; keep one",
        "d.png has no prompt, for there are 2 different ones in metadata.csv; keep one",
    ]


def test_a_picture_called_prompt_has_the_prompt_of_its_folder(album):
    picture(album / "prompt.png")
    text(album / "prompt.txt", "a star")
    assert prompts(album)[0] == {"prompt.png": "a star"}


# ---- what else is a source --------------------------------------------------------------------------------------------


def test_geneval_and_numbered_folders_with_tables_are_told_apart(album, tmp_path):
    rows = [{"tag": "colors", "include": [], "prompt": "a red bear"}]
    write_folder(tmp_path / "drawn", [Image.new("RGB", (9, 9))] * 2, rows * 2)
    assert list(gallery.read(str(tmp_path / "drawn"), tmp_path)) == ["image", "prompt"]
    picture(album / "0/a.png")
    text(album / "0/metadata.jsonl", json.dumps({"file_name": "a.png", "text": "a star"}))
    assert gallery.read(str(album), tmp_path).prompt.tolist() == ["a star"]


def test_prompts_and_folders_reach_the_scores(album, tmp_path):
    picture(album / "x/a.png")
    text(album / "x/a.txt", "")
    jpeg = {"jpeg": loading.load("jpeg")}
    table = gallery.score(jpeg, gallery.read(str(album), album / "out"), album / "out/work")
    assert table.folder.tolist() == ["x"] and Path(table.image[0]).is_file()
    assert "Prompts: x/a.txt is empty: write a prompt into it, or delete it." in gallery.account(jpeg, table)
    assert len(gallery.read(str(album), album / "out")) == 1  # what has been written into it since is not read
