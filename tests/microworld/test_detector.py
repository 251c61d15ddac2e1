import pytest
import torch

from conftest import ROOT
from icthp.corruptions import CORRUPTIONS, corrupt
from icthp.microworld import renderer
from icthp.microworld.detector import Detector, detection, detector_loss, load_detector, targets
from icthp.microworld.scenes import held_out, sample
from perfect_detector import true_objects


def test_detector_targets_decode_to_the_true_objects(scenes):
    """Peaks of the target heat map, read by the detector's own reading rule, are the objects."""
    heat, shape, colour = targets(scenes)
    heat = heat - 1e-4 * torch.rand(heat.shape, generator=torch.Generator().manual_seed(0))  # no ties between neighbours
    detector = Detector(width=8)
    logits = lambda labels: torch.nn.functional.one_hot(labels.clamp(min=0), 8).permute(0, 3, 1, 2).float()
    detector.forward = lambda pixels: (torch.logit(heat, 1e-4), logits(shape), logits(colour), None, None)
    for found, expected in zip(detector.detect(torch.zeros(64, 3, 64, 64)), true_objects(scenes)):
        assert sorted((d.label, d.colour) for d in found) == sorted((d.label, d.colour) for d in expected)


def test_detector_learns_and_survives_its_folder(scenes, tmp_path):
    torch.manual_seed(0)
    detector, pixels = Detector(width=8), renderer.render(scenes)
    optimizer = torch.optim.Adam(detector.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = detector_loss(detector, pixels, scenes, torch.Generator().manual_seed(0))
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


def test_what_it_reads_of_the_whole_picture_is_bounded():
    """Whatever it is shown, richness and severities lie in [0, 1], and the artefact is the union of its parts."""
    torch.manual_seed(0)
    detector = Detector(width=8).eval()
    read = detector.measure(100 * torch.randn(5, 3, 40, 56))
    assert list(read) == ["micro_richness", "micro_artefact", *(f"micro_{name}" for name in CORRUPTIONS)]
    assert all(((values >= 0) & (values <= 1)).all() for values in read.values())
    apart = torch.stack([1 - read[f"micro_{name}"] for name in CORRUPTIONS])
    assert torch.allclose(read["micro_artefact"], 1 - apart.prod(0))
    assert torch.equal(detector.features(torch.zeros(1, 3, 32, 48), blocks=2), detector.features(torch.zeros(1, 3, 32, 48), 2))
    assert detector.features(torch.zeros(1, 3, 32, 48)).shape == (1, 8, 8, 12)


DATA = ROOT / "data/hub/detector"


@pytest.mark.skipif(not DATA.exists(), reason="data/ is not there: dvc pull data.dvc")
class TestTheTrainedOne:
    """data/hub/detector, which reads what no training of it has seen."""

    @pytest.fixture(scope="class")
    def detector(self):
        return Detector.load(DATA)

    @pytest.fixture(scope="class")
    def unseen(self):
        drawn = sample(2000, torch.Generator().manual_seed(8))
        return drawn[held_out(drawn)][:160]

    def test_richness_is_calibrated(self, detector, unseen):
        read = [detector.measure(renderer.render(unseen.at(level / 8)))["micro_richness"].mean().item() for level in range(9)]
        assert read == sorted(read) and max(abs(r - level / 8) for level, r in enumerate(read)) < 0.1

    @pytest.mark.parametrize("way", range(len(CORRUPTIONS)), ids=CORRUPTIONS)
    def test_it_sees_what_spoils_a_picture_and_does_not_call_it_rich(self, detector, unseen, way):
        plain = renderer.render(unseen.at(0.25))
        severity = torch.zeros(len(plain), len(CORRUPTIONS))
        severity[:, way] = 0.8
        before = detector.measure(plain)
        after = detector.measure(corrupt(plain, severity, torch.Generator().manual_seed(0)))
        name = f"micro_{CORRUPTIONS[way]}"
        assert after[name].mean() > before[name].mean() + (0.1 if name == "micro_mush" else 0.4)
        assert before["micro_artefact"].mean() < 0.2 and abs(after["micro_richness"] - before["micro_richness"]).mean() < 0.15

    def test_pictures_unlike_any_render_are_not_called_rich_and_clean(self, detector):
        g = torch.Generator().manual_seed(1)
        x = torch.linspace(0, 40, 64)
        odd = {
            "noise": torch.rand(8, 3, 64, 64, generator=g),
            "stripes": (x.sin() > 0).float().expand(8, 3, 64, 64),
            "checks": ((x.sin() * x.sin()[:, None]) > 0).float().expand(8, 3, 64, 64),
            "colours": torch.rand(8, 3, 8, 8, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3),
        }
        for name, pixels in odd.items():
            read = detector.measure(pixels)
            assert (read["micro_richness"] - 1.5 * read["micro_artefact"]).mean() < 0.3, name


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
