"""Refined prompts: everything the easy prompt fixes is kept, the rest is said. A refiner is a function from prompts to
an iterator of answers in the same order, "" where it has none; `stored` keeps each answer as it comes, `problem` judges it."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from icthp.data import chat
from icthp.data.prompts import same_prompt
from pathlib import Path
import hashlib
import json
import os
import random
import re
import torch
import unicodedata
import warnings



INSTRUCTION = (
    "You prepare prompts for an image generator. Reason first, briefly, in this order. Subject: which objects, attributes, counts and "
    "relations does the prompt fix? Composition: where do they stand, what surrounds them? Material: what are the surfaces made of? "
    "Light: where does it come from, at what time of day? Mood: which style would suit? Then answer on the last line with JSON alone: "
    '{"prompt": "..."}, one English sentence that keeps every word of the prompt that names something and adds the rest.'
)


def transformers_model(prompts: list[str], model: str, seed: int = 0, max_new_tokens: int = 512) -> Iterator[str]:
    """A chat model on this machine, through transformers' text-generation pipeline; every prompt with the same seed. A prompt that it
    fails on gets "", and a warning at the end names it."""
    from transformers import pipeline, set_seed

    chatting, failed = pipeline("text-generation", model=model), []
    for prompt in prompts:
        set_seed(seed)
        try:
            said = chatting(_messages(prompt), max_new_tokens=max_new_tokens, return_full_text=False)
            refined = sentence(said[0]["generated_text"])
        except Exception as error:  # of whatever kind: too long a prompt, a full memory; the next one may fit
            refined = ""
            failed.append((prompt, error))
        yield refined
    _warn(failed, len(prompts), model)


class Refused(str):
    """The empty answer to a prompt that a content policy refuses, the one empty answer that `stored` keeps."""


def endpoint(
    prompts: list[str], model: str, url: str, *, workers: int = 8, tokens: int = 0, timeout: float = 60,
    key_variable: str = "OPENAI_API_KEY", tries: int = 3
) -> Iterator[str]:  # fmt: skip
    """Any OpenAI-compatible endpoint (`url` ends before /chat/completions), `workers` requests at a time; the key is read
    from the environment. A request takes `timeout` seconds at most as a whole; a busy server is waited for (`chat.answer`); an
    answer without a sentence, whatever it is instead, is asked for again, `tries` times in all. Then "" is given (Refused where the
    content policy refuses), the others go on, and a warning at the end names the prompts. RuntimeError, after all answers so far: a
    key, model or account that is refused, a host out of reach, more than `tokens` tokens (0: no limit) spent. ValueError: no url."""
    place, spent, failed = chat.host(url, key_variable), [], []

    def attempt(prompt: str) -> str | Exception:
        question, why = {"model": model, "messages": _messages(prompt)}, ""
        for _ in range(tries):
            if tokens and sum(spent) > tokens:
                return chat.Stopped(f"{sum(spent)} tokens are spent, the limit is {tokens}; answers are kept: raise it and run again")
            try:
                answer, why = chat.answer(place, question, timeout)
            except (chat.Failed, chat.Stopped) as error:
                return error
            if answer is not None:
                spent.append(chat.tokens(answer, question))
                if chat.refused(answer):
                    return Refused()
                if (refined := sentence(chat.text(answer))) and not _tells(refined, place.key):
                    return refined
        return chat.Failed(why or "its answers hold no sentence")

    with ThreadPoolExecutor(workers) as pool:
        for i in range(0, len(prompts), workers):  # at most one round is lost by a kill
            for prompt, answer in zip(prompts[i : i + workers], pool.map(attempt, prompts[i : i + workers])):
                failed += [(prompt, answer)] if isinstance(answer, Exception) else []
                yield "" if isinstance(answer, Exception) else answer
            if stopped := [why for _, why in failed if isinstance(why, chat.Stopped)]:
                raise chat.Stopped(str(stopped[0])) from None
    _warn(failed, len(prompts), place.url)


def _tells(refined: str, key: str) -> bool:
    """Does an answer give the key away? The short ones are words that local servers are content with, such as "EMPTY"."""
    return len(key) >= 8 and key in refined


def _warn(failed: list[tuple[str, Exception]], count: int, who: str) -> None:
    if failed:
        named = "; ".join(f"{prompt[:60]!r} ({why})" for prompt, why in failed[:5]) + ("; ..." if len(failed) > 5 else "")
        warnings.warn(f"{len(failed)} of {count} prompts got no answer from {who}; the next run asks again: {named}", stacklevel=2)


def _messages(prompt: str) -> list[dict]:
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]


_TAIL = 20_000  # letters of an answer that are looked at: the sentence stands at its end


def sentence(answer: str) -> str:
    """The prompt in the last JSON object of an answer that has one as text, "" where there is none: cut short, no JSON, no text, or half
    a character in it, which no file of text can hold."""
    answer, at, found = answer[-_TAIL:], 0, ""
    while (at := answer.find("{", at)) >= 0:
        try:
            value, at = json.JSONDecoder().raw_decode(answer, at)
        except (ValueError, RecursionError):  # a number of more than 4,300 digits is a ValueError too
            at += 1
            continue
        found = _one_line(value.get("prompt")) or found
    return found


def _one_line(text) -> str:
    """A text with single spaces for all white space; "" for what is no text or holds a lone surrogate."""
    if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
        return ""
    return " ".join(text.split())


def cached(prompts: list[str], refiner: Callable[[list[str]], Iterable[str]], path, recipe: str) -> list[str]:
    """refiner(prompts), but each different prompt is asked once and never again: answers are appended to the file `path`
    as they come, under a digest of `recipe` (name the model) and prompt. What is not there whole is asked again: a line that a kill or a
    full disk has cut, an empty answer that is not Refused. OSError names `path` where the disk fails; ValueError a refiner that gives
    fewer answers than prompts."""
    path = Path(path)
    digest = lambda prompt: hashlib.sha256(json.dumps([recipe, INSTRUCTION, prompt]).encode()).hexdigest()
    known = dict(_lines(path))
    missing = [p for p in dict.fromkeys(prompts) if digest(p) not in known]
    for refined, prompt in zip(refiner(missing) if missing else (), missing):  # the refiner first, so that it comes to its end
        known[digest(prompt)] = refined if _one_line(refined) else ""
        if known[digest(prompt)] or isinstance(refined, Refused):
            row = {"key": digest(prompt), "easy": prompt, "refined": refined} | ({} if refined else {"refused": True})
            _append(path, f"\n{json.dumps(row)}".encode())  # after a cut line too
    if lost := [p for p in missing if digest(p) not in known]:
        raise ValueError(f"the refiner gave {len(missing) - len(lost)} answers to {len(missing)} prompts: {lost[0][:60]!r} has none")
    return [known[digest(p)] for p in prompts]


def _append(path: Path, line: bytes) -> None:
    """One write, so that two processes never mix their lines and nothing but this line can be lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if os.write(file, line) < len(line):
            raise OSError("no space is left for the whole line")
    except OSError as error:
        raise OSError(f"{path} could not take another answer; those before it are kept: {error}") from error
    finally:
        os.close(file)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = json.loads(line)
            key, refined = row["key"], row["refined"]
        except (ValueError, RecursionError, LookupError, TypeError):
            continue
        if isinstance(key, str) and (_one_line(refined) or refined == "" and row.get("refused") is True):
            yield key, refined


