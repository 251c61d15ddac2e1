import numpy as np
import pytest
import torch

from icthp import evaluate, geneval, microworld, pictures
from icthp.detector import Detector, detection, detector_loss, targets


def test_interval_covers_the_mean_as_often_as_it_says():
    """Bootstrap of 60 normal values, 300 times: about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(0)
    parts = [evaluate.interval(rng.normal(1, 2, 60), resamples=400) for _ in range(300)]
    assert 0.90 <= np.mean([p["low"] <= 1 <= p["high"] for p in parts]) <= 0.985
    assert evaluate.flat("x", [0.0, 1.0]).keys() == {"x", "x_low", "x_high", "x_n"}
    with pytest.raises(ValueError, match="two values"):
        evaluate.interval([1.0])


def test_preference_counts_ties_half():
    right = evaluate.preference(torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.5, 0.1]]))
    assert right["i2_i1"].tolist() == [1, 0.5] and right["i3_i2"].tolist() == [1, 0] and right["i3_i1"].tolist() == [1, 0]


def test_paradox_rate_by_hand():
    by_level = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0, 1.0]])
    assert evaluate.paradox_rate(by_level).tolist() == pytest.approx([1, 0, 2 / 3])  # a tie is not a fall
    assert evaluate.spearman(by_level[:1]) == -1


def test_score_by_level_draws_the_same_scene(scenes):
    seen = []

    def score(pixels, prompts):
        seen.append(prompts)
        return pixels.mean((1, 2, 3))

    assert evaluate.score_by_level(score, scenes[:4]).shape == (4, 9)
    assert all(p == seen[0] for p in seen)
    evaluate.score_by_level(score, scenes[:4], "long")
    assert seen[-1] != seen[9]


def test_jpeg_bytes_grow_with_detail(scenes):
    plain, rich = (pictures.jpeg_bytes(microworld.render(scenes.at(r))).mean() for r in (0, 1))
    assert rich > 1.5 * plain
    flat = pictures.jpeg_bytes(torch.full((2, 3, 64, 64), 0.5))
    assert flat[0] == flat[1] < plain


def test_diversity_closed_form():
    features = torch.tensor([[1.0, 0], [0, 2.0], [1.0, 1], [3.0, 3], [5.0, 0]])
    assert evaluate.diversity(features, ["a", "a", "b", "b", "alone"]).tolist() == pytest.approx([1, 0], abs=1e-6)


# ---- the microworld's prompts -----------------------------------------------------------------------------------------


def truth(scenes):
    """What a perfect detector would say."""
    centres, _, present, is_b = microworld.layout(scenes)

    def thing(i, k):
        which = "_b" if is_b[i, k] else "_a"
        label, colour = (scenes.latents[name + which][i] for name in ("shape", "colour"))
        return detection(microworld.SHAPES[label], microworld.COLOURS[colour], *centres[i, k].tolist(), 1.0)

    return [[thing(i, k) for k in range(3) if present[i, k]] for i in range(len(scenes))]


class Oracle:
    """A detector that is given scenes for pictures."""

    detect = staticmethod(truth)


def test_a_perfect_picture_passes_its_own_prompt(scenes):
    assert evaluate.described_right(Oracle, scenes, scenes) == [True] * len(scenes)


def test_a_wrong_attribute_fails_its_prompt(scenes):
    colour = (scenes.latents["colour_a"] + 1) % 8
    wrong = scenes.replace(colour_a=colour, colour_b=colour)
    assert evaluate.described_right(Oracle, wrong, scenes) == [False] * len(scenes)


def test_micro_geneval_asks_held_out_prompts_of_every_task():
    rows = evaluate.micro_geneval(5, torch.Generator().manual_seed(0))
    assert [r["tag"] for r in rows] == [t for t in geneval.TASKS for _ in range(5)]
    assert all(len({want["class"] for want in r["include"]}) == len(r["include"]) for r in rows)
    assert microworld.held_out(microworld.parse([r["prompt"] for r in rows], torch.Generator())).all()


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
    detector, pixels = Detector(width=8), microworld.render(scenes)
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

    from icthp import pictures

    for name, grey in (("a", 51), ("b", 102)):
        Image.new("RGB", (8, 6 + len(name)), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    pd.DataFrame({"prompt": ["x", "yy"], "I1": ["a.png", "b.png"], "I2": ["b.png", "b.png"]}).to_csv(tmp_path / "t.csv")
    table = pictures.read_levels(tmp_path / "t.csv", ["I1", "I2"])
    values = evaluate.score_files(lambda pixels, prompts: pixels.mean((1, 2, 3)) * len(prompts[0]), table, ["I1", "I2"])
    assert torch.allclose(values, torch.tensor([[0.2, 0.4], [0.8, 0.8]]))
    with pytest.raises(ValueError, match="no column `I3`"):
        pictures.read_levels(tmp_path / "t.csv", ["I1", "I3"])
    long = evaluate.long_table({("clip", "short"): values})
    assert long[long.scene.eq(1) & long.level.eq(0)].score.item() == pytest.approx(0.8) and long.richness.max() == 1


def test_pictures_of_one_prompt_are_one_draw():
    values, prompts = [1, 1, 1, 1, 0, 0, 1, 0], ["a", "a", "a", "a", "b", "b", "c", "c"]
    grouped = evaluate.interval(values, prompts)
    assert (grouped["mean"], grouped["n"]) == (pytest.approx((1 + 0 + 0.5) / 3), 3)
    assert grouped["low"] == 0 and grouped["high"] == 1
