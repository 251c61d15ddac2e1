"""ImageReward in its publisher's layout, against BLIP written out."""

import json
import shutil

import open_clip
import pytest
import torch
import torch.nn.functional as F
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel

from icthp import preprocessing
from icthp.scorers import loading
from icthp.scorers.hp import make_head

PROMPTS = ["a red circle", "two blue stars above a green heart", "a red circle"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(0))


MED = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "hidden_act": "gelu",
       "layer_norm_eps": 1e-12, "max_position_embeddings": 40, "architectures": ["BertModel"], "type_vocab_size": 2,
       "encoder_width": 64}  # fmt: skip


def blip_state(layers=2, width=64, patch=8, side=4):
    """Names and shapes of BLIP's vision tower, random values."""
    rand = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.2
    state = {"cls_token": rand(1, 1, width), "pos_embed": rand(1, side * side + 1, width), "patch_embed.proj.bias": rand(width),
             "patch_embed.proj.weight": rand(width, 3, patch, patch), "norm.weight": 1 + rand(width), "norm.bias": rand(width)}  # fmt: skip
    for i in range(layers):
        shapes = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": (width,),
                  "mlp.fc1": (96, width), "mlp.fc2": (width, 96)}  # fmt: skip
        for name, shape in shapes.items():
            state |= {f"blocks.{i}.{name}.weight": rand(*shape) + (len(shape) == 1), f"blocks.{i}.{name}.bias": rand(shape[0])}
    return state


def blip_vision(state, pixels, layers=2):
    """The tower written out: a ViT of one head (width 64), pre-norm, epsilon 1e-6."""
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
    linear = lambda x, name: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(layers):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        x = x + linear((q @ k.transpose(1, 2) / 8).softmax(-1) @ v, f"blocks.{i}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def test_imagerewards_layout(images, tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "two", "blue", "stars", "above", "green", "heart"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    (tmp_path / "med_config.json").write_text(json.dumps(MED | {"vocab_size": len(vocabulary) + 2}))
    torch.manual_seed(0)
    known = {k: v for k, v in MED.items() if k not in ("architectures", "type_vocab_size", "encoder_width")}
    text = BlipTextModel(BlipTextConfig(**known, vocab_size=len(vocabulary) + 2, encoder_hidden_size=64), add_pooling_layer=False).eval()
    vision, head = blip_state(), make_head(64, "released").eval()
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    state = {f"blip.visual_encoder.{k}": v for k, v in vision.items()} | {f"blip.text_encoder.{k}": v for k, v in text.state_dict().items()}
    state |= {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]} | {
        f"mlp.layers.{k}": v for k, v in head.state_dict().items()
    }
    torch.save(state, tmp_path / "ImageReward.pt")

    scorer, square = loading.load("imagereward", str(tmp_path)), preprocessing.resize_center_crop(images, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    tokens = BertTokenizer.from_pretrained(tmp_path)(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    assert tokens.input_ids[1, :9].tolist() == [2, 8, 9, 10, 11, 5, 12, 13, 3]
    with torch.no_grad():
        image_states = blip_vision(vision, (square - mean) / std)
        text_states = text(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=image_states
        ).last_hidden_state
        expected = (head(text_states[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(scorer.score(images, PROMPTS), expected, rtol=1e-3, atol=1e-4)
    pixels = images.clone().requires_grad_(True)
    scorer.score(pixels, PROMPTS).sum().backward()
    assert pixels.grad.isfinite().all() and pixels.grad.abs().max() > 0
    assert scorer.is_truncated(["a red circle", "a red circle " * 11, "a red circle " * 12]).tolist() == [
        False,
        False,
        True,
    ]  # 35 with its two ends
    assert scorer.score(images[:0], []).shape == (0,) and "size=(32, 32)" in repr(scorer)
    shutil.move(tmp_path / "ImageReward.pt", tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="ImageReward.pt"):
        loading.load("imagereward", str(tmp_path))
