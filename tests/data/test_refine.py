"""Refiners, the cache of their answers and the checks of refined prompts; the endpoint is a local server that does what is asked."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from icthp import chat
from icthp.data import refine, wording
from icthp.microworld import grammar
from icthp.microworld.refiner import microworld_grammar

FITS = lambda text: len(text.split()) <= 60


def test_the_grammars_refiner_keeps_all_that_the_prompt_names(scenes):
    easy = grammar.captions(scenes)
    refined = list(microworld_grammar(easy, seed=1))
    assert grammar.captions(grammar.parse(refined, torch.Generator())) == easy
    assert all(len(r) > len(e) for r, e in zip(refined, easy))
    assert refined == list(microworld_grammar(easy, seed=1)) != list(microworld_grammar(easy, seed=2))
    assert set(wording.refinement_errors(easy, refined, FITS)) == {""}


# ---- an endpoint ----------------------------------------------------------------------------------------------------


class Endpoint:
    """A local server that speaks the chat-completions protocol. `script[prompt]` lists what it does at each request for
    a prompt, the last one for ever: a status to fail with, a text to answer, None for the usual good answer, or a function that
    is handed the request's handler and does as it likes."""

    def __init__(self):
        self.requests = []
        self.script = {}
        self.delay = 0.0  # seconds
        self.busy = 0
        self.most_busy = 0

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
                endpoint.requests.append((self.path, self.headers["Authorization"], body))
                time.sleep(endpoint.delay)
                step = endpoint.reply(prompt)
                endpoint.busy -= 1
                if callable(step):
                    return step(self)
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
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = Endpoint().serve()
    yield server
    server.server.shutdown()


def asked(endpoint):
    return [body["messages"][-1]["content"] for _, _, body in endpoint.requests]


def test_endpoint_gives_the_sentence(endpoint):
    endpoint.script["a dog"] = ['Subject: {a dog}. Light: low.\n{"prompt": "a dog\\n at  noon"}']
    assert list(refine.endpoint(["a cat", "a dog"], "some-model", endpoint.url)) == ["a cat, at dusk", "a dog at noon"]
    path, key, body = endpoint.requests[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "some-model"
    assert body["messages"][0]["content"] == refine.INSTRUCTION


@pytest.mark.parametrize(
    "failure", [429, 500, 503, "hang", '{"prompt": "cut sho', "no JSON at all", '{"sentence": "x"}', '{"prompt": 3}', ""]
)
def test_endpoint_asks_again_after_a_failure(endpoint, failure):
    endpoint.script["a cat"] = [failure, None]
    assert list(refine.endpoint(["a cat"], "m", endpoint.url, timeout=1)) == ["a cat, at dusk"]
    assert asked(endpoint) == ["a cat"] * 2


def test_endpoint_that_never_answers_in_json(endpoint):
    endpoint.script["a cat"] = ["sorry"]
    with pytest.warns(UserWarning, match=rf"1 of 2 prompts got no answer from {endpoint.url}.*'a cat' \(its answers hold no sentence\)"):
        assert list(refine.endpoint(["a cat", "a dog"], "m", endpoint.url)) == ["", "a dog, at dusk"]
    assert asked(endpoint).count("a cat") == 3


def test_a_prompt_that_the_policy_refuses_is_asked_once_for_ever(endpoint, tmp_path):
    filtered = body(json.dumps({"choices": [{"finish_reason": "content_filter", "message": {"content": None}}]}))
    endpoint.script |= {"a cat": ["refused"], "a cow": [filtered], "a pig": [400]}
    refiner = lambda prompts: refine.endpoint(prompts, "m", endpoint.url)
    for times in (1, 2):
        with pytest.warns(UserWarning, match="1 of . prompts got no answer .*'a pig'.*it answers 400"):
            answers = refine.cached(["a cat", "a cow", "a pig", "a dog"], refiner, tmp_path / "refined.jsonl", "m")
        assert answers == ["", "", "", "a dog, at dusk"]
        assert [asked(endpoint).count(p) for p in ("a cat", "a cow", "a pig", "a dog")] == [1, 1, times, 1]


def test_endpoint_asks_several_at_a_time(endpoint):
    endpoint.delay = 0.1
    prompts = [f"cat {i}" for i in range(8)]
    assert list(refine.endpoint(prompts, "m", endpoint.url, workers=4)) == [f"{p}, at dusk" for p in prompts]
    assert 2 <= endpoint.most_busy <= 4


@pytest.mark.parametrize("status, message", [
    (401, "refuses the key in OPENAI_API_KEY"), (403, "refuses the key in OPENAI_API_KEY"), (404, "knows no such model"),
    (402, "credit is spent")])  # fmt: skip
def test_an_error_of_the_endpoint_stops_at_once_and_keeps_the_answers(endpoint, tmp_path, status, message):
    endpoint.script["cat 1"] = [status]
    path = tmp_path / "refined.jsonl"
    with pytest.raises(RuntimeError, match=message):
        refine.cached([f"cat {i}" for i in range(9)], lambda p: refine.endpoint(p, "m", endpoint.url, workers=4), path, "m")
    assert sorted(asked(endpoint)) == [f"cat {i}" for i in range(4)]
    refine.cached(["cat 0", "cat 2", "cat 3"], None, path, "m")  # the round's other answers are kept


def test_no_key_or_no_address(endpoint, monkeypatch):
    for url in ("", "localhost:8000/v1", "http://", "file:///v1", "http://[::1/v1"):
        with pytest.raises(ValueError, match="is no address of an endpoint: it should look like https://host/v1"):
            list(refine.endpoint(["a cat"], "m", url))
    monkeypatch.setenv("OPENAI_API_KEY", "top\nsecret")
    with pytest.raises(RuntimeError, match="OPENAI_API_KEY holds characters that no key has") as caught:
        list(refine.endpoint(["a cat"], "m", endpoint.url))
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RuntimeError, match="environment variable OPENAI_API_KEY"):
        list(refine.endpoint(["a cat"], "m", endpoint.url))


