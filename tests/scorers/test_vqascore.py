"""VQAScore in CLIP-FlanT5's published layout, against CLIP's own processor and T5's own encoder and decoder, picture by picture."""

import json
import string

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from test_hpsv3 import randomize
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration, T5Tokenizer

from icthp import kernels
from icthp.scorers import vqascore

PROMPTS = ["a red circle", "two blue stars above a green heart, seen from far away", "a"]
WIDTH, SIDE = 32, 56
T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
      "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "pad_token_id": 0,
      "eos_token_id": 1, "decoder_start_token_id": 0, "tie_word_embeddings": False}  # fmt: skip
CLIP = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14}


def write_vqascore(folder) -> str:
    """A tiny CLIP-FlanT5 in the layout of zhiqiulin/clip-flant5-xl: T5's config with LLaVA's fields, tokenizer, and one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(set(string.printable.strip()) | {"▁"})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁Yes", -1.0), ("▁no", -1.0), *((letter, -3.0) for letter in letters)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=["<extra_id_0>"])
    tokenizer.save_pretrained(folder)
    config = T5 | {"architectures": ["CLIPT5ForConditionalGeneration"], "model_type": "t5", "mm_hidden_size": 128, "vocab_size": 32128,
                   "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
                   "torch_dtype": "bfloat16"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    text = randomize(T5ForConditionalGeneration(T5Config(**T5, vocab_size=len(tokenizer))))
    vision = randomize(CLIPVisionModel(CLIPVisionConfig(**CLIP)), seed=1)
    state = dict(text.state_dict()) | {"lm_head.weight": torch.randn(len(tokenizer), WIDTH) * 0.3}
    state["embed_tokens.weight"] = state["shared.weight"]
    state |= {f"{vqascore.TOWER}{name}": value for name, value in vision.state_dict().items()}
    state[f"{vqascore.TOWER}embeddings.position_ids"] = torch.arange(17)[None]
    for place, features in ((0, 128), (2, WIDTH)):
        state[f"mm_projector.{place}.weight"] = torch.randn(WIDTH, features) / features**0.5
        state[f"mm_projector.{place}.bias"] = torch.randn(WIDTH) * 0.1
    save_file({name: value.clone() for name, value in state.items()}, folder / "model.safetensors")
    return str(folder)


def reference(folder: str, pixels, prompts: list[str]):
    """(b,), picture by picture: Pillow pads, CLIP's processor resizes, each layer is called by hand, no text is padded."""
    state = load_file(f"{folder}/model.safetensors")
    tokenizer = T5Tokenizer.from_pretrained(folder)
    vision = CLIPVisionModel(CLIPVisionConfig(**CLIP)).eval()
    vision.load_state_dict({name: state[f"{vqascore.TOWER}{name}"] for name in vision.state_dict()})
    text = T5ForConditionalGeneration(T5Config(**T5, vocab_size=len(tokenizer))).eval()
    text.load_state_dict({name: state[name] for name in text.state_dict()} | {"lm_head.weight": state["shared.weight"]})
    system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    ids = lambda text: torch.tensor([tokenizer(text).input_ids])
    scores = []
    for picture, prompt in zip(pixels, prompts):
        picture = Image.fromarray(picture.permute(1, 2, 0).numpy())
        side = max(picture.size)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        x = vision.pre_layrnorm(vision.embeddings(processor(square, return_tensors="pt").pixel_values))
        for layer in vision.encoder.layers[:-1]:
            x = layer(x, attention_mask=None)
            x = x if isinstance(x, torch.Tensor) else x[0]
        x = F.linear(x[:, 1:], state["mm_projector.0.weight"], state["mm_projector.0.bias"])
        x = F.linear(F.gelu(x), state["mm_projector.2.weight"], state["mm_projector.2.bias"])
        before = ids(f"{system}answers to the user's questions. USER: ")
        after = ids(f'\nDoes this figure show "{prompt}"? Please answer yes or no. ASSISTANT: ')
        inputs = torch.cat([text.shared(before), x, text.shared(after)], 1)
        encoded = text.encoder(inputs_embeds=inputs).last_hidden_state
        answer = ids("Yes")
        decoded = text.decoder(input_ids=torch.cat([torch.zeros(1, 1).long(), answer[:, :-1]], 1), encoder_hidden_states=encoded)
        logits = decoded.last_hidden_state @ state["lm_head.weight"].T
        scores.append(torch.exp(-F.cross_entropy(logits[0], answer[0])))
    return torch.stack(scores).detach()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vqascore(tmp_path_factory.mktemp("vqascore"))