# ---- checks -----------------------------------------------------------------------------------------------------

_SMALL = set("a an the this that some of in on at by to with for from and or is are be it its as".split())


def content_words(prompt: str) -> set[str]:
    """The words of a prompt that name something, as they are read, without a plural's s."""
    return {w[:-1] if len(w) > 3 and w.endswith("s") else w for w in re.findall(r"\w+", same_prompt(prompt))} - _SMALL


def _latin(text: str) -> float:
    letters = [c for c in text if c.isalpha()]
    return sum("LATIN" in unicodedata.name(c, "") for c in letters) / max(1, len(letters))


def refinement_error(easy: str, refined: str, fits: Callable[[str], bool]) -> str:
    """Why a refined prompt is rejected, "" if it is not. fits(text): does the text encoder read it without cutting?"""
    reasons = {
        "empty easy prompt": not easy.strip(),
        "no answer": not refined.strip(),
        "easy prompt too long": not fits(easy),
        "too long": not fits(refined),
        "a unit is lost": not content_words(easy) <= content_words(refined),
        "another script": _latin(easy) > 0.9 > _latin(refined),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def refinement_errors(easy: list[str], refined: list[str], fits: Callable[[str], bool]) -> list[str]:
    """`problem` of each pair; one refined prompt for two different easy ones, as they are read, is a duplicate after the first."""
    first = {}
    same = [first.setdefault(same_prompt(r), same_prompt(e)) != same_prompt(e) for e, r in zip(easy, refined)]
    return [refinement_error(e, r, fits) or ("duplicate" if d else "") for e, r, d in zip(easy, refined, same)]


# ---- near misses ------------------------------------------------------------------------------------------------

CLASSES = (  # words of one class; a prompt with one of them changed is a near miss
    ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "pink", "brown", "grey"),
    ("two", "three", "four", "five", "six"),
    ("left of", "right of", "above", "below", "behind", "in front of", "on top of", "under"),
)
SAME = ({"below", "under"}, {"above", "on top of"})  # words that are not told apart


def hard_negative(prompt: str, seed: int, classes=CLASSES) -> str:
    """The prompt with one count, colour or relation changed to another of its class, "" if it has none: a semi-hard text
    negative (TPO's idea). The choice depends on the prompt and the seed alone."""
    any_of = lambda words: r"\b(?:" + "|".join(words).replace(" ", r"\s+") + r")\b"
    found = [(m, words) for words in classes for m in re.finditer(any_of(words), prompt, re.IGNORECASE)]
    if not found:
        return ""
    dice = random.Random(f"{seed} {prompt}")
    match, words = dice.choice(found)
    own = " ".join(match[0].lower().split())
    other = dice.choice([w for w in words if w != own and {w, own} not in SAME])
    return prompt[: match.start()] + other + prompt[match.end() :]
