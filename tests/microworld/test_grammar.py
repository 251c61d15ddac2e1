"""Captions and their inverse."""

import pytest
import torch

from icthp.microworld import grammar, sample


def test_parsed_captions_are_the_same_captions(scenes):
    g = torch.Generator().manual_seed(0)
    long = grammar.captions(scenes.at(1), "long")
    assert grammar.captions(grammar.parse(long, g), "long") == long
    short = grammar.captions(scenes)
    assert grammar.captions(grammar.parse(short, g)) == short


def test_sentences_outside_the_grammar_are_refused():
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="a photo of a dog"):
        grammar.parse(["a photo of a dog"], g)
    with pytest.raises(ValueError, match="not a sentence"):
        grammar.parse(["two red circles left of a blue square"], g)


def test_short_captions_do_not_depend_on_richness(scenes):
    assert grammar.captions(scenes.at(0)) == grammar.captions(scenes.at(1)) == grammar.captions(scenes.at(0), "long")


def test_web_captions_are_longer_on_richer_scenes():
    scenes = sample(2000, torch.Generator().manual_seed(0))

    def word_count(richness):
        captions = grammar.captions(scenes.at(richness), "web", torch.Generator().manual_seed(1))
        return sum(len(caption.split()) for caption in captions)

    assert word_count(1.0) > 1.5 * word_count(0.25)
    with pytest.raises(ValueError, match="caption style"):
        grammar.captions(scenes, "medium")
