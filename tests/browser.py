"""Chromium by its DevTools protocol: just what the tests say to it."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

IS_THERE = shutil.which("chromium") is not None


class Browser:
    """A page of its own in a headless Chromium; `folder` takes its profile. As a context manager it ends with the block."""

    def __init__(self, folder, width: int = 1300, height: int = 1400):
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}",
                   "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        port = next(m[1] for line in self.process.stderr if (m := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        target = next(p for p in pages if p["type"] == "page")
        self.socket, self.ids = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=120), itertools.count()
        self.events = []  # what the browser reports unasked, once a domain is enabled

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def __call__(self, method, **params):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(answer)
        return answer["result"]

    def run(self, script):
        """The value of a JavaScript expression, None where it fails."""
        return self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def wait(self, script, seconds, pause: float = 1):
        end = time.time() + seconds
        while not (value := self.run(script)):
            assert time.time() < end, f"after {seconds} s still not: {script}"
            time.sleep(pause)
        return value

    def screenshot(self, file, **params):
        Path(file).write_bytes(base64.b64decode(self("Page.captureScreenshot", **params)["data"]))
