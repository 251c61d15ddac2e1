"""A collection of pictures: every source, cached scores, numbers that mean nothing, a page that a browser sorts and groups."""

import html
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from geneval_layout import write_folder
from PIL import Image

from browser import IS_THERE, Browser
from conftest import ROOT
from icthp import files, images
from icthp.evaluation import gallery, gallery_page
from icthp.scorers import aesthetic, base, combined, hp, hub, loading


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
    return {"clip": loading.load("clip", source), "jpeg": loading.load("jpeg")}


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
        pixels = images.to_pixels(row.image)[None]
        assert row.jpeg == pytest.approx(loaded["jpeg"].score(pixels).item(), rel=1e-6)
        if isinstance(row.prompt, str):
            assert row["clip"] == pytest.approx(loaded["clip"].score(pixels, [row.prompt]).item(), abs=2e-3)  # resized as bytes


def test_an_interrupted_run_scores_no_picture_twice(folder, loaded, tmp_path, monkeypatch):
    table = with_prompts(folder)
    calls = []
    scored = gallery._scored

    def counted(scorers, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(scorers, rows)

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
    write_folder(tmp_path / "drawn", [Image.new("RGB", (9, 9))] * 2, rows * 2)
    table = gallery.read(str(tmp_path / "drawn"), tmp_path)
    assert list(table) == ["image", "prompt"] and table.prompt.tolist() == ["a red bear"] * 2

    files = [folder / f"{i}.png" for i in range(3)]
    contents = [{"bytes": file.read_bytes(), "path": None} for file in files]
    rows = datasets.Dataset.from_dict({"image": contents, "prompt": ["a", "b", "c"]}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "set/data/test-0.parquet")
    for _ in range(2):  # the second time the files are there
        table = gallery.read(f"dataset:{tmp_path / 'set'}:test", tmp_path / "out")
        assert table.prompt.tolist() == ["a", "b", "c"] and len(list((tmp_path / "out/pictures").iterdir())) == 3
        assert all(torch.equal(images.read(a), images.read(b)) for a, b in zip(table.image, files))
    with pytest.raises(ValueError, match="no column `image`; it has text"):
        datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "texts/test.parquet")
        gallery.read(f"dataset:{tmp_path / 'texts'}:test", tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        gallery.read(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(ValueError, match="names no split: say dataset:NAME:SPLIT"):
        gallery.read("dataset:name", tmp_path)


def test_the_summary_says_what_a_number_compares(folder, loaded, tmp_path):
    summary = gallery.summary(loaded, gallery.score(loaded, with_prompts(folder), tmp_path / "store"))
    assert "not of different ones" in summary.compares["clip"] and "one size" in summary.compares["jpeg"]
    assert summary.number["jpeg"] == "kB at quality 95" and summary["count"].tolist() == [3, 5]
    scorers = {"jpeg": hp.HpScorer(loaded["clip"], hp.make_head(16)).eval()}  # in name alone
    table = gallery.score(scorers, with_prompts(folder), tmp_path)
    assert gallery.summary(scorers, table).compares.jpeg == f"{gallery.ACROSS} of the microworld"
    assert not any("one size" in line for line in gallery.account(scorers, table))


def test_a_size_in_bytes_warns_where_the_pictures_have_several(folder, loaded, tmp_path):
    """Alone, and as a part of a combined score; not where all have one size."""
    mixed = combined.CombinedScorer([(loaded["clip"], 1.0, None, None), (loaded["jpeg"], -0.1, None, None)])
    scorers = {"jpeg": loaded["jpeg"], "mixed": mixed}
    table = gallery.score(scorers, with_prompts(folder), tmp_path / "store")
    assert table["pixels"].tolist()[:5] == ["60 x 40", "60 x 60"] * 2 + ["60 x 40"]
    assert any(line.startswith("Sizes: 2. jpeg, mixed compares") for line in gallery.account(scorers, table))
    page = gallery_page.write_html(tmp_path / "g.html", scorers, table, "t").read_text(encoding="utf-8")
    assert "Sizes: 2. jpeg, mixed compares" in page
    assert not any("Sizes" in line for line in gallery.account(scorers, table[table["pixels"] != "60 x 40"]))


def test_the_page_is_one_file_that_escapes_what_it_shows(folder, loaded, tmp_path):
    table = with_prompts(folder)
    table.loc[0, "prompt"] = '<script>alert("x")</script>'
    table = gallery.score(loaded, table, tmp_path / "store")
    page = gallery_page.write_html(tmp_path / "g.html", loaded, table, "mine & yours", "jpeg").read_text(encoding="utf-8")
    assert page.count("<figure ") == 5 and "alert(&quot;x" in page and 'alert("x' not in page and "mine &amp; yours" in page
    order = [float(v) for v in re.findall(r'data-jpeg="([0-9.e+-]+)"', page)]
    assert order == sorted(order, reverse=True) and len(order) == 5 and not re.search("https?:|//[a-z]+[.]", page)


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        yield browser


FIGURES = "[...document.querySelectorAll('main figure')].filter(f => !f.hidden)"
HEADS = "[...document.querySelectorAll('main h2')].map(h => h.textContent)"


@pytest.mark.skipif(not IS_THERE, reason="needs chromium")
def test_a_browser_sorts_groups_and_hides(folder, loaded, tmp_path, browser):
    """By mouse and keyboard; pictures keep their shape; a phone shows all of the width; nothing is fetched and no foreign script runs."""
    evil = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>'
    table = with_prompts(folder)
    table["prompt"] = [evil, None, "a blue star", "a blue star", None, "a cat"]
    table = gallery.score(loaded, table.assign(folder=["x", "x", "y", "y", "y", "y"]), tmp_path / "store")
    file = gallery_page.write_html(tmp_path / "g.html", loaded, table, "mine", "jpeg")
    file.write_text(file.read_text(encoding="utf-8").replace("</body>", "<script>window.evil = 1</script></body>"), encoding="utf-8")
    browser("Emulation.setDeviceMetricsOverride", width=400, height=900, deviceScaleFactor=1, mobile=True)
    browser("Page.navigate", url=f"file://{file}")
    browser.wait("document.readyState == 'complete' && !!document.querySelector('main section')", 30)
    names = lambda: [name[-5:] for name in browser.run(f"{FIGURES}.map(f => f.querySelector('.name').textContent)")]
    best = lambda name: [i[-5:] for i in table[table[name].notna()].sort_values(name, ascending=False).image]
    assert names() == best("jpeg") and len(names()) == 5 and browser.run(HEADS) == []
    browser.run("document.querySelector('button[data-score=clip]').focus()")
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r" * (kind == "keyDown"))
    assert names() == best("clip") and len(names()) == 3
    assert "3 of 5 pictures" in browser.run("document.querySelector('#shown').textContent")
    assert browser.run("document.querySelector('[aria-pressed=true]').dataset.score") == "clip"
    browser.run("document.querySelector('button[data-score=jpeg]').click(); document.querySelector('button[data-group=prompt]').click()")
    assert browser.run(HEADS) == [evil, "no prompt", "a blue star"] and len(names()) == 5
    browser.run("document.querySelector('button[data-group=folder]').click()")
    assert browser.run(HEADS) == ["x", "y"] and names()[:2] == [name for name in best("jpeg") if name in ("0.png", "1.png")]
    assert browser.run("window.evil") is None and browser.run("fetch('data:,x').then(() => 1, () => 0)") == 0
    assert browser.run("document.documentElement.scrollWidth <= 400")
    assert browser.run("[...document.images].every(i => getComputedStyle(i).objectFit == 'contain')")


def test_scores_of_another_recipe_are_not_taken_from_the_store(folder, loaded, tmp_path):
    """The same weights, counted otherwise."""
    table = gallery.read(str(folder), folder)
    one, ten = (combined.CombinedScorer([(loaded["jpeg"], weight, None, None)]) for weight in (1.0, 10.0))
    first, second = (gallery.score({"mine": s}, table, tmp_path / "store").mine.dropna() for s in (one, ten))
    assert np.allclose(second, 10 * first) and len(first) == 5


# ---- the store --------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The number of rows of each shard that is scored, not read."""
    calls = []
    scored = gallery._scored
    monkeypatch.setattr(gallery, "_scored", lambda scorers, rows: calls.append(len(rows)) or scored(scorers, rows))
    return calls


def test_contents_decide_what_is_scored_anew(folder, loaded, tmp_path, counted, monkeypatch):
    """Not a file's time or place; but the code, the libraries' versions and the contents do."""
    first = gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    os.utime(folder / "0.png", (0, 0))
    shutil.copytree(folder, tmp_path / "moved")
    moved = gallery.score(loaded, with_prompts(tmp_path / "moved"), tmp_path / "store")
    assert counted == [6] and moved["clip"].equals(first["clip"]) and "moved/9.png cannot be read" in moved.error[5]
    code = gallery.files.code
    monkeypatch.setattr(gallery.files, "code", lambda *modules: code(*modules) + "edited")
    gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    monkeypatch.setattr(gallery.files, "code", code)
    monkeypatch.setattr(gallery.importlib.metadata, "version", lambda name: "0" if name == "pillow" else "1")
    gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    assert counted == [6] * 3


@pytest.mark.slow
def test_the_key_holds_all_code_that_a_score_depends_on(tmp_path, monkeypatch):
    """A change of any module that scorers and the reader import, directly or not, is another key; of one that they do not, the same."""
    shutil.copytree(ROOT / "lib/icthp", tmp_path / "icthp")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "icthp/files.py"))

    def key():
        files.code.cache_clear()
        return gallery._version({})[0]

    first = key()
    for module in ("images", "preprocessing", "tables", "losses", "kernels/resize", "scorers/hub", "evaluation/gallery"):
        with open(tmp_path / f"icthp/{module}.py", "a", encoding="utf-8") as file:
            file.write("\nANOTHER = 1\n")
        assert key() != first, module
        first = key()
    for module in ("trainer", "tuning/draft", "microworld/scenes"):
        (tmp_path / f"icthp/{module}.py").write_text("ANOTHER = 1\n", encoding="utf-8")
    assert key() == first
    files.code.cache_clear()


