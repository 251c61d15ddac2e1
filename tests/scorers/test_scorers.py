import io
import json
from types import SimpleNamespace
from unittest import mock

import datasets
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from icthp import files, images, kernels, pipelines
from icthp.microworld import grammar, models, renderer
from icthp.scorers import aesthetic, checkpoints, combined, loading
from icthp.scorers.clip import ClipScorer, _in_transformers_format, save_clip
from icthp.scorers.hp import HpScorer, make_head
from icthp.tuning import sampling


@pytest.fixture(scope="module")
def pixels(scenes):
    return renderer.render(scenes[:5])


@pytest.fixture(scope="module")
def prompts(scenes):
    return grammar.captions(scenes[:5])


@pytest.fixture
def clip(clip_folder):
    return loading.load("clip", f"local-dir:{clip_folder}")


def test_tokenizer_reads_any_text(tokenizer):
    ids = tokenizer("a striped red circle on the moon").input_ids
    assert len(ids) == 9 and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == max(ids)
    strange = tokenizer("Zürich 42 ¿?", truncation=True).input_ids[1:-1]
    assert tokenizer.eos_token_id not in strange


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
    mine = kernels.preprocess(images.to_pixels(image)[None], 64, [0.5] * 3, [0.5] * 3)[0]
    grey = lambda x: (x / 2 + 0.5) * 255
    assert (grey(mine).round() - grey(transform(image)).round()).abs().max() <= 1


def test_gradient_reaches_the_pixels(clip, pixels, prompts):
    x = pixels.clone().requires_grad_()
    clip.score(x, prompts).sum().backward()
    assert x.grad.abs().amax((1, 2, 3)).min() > 0


def test_repeated_prompts_are_encoded_once(clip, pixels, prompts, monkeypatch):
    seen, encode = [], clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda tokens, **k: seen.append(len(tokens)) or encode(tokens, **k))
    mixed = [prompts[0], prompts[1], prompts[0], prompts[0], prompts[1]]
    got = clip.score(pixels, mixed)
    assert seen == [2]
    assert torch.allclose(got, torch.cat([clip.score(pixels[i : i + 1], [p]) for i, p in enumerate(mixed)]), atol=1e-6)


def test_pickscore_is_the_scaled_cosine(clip, clip_folder, pixels, prompts):
    scaled = loading.load("pickscore", f"local-dir:{clip_folder}")
    assert torch.allclose(scaled.score(pixels, prompts), clip.score(pixels, prompts) * clip.model.logit_scale.exp())


def test_split_adds_up_and_its_irrelevant_part_is_along_the_mean_text(clip, pixels, prompts):
    words = clip.text_features(prompts)
    common = torch.nn.functional.normalize(words.mean(0), dim=0)
    relevant, irrelevant = clip.decompose(pixels, prompts, common)
    assert torch.allclose(relevant + irrelevant, clip.score(pixels, prompts), atol=1e-6)
    assert torch.allclose(irrelevant / (words @ common), clip.image_features(pixels) @ common, atol=1e-6)


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


def test_unknown_and_missing_scorers():
    with pytest.raises(ValueError, match="no scorer is called 'clipp'"):
        loading.load("clipp")
    with pytest.raises(FileNotFoundError, match="dvc repro train_hp"):
        loading.load("hp", "nowhere/hp")
    with pytest.raises(FileNotFoundError, match="models/nope is neither a folder"):
        loading.load("ict", "models/nope")
    with pytest.raises(FileNotFoundError, match="nowhere.pt is not there"):
        loading.load("clip", "ViT-B-32/some/nowhere.pt")
    with pytest.raises(ValueError, match="no weights 'openia' of ViT-B-32: it has openai"):
        loading.load("clip", "ViT-B-32/openia")
    with pytest.raises(FileNotFoundError, match="`dvc pull` fetches data/, looked for open_clip_model.safetensors"):
        loading.load("clip", "local-dir:nowhere")


@pytest.mark.parametrize("name", ["ict", "hp"])
def test_a_folder_that_a_killed_training_left_is_named(name, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/checkpoint.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"has no weights: `dvc repro train_{name}` makes it"):
        loading.load(name, f"local-dir:{tmp_path}" if name == "ict" else str(tmp_path))


