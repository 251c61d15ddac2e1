"""The page of the playground: built from its recorded data, true to the library and the models, tried in a browser."""

import base64
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zlib

import nbformat
import numpy as np
import pytest
import torch

import icthp
from browser import IS_THERE, Browser
from conftest import ROOT, execute, printed_by
from icthp import figures, files
from icthp.microworld import held_out, parse, playground

sys.path.insert(0, str(ROOT / "docs/playground"))
import build
import record

FOLDER = ROOT / "docs/playground"
SCENES = [0, 3, 7]  # those that are drawn and scored again
data = pytest.fixture(scope="module")(build.recorded)


def unpacked(text: str, dtype) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def codes_of(data: dict, i: int) -> torch.Tensor:
    """(points, prompts, towers): the table of a scene as the page reads it, without the page's code."""
    codes = np.cumsum(unpacked(data["scenes"]["scenes"][i]["scores"], "<i2"), dtype=np.int64)
    shape = len(data["scenes"]["styles"]), len(data["scenes"]["towers"]), -1
    return torch.from_numpy(codes).reshape(shape).permute(2, 0, 1)


def random_points(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def the_scene(i: int):
    return playground.first_held_out()[i : i + 1]


# ---- the file ---------------------------------------------------------------------------------------------------


def test_the_page_and_its_data_are_small(data):
    assert len(build.page(data).encode()) < 5e6
    assert sum(file.stat().st_size for file in FOLDER.glob("*.json")) <= 2e6


def test_the_page_is_one_file_that_names_no_other_place(data):
    html = build.page(data)
    assert "{{" not in html and html.count("<script") == 2 == html.count("</script>")
    assert not re.findall(r"https?://|//cdn|@import|url\(|<link|<img|<iframe|fetch\(|XMLHttpRequest|WebSocket\(|sendBeacon", html)
    assert re.findall(r'(?:src|href)\s*=\s*["\']?([^"\' >`$]+)', html) == ["index.html"]


def test_what_ends_a_script_is_escaped(data):
    prompts = {**data["scenes"]["scenes"][0]["prompts"], "short": "</script><b>"}
    scenes = data["scenes"] | {"scenes": [data["scenes"]["scenes"][0] | {"prompts": prompts}]}
    assert build.page({**data, "scenes": scenes}).count("</script>") == 2


# ---- what was recorded, against the library and the models ------------------------------------------------------


def test_colours_and_names_are_those_of_the_figures(data):
    for name, row in data["scenes"]["scorers"].items():
        assert row["label"] == figures.label(name)
        assert record.to_hex(figures.colour(name)) == row["colour"]


def test_scenes_prompts_and_noise_are_the_library_s(data):
    scenes = data["scenes"]
    assert scenes["stops"] == record.STOPS and scenes["styles"] == list(playground.STYLES)
    assert scenes["noise"]["deviation"] == playground.NOISE and scenes["coarse"] == playground.COARSE
    field = torch.from_numpy(unpacked(scenes["noise"]["field"], np.int8).reshape(64, 64, 3).copy()).permute(2, 0, 1)
    assert torch.equal(field / 32, playground.noise_field())
    assert len(scenes["scenes"]) == len(playground.first_held_out())
    for i, row in enumerate(scenes["scenes"]):
        assert row["prompts"] == playground.prompts_by_style(the_scene(i))
        renders = torch.from_numpy(unpacked(row["renders"], np.uint8).reshape(9, 64, 64, 3).copy()).permute(0, 3, 1, 2)
        assert (renders - playground.level_renders(the_scene(i)) * 255).abs().max() < 1.001  # another machine may round otherwise


def test_the_errors_on_the_page_are_small(data):
    errors = data["scenes"]["errors"]
    assert errors["points"] == len(data["scenes"]["scenes"]) * record.CHECKS
    assert errors["q95"] < 0.03 and errors["largest"] < 0.15  # standard deviations
    assert errors["largest"] == max(row["largest"] for row in errors["of"].values()) and set(errors["of"]) == set(record.SCORES)


@pytest.mark.skipif(not (ROOT / "data/hub/clip").exists(), reason="needs `dvc pull`")
def test_the_table_differs_from_the_models_by_no_more_than_the_page_says(data, monkeypatch):
    """At other points than those measured when it was made. ICT and HP where they are the ones of the record."""
    monkeypatch.chdir(ROOT)
    there = [name for name in record.TOWERS if name in ("clip", "pickscore") or (ROOT / "models" / name / "metrics.json").exists()]
    scorers = icthp.load_all(dict.fromkeys(there))
    scorers = {name: scorer for name, scorer in scorers.items() if files.fingerprint(scorer)[:12] == data["scenes"]["models"][name]}
    assert {"clip", "pickscore"} <= scorers.keys()
    norms, stated = data["scenes"]["norms"], data["scenes"]["errors"]
    errors = []
    for i in SCENES:
        points = random_points(40, seed=100 + i)
        renders, prompts = playground.level_renders(the_scene(i)), list(playground.prompts_by_style(the_scene(i)).values())
        expected = record.standardised(scorers, norms, renders, prompts, points)
        found = record.table_scores(codes_of(data, i), norms, points)
        errors.append((found[..., [record.SCORES.index(name) for name in scorers]] - expected).abs())
    for name, error in zip(scorers, torch.cat(errors).movedim(-1, 0)):
        assert error.max() < 1.5 * stated["largest"], name
        assert error.flatten().quantile(0.95) < 1.5 * stated["of"][name]["q95"], name


def test_the_norms_put_clean_pictures_with_their_own_prompts_near_zero(data):
    clean = torch.tensor([[0.5, 0.0, 0.0]], dtype=torch.float64)
    short = torch.stack([record.table_scores(codes_of(data, i), data["scenes"]["norms"], clean)[0, 0] for i in range(8)])
    assert short.mean(0).abs().max() < 1.5
    wrong = torch.stack([record.table_scores(codes_of(data, i), data["scenes"]["norms"], clean)[0, 2] for i in range(8)])
    assert (wrong[:, 0] < short[:, 0] - 1).all() and torch.equal(wrong[:, 3], short[:, 3])  # CLIP notices, HP reads no prompt


def test_each_tuning_is_whole(data):
    assert [tuning["reward"] for tuning in data["tunings"]] == list(build.REWARDS)
    test = (ROOT / "data/prompts/test.txt").read_text(encoding="utf-8").splitlines() if (ROOT / "data/prompts").exists() else None
    for tuning in data["tunings"]:
        settings = tuning["settings"]
        assert settings == record.SETTINGS and tuning["steps"] == list(range(0, settings["steps"] + 1, settings["every"]))
        assert tuning["scores"].keys() == {*record.SCORES, tuning["reward"]}
        lines = [
            *tuning["scores"].values(),
            *(tuning[name] for name in ("frames", "fulfilled", "shown_fulfilled", "shown_reward", "reward_mean")),
        ]
        assert {len(line) for line in lines} == {len(tuning["steps"])}
        assert all(line[0] == 0 for line in tuning["scores"].values())  # moved from itself by nothing
        assert held_out(parse(tuning["prompts"], torch.Generator())).all() and len(tuning["prompts"]) == settings["shown"]
        assert test is None or tuning["prompts"] == test[: settings["shown"]]
        assert max(tuning["scores"][tuning["reward"]]) > 0.2  # the reward has risen, be it for a while


def test_all_tunings_begin_with_the_same_pictures(data):
    assert len({tuning["frames"][0] for tuning in data["tunings"]}) == 1 == len({tuning["fulfilled"][0] for tuning in data["tunings"]})


# ---- in a browser -----------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(not IS_THERE, reason="needs chromium")
SET = """(values => { for (const [id, value] of Object.entries(values)) { const input = document.getElementById(id); input.value = value;
    input.dispatchEvent(new Event('input', {bubbles: true})); } })"""
BOX = "document.getElementById('%s').getBoundingClientRect()"
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    """The page, loaded once, with the network off."""
    folder = tmp_path_factory.mktemp("page")
    build.main(folder / "playground.html")
    with Browser(folder / "profile", 1100, 1000) as browser:
        for domain in ("Page", "Runtime", "Network", "Log"):
            browser(f"{domain}.enable")
        browser("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        browser("Page.navigate", url=f"file://{folder}/playground.html")
        browser.wait("window.playground?.scene.draws", 60, 0.2)
        yield browser


def set_to(page, **values) -> None:
    page.run(f"{SET}({json.dumps(values)})")
    assert page.run(FRAME)


def choose(page, name: str, value) -> None:
    page.run(f"document.querySelector('input[name={name}][value=\"{value}\"]').click()")
    assert page.run(FRAME)


@needs_browser
def test_it_loads_offline_asks_for_nothing_and_has_no_error(page):
    asked = [e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.run("location.href")]
    assert not [e for e in page.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]


@needs_browser
def test_its_pictures_are_python_s(page):
    """Each pixel of the canvas, at random points and at the corners."""
    worst = 0
    for i in SCENES:
        choose(page, "scene", i)
        renders = playground.level_renders(the_scene(i))
        points = torch.cat([random_points(6, seed=i).mul(200).round() / 200, torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 1]])])
        expected = playground.pictures(renders, points).mul(255).round()
        for point, pixels in zip(points.tolist(), expected):
            set_to(page, richness=point[0], noise=point[1], blur=point[2])
            found = page.run("[...document.getElementById('picture').getContext('2d').getImageData(0, 0, 64, 64).data]")
            rgba = torch.tensor(found).view(64, 64, 4)
            assert (rgba[..., 3] == 255).all()
            worst = max(worst, (rgba[..., :3].permute(2, 0, 1) - pixels).abs().max().item())
    assert worst <= 1, worst  # of 255: where the two round a half to different sides