def test_four_threads_share_a_store(folder, loaded, tmp_path):
    table = with_prompts(folder)
    alone = gallery.score(loaded, table, tmp_path / "alone", shard=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: gallery.score(loaded, table, tmp_path / "store", shard=1), range(16)))
    assert all(t.equals(alone) for t in found)
    assert not [f for f in (tmp_path / "store").iterdir() if "partial" in f.name]


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_shard_that_was_cut_is_made_anew(folder, loaded, tmp_path, counted, share):
    whole = gallery.score(loaded, with_prompts(folder), tmp_path / "store", shard=2)
    for file in (tmp_path / "store").iterdir():
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    again = gallery.score(loaded, with_prompts(folder), tmp_path / "store", shard=2)
    pd.testing.assert_frame_equal(whole, again)
    gallery.score(loaded, with_prompts(folder), tmp_path / "store", shard=2)
    assert counted == [2] * 6


# ---- the outcome ------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_cut_is_reported_everywhere(folder, loaded, tmp_path):
    """In the table, the summary, the account and on the page; by every scorer that reads prompts, whatever it is made of."""
    long = "a red circle left of a blue square " * 30
    both = combined.IctHpScorer(loaded["clip"], hp.HpScorer(loaded["clip"], hp.make_head(16)).eval())
    mixed = combined.CombinedScorer([(loaded["jpeg"], 1.0, None, None), (both, 1.0, None, None)])
    scorers = loaded | {"both": both, "mixed": mixed, "hp": both.hp}
    table = with_prompts(folder).assign(prompt=[long, "a star", None, long + "and a heart", "a star", long])
    table = gallery.score(scorers, table, tmp_path / "store")
    assert table["cut"].fillna("").tolist() == ["clip, both, mixed", "", "", "clip, both, mixed", "", "clip, both, mixed"]
    assert gallery.summary(scorers, table)["prompts cut"].to_dict() == {"clip": 3, "jpeg": 0, "both": 3, "mixed": 3, "hp": 0}
    assert sum("cut to its length: 3." in line for line in gallery.account(scorers, table)) == 3
    page = gallery_page.write_html(tmp_path / "g.html", scorers, table, "t").read_text(encoding="utf-8")
    assert page.count("clip, both, mixed read") == page.count('title="not read by clip, both, mixed"') == 2