def test_text_tower_equals_open_clips(clip, tokenizer, prompts):
    tower = pipelines.text_tower(clip.model, tokenizer)
    ids = clip.tokenizer(prompts)
    with torch.no_grad():
        assert torch.allclose(tower(ids).text_embeds, clip.model.encode_text(ids), atol=1e-5)


def test_a_text_tower_takes_anothers_place(clip, tokenizer, prompts, sd3_folder):
    """The first encoder then says what the other CLIP says, the second what it said, and pictures change; one that fits comes back."""
    other = models.new_clip(models.clip_config(tokenizer, width=32, layers=2, text_layers=2, embed_dim=16))
    pipe, ids = pipelines.load_pipeline(str(sd3_folder)), clip.tokenizer(prompts)
    second = {k: v.clone() for k, v in pipe.text_encoder_2.state_dict().items()}
    before = sampling.generate(pipe, prompts, steps=2)
    with torch.no_grad():
        told = pipelines.swap_text_tower(pipe, other).text_encoder(ids).text_embeds
        assert torch.allclose(told, other.encode_text(ids), atol=1e-5)
    assert all(torch.equal(v, second[k]) for k, v in pipe.text_encoder_2.state_dict().items())
    assert (sampling.generate(pipe, prompts, steps=2) - before).abs().max() > 1e-3
    assert torch.allclose(
        sampling.generate(pipelines.swap_text_tower(pipe, clip.model), prompts, steps=2), before, atol=2e-3
    )  # stored as float16
    with pytest.raises(ValueError, match="another shape"):
        pipelines.swap_text_tower(pipe, models.new_clip(models.clip_config(tokenizer, width=64, layers=1, text_layers=2, embed_dim=16)))


def test_stable_diffusion_2_1_takes_the_text_tower_of_vit_h():
    """By its published text encoder's config: 23 of ViT-H-14's 24 layers and no projection, every shape alike."""
    config = CLIPTextConfig(vocab_size=49408, hidden_size=1024, intermediate_size=4096, projection_dim=512, num_hidden_layers=23,
                            num_attention_heads=16, max_position_embeddings=77, hidden_act="gelu")  # fmt: skip
    clip = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        encoder, tower = CLIPTextModel(config), open_clip.CLIP(clip["embed_dim"], clip["vision_cfg"], clip["text_cfg"])
    given, last = [], [k for k in pipelines._text_state(tower, "") if "layers.23." in k]
    with mock.patch.object(pipelines, "fill", lambda model, state, _: given.append(state)):
        pipelines.swap_text_tower(SimpleNamespace(text_encoder=encoder), tower)
    own = encoder.state_dict()
    assert {k: v.shape for k, v in given[0].items()} == {k: v.shape for k, v in own.items()}
    assert len(last) == 16 and not any(k.endswith(last[0]) for k in own)


def test_folded_t5_draws_the_same_picture(sd3_folder, prompts):
    """256 equal zero tokens against one with log(256) on its logit, through the whole pipeline."""
    from diffusers import StableDiffusion3Pipeline

    plain = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    options = dict(num_inference_steps=4, guidance_scale=0, output_type="pt")
    one, two = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = plain(prompts, generator=one, **options).images
    folded = pipelines.load_pipeline(str(sd3_folder))(prompts, generator=two, max_sequence_length=1, **options).images
    assert torch.allclose(expected, folded, atol=1e-4)


def test_a_prompt_is_cut_beyond_the_last_token(clip):
    import open_clip

    limit = clip.model.context_length
    words = "a red circle " * limit
    count = lambda text: len(clip.tokenizer.tokenizer(text).input_ids)
    fits = next(words[:n] for n in range(len(words), 0, -1) if count(words[:n]) == limit)
    over = next(words[:n] for n in range(len(words)) if count(words[:n]) == limit + 1)
    assert clip.is_truncated([fits, over, "a red circle", words]).tolist() == [False, True, False, True]
    plain = ClipScorer(clip.model, open_clip.SimpleTokenizer(context_length=limit))  # pads with 0
    assert plain.is_truncated(["a " * (limit - 2), "a " * (limit - 1), "a " * 1000]).tolist() == [False, True, True]


