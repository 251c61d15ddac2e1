"""Diffusers pipelines: folders of Stable Diffusion 3 written and read, a CLIP's text tower in them, the fold of a T5 that is left out."""

import copy
import json
import math
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from diffusers import AutoModel, DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from icthp.files import atomic_folder
from icthp.scorers.states import fill


def text_tower(clip: open_clip.CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """The text tower of an open_clip CLIP in transformers' format: equal features, so it fits a diffusers pipeline."""
    blocks = clip.transformer.resblocks
    config = CLIPTextConfig(
        vocab_size=clip.token_embedding.num_embeddings,
        hidden_size=clip.token_embedding.embedding_dim,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        projection_dim=clip.text_projection.shape[1],
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        max_position_embeddings=clip.positional_embedding.shape[0],
        hidden_act=_activation(clip),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tower = CLIPTextModelWithProjection(config)
    tower.load_state_dict(_text_state(clip, "text_model." if hasattr(tower.text_model, "embeddings") else ""), strict=True)
    return tower.eval()


def swap_text_tower(pipe: DiffusionPipeline, clip: open_clip.CLIP) -> DiffusionPipeline:
    """`pipe` with the weights of a CLIP's text tower in its first text encoder, in place, and nothing else changed. An encoder that
    leaves out the tower's last layers, as Stable Diffusion 2.1's does, or its projection, takes the rest. ValueError for another
    activation, and for other shapes: it names the keys."""
    encoder = pipe.text_encoder
    if encoder.config.hidden_act != _activation(clip):
        raise ValueError(f"this text tower has the activation {_activation(clip)}, the pipeline's {encoder.config.hidden_act}")
    names = set(encoder.state_dict())
    root = "text_model." if any(name.startswith("text_model.") for name in names) else ""
    state = {}
    for name, value in _text_state(clip, root).items():
        may_be_left_out = "encoder.layers." in name or name.startswith("text_projection")
        if name in names or not may_be_left_out:
            state[name] = value.to(encoder.dtype)
    fill(encoder, state, "this text tower")
    return pipe


def silence(pipe: StableDiffusion3Pipeline, encoder: str) -> StableDiffusion3Pipeline:
    """`pipe` with one text encoder, "text_encoder" or "text_encoder_2", that says zeros, as where Stable Diffusion 3 drops it in training;
    in place. ValueError for a pipeline that has none of that name."""
    module = getattr(pipe, encoder, None)
    if module is None:
        raise ValueError(f"this pipeline has no {encoder} to silence")
    module.register_forward_hook(lambda module, given, output: _zeros_of(output))
    return pipe


def _zeros_of(output):
    """The same structure of tensors, all zero."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    if isinstance(output, dict):
        return type(output)({name: _zeros_of(part) for name, part in output.items()})
    return tuple(map(_zeros_of, output))


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


def save_sd3(pipe: StableDiffusion3Pipeline, folder) -> None:
    """Write the pipeline with float16 weights that load as float32 by default, which a CPU needs. ValueError for a pipeline with a LoRA
    inside: the folder's layers would have names that diffusers does not know."""
    models = {name: extract_model_from_parallel(part, keep_torch_compile=False)
              for name, part in pipe.components.items() if isinstance(part, nn.Module)}  # fmt: skip
    for name, model in models.items():
        if any(".base_layer." in key for key in model.state_dict()):
            remedy = "call pipe.fuse_lora() and then pipe.unload_lora_weights(), or save it alone by tuning.save_lora"
            raise ValueError(f"the {name} has a LoRA inside that a pipeline folder cannot hold: {remedy}")
    parts = pipe.components | {name: cpu_copy(model) for name, model in models.items()} | {"scheduler": _copy_scheduler(pipe.scheduler)}
    atomic_folder(folder, lambda partial: _write_sd3(StableDiffusion3Pipeline(**parts), partial))
    _remove_older_weights(Path(folder), parts)


def cpu_copy(model: nn.Module, dtype=torch.float16) -> nn.Module:
    """For a folder of weights, which a CPU reads too."""
    return copy.deepcopy(model).to("cpu", dtype)


def _copy_scheduler(scheduler):
    """With its own shift, which set_shift changes and the config does not know."""
    shift = {"shift": scheduler.shift} if "shift" in scheduler.config else {}
    return type(scheduler).from_config(scheduler.config, **shift)


WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # diffusers' names for weights without shards


def _remove_older_weights(folder: Path, parts) -> None:
    """Those in shards or of another format would be read first."""
    for name in parts:
        for file in folder.glob(f"{name}/*"):
            if file.name.endswith((".safetensors", ".bin", ".index.json")) and file.name not in WEIGHTS:
                file.unlink()


def _write_sd3(pipe: StableDiffusion3Pipeline, folder: Path) -> None:
    pipe.save_pretrained(folder)
    for config in folder.glob("text_encoder*/config.json"):  # transformers takes its dtype from here
        config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}, indent=2), encoding="utf-8")


