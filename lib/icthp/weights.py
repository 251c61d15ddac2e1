"""Weights in their publishers' layouts: open_clip's folders and files, transformers' `CLIPModel` folders and files (PickScore,
the released ICT and HP). Files are read as safetensors or with weights_only, and every key must fit."""

import json
from pathlib import Path

import open_clip
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig

RELEASED = "ViT-H-14"  # the architecture of a folder that holds weights and no config, as 8y/ICT's and 8y/HP's do
FILES = ("model.safetensors", "pytorch_model.bin")  # transformers' names, the safer one first


def read_state(path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, or a torch file without code, bare or under "state_dict", DDP's prefix taken off."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {name.removeprefix("module."): value for name, value in state.items()}


def fill(model: nn.Module, state: dict[str, Tensor], source) -> nn.Module:
    """`model` with `state` in it, in eval mode; ValueError that names the keys that do not fit."""
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = [f"{k} {tuple(state[k].shape)}, not {tuple(own[k].shape)}" for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    wrong = {"it lacks": missing, "it has an unknown": unknown, "it has another shape for": other}
    if any(wrong.values()):
        said = "; ".join(f"{what} {', '.join(keys[:3])}{' ...' * (len(keys) > 3)}" for what, keys in wrong.items() if keys)
        raise ValueError(f"{source} does not fit this {type(model).__name__}: {said}")
    model.load_state_dict(state)
    return model.eval()


_NAMES = (  # of transformers and of open_clip
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
    (".layer_norm1.", ".ln_1."), (".layer_norm2.", ".ln_2."), (".self_attn.out_proj.", ".attn.out_proj."),
    (".self_attn.q_proj.", ".attn.in_proj_"), (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."),
)  # fmt: skip


def to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' CLIPModel under open_clip's names; one of open_clip comes back as it is."""
    if not any(name.startswith("vision_model.") for name in state):
        return state
    out = {}
    for name, value in state.items():
        if name.endswith("position_ids") or ".k_proj." in name or ".v_proj." in name:  # with q, below
            continue
        if ".q_proj." in name:
            value = torch.cat([state[name.replace(".q_proj.", f".{k}_proj.")] for k in "qkv"])
        if name.endswith("_projection.weight"):
            value = value.T.contiguous()
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        out[name] = value
    return out


def model_config(source: str) -> dict:
    """open_clip's model_cfg of any source that `read_clip` takes, or of an open_clip folder's path."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    if folder := _transformers_folder(source) if ":" in source else None:
        return _from_transformers(folder)
    if ":" in source:
        return open_clip.get_model_config(source)
    name, _, tag = source.partition("/")
    return open_clip.get_model_config(name) | ({"quick_gelu": True} if _quick_gelu(name, tag) else {})


def _quick_gelu(name: str, tag: str) -> bool:
    """Were these weights trained with the activation that open_clip's architecture of that name does not have?"""
    return bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu"))


def _from_transformers(folder) -> dict:
    """open_clip's model_cfg of a transformers CLIP folder, RELEASED's where it has no config.json."""
    if not (Path(folder) / "config.json").exists():
        return open_clip.get_model_config(RELEASED)
    config = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    tower = lambda c: {"width": c.hidden_size, "layers": c.num_hidden_layers, "mlp_ratio": c.intermediate_size / c.hidden_size}
    image = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
    }
    words = {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "heads": text.num_attention_heads}
    return {"embed_dim": config.projection_dim, "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": tower(vision) | image, "text_cfg": tower(text) | words}  # fmt: skip


def folder_of(source: str) -> Path:
    """The folder behind "local-dir:folder", a path, or "hf-hub:org/repo", which is downloaded if it is not there yet."""
    if source.startswith("hf-hub:"):
        return Path(snapshot_download(source.removeprefix("hf-hub:"), allow_patterns=["*.json", "*.txt", "*.safetensors", "*.bin", "*.pt"]))
    return Path(source.removeprefix("local-dir:"))


def _transformers_folder(source: str) -> Path | None:
    """The folder of a source that is in transformers' layout, else None."""
    if source.startswith("hf-hub:"):
        try:
            hf_hub_download(source.removeprefix("hf-hub:"), "open_clip_config.json")
            return None
        except EntryNotFoundError:
            return folder_of(source)
    folder = folder_of(source)
    is_one = not (folder / "open_clip_config.json").exists() and any((folder / name).exists() for name in FILES)
    return folder if is_one else None


def read_clip(source: str) -> tuple[nn.Module, object]:
    """Model in eval mode and tokenizer, of "local-dir:folder" or "hf-hub:org/repo" in open_clip's or transformers' layout, of
    "ViT-H-14/laion2b_s32b_b79k" (architecture/weights), or of "ViT-H-14/path/to/weights.pt" in either naming."""
    if folder := _transformers_folder(source) if ":" in source else None:
        config = _from_transformers(folder)
        file = next(folder / name for name in FILES if (folder / name).exists())
        return fill(_new(folder, config), to_open_clip(read_state(file)), file), _tokenizer(folder, config)
    name, _, weights = source.partition("/") if ":" not in source else (source, "", "")
    if Path(weights).is_file():
        model = open_clip.create_model(name, load_weights=False)
        return fill(model, to_open_clip(read_state(weights)), weights), open_clip.get_tokenizer(name)
    model = open_clip.create_model(
        name, pretrained=weights or None, require_pretrained=True, force_quick_gelu=":" not in source and _quick_gelu(name, weights)
    )
    return model.eval(), open_clip.get_tokenizer(name)


def _new(folder: Path, config: dict) -> open_clip.CLIP:
    """Random weights; it normalises as preprocessor_config.json says, or as CLIP does."""
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    mean, std = said.get("image_mean", open_clip.OPENAI_DATASET_MEAN), said.get("image_std", open_clip.OPENAI_DATASET_STD)
    model = open_clip.CLIP(**config)
    open_clip.set_model_preprocess_cfg(model, {"size": config["vision_cfg"]["image_size"], "mean": mean, "std": std})
    return model


def _tokenizer(folder: Path, config: dict):
    text = config["text_cfg"]
    if text["vocab_size"] == 49408:  # CLIP's own; every copy of it is the same
        return open_clip.SimpleTokenizer(context_length=text["context_length"])
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=text["context_length"])