def test_a_new_transformer_tells_patches_and_words_apart(sd3_folder, prompts):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    side = pipe.transformer.config.pos_embed_max_size
    code = pipe.transformer.pos_embed.pos_embed[0]
    distance = torch.cdist(code, code) + torch.eye(side**2) * 9
    assert distance.min() > 0.5 * code.norm(dim=1).mean()  # the class's own: 0.25 here, 0.1 on a side of 8
    assert torch.linalg.matrix_rank(code.float() - code.mean(0), rtol=1e-2) >= 2 * (side - 1)
    embeds, _ = sampling.encode(pipe, prompts)
    second = embeds[:, 1:-1, pipe.text_encoder.config.hidden_size :]
    assert second.std() > 0.5  # at 0.02 the words would be invisible beside the first tower's


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        pipelines.load_pipeline(str(tmp_path))


def test_generate_does_not_depend_on_the_batch(sd3_folder, prompts):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    assert torch.allclose(sampling.generate(pipe, prompts, steps=2, batch=2), sampling.generate(pipe, prompts, steps=2, batch=5), atol=1e-4)


def test_released_weights_are_safetensors_only(clip_folder, sd3_folder):
    files = [p.suffix for folder in (clip_folder, sd3_folder) for p in folder.rglob("*") if p.is_file()]
    assert not {".bin", ".pt", ".pth", ".ckpt", ".pkl"} & set(files)
    assert json.loads((sd3_folder / "model_index.json").read_text(encoding="utf-8"))["text_encoder_3"] == [None, None]


def test_load_does_not_unpickle(clip_folder, tmp_path):
    """The file would create another one as soon as anybody unpickled it."""
    bad, trace = tmp_path / "head.pth", tmp_path / "it_ran"
    bad.write_bytes(f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    with pytest.raises(ValueError, match="head.pth holds more than tensors, which weights_only refuses to run"):
        aesthetic.aesthetic_head(bad)
    assert not trace.exists()


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


def test_open_clips_own_tokenizer_is_saved(tmp_path, prompts):
    """As for ViT-B-32 and ViT-H-14: the folder holds it in transformers' format, with the same ids."""
    own = open_clip.get_tokenizer("ViT-B-32")
    config = models.clip_config(_in_transformers_format(own), width=32, layers=1, text_layers=1, embed_dim=16)
    save_clip(models.new_clip(config), own, config, tmp_path)
    saved = loading.load("clip", f"local-dir:{tmp_path}").tokenizer
    texts = [*prompts, "A Photo of TWO dogs, 3.5 m apart!"]
    mine, theirs = saved(texts), own(texts)
    end = own.eot_token_id
    for a, b in zip(mine.tolist(), theirs.tolist()):
        assert a[: a.index(end) + 1] == b[: b.index(end) + 1]


@pytest.mark.parametrize("source", ["ViT-B-32/laion2b_s34b_b79k", "ViT-H-14/laion2b_s32b_b79k"])
def test_the_config_of_a_named_model(source):
    assert {"embed_dim", "vision_cfg", "text_cfg"} <= configs.model_config(source).keys()


def test_every_picture_with_every_prompt(clip_folder):
    """scores.table is score on all pairs; bytes score as the pictures they came from."""
    pixels, prompts = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8), ["a red circle", "a blue star"]
    clip = loading.load("clip", f"local-dir:{clip_folder}")
    hp = HpScorer(clip, make_head(16)).eval()
    for scorer in (clip, hp, combined.IctHpScorer(clip, hp), loading.load("jpeg")):
        pairs = [scorer.score(pixels, [prompt] * 3) for prompt in prompts]
        assert torch.allclose(scorer.score_matrix(pixels, prompts), torch.stack(pairs, 1), atol=1e-6)
        assert torch.allclose(pairs[0], scorer.score(pixels.float() / 255, [prompts[0]] * 3), atol=1e-6)


def test_combined_scores(clip_folder):
    """A weighted sum and a product, by hand; where a part is cut it has no gradient."""
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


def test_a_fingerprint_sees_where_a_weight_is():
    one, two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    two.load_state_dict({"weight": one.weight.T.clone(), "bias": one.bias})
    assert (
        files.fingerprint(one) != files.fingerprint(two) and len({files.fingerprint(one.bfloat16()), files.fingerprint(one.float())}) == 2
    )


