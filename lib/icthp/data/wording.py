"""Words of prompts: what a refined prompt must keep of the easy one, and hard negatives, prompts with one word changed."""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

import snowballstemmer

from icthp.data.prompts import same_prompt

_STOP_WORDS = set("a an the this that some of in on at by to with for from and or is are be it its as photo picture image".split())
_IRREGULAR = {"women": "woman", "womens": "woman", "men": "man", "mens": "man", "children": "child", "childrens": "child",
              "people": "person", "feet": "foot", "teeth": "tooth", "mice": "mouse", "geese": "goose", "wolves": "wolf", "leaves": "leaf",
              "knives": "knife", "gray": "grey", "photograph": "photo", "photography": "photo", "running": "run", "ran": "run"}  # fmt: skip
_stem = snowballstemmer.stemmer("english").stemWord


def content_words(prompt: str) -> set[str]:
    """The stems of the words of a prompt that name something, as CLIP's tokenizer reads them (`same_prompt`): a plural, a possessive or
    another form of a word is the same word."""
    words = re.findall(r"\w+", re.sub(r"['’]s\b", "", same_prompt(prompt)))
    return {_stem(_IRREGULAR.get(word, word)) for word in words} - _STOP_STEMS


_STOP_STEMS = set(map(_stem, _STOP_WORDS))


def _latin_fraction(text: str) -> float:
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
        "another script": _latin_fraction(easy) > 0.9 > _latin_fraction(refined),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def refinement_errors(easy: list[str], refined: list[str], fits: Callable[[str], bool]) -> list[str]:
    """`refinement_error` of each pair; one refined prompt for two easy ones that `same_prompt` tells apart is a duplicate after the
    first."""
    first_easy = {}
    errors = []
    for e, r in zip(easy, refined):
        is_duplicate = first_easy.setdefault(same_prompt(r), same_prompt(e)) != same_prompt(e)
        errors.append(refinement_error(e, r, fits) or ("duplicate" if is_duplicate else ""))
    return errors


def raise_if_all_rejected(reasons: dict[str, list[str]]) -> None:
    """ValueError where a split has no valid row left. reasons: for each split why each row was rejected, "" where it was not."""
    for split, why in reasons.items():
        if why and all(why):
            counts = ", ".join(f"{n} {reason}" for reason, n in Counter(why).most_common())
            raise ValueError(f"all {len(why)} rows of {split} are rejected ({counts}): look at rejects.csv, and name another refiner_model")


# ---- hard negatives ---------------------------------------------------------------------------------------------

CLASSES = (  # terms of one class; a prompt with one of them changed is a hard negative
    ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "pink", "brown", "grey"),
    ("two", "three", "four", "five", "six"),
    ("left of", "right of", "above", "below", "behind", "in front of", "on top of", "under"),
)
SYNONYMS = ({"below", "under"}, {"above", "on top of"})


def hard_negative(prompt: str, seed: int, classes=CLASSES) -> str:
    """The prompt with one count, colour or relation changed to another of its class, and the article before it with it, "" if it has
    none: a semi-hard text negative (TPO's idea). The choice depends on the prompt and the seed alone."""
    found = [(match, terms) for terms in classes for match in re.finditer(_any_of(terms), prompt, re.IGNORECASE)]
    if not found:
        return ""
    rng = random.Random(f"{seed} {prompt}")
    match, terms = rng.choice(found)
    old = " ".join(match[0].lower().split())
    new = rng.choice([term for term in terms if term != old and {term, old} not in SYNONYMS])
    before = re.sub(r"\b(a)n?(\s+)$", r"\1n\2" if new[0] in "aeiou" else r"\1\2", prompt[: match.start()], flags=re.IGNORECASE)
    return before + new + prompt[match.end() :]


def _any_of(terms) -> str:
    """A pattern that finds each of the terms as whole words, whatever white space is in them."""
    return r"\b(?:" + "|".join(terms).replace(" ", r"\s+") + r")\b"
