"""Aesthetic predictor v2.5 in its publisher's layout, against its layers one after the other."""

import pytest
import torch
from checks import check_batch, check_gradient, pictures, preprocessed
from test_siglip import HALF, write_siglip
from transformers import SiglipVisionModel

from icthp.scorers import aesthetic_v25

WIDTHS = (1024, 128, 64, 16, 1)


def write_aesthetic_v25(folder):
    """A SigLIP folder and aesthetic_predictor_v2_5.pth, random."""
    (folder / "siglip").mkdir()
    write_siglip(folder / "siglip")
    torch.manual_seed(0)
    write_head(folder / "aesthetic_predictor_v2_5.pth", 32)
    return f"{folder}/siglip,{folder}/aesthetic_predictor_v2_5.pth"


def write_head(path, width):
    state = {}
    for i, (n, m) in enumerate(zip((width, *WIDTHS), WIDTHS)):
        state |= {f"scoring_head.{2 * i}.weight": torch.randn(m, n) * 1.5 / n**0.5, f"scoring_head.{2 * i}.bias": torch.randn(m)}
    torch.save(state, path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_aesthetic_v25(tmp_path_factory.mktemp("aesthetic"))


@pytest.fixture(scope="module")
def scorer(source):
    return aesthetic_v25.load_aesthetic_v25(source)


@torch.no_grad()
def test_the_layers_are_one_map_of_the_unit_feature(source, scorer):
    folder, file = source.split(",")
    x = SiglipVisionModel.from_pretrained(folder).eval()(pixel_values=preprocessed(pictures(), 32, HALF, HALF)).pooler_output
    x, state = x / x.norm(dim=-1, keepdim=True), torch.load(file)
    for i in (0, 2, 4, 6, 8):
        x = x @ state[f"scoring_head.{i}.weight"].T + state[f"scoring_head.{i}.bias"]
    torch.testing.assert_close(scorer.score(pictures()), x[:, 0], rtol=1e-4, atol=1e-4)
    assert [tuple(p.shape) for p in scorer.head.parameters()] == [(1, 32), (1,)]
    assert scorer.preprocessing.mode == "squash" and not scorer.needs_prompt


def test_gradient_and_batch(scorer):
    check_gradient(scorer, pictures())
    check_batch(scorer, pictures())


def test_what_is_said_of_missing_and_other_weights(source, tmp_path):
    folder, file = source.split(",")
    with pytest.raises(ValueError, match='"SIGLIP,HEAD.pth"'):
        aesthetic_v25.load_aesthetic_v25(folder)
    with pytest.raises(FileNotFoundError, match="missing.pth is not there"):
        aesthetic_v25.load_aesthetic_v25(f"{folder},{tmp_path}/missing.pth")
    with pytest.raises(FileNotFoundError, match="config.json is not there"):
        aesthetic_v25.load_aesthetic_v25(f"{tmp_path},{file}")
    write_head(tmp_path / "head.pth", 48)
    with pytest.raises(ValueError, match="head.pth reads 48 features and .* gives 32"):
        aesthetic_v25.load_aesthetic_v25(f"{folder},{tmp_path}/head.pth")