def test_openais_weights_get_their_activation(monkeypatch):
    seen = {}
    monkeypatch.setattr(checkpoints.open_clip, "create_model", lambda *a, **options: seen.update(options) or torch.nn.Identity())
    for source, quick in (("ViT-B-32/openai", True), ("ViT-B-32/laion2b_s34b_b79k", False)):
        checkpoints.read_clip(source)
        assert seen["force_quick_gelu"] == quick == configs.model_config(source).get("quick_gelu", False)


def test_a_text_tower_keeps_its_activation(clip, tokenizer, prompts, sd3_folder):
    quick = models.new_clip(models.clip_config(tokenizer, width=32, layers=1, text_layers=2, embed_dim=16) | {"quick_gelu": True})
    tower, ids = pipelines.text_tower(quick, tokenizer), clip.tokenizer(prompts)
    assert tower.config.hidden_act == "quick_gelu" and torch.allclose(tower(ids).text_embeds, quick.encode_text(ids), atol=1e-5)
    with pytest.raises(ValueError, match="activation quick_gelu, the pipeline's gelu"):
        pipelines.swap_text_tower(pipelines.load_pipeline(str(sd3_folder)), quick)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_read_upright(tmp_path, orientation):
    """As datasets.Image() reads it, which applies the camera's orientation too."""
    exif, file = Image.Exif(), tmp_path / "turned.png"
    exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(file, exif=exif)
    expected = datasets.Image().decode_example({"path": str(file), "bytes": None})
    assert torch.equal(images.read(file), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert images.read(file).shape == ((3, 20, 40) if orientation < 5 else (3, 40, 20))


def test_sources_that_cannot_be_are_named(tmp_path, clip_folder):
    scorer = loading.load("clip", f"local-dir:{clip_folder}")
    assert scorer.score(torch.full((1, 3, 8, 8), torch.nan), ["a"]).isnan().all()  # what DRaFT leaves out
    with pytest.raises(ValueError, match="at least one text"):
        scorer.score_matrix(torch.rand(1, 3, 8, 8), [])
    with pytest.raises(ValueError, match="CLIP,head.pth"):
        loading.load("aesthetic", "ViT-L-14/openai")
    with pytest.raises(FileNotFoundError, match="name the publisher's folder"):
        loading.load("imagereward", f"local-dir:{tmp_path}")


def test_an_empty_batch_scores_nothing(clip):
    hp = HpScorer(clip, make_head(16)).eval()
    for scorer in (clip, hp, combined.IctHpScorer(clip, hp), loading.load("jpeg"), combined.CombinedScorer([(clip, 1.0, None, None)])):
        assert scorer.score(torch.zeros(0, 3, 64, 64), []).shape == (0,)
        assert scorer.score_matrix(torch.zeros(0, 3, 64, 64), ["a", "b"]).shape == (0, 2)


def test_what_is_no_prompt_and_no_picture_is_named(clip):
    with pytest.raises(ValueError, match="prompt 1 is None, not a text"):
        clip.score(torch.zeros(2, 3, 64, 64), ["a", None])
    with pytest.raises(ValueError, match="prompt 0 is nan"):
        clip.score_matrix(torch.zeros(2, 3, 64, 64), [float("nan")])
    for shape in ((1, 3, 0, 5), (1, 3, 5, 0), (0, 3, 0, 5)):
        with pytest.raises(ValueError, match="no height or no width"):
            clip.score(torch.zeros(shape), ["a"] * shape[0])


def test_every_scorer_says_what_it_cuts(clip):
    long, hp = "a red circle " * 40, HpScorer(clip, make_head(16)).eval()
    told = {
        "clip": clip,
        "icthp": combined.IctHpScorer(clip, hp),
        "sum": combined.CombinedScorer([(hp, 1.0, None, None), (clip, 1.0, None, None)]),
    }
    assert all(scorer.is_truncated(["a red circle", long]).tolist() == [False, True] for scorer in told.values())
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
            inside, table = scorer.score(pixels, ["a"] * 64), scorer.score_matrix(pixels, ["a"])
            apart = len(clip.image_features(pixels, normalize=False).unique(dim=0))
        half = scorer.to(dtype=torch.bfloat16).score(pixels, ["a"] * 64)
    assert all(x.dtype == torch.float32 and len(x.unique()) >= 0.8 * apart for x in (inside, table, half))


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
