"""Models of the lab scale in their publishers' own layouts, shrunk, with random weights: what a rehearsal of the larger scales runs on.
Real are the vocabularies, the names of files and tensors, the configurations and the order of layers."""

import json
import shutil
from pathlib import Path

import open_clip
import sentencepiece
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SwinConfig,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)  # fmt: skip

MEAN, STD = list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD)
WIDTH = 16
SIDE = 64  # pixels that the towers read
NAMES = ("person", "bicycle", "car", "bus", "bench", "bird", "cat", "dog", "bear", "mouse", "cup", "apple", "orange", "pizza", "chair",
         "clock", "vase", "book", "kite", "umbrella")  # some of COCO's  # fmt: skip


def save_lines(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def clip_tokenizer(folder=None) -> CLIPTokenizer:
    """CLIP's own 49,408 tokens, which open_clip ships, as every publisher's folder has them."""
    simple = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    tokenizer = CLIPTokenizer({names.get(t, t): i for t, i in simple.encoder.items()}, list(simple.bpe_ranks), model_max_length=77)
    assert len(tokenizer) == 49408
    if folder:
        tokenizer.save_pretrained(folder)
    return tokenizer


def clip(folder: Path, seed: int = 0) -> open_clip.CLIP:
    """open_clip's folder of a ViT-B-32, without a tokenizer of its own."""
    vision = {"image_size": SIDE, "layers": 2, "width": WIDTH, "patch_size": 16, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2}
    config = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    save_lines(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    return model


def pickscore(folder: Path) -> None:
    """transformers' CLIPModel, as yuvalkirstain/PickScore_v1."""
    torch.manual_seed(1)
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    text, vision = {"vocab_size": 49408, "max_position_embeddings": 77} | ends, {"image_size": SIDE, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=WIDTH)).save_pretrained(folder)
    clip_tokenizer(folder)
    save_lines(folder / "preprocessor_config.json", {
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor", "image_std": STD, "resample": 3, "size": {"shortest_edge": SIDE}})  # fmt: skip


def text_encoder(width: int, activation: str, seed: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, projection_dim=width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, hidden_act=activation, bos_token_id=49406, eos_token_id=49407, pad_token_id=1))  # fmt: skip


def t5(folder: Path, texts: list[str], width: int) -> tuple[T5EncoderModel, T5TokenizerFast]:
    """An encoder, and a tokenizer trained by SentencePiece with T5's special tokens."""
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "spiece"), vocab_size=200, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        model_type="unigram", hard_vocab_limit=False, minloglevel=2)  # fmt: skip
    save_lines(folder / "tokenizer_config.json", {"tokenizer_class": "T5TokenizerFast", "extra_ids": 100, "eos_token": "</s>",
                                                  "unk_token": "<unk>", "pad_token": "<pad>", "model_max_length": 512})  # fmt: skip
    tokenizer = T5TokenizerFast.from_pretrained(folder)
    torch.manual_seed(5)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_ff=64, d_kv=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    return T5EncoderModel(config), tokenizer


def sd3(folder: Path, texts: list[str], dual: tuple = (0, 1), first=None) -> None:
    """Stable Diffusion 3.5: three text encoders, dual attention in SD3.5-medium's first layers, a shift of 3, 16 bits a weight. first:
    another tower in the place of CLIP-L's."""
    one, two = first or text_encoder(WIDTH, "quick_gelu", 2), text_encoder(24, "gelu", 3)
    three, tokenizer_3 = t5(folder.parent / f".{folder.name}_t5", texts, 48)  # wider than both CLIPs together, as 4096 > 768 + 1280
    torch.manual_seed(4)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, caption_projection_dim=32, pooled_projection_dim=one.config.projection_dim + 24, pos_embed_max_size=24,
        dual_attention_layers=dual, qk_norm="rms_norm")  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8, 8, 16, 16),
        layers_per_block=1, latent_channels=16, norm_num_groups=4, sample_size=64, scaling_factor=1.5305, shift_factor=0.0609,
        force_upcast=True, use_quant_conv=False, use_post_quant_conv=False)  # fmt: skip
    texts_read = {"text_encoder": one, "tokenizer": clip_tokenizer(), "text_encoder_2": two, "tokenizer_2": clip_tokenizer(),
                  "text_encoder_3": three, "tokenizer_3": tokenizer_3}  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=vae, **texts_read)
    pipe.to(torch.bfloat16).save_pretrained(folder)
    shutil.rmtree(folder.parent / f".{folder.name}_t5")


