"""Scenes and their bits; the exact information is that of the sentences and of the pictures, by enumeration."""

import itertools
import math

import pytest
import torch

from icthp.microworld import grammar, renderer
from icthp.microworld.scenes import ALWAYS, DETAILS, Scenes, held_out, information, sample


def test_richness_draws_more_and_is_monotone_in_bits(scenes):
    bits = torch.stack([information(scenes.at(k / 8))["private"] for k in range(9)])
    assert (bits[1:] > bits[:-1]).all()


def test_described_bits_by_enumeration():
    """H(t) of the short prompt from the probabilities of every sentence of the grammar."""
    single = 64 * [1 / 3 / 64]
    pairs = 64 * 63 * 2 * [1 / 3 / (64 * 63 * 2)]
    groups = 64 * 2 * [1 / 3 / 128]
    entropy = -sum(p * math.log2(p) for p in itertools.chain(single, pairs, groups))
    scenes = sample(60_000, torch.Generator().manual_seed(1))
    assert information(scenes)["text"].mean().item() == pytest.approx(entropy, abs=0.05)


def test_private_bits_are_the_sum_of_drawn_layers(scenes):
    one = scenes[scenes.latents["kind"] == 0][:1].at(3 / 8)
    bits = information(one)
    assert bits["private"].item() == pytest.approx(3 + 2 + 2 + 2 + 3 + 2 + 3)  # backdrop, x, y, scale; scenery, time, material
    assert bits["named"].item() == pytest.approx(3 + 2 + 3)
    assert bits["text"].item() == pytest.approx(math.log2(3) + 6)


def visible_bits(one: Scenes, name: str, cardinality: int, level: int) -> float:
    """Bits of the latent `name`, uniform over its values, that pictures of 8 bits a channel tell apart, by enumeration."""
    latents = {k: v.expand(cardinality) for k, v in one.latents.items()} | {name: torch.arange(cardinality)}
    pictures = renderer.render(Scenes(latents, torch.full((cardinality,), level))).mul(255).round().flatten(1)
    _, counts = pictures.unique(dim=0, return_counts=True)
    return -(counts / cardinality * (counts / cardinality).log2()).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("marks", range(4))
def test_private_bits_are_those_that_pictures_show(scenes, kind, marks):
    one = scenes[scenes.latents["kind"] == kind][:1].replace(sky=torch.tensor([marks]), ground=torch.tensor([marks]))
    cardinalities = ALWAYS | {name: c for layer in DETAILS for name, c in layer.items()}
    for level in (0, 1, 3, 6, 7, 8):
        visible = sum(visible_bits(one, name, c, level) for name, c in cardinalities.items())
        assert information(one.at(level / 8))["private"].item() == pytest.approx(visible, abs=1e-4), level


def test_pairs_differ_and_an_eighth_is_held_out():
    scenes = sample(20_000, torch.Generator().manual_seed(2))
    s = scenes.latents
    assert ((s["shape_a"] != s["shape_b"]) | (s["colour_a"] != s["colour_b"])).all()
    is_held_out = held_out(scenes)
    assert is_held_out.float().mean().item() == pytest.approx(1 / 8, abs=0.01)
    train, test = (set(grammar.captions(scenes[rows])) for rows in (~is_held_out, is_held_out))
    assert not train & test


def test_richness_outside_its_range(scenes):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        scenes.at(1.2)
