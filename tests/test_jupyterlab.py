"""A notebook as its reader meets it: JupyterLab in a browser, Run All, figures there and no error."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import websocket

from conftest import ROOT

BIN = Path(sys.executable).parent
ready = pytest.mark.skipif(not shutil.which("chromium") or not (ROOT / "data/hub/clip").exists(), reason="needs chromium and `dvc pull`")


class Browser:
    """Chromium by its DevTools protocol: just what this test says to it."""

    def __init__(self, folder):
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1400", "--remote-debugging-port=0",
                   "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        port = next(m[1] for line in self.process.stderr if (m := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        target = next(p for p in pages if p["type"] == "page")
        self.socket, self.ids = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=120), itertools.count()

    def __call__(self, method, **params):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            pass
        return answer["result"]

    def run(self, script):
        """The value of a JavaScript expression, None where it fails."""
        return self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def wait(self, script, seconds):
        end = time.time() + seconds
        while not (value := self.run(script)):
            assert time.time() < end, f"after {seconds} s still not: {script}"
            time.sleep(1)
        return value

    def screenshot(self, file):
        Path(file).write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.process.kill()
    browser.process.wait()


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
    browser.run("jupyterapp.commands.execute('notebook:run-all-cells')")
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
