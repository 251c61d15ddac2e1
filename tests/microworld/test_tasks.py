"""The microworld's own GenEval, and scores by richness."""

import torch

from icthp.evaluation import geneval
from icthp.microworld import grammar
from icthp.microworld.scenes import held_out
from icthp.microworld.tasks import check_generator, held_out_kinds, micro_geneval, prompt_fulfilled, score_by_level
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


class Reader(PerfectDetector):
    """The prompts stand for pictures, and scenes are parsed from them."""

    @staticmethod
    def detect(prompts):
        return PerfectDetector.detect(grammar.parse(list(prompts), torch.Generator().manual_seed(0)))

    @staticmethod
    def measure(prompts):
        return {"micro_richness": torch.tensor([len(text) / 200 for text in prompts]), "micro_artefact": torch.zeros(len(prompts))}


def test_a_generator_is_checked_on_held_out_scenes_of_every_kind():
    checked = check_generator(list, Reader, 6, torch.Generator().manual_seed(0))
    assert [key for key in checked] == [(kind, style) for kind in ("one", "pair", "group") for style in ("short", "long")]
    assert all(len(values) == 6 for measured in checked.values() for values in measured.values())
    assert all((measured["correct"] == 1).all() for measured in checked.values())  # whatever else a long prompt says
    assert checked["pair", "long"]["richness"].mean() > checked["pair", "short"]["richness"].mean()


def test_held_out_scenes_by_kind():
    for kind, drawn in enumerate(held_out_kinds(7, torch.Generator().manual_seed(0)).values()):
        assert len(drawn) == 7 and held_out(drawn).all() and (drawn.latents["kind"] == kind).all()


def test_micro_geneval_asks_held_out_prompts_of_every_task():
    rows = micro_geneval(5, torch.Generator().manual_seed(0))
    assert [r["tag"] for r in rows] == [t for t in geneval.TASKS for _ in range(5)]
    assert all(len({want["class"] for want in r["include"]}) == len(r["include"]) for r in rows)
    assert held_out(grammar.parse([r["prompt"] for r in rows], torch.Generator())).all()
