import math

import numpy as np
import pytest
import torch

from icthp import audit, information, microworld, pictures


def test_predicted_score_closed_forms():
    assert information.predicted_score(10.0, 0.0, 10.0) == 1.0
    assert information.predicted_score(10.0, 30.0, 10.0) == pytest.approx(math.sqrt(10 / 40))  # all of the prompt contained
    a, b = np.meshgrid(np.linspace(0.1, 10, 20), np.linspace(0, 50, 20))
    f = information.predicted_score(a, b, 10.0)
    assert (f > 0).all() and (f <= 1).all()


def test_the_score_falls_exactly_where_the_condition_says():
    """db > da (1 + 2 b / a), against finite differences of f."""
    rng = np.random.default_rng(0)
    a, b, da, db = rng.uniform(0.5, 20, 500), rng.uniform(0, 40, 500), rng.uniform(0, 1, 500), rng.uniform(0, 9, 500)
    change = information.predicted_score(a + 1e-7 * da, b + 1e-7 * db, 20) - information.predicted_score(a, b, 20)
    assert np.array_equal(change < 0, information.score_falls(a, b, da, db))


def test_gaussian_information_closed_form():
    """A pair with correlation r shares -log2(1 - r^2) / 2 bits; independent pairs add."""
    draw = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 200_000, 2, generator=draw, dtype=torch.float64)
    r = torch.tensor([0.6, 0.9], dtype=torch.float64)
    y = r * x + (1 - r**2).sqrt() * noise
    assert information.gaussian_information(x, y) == pytest.approx((-0.5 * torch.log2(1 - r**2)).sum().item(), abs=0.01)
    with pytest.raises(ValueError, match="samples"):
        information.gaussian_information(x[:4], y[:4])


def files(scenes, richness, format, **options):
    return [row["bytes"] for row in pictures.encode(microworld.render(scenes.at(richness)), format, **options)]


def test_the_audit_finds_a_planted_format_cue(scenes):
    jpeg, png = files(scenes, 0.5, "JPEG", quality=75), files(scenes, 0.5, "PNG")
    right = audit.predict_better(jpeg, png)
    assert right["format"].mean() == 1.0 and set(right) == set(audit.CUES)
    again = [audit.same_format(c, 64) for c in png]
    alike = audit.predict_better([audit.same_format(c, 64) for c in jpeg], again)
    assert alike["format"].mean() < 0.7


def test_the_audit_finds_nothing_between_equal_sets(scenes):
    a, b = files(scenes[:32], 0.5, "PNG"), files(scenes[32:], 0.5, "PNG")
    assert all(0.2 < r.mean() < 0.8 for r in audit.predict_better(a, b).values())


def test_same_format_is_the_same_size():
    from PIL import Image

    big = pictures.encode(torch.rand(1, 3, 90, 120))[0]["bytes"]
    image = audit.as_image(audit.same_format(big, 64))
    assert isinstance(image, Image.Image) and image.size == (64, 64) and image.format == "JPEG"