def load_pipeline(source: str, dtype=torch.float32, device="cpu", *, transformer: str = "", **kwargs) -> DiffusionPipeline:
    """Any diffusers pipeline from a folder or the Hub; transformer: a folder with another one than its own. Stable Diffusion 3 without its
    T5 encoder gets `fold_empty_t5`: an ordinary call draws the ordinary picture, one with max_sequence_length=t5_length(pipe) the same at a
    quarter of the work. FileNotFoundError for a folder that is no pipeline's, or no transformer's."""
    index = Path(source) / "model_index.json"
    if Path(source).is_dir() and not index.exists():
        raise FileNotFoundError(f"{source} has no model_index.json: not a diffusers pipeline folder")
    if index.exists() and json.loads(index.read_text(encoding="utf-8")).get("text_encoder_3", [True])[0] is None:
        kwargs |= {"text_encoder_3": None, "tokenizer_3": None}
    if transformer:
        kwargs["transformer"] = _load_transformer(transformer, dtype)
    pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype, **kwargs).to(device)
    pipe.set_progress_bar_config(disable=True)
    lacks_t5 = isinstance(getattr(pipe, "transformer", None), SD3Transformer2DModel) and pipe.text_encoder_3 is None
    return fold_empty_t5(pipe) if lacks_t5 else pipe


def _load_transformer(folder: str, dtype) -> nn.Module:
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: not the folder of a transformer (`dvc pull` for data/)")
    return AutoModel.from_pretrained(folder, torch_dtype=dtype)


def fold_empty_t5(pipe: StableDiffusion3Pipeline, length: int = 256) -> StableDiffusion3Pipeline:
    """Without its T5 encoder the pipeline attends to `length` equal zero tokens. They stay equal in every block, so one
    of them with log(length) added to its attention logit gives the same picture at a quarter of the work. A text with one token behind
    the CLIP towers' is taken for such a fold; any other text is attended to unchanged."""
    for block in pipe.transformer.transformer_blocks:  # not its attn2, which SD3.5-medium has for the image alone
        block.attn.set_processor(FoldedJointAttention(length, pipe.tokenizer_max_length + 1))
    return pipe


def t5_length(pipe: StableDiffusion3Pipeline) -> int:
    """The max_sequence_length that draws the ordinary picture with the least work: 1 after `fold_empty_t5`, else the pipeline's own 256."""
    return 1 if any(isinstance(p, FoldedJointAttention) for p in pipe.transformer.attn_processors.values()) else 256


class FoldedJointAttention:
    """Stable Diffusion 3's joint attention; in a text of `folded` tokens the last one stands for `copies` equal ones."""

    def __init__(self, copies: int, folded: int):
        self.copies = copies
        self.folded = folded

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, *, ip_hidden_states=None, temb=None, **kwargs):
        kwargs |= {"attention_mask": attention_mask, "ip_hidden_states": ip_hidden_states, "temb": temb}  # diffusers passes what is named
        given = [name for name, value in kwargs.items() if value is not None]
        if given:
            raise ValueError(f"this attention takes no {', '.join(given)}: load the pipeline by diffusers to use it")

        def heads(x, project, norm=None):  # (b, n, width) -> (b, heads, n, width / heads)
            x = project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return x if norm is None else norm(x)

        image = hidden_states
        text = encoder_hidden_states
        q = torch.cat([heads(image, attn.to_q, attn.norm_q), heads(text, attn.add_q_proj, attn.norm_added_q)], 2)
        k = torch.cat([heads(image, attn.to_k, attn.norm_k), heads(text, attn.add_k_proj, attn.norm_added_k)], 2)
        v = torch.cat([heads(image, attn.to_v), heads(text, attn.add_v_proj)], 2)
        bias = None
        if text.shape[1] == self.folded:
            bias = torch.zeros(1, 1, 1, k.shape[2], device=q.device)
            bias[..., -1] = math.log(self.copies)
        out = _attention(q, k, v, bias).transpose(1, 2).flatten(2)
        out_image, out_text = out[:, : image.shape[1]], out[:, image.shape[1] :]
        out_image = attn.to_out[1](attn.to_out[0](out_image))
        return out_image, out_text if attn.context_pre_only else attn.to_add_out(out_text)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """torch's attention; on a CPU in float32, for its backward in bfloat16 takes a third of a training step."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias).to(q.dtype)
