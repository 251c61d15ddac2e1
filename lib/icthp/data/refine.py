"""Refined prompts: all that the easy prompt fixes is kept, the rest is added. A refiner is a function from prompts to an iterator of
answers in the same order, "" for a prompt without one; `cached` keeps each answer as it comes, `wording.refinement_error` checks it."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

from tqdm.auto import tqdm

from icthp import chat

INSTRUCTION = (
    "You prepare prompts for an image generator. Reason first, briefly, in this order. Subject: which objects, attributes, counts and "
    "relations does the prompt fix? Composition: where do they stand, what surrounds them? Material: what are the surfaces made of? "
    "Light: where does it come from, at what time of day? Mood: which style would suit? Then answer on the last line with JSON alone: "
    '{"prompt": "..."}, one English sentence that keeps every word of the prompt that names something and adds the rest.'
)


def transformers_model(
    prompts: list[str], model: str, seed: int = 0, max_new_tokens: int = 512, device=None, batch: int = 8, tries: int = 3
) -> Iterator[str]:
    """A chat model on this machine, through transformers' text-generation pipeline, `batch` prompts at a time, each batch with the same
    seed. A prompt without a sentence is asked again, `tries` times in all, with other seeds; one that the model fails on, in its batch and
    alone, as well. Then "" is given, and a warning at the end names the prompts."""
    generate = _text_generation(model, device)
    failed = []
    for start in tqdm(range(0, len(prompts), batch), "refine", mininterval=5):
        part = prompts[start : start + batch]
        answers, reasons = [""] * len(part), ["its answers hold no sentence"] * len(part)
        for attempt in range(tries):
            missing = [i for i, answer in enumerate(answers) if not answer]
            for some in [missing] if attempt == 0 else [[i] for i in missing]:
                try:
                    asked = _asked(generate, [part[i] for i in some], seed + attempt, max_new_tokens)
                except Exception as error:  # of whatever kind: too long a prompt, a full memory; alone one may fit
                    asked = [""] * len(some)
                    reasons = [error if i in some else reason for i, reason in enumerate(reasons)]
                for i, answer in zip(some, asked):
                    answers[i] = answer
        failed += [(prompt, reason) for prompt, reason, answer in zip(part, reasons, answers) if not answer]
        yield from answers
    _warn(failed, len(prompts), model)


@lru_cache(maxsize=1)
def _text_generation(model: str, device):
    """Batches are padded on the left, where nothing is generated."""
    from transformers import pipeline

    generate = pipeline("text-generation", model=model, device=device, dtype="auto")
    generate.tokenizer.padding_side = "left"
    if generate.tokenizer.pad_token_id is None:
        generate.tokenizer.pad_token = generate.tokenizer.eos_token
    return generate


def free_models() -> None:
    """Forget the chat model that `transformers_model` keeps for its next call."""
    _text_generation.cache_clear()


def _asked(generate, prompts: list[str], seed: int, max_new_tokens: int) -> list[str]:
    from transformers import set_seed

    set_seed(seed)
    outputs = generate(list(map(_messages, prompts)), max_new_tokens=max_new_tokens, return_full_text=False, batch_size=len(prompts))
    return [extract_prompt(output[0]["generated_text"]) for output in outputs]


class Refused(str):
    """The empty answer to a prompt that a content policy refuses, the one empty answer that `cached` keeps."""


def endpoint(
    prompts: list[str], model: str, url: str, *, workers: int = 8, tokens: int = 0, timeout: float = 60,
    key_variable: str = "OPENAI_API_KEY", tries: int = 3
) -> Iterator[str]:  # fmt: skip
    """Any OpenAI-compatible endpoint (`url` ends before /chat/completions), `workers` requests at a time; the key is read
    from the environment. A request takes `timeout` seconds at most as a whole; a busy server is waited for (`chat.ask`); an
    answer without a sentence, whatever it is instead, is asked for again, `tries` times in all. Then "" is given (Refused where the
    content policy refuses), the others go on, and a warning at the end names the prompts.

    RuntimeError, after all answers so far: a key, model or account that is refused, a host out of reach, more than `tokens` tokens
    (0: no limit) spent. ValueError: no url."""
    client = _Client(chat.open_endpoint(url, key_variable), model, tokens, timeout, tries)
    failed = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(prompts), workers):  # at most one round is lost by a kill
            batch = prompts[start : start + workers]
            for prompt, answer in zip(batch, pool.map(client.refine, batch)):
                failed += [(prompt, answer)] if isinstance(answer, Exception) else []
                yield "" if isinstance(answer, Exception) else answer
            if fatal := [error for _, error in failed if isinstance(error, chat.EndpointError)]:
                raise chat.EndpointError(str(fatal[0])) from None
    _warn(failed, len(prompts), client.endpoint.url)


class _Client:
    """Asks an endpoint for one prompt at a time; all threads spend from the same `tokens` (0: no limit)."""

    def __init__(self, endpoint: chat.Endpoint, model: str, tokens: int, timeout: float, tries: int):
        self.endpoint = endpoint
        self.model = model
        self.tokens = tokens
        self.timeout = timeout
        self.tries = tries
        self.spent = []

    def refine(self, prompt: str) -> str | Exception:
        """The refined prompt, or the error for which there is none."""
        request = {"model": self.model, "messages": _messages(prompt)}
        reason = ""
        for _ in range(self.tries):
            if self.tokens and sum(self.spent) > self.tokens:
                return self._out_of_tokens()
            try:
                answer, reason = chat.ask(self.endpoint, request, self.timeout)
            except (chat.RequestError, chat.EndpointError) as error:
                return error
            if answer is None:
                continue
            self.spent.append(chat.total_tokens(answer, request))
            if chat.is_refused(answer):
                return Refused()
            refined = extract_prompt(chat.answer_text(answer))
            if refined and not _leaks(refined, self.endpoint.key):
                return refined
        return chat.RequestError(reason or "its answers hold no sentence")

    def _out_of_tokens(self) -> chat.EndpointError:
        spent = sum(self.spent)
        return chat.EndpointError(f"{spent} tokens are spent, the limit is {self.tokens}; answers are kept: raise it and run again")


def _leaks(refined: str, key: str) -> bool:
    """Does an answer give the key away? The short ones are words that local servers are content with, such as "EMPTY"."""
    return len(key) >= 8 and key in refined


def _warn(failed: list[tuple[str, Exception]], count: int, source: str) -> None:
    if failed:
        examples = "; ".join(f"{prompt[:60]!r} ({error})" for prompt, error in failed[:5]) + ("; ..." if len(failed) > 5 else "")
        warnings.warn(f"{len(failed)} of {count} prompts got no answer from {source}; the next run asks again: {examples}", stacklevel=2)


def _messages(prompt: str) -> list[dict]:
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]


_TAIL = 20_000  # letters of an answer that are searched: the sentence stands at its end


def extract_prompt(answer: str) -> str:
    """The text `prompt` of the last JSON object of an answer that has one. "" if there is none: an answer cut short, no JSON, no text,
    or half a character in it, which no file of text can hold."""
    answer = answer[-_TAIL:]
    start = 0
    found = ""
    while (start := answer.find("{", start)) >= 0:
        try:
            value, start = json.JSONDecoder().raw_decode(answer, start)
        except (ValueError, RecursionError):  # a number of more than 4,300 digits is a ValueError too
            start += 1
            continue
        found = _one_line(value.get("prompt")) or found
    return found


def _one_line(text) -> str:
    """A text with single spaces for all white space; "" for what is no text or holds a lone surrogate."""
    if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
        return ""
    return " ".join(text.split())


# ---- the cache --------------------------------------------------------------------------------------------------


def cached(prompts: list[str], refiner: Callable[[list[str]], Iterable[str]], path, recipe: str) -> list[str]:
    """refiner(prompts), but each different prompt is asked once and never again: answers are appended to the file `path`
    as they come, under a digest of `recipe` (name the model) and prompt. Asked again is what lies there in part: a line that a kill or a
    full disk has cut, an empty answer that is not Refused. OSError names `path` where the disk fails; ValueError a refiner that gives
    fewer answers than prompts."""
    path = Path(path)
    keys = {prompt: _key(recipe, prompt) for prompt in prompts}
    answers = dict(_read_answers(path))
    missing = [prompt for prompt, key in keys.items() if key not in answers]
    for refined, prompt in zip(refiner(missing) if missing else (), missing):  # the refiner first, so that it comes to its end
        answers[keys[prompt]] = refined if _one_line(refined) else ""
        if answers[keys[prompt]] or isinstance(refined, Refused):
            row = {"key": keys[prompt], "easy": prompt, "refined": refined} | ({} if refined else {"refused": True})
            _append(path, f"\n{json.dumps(row)}".encode())  # after a cut line too
    if unanswered := [prompt for prompt in missing if keys[prompt] not in answers]:
        raise ValueError(f"the refiner gave {len(missing) - len(unanswered)} answers to {len(missing)} prompts: "
                         f"{unanswered[0][:60]!r} has none")  # fmt: skip
    return [answers[keys[prompt]] for prompt in prompts]


def language_model(
    kind: str, model: str, answers, *, url: str = "", tokens: int = 0, seed: int = 0, device=None
) -> Callable[[list[str]], list[str]]:  # fmt: skip
    """A language model as a refiner, a function from prompts to answers, each of which is kept in the file `answers` and never asked for
    again (`cached`). kind: "transformers" for `transformers_model`, or "endpoint" for `endpoint`, which reads `url` and `tokens`.
    ValueError for another kind."""
    refiners = {
        "transformers": partial(transformers_model, model=model, seed=seed, device=device),
        "endpoint": partial(endpoint, model=model, url=url, tokens=tokens),
    }
    if kind not in refiners:
        raise ValueError(f"refiner must be one of {', '.join(refiners)}, or the microworld's, not {kind!r}")
    return partial(cached, refiner=refiners[kind], path=answers, recipe=f"{kind} {model} {seed}")


def _key(recipe: str, prompt: str) -> str:
    return hashlib.sha256(json.dumps([recipe, INSTRUCTION, prompt]).encode()).hexdigest()


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


def _read_answers(path: Path) -> Iterator[tuple[str, str]]:
    """(key, refined prompt) of each whole line."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = json.loads(line)
            key, refined = row["key"], row["refined"]
        except (ValueError, RecursionError, LookupError, TypeError):
            continue
        if isinstance(key, str) and (_one_line(refined) or refined == "" and row.get("refused") is True):
            yield key, refined
