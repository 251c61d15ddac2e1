"""What the scorers score: each against its formula or the publisher's own code."""

import io

import open_clip
import pytest
import torch
from PIL import Image

from icthp import images, kernels
from icthp.microworld import renderer
from icthp.scorers import aesthetic, combined, loading
from icthp.scorers.clip import ClipScorer
from icthp.scorers.hp import HpScorer, make_head


@pytest.fixture(scope="module")
def pixels(scenes):
    return renderer.render(scenes[:5])


def test_score_is_what_open_clip_gives(clip, clip_folder, pixels, prompts):
    """The reference path: open_clip's own transform on PIL images, its tokenizer, one image at a time."""
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    for content, prompt, got in zip(images.encode(pixels), prompts, clip.score(pixels, prompts)):
        image = transform(Image.open(io.BytesIO(content["bytes"])))[None]
        with torch.no_grad():
            v, t = model.eval().encode_image(image, normalize=True), model.encode_text(tokenize([prompt]), normalize=True)
        assert got.item() == pytest.approx((v * t).sum().item(), abs=2e-3)  # 8-bit pixels against float ones


@pytest.mark.parametrize("shape", [(96, 96), (150, 80), (64, 200), (101, 67), (131, 65), (40, 33)])
def test_geometry_is_clips(clip_folder, shape):
    """open_clip's transform of a PIL image, to one grey level, on noise, whose edges overshoot; sizes and margins even and odd."""
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    image = Image.fromarray(torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy())
    ours = kernels.preprocess(images.to_pixels(image)[None], 64, [0.5] * 3, [0.5] * 3)[0]
    grey = lambda x: (x / 2 + 0.5) * 255
    assert (grey(ours).round() - grey(transform(image)).round()).abs().max() <= 1


def test_gradient_reaches_the_pixels(clip, pixels, prompts):
    x = pixels.clone().requires_grad_()
    clip.score(x, prompts).sum().backward()
    assert x.grad.abs().amax((1, 2, 3)).min() > 0


def test_repeated_prompts_are_encoded_once(clip, pixels, prompts, monkeypatch):
    counts, encode = [], clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda tokens, **k: counts.append(len(tokens)) or encode(tokens, **k))
    mixed = [prompts[0], prompts[1], prompts[0], prompts[0], prompts[1]]
    got = clip.score(pixels, mixed)
    assert counts == [2]
    assert torch.allclose(got, torch.cat([clip.score(pixels[i : i + 1], [p]) for i, p in enumerate(mixed)]), atol=1e-6)


def test_pickscore_is_the_scaled_cosine(clip, clip_folder, pixels, prompts):
    scaled = loading.load("pickscore", f"local-dir:{clip_folder}")
    assert torch.allclose(scaled.score(pixels, prompts), clip.score(pixels, prompts) * clip.model.logit_scale.exp())


def test_the_parts_of_a_cosine_add_up_and_one_is_along_the_mean_text(clip, pixels, prompts):
    texts = clip.text_features(prompts)
    common = torch.nn.functional.normalize(texts.mean(0), dim=0)
    relevant, irrelevant = clip.decompose(pixels, prompts, common)
    assert torch.allclose(relevant + irrelevant, clip.score(pixels, prompts), atol=1e-6)
    assert torch.allclose(irrelevant / (texts @ common), clip.image_features(pixels) @ common, atol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_hp_survives_its_folder_and_icthp_is_the_product(clip, clip_folder, pixels, prompts, tmp_path, variant):
    hp = HpScorer(clip, make_head(16, variant), {"width": 16, "variant": variant}).eval()
    hp.save_pretrained(tmp_path)
    again = loading.load("hp", str(tmp_path))
    values = again.score(pixels)
    assert torch.allclose(values, hp.score(pixels), atol=1e-6) and values.min() > 0 and values.max() < 1
    both = loading.load("icthp", f"{clip_folder},{tmp_path}")
    assert torch.allclose(both.score(pixels, prompts), clip.score(pixels, prompts) * values, atol=1e-6)


def test_released_head_is_one_affine_map():
    """models/icthp_model.py:47-62: five linear layers with nothing between; N(0, 1/1025) leaves next to no signal."""
    torch.manual_seed(0)
    head = make_head(1024, "released").eval().double()
    linear = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    assert sum(p.numel() for p in head.parameters()) == 1_190_113
    weight = linear[0].weight
    for layer in linear[1:]:
        weight = layer.weight @ weight
    x = 10 * torch.nn.functional.normalize(torch.randn(64, 1024, dtype=torch.float64), dim=1)
    assert torch.allclose(head(x), x @ weight.T, atol=1e-16)
    assert head(x).std() < 1e-8


def test_jpeg(pixels):
    jpeg = loading.load("jpeg")
    assert torch.equal(jpeg.score(pixels), images.jpeg_bytes(pixels) / 1000)


def test_aesthetic_reads_lions_heads(clip_folder, pixels, tmp_path):
    torch.save({"weight": torch.randn(1, 16), "bias": torch.randn(1)}, tmp_path / "linear.pth")
    scorer = loading.load("aesthetic", f"local-dir:{clip_folder},{tmp_path}/linear.pth")
    assert scorer.score(pixels).shape == (5,)


def test_rank_orders_pictures(clip, pixels, prompts, tmp_path):
    paths = []
    for i, content in enumerate(images.encode(pixels)):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(content["bytes"])
    ranked = clip.rank(prompts[0], paths)
    assert sorted(i for i, _ in ranked) == [0, 1, 2, 3, 4]
    assert [s for _, s in ranked] == sorted((s for _, s in ranked), reverse=True)


@pytest.mark.parametrize(
    ("bad", "prompts", "says"),
    [
        (torch.rand(3, 64, 64), ["a"], "float"),
        (torch.rand(2, 3, 64, 64) * 255, ["a", "b"], r"\[0, 1\]"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.int64), ["a", "b"], "int64"),
        (torch.rand(2, 3, 64, 64), ["a"], "list of 2 prompts"),
        (torch.rand(2, 3, 64, 64), None, "none"),
        (torch.rand(2, 3, 64, 64), "ab", "one string"),
    ],
)
def test_bad_input_is_named(clip, bad, prompts, says):
    with pytest.raises(ValueError, match=says):
        clip.score(bad, prompts)