def test_the_cut_falls_behind_the_longest_beginning_that_is_read(loaded):
    """One character more, and the scorer would cut that beginning too; a mark stands there on the page."""
    long = ["a red circle left of a blue square " * 4, "ferraris & <b>cars</b> " * 4, "a star"]
    *lengths, whole = gallery.read_lengths(loaded["clip"], long)
    assert whole is None and gallery.read_lengths(loaded["jpeg"], long) == [None] * 3
    for prompt, n in zip(long, lengths):
        assert loaded["clip"].is_truncated([prompt[:n], prompt[: n + 1]]).tolist() == [False, True]
    assert lengths[0] > 2 * lengths[1] > 0  # a word of the world is a token, a foreign one a token a letter
    row = {"prompt": long[1], "cut": "clip, ict", "cut_at": f"{lengths[1]}, {lengths[1] + 12}"}
    page = gallery_page._prompt(row)
    parts = [html.unescape(text) for pair in re.findall(r'<span class="unread" title="([^"]*)">([^<]*)<', page) for text in pair]
    first, second = long[1][lengths[1] : lengths[1] + 12], long[1][lengths[1] + 12 :]
    assert parts == ["not read by clip", first, "not read by clip, ict", second]
    assert f"clip read {lengths[1]} of 92 characters; ict read {lengths[1] + 12} of 92 characters" in page and "<b>" not in page


