import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from icthp import microworld, refine

FITS = lambda text: len(text.split()) <= 60


def test_the_grammars_refiner_keeps_what_is_said(scenes):
    easy = microworld.captions(scenes)
    refined = list(refine.microworld_grammar(easy, seed=1))
    assert microworld.captions(microworld.parse(refined, torch.Generator())) == easy
    assert all(len(r) > len(e) for r, e in zip(refined, easy))
    assert refined == list(refine.microworld_grammar(easy, seed=1)) != list(refine.microworld_grammar(easy, seed=2))
    assert set(refine.problems(easy, refined, FITS)) == {""}


# ---- an endpoint ----------------------------------------------------------------------------------------------------


class Endpoint:
    """A local server that speaks the chat-completions protocol. `script[prompt]` lists what it does at each request for
    a prompt, the last one for ever: a status to fail with, a text to answer, or None for the usual good answer."""

    def __init__(self):
        self.seen, self.script, self.delay, self.busy, self.most_busy = [], {}, 0.0, 0, 0

    def reply(self, prompt: str):
        steps = self.script.get(prompt, [None])
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        return json.dumps({"prompt": f"{prompt}, at dusk"}) if step is None else step

    def serve(self):
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                endpoint.busy += 1
                endpoint.most_busy = max(endpoint.most_busy, endpoint.busy)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                endpoint.seen.append((self.path, self.headers["Authorization"], body))
                time.sleep(endpoint.delay)
                step = endpoint.reply(prompt)
                endpoint.busy -= 1
                if step == "hang":
                    time.sleep(1.5)
                status, text = (step, "") if isinstance(step, int) else (400, "") if step == "refused" else (200, step)
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice],
                          "usage": {"prompt_tokens": 60, "completion_tokens": 40, "total_tokens": 100}}  # fmt: skip
                if step == "refused":
                    answer = {"error": {"message": "no", "code": "content_policy_violation"}}
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "5")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):  # a client that has gone away
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = Endpoint().serve()
    yield server
    server.server.shutdown()


def asked(endpoint):
    return [body["messages"][-1]["content"] for _, _, body in endpoint.seen]


def test_endpoint_gives_the_sentence(endpoint):
    endpoint.script["a dog"] = ['Subject: {a dog}. Light: low.\n{"prompt": "a dog\\n at  noon"}']
    assert list(refine.endpoint(["a cat", "a dog"], "some-model", endpoint.url)) == ["a cat, at dusk", "a dog at noon"]
    path, key, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "some-model"
    assert body["messages"][0]["content"] == refine.INSTRUCTION


@pytest.mark.parametrize(
    "trouble", [429, 500, 503, "hang", '{"prompt": "cut sho', "no JSON at all", '{"sentence": "x"}', '{"prompt": 3}', ""]
)
def test_endpoint_gets_over_trouble(endpoint, trouble):
    endpoint.script["a cat"] = [trouble, None]
    assert list(refine.endpoint(["a cat"], "m", endpoint.url, timeout=1)) == ["a cat, at dusk"]
    assert asked(endpoint) == ["a cat"] * 2


def test_endpoint_that_never_answers_in_json(endpoint):
    endpoint.script["a cat"] = ["sorry"]
    assert list(refine.endpoint(["a cat", "a dog"], "m", endpoint.url)) == ["", "a dog, at dusk"]
    assert asked(endpoint).count("a cat") == 3


def test_a_prompt_that_the_policy_refuses_stops_nobody(endpoint):
    import openai

    endpoint.script |= {"a cat": ["refused"], "a cow": [400]}
    assert list(refine.endpoint(["a cat", "a dog"], "m", endpoint.url)) == ["", "a dog, at dusk"]
    with pytest.raises(openai.BadRequestError):
        list(refine.endpoint(["a cow"], "m", endpoint.url))


def test_endpoint_asks_several_at_a_time(endpoint):
    endpoint.delay = 0.1
    prompts = [f"cat {i}" for i in range(8)]
    assert list(refine.endpoint(prompts, "m", endpoint.url, workers=4)) == [f"{p}, at dusk" for p in prompts]
    assert 2 <= endpoint.most_busy <= 4


def test_endpoint_without_a_key_and_with_a_wrong_one(endpoint, monkeypatch):
    import openai

    endpoint.script["a cat"] = [401]
    with pytest.raises(openai.AuthenticationError):
        list(refine.endpoint(["a cat"], "m", endpoint.url))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RuntimeError, match="environment variable OPENAI_API_KEY"):
        list(refine.endpoint(["a cat"], "m", endpoint.url))


def test_the_budget_stops_and_keeps_what_was_paid(endpoint, tmp_path):
    prompts = [f"cat {i}" for i in range(6)]
    refiner = lambda tokens: lambda p: refine.endpoint(p, "m", endpoint.url, workers=1, tokens=tokens)
    with pytest.raises(RuntimeError, match="300 tokens are spent, the limit is 250"):
        refine.stored(prompts, refiner(250), tmp_path / "refined.jsonl", "m")
    assert refine.stored(prompts, refiner(0), tmp_path / "refined.jsonl", "m") == [f"{p}, at dusk" for p in prompts]
    assert asked(endpoint) == prompts  # none was paid for twice