@needs_browser
def test_its_scores_are_those_of_the_table(page, data):
    for i in SCENES:
        points = random_points(8, seed=20 + i).mul(200).round() / 200
        expected = record.table_scores(codes_of(data, i), data["scenes"]["norms"], points)
        for k, style in enumerate(data["scenes"]["styles"]):
            for point, scores in zip(points.tolist(), expected[:, k].tolist()):
                found = page.run(f"""(() => {{ const {{scene: {{data}}, curvesOf, scoresAt}} = playground, [r, n, b] = {point};
                    return scoresAt(curvesOf(data.scenes[{i}], data, '{style}', n, b), data, r) }})()""")
                assert [found[name] for name in record.SCORES] == pytest.approx(scores, abs=2e-4)


@needs_browser
def test_the_numbers_and_the_prompt_follow_the_hand(page, data):
    choose(page, "scene", 3)
    set_to(page, richness=1, noise=0, blur=0)
    table = record.table_scores(codes_of(data, 3), data["scenes"]["norms"], torch.tensor([[1.0, 0.0, 0.0]]))
    for k, style in enumerate(data["scenes"]["styles"]):
        choose(page, "style", style)
        assert page.run("document.getElementById('prompt').textContent") == data["scenes"]["scenes"][3]["prompts"][style]
        values = page.run("[...document.querySelectorAll('#bars .value')].map(v => Number(v.textContent.replace('\\u2212', '-')))")
        raw = [
            z * data["scenes"]["norms"][name][1] + data["scenes"]["norms"][name][0] for z, name in zip(table[0, k].tolist(), record.SCORES)
        ]
        assert values == pytest.approx(raw, abs=0.006)


