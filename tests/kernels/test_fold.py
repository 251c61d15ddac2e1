import pytest
import torch
from torch import nn

from icthp import kernels
from icthp.scorers import clip, loading
from icthp.scorers.hp import HpScorer, make_head


@pytest.mark.parametrize("variant", ["linear", "affine", "released"])
@pytest.mark.parametrize(("width", "outputs"), [(1, 1), (33, 1), (64, 2)])
def test_head_is_one_vector(variant, width, outputs):
    head = make_head(width, variant, outputs).eval()
    for p in head.parameters():
        nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    folded, features = kernels.fold_linear(head), torch.randn(17, width)
    assert len(folded) == 1 and folded[0].weight.shape == (outputs, width)
    exact = head.double()(features.double())
    assert (folded(features) - exact).abs().max() <= 1e-6 * exact.abs().max().clamp(min=1)


def test_head_with_a_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="LayerNorm"):
        kernels.fold_linear(make_head(8, "paper"))
    with pytest.raises(ValueError, match="nothing to fold"):
        kernels.fold_linear(nn.Sequential(nn.Dropout()))


def test_a_loaded_released_head_is_folded_and_can_be_saved(clip_folder, tmp_path):
    hp = HpScorer(clip.load_clip(f"local-dir:{clip_folder}"), make_head(16, "affine"), {"width": 16, "variant": "affine"}).eval()
    pixels = torch.rand(3, 3, 64, 64)
    hp.save_pretrained(tmp_path / "hp")
    loaded = loading.load("hp", str(tmp_path / "hp"))
    assert len(loaded.head) == 1 and torch.allclose(loaded.score(pixels), hp.score(pixels), atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.allclose(loading.load("hp", str(tmp_path / "again")).score(pixels), hp.score(pixels), atol=1e-6)
