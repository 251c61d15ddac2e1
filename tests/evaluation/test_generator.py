"""What a generator is worth, measured on generators that draw what is known."""

import pytest
import torch

from icthp import images
from icthp.evaluation import generator, geneval
from icthp.microworld import grammar, renderer
from icthp.microworld.tasks import micro_geneval
from icthp.scorers import loading
from perfect_detector import true_objects


@pytest.fixture
def scorers(clip_folder):
    return {"clip": loading.load("clip", f"local-dir:{clip_folder}")}


class Painter:
    """Draws each prompt's own scene, or, where `is_wrong`, one of other colours; its `measure` finds what it drew."""

    def __init__(self, is_wrong: bool):
        self.is_wrong = is_wrong

    def scenes(self, prompts):
        scenes = grammar.parse(prompts, torch.Generator().manual_seed(0))
        colour = (scenes.latents["colour_a"] + 3) % 8
        return scenes.replace(colour_a=colour, colour_b=colour) if self.is_wrong else scenes

    def draw(self, prompts, tasks):
        wanted = generator.pictures_wanted(prompts, tasks)
        return renderer.render(self.scenes(wanted.prompts).at(0.2 * (torch.tensor(wanted.ids) // 10_000)))

    def measure(self, pixels, tasks=None):
        measured = {"micro_richness": torch.zeros(len(pixels))}
        if tasks:
            found = true_objects(self.scenes([task["prompt"] for task in tasks]))
            measured["correct"] = [geneval.check(objects, task)[0] for objects, task in zip(found, tasks)]
        return measured


@pytest.fixture(scope="module")
def tasks():
    return micro_geneval(2, torch.Generator().manual_seed(0))


def test_each_measure_is_of_what_is_drawn(scorers, tasks):
    prompts = [task["prompt"] for task in tasks[:5]]
    painter = Painter(is_wrong=False)
    values, pixels = generator.evaluate_generator(painter.draw(prompts, tasks * 2), prompts, tasks * 2, scorers, painter.measure)
    assert pixels.shape == (5, 3, 64, 64) and values["geneval_mean"].mean() == pytest.approx(1) and len(values["geneval_mean"]) == 24
    assert {"jpeg_kb", "micro_richness", "score_clip", "diversity", "sharpness"} <= values.keys()
    assert list(values["jpeg_kb"].index) == prompts
    assert values["jpeg_kb"].tolist() == (images.jpeg_bytes(pixels) / 1000).tolist() and len(values["vendi"]) == 1


def test_wrong_colours_fail_the_tasks_that_ask_for_colours(scorers, tasks):
    prompts = [task["prompt"] for task in tasks[:5]]
    painter = Painter(is_wrong=True)
    measure = lambda chosen: generator.evaluate_generator(painter.draw(prompts, chosen), prompts, chosen, scorers, painter.measure)[0]
    means = {name: v.mean() for name, v in measure(tasks[:5]).items() if name.startswith("geneval")}
    assert means == pytest.approx({"geneval_single_object": 1, "geneval_two_object": 1, "geneval_counting": 1, "geneval_mean": 1})
    values = measure(tasks[:3] + tasks[6:7])
    assert values["geneval_colors"].mean() == 0 and values["geneval_mean"].mean() == pytest.approx(2 / 3)  # the mean of the tasks' means
    values = measure(tasks[:3] + tasks[6:8] * 2)
    assert values["geneval_mean"].std() == pytest.approx(0)  # each task is all right or all wrong: nothing varies within
    assert values["geneval_mean"].mean() == pytest.approx(2 / 3)  # whatever the number of pictures of a task


def test_every_picture_has_a_noise_of_its_own_and_few_are_in_memory(scorers):
    tasks = [{"tag": "colors", "prompt": "x", "include": []}] * 600
    wanted = generator.pictures_wanted(["a", "b"], tasks)
    assert len(wanted.ids) == 604 == len(set(wanted.ids)) and wanted.prompts == ["x"] * 600 + ["a", "b"] * 2
    sizes = []

    def measure(pixels, tasks):
        sizes.append(len(pixels))
        return {"correct": [True] * len(tasks)} if tasks else {}

    pictures = (torch.zeros(3, 8, 8) for _ in wanted.ids)
    _, shown = generator.evaluate_generator(pictures, ["a", "b"], tasks, scorers, measure, batch=50, shown=1)
    assert sizes == [50] * 12 + [2] and len(shown) == 1


def test_without_clip_there_is_no_diversity():
    with pytest.raises(ValueError, match="add clip to the scorers jpeg"):
        generator.evaluate_generator([], ["a"], [], {"jpeg": None}, None)
