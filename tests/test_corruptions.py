"""Pictures corrupted on purpose: nothing at severity 0, more with more, as the name says, at any size."""

import pytest
import torch

from icthp.corruptions import CORRUPTIONS, artefact, corrupt, sample_severities


def only(way: int, severity: float, n: int) -> torch.Tensor:
    severities = torch.zeros(n, len(CORRUPTIONS))
    severities[:, way] = severity
    return severities


@pytest.fixture
def pixels():
    """Four pictures with edges and flat parts, wider than high."""
    pixels = torch.full((4, 3, 48, 64), 0.4)
    pixels[:, 0, 12:36, 20:44] = 0.9
    return pixels


def test_severity_zero_changes_nothing(pixels):
    unchanged = corrupt(pixels, torch.zeros(4, 5), torch.Generator().manual_seed(0))
    assert torch.allclose(unchanged, pixels, atol=1e-5)


@pytest.mark.parametrize("way", range(len(CORRUPTIONS)), ids=CORRUPTIONS)
@pytest.mark.parametrize("shape", [(48, 64), (33, 21)])
def test_more_severity_changes_more(pixels, way, shape):
    pixels = pixels[..., : shape[0], : shape[1]]
    changes = []
    for severity in (0.2, 0.5, 1.0):
        corrupted = corrupt(pixels, only(way, severity, 4), torch.Generator().manual_seed(0))
        assert corrupted.shape == pixels.shape and 0 <= corrupted.min() and corrupted.max() <= 1
        changes.append((corrupted - pixels).abs().mean().item())
    assert 0 < changes[0] < changes[1] < changes[2]


def test_each_row_has_its_own_severity(pixels):
    severity = only(2, 0.8, 4) * torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]
    changed = (corrupt(pixels, severity, torch.Generator().manual_seed(0)) - pixels).abs().amax((1, 2, 3)) > 0.01
    assert changed.tolist() == [False, True, False, True]


@pytest.mark.parametrize("width", [64, 200])
def test_blur_is_a_gaussian_of_its_deviation(width):
    """A line blurred by deviation s has the peak 1 / (s sqrt(2 pi))."""
    line = torch.zeros(1, 3, 64, width)
    line[..., width // 2] = 1
    blurred = corrupt(line, only(0, 1.0, 1), torch.Generator())
    assert blurred[0, 0, 32, width // 2].item() == pytest.approx(1 / (0.04 * width * (2 * torch.pi) ** 0.5), rel=0.02)
    assert blurred.sum().item() == pytest.approx(line.sum().item(), rel=1e-3)


def test_mush_moves_edges_and_keeps_colours(pixels):
    moved = corrupt(pixels, only(4, 1.0, 4), torch.Generator().manual_seed(0))
    assert (moved[:, 1:] - 0.4).abs().max() < 1e-5 and moved[:, 0].amin() >= 0.4 - 1e-5 and moved[:, 0].amax() <= 0.9 + 1e-5


def test_a_third_of_the_pictures_stays_clean():
    severity = sample_severities(4000, torch.Generator().manual_seed(0))
    ways = (severity > 0).sum(1)
    assert ways.max() == 2 and (ways == 0).float().mean() == pytest.approx(1 / 3, abs=0.03) and severity.max() <= 1
    assert ((severity > 0).float().mean(0) - 8 / 9 / 5).abs().max() < 0.02  # 2/3 + 2/3 * 1/3, over five ways


def test_an_artefact_is_the_union_of_its_parts():
    assert artefact(torch.tensor([[0.5, 0, 0, 0.5, 0], [0] * 5, [1, 0, 0, 0, 0]])).tolist() == [0.75, 0, 1]
