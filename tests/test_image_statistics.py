"""JPEG size and statistics of pictures that are known."""

import pytest
import torch

from icthp import images
from icthp.microworld import renderer


def test_jpeg_bytes_grow_with_detail(scenes):
    plain, rich = (images.jpeg_bytes(renderer.render(scenes.at(r))).mean() for r in (0, 1))
    assert rich > 1.5 * plain
    uniform = images.jpeg_bytes(torch.full((2, 3, 64, 64), 0.5))
    assert uniform[0] == uniform[1] < plain


def test_statistics_of_known_pictures():
    grey, red = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 3, 8, 8)
    found = {k: v.tolist() for k, v in images.statistics(torch.cat([grey, red, board])).items()}
    assert found["brightness"] == pytest.approx([0.5, 0.299, 0.5], abs=1e-6) and found["contrast"] == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert found["colourfulness"] == pytest.approx([0, 0.3 * (1 + 0.25) ** 0.5, 0], abs=1e-6)
    assert found["sharpness"] == pytest.approx([0, 0, 16], abs=1e-5)  # the Laplacian is 4 or -4 everywhere