@needs_browser
def test_the_paradox_is_seen_only_after_it_was_dragged(page, data):
    choose(page, "scene", 0), choose(page, "style", "short")
    set_to(page, noise=0.2, richness=0), set_to(page, noise=0)
    text = lambda: page.run("document.getElementById('found').textContent")
    assert text().startswith("Drag richness")
    set_to(page, richness=1)
    ends = record.table_scores(codes_of(data, 0), data["scenes"]["norms"], torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]))[:, 0]
    for name, change in zip(record.SCORES, (ends[1] - ends[0]).tolist()):
        assert f"{figures.label(name)} ({'+' if change > 0 else chr(0x2212)}{abs(change):.1f})" in text()


DRAG = """new Promise(done => {
  const slider = document.getElementById('%s'), scene = playground.scene, redraws = [];
  const before = scene.draws;
  let first, frames = 0;
  const frame = now => {
    first ??= now;
    if (frames) redraws.push(scene.lastDraw);
    if (now - first > 2000) {
      redraws.sort((a, b) => a - b);
      return done({fps: 1000 * frames / (now - first), frames, draws: scene.draws - before, redraw: redraws[redraws.length >> 1]});
    }
    slider.value = 0.5 - 0.5 * Math.cos(++frames / 20);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame); })"""


@needs_browser
@pytest.mark.parametrize("slider", ["richness", "noise", "blur"])
def test_dragging_leaves_room_for_60_frames_a_second(page, slider):
    """A redraw takes far less than a sixtieth of a second, and there is one a frame. How many frames there are is up to a busy machine."""
    measured = page.run(DRAG % slider)
    print(slider, measured)
    assert measured["redraw"] < 5 and measured["fps"] > 5
    assert 0.9 * measured["frames"] <= measured["draws"] <= measured["frames"] + 1