# ---- what is stored -------------------------------------------------------------------------------------------------


def test_an_answer_is_asked_for_once(tmp_path):
    calls = []
    refiner = lambda prompts: calls.append(prompts) or [p.upper() for p in prompts]
    path = tmp_path / "new" / "refined.jsonl"
    assert refine.stored(["b", "a", "b"], refiner, path, "m") == ["B", "A", "B"]
    assert refine.stored(["a", "c", "b"], refiner, path, "m") == ["A", "C", "B"]
    assert refine.stored(["é\u2028"], refiner, path, "m") == ["É\u2028"] == refine.stored(["é\u2028"], refiner, path, "m")
    assert calls == [["b", "a"], ["c"], ["é\u2028"]]
    refine.stored(["a"], refiner, path, "another model")
    assert calls[-1] == ["a"]


def test_a_cut_line_is_asked_again(tmp_path):
    path = tmp_path / "refined.jsonl"
    refine.stored(["a", "b"], lambda prompts: [p.upper() for p in prompts], path, "m")
    path.write_text(path.read_text(encoding="utf-8")[:-9])
    asked = []
    assert refine.stored(["a", "b"], lambda prompts: [asked.append(p) or p.upper() for p in prompts], path, "m") == ["A", "B"]
    assert asked == ["b"] and refine.stored(["a", "b"], None, path, "m") == ["A", "B"]


def test_kill_9_while_refining(endpoint, tmp_path):
    """A process that is killed between answers: the next one asks for the rest only, and the result is the same."""
    prompts, path = [f"cat {i}" for i in range(12)], tmp_path / "refined.jsonl"
    code = ("import sys; from icthp import refine; url, path, *prompts = sys.argv[1:]; "
            "refine.stored(prompts, lambda p: refine.endpoint(p, 'm', url, workers=1), path, 'm')")  # fmt: skip
    endpoint.delay = 0.1
    child = subprocess.Popen([sys.executable, "-c", code, endpoint.url, str(path), *prompts], env=os.environ)
    while not path.exists() or path.read_text(encoding="utf-8").count("dusk") < 3:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    paid = path.read_text(encoding="utf-8").count("dusk")
    time.sleep(0.3)
    endpoint.seen.clear()
    assert refine.stored(prompts, lambda p: refine.endpoint(p, "m", endpoint.url), path, "m") == [f"{p}, at dusk" for p in prompts]
    assert 3 <= paid < 12 and sorted(asked(endpoint)) == sorted(prompts[paid:])


# ---- checks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("easy, refined, reason", [
    ("two red cats on a wall", "On a stone wall at dusk, two red cats sleep", ""),
    ("a cat", "", "no answer"),
    ("  ", "a cat", "empty easy prompt"),
    ("a red cat", "a cat at dusk", "a unit is lost"),
    ("three cats", "two cats", "a unit is lost"),
    ("a cat", "a cat " + "at dusk " * 40, "too long"),
    ("cat " * 10_000, "a cat at dusk", "easy prompt too long"),
    ("a cat", "黄昏时分的 cat 坐在石墙上", "another script"),
    ("кот", "кот at dusk", ""),
])  # fmt: skip
def test_why_a_prompt_is_rejected(easy, refined, reason):
    assert refine.problem(easy, refined, FITS) == reason


def test_one_answer_for_two_prompts_is_a_duplicate():
    easy, refined = ["a cat", "cats", "a cat"], ["a cat sat", "a cat sat", "a cat sat"]
    assert refine.problems(easy, refined, FITS) == ["", "duplicate", ""]


# ---- near misses ----------------------------------------------------------------------------------------------------


def test_a_near_miss_changes_one_unit_and_stays_a_sentence(scenes):
    prompts = microworld.captions(scenes)
    missed = [refine.near_miss(p, 0, refine.MICROWORLD) for p in prompts]
    microworld.parse(missed, torch.Generator())
    changed = [sum(a != b for a, b in zip(p.replace("left of", "left-of").split(), m.replace("left of", "left-of").split()))
               for p, m in zip(prompts, missed)]  # fmt: skip
    assert set(changed) == {1} and missed == [refine.near_miss(p, 0, refine.MICROWORLD) for p in prompts]
    assert missed != [refine.near_miss(p, 1, refine.MICROWORLD) for p in prompts]


def test_near_misses_of_natural_prompts():
    seen = {refine.near_miss("Two red cats left of a dog", seed) for seed in range(200)}
    assert {"three red cats left of a dog", "Two blue cats left of a dog", "Two red cats above a dog"} <= seen
    assert "Two red cats left of a dog" not in seen and refine.near_miss("a colourful cat, bored", 0) == ""
