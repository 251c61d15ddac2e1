"""FGA-BLIP2 under LAVIS's names, against EVA's tower and the Q-Former written out."""

import pytest
import torch
import torch.nn.functional as F
from checks import PROMPTS, check_batch, check_gradient, pictures, preprocessed
from test_cyclereward import VOCABULARY, Bert, bert_state, encode
from transformers import Blip2Config

from icthp.scorers import fga_blip2

WIDTH, TEXT, QUERIES, SIDE, PATCH = 64, 32, 5, 3, 14
QFORMER_PARTS = ("intermediate.dense", "output", "intermediate_query.dense", "output_query")


def lavis_state():
    """Names and shapes of LAVIS's Blip2Qformer and of EvalMuse's mask_proj, random values."""
    rand = lambda *shape: torch.randn(shape) / shape[-1] ** 0.5
    vision = {"cls_token": rand(1, 1, WIDTH), "pos_embed": rand(1, SIDE**2 + 1, WIDTH), "patch_embed.proj.bias": rand(WIDTH),
              "patch_embed.proj.weight": rand(WIDTH, 3, PATCH, PATCH)}  # fmt: skip
    for i in range(2):
        for name, *shape in (("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH), ("mlp.fc1", 96, WIDTH), ("mlp.fc2", WIDTH, 96)):
            vision |= {f"blocks.{i}.{name}.weight": 2 * rand(*shape), f"blocks.{i}.{name}.bias": rand(shape[0])}
        for name in ("norm1", "norm2"):
            vision |= {f"blocks.{i}.{name}.weight": 1 + rand(WIDTH), f"blocks.{i}.{name}.bias": rand(WIDTH)}
        vision |= {f"blocks.{i}.attn.{name}_bias": 3 * rand(WIDTH) for name in "qv"}
        del vision[f"blocks.{i}.attn.qkv.bias"]
    bert = bert_state(TEXT, WIDTH, crossed=(0, 2), parts=QFORMER_PARTS)
    bert |= {"embeddings.word_embeddings.weight": 5 * rand(len(VOCABULARY) + 1, TEXT), "embeddings.position_ids": torch.arange(48)[None],
             "embeddings.position_embeddings.weight": 5 * rand(48, TEXT)}  # fmt: skip
    state = {f"visual_encoder.{name}": value for name, value in vision.items()}
    state |= {f"Qformer.bert.{name}": value for name, value in bert.items()}
    state |= {
        "Qformer.cls.predictions.bias": rand(len(VOCABULARY) + 1),
        "mask_proj.layers.0.weight": rand(8, TEXT),
        "temp": torch.tensor(0.07),
    }
    state |= {"query_tokens": 5 * rand(1, QUERIES, TEXT), "ln_vision.weight": 1 + rand(WIDTH), "ln_vision.bias": rand(WIDTH)}
    for name, m in (("vision_proj", 16), ("text_proj", 16), ("itm_head", 2)):
        state |= {f"{name}.weight": rand(m, TEXT), f"{name}.bias": rand(m)}
    return state


def write_fga_blip2(folder):
    """fga_blip2.pth as LAVIS's runner saves it, vocab.txt, and the config.json of a small BLIP-2."""
    torch.manual_seed(0)
    torch.save({"model": lavis_state(), "epoch": 4, "scaler": None, "config": {"run": {"seed": 42}}}, folder / "fga_blip2.pth")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    vision = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": PATCH,
              "image_size": SIDE * PATCH}  # fmt: skip
    qformer = {"hidden_size": TEXT, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
               "vocab_size": len(VOCABULARY) + 1, "max_position_embeddings": 48, "use_qformer_text_input": True}  # fmt: skip
    Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=QUERIES, image_text_hidden_size=16).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_fga_blip2(tmp_path_factory.mktemp("fga_blip2"))


@pytest.fixture(scope="module")
def scorer(folder):
    return fga_blip2.load_fga_blip2(folder)


def eva(state, pixels, heads=4):
    """LAVIS's tower and ln_vision: queries and values have a bias, keys none; epsilon 1e-6 inside and 1e-5 at the end."""
    norm = lambda x, name, epsilon=1e-6: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)
    linear = lambda x, name: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
    tower = "visual_encoder"
    patches = [F.conv2d(pixels, state[f"{tower}.patch_embed.proj.weight"], state[f"{tower}.patch_embed.proj.bias"], stride=PATCH)]
    x = torch.cat([state[f"{tower}.cls_token"].expand(len(pixels), -1, -1), patches[0].flatten(2).mT], 1) + state[f"{tower}.pos_embed"]
    for i in range(2):
        block = f"{tower}.blocks.{i}"
        q, k, v = (norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].T).chunk(3, -1)
        q, v = q + state[f"{block}.attn.q_bias"], v + state[f"{block}.attn.v_bias"]
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        z = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(z, f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "ln_vision", 1e-5)