# ---- meaning ----------------------------------------------------------------------------------------------------


def test_micro_scorers_are_known_by_card_or_vocabulary(loaded, tmp_path):
    """Wherever their folder lies, and as a part of another scorer."""
    clip = loaded["clip"]
    head = hp.HpScorer(clip, hp.make_head(16, "affine")).eval()
    parts = [(loaded["jpeg"], 1.0, None, None), (clip, 1.0, None, None)]
    micro = [clip, head, head.fold(), combined.IctHpScorer(clip, head), combined.CombinedScorer(parts),
             aesthetic.AestheticScorer(clip, torch.nn.Linear(16, 1))]  # fmt: skip
    assert all(map(gallery.is_micro, micro)) and not gallery.is_micro(loaded["jpeg"]) and not gallery.is_micro(Odd())
    clip.architecture["text_cfg"]["vocab_size"] = 49_408  # as of a published CLIP
    assert not any(map(gallery.is_micro, micro))
    for scale, expected in (("micro", True), ("smoke", True), ("lab", False), ("paper", False)):
        hub.write_model_card(tmp_path / scale, "ict", scale, {"base": "ViT-B-32/laion2b"}, {})
        assert gallery.is_micro(clip.with_card(tmp_path / scale)) is expected
    clip.architecture = None
    assert not gallery.is_micro(clip)


@pytest.mark.skipif(not (ROOT / "data/hub/clip").exists(), reason="needs `dvc pull`")
def test_the_projects_own_models_are_micro():
    assert all(gallery.is_micro(loading.load(name, f"local-dir:{ROOT / 'data/hub' / name}")) for name in ("clip", "pickscore"))
    if (ROOT / "models/hp/hp.safetensors").exists():
        assert gallery.is_micro(loading.load("hp", str(ROOT / "models/hp")))


