import numpy as np
import pytest
import torch

from icthp import images
from icthp.evaluation import generator, geneval, metrics, scoring
from icthp.microworld import detector, grammar, renderer
from icthp.microworld.detector import Detector, detection, detector_loss, targets
from icthp.microworld.scenes import COLOURS, SHAPES, held_out
from icthp.microworld.tasks import micro_geneval, prompt_fulfilled, score_by_level
from icthp.scorers import jpeg, loading


def test_preference_counts_ties_half():
    right = metrics.preference(torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.5, 0.1]]))
    assert right["i2_i1"].tolist() == [1, 0.5] and right["i3_i2"].tolist() == [1, 0] and right["i3_i1"].tolist() == [1, 0]


def test_paradox_rate_by_hand():
    by_level = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0, 1.0]])
    assert metrics.paradox_rate(by_level).tolist() == pytest.approx([1, 0, 2 / 3])  # a tie is not a fall
    assert metrics.spearman(by_level[:1]) == -1


def test_score_by_level_draws_the_same_scene(scenes):
    seen = []

    def score(pixels, prompts):
        seen.append(prompts)
        return pixels.mean((1, 2, 3))

    assert score_by_level(score, scenes[:4]).shape == (4, 9)
    assert all(p == seen[0] for p in seen)
    score_by_level(score, scenes[:4], "long")
    assert seen[-1] != seen[9]


def test_jpeg_bytes_grow_with_detail(scenes):
    plain, rich = (images.jpeg_bytes(renderer.render(scenes.at(r))).mean() for r in (0, 1))
    assert rich > 1.5 * plain
    flat = images.jpeg_bytes(torch.full((2, 3, 64, 64), 0.5))
    assert flat[0] == flat[1] < plain


def test_diversity_closed_form():
    features = torch.tensor([[1.0, 0], [0, 2.0], [1.0, 1], [3.0, 3], [5.0, 0]])
    assert metrics.diversity(features, ["a", "a", "b", "b", "alone"]).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_vendi_closed_forms():
    """All the same: 1. n orthogonal: n. Two orthogonal kinds in shares p and 1 - p: exp of that entropy."""
    same, apart = torch.ones(4, 3), torch.eye(4)
    features = torch.cat([same, apart[:, :3], torch.tensor([[1.0, 0, 0]] * 3 + [[0, 2.0, 0]])])
    features[7] = torch.tensor([0.0, 0, 1])  # 4 rows of 3 directions: shares 1/4, 1/4, 1/2
    found = metrics.vendi(features, np.repeat(["same", "apart", "kinds"], 4))
    entropy = lambda *p: np.exp(-sum(x * np.log(x) for x in p))
    assert found.tolist() == pytest.approx([1, entropy(0.25, 0.25, 0.5), entropy(0.75, 0.25)], rel=1e-6)


def test_statistics_of_known_pictures():
    grey, red = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 3, 8, 8)
    found = {k: v.tolist() for k, v in images.statistics(torch.cat([grey, red, board])).items()}
    assert found["brightness"] == pytest.approx([0.5, 0.299, 0.5], abs=1e-6) and found["contrast"] == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert found["colourfulness"] == pytest.approx([0, 0.3 * (1 + 0.25) ** 0.5, 0], abs=1e-6)
    assert found["sharpness"] == pytest.approx([0, 0, 16], abs=1e-5)  # the Laplacian is 4 or -4 everywhere