def test_a_prompt_is_truncated_beyond_the_last_token(clip):
    import open_clip

    limit = clip.model.context_length
    text = "a red circle " * limit
    count = lambda part: len(clip.tokenizer.tokenizer(part).input_ids)
    fits = next(text[:n] for n in range(len(text), 0, -1) if count(text[:n]) == limit)
    over = next(text[:n] for n in range(len(text)) if count(text[:n]) == limit + 1)
    assert clip.is_truncated([fits, over, "a red circle", text]).tolist() == [False, True, False, True]
    plain = ClipScorer(clip.model, open_clip.SimpleTokenizer(context_length=limit))  # pads with 0
    assert plain.is_truncated(["a " * (limit - 2), "a " * (limit - 1), "a " * 1000]).tolist() == [False, True, True]


def test_hp_reads_the_embedding_as_it_is(clip, pixels):
    """Not its direction: twice the embedding is another input to an affine head."""
    hp = HpScorer(clip, torch.nn.Linear(16, 1))
    plain = clip.model.encode_image(clip.preprocess(pixels), normalize=False)
    assert torch.allclose(hp(pixels), torch.sigmoid(hp.head(plain)[:, 0]), atol=1e-6)
    assert (plain.norm(dim=1) - 1).abs().min() > 0.01


def test_hp_keeps_its_precision_under_autocast(clip, pixels):
    hp = HpScorer(clip, torch.nn.Linear(16, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert hp(pixels).dtype == torch.float32


def test_every_picture_with_every_prompt(clip_folder):
    """score_matrix is score on all pairs; bytes score as the same pixels in floats."""
    pixels, prompts = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8), ["a red circle", "a blue star"]
    clip = loading.load("clip", f"local-dir:{clip_folder}")
    hp = HpScorer(clip, make_head(16)).eval()
    for scorer in (clip, hp, combined.IctHpScorer(clip, hp), loading.load("jpeg")):
        pairs = [scorer.score(pixels, [prompt] * 3) for prompt in prompts]
        assert torch.allclose(scorer.score_matrix(pixels, prompts), torch.stack(pairs, 1), atol=1e-6)
        assert torch.allclose(pairs[0], scorer.score(pixels.float() / 255, [prompts[0]] * 3), atol=1e-6)


def test_combined_scores(clip_folder):
    """A weighted sum and a product, by hand; beyond a bound a part has no gradient."""
    clip = loading.load("clip", f"local-dir:{clip_folder}")
    hp, pixels, prompts = HpScorer(clip, make_head(16)).eval(), torch.rand(3, 3, 64, 64), ["a", "b", "c"]
    c, h = clip.score(pixels, prompts), hp.score(pixels)
    total = combined.CombinedScorer([(clip, 2.0, None, None), (hp, -0.5, None, None)]).score(pixels, prompts)
    assert torch.allclose(total, 2 * c - 0.5 * h)
    product = combined.CombinedScorer([(clip, 1.0, None, None), (hp, 1.0, None, None)], product=True)
    assert torch.allclose(product.score(pixels, prompts), combined.IctHpScorer(clip, hp).score(pixels, prompts))
    hinge = combined.CombinedScorer([(clip, 1.0, None, float(c.min()) - 1)])
    gradient = torch.autograd.grad(hinge.score(pixels.requires_grad_(), prompts).sum(), pixels)[0]
    assert torch.allclose(hinge.score(pixels, prompts), c.min() - 1) and not gradient.any()
    alone = combined.CombinedScorer([(hp, 1.0, None, None)])
    assert not alone.needs_prompt and alone.score_matrix(pixels, ["a", "b"]).shape == (3, 2)
    with pytest.raises(ValueError, match="list of texts"):
        clip.score_matrix(pixels, "a red circle")
    with pytest.raises(ValueError, match="at least one"):
        combined.CombinedScorer([])


def test_an_empty_batch_scores_nothing(clip):
    hp = HpScorer(clip, make_head(16)).eval()
    for scorer in (clip, hp, combined.IctHpScorer(clip, hp), loading.load("jpeg"), combined.CombinedScorer([(clip, 1.0, None, None)])):
        assert scorer.score(torch.zeros(0, 3, 64, 64), []).shape == (0,)
        assert scorer.score_matrix(torch.zeros(0, 3, 64, 64), ["a", "b"]).shape == (0, 2)


def test_a_prompt_without_text_and_an_image_without_pixels_are_named(clip):
    with pytest.raises(ValueError, match="prompt 1 is None, not a text"):
        clip.score(torch.zeros(2, 3, 64, 64), ["a", None])
    with pytest.raises(ValueError, match="prompt 0 is nan"):
        clip.score_matrix(torch.zeros(2, 3, 64, 64), [float("nan")])
    for shape in ((1, 3, 0, 5), (1, 3, 5, 0), (0, 3, 0, 5)):
        with pytest.raises(ValueError, match="no height or no width"):
            clip.score(torch.zeros(shape), ["a"] * shape[0])


def test_every_scorer_knows_which_prompts_it_truncates(clip):
    long, hp = "a red circle " * 40, HpScorer(clip, make_head(16)).eval()
    readers = {
        "clip": clip,
        "icthp": combined.IctHpScorer(clip, hp),
        "sum": combined.CombinedScorer([(hp, 1.0, None, None), (clip, 1.0, None, None)]),
    }
    assert all(scorer.is_truncated(["a red circle", long]).tolist() == [False, True] for scorer in readers.values())
    assert not hp.is_truncated(["a", long]).any() and not loading.load("jpeg").is_truncated([long]).any()


@pytest.mark.parametrize("name", ["clip", "pickscore", "hp", "aesthetic", "icthp"])
def test_towers_in_bfloat16_make_no_ties(clip_folder, tmp_path, name):
    """The last step is float32 under autocast and for bfloat16 weights: 64 near-equal pictures differ as their features do."""
    torch.save(
        {"weight": torch.randn(1, 16, generator=torch.Generator().manual_seed(0)), "bias": torch.full((1,), 5.0)}, tmp_path / "linear.pth"
    )
    clip = loading.load("pickscore" if name == "pickscore" else "clip", f"local-dir:{clip_folder}")
    hp = HpScorer(clip, make_head(16)).eval()
    torch.nn.init.constant_(hp.head[-1].bias, 4.0)  # where a tuned generator's pictures lie, and bfloat16 has steps of 0.004
    scorer = {"hp": hp, "icthp": combined.IctHpScorer(clip, hp)}.get(name, clip)
    scorer = aesthetic.AestheticScorer(clip, aesthetic.aesthetic_head(tmp_path / "linear.pth")) if name == "aesthetic" else scorer
    pixels = (0.5 + 0.01 * torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            inside, matrix = scorer.score(pixels, ["a"] * 64), scorer.score_matrix(pixels, ["a"])
            apart = len(clip.image_features(pixels, normalize=False).unique(dim=0))
        half = scorer.to(dtype=torch.bfloat16).score(pixels, ["a"] * 64)
    assert all(x.dtype == torch.float32 and len(x.unique()) >= 0.8 * apart for x in (inside, matrix, half))


@pytest.mark.parametrize("name", ["clip", "jpeg"])
def test_a_large_picture_of_bytes_is_not_copied_as_floats(clip_folder, name):
    """24 megapixels, 72 MB: nothing of more than 100 MB is allocated at once, where floats would take 288 MB."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend([out.untyped_storage().nbytes()] if isinstance(out, torch.Tensor) else [])
            return out

    scorer = loading.load(name, f"local-dir:{clip_folder}" if name == "clip" else None)
    pixels = torch.zeros(1, 3, 4000, 6000, dtype=torch.uint8)
    with Watch():
        scorer.score(pixels, ["a"])
    assert max(sizes) <= 100e6