def test_a_number_that_means_nothing_is_marked_everywhere(folder, loaded, tmp_path):
    """In the table that is kept, in the one that is shown, in the summary, the account and under each picture; never one of JPEG's."""
    scorers = loaded | {"hp": hp.HpScorer(loaded["clip"], hp.make_head(16)).eval()}
    own = lambda prompt: prompt == "a blue star"
    table = gallery.score(scorers, with_prompts(folder), tmp_path / "store", is_sentence=own)
    assert table.meaningless.fillna("").tolist() == ["clip, hp", "clip, hp", "", "", "clip, hp", "clip, hp"]
    table.to_parquet(tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet").meaningless.isna().tolist() == table.meaningless.isna().tolist()
    counts = gallery.summary(scorers, table)
    assert counts.meaningless.to_dict() == {"clip": 1, "jpeg": 0, "hp": 3} and counts["count"].to_dict() == {"clip": 3, "jpeg": 5, "hp": 5}
    assert counts["max"].hp == table.hp[2:4].max() and counts["max"].jpeg == table.jpeg.max()
    shown = gallery_page.marked(scorers, table)
    assert [text.endswith(gallery.MARK) for text in shown.hp] == [True, True, False, False, True, False] and shown.hp[5] == ""
    assert not shown.jpeg.str.contains(gallery.MARK).any() and shown["clip"][0].endswith(gallery.MARK)
    assert any("meaningless here: clip, hp." in line and "4 of 6 pictures" in line for line in gallery.account(scorers, table))
    page = gallery_page.write_html(tmp_path / "g.html", scorers, table, "t", "hp").read_text(encoding="utf-8")
    for figure in page.split("<figure ")[1:]:
        numbers = re.findall(r'<li(?: class="(void)")? data-of="(\w+)"', figure)
        void = "" if "a blue star" in figure else "void"
        assert numbers == [(void if name != "jpeg" else "", name) for _, name in numbers] and len(numbers) >= 2
    assert page.count('class="warning"') == 1 and page.count(f"<s>0.12</s> {gallery.MARK}") == 1


def test_without_a_grammar_no_number_of_a_micro_scorer_means_anything(folder, loaded, tmp_path):
    table = gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    assert (table.meaningless == "clip").all() and np.isnan(gallery.summary(loaded, table)["max"]["clip"])
    jpeg = {"jpeg": loaded["jpeg"]}
    table = gallery.score(jpeg, table, tmp_path / "store")
    assert table.meaningless.isna().all() and not gallery.warning(jpeg, table) and "clip" not in gallery_page.marked(jpeg, table)
    page = gallery_page.write_html(tmp_path / "g.html", jpeg, table, "t").read_text(encoding="utf-8")
    assert gallery.MARK not in page and 'class="warning"' not in page


def test_a_grammar_is_asked_once_for_each_prompt(folder, loaded, tmp_path):
    asked = []
    gallery.score(loaded, with_prompts(folder), tmp_path / "store", is_sentence=lambda prompt: asked.append(prompt) or True)
    assert sorted(asked) == ["a blue star", "a cat", "a red circle"]


def test_no_scorer_at_all_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="no scorer to score with"):
        gallery.score({}, gallery.read(str(folder), tmp_path), tmp_path / "store")


class Odd(base.Scorer):
    """NaN and infinite scores, and a picture that it refuses."""

    needs_prompt = False
    score_scale = "nothing"

    def forward(self, pixels, prompts=None):
        if pixels.shape[2] == 60 and len(pixels) > 1:
            raise ValueError("one at a time")
        if pixels.shape[2] == 60 and pixels[0, 0, 0, 0] < 128:
            raise ValueError("too dark")
        return torch.tensor([torch.nan, torch.inf, 1.0])[: len(pixels)]


def test_a_score_that_is_no_number_spoils_neither_page_nor_summary(folder, tmp_path):
    scorers = {"odd": Odd(), "jpeg": loading.load("jpeg")}
    pixels = np.full((60, 60, 3), 200, np.uint8)
    Image.fromarray(pixels).save(folder / "1.png")
    pixels[0, 0] = 0
    Image.fromarray(pixels).save(folder / "3.png")
    table = gallery.score(scorers, gallery.read(str(folder), tmp_path), tmp_path / "store")
    assert table.odd.isna().tolist() == [True, True, False, True, False, True] and np.isinf(table.odd[2])
    assert table.jpeg.notna().tolist() == [True] * 5 + [False] and table.error[3].endswith("3.png has no score of odd: too dark")
    summary = gallery.summary(scorers, table)
    assert summary["count"].to_dict() == {"odd": 1, "jpeg": 5} and summary["no number"].to_dict() == {"odd": 3, "jpeg": 0}
    assert summary["max"].odd == 1 and "Scores of odd that are no number: 3." in gallery.account(scorers, table)
    page = gallery_page.write_html(tmp_path / "g.html", scorers, table, "t", "odd").read_text(encoding="utf-8")
    assert page.count("<figure ") == 5 and page.count("data-odd=") == 1 and "too dark" in page


