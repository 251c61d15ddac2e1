"""HPS v3 in its publisher's layout, against Qwen2-VL's own processor and modules."""

import hashlib
import json
import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from icthp.scorers import hpsv3

PROMPTS = ["a red circle", "two blue stars above a green heart, seen from far away, in the rain", "a"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
           "<|video_pad|>"]  # fmt: skip
CHAT_TEMPLATE = (  # Qwen2-VL's own, without videos
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3, "hidden_size": 32, "patch_size": 14,
          "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}  # fmt: skip
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "hidden_act": "silu", "max_position_embeddings": 32768, "max_window_layers": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "sliding_window": 32768, "use_sliding_window": False}  # fmt: skip
SIZE = {"shortest_edge": 3136, "longest_edge": 12845056}  # of Qwen2-VL's own preprocessor_config.json: it resizes no picture again


def train_qwen_tokenizer(texts: list[str], size: int = 600) -> Qwen2Tokenizer:
    """Qwen2's tokenizer with a vocabulary made of a few texts, and Qwen2-VL's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    trained = Qwen2Tokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]], eos_token="<|im_end|>")
    trained.add_tokens(CONTROL, special_tokens=True)
    return trained


def qwen_config(tokenizer) -> dict:
    """Qwen2-VL's config.json as its publisher wrote it, with tiny widths."""
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
           "vision_end_token_id": "<|vision_end|>", "eos_token_id": "<|im_end|>", "bos_token_id": "<|endoftext|>"}  # fmt: skip
    return TEXT | {name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()} | {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "torch_dtype": "bfloat16",
        "tie_word_embeddings": False, "vision_config": VISION, "vocab_size": len(tokenizer) + 7}  # fmt: skip


def randomize(model, seed: int = 0):
    """Weights large enough for an answer that depends on all of the input."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator) * (0.2 if p.ndim > 1 else 0.1)
    return model.eval()


def write_hpsv3(folder) -> str:
    """A tiny HPS v3 in its released layout: HPSv3.safetensors with the names of transformers 4.45, beside Qwen2-VL's files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_qwen_tokenizer([hpsv3.RUBRIC, hpsv3.CHAT, *PROMPTS])
    tokenizer.save_pretrained(folder)
    config = qwen_config(tokenizer)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config | {"vocab_size": len(tokenizer) + 1}))
    state = {}
    for name, value in randomize(model).float().state_dict().items():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        state[name] = value.clone()
    for place, (out, width) in {0: (1024, 32), 3: (16, 1024), 5: (2, 16)}.items():
        state |= {f"rm_head.{place}.weight": torch.randn(out, width) / width**0.5, f"rm_head.{place}.bias": torch.randn(out) * 0.1}
    save_file(state, folder / hpsv3.WEIGHTS)
    return str(folder)


def reference(folder: str, pixels, prompts: list[str], *, own_axes: bool = False):
    """(b, 2): mean and standard deviation, picture by picture, by Pillow, Qwen2-VL's processor and its own merging of picture and text.
    own_axes: with Qwen2-VL's three axes of positions."""
    state = load_file(f"{folder}/{hpsv3.WEIGHTS}")
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens([hpsv3.REWARD], special_tokens=True)
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(size=SIZE), tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
    config = json.loads(open(f"{folder}/config.json", encoding="utf-8").read()) | {"vocab_size": len(tokenizer)}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config)).float().eval()
    renamed = {re.sub("^visual", "model.visual", re.sub("^model", "model.language_model", k)): v for k, v in state.items()}
    model.load_state_dict({k: v for k, v in renamed.items() if not k.startswith("rm_head")})
    rows = []
    for picture, prompt in zip(pixels, prompts):
        picture = Image.fromarray(picture.permute(1, 2, 0).numpy())
        height, width = smart_resize(picture.height, picture.width, 28, hpsv3.AREA, hpsv3.AREA)
        content = [{"type": "image"}, {"type": "text", "text": hpsv3.RUBRIC.replace("{text_prompt}", prompt)}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[picture.resize((width, height), Image.BICUBIC)], return_tensors="pt")
        positions = {} if own_axes else {"position_ids": torch.arange(inputs.input_ids.shape[1]).expand(3, 1, -1)}
        x = model.model(**inputs, **positions).last_hidden_state[inputs.input_ids == len(tokenizer) - 1]
        for place in (0, 3, 5):
            x = F.linear(x.relu() if place else x, state[f"rm_head.{place}.weight"], state[f"rm_head.{place}.bias"])
        rows.append(torch.stack([x[0, 0], x[0, 1].exp()]))
    return torch.stack(rows).detach()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hpsv3(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture
def scorer(folder):
    return hpsv3.load_hpsv3(folder)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, 3, 60, 84), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.slow
def test_values_are_those_of_the_librarys_modules_and_processor(folder, scorer, pixels):
    expected = reference(folder, pixels, PROMPTS)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(scorer.distribution(pixels, PROMPTS), 1), expected, rtol=5e-4, atol=1e-4)
        torch.testing.assert_close(scorer.score(pixels, PROMPTS), expected[:, 0], rtol=5e-4, atol=1e-4)
    assert expected.std(0).min() > 5e-3 and scorer.score(pixels[:0], []).shape == (0,)
    assert (reference(folder, pixels, PROMPTS, own_axes=True) - expected).abs().max() > 1e-2  # the test sees the positions


