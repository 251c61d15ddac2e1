"""`make site`: pages that need no network, whose links lead somewhere, with mathematics, outputs, solutions, figures and the API."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT
from test_jupyterlab import browser  # noqa: F401

sys.path.insert(0, str(ROOT / "docs/site"))  # as mkdocs does for its hooks

import docstrings
import hooks
import links
import notebook_pages
import other_pages
import page_checks
import repository

PICTURE = base64.b64encode((ROOT / "docs/pictures/fig1_paradox.png").read_bytes()).decode()
WIDE = "<table class='dataframe'><tr>" + "<td>a wide cell</td>" * 40 + "</tr></table>"

FORMULAS = """# 01. Small

$$\\begin{aligned}f &= \\frac{a}{\\sqrt{b}}\\\\ g &= \\lVert x\\rVert\\end{aligned}$$

## Sums

[next](07_figures.ipynb)"""

# ---- a small repository -----------------------------------------------------------------------------------------

TEXTS = {
    "README.md": "# Small\n\n[01](notebooks/01_small.ipynb#sums), [use](docs/use.md), [law](lib/icthp/law.py), [data](runs/data.csv)\n"
    '![a](docs/a.png)\n\n<a href="docs/use.md">use</a>\n\n| ' + "a long name | " * 30 + "\n" + "|---" * 30 + "|\n",
    "CONTRIBUTING.md": "# Contributing\n", "CHANGELOG.md": "# Changelog\n", "dvc.yaml": "01_small 07_figures",
    "docs/use.md": "# Use\n\nFirst:\n- [back](../README.md)\n- $x_1$\n\n"
    "| a |\n|---|\n| $f(v\\|t)$ |\n\n<details><summary>What is $y$?</summary>\n\n**A letter**\n\n</details>\n",
    "lib/icthp/__init__.py": '"""A small package."""\n', "lib/icthp/__init__.pyi": "from .law import area as area\n",
    "lib/icthp/law.py": '"""The law of circles."""\n\n\n'
    'def area(r: float) -> float:\n    """The area, <r, r> times pi."""\n    return 3 * r\n',
    "lib/icthp/figures/__init__.py": '"""Figures."""\n', "lib/icthp/figures/__init__.pyi": "",
    "lib/icthp/figures/captions.py": '"""Captions of figures."""\n\nCAPTIONS = {"fig1": "One circle: alone"}\n',
}  # fmt: skip


def save_notebook(path: Path, cells: list, **metadata) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


def code(source: str, *data: dict, tags=()) -> dict:
    outputs = [nbformat.v4.new_output("display_data", one) for one in data]
    return nbformat.v4.new_code_cell(source, outputs=outputs, metadata={"tags": list(tags)})


def small_repository(root: Path) -> Path:
    """Texts, a notebook and its executed copy, a figure, a package; the site's own sources."""
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "mkdocs.yml", root)
    shutil.copytree(ROOT / "docs/site", root / "docs/site", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "figures").mkdir()
    for place in ("docs/a.png", "figures/fig1.png", "figures/fig1.pdf"):
        shutil.copy(ROOT / "docs/pictures/fig1_paradox.png", root / place)
    cells = [
        nbformat.v4.new_markdown_cell(FORMULAS),
        code("size = 2", tags=["parameters"]),
        code("size = 3", tags=["injected-parameters"]),
        code("draw()", {"image/png": PICTURE, "text/plain": "<Figure>"}),
        code("frame", {"text/html": WIDE}),
        nbformat.v4.new_markdown_cell("The sum is $\\sum_i x_i$ of `$5`."),
        code("assert answer", {"text/plain": "42"}, tags=["solution"]),
    ]
    save_notebook(root / "notebooks/01_small.ipynb", [cells[0]])
    save_notebook(root / "runs/notebooks/01_small.ipynb", cells, papermill={"end_time": "2025", "exception": None})
    save_notebook(
        root / "notebooks/07_figures.ipynb",
        [nbformat.v4.new_markdown_cell("# 07. Figures\n\n[01](01_small.ipynb) says it."), code('save("fig1")')],
    )
    return root


