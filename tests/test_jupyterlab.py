"""A notebook as its reader meets it: JupyterLab in a browser, Run All, figures there and no error."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from browser import IS_THERE, Browser
from conftest import ROOT

BIN = Path(sys.executable).parent
ready = pytest.mark.skipif(not IS_THERE or not (ROOT / "data/hub/clip").exists(), reason="needs chromium and `dvc pull`")


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        yield browser


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab on the project as `make lab` starts it, with its settings elsewhere."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=key", "--LabApp.expose_app_in_browser=True",
               "--ServerApp.use_redirect_file=False"]  # fmt: skip
    with open(tmp_path / "lab.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen([BIN / "jupyter", "lab", *options], cwd=ROOT, env=environment, stdout=log, stderr=log)
    for _ in range(120):
        if found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", (tmp_path / "lab.log").read_text(encoding="utf-8")):
            break
        time.sleep(0.5)
    yield f"http://127.0.0.1:{found[1]}"
    server.terminate()
    server.wait()


PANEL = "[...jupyterapp.shell.widgets('main')][0]"
CELLS = f"(() => {{ const cells = {PANEL}.content.model.cells; return [...Array(cells.length).keys()]"
CODE = CELLS + ".map(i => cells.get(i).toJSON()).filter(c => c.cell_type == 'code') })()"


@ready
def test_run_all_in_jupyterlab(lab, browser, tmp_path):
    before = (ROOT / "notebooks/01_scoring_paradox.ipynb").read_bytes()
    browser("Page.navigate", url=f"{lab}/lab/tree/notebooks/01_scoring_paradox.ipynb?token=key&reset")
    browser.wait(f"window.jupyterapp && {PANEL}?.sessionContext?.session?.kernel?.status == 'idle'", 120)
    browser.run(f"jupyterapp.shell.activateById({PANEL}.id)")
    browser.run("void jupyterapp.commands.execute('notebook:run-all-cells')")
    browser.wait(
        f"{CODE}.every(c => c.execution_count || !c.source.length) || {CODE}.some(c => c.outputs.some(o => o.output_type == 'error'))", 600
    )
    cells = browser.run(CODE)
    errors = ["".join(o["traceback"]) for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    assert not errors, errors[0]
    pictures = [o for c in cells for o in c["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) >= 5
    last = max(i for i, c in enumerate(cells) if any("image/png" in o.get("data", {}) for o in c["outputs"]))
    drawn = f"{PANEL}.content.widgets.filter(w => w.model.type == 'code')[{last}]"
    browser.run(f"{PANEL}.content.scrollToItem({PANEL}.content.widgets.indexOf({drawn}))")
    assert browser.wait("[...document.querySelectorAll('.jp-OutputArea-output img')].some(i => i.naturalWidth > 100)", 60)
    browser.screenshot(tmp_path / "lab.png")
    assert (tmp_path / "lab.png").stat().st_size > 20_000
    assert (ROOT / "notebooks/01_scoring_paradox.ipynb").read_bytes() == before  # nothing is saved unasked
