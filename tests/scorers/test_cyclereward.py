"""CycleReward in its publisher's layout, against BLIP written out."""

import json

import pytest
import torch
import torch.nn.functional as F
from checks import PROMPTS, check_batch, check_gradient, pictures, preprocessed
from test_imagereward import MED, blip_state, blip_vision

from icthp.scorers import cyclereward

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "two", "blue", "stars", "above", "green", "heart"]
HEAD = (64, 1024, 128, 64, 16, 1)
POSITIONS = 140


def bert_state(width, context, crossed=(0, 1), intermediate=96, parts=("intermediate.dense", "output")):
    """Names and shapes of BERT's layers with attention to an image in the `crossed` ones, random values."""
    state = {}

    def linear(name, m, n):
        state.update({f"{name}.weight": torch.randn(m, n) / n**0.5, f"{name}.bias": 0.2 * torch.randn(m)})

    def norm(name):
        state.update({f"{name}.weight": 1 + 0.2 * torch.randn(width), f"{name}.bias": 0.2 * torch.randn(width)})

    norm("embeddings.LayerNorm")
    for i in range(max(crossed) + 1):
        layer = f"encoder.layer.{i}"
        for name, n in [("attention", width)] + [("crossattention", context)] * (i in crossed):
            for part, inputs in (("query", width), ("key", n), ("value", n)):
                linear(f"{layer}.{name}.self.{part}", width, inputs)
            linear(f"{layer}.{name}.output.dense", width, width)
            norm(f"{layer}.{name}.output.LayerNorm")
        for hidden, output in zip(parts[::2], parts[1::2]):
            linear(f"{layer}.{hidden}", intermediate, width)
            linear(f"{layer}.{output}.dense", width, intermediate)
            norm(f"{layer}.{output}.LayerNorm")
    return state


class Bert:
    """BERT's parts written out, with the weights of a state dict; epsilon 1e-12."""

    def __init__(self, state, heads):
        self.state, self.heads = state, heads

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-12)

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def attend(self, x, y, name, mask=None):
        """x (b, n, d) to y (b, m, e), to the places of mask (b, m)."""
        heads = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = (heads(self.linear(z, f"{name}.self.{part}")) for z, part in ((x, "query"), (y, "key"), (y, "value")))
        similarity = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            similarity = similarity.masked_fill(~mask[:, None, None].bool(), float("-inf"))
        z = (similarity.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.norm(self.linear(z, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    def feed(self, x, hidden, output):
        return self.norm(self.linear(F.gelu(self.linear(x, hidden)), f"{output}.dense") + x, f"{output}.LayerNorm")


def encode(prompt, length):
    """(ids, mask), each (1, length), of a prompt of the vocabulary's words."""
    ids = [2, *(VOCABULARY.index(word) for word in prompt.split()), 3]
    return torch.tensor([ids + [0] * (length - len(ids))]), torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])


def write_cyclereward(folder):
    """CycleReward-Combo.pth, med_config.json and vocab.txt, random; with the parts of BLIP that the score does not need."""
    torch.manual_seed(0)
    state = {f"blip.visual_encoder.{name}": value for name, value in blip_state().items()}
    text = bert_state(64, 64)
    text |= {"embeddings.word_embeddings.weight": torch.randn(len(VOCABULARY) + 2, 64),
             "embeddings.position_embeddings.weight": torch.randn(POSITIONS, 64),
             "embeddings.position_ids": torch.arange(POSITIONS)[None]}  # fmt: skip
    state |= {f"blip.text_encoder.{name}": value for name, value in text.items()}
    state |= {"blip.text_proj.weight": torch.randn(4, 64), "blip.vision_proj.weight": torch.randn(4, 64)}
    for i, (n, m) in enumerate(zip(HEAD, HEAD[1:])):
        state |= {f"mlp.layers.{2 * i}.weight": 2 * torch.randn(m, n) / n**0.5, f"mlp.layers.{2 * i}.bias": 0.2 * torch.randn(m)}
    torch.save(state, folder / "CycleReward-Combo.pth")
    sizes = {"vocab_size": len(VOCABULARY) + 2, "max_position_embeddings": POSITIONS}
    (folder / "med_config.json").write_text(json.dumps(MED | sizes), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_cyclereward(tmp_path_factory.mktemp("cyclereward"))


@pytest.fixture(scope="module")
def scorer(folder):
    return cyclereward.load_cyclereward(folder)


def expected(folder, pixels, prompts):
    state = torch.load(f"{folder}/CycleReward-Combo.pth")
    under = lambda prefix: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    text, head = under("blip.text_encoder."), under("mlp.layers.")
    image_states = blip_vision(under("blip.visual_encoder."), preprocessed(pixels, 32, crop="open_clip"))
    bert = Bert(text, MED["num_attention_heads"])
    ids, mask = (torch.cat(parts) for parts in zip(*(encode(prompt, 128) for prompt in prompts)))
    x = text["embeddings.word_embeddings.weight"][ids] + text["embeddings.position_embeddings.weight"][:128]
    x = bert.norm(x, "embeddings.LayerNorm")
    for i in range(2):
        layer = f"encoder.layer.{i}"
        x = bert.attend(bert.attend(x, x, f"{layer}.attention", mask), image_states, f"{layer}.crossattention")
        x = bert.feed(x, f"{layer}.intermediate.dense", f"{layer}.output")
    x = x[:, 0]
    for i in (0, 2, 4, 6, 8):
        x = (F.gelu(x) if i else x) @ head[f"{i}.weight"].T + head[f"{i}.bias"]
    return x[:, 0]


@torch.no_grad()
def test_cyclereward_is_blip_and_its_head(folder, scorer):
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), expected(folder, pictures(), PROMPTS), rtol=1e-3, atol=1e-4)


def test_gradient_and_batch(scorer):
    check_gradient(scorer, pictures(), PROMPTS)
    check_batch(scorer, pictures(), PROMPTS)


def test_128_tokens_are_read(scorer):
    assert scorer.is_truncated(["a red circle", "a " * 126, "a " * 127]).tolist() == [False, False, True]


def test_what_is_said_of_missing_and_other_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no CycleReward-Combo.pth, -I2T.pth or -T2I.pth"):
        cyclereward.load_cyclereward(str(tmp_path))
    write_cyclereward(tmp_path)
    state = torch.load(tmp_path / "CycleReward-Combo.pth")
    state.pop("mlp.layers.4.weight")
    torch.save(state, tmp_path / "CycleReward-Combo.pth")
    with pytest.raises(ValueError, match=r"CycleReward-Combo.pth does not fit this Sequential: it has an unknown 4.bias"):
        cyclereward.load_cyclereward(str(tmp_path))
    torch.save({"weight": torch.ones(1)}, tmp_path / "CycleReward-Combo.pth")
    with pytest.raises(ValueError, match="holds no BLIP"):
        cyclereward.load_cyclereward(str(tmp_path))
    torch.save(state, tmp_path / "CycleReward-T2I.pth")
    with pytest.raises(ValueError, match="CycleReward-Combo.pth and CycleReward-T2I.pth: leave one"):
        cyclereward.load_cyclereward(str(tmp_path))


def test_a_missing_or_another_vocabulary_is_refused(tmp_path):
    write_cyclereward(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match="vocab.txt gives .* tokens, the weights are for"):
        cyclereward.load_cyclereward(str(tmp_path))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="has no vocab.txt"):
        cyclereward.load_cyclereward(str(tmp_path))
