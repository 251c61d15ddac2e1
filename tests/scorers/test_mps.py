"""MPS in the layout of its safetensors rewrite, against its arithmetic written out for one picture and one prompt."""

import json
import shutil

import open_clip
import pytest
import torch
import torch.nn.functional as F
from checks import PROMPTS, check_batch, check_gradient, pictures, preprocessed
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from icthp.scorers import mps

TOKENS = 24
WIDTH, HEADS, HEAD = 32, 16, 64


def cross_state(layers=4):
    """Names and shapes of the original cross model, random values."""
    rand = lambda *shape: torch.randn(shape) * 0.3 / shape[-1] ** 0.5
    shapes = {"0.fn.to_q": (HEADS * HEAD, WIDTH), "0.fn.to_kv": (2 * HEAD, WIDTH), "0.fn.to_out": (WIDTH, HEADS * HEAD),
              "0.fn.ff.0": (8 * WIDTH, WIDTH), "0.fn.ff.2": (WIDTH, 4 * WIDTH), "1.fn.attn_out": (WIDTH, HEADS * HEAD),
              "1.fn.fused_attn_ff_proj": (HEADS * HEAD + 2 * HEAD + 8 * WIDTH, WIDTH), "1.fn.ff_out.1": (WIDTH, 4 * WIDTH)}  # fmt: skip
    state = {}
    for i in range(layers):
        state |= {f"layers.{i}.{name}.weight": 3 * rand(*shape) for name, shape in shapes.items()}
        for part in "01":
            state |= {f"layers.{i}.{part}.fn.norm.weight": 1 + rand(WIDTH), f"layers.{i}.{part}.fn.norm.bias": torch.zeros(WIDTH)}
        state[f"layers.{i}.1.fn.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, HEAD, 2) / HEAD)
    return state


def write_mps(folder):
    """model.safetensors under RE-N-Y/mpsv1's names, beside the config.json of a small CLIP."""
    tower = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    config = CLIPConfig(vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=WIDTH,
                        text_config=tower | {"max_position_embeddings": TOKENS, "eos_token_id": 2})  # fmt: skip
    torch.manual_seed(0)
    clip = CLIPModel(config)
    for p in clip.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for p in clip.text_model.encoder.parameters():
        p.data.mul_(0.1)  # so that a text's tokens differ
    clip.text_model.final_layer_norm.bias.data.zero_()
    clip.logit_scale.data.fill_(2.0)
    state = {f"mps.model.{name}": value for name, value in clip.state_dict().items()}
    state |= {f"mps.cross_model.{name}": value for name, value in cross_state().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict()), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mps(tmp_path_factory.mktemp("mps"))


@pytest.fixture(scope="module")
def scorer(folder):
    return mps.load_mps(folder)


def attended(x, text, mask, state):
    """The cross model for one picture's tokens x (n, d) and one prompt's (m, d), head by head."""
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"])
    gated = lambda x: x[:, : 4 * WIDTH] * F.silu(x[:, 4 * WIDTH :])
    place = torch.arange(len(x))[:, None] * state["layers.0.1.fn.rotary_emb.inv_freq"]
    turn = torch.polar(torch.ones_like(place), place)
    rotated = lambda x: torch.view_as_real(torch.complex(*x.chunk(2, -1)) * turn).mT.flatten(-2)
    for i in range(4):
        weight = lambda name: state[f"layers.{i}.{name}.weight"].T  # noqa: B023
        y, keys = norm(x, f"layers.{i}.0.fn.norm"), text @ weight("0.fn.to_kv")
        k, v, q = keys[:, :HEAD], keys[:, HEAD:], y @ weight("0.fn.to_q")
        heads = [(h @ k.T / HEAD**0.5 + mask).softmax(-1) @ v for h in q.chunk(HEADS, -1)]
        x = x + torch.cat(heads, -1) @ weight("0.fn.to_out") + gated(y @ weight("0.fn.ff.0")) @ weight("0.fn.ff.2")
        y = norm(x, f"layers.{i}.1.fn.norm") @ weight("1.fn.fused_attn_ff_proj")
        q, k, v, hidden = y.split([HEADS * HEAD, HEAD, HEAD, 8 * WIDTH], -1)
        heads = [(rotated(h) @ rotated(k).T / HEAD**0.5).softmax(-1) @ v for h in q.chunk(HEADS, -1)]
        x = x + torch.cat(heads, -1) @ weight("1.fn.attn_out") + gated(hidden) @ weight("1.fn.ff_out.1")
    return x


def expected(folder, pixels, prompts, threshold=0.3):
    """One at a time, as the publisher's evaluation does it; padding is the end token."""
    state = {name.removeprefix("mps."): value for name, value in load_file(f"{folder}/model.safetensors").items()}
    clip = CLIPModel(CLIPConfig.from_pretrained(folder)).eval()
    clip.load_state_dict({name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")})
    cross = {name.removeprefix("cross_model."): value for name, value in state.items() if name.startswith("cross_model.")}
    ids = open_clip.SimpleTokenizer(context_length=TOKENS)([*prompts, mps.CONDITION])
    ids = ids.masked_fill(ids == 0, 49407)
    scores = []
    for x, own in zip(preprocessed(pixels, 32, crop="transformers"), ids):
        text, condition = (clip.text_model(input_ids=i[None]) for i in (own, ids[-1]))
        tokens, wanted = (clip.text_projection(out.last_hidden_state[0]) for out in (text, condition))
        similarity = (wanted @ tokens.T).max(0).values
        mask = torch.where(similarity / similarity.max() > threshold, 0.0, float("-inf"))
        image = clip.visual_projection(clip.vision_model(pixel_values=x[None]).last_hidden_state[0])
        image, end = attended(image, tokens, mask, cross)[0], clip.text_projection(text.pooler_output[0])
        scores.append(clip.logit_scale.exp() * (image / image.norm()) @ (end / end.norm()))
    return torch.stack(scores)


@torch.no_grad()
def test_mps_is_the_published_arithmetic(folder, scorer):
    pixels = pictures()
    found = expected(folder, pixels, PROMPTS)
    torch.testing.assert_close(scorer.score(pixels, PROMPTS), found, rtol=1e-3, atol=1e-4)
    assert (expected(folder, pixels, PROMPTS, threshold=-1e9) - found).abs().min() > 1e-3  # the mask counts


def test_gradient_and_batch(scorer):
    check_gradient(scorer, pictures(), PROMPTS)
    check_batch(scorer, pictures(), PROMPTS)


@torch.no_grad()
def test_the_original_names_are_read_from_a_file(folder, scorer, tmp_path):
    state = {name.removeprefix("mps."): value for name, value in load_file(f"{folder}/model.safetensors").items()}
    torch.save(state, tmp_path / "MPS_overall.pth")
    shutil.copy(f"{folder}/config.json", tmp_path)
    again = mps.load_mps(str(tmp_path / "MPS_overall.pth"))
    assert torch.equal(again.score(pictures(), PROMPTS), scorer.score(pictures(), PROMPTS))
    state.pop("cross_model.layers.3.0.fn.to_kv.weight")
    torch.save(state, tmp_path / "MPS_overall.pth")
    with pytest.raises(ValueError, match=r"MPS_overall.pth does not fit this CrossModel: it lacks layers.3.0.to_kv.weight$"):
        mps.load_mps(str(tmp_path / "MPS_overall.pth"))


def test_what_is_truncated_and_what_is_refused(scorer, tmp_path):
    assert scorer.is_truncated(["a red circle", "a " * (TOKENS - 2), "a " * (TOKENS - 1)]).tolist() == [False, False, True]
    with pytest.raises(FileNotFoundError, match="model.safetensors is not there"):
        mps.load_mps(str(tmp_path))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "MPS_overall_checkpoint.pth")  # as the publisher's: a pickled module
    with pytest.raises(ValueError, match="refuses to run"):
        mps.load_mps(str(tmp_path / "MPS_overall_checkpoint.pth"))
