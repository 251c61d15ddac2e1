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


@pytest.mark.parametrize("bias", [True, False])
def test_patch_embedding_takes_the_normalisation(bias):
    conv, mean, std = nn.Conv2d(3, 8, 4, 4, bias=bias), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    pixels = torch.rand(2, 3, 20, 12)
    column = lambda v: torch.tensor(v)[:, None, None]
    assert torch.allclose(kernels.fold_normalisation(conv, mean, std)(pixels), conv((pixels - column(mean)) / column(std)), atol=1e-5)


def test_padding_does_not_fold():
    with pytest.raises(ValueError, match="padding"):
        kernels.fold_normalisation(nn.Conv2d(3, 8, 3, padding=1), [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match="dilation"):
        kernels.fold_normalisation(nn.Conv2d(3, 8, 3, dilation=2), [0.5] * 3, [0.5] * 3)


def test_a_folded_scorer_scores_the_same_and_is_not_saved(clip_folder, tmp_path):
    plain, folded = (loading.load("clip", f"local-dir:{clip_folder}") for _ in range(2))
    pixels, prompts = torch.rand(3, 3, 80, 70), ["a", "b", "c"]
    assert torch.allclose(folded.fold().score(pixels, prompts), plain.score(pixels, prompts), atol=1e-5)
    with pytest.raises(ValueError, match="folded"):
        folded.save_pretrained(tmp_path)
