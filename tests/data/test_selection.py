"""Pictures to look at: in their order, one a prompt."""

import torch

from icthp import data

PROMPTS = ["a cat", "A  cat", "a dog", "a hen"]
SCORES = torch.tensor([[0.9, 0.8, 0.1], [0.95, 0.2, 0.3], [0.4, 0.7, 0.6], [0.5, 0.0, 0.05]])


def test_each_prompt_is_there_once_by_its_first_picture():
    ranked = SCORES.flatten().argsort(descending=True)
    assert data.of_different_prompts(ranked, PROMPTS, 2) == [3, 7]  # I1 of row 1, which has the prompt of row 0, and I2 of row 2
    assert data.of_different_prompts(ranked.flip(0), PROMPTS, 3) == [10, 2, 6]


def test_there_are_no_more_pictures_than_prompts():
    assert data.of_different_prompts(range(12), PROMPTS, 9) == [0, 6, 9]
    assert data.of_different_prompts([], PROMPTS, 3) == data.of_different_prompts(range(12), PROMPTS, 0) == []