def test_assess_measures_what_is_drawn(clip_folder):
    """By a generator that draws each prompt's own scene: right where it draws it, wrong where it draws another colour."""
    tasks = micro_geneval(2, torch.Generator().manual_seed(0))
    texts = [t["prompt"] for t in tasks[:5]]
    scenes = lambda prompts: grammar.parse(prompts, torch.Generator().manual_seed(0))

    drawn_ids = []

    def draw(prompts, ids):
        drawn_ids.extend(ids)
        drawn = scenes(prompts)
        colour = (drawn.latents["colour_a"] + 3) % 8
        return renderer.render((drawn.replace(colour_a=colour, colour_b=colour) if wrong else drawn).at(0.2 * (ids[0] // 10_000)))

    class Eyes(Oracle):
        """Told what was drawn by the prompts that it judges."""

        @staticmethod
        def measure(pixels, tasks=None):
            seen = {"micro_richness": torch.zeros(len(pixels))}
            if tasks:
                drawn = scenes([t["prompt"] for t in tasks])
                colour = (drawn.latents["colour_a"] + 3) % 8
                found = truth(drawn.replace(colour_a=colour, colour_b=colour) if wrong else drawn)
                seen["correct"] = [geneval.check(f, t)[0] for f, t in zip(found, tasks)]
            return seen

    own = {"clip": loading.load("clip", f"local-dir:{clip_folder}")}
    wrong = False
    values, pixels = generator.evaluate_generator(draw, texts, tasks * 2, own, Eyes.measure)
    assert pixels.shape == (5, 3, 64, 64) and values["geneval_mean"].mean() == pytest.approx(1) and len(values["geneval_mean"]) == 24
    assert {"jpeg_kb", "micro_richness", "score_clip", "diversity", "sharpness"} <= values.keys() and list(values["jpeg_kb"].index) == texts
    assert values["jpeg_kb"].tolist() == (images.jpeg_bytes(pixels) / 1000).tolist() and len(values["vendi"]) == 1
    wrong = True
    values, _ = generator.evaluate_generator(draw, texts, tasks[:5], own, Eyes.measure)
    means = {name: v.mean() for name, v in values.items() if name.startswith("geneval")}
    assert means == pytest.approx({"geneval_single_object": 1, "geneval_two_object": 1, "geneval_counting": 1, "geneval_mean": 1})
    values, _ = generator.evaluate_generator(draw, texts, tasks[:3] + tasks[6:7], own, Eyes.measure)
    assert values["geneval_colors"].mean() == 0 and values["geneval_mean"].mean() == pytest.approx(2 / 3)  # the mean of the tasks' means
    values, _ = generator.evaluate_generator(draw, texts, tasks[:3] + tasks[6:8] * 2, own, Eyes.measure)
    assert values["geneval_mean"].std() == pytest.approx(0)  # each task is all right or all wrong: nothing varies within
    assert values["geneval_mean"].mean() == pytest.approx(2 / 3)  # however many pictures a task has


def test_every_picture_of_an_assessment_has_a_noise_of_its_own(clip_folder):
    """More tasks than are drawn at once, and the two pictures of each prompt: no noise comes twice."""
    drawn, task = [], {"tag": "colors", "prompt": "x", "include": []}

    def draw(prompts, ids):
        drawn.append(list(ids))
        return torch.zeros(len(prompts), 3, 8, 8)

    look = lambda pixels, tasks: {"correct": [True] * len(tasks)} if tasks else {}
    own = {"clip": loading.load("clip", f"local-dir:{clip_folder}")}
    generator.evaluate_generator(draw, ["a", "b"], [task] * 600, own, look)
    ids = [i for part in drawn for i in part]
    assert len(ids) == 604 == len(set(ids)) and max(map(len, drawn)) == 256


def test_a_score_that_is_nan_is_named():
    """NaN would lose every comparison in silence, and count as no paradox."""
    nan = torch.tensor([[0.1, 0.2, 0.3], [0.1, float("nan"), 0.3]])
    with pytest.raises(ValueError, match="row 1 is NaN"):
        metrics.preference(nan)
    with pytest.raises(ValueError, match="scene 1 is NaN"):
        metrics.paradox_rate(nan)

    class Broken(jpeg.JpegScorer):
        def forward(self, pixels, prompts=None):
            return pixels.mean((1, 2, 3)).log() * 0

    with pytest.raises(ValueError, match="Broken scores NaN in 1 of 3 rows, first in row 1: 'b'"):
        scoring.score_all(Broken(), torch.tensor([0.5, 0, 0.5])[:, None, None, None].expand(3, 3, 4, 4), ["a", "b", "c"])


def test_the_micro_detector_counts_what_geneval_counts():
    """Counting needs a certainty of 0.9: one sure star and two unsure ones are one star."""
    stars = [detection("star", "red", x, 0.0, score) for x, score in ((-0.6, 0.95), (0.0, 0.5), (0.6, 0.45))]
    reader = Detector()
    reader.detect = lambda pixels: [stars]
    three = {"tag": "counting", "prompt": "three stars", "include": [{"class": "star", "count": 3}]}
    assert reader.measure(torch.zeros(1, 3, 64, 64), [three])["correct"] == [False]
    assert reader.measure(torch.zeros(1, 3, 64, 64), [three | {"include": [{"class": "star", "count": 1}]}])["correct"] == [True]


# ---- the microworld's prompts -----------------------------------------------------------------------------------------


def truth(scenes):
    """What a perfect detector would say."""
    centres, _, present, is_b = renderer.layout(scenes)

    def thing(i, k):
        which = "_b" if is_b[i, k] else "_a"
        label, colour = (scenes.latents[name + which][i] for name in ("shape", "colour"))
        return detection(SHAPES[label], COLOURS[colour], *centres[i, k].tolist(), 1.0)

    return [[thing(i, k) for k in range(3) if present[i, k]] for i in range(len(scenes))]


class Oracle:
    """A detector that is given scenes for pictures."""

    detect = staticmethod(truth)


def test_a_perfect_picture_passes_its_own_prompt(scenes):
    assert prompt_fulfilled(Oracle, scenes, scenes) == [True] * len(scenes)


def test_a_wrong_attribute_fails_its_prompt(scenes):
    colour = (scenes.latents["colour_a"] + 1) % 8
    wrong = scenes.replace(colour_a=colour, colour_b=colour)
    assert prompt_fulfilled(Oracle, wrong, scenes) == [False] * len(scenes)


def test_micro_geneval_asks_held_out_prompts_of_every_task():
    rows = micro_geneval(5, torch.Generator().manual_seed(0))
    assert [r["tag"] for r in rows] == [t for t in geneval.TASKS for _ in range(5)]
    assert all(len({want["class"] for want in r["include"]}) == len(r["include"]) for r in rows)
    assert held_out(grammar.parse([r["prompt"] for r in rows], torch.Generator())).all()


# ---- the detector ----------------------------------------------------------------------------------------------------


def test_detector_targets_decode_to_the_truth(scenes):
    """Peaks of the target heat map, read by the detector's own reading rule, are the objects."""
    heat, shape, colour = targets(scenes)
    heat = heat - 1e-4 * torch.rand(heat.shape, generator=torch.Generator().manual_seed(0))  # no ties between neighbours
    detector = Detector(width=8)
    logits = lambda labels: torch.nn.functional.one_hot(labels.clamp(min=0), 8).permute(0, 3, 1, 2).float()
    detector.forward = lambda pixels: (torch.logit(heat, 1e-4), logits(shape), logits(colour), None)
    for found, expected in zip(detector.detect(torch.zeros(64, 3, 64, 64)), truth(scenes)):
        assert sorted((d.label, d.colour) for d in found) == sorted((d.label, d.colour) for d in expected)


def test_detector_learns_and_survives_its_folder(scenes, tmp_path):
    torch.manual_seed(0)
    detector, pixels = Detector(width=8), renderer.render(scenes)
    optimizer = torch.optim.Adam(detector.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = detector_loss(detector, pixels, scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    detector.eval().save(tmp_path)
    again = Detector.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(detector(pixels), again(pixels)))
    with pytest.raises(FileNotFoundError, match="make data"):
        Detector.load(tmp_path / "nowhere")


def test_files_of_a_table_are_scored_by_level(tmp_path):
    import pandas as pd
    from PIL import Image

    for name, grey in (("a", 51), ("b", 102)):
        Image.new("RGB", (8, 6 + len(name)), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    pd.DataFrame({"prompt": ["x", "yy"], "I1": ["a.png", "b.png"], "I2": ["b.png", "b.png"]}).to_csv(tmp_path / "t.csv")
    table = images.read_levels(tmp_path / "t.csv", ["I1", "I2"])
    values = scoring.score_files(lambda pixels, prompts: pixels.mean((1, 2, 3)) * len(prompts[0]), table, ["I1", "I2"])
    assert torch.allclose(values, torch.tensor([[0.2, 0.4], [0.8, 0.8]]))
    with pytest.raises(ValueError, match="no column `I3`"):
        images.read_levels(tmp_path / "t.csv", ["I1", "I3"])
    long = metrics.long_table({("clip", "short"): values})
    assert long[long.scene.eq(1) & long.level.eq(0)].score.item() == pytest.approx(0.8) and long.richness.max() == 1


def test_a_detector_that_is_not_there(tmp_path):

    with pytest.raises(FileNotFoundError, match="is no folder with a detector"):
        detector.load_detector(str(tmp_path / "none"))
