"""What is pushed to a hub is what was saved."""

import base64
import http.server
import json
import threading

import pytest
import torch
from huggingface_hub import constants

from icthp.scorers import hub, loading
from icthp.scorers.hp import HpScorer, make_head


@pytest.fixture
def pushed(monkeypatch):
    """A local Hub: as much of its HTTP interface as a push of small files uses. Yields {path in the repository: its bytes}."""
    files = {}

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"id": "me/ict", "sha": "0" * 40, "siblings": []})

        def do_POST(self):
            body, url = self.rfile.read(int(self.headers["Content-Length"] or 0)), f"http://127.0.0.1:{self.server.server_port}/me/ict"
            if self.path.endswith("/repos/create"):
                return self.answer({"url": url, "name": "me/ict"})
            if "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                return self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self.answer({"success": True, "commitUrl": f"{url}/commit/{'0' * 40}", "commitOid": "0" * 40})
            return self.answer({})

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield files
    server.shutdown()


@pytest.mark.parametrize("name", ["ict", "hp"])
def test_a_pushed_scorer_is_the_saved_one(pushed, clip_folder, tmp_path, name):
    """The whole folder, card included, goes to the Hub in one commit, and what arrives loads and scores alike."""
    clip = loading.load("clip", f"local-dir:{clip_folder}")
    config = {"width": 16, "variant": "paper", "outputs": 1}
    scorer = clip if name == "ict" else HpScorer(clip, make_head(**config), config).eval()
    scorer.save_pretrained(tmp_path / "saved")
    measured = {"ict_i2_i1_acc": 0.61, "ict_i2_i1_acc_low": 0.5, "ict_i2_i1_acc_high": 0.7, "ict_i2_i1_acc_n": 90, "final_loss": 0.2}
    hub.write_model_card(tmp_path / "saved", name, "micro", {"steps": 9, "variant": "paper"}, measured)
    source = f"local-dir:{tmp_path / 'saved'}" if name == "ict" else str(tmp_path / "saved")
    loading.load(name, source).push_to_hub("me/ict", token="hf_test")
    for path, contents in pushed.items():
        (tmp_path / "arrived" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "arrived" / path).write_bytes(contents)
    again = loading.load(name, source.replace("saved", "arrived"))
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.score(pixels, ["a", "b"]), scorer.score(pixels, ["a", "b"]))
    card = (tmp_path / "arrived/README.md").read_text(encoding="utf-8")
    assert "| ict_i2_i1_acc | 0.610 | 0.500 to 0.700 | 90 |" in card and "final_loss" not in card and "- steps: `9`" in card
    assert "micro numbers" in card and "Known failures" in card and card.startswith("---\n")
    trainable = type(scorer).from_pretrained(str(tmp_path / "arrived"))  # another path through torch's attention than frozen weights take
    assert torch.allclose(trainable.score(pixels, ["a", "b"]), scorer.score(pixels, ["a", "b"]), atol=2e-6)