def build(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", root / "mkdocs.yml"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, cwd=root)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = small_repository(tmp_path_factory.mktemp("small"))
    (root / "site").mkdir()
    (root / "site/playground.html").write_text("<h1>Play</h1>", encoding="utf-8")
    done = build(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not there yet: notebooks/07_figures.ipynb, runs/data.csv (`make repro` makes them).\n" in done.stdout
    return root / "site"


def page(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


# ---- its site ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|srcset|href)=[\"']?((?:https?:)?//[^\"'> ]+)", page(site, path)
        )
        assert not fetched, f"{path}: {fetched}"
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", page(site, path)), path


@pytest.mark.slow
def test_mathematics_is_there_without_a_script(site):
    text = page(site, "notebooks/01_small.html")
    assert re.search(r'<div class="formula"><math display="block">.*<mtable.*<mfrac>.*<msqrt>.*‖', text, re.S)
    assert "<msub><mo" in text or "<munder" in text
    assert "<code>$5</code>" in text and "\\frac" not in text and "arithmatex" not in text
    text = page(site, "docs/use.html")
    assert "<mi>x</mi><mn>1</mn>" in text and re.search(r"What is <span[^>]*><math><mi>y", text) and "<strong>A letter" in text
    assert re.search(r"<td>.*<mi>v</mi>(<mrow>)?<mo[^>]*>\|</mo>", text)


@pytest.mark.slow
def test_parameters_and_solutions_are_closed_and_outputs_open(site):
    text = page(site, "notebooks/01_small.html")
    parts = {title: body for title, body in re.findall(r"<details class=\"\w+\">\s*<summary>(.+?)</summary>(.+?)</details>", text, re.S)}
    assert list(parts) == ["Parameters", "Parameters of this run", "Solution"]
    assert "answer" in parts["Solution"] and "42" in parts["Solution"] and "size" in parts["Parameters"]
    assert text.count("answer") == 1 and "a wide cell" in re.sub(r"(?s)<details.*?</details>", "", text)
    assert (site / "notebooks/01_small/1.png").read_bytes() == base64.b64decode(PICTURE)
    assert '<a href="01_small.ipynb">' in text and json.loads(page(site, "notebooks/01_small.ipynb"))["cells"]


@pytest.mark.slow
def test_links_between_texts_lead_to_pages(site):
    text = page(site, "index.html")
    for target in ("notebooks/01_small.html#sums", "docs/use.html", "lib/icthp/law.py.html", "runs/data.csv.html", "playground.html"):
        assert f'href="{target}"' in text, target
    assert "def area(r: float)" in re.sub(r"<[^>]+>", "", page(site, "lib/icthp/law.py.html"))
    assert "make repro" in page(site, "runs/data.csv.html")
    assert text.count('href="docs/use.html"') >= 2  # in Markdown, in HTML
    assert '<li><a href="../index.html">back</a></li>' in page(site, "docs/use.html")


@pytest.mark.slow
def test_pages_follow_each_other(site):
    text = page(site, "notebooks/01_small.html")
    footer = dict(re.findall(r'<a href="([^"]+)" class="md-footer__link md-footer__link--(\w+)"', text))
    assert footer == {"../index.html": "prev", "07_figures.html": "next"}


@pytest.mark.slow
def test_figures_have_captions_and_the_text_of_their_notebook(site):
    text = page(site, "figures.html")
    assert re.search(r'<h2 id="fig1">One circle<.*<a href="notebooks/01_small.html">01</a> says it.*src="figures/fig1.png".*'
                     r"<em>One circle: alone.</em>.*figures/fig1.pdf", text, re.S)  # fmt: skip


@pytest.mark.slow
def test_the_api_comes_from_docstrings(site):
    text = page(site, "api/law.html")
    assert "The area, &lt;r, r&gt; times pi." in text and 'id="icthp.law.area"' in text and "3 * r" in re.sub(r"<[^>]+>", "", text)
    assert 'href="law.html#icthp.law.area"' in page(site, "api/index.html")


@pytest.mark.slow
def test_the_search_knows_texts_notebooks_and_the_api(site):
    text = json.dumps(json.loads(page(site, "search/search_index.json"))["docs"])
    assert all(words in text for words in ("The sum is", "The law of circles", "a wide cell", "Contributing"))
    assert page(site, "search/search_index.js").startswith("var __index = {")


SCRIPT = "window.failed = []; addEventListener('error', e => failed.push(e.message || e.target.src || e.target.href), true)"
CUT_OFF = """[...document.querySelectorAll('.md-content *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .filter(e => { while (e = e.parentElement) if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return false; return true })
    .map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_pages_in_a_browser_without_a_network(site, browser):  # noqa: F811
    """Opened from the folder, 400 pixels wide: all fits, all is there, and the search finds."""
    browser("Page.enable")
    browser("Page.addScriptToEvaluateOnNewDocument", source=SCRIPT)
    browser("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
    for name in ("index.html", "notebooks/01_small.html", "figures.html", "api/law.html"):
        browser("Page.navigate", url=f"file://{site}/{name}")
        browser.wait(f"location.pathname.endsWith('{name}') && document.readyState == 'complete'", 30)
        assert browser.run("document.documentElement.scrollWidth") <= 400, name
        assert browser.run(CUT_OFF) == [], name
        assert browser.run("failed") == [] and browser.run("[...document.images].every(i => i.naturalWidth)"), name
        asked = browser.run("performance.getEntriesByType('resource').map(r => r.name)")
        assert [address for address in asked if not address.startswith(("file:", "data:"))] == [], name
    browser.run("document.querySelector('[for=__search]').click()")
    browser.run("{ const box = document.querySelector('.md-search__input'); box.focus(); box.value = 'circles';"
                "box.dispatchEvent(new KeyboardEvent('keyup', {key: 's'})) }")  # fmt: skip
    assert "circles" in browser.wait("document.querySelector('.md-search-result__item')?.innerText", 30)


# ---- what ends a build ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("text, message", [
    ("[gone](gone.md)", "gone.md"), ("[gone](use.md#gone)", "gone"), ("![](https://example.org/a.png)", "fetches https://example.org/a.png"),
    ('<a href="gone.html">gone</a>', "gone.html leads nowhere"), ("$\\unknown$", "unknown"),
])  # fmt: skip
def test_a_dead_link_a_foreign_picture_or_a_wrong_formula_ends_the_build(text, message, tmp_path):
    (small_repository(tmp_path) / "docs/wrong.md").write_text(f"# Wrong\n\n{text}\n", encoding="utf-8")
    done = build(tmp_path)
    assert done.returncode != 0 and message in done.stdout + done.stderr


@pytest.mark.slow
def test_without_results_the_site_has_what_it_can(tmp_path):
    shutil.rmtree(small_repository(tmp_path) / "runs")
    shutil.rmtree(tmp_path / "figures")
    done = build(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    [sentence] = [line for line in done.stdout.splitlines() if line.startswith("Not there yet")]
    assert sentence == ("Not there yet: figures/, notebooks/01_small.ipynb, notebooks/07_figures.ipynb, runs/data.csv (`make repro` makes "
                        "them); playground.html (`make site` makes it).")  # fmt: skip
    assert "shows no results" in page(tmp_path / "site", "notebooks/01_small.html")


@pytest.mark.slow
def test_the_repository_itself_becomes_a_site(tmp_path):
    """Every link of its texts, every formula, every docstring."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "site/notebooks").glob("*.html"))) >= len(list(ROOT.glob("notebooks/*.ipynb")))


# ---- the parts --------------------------------------------------------------------------------------------------


def test_links_are_exchanged_outside_of_code():
    text = '[a](x.ipynb#b) [c](https://d) <img src="e.png"> <a href="../f.md">\n```python\ny[0](x.ipynb)\n```\n![](x.ipynb)'
    exchanged = links.relink(text, "docs/g.md", "docs/g.md", lambda path: path.replace(".ipynb", ".md"))
    assert exchanged == '[a](x.md#b) [c](https://d) <img src="e.png"> <a href="../f.html">\n```python\ny[0](x.ipynb)\n```\n![](x.md)'
    assert links.relink("[a](x.ipynb)", "notebooks/g.ipynb", "figures.md", lambda path: path) == "[a](notebooks/x.ipynb)"


def test_lists_and_tables_begin_a_paragraph_of_their_own():
    assert links.as_markdown("You can\n- a\n- b\n  c\n- d") == "You can\n\n- a\n- b\n  c\n- d"
    assert links.as_markdown("So:\n| a |\n|---|") == "So:\n\n| a |\n|---|"
    assert links.as_markdown("in\n2015. It\n```\nx\n- y\n```") == "in\n2015. It\n```\nx\n- y\n```"


def test_a_widget_is_shown_as_it_was_saved_and_progress_is_not():
    picture = {"output_type": "display_data", "data": {"image/png": PICTURE}}
    widgets = {"box": {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_slider", "IPY_MODEL_output"]}},
               "slider": {"model_name": "FloatSliderModel", "state": {}},
               "output": {"model_name": "OutputModel", "state": {"outputs": [picture]}},
               "bar": {"model_name": "HBoxModel", "state": {"children": ["IPY_MODEL_text", "IPY_MODEL_progress"]}},
               "text": {"model_name": "HTMLModel", "state": {"value": "80/80"}},
               "progress": {"model_name": "FloatProgressModel"}}  # fmt: skip
    assert list(notebook_pages.stills("box", widgets)) == [picture]
    assert list(notebook_pages.stills("bar", widgets)) == []
    assert list(notebook_pages.stills("gone", widgets)) == []


def test_docstrings_are_plain_text():
    assert docstrings.as_markdown("Mean of <v, t>, x[0](y), `a<b>`.") == "Mean of \\<v, t>, x[0]\\(y), `a<b>`.\n"
    columns = "Writes\n\nA.x    one\n       more\nB.y    two\n"
    assert docstrings.as_markdown(columns) == "Writes\n\n```text\nA.x    one\n       more\nB.y    two\n```\n"
    assert other_pages.sentence("(b, 3) in [0, 1], e.g. this. That.\n\nMore.") == "(b, 3) in [0, 1], e.g. this."


def test_folders_of_the_navigation_are_their_pages():
    pages = ["README.md", "docs/a.md", "docs/b.md", "api/z.md", "api/index.md"]
    nav = [{"Home": "README.md"}, {"Docs": ["docs/b.md", "docs/gone.md", "docs/"]}, {"API": "api/"}]
    assert hooks.unfolded(nav, pages) == [
        {"Home": "README.md"},
        {"Docs": ["docs/b.md", "docs/a.md"]},
        {"API": ["api/index.md", "api/z.md"]},
    ]


def test_complete_copies_of_a_notebook_are_its_pages(tmp_path):
    names = ["05_k-clip", "05_k-my_rewards.py-Edge", "05_k-worker-1", "05_k-clip.source", "05_kk-clip", "05_k-hp"]
    for name in names:
        save_notebook(tmp_path / f"{name}.ipynb", [], papermill={"end_time": None if name == "05_k-hp" else "2025"})
    source = Path("notebooks/05_k.ipynb")
    assert [copy.stem for copy in repository.copies_of(source, tmp_path)] == names[:2]
    assert repository.copies_of(source, tmp_path / "gone") == [source]


@pytest.mark.parametrize("text, wrong", [
    ("<script src='https://cdn.org/a.js'></script>", "fetches"), ("<img srcset='//cdn.org/a.png'>", "fetches"),
    ("<style>@import 'a.css'</style>", "style"), ("<p style='background: url(http://a.org/b.png)'>", "style"),
    ("<script>import('https://cdn.org/a.js')</script>", "script"), ("<a href='gone.html'>", "nowhere"), ("<a href='#gone'>", "no heading"),
    ("<a href='https://arxiv.org'><a href='#b'><h1 id='b'><img src='data:,'><a href='mailto:a@b.org'>", ""),
])  # fmt: skip
def test_the_checks_find_what_is_wrong(text, wrong, tmp_path):
    (tmp_path / "a.html").write_text(text, encoding="utf-8")
    lines = page_checks.problems(tmp_path)
    assert (len(lines) == 1 and wrong in lines[0]) if wrong else not lines
