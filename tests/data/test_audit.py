"""The audit of shortcuts: it finds each cue alone, and loses it after the control."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from icthp import images
from icthp.data import audit
from icthp.microworld import renderer


def files(scenes, richness, format, **options):
    return [row["bytes"] for row in images.encode(renderer.render(scenes.at(richness)), format, **options)]


def accuracy(worse, better, **options):
    return {cue: correct.mean() for cue, correct in audit.predict_better(worse, better, **options).items()}


@pytest.mark.slow
def test_the_audit_finds_the_format_and_nothing_after_its_control(scenes):
    """Pairs that differ only by format: the same picture as JPEG and as PNG, and two different ones of one richness."""
    same = [audit.perturb(content, "format") for content in files(scenes, 0.5, "PNG")]
    for pairs in (same, [(a, b) for (a, _), (_, b) in zip(same, same[32:] + same[:32])]):
        before, after = accuracy(*zip(*pairs)), accuracy(*zip(*(audit.match_pair(*pair) for pair in pairs)))
        assert set(before) == {*audit.CUES, "all"} and before["format"] >= 0.99 and before["all"] >= 0.99
        assert max(after.values()) <= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("cue", ["size", "colour", "spectrum"])
def test_each_perturbation_is_found_in_its_cue_and_weaker_after_its_control(scenes, cue):
    plain, changed = zip(*(audit.perturb(content, cue) for content in files(scenes, 0.5, "PNG")))
    pairs = list(zip(plain, changed[32:] + changed[:32]))
    controls = (cue,) if cue in audit.CONTROLS else ()
    before, after = accuracy(*zip(*pairs)), accuracy(*zip(*(audit.match_pair(*pair, 64, controls) for pair in pairs)))
    assert before[cue] > {"size": 0.99, "colour": 0.55, "spectrum": 0.7}[cue] and after[cue] < before[cue]


@pytest.mark.parametrize("cue", audit.CONTROLS)
def test_a_control_makes_its_cue_equal(scenes, cue):
    first, second = files(scenes[:2], 0.5, "PNG")
    a, b = (audit.cues(content)[cue] for content in (first, second))
    c, d = (audit.cues(content)[cue] for content in audit.match_pair(first, second, 64, (cue,)))
    assert np.abs(c - d).mean() < 0.5 * np.abs(a - b).mean()


def test_the_audit_finds_nothing_between_equal_sets(scenes):
    a, b = files(scenes[:32], 0.5, "PNG"), files(scenes[32:], 0.5, "PNG")
    assert all(0.2 < share < 0.8 for share in accuracy(a, b).values())
    assert set(accuracy(a, a).values()) == {0.5}


def test_rows_of_one_prompt_are_in_one_fold(scenes):
    """Ten prompts whose confound has a random direction: only a model that has seen the prompt itself could know it."""
    rng = np.random.default_rng(0)
    png, jpeg = files(scenes, 0.5, "PNG"), files(scenes, 0.5, "JPEG", quality=75)
    groups, sides = np.arange(64) % 10, rng.integers(2, size=10)
    worse, better = zip(*((p, j) if sides[g] else (j, p) for p, j, g in zip(png, jpeg, groups)))
    correct = audit.predict_better(worse, better, groups=groups)["format"]
    per_prompt = [correct[groups == g].std() for g in range(10)]
    assert max(per_prompt) == 0  # a fold decides for whole prompts


def test_same_encoding_is_jpeg_75_of_that_size_and_returns_such_files_unchanged():
    big = images.encode(torch.rand(1, 3, 90, 120))[0]["bytes"]
    small = audit.same_encoding(big, 64)
    image = Image.open(io.BytesIO(small))
    assert image.size == (64, 64) and image.format == "JPEG" and image.quantization[0][0] == 8  # quality 75's first step
    assert audit.same_encoding(small, 64) is small and audit.same_encoding(small) is small
    other = images.encode(torch.rand(1, 3, 64, 64), "JPEG", quality=90)[0]["bytes"]
    assert audit.same_encoding(other, 64) != other


def test_the_audit_names_a_picture_that_it_cannot_read(scenes):
    good = files(scenes[:8], 0.5, "PNG")
    bad = good[:3] + [good[3][:50]] + good[4:]
    with pytest.raises(ValueError, match="the better picture of pair 3: the picture cannot be read"):
        audit.predict_better(good, bad)
    for read in (audit.cues, audit.same_encoding, lambda content: audit.match_pair(good[0], content, 64, ("colour",))):
        with pytest.raises(ValueError, match="cannot be read"):
            read(bad[3])


def test_a_wide_picture_is_cropped_as_clip_crops_it():
    """Not squashed: the middle square, to within JPEG's rounding."""
    wide = torch.zeros(1, 3, 64, 128)
    wide[..., 32:96] = torch.linspace(0, 1, 64)
    content = images.encode(wide)[0]["bytes"]
    square = images.to_pixels(io.BytesIO(audit.same_encoding(content, 64)))
    assert (square - wide[0, :, :, 32:96]).abs().max() < 0.05
    matched = images.to_pixels(io.BytesIO(audit.match_pair(content, content, 64, ("colour",))[0]))
    assert (matched - wide[0, :, :, 32:96]).abs().max() < 0.01


def test_large_pictures_are_reduced_and_their_files_still_seen():
    """A side bounds what pixels cost; format, size and bytes are those of the file."""
    content = images.encode(torch.rand(1, 3, 96, 144), "JPEG", quality=75)[0]["bytes"]
    whole, bounded = audit.cues(content), audit.cues(content, 48)
    for cue in ("format", "size", "bytes"):
        assert np.array_equal(whole[cue], bounded[cue])
    small = audit.reduced(content, 48)
    assert images.to_image(io.BytesIO(small)).size == (48, 32) and audit.reduced(small, 48) is small
    assert all(np.allclose(bounded[cue], audit.cues(small)[cue]) for cue in ("colour", "edges", "spectrum"))


def test_cues_that_were_measured_before_are_as_good_as_files(scenes):
    worse, better = files(scenes[:20], 0.1, "PNG"), files(scenes[:20], 0.9, "PNG")
    direct, measured = audit.predict_better(worse, better), audit.predict_better(audit.all_cues(worse), audit.all_cues(better))
    assert all(np.array_equal(direct[cue], measured[cue]) for cue in direct)
