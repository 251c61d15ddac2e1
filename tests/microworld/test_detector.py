import pytest
import torch

from icthp.microworld import renderer
from icthp.microworld.detector import Detector, detection, detector_loss, load_detector, targets
from perfect_detector import true_objects


def test_detector_targets_decode_to_the_true_objects(scenes):
    """Peaks of the target heat map, read by the detector's own reading rule, are the objects."""
    heat, shape, colour = targets(scenes)
    heat = heat - 1e-4 * torch.rand(heat.shape, generator=torch.Generator().manual_seed(0))  # no ties between neighbours
    detector = Detector(width=8)
    logits = lambda labels: torch.nn.functional.one_hot(labels.clamp(min=0), 8).permute(0, 3, 1, 2).float()
    detector.forward = lambda pixels: (torch.logit(heat, 1e-4), logits(shape), logits(colour), None)
    for found, expected in zip(detector.detect(torch.zeros(64, 3, 64, 64)), true_objects(scenes)):
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


def test_the_micro_detector_counts_what_geneval_counts():
    """Counting needs a certainty of 0.9: one sure star and two unsure ones are one star."""
    stars = [detection("star", "red", x, 0.0, score) for x, score in ((-0.6, 0.95), (0.0, 0.5), (0.6, 0.45))]
    detector = Detector()
    detector.detect = lambda pixels: [stars]
    three = {"tag": "counting", "prompt": "three stars", "include": [{"class": "star", "count": 3}]}
    assert detector.measure(torch.zeros(1, 3, 64, 64), [three])["correct"] == [False]
    assert detector.measure(torch.zeros(1, 3, 64, 64), [three | {"include": [{"class": "star", "count": 1}]}])["correct"] == [True]


def test_a_detector_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder with a detector"):
        load_detector(str(tmp_path / "none"))