def matches(folder, pixels, prompts):
    """(b, queries + 32) softmax(head)[1] at every place of the Q-Former."""
    state = torch.load(f"{folder}/fga_blip2.pth")["model"]
    text = {name.removeprefix("Qformer.bert."): value for name, value in state.items() if name.startswith("Qformer.bert.")}
    bert, image = Bert(text, 4), eva(state, preprocessed(pixels, SIDE * PATCH))
    ids, mask = (torch.cat(parts) for parts in zip(*(encode(prompt, 32) for prompt in prompts)))
    words = text["embeddings.word_embeddings.weight"][ids] + text["embeddings.position_embeddings.weight"][:32]
    x = bert.norm(torch.cat([state["query_tokens"].expand(len(ids), -1, -1), words], 1), "embeddings.LayerNorm")
    mask = torch.cat([torch.ones(len(ids), QUERIES), mask], 1)
    for i in range(3):
        layer = f"encoder.layer.{i}"
        queries, words = bert.attend(x, x, f"{layer}.attention", mask).split([QUERIES, 32], 1)
        if i % 2 == 0:
            queries = bert.attend(queries, image, f"{layer}.crossattention")
        queries = bert.feed(queries, f"{layer}.intermediate_query.dense", f"{layer}.output_query")
        x = torch.cat([queries, bert.feed(words, f"{layer}.intermediate.dense", f"{layer}.output")], 1)
    logits = x @ state["itm_head.weight"].T + state["itm_head.bias"]
    return logits.softmax(-1)[..., 1]


@torch.no_grad()
def test_fga_blip2_is_the_published_arithmetic(folder, scorer):
    expected = matches(folder, pictures(), PROMPTS)
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), 1 + 4 * expected[:, :QUERIES].mean(1), rtol=1e-4, atol=1e-4)
    elements = scorer.element_scores(pictures(), PROMPTS)
    for i, count in enumerate((5, 9, 5)):  # [CLS], the words, [SEP]
        torch.testing.assert_close(elements[i, :count], expected[i, QUERIES : QUERIES + count], rtol=1e-4, atol=1e-4)
        assert elements[i, count:].isnan().all() and elements.shape == (3, 32)
    assert scorer.model.vision_model.post_layernorm.eps == 1e-5


def test_gradient_and_batch(scorer):
    check_gradient(scorer, pictures(), PROMPTS)
    check_batch(scorer, pictures(), PROMPTS)


def test_prompts_are_cleaned_as_lavis_does(scorer):
    assert fga_blip2.clean(' A (red)  "circle": two;\n') == "a red circle two"
    assert fga_blip2.clean("a " * 60) == " ".join("a" * 50)
    assert torch.equal(scorer.score(pictures(), ["A red, circle."] * 3), scorer.score(pictures(), ["a red, circle"] * 3))
    assert scorer.is_truncated(["a red circle", "a " * 30, "a " * 31, "a." * 30]).tolist() == [False, False, True, False]


def test_a_bare_file_is_read_and_what_does_not_fit_is_named(folder, scorer, tmp_path):
    write_fga_blip2(tmp_path)
    state = lavis_state()
    path = tmp_path / "fga_blip2.pth"
    state = torch.load(path)["model"]
    torch.save(state, path)
    assert torch.equal(fga_blip2.load_fga_blip2(str(tmp_path)).score(pictures(), PROMPTS), scorer.score(pictures(), PROMPTS))
    frozen = {name: value for name, value in state.items() if not name.startswith("visual_encoder.")}  # as LAVIS saves a frozen tower
    torch.save({"model": frozen}, path)
    with pytest.raises(ValueError, match=r"fga_blip2.pth does not fit this Blip2ForImageTextRetrieval: it lacks vision_model.embeddings"):
        fga_blip2.load_fga_blip2(str(tmp_path))
    del state["visual_encoder.blocks.1.attn.v_bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"it lacks vision_model.encoder.layers.1.self_attn.qkv.bias; it has an unknown .*q_bias"):
        fga_blip2.load_fga_blip2(str(tmp_path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="fga_blip2.pth is not there: name the file"):
        fga_blip2.load_fga_blip2(str(tmp_path))


def test_a_missing_or_another_vocabulary_is_refused(tmp_path):
    write_fga_blip2(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match="vocab.txt gives .* tokens, the weights are for"):
        fga_blip2.load_fga_blip2(str(tmp_path))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="has no vocab.txt"):
        fga_blip2.load_fga_blip2(str(tmp_path))
