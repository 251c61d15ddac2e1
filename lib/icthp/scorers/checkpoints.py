"""CLIPs in their publishers' layouts: open_clip's folders and files, transformers' `CLIPModel` folders and files (PickScore, the released
ICT and HP). Nothing that comes with the weights is run, and every key must fit."""

import copy
from pathlib import Path

import open_clip
import torch
from open_clip.convert import convert_state_dict
from torch import Tensor, nn

from icthp import preprocessing
from icthp.files import read_json
from icthp.preprocessing import Preprocessing
from icthp.scorers import configs
from icthp.scorers.states import FILES, check_finite, clip_folder, fill, read_state, weights_in
from icthp.scorers.tokenizers import FolderTokenizer, load_tokenizer

_RENAMES = (  # of transformers, of open_clip
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


def read_clip(source: str, **options) -> tuple[nn.Module, object]:
    """Model in eval mode, with its preprocessing (`visual.preprocess_cfg`), and tokenizer, of "local-dir:folder" or "hf-hub:org/repo" in
    open_clip's or transformers' layout, of "ViT-H-14/laion2b_s32b_b79k" (architecture/weights), or of "ViT-H-14/path/to/weights.pt" in
    either naming. Such a file is taken to have the architecture's own activation and CLIP's preprocessing unless a config beside it
    says more. options: snapshot_download's. Raises ValueError, FileNotFoundError."""
    if ":" in source:
        folder = clip_folder(source, **options)
        return _read_open_clip(folder, source) if configs.is_open_clip(folder) else _read_transformers(folder)
    name, tag = configs.split_source(source)
    quick_gelu = configs.uses_quick_gelu(name, tag)
    model = _read_file(name, tag, quick_gelu) if Path(tag).is_file() else _read_pretrained(name, tag, quick_gelu, source)
    return model, open_clip.get_tokenizer(name)


def _read_file(name: str, file: str, quick_gelu: bool) -> nn.Module:
    """open_clip's architecture `name` with the weights in a file."""
    model = _new(configs.named_config(name, quick_gelu))
    fill(model, to_open_clip(read_state(file)), file)
    _set_preprocessing(model, _preprocessing_beside(file, model))
    return model


def _read_pretrained(name: str, tag: str, quick_gelu: bool, source: str) -> nn.Module:
    """open_clip's architecture `name` with weights that it fetches."""
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    config = dict(open_clip.get_pretrained_cfg(name, tag) or {}, size=size)
    preprocessing.from_open_clip(config, source)  # refused before gigabytes are fetched
    model = open_clip.create_model(name, pretrained=tag or None, require_pretrained=True, force_quick_gelu=quick_gelu)
    check_finite(model.state_dict(), source)
    return model.eval()


def _read_open_clip(folder: Path, source: str) -> tuple[nn.Module, object]:
    path = folder / configs.CONFIG
    is_local = not source.startswith("hf-hub:")
    config = configs.read_open_clip_config(folder, is_local)
    file = _find_weights(folder, source)
    try:
        model = _new(config["model_cfg"])
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, AssertionError, OSError) as error:
        raise ValueError(f"{path} describes no model that open_clip builds: {error}") from error
    state = convert_state_dict(model, to_open_clip(read_state(file)))
    scalars = {k: v.reshape(()) for k, v in state.items() if k in ("logit_scale", "logit_bias") and v.numel() == 1}
    fill(model, state | scalars, file)
    preprocess_cfg = dict(config.get("preprocess_cfg") or {}, size=model.visual.image_size)
    _set_preprocessing(model, preprocessing.from_open_clip(preprocess_cfg, path))
    return model, load_tokenizer(folder, config["model_cfg"]["text_cfg"], is_local)


def _read_transformers(folder: Path) -> tuple[nn.Module, object]:
    file = _find_weights(folder, folder)
    config = configs.read_transformers_config(folder)
    model = _new(config)
    fill(model, to_open_clip(read_state(file)), file)
    _set_preprocessing(model, _transformers_preprocessing(folder, config["vision_cfg"]["image_size"]))
    text = config["text_cfg"]
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return model, FolderTokenizer(folder, text["context_length"])
    return model, load_tokenizer(folder, text, True)  # CLIP's own tokens, as open_clip reads them


def _find_weights(folder: Path, source) -> Path:
    file = weights_in(folder)
    if file is None:
        raise FileNotFoundError(f"{source} has no weights: looked for {', '.join(FILES[:3])} and the like; name the publisher's folder")
    return file


def _new(config: dict) -> nn.Module:
    """Random weights of open_clip's class for a model_cfg, as its create_model chooses it; no tower fetches weights of its own."""
    config = copy.deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    if not config.pop("custom_text", False) and "hf_model_name" not in text:
        return open_clip.CLIP(**config)
    return open_clip.CoCa(**config) if "multimodal_cfg" in config else open_clip.CustomTextCLIP(**config)


def to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' CLIPModel under open_clip's names; one of open_clip is returned unchanged."""
    if not any(name.startswith("vision_model.") for name in state):
        return state
    out = {}
    for name, value in state.items():
        if name.endswith("position_ids") or ".k_proj." in name or ".v_proj." in name:  # joined with q, below
            continue
        if ".q_proj." in name:
            value = torch.cat([state[name.replace(".q_proj.", f".{k}_proj.")] for k in "qkv"])
        if name.endswith("_projection.weight"):
            value = value.T.contiguous()
        for old, new in _RENAMES:
            name = name.replace(old, new)
        out[name] = value
    return out


# ---- preprocessing ----------------------------------------------------------------------------------------------------


def _set_preprocessing(model: nn.Module, config: Preprocessing) -> None:
    open_clip.set_model_preprocess_cfg(model, preprocessing.to_open_clip(config))


def _preprocessing_beside(file: str, model: nn.Module) -> Preprocessing:
    """By the config beside a file of weights, else the architecture's own."""
    folder = Path(file).parent
    config = configs.config_beside(file)
    if "model_cfg" in config:
        preprocess_cfg = (config.get("preprocess_cfg") or {}) | {"size": model.visual.image_size}
        return preprocessing.from_open_clip(preprocess_cfg, folder / configs.CONFIG)
    own = preprocessing.from_open_clip({"size": model.visual.image_size}, file)
    return _transformers_preprocessing(folder, own.size[0]) if "vision_config" in config else own


def _transformers_preprocessing(folder: Path, side: int) -> Preprocessing:
    """By preprocessor_config.json, or processor_config.json of newer versions, else CLIP's own."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return preprocessing.from_transformers(read_json(path), side, path)
    path = folder / "processor_config.json"
    if path.is_file() and "image_processor" in (config := read_json(path)):
        return preprocessing.from_transformers(config["image_processor"], side, path)
    return preprocessing.from_side(side)._replace(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
