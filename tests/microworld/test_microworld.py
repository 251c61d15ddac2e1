import itertools
import math

import pytest
import torch

from icthp.microworld import annotators, grammar, renderer
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
    many = sample(60_000, torch.Generator().manual_seed(1))
    assert information(many)["text"].mean().item() == pytest.approx(entropy, abs=0.05)


def test_private_bits_are_the_sum_of_drawn_layers(scenes):
    one = scenes[scenes.latents["kind"] == 0][:1].at(3 / 8)
    bits = information(one)
    assert bits["private"].item() == pytest.approx(3 + 2 + 2 + 2 + 3 + 2 + 3)  # backdrop, x, y, scale; scenery, time, material
    assert bits["named"].item() == pytest.approx(3 + 2 + 3)
    assert bits["text"].item() == pytest.approx(math.log2(3) + 6)


def looks(one: Scenes, name: str, count: int, level: int) -> float:
    """Bits of latent `name`, uniform over `count` values, that pictures of 8 bits a channel tell apart, by enumeration."""
    same = Scenes({k: v.expand(count) for k, v in one.latents.items()} | {name: torch.arange(count)}, torch.full((count,), level))
    _, alike = renderer.render(same).mul(255).round().flatten(1).unique(dim=0, return_counts=True)
    return -(alike / count * (alike / count).log2()).sum().item()


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("marks", range(4))
def test_private_bits_are_those_that_pictures_show(scenes, kind, marks):
    one = scenes[scenes.latents["kind"] == kind][:1].replace(sky=torch.tensor([marks]), ground=torch.tensor([marks]))
    tables = ALWAYS | {k: c for layer in DETAILS for k, c in layer.items()}
    for level in (0, 1, 3, 6, 7, 8):
        seen = sum(looks(one, name, count, level) for name, count in tables.items())
        assert information(one.at(level / 8))["private"].item() == pytest.approx(seen, abs=1e-4), level


def test_long_captions_are_read_back(scenes):
    g = torch.Generator().manual_seed(0)
    long = grammar.captions(scenes.at(1), "long")
    assert grammar.captions(grammar.parse(long, g), "long") == long
    short = grammar.captions(scenes)
    assert grammar.captions(grammar.parse(short, g)) == short
    with pytest.raises(ValueError, match="a photo of a dog"):
        grammar.parse(["a photo of a dog"], g)
    with pytest.raises(ValueError, match="not a sentence"):
        grammar.parse(["two red circles left of a blue square"], g)


def test_short_captions_do_not_depend_on_richness(scenes):
    assert grammar.captions(scenes.at(0)) == grammar.captions(scenes.at(1)) == grammar.captions(scenes.at(0), "long")


def test_web_captions_are_longer_on_richer_scenes():
    many = sample(2000, torch.Generator().manual_seed(0))
    words = lambda r: sum(len(c.split()) for c in grammar.captions(many.at(r), "web", torch.Generator().manual_seed(1)))
    assert words(1.0) > 1.5 * words(0.25)
    with pytest.raises(ValueError, match="caption style"):
        grammar.captions(many, "medium")


def test_render_is_deterministic_bounded_and_batched(scenes, monkeypatch):
    whole = renderer.render(scenes)
    monkeypatch.setattr(renderer, "CHUNK", 5)
    assert torch.equal(whole, renderer.render(scenes))
    assert whole.shape == (64, 3, 64, 64) and whole.min() >= 0 and whole.max() <= 1
    assert renderer.render(scenes[:2], size=33).shape == (2, 3, 33, 33)


def test_each_layer_changes_the_picture_and_only_when_drawn(scenes):
    for k, layer in enumerate(DETAILS):
        for name, size in layer.items():
            other = scenes.replace(**{name: (scenes.latents[name] + 1) % size})
            below = [renderer.render(s.at(k / 8)) for s in (scenes, other)]
            assert torch.equal(*below), name
            above = [renderer.render(s.at((k + 1) / 8)) for s in (scenes, other)]
            shown = torch.ones(64, dtype=torch.bool) if name != "material_b" else scenes.latents["kind"] == 1
            assert ((above[0] - above[1]).abs().amax((1, 2, 3))[shown] > 1e-3).float().mean() > 0.9, name


def test_pairs_differ_and_an_eighth_is_held_out():
    many = sample(20_000, torch.Generator().manual_seed(2))
    s = many.latents
    assert ((s["shape_a"] != s["shape_b"]) | (s["colour_a"] != s["colour_b"])).all()
    held = held_out(many)
    assert held.float().mean().item() == pytest.approx(1 / 8, abs=0.01)
    train, test = (set(grammar.captions(many[rows])) for rows in (~held, held))
    assert not train & test


def test_annotators_agree_as_people_do():
    g = torch.Generator().manual_seed(3)
    many = sample(3000, g)
    (_, a), (_, b) = (annotators.weak_generator(many, g) for _ in range(2))
    first, second = (annotators.votes(annotators.utility(a), annotators.utility(b), g) for _ in range(2))
    assert 0.69 < (first == second).float().mean() < 0.77


def test_richness_outside_its_range(scenes):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        scenes.at(1.2)
