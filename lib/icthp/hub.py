"""Folders in the formats of the model hub: open_clip's `local-dir:`, a CLIP tokenizer, a Stable Diffusion 3 pipeline."""

import copy
import json
import math
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.transformer import QuickGELU
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from icthp.files import atomic_folder
from icthp.weights import fill

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}  # accelerate's names of precision


def train_tokenizer(texts: list[str], context_length: int) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer whose merges are learnt from `texts`; any other text falls back to its bytes."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
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
    """A CLIP with random weights and 0.5 / 0.5 normalisation, which `save_clip` writes beside the weights."""
    model = open_clip.CLIP(**config)
    open_clip.set_model_preprocess_cfg(model, {"size": config["vision_cfg"]["image_size"], "mean": [0.5] * 3, "std": [0.5] * 3})
    return model


def save_clip(model: open_clip.CLIP, tokenizer, config: dict, folder, dtype=torch.float16) -> None:
    """Write `folder` so that open_clip.create_model_from_pretrained("local-dir:folder") reads it."""
    write = lambda partial: save_for_hf(
        _copy(model, dtype), _in_transformers_format(tokenizer), config, str(partial), safe_serialization=True
    )
    atomic_folder(folder, write)


def _in_transformers_format(tokenizer) -> CLIPTokenizer:
    """open_clip's own byte-pair tokenizer, or one that it or transformers loaded, as the latter saves them."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        start, end = "<start_of_text>", "<end_of_text>"  # its names for them
        return CLIPTokenizer(tokenizer.encoder, list(tokenizer.bpe_ranks), model_max_length=tokenizer.context_length,
                             bos_token=start, eos_token=end, unk_token=end, pad_token=end)  # fmt: skip
    return getattr(tokenizer, "tokenizer", tokenizer)


def _copy(model: nn.Module, dtype=torch.float16) -> nn.Module:
    return copy.deepcopy(model).to("cpu", dtype)


def text_tower(clip: open_clip.CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """The text tower of an open_clip CLIP in transformers' format: equal features, so it fits a diffusers pipeline."""
    blocks = clip.transformer.resblocks
    width, heads = clip.token_embedding.embedding_dim, blocks[0].attn.num_heads
    tower = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=clip.token_embedding.num_embeddings, hidden_size=width, intermediate_size=blocks[0].mlp.c_fc.out_features,
        projection_dim=clip.text_projection.shape[1], num_hidden_layers=len(blocks), num_attention_heads=heads,
        max_position_embeddings=clip.positional_embedding.shape[0], hidden_act=_activation(clip), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))  # fmt: skip
    tower.load_state_dict(_text_state(clip, "text_model." if hasattr(tower.text_model, "embeddings") else ""), strict=True)
    return tower.eval()


def swap_text_tower(pipe: DiffusionPipeline, clip: open_clip.CLIP) -> DiffusionPipeline:
    """`pipe` with the weights of a CLIP's text tower in its first text encoder, in place, and nothing else changed. An encoder that
    leaves out the tower's last layers, as Stable Diffusion 2.1's does, or its projection, takes the rest. ValueError that names the keys
    where the shapes are others, or where the activations are."""
    encoder = pipe.text_encoder
    if encoder.config.hidden_act != _activation(clip):
        raise ValueError(f"this text tower has the activation {_activation(clip)}, the pipeline's {encoder.config.hidden_act}")
    own = encoder.state_dict()
    state = _text_state(clip, "text_model." if any(name.startswith("text_model.") for name in own) else "")
    left_out = lambda name: name not in own and ("encoder.layers." in name or name.startswith("text_projection"))
    fill(encoder, {name: value.to(encoder.dtype) for name, value in state.items() if not left_out(name)}, "this text tower")
    return pipe


def _activation(clip: open_clip.CLIP) -> str:
    return "quick_gelu" if isinstance(clip.transformer.resblocks[0].mlp.gelu, QuickGELU) else "gelu"