@pytest.fixture
def scorer(folder):
    return vqascore.load_vqascore(folder)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, 3, 60, 85), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.slow
def test_values_are_those_of_the_librarys_modules_and_processor(folder, scorer, pixels):
    expected = reference(folder, pixels, PROMPTS)
    torch.testing.assert_close(scorer.score(pixels, PROMPTS), expected, rtol=2e-3, atol=1e-7)
    read = lambda pixels: kernels.preprocess(vqascore.on_square(pixels), scorer.preprocessing)
    torch.testing.assert_close(read(pixels / 255), read(pixels), rtol=0, atol=0.035)  # two levels of 255 and another rounding
    assert expected.std() / expected.mean() > 0.01 and (expected < 1).all()
    tall = pixels.mT.contiguous()
    torch.testing.assert_close(scorer.score(tall, PROMPTS), reference(folder, tall, PROMPTS), rtol=2e-3, atol=1e-7)
    assert tuple(scorer.tokenizer("Yes").input_ids) == (3, 1) and scorer.score(pixels[:0], []).shape == (0,)


@pytest.mark.slow
def test_the_output_matrix_is_not_the_embeddings(folder, scorer):
    """transformers 5 ties the two in every T5; FLAN-T5 has both."""
    state = load_file(f"{folder}/model.safetensors")
    assert torch.equal(scorer.text.lm_head.weight, state["lm_head.weight"]) and not scorer.text.config.scale_decoder_outputs
    assert torch.equal(scorer.text.encoder.get_input_embeddings().weight, state["shared.weight"])


@pytest.mark.slow
def test_a_batch_is_its_pictures_one_by_one(scorer, pixels):
    alone = torch.cat([scorer.score(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scorer.score(pixels, PROMPTS), alone, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_the_gradient_is_that_of_a_finite_difference(scorer):
    """In float64, away from 0 and 1, where the resized picture is clipped; T5's norms stay in float32."""
    scorer = scorer.double()
    generator = torch.Generator().manual_seed(1)
    pixels = (torch.rand(2, 3, 42, 71, generator=generator) * 0.1 + 0.45).double().requires_grad_(True)
    direction = torch.randn(pixels.shape, generator=generator).double()
    gradient = torch.autograd.grad(scorer.score(pixels, PROMPTS[:2]).sum(), pixels)[0]
    with torch.no_grad():
        plus, minus = (scorer.score(pixels + step * direction, PROMPTS[:2]).sum() for step in (1e-5, -1e-5))
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    torch.testing.assert_close((gradient * direction).sum(), (plus - minus).double() / 2e-5, rtol=1e-3, atol=1e-9)


@pytest.mark.slow
def test_a_prompt_that_is_too_long(scorer, pixels):
    long = "a red circle " * 400
    assert scorer.is_truncated(["a red circle", long]).tolist() == [False, True] and scorer.is_truncated([]).shape == (0,)
    assert scorer.score(pixels[:1], [long]).isfinite().all()
    torch.testing.assert_close(scorer.score(pixels[:1], [long]), scorer.score(pixels[:1], [long + long]))


def test_the_border_is_that_of_bytes():
    bytes_ = torch.randint(0, 256, (1, 3, 5, 2), dtype=torch.uint8)
    square = vqascore.on_square(bytes_)
    assert square.shape == (1, 3, 5, 5) and square[0, :, 0, 0].tolist() == [122, 116, 104] and torch.equal(square[..., 1:3], bytes_)
    torch.testing.assert_close(vqascore.on_square(bytes_ / 255), square / 255)


@pytest.mark.slow
def test_files_that_are_missing_or_do_not_fit(tmp_path):
    folder = tmp_path / "vqascore"
    path = folder / "model.safetensors"
    write_vqascore(folder)
    state = load_file(path)
    save_file({k: v for k, v in state.items() if k not in ("shared.weight", *vqascore.ALIASES[:2])}, path)  # the embeddings once
    assert torch.equal(vqascore.load_vqascore(str(folder)).text.shared.weight, state["shared.weight"])
    save_file(state | {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ValueError, match=r"model.safetensors does not fit this T5ForConditionalGeneration: it has another shape for"):
        vqascore.load_vqascore(str(folder))
    save_file({k: v for k, v in state.items() if not k.startswith("vision_tower")}, path)
    with pytest.raises(ValueError, match=r"lacks vision_tower.*, so that it is no CLIP-FlanT5: fetch zhiqiulin/clip-flant5-xl"):
        vqascore.load_vqascore(str(folder))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="lacks weights or config.json: name the folder of zhiqiulin/clip-flant5-xl"):
        vqascore.load_vqascore(str(folder))
