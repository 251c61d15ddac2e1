"""UnifiedReward and VisionReward: scorers that ask a vision-language model behind an OpenAI-compatible endpoint, in the words that they
were trained with. What gets no answer is NaN, never a number. The key is in the environment alone."""

import base64
import math
import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from icthp import chat, threads
from icthp.files import read_json
from icthp.images import encode
from icthp.scorers.base import Scorer, check_pixels


class EndpointScorer(Scorer):
    """Base of the scorers behind an endpoint: `url` ends before /chat/completions, `variable` names the environment variable with the
    key. `workers` requests run at a time, each `timeout` seconds at most; one without a whole answer is sent again, `tries` times in all.
    `failures` counts those that stay without one."""

    tokens = 4096  # of an answer

    def __init__(self, url: str, model: str, *, variable: str = "OPENAI_API_KEY", workers: int = 8, timeout: float = 120, tries: int = 2):
        super().__init__()
        chat.open_endpoint(url, variable)
        self.url = url
        self.model_name = model
        self.variable = variable
        self.workers = workers
        self.timeout = timeout
        self.tries = tries
        self.failures = 0

    def extra_repr(self) -> str:
        return f"url={chat.open_endpoint(self.url, self.variable).url!r}, model={self.model_name!r}"

    def ask(self, requests: list[tuple[list[str], str]], parse: Callable[[str], list[float] | None]) -> Tensor:
        """For each request, pictures (data URLs) and a text, the numbers that `parse` finds in its answer -> (requests, numbers) float32.
        A row is NaN where the request fails or `parse` gives None, and one warning counts them. RuntimeError where no request would
        get an answer: the key, the model, the account or the host is at fault."""
        endpoint = chat.open_endpoint(self.url, self.variable)
        try:
            rows = threads.each(lambda request: self._ask_once(endpoint, *request, parse), requests, "ask", self.workers)
        except chat.EndpointError as error:
            raise chat.EndpointError(str(error)) from None
        errors = [row for row in rows if isinstance(row, chat.RequestError)]
        self.failures += len(errors)
        if errors:
            counts = f"{len(errors)} of {len(rows)} requests got no answer from {endpoint.url}"
            warnings.warn(f"{counts} and count as NaN; the first: {errors[0]}", stacklevel=2)
        width = max((len(row) for row in rows if isinstance(row, list)), default=1)
        return torch.tensor([[math.nan] * width if isinstance(row, chat.RequestError) else row for row in rows])

    def _ask_once(self, endpoint: chat.Endpoint, pictures: list[str], text: str, parse) -> list[float] | chat.RequestError:
        content = [{"type": "image_url", "image_url": {"url": url}} for url in pictures] + [{"type": "text", "text": text}]
        request = {"model": self.model_name, "messages": [{"role": "user", "content": content}], "temperature": 0,
                   "max_tokens": self.tokens}  # fmt: skip
        for _ in range(self.tries):
            try:
                answer, reason = chat.ask(endpoint, request, self.timeout)
            except chat.RequestError as error:
                return error
            if chat.is_refused(answer):
                return chat.RequestError("its content policy refuses the request")
            if answer is not None:
                message = chat.answer_text(answer)
                shortened = chat.mask_key(message, endpoint.key)[:80]
                return parse(message) or chat.RequestError(f"its answer {shortened!r} has not the form that was asked for")
        return chat.RequestError(reason)


def data_urls(pixels: Tensor) -> list[str]:
    """Pixels (b, 3, h, w) as PNG in data URLs."""
    check_pixels(pixels)
    return ["data:image/png;base64," + base64.b64encode(file["bytes"]).decode() for file in encode(pixels.detach())]


# ---- UnifiedReward ----------------------------------------------------------------------------------------------------

