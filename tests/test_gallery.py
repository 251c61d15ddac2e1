"""A collection of pictures: every source, scores that are kept, a page that a browser sorts."""

import re
import shutil
import subprocess

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from icthp import gallery, geneval, pictures, scores


@pytest.fixture
def folder(tmp_path):
    """Five readable pictures of two sizes and a broken one."""
    draw = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for i in range(5):
        Image.fromarray(draw.integers(0, 256, (40 + 20 * (i % 2), 60, 3), dtype=np.uint8)).save(tmp_path / f"mine/{i}.png")
    (tmp_path / "mine/9.png").write_bytes((tmp_path / "mine/0.png").read_bytes()[:50])
    return tmp_path / "mine"


@pytest.fixture
def loaded(clip_folder):
    source = f"local-dir:{clip_folder}"
    return {"clip": scores.load("clip", source), "jpeg": scores.load("jpeg")}


def with_prompts(folder):
    table = gallery.read(str(folder), folder)
    table["prompt"] = ["a red circle", None, "a blue star", "a blue star", "", "a cat"]
    return table.assign(prompt=table.prompt.replace({"": None}))


def test_every_score_is_the_scorers_own(folder, loaded, tmp_path):
    """In shards and groups of one size, as one picture at a time; empty where a prompt or the picture is missing."""
    table = gallery.score(loaded, with_prompts(folder), tmp_path / "store", shard=4)
    assert "9.png" in table.error[5] and table.error[:5].isna().all() and table.loc[5, ["clip", "jpeg"]].isna().all()
    assert table["clip"].isna().tolist() == [False, True, False, False, True, True]
    for _, row in table[:5].iterrows():
        pixels = pictures.to_pixels(row.image)[None]
        assert row.jpeg == pytest.approx(loaded["jpeg"].score(pixels).item(), rel=1e-6)
        if isinstance(row.prompt, str):
            assert row["clip"] == pytest.approx(loaded["clip"].score(pixels, [row.prompt]).item(), abs=2e-3)  # resized as bytes


def test_an_interrupted_run_scores_no_picture_twice(folder, loaded, tmp_path, monkeypatch):
    table, calls, own = with_prompts(folder), [], gallery._scored

    def counted(scorers, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(scorers, rows)

    monkeypatch.setattr(gallery, "_scored", counted)
    with pytest.raises(KeyboardInterrupt):
        gallery.score(loaded, table, tmp_path / "store", shard=2)
    whole = gallery.score(loaded, table, tmp_path / "store", shard=2)
    assert calls == [2, 2, 2, 2]
    again = gallery.score(loaded, table, tmp_path / "store", shard=2)
    assert len(calls) == 4
    pd.testing.assert_frame_equal(whole, again)
    Image.new("RGB", (8, 8)).save(folder / "0.png")  # another picture under the same name, another prompt, other weights
    assert gallery.score(loaded, table, tmp_path / "store", shard=2).jpeg[0] != whole.jpeg[0] and len(calls) == 5
    gallery.score(loaded, table.assign(prompt="a green heart"), tmp_path / "store", shard=6)
    gallery.score({"jpeg": loaded["jpeg"]}, table, tmp_path / "store", shard=6)
    assert len(calls) == 7
    whole = gallery.score(loaded, table, tmp_path / "store", shard=6)
    loaded["clip"].model.text_projection.data += 0.1  # trained anew, in the same folder
    again = gallery.score(loaded, whole, tmp_path / "store", shard=6)  # a table that has been scored before
    assert len(calls) == 9 and list(again) == list(whole) and again["clip"][0] != whole["clip"][0] and again.jpeg.equals(whole.jpeg)
    with pytest.raises(ValueError, match="no picture"):
        gallery.score(loaded, table[:0], tmp_path / "store")


def test_sources(folder, tmp_path):
    """GenEval's layout, a dataset on disk, and what is neither."""
    rows = [{"tag": "colors", "include": [], "prompt": "a red bear"}]
    geneval.write_folder(tmp_path / "drawn", [Image.new("RGB", (9, 9))] * 2, rows * 2)
    table = gallery.read(str(tmp_path / "drawn"), tmp_path)
    assert list(table) == ["image", "prompt"] and table.prompt.tolist() == ["a red bear"] * 2

    files = [str(folder / f"{i}.png") for i in range(3)]
    rows = datasets.Dataset.from_dict({"image": files, "prompt": ["a", "b", "c"]}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "set/data/test-0.parquet")
    for _ in range(2):  # the second time the files are there
        table = gallery.read(f"dataset:{tmp_path / 'set'}:test", tmp_path / "out")
        assert table.prompt.tolist() == ["a", "b", "c"] and len(list((tmp_path / "out/pictures").iterdir())) == 3
        assert all(torch.equal(pictures.read(a), pictures.read(b)) for a, b in zip(table.image, files))
    with pytest.raises(ValueError, match="no column `image`; it has text"):
        datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "texts/test.parquet")
        gallery.read(f"dataset:{tmp_path / 'texts'}:test", tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        gallery.read(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(ValueError, match="names no split: say dataset:NAME:SPLIT"):
        gallery.read("dataset:name", tmp_path)


def test_the_summary_says_what_a_number_compares(folder, loaded, tmp_path):
    said = gallery.summary(loaded, gallery.score(loaded, with_prompts(folder), tmp_path / "store"))
    assert "not of different ones" in said.compares["clip"] and said.compares["jpeg"] == "compares any pictures"
    assert said.number["jpeg"] == "kB at quality 95" and said["count"].tolist() == [3, 5]


def test_the_page_is_one_file_that_escapes_what_it_shows(folder, loaded, tmp_path):
    table = with_prompts(folder)
    table.loc[0, "prompt"] = '<script>alert("x")</script>'
    table = gallery.score(loaded, table, tmp_path / "store")
    page = gallery.write_html(tmp_path / "g.html", loaded, table, "mine & yours", "jpeg").read_text(encoding="utf-8")
    assert page.count("<figure ") == 5 and "alert(&quot;x" in page and 'alert("x' not in page and "mine &amp; yours" in page
    order = [float(v) for v in re.findall(r'data-jpeg="([0-9.e+-]+)"', page)]
    assert order == sorted(order, reverse=True) and len(order) == 5 and "http" not in page.replace("data:image", "")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_sorts_the_page(folder, loaded, tmp_path):
    table = gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    file = gallery.write_html(tmp_path / "g.html", loaded, table, "mine", "jpeg")
    press = "<script>document.querySelector('button[data-score=clip]').click()</script></body>"
    file.write_text(file.read_text(encoding="utf-8").replace("</body>", press))
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{file}",
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    names = re.findall(r"<br>(\d\.png)</figcaption>", page)
    best = table[table["clip"].notna()].sort_values("clip", ascending=False).image.str[-5:].tolist()
    by_size = table[table.error.isna()].sort_values("jpeg", ascending=False).image.str[-5:].tolist()
    assert names[:3] == best and len(names) == 5 and names != by_size
    assert 'data-score="clip" aria-pressed="true"' in page and 'data-score="jpeg" aria-pressed="false"' in page


def test_scores_of_another_recipe_are_not_taken_from_the_store(folder, loaded, tmp_path):
    """The same weights, counted otherwise."""
    table = gallery.read(str(folder), folder)
    one, ten = (scores.CombinedScorer([(loaded["jpeg"], weight, None, None)]) for weight in (1.0, 10.0))
    first, second = (gallery.score({"mine": s}, table, tmp_path / "store").mine.dropna() for s in (one, ten))
    assert np.allclose(second, 10 * first) and len(first) == 5