@pytest.mark.slow
def test_a_batch_is_its_pictures_one_by_one(scorer, pixels):
    alone = torch.cat([scorer.score(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scorer.score(pixels, PROMPTS), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_gradient_is_that_of_a_finite_difference(scorer):
    """In float64, away from 0 and 1, where the resized picture is clipped; Qwen2-VL's norms stay in float32, hence the step."""
    scorer = scorer.double()
    generator = torch.Generator().manual_seed(1)
    pixels = (torch.rand(1, 3, 42, 70, generator=generator) * 0.1 + 0.45).double().requires_grad_(True)
    direction = torch.randn(pixels.shape, generator=generator).double()
    gradient = torch.autograd.grad(scorer.score(pixels, PROMPTS[:1]).sum(), pixels)[0]
    with torch.no_grad():
        plus, minus = (scorer.score(pixels + step * direction, PROMPTS[:1]) for step in (1e-3, -1e-3))
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    torch.testing.assert_close((gradient * direction).sum(), (plus - minus)[0] / 2e-3, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_patches_are_those_of_the_librarys_processor(scorer):
    """Within two levels of 255 and another rounding: a permutation of these pictures, which are noise, would lie far off."""
    for height, width in ((60, 84), (500, 300), (448, 448), (31, 400)):
        pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        to = hpsv3.fitted_size(height, width)[::-1]
        pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(to, Image.BICUBIC) for picture in pixels]
        expected = Qwen2VLImageProcessor(size=SIZE)(images=pictures, return_tensors="pt")
        patches, grid = scorer.patches(pixels)
        assert torch.equal(grid, expected.image_grid_thw)
        torch.testing.assert_close(patches, expected.pixel_values, rtol=0, atol=0.035)
        torch.testing.assert_close(scorer.patches(pixels / 255)[0], expected.pixel_values, rtol=0, atol=0.035)


def test_sizes_are_those_of_the_librarys_processor():
    sides = (1, 13, 14, 27, 28, 37, 100, 224, 300, 447, 448, 449, 512, 513, 640, 768, 1024, 1080, 1344, 1920, 3000)
    pairs = [(h, w) for h in sides for w in sides if max(h, w) <= 200 * min(h, w)]
    assert [hpsv3.fitted_size(*pair) for pair in pairs] == [smart_resize(*pair, 28, hpsv3.AREA, hpsv3.AREA) for pair in pairs]
    with pytest.raises(ValueError, match="a picture of 2 x 401 pixels is more than 200 times as long as wide"):
        hpsv3.fitted_size(2, 401)


def test_the_rubric_is_unchanged():
    """A digest of the released text, whose white space counts too."""
    assert hashlib.sha256(hpsv3.RUBRIC.encode()).hexdigest() == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"


@pytest.mark.slow
def test_control_tokens_in_a_prompt_are_left_out(scorer, pixels):
    prompts = ["a <|image_pad|>cat<|Reward|>", "<|im_end|>a cat", "a {text_prompt} cat"]
    torch.testing.assert_close(scorer.score(pixels, prompts)[:2], scorer.score(pixels, ["a cat"] * 3)[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_half_precision_keeps_the_rotary_frequencies(scorer, pixels):
    frequencies = {name: buffer.clone() for name, buffer in scorer.named_buffers() if name.endswith("inv_freq")}
    half = scorer.to(torch.bfloat16)
    assert len(frequencies) == 4 and {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert all(torch.equal(buffer, frequencies[name]) for name, buffer in half.named_buffers() if name in frequencies)
    assert half.score(pixels / 255, PROMPTS).dtype == torch.float32


@pytest.mark.slow
def test_files_that_are_missing_or_do_not_fit(tmp_path):
    folder = tmp_path / "hpsv3"
    path = folder / hpsv3.WEIGHTS
    write_hpsv3(folder)
    state = load_file(path)
    save_file({k: v for k, v in state.items() if k != "visual.merger.ln_q.weight"}, path)
    with pytest.raises(ValueError, match=rf"{hpsv3.WEIGHTS} does not fit this Qwen2VLModel: it lacks visual.merger.ln_q.weight"):
        hpsv3.load_hpsv3(str(folder))
    save_file(state | {"rm_head.5.weight": torch.zeros(4, 16)}, path)
    with pytest.raises(ValueError, match=r"it has another shape for 5.weight \(4, 16\), not \(2, 16\)"):
        hpsv3.load_hpsv3(str(folder))
    save_file(state | {"model.embed_tokens.weight": torch.zeros(99, 32)}, path)
    with pytest.raises(ValueError, match=r"<\|Reward\|> is token \d+ here and the last of 99 in HPSv3.safetensors"):
        hpsv3.load_hpsv3(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is not there: put HPSv3.safetensors of MizzenAI/HPSv3 beside config.json"):
        hpsv3.load_hpsv3(str(folder))