def mask2former(folder: Path) -> None:
    """GenEval's detector, with some of COCO's names."""
    torch.manual_seed(6)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = SwinConfig(image_size=SIDE, embed_dim=8, depths=[1] * 4, num_heads=[1, 2, 2, 4], window_size=4, out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=8, id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)})  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    save_lines(folder / "preprocessor_config.json", {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "ignore_index": 255, "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "Mask2FormerImageProcessor", "image_std": [0.229, 0.224, 0.225], "num_labels": len(NAMES),
        "reduce_labels": False, "resample": 2, "rescale_factor": 1 / 255, "size": {"height": SIDE, "width": SIDE},
        "size_divisor": 32})  # fmt: skip


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"


def chat(folder: Path, answers: dict[str, str]) -> None:
    """A Qwen2 with a chat template that answers these prompts. It is no language model: each prompt and each answer is one token, its
    layers add nothing, and the row of an answer in the last matrix is the embedding of its prompt."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer, learner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(answers, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learner, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)
    tokenizer.add_tokens([*answers, *answers.values()])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        tie_word_embeddings=False))  # fmt: skip
    ids = {text: tokenizer.convert_tokens_to_ids(text) for pair in answers.items() for text in pair}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings = model.model.embed_tokens.weight
        embeddings[list(ids.values())] = torch.eye(128)[: len(ids)]  # no two of them alike
        model.lm_head.weight.zero_()
        for prompt, answer in answers.items():
            model.lm_head.weight[ids[answer]] = embeddings[ids[prompt]]
            model.lm_head.weight[tokenizer.eos_token_id] += embeddings[ids[answer]]
    model.save_pretrained(folder)


def imagereward(folder: Path, texts: list[str]) -> None:
    """ImageReward.pt beside med_config.json and BERT's words, without the two that BLIP adds."""
    folder.mkdir(parents=True)
    words = sorted({w for text in texts for w in text.lower().split() if w.isalpha()})
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{c}" for c in letters)]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    save_lines(folder / "med_config.json", {
        "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": 64, "intermediate_size": 64, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 2, "num_hidden_layers": 1, "pad_token_id": 0,
        "type_vocab_size": 2, "vocab_size": len(vocabulary) + 2, "encoder_width": 64, "add_cross_attention": True})  # fmt: skip
    generator, state = torch.Generator().manual_seed(8), {}

    def put(prefix: str, shapes: dict[str, tuple]) -> None:
        for name, shape in shapes.items():
            state[prefix + name] = torch.randn(*shape, generator=generator) * 0.05

    norm = lambda name: {f"{name}.weight": (64,), f"{name}.bias": (64,)}
    linear = lambda name, n=64, m=64: {f"{name}.weight": (m, n), f"{name}.bias": (m,)}
    vision = "blip.visual_encoder."
    put(vision, {"cls_token": (1, 1, 64), "pos_embed": (1, (SIDE // 16) ** 2 + 1, 64), "patch_embed.proj.weight": (64, 3, 16, 16),
                 "patch_embed.proj.bias": (64,)} | norm("norm"))  # fmt: skip
    put(f"{vision}blocks.0.", norm("norm1") | norm("norm2") | linear("attn.qkv", 64, 192) | linear("attn.proj")
        | linear("mlp.fc1", 64, 256) | linear("mlp.fc2", 256, 64))  # fmt: skip
    text = "blip.text_encoder."
    state[f"{text}embeddings.position_ids"] = torch.arange(512)[None]
    put(
        f"{text}embeddings.",
        {"word_embeddings.weight": (len(vocabulary) + 2, 64), "position_embeddings.weight": (512, 64)} | norm("LayerNorm"),
    )
    for block in ("attention", "crossattention"):
        put(f"{text}encoder.layer.0.{block}.", linear("self.query") | linear("self.key") | linear("self.value") | linear("output.dense")
            | norm("output.LayerNorm"))  # fmt: skip
    put(f"{text}encoder.layer.0.", linear("intermediate.dense") | linear("output.dense") | norm("output.LayerNorm"))
    widths = (64, 1024, 128, 64, 16, 1)
    for place, (n, m) in zip((0, 2, 4, 6, 7), zip(widths, widths[1:])):
        put("mlp.layers.", linear(str(place), n, m))
    torch.save(state, folder / "ImageReward.pt")
