"""SigLIP and SigLIP 2 in transformers' and open_clip's layouts, against transformers' and open_clip's own logits."""

import json

import open_clip
import pytest
import torch
from checks import PROMPTS, check_batch, check_gradient, pictures, preprocessed
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchvision.transforms.v2 import InterpolationMode
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from icthp import scorers
from icthp.scorers import siglip

HALF = [0.5] * 3


def write_siglip(folder, resample=3):
    """transformers' folder: config.json, model.safetensors, preprocessor_config.json and a tokenizer with an end token, padded."""
    words = ["<pad>", "<eos>", "<unk>", *"a red circle two blue stars above green heart".split()]
    tower = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(text_config=tower | {"vocab_size": max(64, len(words)), "max_position_embeddings": 64},
                          vision_config=tower | {"image_size": 32, "patch_size": 8})  # fmt: skip
    torch.manual_seed(0)
    model = SiglipModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-0.5)
    model.save_pretrained(folder)
    processor = {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": HALF, "image_std": HALF, "resample": resample,
                 "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "rescale_factor": 1 / 255,
                 "size": {"height": 32, "width": 32}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
                            padding_side="left").save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def scorer(folder):
    return siglip.load_siglip(folder)


def logits(folder, pixels, ids):
    model = SiglipModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits_per_image.diagonal()


def test_siglip_is_transformers_logit(folder, scorer):
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    ids = tokenizer(PROMPTS, padding="max_length", max_length=64, return_tensors="pt").input_ids
    assert ids[0].tolist() == [3, 4, 5, 1] + [0] * 60
    expected = logits(folder, preprocessed(pictures(), 32, HALF, HALF), ids)
    torch.testing.assert_close(scorer.logits(pictures(), PROMPTS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), expected.sigmoid(), rtol=1e-4, atol=1e-5)
    assert torch.equal(scorer.score(pictures(), [p.upper() for p in PROMPTS]), scorer.score(pictures(), PROMPTS))
    torch.testing.assert_close(scorer.score_matrix(pictures(), PROMPTS).diagonal(), expected.sigmoid(), rtol=1e-4, atol=1e-5)
    assert scorer.is_truncated(["a red circle", "a " * 63, "a " * 64]).tolist() == [False, False, True]  # the end token is one


def test_siglip_2_is_resized_bilinearly_as_its_folder_says(tmp_path):
    scorer = siglip.load_siglip(write_siglip(tmp_path, resample=2))
    assert scorer.preprocessing.filter == "bilinear"
    pixels = preprocessed(pictures(), 32, HALF, HALF, interpolation=InterpolationMode.BILINEAR)
    expected = logits(tmp_path, pixels, scorer.clip.tokenizer(PROMPTS))
    torch.testing.assert_close(scorer.logits(pictures(), PROMPTS), expected, rtol=1e-4, atol=1e-5)


def test_siglips_own_sentencepiece_is_read(folder, tmp_path):
    pieces = pytest.importorskip("sentencepiece")
    write_siglip(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    pieces.SentencePieceTrainer.train(sentence_iterator=iter(PROMPTS * 9), model_prefix=str(tmp_path / "spiece"), vocab_size=40,
                                      eos_id=1, pad_id=0, bos_id=-1, unk_id=2, hard_vocab_limit=False, minloglevel=3)  # fmt: skip
    settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64, "pad_token": "</s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    scorer = siglip.load_siglip(str(tmp_path))
    ids = scorer.clip.tokenizer(["A red circle!"])
    assert ids.shape == (1, 64) and ids[0, -1] == 1 and torch.equal(ids, scorer.clip.tokenizer(["a red circle"]))
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS),
                               logits(tmp_path, preprocessed(pictures(), 32, HALF, HALF), scorer.clip.tokenizer(PROMPTS)).sigmoid(),
                               rtol=1e-4, atol=1e-5)  # fmt: skip


def test_gradient_and_batch(scorer):
    check_gradient(scorer, pictures(), PROMPTS)
    check_batch(scorer, pictures(), PROMPTS)


@torch.no_grad()
def test_open_clips_layout(tmp_path):
    config = {"embed_dim": 24, "init_logit_bias": -1, "init_logit_scale": 2.0,
              "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
              "text_cfg": {"context_length": 64, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True,
                           "proj_bias": True, "pool_type": "last"}}  # fmt: skip
    torch.manual_seed(0)
    tokenizer = open_clip.SimpleTokenizer(context_length=64)
    model = open_clip.CustomTextCLIP(**config).eval()
    open_clip.set_model_preprocess_cfg(model, {"mean": HALF, "std": HALF, "resize_mode": "squash", "interpolation": "bicubic"})
    scorers.save_clip(model, tokenizer, config | {"custom_text": True}, tmp_path, dtype=torch.float32)
    expected = model.get_logits(preprocessed(pictures(), 32, HALF, HALF), tokenizer(PROMPTS))[0].diagonal()
    torch.testing.assert_close(siglip.load_siglip(str(tmp_path)).logits(pictures(), PROMPTS), expected, rtol=1e-4, atol=1e-5)


def test_tuned_weights_under_imscores_names(folder, scorer, tmp_path):
    write_siglip(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({f"model.{name}": value for name, value in state.items()}, tmp_path / "model.safetensors")
    assert torch.equal(siglip.load_siglip(str(tmp_path)).score(pictures(), PROMPTS), scorer.score(pictures(), PROMPTS))


def test_what_is_said_of_missing_and_other_weights(clip_folder, tmp_path):
    with pytest.raises(ValueError, match="has no logit_bias"):
        siglip.load_siglip(str(clip_folder))
    with pytest.raises(FileNotFoundError, match="missing"):
        siglip.load_siglip(str(tmp_path / "missing"))
    write_siglip(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in state.items() if name != "vision_model.head.probe"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors does not fit this SiglipModel: it lacks vision_model.head.probe"):
        siglip.load_siglip(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors is not there"):
        siglip.load_siglip(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}', encoding="utf-8")
    with pytest.raises(ValueError, match="config.json: `model_type` is 'siglip2'"):
        siglip.load_siglip(str(tmp_path))