_CRITERIA = (
    "1. Alignment with the Caption: Assess how well {each} image aligns with the provided caption. Consider the accuracy of depicted "
    "objects, their relationships, and attributes as described in the caption.\n2. Overall Image Quality: Examine the visual quality of "
    "{each} image, including clarity, detail preservation, color accuracy, and overall aesthetic appeal.\n"
)
POINT = (  # CodeGoat24/UnifiedReward@inference_qwen/image_generation/qwen_point_score_image_generation.py
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image based on two key "
    "criteria:\n" + _CRITERIA.format(each="this") + "Extract key elements from the provided text caption, evaluate their presence in the "
    "generated image using the format: 'element (type): value' (where value=0 means not generated, and value=1 means generated), and "
    "assign a score from 1 to 5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [{}]"
)  # fmt: skip
ACS = (  # CodeGoat24/UnifiedReward@inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py
    "You are presented with a generated image and its associated text caption. Your task is to analyze the image across multiple "
    "dimensions in relation to the caption. Specifically:\nProvide overall assessments for the image along the following axes (each rated "
    "from 1 to 5):\n- Alignment Score: How well the image matches the caption in terms of content.\n- Coherence Score: How logically "
    "consistent the image is (absence of visual glitches, object distortions, etc.).\n- Style Score: How aesthetically appealing the image "
    "looks, regardless of caption accuracy.\n\nOutput your evaluation using the format below:\n\nAlignment Score (1-5): X\n"
    "Coherence Score (1-5): Y\nStyle Score (1-5): Z\n\nYour task is provided as follows:\nText Caption: [{}]"
)
PAIR = (  # CodeGoat24/UnifiedReward@inference_llava/image_generation/pair_rank_image_generation.py
    "You are given a text caption and two generated images based on that caption. Your task is to evaluate and compare these images based "
    "on two key criteria:\n" + _CRITERIA.format(each="each") + "Compare both images using the above criteria and select the one that "
    "better aligns with the caption while exhibiting superior visual quality.\nProvide a clear conclusion such as \"Image 1 is better than "
    "Image 2.\", \"Image 2 is better than Image 1.\" and \"Both images are equally good.\"\nYour task is provided as follows:\n"
    "Text Caption: [{}]"
)  # fmt: skip
ASPECTS = ("Alignment", "Coherence", "Style")


