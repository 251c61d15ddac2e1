"""What a refined prompt must keep of the easy one, and prompts with one word changed."""

import re

import open_clip
import pytest
import torch

from icthp.data import wording
from icthp.data.prompts import same_prompt
from icthp.microworld import grammar
from icthp.microworld.refiner import CLASSES

FITS = lambda text: len(text.split()) < 60


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
    assert wording.refinement_error(easy, refined, FITS) == reason


def test_one_answer_for_two_prompts_is_a_duplicate():
    easy, refined = ["a cat", "cats", "a cat"], ["a cat sat", "a cat sat", "a cat sat"]
    assert wording.refinement_errors(easy, refined, FITS) == ["", "duplicate", ""]


@pytest.mark.parametrize(
    "other", ["A Cat & a café", "  a cat  &\ta café\n", "a cat &amp; a café", "a cat & a cafe\u0301", "a cat & a cafÃ©"]
)
def test_what_the_tokenizer_reads_as_one_prompt_is_one_prompt(other):
    tokens = open_clip.tokenizer.SimpleTokenizer()(["a cat & a café", other])
    assert torch.equal(*tokens) and same_prompt(other) == "a cat & a café"
    assert wording.refinement_errors(["a cat & a café", other], ["at dusk a cat & a café"] * 2, FITS) == ["", ""]
    same_answer = ["At Dusk a cat & a café", "at dusk  a cat & a café"]
    assert wording.refinement_errors([other, "cats & a café"], same_answer, FITS) == ["", "duplicate"]


def test_content_words_are_read_as_the_tokenizer_reads_them():
    for easy, refined in (("cats &amp; a cafe\u0301", "two cats & a café at dusk"), ("a CAT", "a cat &amp; a dog")):
        assert wording.refinement_error(easy, refined, FITS) == ""


@pytest.mark.parametrize("easy, refined", [
    ("A photo of a bear", "A brown bear at a river"),  # of lab.md, each lost a unit before
    ("a man running", "a man runs along a beach at dawn"),
    ("womens shoes", "a woman's shoes on a wooden floor"),
    ("two wolves and three boxes", "three wooden boxes, two wolves beside them"),
    ("a gray cat's eyes", "grey eyes of a cat, in soft light"),
    ("children dancing", "a child dances in the rain"),
])  # fmt: skip
def test_another_form_of_a_word_is_the_same_word(easy, refined):
    assert wording.refinement_error(easy, refined, FITS) == ""


def test_another_word_is_another_unit():
    for easy, refined in (("a bear", "a beard"), ("a red cat", "a reddish dog"), ("a king", "a kingdom at dusk")):
        assert wording.refinement_error(easy, refined, FITS) == "a unit is lost"


def test_all_rows_rejected_is_said_at_once():
    wording.raise_if_all_rejected({"train": ["", "too long"], "test": []})
    with pytest.raises(ValueError, match=r"all 3 rows of test are rejected \(2 no answer, 1 too long\): look at rejects.csv"):
        wording.raise_if_all_rejected({"train": [""], "test": ["no answer", "too long", "no answer"]})


# ---- hard negatives -------------------------------------------------------------------------------------------------


def test_a_hard_negative_changes_one_unit_and_stays_a_sentence(scenes):
    prompts = grammar.captions(scenes)
    negatives = [wording.hard_negative(p, 0, CLASSES) for p in prompts]
    grammar.parse(negatives, torch.Generator())
    units = lambda prompt: [word for word in prompt.replace("left of", "left-of").split() if word not in ("a", "an")]
    assert {sum(a != b for a, b in zip(units(p), units(n))) for p, n in zip(prompts, negatives)} == {1}
    assert not [n for n in negatives for article, word in re.findall(r"\b(an?) (\w)", n) if (article == "an") != (word in "aeiou")]
    assert any(p.split()[0] != n.split()[0] and p.split()[0] in ("a", "an") for p, n in zip(prompts, negatives))
    assert negatives == [wording.hard_negative(p, 0, CLASSES) for p in prompts]
    assert negatives != [wording.hard_negative(p, 1, CLASSES) for p in prompts]


def test_the_article_goes_with_the_word_that_comes_in():
    from_orange = {wording.hard_negative("An orange\tcat, an owl and a  dog", seed) for seed in range(80)}
    assert "A blue\tcat, an owl and a  dog" in from_orange and len(from_orange) == 10
    to_orange = {wording.hard_negative("eat a  red apple, a banana", seed) for seed in range(80)}
    assert {"eat an  orange apple, a banana", "eat a  blue apple, a banana"} <= to_orange and len(to_orange) == 10


def test_hard_negatives_of_natural_prompts():
    found = {wording.hard_negative("Two red cats left of a dog", seed) for seed in range(200)}
    assert {"three red cats left of a dog", "Two blue cats left of a dog", "Two red cats above a dog"} <= found
    assert wording.hard_negative("a cat left  of a dog", 0) not in ("", "a cat left of a dog")
    assert "Two red cats left of a dog" not in found and wording.hard_negative("a colourful cat, bored", 0) == ""


def test_a_hard_negative_never_means_the_same():
    below = {wording.hard_negative("a cat below a table", seed) for seed in range(80)}
    above = {wording.hard_negative("a lamp above a desk", seed) for seed in range(80)}
    assert "a cat under a table" not in below and len(below) == 6 and "a lamp on top of a desk" not in above and len(above) == 6
