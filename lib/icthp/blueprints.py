"""The architectures behind the sources that a profile names, from configurations alone: a folder's own, or, of names on the Hub, those
written here as their publishers give them. Nothing is downloaded, and no weight is made: they are built in `metering.without_numbers`."""

import json
from pathlib import Path
from typing import NamedTuple

import open_clip
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import AutoConfig, CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from icthp.scorers.configs import model_config

_SD35 = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64, "joint_attention_dim": 4096,
         "pooled_projection_dim": 2048, "qk_norm": "rms_norm"}  # fmt: skip
_MEDIUM = _SD35 | {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
                   "dual_attention_layers": tuple(range(13))}  # fmt: skip
_LARGE = _SD35 | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}
TRANSFORMERS = {"stabilityai/stable-diffusion-3.5-medium": _MEDIUM, "stabilityai/stable-diffusion-3.5-large": _LARGE,
                "stabilityai/stable-diffusion-3.5-large-turbo": _LARGE}  # fmt: skip
VAE = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
       "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16,
       "use_quant_conv": False, "use_post_quant_conv": False}  # fmt: skip
_TEXT = {"vocab_size": 49408, "max_position_embeddings": 77}
TEXT_ENCODERS = (  # of Stable Diffusion 3: CLIP-L, CLIP-G, T5-XXL
    CLIPTextConfig(**_TEXT, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768),
    CLIPTextConfig(**_TEXT, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280),
    T5Config(vocab_size=32128, d_model=4096, d_ff=10240, d_kv=64, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"),
)
CLIPS = {
    "hf-hub:yuvalkirstain/PickScore_v1": "ViT-H-14",
    "yuvalkirstain/PickScore_v1": "ViT-H-14",
}  # names whose architecture is open_clip's
BILLIONS = {"Qwen/Qwen2.5-7B-Instruct": 7.62, "facebook/mask2former-swin-small-coco-instance": 0.069}  # of parameters
LICENCES = {"stabilityai/": "Stability AI Community License: accept it on the model's page, then `hf auth login`",
            "Qwen/": "Apache 2.0", "facebook/mask2former": "Mask2Former's MIT", "hf-hub:yuvalkirstain/": "MIT"}  # fmt: skip


class Generator(NamedTuple):
    transformer: nn.Module
    vae: nn.Module
    text_encoders: list[nn.Module]
    tokens: int  # of a prompt's embedding


def generator(source: str) -> Generator:
    """A Stable Diffusion 3 pipeline's parts. ValueError for a name that is not known here."""
    folder = Path(source)
    if folder.is_dir():
        read = lambda name: json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        parts = [f"text_encoder{i}" for i in ("", "_2", "_3") if (folder / f"text_encoder{i}").is_dir()]
        encoders = [AutoConfig.from_pretrained(folder / name) for name in parts]
        return _generator(read("transformer"), read("vae"), encoders)
    if source not in TRANSFORMERS:
        raise ValueError(f"{source} is none of {', '.join(TRANSFORMERS)}: name a folder that holds its configurations")
    return _generator(TRANSFORMERS[source], VAE, TEXT_ENCODERS)


def _generator(transformer: dict, vae: dict, encoders) -> Generator:
    keep = lambda config: {name: value for name, value in config.items() if not name.startswith("_")}
    classes = {"t5": T5EncoderModel}
    built = [classes.get(config.model_type, CLIPTextModelWithProjection)(config) for config in encoders]
    positions = {"pos_embed_max_size": max(transformer["sample_size"] // transformer["patch_size"], 64)}  # a table, of which a part is read
    tokens = 77 + (256 if len(built) == 3 else 1)
    parts = SD3Transformer2DModel(**keep(transformer) | positions), AutoencoderKL(**keep(vae))
    return Generator(*(part.requires_grad_(False) for part in parts), [encoder.requires_grad_(False) for encoder in built], tokens)


def positions_left_out(source: str) -> int:
    """Numbers of the table of positions that `generator` does not build: it is computed in memory."""
    config = TRANSFORMERS.get(source)
    return 0 if config is None else (config["pos_embed_max_size"] ** 2 - 64**2) * config["num_attention_heads"] * 64


def clip(source: str) -> open_clip.CLIP:
    """A CLIP of any source that `scorers.load_clip` takes, or of a name of CLIPS."""
    config = open_clip.get_model_config(CLIPS[source]) if source in CLIPS else model_config(source)
    return open_clip.CLIP(**{name: value for name, value in config.items() if name != "custom_text"})


def billions(source: str) -> float | None:
    """Parameters of another model, in 1e9; None where they are not known."""
    if not Path(source).is_dir():
        return BILLIONS.get(source)
    return sum(file.stat().st_size for file in Path(source).glob("*.safetensors")) / 4e9


def licence(source: str) -> str:
    return next((text for name, text in LICENCES.items() if source.startswith(name)), "")
