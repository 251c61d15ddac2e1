"""The microworld's own GenEval, and scores by richness."""

import torch

from icthp.evaluation import geneval
from icthp.microworld import grammar
from icthp.microworld.scenes import held_out
from icthp.microworld.tasks import micro_geneval, prompt_fulfilled, score_by_level
from perfect_detector import PerfectDetector


def test_score_by_level_draws_the_same_scene(scenes):
    asked = []

    def score(pixels, prompts):
        asked.append(prompts)
        return pixels.mean((1, 2, 3))

    assert score_by_level(score, scenes[:4]).shape == (4, 9)
    assert all(p == asked[0] for p in asked)
    score_by_level(score, scenes[:4], "long")
    assert asked[-1] != asked[9]


def test_a_perfect_picture_passes_its_own_prompt(scenes):
    assert prompt_fulfilled(PerfectDetector, scenes, scenes) == [True] * len(scenes)


def test_a_wrong_attribute_fails_its_prompt(scenes):
    colour = (scenes.latents["colour_a"] + 1) % 8
    wrong = scenes.replace(colour_a=colour, colour_b=colour)
    assert prompt_fulfilled(PerfectDetector, wrong, scenes) == [False] * len(scenes)


def test_micro_geneval_asks_held_out_prompts_of_every_task():
    rows = micro_geneval(5, torch.Generator().manual_seed(0))
    assert [r["tag"] for r in rows] == [t for t in geneval.TASKS for _ in range(5)]
    assert all(len({want["class"] for want in r["include"]}) == len(r["include"]) for r in rows)
    assert held_out(grammar.parse([r["prompt"] for r in rows], torch.Generator())).all()
