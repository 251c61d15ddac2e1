"""Hygiene of every notebook, and A2 on pictures that a user may bring."""

import ast
import json
import re
import shutil

import nbformat
import pandas as pd
import pytest
import torch
from papermill.translators import PythonTranslator
from PIL import Image

import quick_copies
from conftest import ROOT, execute, printed_by
from icthp import run
from icthp.params import coerce, read_params

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATA = ROOT / "data"
PHOTOGRAPHS = ROOT.parent / "shared/data/icthp"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_hygiene(path):
    """Story first, one cell of plain parameters, a last word, no outputs, no long cells."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown" and "**Question.**" in notebook.cells[0].source
    assert "parameters" in notebook.cells[1].metadata.get("tags", [])
    assert all(ast.literal_eval(node.value) is not Ellipsis for node in ast.parse(notebook.cells[1].source).body)
    assert not any(c.outputs or c.execution_count for c in code)
    assert max(len(c.source.splitlines()) for c in code if "parameters" not in c.metadata.get("tags", [])) <= 25
    assert run.declared(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_understands_every_parameter(path, caplog):
    """It splits lines at each `=`, of a comment too, and warns of a line or a parameter that it does not understand."""
    found = PythonTranslator.inspect(nbformat.read(path, 4).cells[1])
    assert {parameter.name for parameter in found} == set(run.declared(path)) and not caplog.records


BY_HAND = {name: ROOT / f"notebooks/{name}.ipynb" for name in quick_copies.sections()}
QUICK = ("A1_build_microworld", "A3_benchmarks")  # the full sizes take hours and minutes; both say so


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_opened_by_hand_writes_to_a_place_of_its_own(path):
    assert run.declared(path)["out"].startswith("runs/by_hand/")


@pytest.mark.parametrize("name", sorted(set(BY_HAND) - {*QUICK}))
def test_a_notebook_opened_by_hand_does_what_its_stage_does(name):
    """So that what it shows is what its prose and the README speak of."""
    declared, section = run.declared(BY_HAND[name]), quick_copies.sections()[name]
    values = run.section_values(read_params(ROOT / "params.yaml"), section, declared)
    assert {key: coerce(key, declared[key], value) for key, value in values.items() if key != "out"} == {
        key: value for key, value in declared.items() if key in values and key != "out"
    }


def test_quick_copies_touch_nothing_of_the_pipeline(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    quick_copies.main(tmp_path)
    copies = {path.stem: nbformat.read(path, 4) for path in tmp_path.glob("*.ipynb")}
    assert copies.keys() == {path.stem for path in NOTEBOOKS}
    for notebook in copies.values():
        injected = next(c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", []))
        texts = [ast.literal_eval(node.value) for node in ast.parse(injected.source).body if isinstance(node.value, ast.Constant)]
        places = [text for text in texts if isinstance(text, str) and re.search(r"\b(runs|models|figures)\b", text)]
        assert all("runs/smoke" in place for place in places)


NO_NUMBER = r"```.*?```|\$\$.*?\$\$|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|https?://\S+|^\|.*?$|95 %"  # code, mathematics, links, tables, intervals
OF_OTHERS = re.compile("published|paper|arXiv|released|Stable Diffusion")


def typed_numbers(text):
    """Decimals and percentages that prose states of itself: code, mathematics, links and tables aside, and sentences on others' results."""
    sentences = re.split(r"(?<=[.:;!?])\s", re.sub(NO_NUMBER, "", text, flags=re.S | re.M))
    return [found for sentence in sentences if not OF_OTHERS.search(sentence) for found in re.findall(r"\d+\.\d+|\d+ ?%", sentence)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_states_no_measured_number(path):
    """What was measured is said by `figures.takeaway`, which computes it."""
    assert not [found for c in nbformat.read(path, 4).cells if c.cell_type == "markdown" for found in typed_numbers(c.source)]


def test_a_typed_number_is_found():
    assert typed_numbers("CLIP has 0.88 of it, ICT 20 %. With $\\theta = 1.3$ and `lr = 0.1` it falls.") == ["0.88", "20 %"]
    assert not typed_numbers("| 0.5 | 3 % |\nThe paper has 70.9 %. Intervals are of 95 %.")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_teaches(path):
    """Goals, a prediction, two exercises with folded solutions, what to read next; the parameters are folded."""
    cells = nbformat.read(path, 4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert "**Afterwards you can**" in cells[0].source and "**Predict" in text and "## Read next" in text
    solutions = [c for c in cells if "solution" in c.metadata.get("tags", [])]
    assert len(re.findall(r"\*\*Exercise \d", text)) == len(solutions) >= 2
    assert all(c.metadata.jupyter.source_hidden and c.metadata.jupyter.outputs_hidden for c in solutions)
    assert cells[1].metadata.jupyter.source_hidden


def score(images, tmp_path, **parameters):
    """A2's table and all that it printed."""
    out = tmp_path / "out"
    printed = printed_by(
        execute(
            ROOT / "notebooks/A2_score_your_images.ipynb", images=str(images), out=str(out), models=str(tmp_path / "none"), **parameters
        )
    )
    assert (out / "gallery.png").stat().st_size > 1000 and "<figure" in (out / "gallery.html").read_text(encoding="utf-8")
    return pd.read_parquet(out / "scores.parquet"), printed


needs_data = pytest.mark.skipif(not (DATA / "hub/clip").exists(), reason="needs `dvc pull`")


@needs_data
def test_a2_lists_a_broken_picture_and_scores_the_others(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(3):
        pixels = torch.randint(256, (40 + 10 * i, 60, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    (folder / "1b.png").write_bytes((folder / "1.png").read_bytes()[:50])
    table, printed = score(folder, tmp_path, scorers="jpeg,clip,pickscore,hp", prompt="a red circle")
    unreadable = table[table.error.notna()]
    assert len(table) == 4 and [p.rsplit("/", 1)[1] for p in unreadable.image] == ["1b.png"]
    assert "1b.png cannot be read" in printed
    assert "Left out until `make repro` has trained them: hp; scored without them: jpeg, clip, pickscore." in printed
    assert table[table.error.isna()][["jpeg", "clip", "pickscore"]].notna().all(axis=None)
    assert table.jpeg.notna().sum() == 3


@needs_data
def test_a2_without_prompts_scores_what_needs_none(tmp_path):
    shutil.copy(DATA / "examples/0_rich.png", tmp_path / "a.png")
    table, _ = score(tmp_path, tmp_path, scorers="jpeg,clip")
    assert table.jpeg.notna().all() and table["clip"].isna().all()


@needs_data
@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="needs the six photographs")
def test_a2_on_photographs(tmp_path):
    table, _ = score(PHOTOGRAPHS, tmp_path, scorers="jpeg,clip,pickscore", prompt="a red circle")
    assert len(table) == 6 and table.error.isna().all() and table[["jpeg", "clip", "pickscore"]].notna().all(axis=None)
    by_name = table.set_index(table.image.str.rsplit("/", n=1).str[1]).jpeg
    assert by_name["Ferrari_car_I3.png"] > by_name["Ferrari_car_I1.jpg"]


@needs_data
def test_01_and_01b_take_a_table_of_real_pictures(tmp_path):
    """The lab scale's path: a table with a column a level, and a folder of photographs."""
    picture = lambda i, level: str(DATA / f"examples/{i}_{level}.png")
    rows = [{"prompt": "a red circle", "plain": picture(i, "plain"), "rich": picture(i, "rich")} for i in range(4)]
    pd.DataFrame(rows).to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    table = {"pictures_table": str(tmp_path / "t.jsonl"), "levels": "plain,rich"}
    execute(ROOT / "notebooks/01_scoring_paradox.ipynb", out=str(tmp_path / "01"), micro_scenes=4, **table)
    metrics = json.loads((tmp_path / "01/metrics.json").read_text(encoding="utf-8"))
    assert metrics["paradox_rate_short_clip_n"] == 4 and metrics["jpeg_ratio"] > 1.3 and "micro_formula_r2" not in metrics
    assert {"clip_short_0", "clip_short_1"} <= metrics.keys() and not [name for name in metrics if name.startswith("micro_clip_short")]
    assert len(pd.read_parquet(tmp_path / "01/levels.parquet")) == 4 * 2 * 3
    drawn = {path.stem for path in (tmp_path / "01/figures").glob("*.png")}
    assert {"theory", "gaussian", "levels", "micro_richness", "micro_formula", "paradox_rates", "micro_vote", "micro_vote_clip"} <= drawn
    options = {"photographs": str(DATA / "examples"), "micro_clip_steps": 0, "micro_estimate_scenes": 2, "micro_scenes": 4}
    execute(ROOT / "notebooks/01b_explanations.ipynb", out=str(tmp_path / "01b"), **options, **table)
    metrics = json.loads((tmp_path / "01b/metrics.json").read_text(encoding="utf-8"))
    assert metrics["fall_short_clip_n"] == 4 and {"truncated_short", "micro_denoiser_own_spearman"} <= metrics.keys()
    drawn = {path.stem for path in (tmp_path / "01b/figures").glob("*.png")}
    assert {"micro_bytes", "micro_split", "micro_probe", "micro_denoiser"} <= drawn and "micro_falls" not in drawn  # no CLIP was trained


@needs_data
def test_a2_says_on_photographs_that_micro_scorers_mean_nothing(tmp_path):
    """In what it prints, in each row that it keeps and under each picture, from wherever the weights were read; JPEG always counts."""
    for name in ("a.png", "deep/b.png", "deep/er/c.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / "examples/0_rich.png", tmp_path / "mine" / name)
    for name, text in (("a.txt", "a photo of a bear"), ("deep/prompt.txt", "a blue star left of an orange cross"), ("deep/er/c.txt", "")):
        (tmp_path / "mine" / name).write_text(text, encoding="utf-8")
    shutil.copytree(DATA / "hub/clip", tmp_path / "copied")
    table, printed = score(tmp_path / "mine", tmp_path, scorers="jpeg,clip,pickscore", sources=f"clip=local-dir:{tmp_path / 'copied'}")
    assert table.folder.tolist() == [".", "deep", "deep/er"] and table.meaningless.isna().tolist() == [False, True, False]
    assert (table.meaningless.dropna() == "clip, pickscore").all() and table["clip"].isna().tolist() == [False, False, True]
    page = (tmp_path / "out/gallery.html").read_text(encoding="utf-8")
    for text in (printed, page):
        assert "meaningless here: clip, pickscore." in text and "2 of 3 pictures" in text and "deep/er/c.txt is empty" in text
    assert page.count('class="void" data-of="clip"') == page.count('class="void" data-of="pickscore"') == 1
    assert page.count('data-of="clip"') == 2 and page.count('data-of="jpeg"') == 3 and 'class="void" data-of="jpeg"' not in page


@needs_data
@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="needs the six photographs")
def test_a2_counts_the_prompts_that_it_cut(tmp_path):
    """A prompt of photographs is read by the micro scorers letter by letter, and soon ends."""
    (tmp_path / "mine").mkdir()
    for file in PHOTOGRAPHS.glob("*_I[12].jpg"):
        shutil.copy(file, tmp_path / "mine")
        prompt = "a Ferrari car that is made out of wood, in the garden of a villa, at noon" if "Ferrari" in file.name else "a dragon"
        (tmp_path / f"mine/{file.stem}.txt").write_text(prompt, encoding="utf-8")
    table, printed = score(tmp_path / "mine", tmp_path, scorers="jpeg,clip")
    assert "Prompts that clip read only the beginning of, cut to its length: 2." in printed and table["cut"].notna().sum() == 2
    assert table["cut_at"].dropna().map(int).between(20, 60).all() and not table.error.notna().any()
    assert (tmp_path / "out/gallery.html").read_text(encoding="utf-8").count('class="unread" title="not read by clip"') == 2
