"""HPS v1 in its publisher's layout, against the cosine of open_clip's own features."""

import json

import open_clip
import pytest
import torch
from checks import PROMPTS, check_batch, check_gradient, pictures, preprocessed

from icthp.scorers import hps


def write_hps_v1(folder):
    """hpc.pth: a small CLIP with quick_gelu under OpenAI's names, in "state_dict" beside other things."""
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
              "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}}  # fmt: skip
    (folder / "tiny-hps-v1.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "hpc.pth")
    return f"tiny-hps-v1/{folder}/hpc.pth"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_hps_v1(tmp_path_factory.mktemp("hps"))


@pytest.fixture(scope="module")
def scorer(source):
    return hps.load_hps_v1(source).requires_grad_(False)


@torch.no_grad()
def test_hps_v1_is_the_cosine_after_clips_own_transform(source, scorer):
    config = open_clip.get_model_config("tiny-hps-v1")
    model = open_clip.CLIP(**config).eval()
    model.load_state_dict(torch.load(source.removeprefix("tiny-hps-v1/"))["state_dict"])
    image = model.encode_image(preprocessed(pictures(), 32, crop="open_clip"))
    text = model.encode_text(open_clip.tokenize(PROMPTS))
    expected = torch.cosine_similarity(image, text)
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), expected, rtol=1e-4, atol=1e-5)
    assert scorer.score_scale == "cosine" and not scorer.scaled


def test_gradient_and_batch(scorer):
    check_gradient(scorer, pictures(), PROMPTS)
    check_batch(scorer, pictures(), PROMPTS)


def test_a_file_alone_is_openais_architecture(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="hpc.pth is not there: name the file of the weights of ViT-L-14-quickgelu"):
        hps.load_hps_v1(str(tmp_path / "hpc.pth"))
    assert open_clip.get_model_config(hps.ARCHITECTURE)["quick_gelu"]
    monkeypatch.setattr(hps, "load_clip", lambda source: source)
    assert hps.load_hps_v1("weights/hpc.pth") == "ViT-L-14-quickgelu/weights/hpc.pth"
    assert hps.load_hps_v1("ViT-B-32/weights/hpc.pth") == "ViT-B-32/weights/hpc.pth"
    assert hps.load_hps_v1(str(tmp_path)) == str(tmp_path) and hps.load_hps_v1("hf-hub:org/name") == "hf-hub:org/name"


def test_weights_that_do_not_fit(tmp_path):
    source = write_hps_v1(tmp_path)
    state = torch.load(tmp_path / "hpc.pth")["state_dict"]
    torch.save({"state_dict": state | {"ln_final.weight": torch.ones(3)}}, tmp_path / "hpc.pth")
    with pytest.raises(ValueError, match=r"hpc.pth does not fit this CLIP: it has another shape for ln_final.weight \(3,\)"):
        hps.load_hps_v1(source)