def _text_state(clip: open_clip.CLIP, root: str) -> dict[str, Tensor]:
    state = {
        root + "embeddings.token_embedding.weight": clip.token_embedding.weight,
        root + "embeddings.position_embedding.weight": clip.positional_embedding,
        root + "final_layer_norm.weight": clip.ln_final.weight,
        root + "final_layer_norm.bias": clip.ln_final.bias,
        "text_projection.weight": clip.text_projection.T,
    }
    for i, block in enumerate(clip.transformer.resblocks):
        layer = f"{root}encoder.layers.{i}."
        for name, module in {"layer_norm1": block.ln_1, "layer_norm2": block.ln_2, "self_attn.out_proj": block.attn.out_proj,
                             "mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}.items():  # fmt: skip
            state |= {f"{layer}{name}.weight": module.weight, f"{layer}{name}.bias": module.bias}
        for k, weight, bias in zip("qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)):
            state |= {f"{layer}self_attn.{k}_proj.weight": weight, f"{layer}self_attn.{k}_proj.bias": bias}
    return {k: v.detach().clone().contiguous() for k, v in state.items()}


def new_vae(channels=(16, 32, 64), latent_channels=16) -> AutoencoderKL:
    """A small AutoencoderKL with random weights; it halves the side len(channels) - 1 times."""
    n = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=tuple(channels),
        layers_per_block=1, latent_channels=latent_channels, norm_num_groups=8, sample_size=64, mid_block_add_attention=False,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.0, shift_factor=0.0)  # fmt: skip


def new_sd3(text_encoder, tokenizer, vae: AutoencoderKL, *, width=128, layers=4, text_width=32, text_layers=1, latent_size=16):
    """A StableDiffusion3Pipeline around a trained tower and VAE; the transformer and a small second tower are random."""
    first = text_encoder.config
    second = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=first.vocab_size, hidden_size=text_width, intermediate_size=4 * text_width, projection_dim=text_width,
        num_hidden_layers=text_layers, num_attention_heads=text_width // 32, max_position_embeddings=first.max_position_embeddings,
        bos_token_id=first.bos_token_id, eos_token_id=first.eos_token_id, pad_token_id=first.pad_token_id))  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=latent_size, patch_size=2, in_channels=vae.config.latent_channels, out_channels=vae.config.latent_channels,
        num_layers=layers, attention_head_dim=32, num_attention_heads=width // 32, joint_attention_dim=first.hidden_size + text_width,
        caption_projection_dim=width, pooled_projection_dim=first.projection_dim + text_width, pos_embed_max_size=latent_size // 2,
        qk_norm="rms_norm")  # fmt: skip
    nn.init.normal_(second.get_input_embeddings().weight)  # its default, 0.02, would drown beside a trained tower's vectors
    _start_as_identity(transformer)
    transformer.pos_embed.pos_embed.copy_(_positions(latent_size // 2, width))
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=text_encoder,
        tokenizer=tokenizer, text_encoder_2=second, tokenizer_2=tokenizer, text_encoder_3=None, tokenizer_3=None)  # fmt: skip


def _start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """adaLN-Zero (DiT, arXiv 2212.09748): every block starts as the identity, the output as zero; it trains faster."""
    gates = [m for name, m in transformer.named_modules() if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear"))]
    for linear in (*gates, transformer.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def _positions(side: int, width: int) -> Tensor:
    """(1, side * side, width): sines and cosines of each patch's row and column, wavelengths from two patches to two
    sides. The class's own wavelengths suit sides of 64; on a side of 8 they tell the patches hardly apart."""
    frequency = math.pi * side ** -torch.linspace(0, 1, width // 4)
    phase = torch.arange(side)[:, None] * frequency
    code = torch.cat([phase.sin(), phase.cos()], 1)
    row, column = code[:, None].expand(-1, side, -1), code[None].expand(side, -1, -1)
    return torch.cat([row, column], -1).reshape(1, side * side, width)


def save_sd3(pipe: StableDiffusion3Pipeline, folder) -> None:
    """Write the pipeline with float16 weights that load as float32 by default, as a CPU wants them. ValueError where a LoRA is inside:
    the folder's layers would have names that no reader knows."""
    parts = {k: extract_model_from_parallel(v, keep_torch_compile=False) for k, v in pipe.components.items() if isinstance(v, nn.Module)}
    if inside := [k for k, part in parts.items() if any(".base_layer." in name for name in part.state_dict())]:
        remedy = "call pipe.fuse_lora() and then pipe.unload_lora_weights(), or save it alone by draft.save_lora"
        raise ValueError(f"the {inside[0]} has a LoRA inside that a pipeline folder cannot hold: {remedy}")
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **_shift(pipe.scheduler))
    parts = pipe.components | {k: _copy(part) for k, part in parts.items()} | {"scheduler": scheduler}
    atomic_folder(folder, lambda partial: _write_sd3(StableDiffusion3Pipeline(**parts), partial))
    for name in parts:  # older weights in shards or of another format would be read first
        for old in Path(folder).glob(f"{name}/*"):
            if old.name.endswith((".safetensors", ".bin", ".index.json")) and old.name not in WEIGHTS:
                old.unlink()


WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # as diffusers names them where it writes no shards


def _shift(scheduler) -> dict:
    """What set_shift made of it, which its config does not know."""
    return {"shift": scheduler.shift} if "shift" in scheduler.config else {}


def _write_sd3(pipe: StableDiffusion3Pipeline, folder: Path) -> None:
    pipe.save_pretrained(folder)
    for config in folder.glob("text_encoder*/config.json"):  # transformers takes its dtype from here
        config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}, indent=2), encoding="utf-8")