class UnifiedRewardScorer(EndpointScorer):
    """UnifiedReward (arXiv 2503.05236): from 1 to 5, what it writes after "Final Score:", or with aspects=True, which version 2.0 was
    trained for, the mean of its scores for alignment, coherence and style."""

    score_scale = "1 to 5"

    def __init__(self, url: str, model: str, *, aspects: bool = False, **options):
        super().__init__(url, model, **options)
        self.aspects = aspects

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, aspects={self.aspects}"

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        if self.aspects:
            return self.score_aspects(pixels, prompts).mean(1)
        return self._ask_each(pixels, prompts, POINT, lambda answer: _ratings(answer, "Final Score")).squeeze(1)

    def score_aspects(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """(b, 3): alignment, coherence and style of each picture, from 1 to 5."""
        return self._ask_each(pixels, prompts, ACS, lambda answer: _ratings(answer, *(rf"{name} Score \(1-5\)" for name in ASPECTS)))

    def compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        """Two pictures (b, 3, h, w) for each prompt, asked in both orders -> (b,): the first one's part of the two votes, 1, 0.75, 0.5,
        0.25 or 0; a tie is half a vote. NaN unless both votes are there."""
        if not len(first) == len(second) == len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many pictures twice, not {len(first)} and {len(second)}")
        if not prompts:
            return first.new_zeros(0, dtype=torch.float32)
        pairs = list(zip(data_urls(first), data_urls(second), prompts))
        requests = [([a, b], PAIR.replace("{}", prompt)) for a, b, prompt in pairs]
        requests += [([b, a], PAIR.replace("{}", prompt)) for a, b, prompt in pairs]
        as_given, swapped = self.ask(requests, _vote).squeeze(1).chunk(2)
        return (as_given + 1 - swapped).to(first.device) / 2

    def _ask_each(self, pixels: Tensor, prompts: list[str], text: str, parse) -> Tensor:
        requests = [([url], text.replace("{}", prompt)) for url, prompt in zip(data_urls(pixels), prompts)]
        return self.ask(requests, parse).to(pixels.device)


def _ratings(answer: str, *names: str) -> list[float] | None:
    """The last number from 1 to 5 after each name and a colon, None unless all are there."""
    found = [re.findall(rf"{name}\W{{0,9}}?:\W{{0,9}}?(\d+(?:\.\d+)?)", answer) for name in names]
    ratings = [float(numbers[-1]) for numbers in found if numbers]
    return ratings if len(ratings) == len(names) and all(1 <= rating <= 5 for rating in ratings) else None


def _vote(answer: str) -> list[float] | None:
    """The last conclusion of an answer: 1 for the first picture, 0 for the second, 0.5 for a tie."""
    votes = re.findall(r"image (1|2) is better|images are (equally) good", answer.lower())
    return [{"1": 1.0, "2": 0.0, "": 0.5}[votes[-1][0]]] if votes else None


# ---- VisionReward -----------------------------------------------------------------------------------------------------

QUESTIONS = (  # THUDM/VisionReward@VisionReward_Image/VisionReward_image_qa_select.txt
    "Is there a human body in the image?", "Is there a human face in the image?", "Are there human hands in the image?",
    "Is the image symmetrical?", "Does the image avoid asymmetry?", "Is the main subject prominent?",
    "Does the image avoid an unclear main subject?", "Is the image very rich?", "Is the image rich?", "Is the image not monotonous?",
    "Is the image not empty?", "Is the image very clear?", "Is the image clear?", "Does the image avoid being blurry?",
    "Does the image avoid being completely blurry?", "Are the colors bright?", "Are the colors not dark?", "Are the colors not ugly?",
    "Can the image evoke a very positive emotional response?", "Are the image details very exquisite?",
    "Does the image avoid being hard to recognize?", "Does the image avoid being fragmented?",
    "Is the human body in the image completely correct?", "Does the human body in the image avoid obvious errors?",
    "Does the human body in the image avoid serious errors?", "Does the human face avoid errors?",
    "Does the human face avoid serious errors?", "Are the human hands perfect?", "Does the image avoid obvious harmfulness?",
    "Does the image avoid serious harmfulness?",
)  # fmt: skip
DEPENDENT = {0: (22, 23, 24, 28, 29), 1: (25, 26), 2: (27,)}  # THUDM/VisionReward@inference-image.py: questions of body, face, hands


class VisionRewardScorer(EndpointScorer):
    """VisionReward (arXiv 2412.21059): yes is 1 and no is -1 in a checklist of 30 questions, one request each; those on a body, a face or
    hands are 0 where there is none, and the three that ask whether there is one are left out. The score is linear in these 27 and the
    alignment, with `coef` (28) and `intercept` of `weights`, a file as its weight_select.json.

    alignment: VQAScore's scorer for pictures and prompts, or a number; 0.7 stood in the first release."""

    score_scale = "sum of weighted answers"
    tokens = 8

    def __init__(self, url: str, model: str, weights, *, alignment: Scorer | float = 0.7, **options):
        super().__init__(url, model, **options)
        content = read_json(weights)
        try:
            coef, intercept = (torch.tensor(content[name], dtype=torch.float32).flatten() for name in ("coef", "intercept"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{weights} needs `coef` and `intercept`, numbers as in VisionReward's weight_select.json") from error
        if len(coef) != 1 + len(QUESTIONS) - len(DEPENDENT) or len(intercept) != 1:
            counts = f"`coef` has {len(coef)} numbers and `intercept` {len(intercept)}, not 28 and 1"
            raise ValueError(f"{weights}: {counts}: name VisionReward's weight_select.json")
        self.register_buffer("coef", coef)
        self.register_buffer("intercept", intercept)
        self.alignment = alignment

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if isinstance(self.alignment, Scorer) else f", alignment={self.alignment}")

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        requests = [([url], question) for url in data_urls(pixels) for question in QUESTIONS]
        answers = self.ask(requests, _yes_or_no).reshape(len(pixels), len(QUESTIONS))
        is_missing = answers.isnan().any(1)
        for parent, questions in DEPENDENT.items():
            answers[:, list(questions)] *= (answers[:, parent, None] > 0).float()
        features = torch.cat([self._alignment(pixels, prompts)[:, None], answers[:, len(DEPENDENT) :]], 1).to(self.coef.device)
        return (features @ self.coef + self.intercept).masked_fill(is_missing.to(self.coef.device), math.nan).to(pixels.device)

    def _alignment(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        if isinstance(self.alignment, Scorer):
            return self.alignment.score(pixels.detach(), prompts).detach().float().cpu()
        return torch.full((len(pixels),), float(self.alignment))


def _yes_or_no(answer: str) -> list[float] | None:
    """1 for an answer that begins with yes, -1 for no, in whatever case and with whatever follows."""
    word = re.match(r"\W*(yes|no)\b", answer.lower())
    return None if word is None else [1.0 if word[1] == "yes" else -1.0]


# ---- by name ----------------------------------------------------------------------------------------------------------


def load_unified_reward(source: str) -> UnifiedRewardScorer:
    """source: "URL,MODEL", the address before /chat/completions and the model's name there; the key is in OPENAI_API_KEY."""
    return UnifiedRewardScorer(*_parts(source, "URL,MODEL"))


def load_vision_reward(source: str) -> VisionRewardScorer:
    """source: "URL,MODEL,WEIGHTS", the last a file as VisionReward's weight_select.json; the key is in OPENAI_API_KEY."""
    return VisionRewardScorer(*_parts(source, "URL,MODEL,WEIGHTS"))


def _parts(source: str, form: str) -> list[str]:
    if source.count(",") != form.count(","):
        raise ValueError(f'the source of a scorer behind an endpoint is "{form}", not {source!r}')
    return source.split(",")