def test_a_host_out_of_reach_stops(endpoint, monkeypatch):
    monkeypatch.setattr(chat, "RETRIES", 1)
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(RuntimeError, match=f"{endpoint.url} cannot be reached"):
        list(refine.endpoint(["a cat"], "m", endpoint.url))


def test_the_budget_stops_and_keeps_what_was_paid(endpoint, tmp_path):
    prompts = [f"cat {i}" for i in range(6)]
    refiner = lambda tokens: lambda p: refine.endpoint(p, "m", endpoint.url, workers=1, tokens=tokens)
    with pytest.raises(RuntimeError, match="300 tokens are spent, the limit is 250"):
        refine.cached(prompts, refiner(250), tmp_path / "refined.jsonl", "m")
    assert refine.cached(prompts, refiner(0), tmp_path / "refined.jsonl", "m") == [f"{p}, at dusk" for p in prompts]
    assert asked(endpoint) == prompts  # none was paid for twice


# ---- a hostile endpoint -----------------------------------------------------------------------------------------------


def body(contents, status=200, **headers):
    """A step of the endpoint: this body, with these headers (Content_Length for one that lies)."""
    contents = contents if isinstance(contents, bytes) else contents.encode()

    def step(handler):
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(contents)

    return step


def message(content):
    return json.dumps({"choices": [{"message": {"content": content}}]})


