"""CLIP-IQA against its attention pool written out."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from checks import CLIP, check_batch, check_gradient, pictures
from open_clip.modified_resnet import ModifiedResNet
from torchvision.transforms.v2 import functional as tv

from icthp import scorers
from icthp.scorers import clip_iqa

# ---- CLIP-IQA ---------------------------------------------------------------------------------------------------


def write_clip_iqa(folder):
    """open_clip's folder of a small ResNet."""
    config = {"embed_dim": 32, "quick_gelu": True,
              "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
              "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    for name, p in model.visual.named_parameters():
        if name.endswith("weight") and p.ndim == 1:  # of a batch norm
            torch.nn.init.uniform_(p, 1.5, 3)
    model.ln_final.bias.data.normal_(std=5)  # so that the two texts are near each other
    open_clip.set_model_preprocess_cfg(model, {"mean": CLIP[0], "std": CLIP[1]})
    scorers.save_clip(model, open_clip.SimpleTokenizer(context_length=16), config, folder, dtype=torch.float32)
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_clip_iqa(tmp_path_factory.mktemp("clip_iqa"))


@pytest.fixture(scope="module")
def scorer(source):
    return clip_iqa.load_clip_iqa(source)


def pooled(visual, pixels):
    """The ResNet with its attention pool written out: the mean of the places is the only query, and no place has an embedding."""
    x = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool, places = visual.attnpool, x.flatten(2).mT
    places = torch.cat([places.mean(1, keepdim=True), places], 1)
    heads = lambda x: x.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
    q, k, v = heads(pool.q_proj(places[:, :1])), heads(pool.k_proj(places)), heads(pool.v_proj(places))
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return pool.c_proj((attention @ v).transpose(1, 2).flatten(2)[:, 0])


@pytest.mark.parametrize("shape", [(70, 90), (33, 128)])
def test_clip_iqa_is_the_formula_at_the_pictures_own_resolution(source, scorer, shape):
    pixels = pictures(*shape)
    model, tokenize = scorers.read_clip(f"local-dir:{source}")
    assert isinstance(model.visual, ModifiedResNet) and model.visual.attnpool.positional_embedding.shape == (5, 512)
    with torch.no_grad():
        good, bad = model.encode_text(tokenize(["Good photo.", "Bad photo."]), normalize=True)
        image = F.normalize(pooled(model.visual, tv.normalize(pixels, *CLIP)), dim=-1)
        expected = torch.sigmoid(100 * (image @ good - image @ bad))
    assert 0.001 < expected.min() and expected.max() < 0.999
    torch.testing.assert_close(scorer.score(pixels), expected, rtol=1e-3, atol=1e-5)


def test_several_pairs_count_the_same(source, scorer):
    pairs = (*clip_iqa.PAIRS, ("High quality.", "Low quality."))  # two of IQA-PyTorch's three
    both = clip_iqa.load_clip_iqa(source, pairs)
    alone = clip_iqa.load_clip_iqa(source, pairs[1:])
    pixels = pictures(70, 90)
    torch.testing.assert_close(both.score(pixels), (scorer.score(pixels) + alone.score(pixels)) / 2)
    assert repr(both) != repr(scorer)


def test_gradient_and_batch(scorer):
    check_gradient(scorer, pictures(48, 70), rtol=1e-3)  # ReLUs have kinks
    check_batch(scorer, pictures(70, 90))


def test_what_is_said_of_other_pictures_and_sources(scorer, clip_folder, tmp_path):
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, not 31 x 64"):
        scorer.score(pictures(31, 64))
    with pytest.raises(ValueError, match="needs CLIP's ResNet"):
        clip_iqa.load_clip_iqa(str(clip_folder))
    with pytest.raises(FileNotFoundError, match="missing"):
        clip_iqa.load_clip_iqa(str(tmp_path / "missing"))
