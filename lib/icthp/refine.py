"""Refined prompts: everything the easy prompt fixes is kept, the rest is said. A refiner is a function from prompts to
an iterator of answers in the same order; `stored` keeps each answer as it comes, `problem` judges it."""

import hashlib
import json
import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from icthp import microworld

INSTRUCTION = (
    "You prepare prompts for an image generator. Reason first, briefly, in this order. Subject: which objects, attributes, counts and "
    "relations does the prompt fix? Composition: where do they stand, what surrounds them? Material: what are the surfaces made of? "
    "Light: where does it come from, at what time of day? Mood: which style would suit? Then answer on the last line with JSON alone: "
    '{"prompt": "..."}, one English sentence that keeps every word of the prompt that names something and adds the rest.'
)


def microworld_grammar(prompts: list[str], seed: int = 0) -> Iterator[str]:
    """What a prompt of the microworld leaves open (material, scenery, light ...) is drawn and said."""
    yield from microworld.captions(microworld.parse(prompts, torch.Generator().manual_seed(seed)), "long")


def transformers_model(prompts: list[str], model: str, seed: int = 0, max_new_tokens: int = 512) -> Iterator[str]:
    """A chat model on this machine, through transformers' text-generation pipeline; every prompt with the same seed."""
    from transformers import pipeline, set_seed

    chat = pipeline("text-generation", model=model)
    for prompt in prompts:
        set_seed(seed)
        yield sentence(chat(_messages(prompt), max_new_tokens=max_new_tokens, return_full_text=False)[0]["generated_text"])


def endpoint(
    prompts: list[str], model: str, url: str, *, workers: int = 8, tokens: int = 0, timeout: float = 60,
    key_variable: str = "OPENAI_API_KEY", tries: int = 3
) -> Iterator[str]:  # fmt: skip
    """Any OpenAI-compatible endpoint (`url` ends before /chat/completions), `workers` requests at a time; the key is read
    from the environment. The client waits and repeats on rate limits, timeouts and server errors; an answer without a
    sentence is asked for again, `tries` times in all, then "" is given, as for a prompt that the content policy refuses. Once
    more than `tokens` tokens (0: no limit) are spent no further request is sent: RuntimeError, after all answers so far."""
    from openai import BadRequestError, OpenAI

    key = os.environ.get(key_variable)
    if not key:
        raise RuntimeError(f"no key for {url}: set the environment variable {key_variable}")
    client = OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=6)
    spent = []

    def ask(prompt: str) -> str:
        for _ in range(tries):
            if tokens and sum(spent) > tokens:
                raise RuntimeError(f"{sum(spent)} tokens are spent, the limit is {tokens}; answers are kept: raise it and run again")
            try:
                answer = client.chat.completions.create(model=model, messages=_messages(prompt))
            except BadRequestError as refused:
                if "content" in str(refused.code):  # its policy
                    return ""
                raise
            spent.append(answer.usage.total_tokens if answer.usage else 0)
            if refined := sentence(answer.choices[0].message.content or ""):
                return refined
        return ""

    with ThreadPoolExecutor(workers) as pool:
        for i in range(0, len(prompts), workers):  # at most one round is lost by a kill
            yield from pool.map(ask, prompts[i : i + workers])


def _messages(prompt: str) -> list[dict]:
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]


def sentence(answer: str) -> str:
    """The prompt in the last JSON object of an answer, "" where there is none: cut short, or no JSON."""
    for found in reversed(re.findall(r"\{[^{}]*\}", answer)):
        try:
            return " ".join(json.loads(found)["prompt"].split())
        except (json.JSONDecodeError, KeyError, AttributeError):
            continue
    return ""


def stored(prompts: list[str], refiner: Callable[[list[str]], Iterable[str]], path, recipe: str) -> list[str]:
    """refiner(prompts), but each different prompt is asked once and never again: answers are appended to the file `path`
    as they come, under a digest of `recipe` (name the model) and prompt. A line that a kill has cut is asked again."""
    path = Path(path)
    digest = lambda prompt: hashlib.sha256(json.dumps([recipe, INSTRUCTION, prompt]).encode()).hexdigest()
    known = dict(_lines(path))
    missing = [p for p in dict.fromkeys(prompts) if digest(p) not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for prompt, refined in zip(missing, refiner(missing) if missing else ()):
            known[digest(prompt)] = refined
            file.write(f"\n{json.dumps({'key': digest(prompt), 'easy': prompt, 'refined': refined})}")  # after a cut line too
            file.flush()
    return [known[digest(p)] for p in prompts]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            yield row["key"], row["refined"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue


# ---- checks -----------------------------------------------------------------------------------------------------

_SMALL = set("a an the this that some of in on at by to with for from and or is are be it its as".split())


def units(prompt: str) -> set[str]:
    """The words of a prompt that name something, in lower case, without a plural's s."""
    return {w[:-1] if len(w) > 3 and w.endswith("s") else w for w in re.findall(r"\w+", prompt.lower())} - _SMALL


def _latin(text: str) -> float:
    letters = [c for c in text if c.isalpha()]
    return sum("LATIN" in unicodedata.name(c, "") for c in letters) / max(1, len(letters))


def problem(easy: str, refined: str, fits: Callable[[str], bool]) -> str:
    """Why a refined prompt is rejected, "" if it is not. fits(text): does the text encoder read it without cutting?"""
    reasons = {
        "empty easy prompt": not easy.strip(),
        "no answer": not refined.strip(),
        "easy prompt too long": not fits(easy),
        "too long": not fits(refined),
        "a unit is lost": not units(easy) <= units(refined),
        "another script": _latin(easy) > 0.9 > _latin(refined),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def problems(easy: list[str], refined: list[str], fits: Callable[[str], bool]) -> list[str]:
    """`problem` of each pair; one refined prompt for two different easy ones is a duplicate after the first."""
    first = {}
    same = [first.setdefault(r, e) != e for e, r in zip(easy, refined)]
    return [problem(e, r, fits) or ("duplicate" if d else "") for e, r, d in zip(easy, refined, same)]


# ---- near misses ------------------------------------------------------------------------------------------------

CLASSES = (  # words of one class; a prompt with one of them changed is a near miss
    ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "pink", "brown", "grey"),
    ("two", "three", "four", "five", "six"),
    ("left of", "right of", "above", "below", "behind", "in front of", "on top of", "under"),
)
MICROWORLD = (microworld.COLOURS, microworld.COUNTS, microworld.RELATIONS)


def near_miss(prompt: str, seed: int, classes=CLASSES) -> str:
    """The prompt with one count, colour or relation changed to another of its class, "" if it has none: a semi-hard text
    negative (TPO's idea). The choice depends on the prompt and the seed alone."""
    found = [(m, words) for words in classes for m in re.finditer(rf"\b(?:{'|'.join(words)})\b", prompt, re.IGNORECASE)]
    if not found:
        return ""
    dice = random.Random(f"{seed} {prompt}")
    match, words = dice.choice(found)
    other = dice.choice([w for w in words if w != match[0].lower()])
    return prompt[: match.start()] + other + prompt[match.end() :]
