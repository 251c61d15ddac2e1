"""UnifiedReward and VisionReward against a local server that answers by a script."""

import base64
import hashlib
import http.server
import io
import json
import math
import threading
import warnings

import pytest
import torch

from icthp import chat, images
from icthp.scorers import endpoint
from icthp.scorers.base import Scorer
from icthp.scorers.endpoint import UnifiedRewardScorer, VisionRewardScorer

KEY = "sk-abcdefghijklmnopqrstuvwxyz"
PROMPTS = ["a red circle", "two blue stars", "a {} heart"]
COEF = [0.5 + i / 10 for i in range(28)]


class Server:
    """reply(text of the request, colours of its pictures) -> a text to answer, a status to fail with, or bytes for a whole body."""

    def __init__(self):
        self.requests = []
        self.reply = lambda text, colours: "Final Score: 3"

    def serve(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append((self.headers["Authorization"], body))
                *pictures, text = body["messages"][0]["content"]
                step = server.reply(text["text"], [colour(picture["image_url"]["url"]) for picture in pictures])
                status, answer = (step, {"error": {"message": f"no, {KEY}"}}) if isinstance(step, int) else (200, message(step))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(step if isinstance(step, bytes) else json.dumps(answer).encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self


def message(content):
    return {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": str(content)}}]}


def colour(url: str) -> int:
    """The red level of a picture in a data URL."""
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return int(images.read(io.BytesIO(base64.b64decode(data)))[0, 0, 0])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(chat, "RETRIES", 2)
    server = Server().serve()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def pixels():
    """Three pictures with red levels 10, 20 and 30."""
    return torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 6, 4)


def test_a_point_score_and_its_request(server, pixels):
    server.reply = lambda text, colours: f"cat (animal): 1\nFinal Score: {colours[0] / 10}"
    scorer = UnifiedRewardScorer(server.url, "a-model")
    assert scorer.score(pixels, PROMPTS).tolist() == scorer.score(pixels / 255, PROMPTS).tolist() == [1, 2, 3]
    key, body = next((key, body) for key, body in server.requests if "a {} heart" in str(body))
    assert key == f"Bearer {KEY}" and body["temperature"] == 0 and body["model"] == "a-model"
    text = body["messages"][0]["content"][1]["text"]
    assert text.endswith("assign a score from 1 to 5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [a {} heart]")
    assert scorer.failures == 0 and scorer.score(pixels[:0], []).shape == (0,)


@pytest.mark.parametrize("step", [
    "a fine picture", "Final Score: none", "Final Score: 9", "", 400, 422, 500, b"<html>", b"null", b'{"choices": [{"message": 7}]}',
    b'{"error": {"code": "content_policy_violation"}}'])  # fmt: skip
def test_a_request_without_an_answer_is_nan_and_stops_nobody(server, pixels, step):
    server.reply = lambda text, colours: step if colours == [20] else "Final Score: 4"
    scorer = UnifiedRewardScorer(server.url, "m")
    with pytest.warns(UserWarning, match=f"1 of 3 requests got no answer from {server.url} and count as NaN; the first: ") as caught:
        scores = scorer.score(pixels, PROMPTS).tolist()
    assert scores[::2] == [4, 4] and math.isnan(scores[1]) and scorer.failures == 1
    assert KEY not in "".join(str(warning.message) for warning in caught)


def test_all_requests_without_an_answer(server, pixels):
    server.reply = lambda text, colours: "no"
    with pytest.warns(UserWarning, match="3 of 3 requests got no answer"):
        assert UnifiedRewardScorer(server.url, "m", aspects=True).score(pixels, PROMPTS).isnan().all()


def test_a_busy_server_and_a_broken_answer_are_asked_again(server, pixels):
    steps = [429, 503, b"cut", "Final Score: 2"]
    server.reply = lambda text, colours: steps.pop(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert UnifiedRewardScorer(server.url, "m", workers=1).score(pixels[:1], PROMPTS[:1]).tolist() == [2]


@pytest.mark.parametrize("status, sentence", [
    (401, "refuses the key in OPENAI_API_KEY"), (404, "knows no such model"), (402, "credit is spent")])  # fmt: skip
def test_an_error_of_the_endpoint_stops_and_does_not_tell_the_key(server, pixels, status, sentence):
    server.reply = lambda text, colours: status
    scorer = UnifiedRewardScorer(server.url, "m")
    with pytest.raises(RuntimeError, match=sentence) as caught:
        scorer.score(pixels, PROMPTS)
    assert KEY not in str(caught.value) + repr(scorer) + str(vars(scorer)) and repr(scorer).count(server.url) == 1


def test_no_key_or_no_address(server, monkeypatch):
    with pytest.raises(ValueError, match="is no address of an endpoint"):
        UnifiedRewardScorer("localhost", "m")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RuntimeError, match="set the environment variable OPENAI_API_KEY"):
        UnifiedRewardScorer(server.url, "m")


def test_the_three_aspects_and_their_mean(server, pixels):
    lines = "Alignment Score (1-5): X\nAlignment Score (1-5): {}\nCoherence Score (1-5): 2.5\n**Style Score (1-5):** 3.0001"
    server.reply = lambda text, colours: lines.format(colours[0] / 10 + 1) if colours[0] < 30 else "Alignment Score (1-5): 4"
    scorer = UnifiedRewardScorer(server.url, "m", aspects=True)
    with pytest.warns(UserWarning, match="1 of 3 requests"):
        aspects = scorer.score_aspects(pixels, PROMPTS)
        torch.testing.assert_close(scorer.score(pixels, PROMPTS), aspects.mean(1), equal_nan=True)
    torch.testing.assert_close(aspects[:2], torch.tensor([[2, 2.5, 3.0001], [3, 2.5, 3.0001]]))
    assert aspects[2].isnan().all()


def test_two_pictures_are_compared_in_both_orders(server, pixels):
    def reply(text, colours):
        if 30 in colours:
            return "Image 1 has more detail. Image 1 is better than Image 2."  # of either order
        if colours == [10, 10]:
            return "Both images are equally good."
        better = 1 + (colours[1] > colours[0])
        return f"At first Image 1 is better, but then: Image {better} is better than Image {3 - better}."

    server.reply = reply
    scorer = UnifiedRewardScorer(server.url, "m")
    first, second = pixels[[0, 1, 2, 0]], pixels[[1, 0, 0, 0]]
    assert scorer.compare(first, second, [*PROMPTS, "x"]).tolist() == [0, 1, 0.5, 0.5]
    server.reply = lambda text, colours: "Image 1 is better" if colours == [10, 20] else "I cannot say"
    with pytest.warns(UserWarning, match="1 of 2 requests"):
        assert scorer.compare(pixels[:1], pixels[1:2], ["x"]).isnan().all()
    with pytest.raises(ValueError, match="3 prompts need as many pictures twice, not 3 and 2"):
        scorer.compare(pixels, pixels[:2], PROMPTS)
    assert scorer.compare(pixels[:0], pixels[:0], []).shape == (0,)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weight_select.json"
    path.write_text(json.dumps({"coef": COEF, "intercept": [0.25]}), encoding="utf-8")
    return path


class Redness(Scorer):
    def forward(self, pixels, prompts):
        return pixels[:, 0].float().mean((1, 2))


def expected_vision_reward(answers: list[str], alignment: float) -> float:
    """The rule, question by question."""
    values = [1 if answer == "yes" else -1 for answer in answers]
    for parent, questions in {0: [22, 23, 24, 28, 29], 1: [25, 26], 2: [27]}.items():
        for question in questions:
            values[question] = values[question] if values[parent] == 1 else 0
    return sum(c * v for c, v in zip(COEF, [alignment, *values[3:]], strict=True)) + 0.25


def test_visionreward_is_a_weighted_checklist(server, pixels, weights):
    parents = [["no", "yes", "yes"], ["yes", "yes", "no"], ["yes", "no", "yes"]]
    answers = {10 * (i + 1): parents[i] + ["no" if (q + i) % 3 == 0 else "yes" for q in range(27)] for i in range(3)}
    spoken = {"yes": ["Yes", "yes.", " YES, it is", "**yes**"], "no": ["no", "No.", "no, not at all", "NO"]}

    def reply(text, colours):
        question = endpoint.QUESTIONS.index(text)
        return spoken[answers[colours[0]][question]][question % 4]

    server.reply = reply
    for alignment, values in ((0.7, (0.7, 0.7, 0.7)), (Redness(), (10, 20, 30))):
        scorer = VisionRewardScorer(server.url, "m", weights, alignment=alignment)
        expected = [expected_vision_reward(answers[level], value) for level, value in zip(answers, values)]
        torch.testing.assert_close(scorer.score(pixels, PROMPTS), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert len(server.requests) == 180 and {body["temperature"] for _, body in server.requests} == {0}
    assert "alignment=0.7" in repr(VisionRewardScorer(server.url, "m", weights))


@pytest.mark.parametrize("question", [0, 1, 15, 29])
def test_a_question_without_an_answer_leaves_its_picture_out(server, pixels, weights, question):
    server.reply = lambda text, colours: "perhaps" if (text, colours) == (endpoint.QUESTIONS[question], [20]) else "no"
    scorer = VisionRewardScorer(server.url, "m", weights)
    with pytest.warns(UserWarning, match="1 of 90 requests got no answer .*'perhaps' has not the form"):
        assert scorer.score(pixels, PROMPTS).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("content, sentence", [
    ({"coef": COEF[:5], "intercept": [0]}, "`coef` has 5 numbers and `intercept` 1, not 28 and 1: name"),
    ({"coef": COEF}, "needs `coef` and `intercept`"),
    ({"coef": ["a"] * 28, "intercept": [0]}, "needs `coef` and `intercept`")])  # fmt: skip
def test_a_file_of_weights_that_does_not_fit(server, weights, content, sentence):
    weights.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"weight_select.json:? {sentence}"):
        VisionRewardScorer(server.url, "m", weights)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="weight_select.json is not there"):
        VisionRewardScorer(server.url, "m", weights)


@pytest.mark.parametrize("text, digest", [
    (endpoint.POINT, "b691b5ff2d2a0a37"), (endpoint.ACS, "26b7b69f0ac7e571"), (endpoint.PAIR, "6f28ece3b27b5940"),
    ("\n".join(endpoint.QUESTIONS), "b612d40e73f55f21")])  # fmt: skip
def test_the_words_are_those_of_training(text, digest):
    """Digests of the published texts, {} for the caption."""
    assert hashlib.sha256(text.encode()).hexdigest().startswith(digest)
