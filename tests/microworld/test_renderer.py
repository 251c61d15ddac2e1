"""Pictures of scenes."""

import pytest
import torch

from icthp.microworld import renderer
from icthp.microworld.scenes import DETAILS


def test_render_is_deterministic_bounded_and_batched(scenes, monkeypatch):
    pixels = renderer.render(scenes)
    monkeypatch.setattr(renderer, "CHUNK", 5)
    assert torch.equal(pixels, renderer.render(scenes))
    assert pixels.shape == (64, 3, 64, 64) and pixels.min() >= 0 and pixels.max() <= 1
    assert renderer.render(scenes[:2], size=33).shape == (2, 3, 33, 33)


@pytest.mark.slow
def test_each_layer_changes_the_picture_and_only_when_drawn(scenes):
    for k, layer in enumerate(DETAILS):
        for name, cardinality in layer.items():
            changed = scenes.replace(**{name: (scenes.latents[name] + 1) % cardinality})
            below = [renderer.render(s.at(k / 8)) for s in (scenes, changed)]
            assert torch.equal(*below), name
            above = [renderer.render(s.at((k + 1) / 8)) for s in (scenes, changed)]
            has_latent = torch.ones(64, dtype=torch.bool) if name != "material_b" else scenes.latents["kind"] == 1
            assert ((above[0] - above[1]).abs().amax((1, 2, 3))[has_latent] > 1e-3).float().mean() > 0.9, name
