"""SRPO's relative score is the difference of two."""

import pytest
import torch

from icthp import scorers
from icthp.scorers.relative import RelativeScorer


def test_it_is_the_difference_of_two_prompts(clip):
    pixels = torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = ["a red circle", "two blue stars", "a green heart"]
    relative = RelativeScorer(clip, "rich {}".format, "plain {}".format, k=0.2)
    found = relative.score(pixels, prompts)
    expected = 1.2 * clip.score(pixels, [f"rich {p}" for p in prompts]) - clip.score(pixels, [f"plain {p}" for p in prompts])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.autograd.grad(found.sum(), pixels)[0].abs().amax((1, 2, 3)).gt(0).all()
    same = RelativeScorer(clip, str, str)
    assert same.score(pixels, prompts).abs().max() < 1e-6
    assert relative.is_truncated(["a " * 200, "a"]).tolist() == [True, False]


def test_a_scorer_of_the_image_alone_is_refused():
    with pytest.raises(ValueError, match="reads no prompt"):
        RelativeScorer(scorers.load("jpeg"), str, str)
