"""The paper scale's own branches rehearsed, on the models of `lab.models`: no guidance, four steps, an endpoint, the official release,
ICT's text tower in the generator."""

import http.server
import itertools
import json
import threading

import pandas as pd
import pytest

from conftest import ROOT
from icthp.run import declared
from lab.project import OWN, SMALL, build, parameters, project, read, refused, sources, stage, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A project at paper's profile: no guidance, four steps, an endpoint, ICT's text tower in the generator."""
    folder = project(tmp_path_factory.mktemp("paper"), build(tmp_path_factory.mktemp("lab") / "own"))
    own = SMALL | {"shared": SMALL["shared"] | {"sampler_steps": 4, "rewards": ["ict"]}}
    values = parameters("paper", own, sources("own", "paper"), {"pick_high": {"refiner_url": "https://nowhere.invalid/v1"}})
    values["evaluate"] |= {"swap_text": True, "votes": ""}
    assert values["draft"]["guidance"] == values["evaluate"]["guidance"] == 0 and values["pick_high"]["refiner"] == "endpoint"
    write(folder, values)
    return folder


def test_the_official_release_trains_and_is_evaluated(paper):
    """A4 reads it, 03 to 06 take it; the row that breaks an invariant is left out by name; ICT's text tower takes CLIP's place."""
    values = json.loads((paper / "params.yaml").read_text(encoding="utf-8"))
    of_a4 = declared(ROOT / "notebooks/A4_published_data.ipynb") | {"out": "runs/published", "official": "own/official"}
    write(paper, values | {"published": of_a4})
    stage("A4_published_data", "published", paper)
    rejects = pd.read_csv(paper / "runs/published/rejects.csv")
    assert len(rejects) == 1 and "E1 is above E2" in rejects.reason[0]
    write(paper, values | {"shared": values["shared"] | {"triplets": "runs/published/pick_high"}})
    stage("03_train_ict", "train_ict", paper)
    stage("04_train_hp", "train_hp", paper)
    stage("05_draft_k", "draft", paper, "reward=ict")
    stage("06_evaluate", "evaluate", paper)
    metrics = read(paper / "runs/evaluate/metrics.json")
    assert metrics[f"{OWN}_plain_i3_i1_acc"] == 1 and {"ict_text_geneval_mean", "ict_text_alone_diversity"} <= metrics.keys()
    assert not [name for name in metrics if "micro" in name or name.endswith("_pairs")]


class Answers(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that refines each prompt, and asks for patience the first time."""

    numbers = itertools.count(1)

    def do_POST(self):
        number = next(self.numbers)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["messages"][-1]["content"]
        content = json.dumps({"prompt": f"{prompt}, in soft morning light"})
        answer = {"choices": [{"message": {"content": f"Light: low.\n{content}"}, "finish_reason": "stop"}], "usage": {"total_tokens": 9}}
        body = json.dumps(answer).encode()
        self.send_response(429 if number == 1 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_an_endpoint_refines_and_four_steps_draw(paper):
    """02 as the paper has it: each prompt is asked for once, I3 drawn without guidance."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"refiner_url=http://127.0.0.1:{server.server_port}/v1"
    try:
        stage("02_pick_high", "pick_high", paper, url, OPENAI_API_KEY="secret")
    finally:
        server.shutdown()
    metrics = read(paper / "runs/pick_high/metrics.json")
    assert metrics["rejected"] == 0 and (metrics["train"], metrics["test"]) == (20, 10) and next(Answers.numbers) == 32
    assert "secret" not in (paper / "runs/pick_high/refined.jsonl").read_text(encoding="utf-8")
    assert not [name for name in metrics if "micro" in name]


def test_a_refiner_that_nobody_reaches_is_said_before_the_generator_is_loaded(paper):
    assert "nowhere.invalid" in refused(paper)