@needs_browser
def test_the_screen_reader_hears_one_sentence_when_the_hand_rests(page):
    set_to(page, richness=0.1)
    page.wait("document.getElementById('status').textContent.includes('richness 0.10')", 5, 0.2)
    page.run("window.heard = 0; new MutationObserver(() => heard++).observe(document.getElementById('status'), {childList: true})")
    page.run(DRAG % "richness")
    assert page.run("heard") <= 1  # a frame may take half a second on a busy machine
    set_to(page, richness=0.3)
    page.wait("document.getElementById('status').textContent.includes('richness 0.30')", 5, 0.2)
    assert page.run("document.querySelectorAll('[aria-live]').length") == 1


def press(page, key: str, code: int) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        page("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
    assert page.run(FRAME)


@needs_browser
def test_the_keyboard_is_enough(page):
    set_to(page, richness=0)
    page.run("document.getElementById('richness').focus()")
    for _ in range(3):
        press(page, "ArrowRight", 39)
    assert page.run("document.getElementById('richness').valueAsNumber") == pytest.approx(0.015)
    assert page.run("playground.scene.state.richness") == pytest.approx(0.015)
    order = []
    page.run("document.querySelector('input[name=scene]:checked').focus()")
    for _ in range(9):
        order.append(page.run("document.activeElement.id || document.activeElement.name"))
        assert page.run("getComputedStyle(document.activeElement.nextElementSibling ?? document.activeElement).outlineStyle == 'solid' || "
                        "getComputedStyle(document.activeElement).outlineStyle == 'solid'"), order  # fmt: skip
        press(page, "Tab", 9)
    assert order == ["scene", "style", "richness", "noise", "blur", "whole", "reward", "play", "step"]
    page.run("document.querySelector('input[name=style]:checked').focus()")
    before = page.run("playground.scene.state.style")
    press(page, "ArrowRight", 39)
    assert page.run("playground.scene.state.style") != before


@needs_browser
def test_every_control_has_a_name(page):
    names = page.run("[...document.querySelectorAll('input, button')].map(i => i.ariaLabel || i.labels?.[0]?.textContent || i.textContent)")
    assert all(name.strip() for name in names) and len(names) == 8 + 3 + 3 + 1 + 6 + 2


@needs_browser
def test_it_fits_400_pixels_and_a_finger(page):
    page("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=2, mobile=True)
    page("Emulation.setTouchEmulationEnabled", enabled=True)
    assert page.run(FRAME) and page.run("document.documentElement.scrollWidth") == 400
    sizes = page.run(
        "[...document.querySelectorAll('input, button')].map(i => i.getBoundingClientRect()).flatMap(r => [r.width, r.height])"
    )
    assert min(sizes) >= 24
    assert page.run(f"{BOX % 'bars'}.bottom - {BOX % 'picture'}.top") < 760  # picture, sliders and scores on one screen
    page.run("document.getElementById('noise').scrollIntoView({block: 'center'})")
    x, y, width = page.run(f"(r => [r.x, r.y + r.height / 2, r.width])({BOX % 'noise'})")
    page("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x + 10, "y": y}])
    page("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x + width * 0.7, "y": y}])
    page("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert page.run(FRAME) and page.run("playground.scene.state.noise") == pytest.approx(0.7, abs=0.1)
    page("Emulation.setTouchEmulationEnabled", enabled=False)
    page("Emulation.clearDeviceMetricsOverride")


def luminance(colour: str) -> float:
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_legible_in_the_light_and_in_the_dark(page, scheme):
    page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    paper = luminance(page.run("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for place in ("p", ".caption", "a", "h1"):
        ink = luminance(page.run(f"getComputedStyle(document.querySelector('{place}')).color"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, place
    page("Emulation.setEmulatedMedia", features=[])


@needs_browser
def test_a_tuning_plays_pauses_and_says_that_it_is_recorded(page, data):
    assert page.run("document.querySelector('.recorded').innerText").startswith("Recorded. DRaFT-1")
    choose(page, "reward", "edges")
    page.wait("playground.player.frames.length", 10, 0.2)
    sums = """[...document.querySelectorAll('#film canvas')].map(c => c.getContext('2d').getImageData(0, 0, 64, 64).data
        .reduce((a, b) => a + b))"""
    assert page.run(FRAME)
    before = page.run(sums)
    page.run("document.getElementById('play').click()")
    assert page.run("document.getElementById('play').textContent") == "Pause"
    page.wait("document.getElementById('step').valueAsNumber >= 10", 20, 0.2)
    page.run("document.getElementById('play').click()")
    step = page.run("document.getElementById('step').valueAsNumber")
    set_to(page, step=100)
    assert all(a != b for a, b in zip(before, page.run(sums))) and step < 100
    tuning = data["tunings"][-1]
    text = page.run("document.getElementById('tuned').textContent")
    assert f"Prompts fulfilled: {round(100 * tuning['fulfilled'][-1])} %, untuned {round(100 * tuning['fulfilled'][0])} %" in text
    captions = page.run("[...document.querySelectorAll('#film figcaption')].map(c => c.textContent)")
    assert [prompt in caption for prompt, caption in zip(tuning["prompts"], captions)] == [True] * 6
    assert ["missed" in caption for caption in captions] == [not c for c in tuning["shown_fulfilled"][-1]]


@needs_browser
def test_little_motion_where_little_is_wanted(page):
    paces = []
    for value in ("no-preference", "reduce"):
        page("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": value}])
        paces.append(page.run("playground.player.pace()"))
    page("Emulation.setEmulatedMedia", features=[])
    assert paces[1] >= 1000 > paces[0]
    assert not re.findall(r"transition|animation|@keyframes", (FOLDER / "style.css").read_text(encoding="utf-8"))
    assert not page.run("playground.player.playing")  # nothing plays unasked


# ---- the notebook away from the project -------------------------------------------------------------------------

FIRST_CELLS = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
scope = {}
exec(code[0], scope)
scope["repository"] = sys.argv[2]
exec(code[1], scope)
from icthp import run
print("at", run.enter_project(), run.__file__)
"""


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """A Python that has what the project needs, but not the project."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True, with_pip=False)
    own = next(folder.glob("lib/python*/site-packages"))
    own.joinpath("borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin/python"


def first_cells(python, folder, repository: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "DVC_NO_ANALYTICS": "1"}
    command = [python, "-c", FIRST_CELLS, ROOT / "notebooks/00_playground.ipynb", repository]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_in_an_empty_folder_the_notebook_fetches_the_project_and_installs_it_once(other_python, tmp_path):
    done = first_cells(other_python, tmp_path, ROOT.as_uri())
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"git clone --depth 1 {ROOT.as_uri()} icthp" and "pip install" in lines[1] and "dvc" in lines[2]
    assert lines[-1] == f"at {tmp_path / 'icthp'} {tmp_path / 'icthp/lib/icthp/run.py'}"
    assert (tmp_path / "icthp/data/hub/clip/open_clip_config.json").exists()
    again = first_cells(other_python, tmp_path, "")  # a kernel that was started anew
    assert again.returncode == 0 and again.stdout.splitlines() == lines[-1:], again.stderr


@pytest.mark.slow
def test_without_an_address_it_says_what_to_set(other_python, tmp_path):
    done = first_cells(other_python, tmp_path, "")
    assert done.returncode != 0 and "Set `repository` in the cell above" in done.stderr and not any(tmp_path.iterdir())


def test_inside_the_project_nothing_is_installed(monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "notebooks")
    cells = json.loads((ROOT / "notebooks/00_playground.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "".join([cell for cell in cells if cell["cell_type"] == "code"][1]["source"])
    before = list(sys.path)
    exec(source, {"repository": "file:///nowhere"})
    assert capsys.readouterr().out == "" and sys.path == before


# ---- the notebook before `make repro`, and its widgets ----------------------------------------------------------

BY_HAND = """
controls["richness"].value = 0.5
controls["style"].value = "long"
assert prompt_label.value == texts[scene]["long"] and picture.value[:4] == b"\\x89PNG"
assert numbers["clip"].value == f"z = {rate(draw(scene, 0.5), prompt_label.value)['clip']:+.2f}"
buttons["Tune"].click()
worker.join(400)
first_screen = screen.value
assert not worker.is_alive() and not buttons["Tune"].disabled and first_screen[:4] == b"\\x89PNG"
menu.value = "pickscore"
buttons["Tune"].click()
buttons["Stop"].click()
worker.join(400)
assert not worker.is_alive() and not buttons["Tune"].disabled and screen.value != first_screen
"""


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "data/hub/clip").exists(), reason="needs `dvc pull`")
def test_the_notebook_plays_with_clip_and_pickscore_alone(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks/00_playground.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_code_cell(BY_HAND))
    nbformat.write(notebook, tmp_path / "00.ipynb")
    values = {"models": str(tmp_path / "none"), "out": str(tmp_path / "out"), "steps": 2, "batch": 2, "every": 1, "held_out": 3}
    done = execute(tmp_path / "00.ipynb", **values)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = printed_by(done)
    assert "holds no ICT and HP yet: `make repro` trains them" in printed and printed.count("\n") == 1  # and nothing else is printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert (tmp_path / "out/film.png").stat().st_size > 5000
