"""The microworld's base models with random weights, in the hub's own formats: tokenizer, CLIP, VAE, SD3 pipeline.

Micro loads them through the same calls of open_clip and diffusers as the paper's scale."""

import json
import math

import open_clip
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer


def train_tokenizer(texts: list[str], context_length: int) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer whose merges are learnt from `texts`; any other text falls back to its bytes. context_length: tokens."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(pair) for pair in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]  # the end token has the highest id
    return CLIPTokenizer({t: i for i, t in enumerate(tokens)}, merges, model_max_length=context_length)


def clip_config(tokenizer: CLIPTokenizer, *, image_size=64, patch=8, width=128, layers=4, text_layers=4, embed_dim=128) -> dict:
    """open_clip's model_cfg of a small ViT CLIP that reads the given tokenizer from its own folder."""
    vision = {"image_size": image_size, "patch_size": patch, "width": width, "layers": layers, "head_width": 32}
    text = {"context_length": tokenizer.model_max_length, "vocab_size": len(tokenizer), "hf_tokenizer_name": "local-dir",
            "width": width, "heads": width // 32, "layers": text_layers}  # fmt: skip
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}


def new_clip(config: dict) -> open_clip.CLIP:
    """A CLIP with random weights. Pixels are normalised by mean 0.5 and deviation 0.5, which `scorers.save_clip` writes beside the
    weights. config: `clip_config`'s."""
    model = open_clip.CLIP(**config)
    open_clip.set_model_preprocess_cfg(model, {"size": config["vision_cfg"]["image_size"], "mean": [0.5] * 3, "std": [0.5] * 3})
    return model


def new_vae(channels=(16, 32, 64), latent_channels=4) -> AutoencoderKL:
    """A small AutoencoderKL with random weights; it halves the side len(channels) - 1 times."""
    n = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=tuple(channels),
        layers_per_block=1, latent_channels=latent_channels, norm_num_groups=8, sample_size=64, mid_block_add_attention=False,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.0, shift_factor=0.0)  # fmt: skip


def new_sd3(text_encoder, tokenizer, vae: AutoencoderKL, *, width=128, layers=4, text_width=64, text_layers=2, latent_size=16):
    """A StableDiffusion3Pipeline around a trained text tower and VAE; the transformer and a small second tower are random. widths
    are multiples of 32; latent_size: the side of the latents."""
    first = text_encoder.config
    second = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=first.vocab_size, hidden_size=text_width, intermediate_size=4 * text_width, projection_dim=text_width,
        num_hidden_layers=text_layers, num_attention_heads=text_width // 32, max_position_embeddings=first.max_position_embeddings,
        bos_token_id=first.bos_token_id, eos_token_id=first.eos_token_id, pad_token_id=first.pad_token_id))  # fmt: skip
    transformer = new_transformer((text_encoder, second), vae, width=width, layers=layers, latent_size=latent_size)
    nn.init.normal_(second.get_input_embeddings().weight, std=0.3)  # its default, 0.02, would drown beside a trained tower's vectors
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=text_encoder,
        tokenizer=tokenizer, text_encoder_2=second, tokenizer_2=tokenizer, text_encoder_3=None, tokenizer_3=None)  # fmt: skip


def new_transformer(text_encoders, vae: AutoencoderKL, *, width: int, layers: int, latent_size: int = 16) -> SD3Transformer2DModel:
    """A random transformer for the latents of `vae` and prompts of those two text encoders; width: a multiple of 32."""
    channels = vae.config.latent_channels
    transformer = SD3Transformer2DModel(
        sample_size=latent_size, patch_size=2, in_channels=channels, out_channels=channels, num_layers=layers, attention_head_dim=32,
        num_attention_heads=width // 32, joint_attention_dim=sum(encoder.config.hidden_size for encoder in text_encoders),
        caption_projection_dim=width, pooled_projection_dim=sum(encoder.config.projection_dim for encoder in text_encoders),
        pos_embed_max_size=latent_size // 2, qk_norm="rms_norm")  # fmt: skip
    _start_as_identity(transformer)
    transformer.pos_embed.pos_embed.copy_(_positions(latent_size // 2, width))
    return transformer


def _start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """adaLN-Zero (DiT, arXiv 2212.09748): every block starts as the identity, the output as zero; it trains faster."""
    gates = ("norm1.linear", "norm1_context.linear", "norm_out.linear")
    linears = [module for name, module in transformer.named_modules() if name.endswith(gates)]
    for linear in (*linears, transformer.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def _positions(side: int, width: int) -> Tensor:
    """(1, side * side, width): sines and cosines of each patch's row and column, wavelengths from two patches to two
    sides. The class's own wavelengths suit sides of 64; on a side of 8 they hardly tell the patches apart."""
    frequency = math.pi * side ** -torch.linspace(0, 1, width // 4)
    phase = torch.arange(side)[:, None] * frequency
    code = torch.cat([phase.sin(), phase.cos()], 1)
    row = code[:, None].expand(-1, side, -1)
    column = code[None].expand(side, -1, -1)
    return torch.cat([row, column], -1).reshape(1, side * side, width)