def load_pipeline(source: str, dtype=torch.float32, device="cpu", **kwargs) -> DiffusionPipeline:
    """Any diffusers pipeline from a folder or the Hub. Stable Diffusion 3 without its T5 encoder gets `fold_empty_t5`: an ordinary call
    draws the ordinary picture, one with max_sequence_length=t5_length(pipe) the same at a quarter of the work."""
    index = Path(source) / "model_index.json"
    if Path(source).is_dir() and not index.exists():
        raise FileNotFoundError(f"{source} has no model_index.json: not a diffusers pipeline folder")
    if index.exists() and json.loads(index.read_text(encoding="utf-8")).get("text_encoder_3", [True])[0] is None:
        kwargs |= {"text_encoder_3": None, "tokenizer_3": None}
    pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype, **kwargs).to(device)
    pipe.set_progress_bar_config(disable=True)
    folds = isinstance(getattr(pipe, "transformer", None), SD3Transformer2DModel) and pipe.text_encoder_3 is None
    return fold_empty_t5(pipe) if folds else pipe


def fold_empty_t5(pipe: StableDiffusion3Pipeline, length: int = 256) -> StableDiffusion3Pipeline:
    """Without its T5 encoder the pipeline attends to `length` equal zero tokens. They stay equal in every block, so one
    of them with log(length) added to its attention logit gives the same picture at a quarter of the work. A text with one token behind
    the CLIP towers' is taken for such a fold, any other as it is."""
    for block in pipe.transformer.transformer_blocks:  # not its attn2, which SD3.5-medium has for the image alone
        block.attn.set_processor(FoldedJointAttention(length, pipe.tokenizer_max_length + 1))
    return pipe


def t5_length(pipe: StableDiffusion3Pipeline) -> int:
    """The max_sequence_length that draws the ordinary picture with the least work: 1 after `fold_empty_t5`, else the pipeline's own 256."""
    return 1 if any(isinstance(p, FoldedJointAttention) for p in pipe.transformer.attn_processors.values()) else 256


class FoldedJointAttention:
    """Stable Diffusion 3's joint attention; in a text of `folded` tokens the last one stands for `copies` equal ones."""

    def __init__(self, copies: int, folded: int):
        self.copies, self.folded = copies, folded

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, *, ip_hidden_states=None, temb=None, **others):
        others |= {"attention_mask": attention_mask, "ip_hidden_states": ip_hidden_states, "temb": temb}  # diffusers passes what is named
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"this attention takes no {', '.join(given)}: load the pipeline by diffusers to use it")

        def heads(x, project, norm=None):  # (b, n, width) -> (b, heads, n, width / heads)
            x = project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return x if norm is None else norm(x)

        image, text = hidden_states, encoder_hidden_states
        q = torch.cat([heads(image, attn.to_q, attn.norm_q), heads(text, attn.add_q_proj, attn.norm_added_q)], 2)
        k = torch.cat([heads(image, attn.to_k, attn.norm_k), heads(text, attn.add_k_proj, attn.norm_added_k)], 2)
        v = torch.cat([heads(image, attn.to_v), heads(text, attn.add_v_proj)], 2)
        bias = None
        if text.shape[1] == self.folded:
            bias = torch.zeros(1, 1, 1, k.shape[2], dtype=q.dtype, device=q.device)
            bias[..., -1] = math.log(self.copies)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        out_image, out_text = out[:, : image.shape[1]], out[:, image.shape[1] :]
        out_image = attn.to_out[1](attn.to_out[0](out_image))
        return out_image, out_text if attn.context_pre_only else attn.to_add_out(out_text)