MALFORMED = {
    "a page": body("<html>Bad gateway</html>", Content_Type="text/html"), "nothing": body(""), "null": body("null"), "a list": body("[]"),
    "a number": body("7"), "a text": body('"choices"'), "choices null": body('{"choices": null}'), "no choices": body('{"choices": []}'),
    "choices a number": body('{"choices": 3}'), "a choice null": body('{"choices": [null]}'), "no message": body('{"choices": [{}]}'),
    "message a text": body('{"choices": [{"message": "x"}]}'), "content null": body(message(None)), "content a number": body(message(5)),
    "content an object": body(message({"prompt": "x"})), "cut": body(message("x")[:-9]), "no utf-8": body(b'{"choices": "\xff\xfe"}'),
    "content odd parts": body(message([None, 3, {"type": "image", "text": "x"}, {"type": "text"}])), "no answer": lambda handler: None,
    "digits": body('{"choices": ' + "9" * 5000 + "}"), "digits in the sentence": body(message('{"prompt": ' + "9" * 5000 + "}")),
    "brackets": body("[" * 100_000), "objects": body('{"a":' * 100_000), "brackets in the sentence": body(message("[{" * 20_000)),
    "objects in the sentence": body(message('{"prompt":' * 20_000)), 
    "ten megabytes": body(b" " * 10_000_000 + message('{"prompt": "x"}').encode()),
    "half a character": body(message('{"prompt": "a \\ud800"}')),
    "less than it says": body(message('{"prompt": "x"}'), Content_Length="900"),
    "gzip": body(b"\x1f\x8b\x08\x00junk", Content_Encoding="gzip"),
    "an error": body('{"error": {"code": 7, "message": ["x"]}}'), "usage a text": body('{"choices": [], "usage": "x"}'),
    "no http": lambda handler: handler.wfile.write(b"hello\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_answer_is_no_sentence_and_stops_nobody(endpoint, tmp_path, kind):
    """Once: asked again. Always: "", not cached, so that the next run asks again; the other prompts have their answers."""
    endpoint.script |= {"a cat": [MALFORMED[kind], None], "a cow": [MALFORMED[kind]]}
    prompts, path = ["a cat", "a cow", "a dog"], tmp_path / "refined.jsonl"
    refiner = lambda prompts: refine.endpoint(prompts, "m", endpoint.url, tries=2, timeout=20, tokens=10**9)
    with pytest.warns(UserWarning, match="1 of 3 prompts got no answer .*'a cow'"):
        assert refine.cached(prompts, refiner, path, "m") == ["a cat, at dusk", "", "a dog, at dusk"]
    assert [asked(endpoint).count(p) for p in prompts] == [2, 2, 1]
    endpoint.script.clear()
    assert refine.cached(prompts, refiner, path, "m") == [f"{p}, at dusk" for p in prompts]
    assert [asked(endpoint).count(p) for p in prompts] == [2, 3, 1]


def test_content_in_parts_is_joined(endpoint):
    parts = [{"type": "text", "text": '{"prompt": "a cat'}, {"type": "image_url"}, {"type": "text", "text": ' at dawn"}'}]
    endpoint.script["a cat"] = [body(message(parts))]
    assert list(refine.endpoint(["a cat"], "m", endpoint.url)) == ["a cat at dawn"]


@pytest.mark.parametrize("status", [400, 409, 418, 422, 429, 500, 502, 503])
def test_an_error_that_stays_costs_one_prompt_only(endpoint, monkeypatch, status):
    monkeypatch.setattr(chat, "RETRIES", 2)
    wrong = body('{"error": {"message": "no \\u001b[31m luck", "code": "odd"}}', status, retry_after_ms="1")
    endpoint.script["a cat"] = [wrong]
    with pytest.warns(UserWarning, match=rf"'a cat' \(it answers {status}: 'no \\x1b\[31m luck'\)"):
        assert list(refine.endpoint(["a cat", "a dog"], "m", endpoint.url)) == ["", "a dog, at dusk"]
    assert asked(endpoint).count("a cat") == (1 if status in (400, 418, 422) else 3)


def drip(head: bytes):
    """A step that sends `head` at once, then a byte every 0.05 seconds for as long as somebody listens."""

    def step(handler):
        handler.wfile.write(head)
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    return step


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\n\r\n"])
def test_a_drip_ends_at_the_deadline(endpoint, head):
    endpoint.script["a cat"] = [drip(head)]
    start = time.monotonic()
    with pytest.warns(UserWarning, match=r"'a cat' \(no whole answer within 0.5 seconds\)"):
        assert list(refine.endpoint(["a cat", "a dog"], "m", endpoint.url, timeout=0.5, tries=2)) == ["", "a dog, at dusk"]
    assert 1 <= time.monotonic() - start < 4


def test_no_redirect_is_followed(endpoint):
    other = Endpoint().serve()
    endpoint.script["a cat"] = [body("", 307, Location=f"{other.url}/chat/completions")]
    with pytest.warns(UserWarning, match=r"'a cat' \(it leads elsewhere \(307\), where the key does not go"):
        assert list(refine.endpoint(["a cat", "a dog"], "m", endpoint.url)) == ["", "a dog, at dusk"]
    other.server.shutdown()
    assert not other.requests and asked(endpoint).count("a cat") == 1


KEY = "sk-abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 429, 500])
def test_the_key_is_in_no_message_log_repr_or_answer(endpoint, monkeypatch, caplog, tmp_path, status):
    """From a server that quotes it wherever it can."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(chat, "RETRIES", 1)
    quoted = json.dumps({"error": {"message": f"wrong key {KEY}, {KEY.upper()}", "code": KEY},
                         "choices": [{"message": {"content": json.dumps({"prompt": f"a cat, {KEY}"})}}]})  # fmt: skip
    endpoint.script["a cat"] = [body(quoted, status, Location=f"http://{KEY}/", X_Key=KEY)]
    caplog.set_level("INFO")
    shown = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            shown.append(refine.cached(["a cat"], lambda p: refine.endpoint(p, "m", endpoint.url), tmp_path / "r.jsonl", "m"))
        except RuntimeError as error:
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "icthp" in frame.f_code.co_filename]
            shown += [str(error), *traceback.format_exception(error), *(repr(frame.f_locals) for frame in frames)]
            assert frames
    shown += [str(w.message) for w in warned] + [caplog.text, repr(chat.open_endpoint(endpoint.url, "OPENAI_API_KEY"))]
    assert len(shown) > 2 and endpoint.requests[0][1] == f"Bearer {KEY}"
    assert KEY.lower() not in "".join(map(str, shown)).lower() and not (tmp_path / "r.jsonl").exists()


def test_a_password_in_the_address_is_in_no_message(endpoint):
    endpoint.script["a cat"] = [404]
    url = endpoint.url.replace("http://", "http://me:word@") + "?code=word"
    with pytest.raises(RuntimeError) as caught:
        list(refine.endpoint(["a cat"], "m", url))
    assert "word" not in str(caught.value) and endpoint.requests[0][0] == "/v1/chat/completions?code=word"


def test_a_server_that_does_not_count_is_counted(endpoint):
    endpoint.script["cat 0"] = [body(message('{"prompt": "cat 0, at dusk"}'))]
    with pytest.raises(RuntimeError, match=r"\d\d\d tokens are spent, the limit is 1;"):
        list(refine.endpoint(["cat 0", "cat 1"], "m", endpoint.url, workers=1, tokens=1))
    assert asked(endpoint) == ["cat 0"]


# ---- the prompt in an answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer, found", [
    ('{"prompt": "a {nested} cat"}', "a {nested} cat"), ('{"prompt": "a cat", "why": {"light": "low"}}', "a cat"),
    ('{"prompt": "a cat"} or {"prompt": "a dog"}', "a dog"), ('{"prompt": "a cat"} {"prompt": 3} {"prompt": null}', "a cat"),
    ('{"prompt": "a cat"} {"prompt": "a do', "a cat"), ('Subject {a dog}: {"prompt": "a } dog"} {', "a } dog"),
    ('{"prompt": {"prompt": "inner"}}', ""), ('{"prompt": ["a cat"]}', ""), ('{"prompt": "half \\udc00"}', ""),
    ('{"prompt": "\\ud83d\\ude00 cat"}', "😀 cat"), ("", ""), ("{}", ""), ("[" * 10**5, ""), ('{"a":[' * 10**5, "")])  # fmt: skip
def test_the_last_object_with_a_text_has_the_prompt(answer, found):
    assert refine.extract_prompt(answer) == found


@pytest.mark.parametrize("bomb", ["{", '{"a":', '{"', '{"a":[', '{"\\"', "{ ", '{"a":"b",'])
def test_a_bomb_takes_no_time(bomb):
    start = time.monotonic()
    assert refine.extract_prompt(bomb * (10_000_000 // len(bomb)) + ' {"prompt": "a cat"}') in ("", "a cat")
    assert time.monotonic() - start < 5


# ---- a model on this machine -----------------------------------------------------------------------------------------


class Chat:
    """A text-generation pipeline that fails on a batch with a cat in it, never answers a cow, and a goose at the second time of asking."""

    def __init__(self):
        self.tokenizer = SimpleNamespace(padding_side="right", pad_token_id=None, eos_token="<end>")
        self.asked = []

    def __call__(self, conversations, batch_size, **_):
        prompts = [messages[-1]["content"] for messages in conversations]
        assert len(prompts) == batch_size and self.tokenizer.padding_side == "left" and self.tokenizer.pad_token == "<end>"
        self.asked.append(prompts)
        if "a cat" in prompts:
            raise RuntimeError("out of memory")
        return [[{"generated_text": self.answer(prompt)}] for prompt in prompts]

    def answer(self, prompt):
        is_silent = prompt == "a cow" or prompt == "a goose" and sum("a goose" in prompts for prompts in self.asked) < 2
        return "I cannot." if is_silent else json.dumps({"prompt": f"{prompt}, at dusk"})


@pytest.fixture
def chat_model(monkeypatch):
    import transformers

    model = Chat()
    monkeypatch.setattr(transformers, "pipeline", lambda *_, **__: model)
    yield model
    refine.free_models()


def test_a_generation_that_fails_stops_nobody(chat_model, tmp_path):
    refiner = lambda prompts: refine.transformers_model(prompts, "a/model", batch=3)
    expected = r"2 of 4 prompts got no answer from a/model.*'a cat' \(out of memory\); 'a cow' \(its answers hold no sentence\)"
    with pytest.warns(UserWarning, match=expected):
        assert refine.cached(["a cat", "a dog", "a bee", "a cow"], refiner, tmp_path / "r.jsonl", "m") == [
            "",
            "a dog, at dusk",
            "a bee, at dusk",
            "",
        ]
    assert chat_model.asked == [["a cat", "a dog", "a bee"], ["a cat"], ["a dog"], ["a bee"], ["a cat"], ["a cow"], ["a cow"], ["a cow"]]
    assert refine.cached(["a cat"], lambda prompts: [p.upper() for p in prompts], tmp_path / "r.jsonl", "m") == ["A CAT"]


def test_a_prompt_without_a_sentence_is_asked_again(chat_model):
    assert list(refine.transformers_model(["a goose", "a dog"], "a/model")) == ["a goose, at dusk", "a dog, at dusk"]
    assert chat_model.asked == [["a goose", "a dog"], ["a goose"]]


# ---- the cache ------------------------------------------------------------------------------------------------------


def test_an_answer_is_asked_for_once(tmp_path):
    calls = []
    refiner = lambda prompts: calls.append(prompts) or [p.upper() for p in prompts]
    path = tmp_path / "new" / "refined.jsonl"
    assert refine.cached(["b", "a", "b"], refiner, path, "m") == ["B", "A", "B"]
    assert refine.cached(["a", "c", "b"], refiner, path, "m") == ["A", "C", "B"]
    assert refine.cached(["é\u2028"], refiner, path, "m") == ["É\u2028"] == refine.cached(["é\u2028"], refiner, path, "m")
    assert calls == [["b", "a"], ["c"], ["é\u2028"]]
    refine.cached(["a"], refiner, path, "another model")
    assert calls[-1] == ["a"]


def test_a_cut_line_is_asked_again(tmp_path):
    path = tmp_path / "refined.jsonl"
    refine.cached(["a", "b"], lambda prompts: [p.upper() for p in prompts], path, "m")
    path.write_text(path.read_text(encoding="utf-8")[:-9])
    asked = []
    assert refine.cached(["a", "b"], lambda prompts: [asked.append(p) or p.upper() for p in prompts], path, "m") == ["A", "B"]
    assert asked == ["b"] and refine.cached(["a", "b"], None, path, "m") == ["A", "B"]


def test_lines_that_are_no_answer_are_asked_again(tmp_path):
    """Among them an empty answer that nobody says was refused, and half a character, which could never be written as text."""
    path, shout = tmp_path / "refined.jsonl", lambda prompts: [p.upper() for p in prompts]
    refine.cached(["a", "b", "c", "d", "e"], shout, path, "m")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row, odd in zip(rows, ["", "A \ud800", 7, None]):
        row["refined"] = odd
    junk = [b"null", b"[]", b"\xff\xfe", b"[" * 10**5, b'{"key": ["x"], "refined": "x"}', b'{"key": ' + b"9" * 5000 + b"}", b"\0" * 99]
    path.write_bytes(b"\n".join([json.dumps(row).encode() for row in rows] + junk))
    asked = []
    assert refine.cached(list("abcde"), lambda ps: [asked.append(p) or p.upper() for p in ps], path, "m") == list("ABCDE")
    assert asked == list("abcd") and refine.cached(list("abcde"), None, path, "m") == list("ABCDE")


def test_an_answer_that_no_file_can_hold_or_is_empty_is_none(tmp_path):
    answers = iter(["half \ud800", " ", "", refine.Refused(), "good"])
    assert refine.cached(list("abcde"), lambda prompts: answers, tmp_path / "r.jsonl", "m") == ["", "", "", "", "good"]
    assert refine.cached(list("de"), None, tmp_path / "r.jsonl", "m") == ["", "good"]
    asked = []
    refine.cached(list("abcde"), lambda prompts: asked.extend(prompts) or prompts, tmp_path / "r.jsonl", "m")
    assert asked == list("abc")


def test_a_refiner_with_too_few_answers_is_no_refiner(tmp_path):
    with pytest.raises(ValueError, match="the refiner gave 1 answers to 2 prompts: 'b' has none"):
        refine.cached(["a", "b"], lambda prompts: ["A"], tmp_path / "r.jsonl", "m")
    assert refine.cached(["a"], None, tmp_path / "r.jsonl", "m") == ["A"]


@pytest.mark.slow
def test_a_full_disk_costs_the_line_being_written(tmp_path):
    """A limit on the file's size, which a child imposes on itself, falls into a line; with more room only the rest is asked."""
    path, prompts = tmp_path / "refined.jsonl", [f"cat {i}" for i in range(20)]
    code = ("import resource, sys; from icthp.data import refine; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
            "refine.cached(sys.argv[2:], lambda ps: (p.upper() for p in ps), sys.argv[1], 'm')")  # fmt: skip
    child = subprocess.run([sys.executable, "-c", code, path, *prompts], capture_output=True, text=True, timeout=100)
    assert child.returncode == 1 and child.stderr.splitlines()[-1].startswith(f"OSError: {path} could not take another answer")
    whole = [line for line in path.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
    assert path.stat().st_size == 2000 and len(whole) > 10
    asked = []
    assert refine.cached(prompts, lambda ps: [asked.append(p) or p.upper() for p in ps], path, "m") == [p.upper() for p in prompts]
    assert asked == prompts[len(whole) :]


def test_runs_that_append_at_once_do_not_mix_their_lines(tmp_path):
    path, long = tmp_path / "refined.jsonl", " and so on" * 3000
    prompts = {who: [f"{who} {i}" for i in range(100)] for who in ("cat", "dog", "cow")}
    refiner = lambda asked: (p + long for p in asked)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda who: refine.cached(prompts[who], refiner, path, "m"), prompts))
    whole = sum(prompts.values(), [])
    assert refine.cached(whole, None, path, "m") == [p + long for p in whole]


@pytest.mark.slow
def test_kill_9_while_refining(endpoint, tmp_path):
    """A process that is killed between answers: the next one asks for the rest only, and the result is the same."""
    prompts, path = [f"cat {i}" for i in range(12)], tmp_path / "refined.jsonl"
    code = ("import sys; from icthp.data import refine; url, path, *prompts = sys.argv[1:]; "
            "refine.cached(prompts, lambda p: refine.endpoint(p, 'm', url, workers=1), path, 'm')")  # fmt: skip
    endpoint.delay = 0.1
    child = subprocess.Popen([sys.executable, "-c", code, endpoint.url, str(path), *prompts], env=os.environ)
    while not path.exists() or path.read_text(encoding="utf-8").count("dusk") < 3:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    paid = path.read_text(encoding="utf-8").count("dusk")
    time.sleep(0.3)
    endpoint.requests.clear()
    assert refine.cached(prompts, lambda p: refine.endpoint(p, "m", endpoint.url), path, "m") == [f"{p}, at dusk" for p in prompts]
    assert 3 <= paid < 12 and sorted(asked(endpoint)) == sorted(prompts[paid:])