def test_a_picture_that_one_scorer_cannot_take_has_the_others_scores(folder, loaded, tmp_path):
    """JPEG knows no side above 65,500 pixels."""
    Image.new("RGB", (70_000, 40)).save(folder / "0.png")
    table = gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    assert "0.png has no score of jpeg" in table.error[0] and table["clip"].notna()[0]
    assert table.jpeg.notna().tolist() == [False] + [True] * 4 + [False]


def test_names_and_errors_are_escaped(folder, loaded, tmp_path):
    """A scorer's name, a file's and an error's, none of which may become part of the page's code."""
    evil = '"><script>alert(1)</script>'
    shutil.copy(folder / "0.png", folder / "<script>alert(2).png")
    (folder / "<b>broken.png").write_bytes(b"")
    scorers = {evil: loaded["jpeg"], "Two words": loaded["jpeg"]}
    table = gallery.score(scorers, gallery.read(str(folder), tmp_path), tmp_path / "store")
    page = gallery_page.write_html(tmp_path / "g.html", scorers, table, evil, evil).read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "<b>" not in page and 'data-score.0="' in page and 'data-score.1="' in page
    with pytest.raises(ValueError, match="may not be called image"):
        gallery.score({"image": loaded["jpeg"]}, table, tmp_path / "store")


def test_the_page_lists_what_is_not_on_it(folder, loaded, tmp_path):
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    (folder / ".more").mkdir()
    table = gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    page = gallery_page.write_html(tmp_path / "g.html", loaded, table, "t").read_text(encoding="utf-8")
    assert "Pictures: 6; not scored or not by all: 1; without a prompt: 2." in page and "<li>" in page and "9.png cannot be read" in page
    assert "Not looked at: hidden folders (1), files that end in .txt (1)." in page
    assert "Without a number" not in page
    (folder / "0.png").unlink()  # gone between its score and the page
    assert gallery_page.write_html(tmp_path / "g.html", loaded, table, "t").read_text(encoding="utf-8").count("<figure ") == 5


def test_a_scorer_without_any_number_has_neither_button_nor_row(folder, loaded, tmp_path):
    table = gallery.score(loaded, gallery.read(str(folder), tmp_path), tmp_path / "store")
    page = gallery_page.write_html(tmp_path / "g.html", loaded, table, "t", "clip").read_text(encoding="utf-8")
    assert 'button data-score="jpeg"' in page and 'button data-score="clip"' not in page and "<th>clip</th>" not in page
    assert "Without a number for any picture, and not shown: clip." in page and "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    assert list(gallery_page.marked(loaded, table)) == ["picture", "prompt", "jpeg"]


def test_groups_and_folders_from_elsewhere_are_text(folder, loaded, tmp_path):
    table = with_prompts(folder).assign(group=['"><b>x</b>', '"><b>x</b>', 7, 7, None, None])
    table = gallery.score(loaded, table, tmp_path / "store")
    page = gallery_page.write_html(tmp_path / "g.html", loaded, table, "t").read_text(encoding="utf-8")
    assert page.count('data-group-group="&quot;&gt;&lt;b&gt;x') == 2 and 'data-group-group="no group"' in page and "<b>" not in page


def test_many_remarks_are_counted(folder, loaded, tmp_path):
    table = gallery.score(loaded, with_prompts(folder), tmp_path / "store")
    table.attrs["problems"] = [f"{i}.txt is empty" for i in range(500)]
    page = gallery_page.write_html(tmp_path / "g.html", loaded, table, "t", notes=["n <1"]).read_text(encoding="utf-8")
    assert "<p>And 401 sentences more.</p>" in page and " 499.txt" not in page and "<p>n &lt;1</p>" in page
