"""Architectures of CLIPs, as open_clip's `model_cfg`, from the files of their publishers: open_clip's own, transformers' `CLIPConfig`, or
a name of open_clip's. A field that would run code, or that open_clip cannot build, is refused by name."""

from pathlib import Path

import open_clip
from transformers import AutoConfig, CLIPConfig

from icthp.files import read_json
from icthp.scorers.states import clip_folder

DEFAULT_ARCHITECTURE = "ViT-H-14"  # of a folder with weights and no config, such as 8y/ICT's and 8y/HP's
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language", "reduction_mask"}  # what a config may hand to open_clip's tokenizers
CONFIG = "open_clip_config.json"


def model_config(source: str, **options) -> dict:
    """open_clip's model_cfg of any source that `read_clip` takes, or of an open_clip folder's path. options: snapshot_download's."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    if ":" in source:
        folder = clip_folder(source, **options)
        is_local = not source.startswith("hf-hub:")
        return read_open_clip_config(folder, is_local)["model_cfg"] if is_open_clip(folder) else read_transformers_config(folder)
    name, tag = split_source(source)
    return named_config(name, uses_quick_gelu(name, tag))


def named_config(name: str, quick_gelu: bool) -> dict:
    """open_clip's model_cfg of an architecture's name, with quick_gelu for its activation if asked."""
    return open_clip.get_model_config(name) | ({"quick_gelu": True} if quick_gelu else {})


def split_source(source: str) -> tuple[str, str]:
    """Architecture and tag or file of "ViT-H-14/laion2b_s32b_b79k" or "ViT-H-14/path/to/weights.pt". Raises FileNotFoundError for a file
    that is missing, ValueError for an unknown tag."""
    name, _, tag = source.partition("/")
    if name not in open_clip.list_models():
        raise FileNotFoundError(f"{source} is neither a folder that is there nor one of open_clip's architectures and a / with its weights")
    if tag and not Path(tag).is_file() and not open_clip.get_pretrained_cfg(name, tag):
        if "/" in tag or Path(tag).suffix:
            raise FileNotFoundError(f"{tag} is not there: name the file of the weights of {name}")
        raise ValueError(f"open_clip has no weights {tag!r} of {name}: it has {', '.join(open_clip.list_pretrained_tags_by_model(name))}")
    return name, tag


def uses_quick_gelu(name: str, tag: str) -> bool:
    """Were these weights trained with quick_gelu, though open_clip's architecture of that name has gelu? A tag's config says it; for a
    file, the open_clip_config.json or config.json beside it; a file alone is taken to have the architecture's own activation."""
    config = config_beside(tag)
    if "model_cfg" in config:
        return bool(config["model_cfg"].get("quick_gelu"))
    if "vision_config" in config:
        return CLIPConfig(**config).vision_config.hidden_act == "quick_gelu"
    return bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu"))


def config_beside(file: str) -> dict:
    """The open_clip_config.json, or else the config.json of a CLIP, beside a file of weights; {} if neither is there."""
    if not Path(file).is_file():
        return {}
    for name, key in ((CONFIG, "model_cfg"), ("config.json", "vision_config")):
        path = Path(file).parent / name
        config = read_json(path) if path.is_file() else {}
        if key in config:
            return config if config.get("model_type", "clip") == "clip" else {}
    return {}


# ---- open_clip's folders ----------------------------------------------------------------------------------------------


def is_open_clip(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def read_open_clip_config(folder: Path, is_local: bool = True) -> dict:
    """open_clip_config.json, checked: ValueError for a field that would run code, or of a local folder one that reaches for the Hub."""
    path = folder / CONFIG
    config = read_json(path)
    model = config.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(k), dict) for k in ("vision_cfg", "text_cfg")):
        raise ValueError(f"{path} lacks `model_cfg` with its `vision_cfg` and `text_cfg`")
    _check_tokenizer_options(path, model["text_cfg"].get("tokenizer_kwargs") or {})
    _check_tower_names(path, model, is_local)
    return config


def _check_tokenizer_options(path: Path, options) -> None:
    harmless = isinstance(options, dict) and all(k in TOKENIZER_OPTIONS and isinstance(v, (str, bool, int)) for k, v in options.items())
    if not harmless:
        allowed = ", ".join(sorted(TOKENIZER_OPTIONS))
        raise ValueError(f"{path}: `text_cfg.tokenizer_kwargs` is {options!r}; only {allowed} are read, nothing runs code")


def _check_tower_names(path: Path, model: dict, is_local: bool) -> None:
    timm_name = model["vision_cfg"].get("timm_model_name", "")
    if ":" in str(timm_name):
        raise ValueError(f"{path}: `vision_cfg.timm_model_name` is {timm_name!r}; name an architecture, not a place")
    if name := model["text_cfg"].get("hf_model_name"):
        if is_local:
            raise ValueError(f"{path}: `text_cfg.hf_model_name` is {name!r} of the Hub, which a local folder may not reach; use hf-hub:")
        AutoConfig.from_pretrained(name, trust_remote_code=False)  # refuses a text tower that comes as code


# ---- transformers' folders --------------------------------------------------------------------------------------------


def read_transformers_config(folder) -> dict:
    """open_clip's model_cfg of a transformers CLIP folder, DEFAULT_ARCHITECTURE's if it has no config.json. Raises ValueError for towers
    that open_clip cannot build."""
    path = Path(folder) / "config.json"
    if not path.exists():
        return open_clip.get_model_config(DEFAULT_ARCHITECTURE)
    model_type = read_json(path).get("model_type", "clip")
    if model_type != "clip":
        raise ValueError(f"{path}: `model_type` is {model_type!r}; only clip is read")
    config = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    _check_buildable(path, vision, text)
    image = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
    }
    tokens = {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "heads": text.num_attention_heads}
    return {"embed_dim": config.projection_dim, "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": _tower(vision) | image, "text_cfg": _tower(text) | tokens}  # fmt: skip


def _tower(config) -> dict:
    return {"width": config.hidden_size, "layers": config.num_hidden_layers, "mlp_ratio": config.intermediate_size / config.hidden_size}


def _check_buildable(path: Path, vision, text) -> None:
    """open_clip's towers share one activation, gelu or quick_gelu, and end a text at the highest token."""
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in ("gelu", "quick_gelu"):
        raise ValueError(f"{path}: `hidden_act` is {vision.hidden_act} and {text.hidden_act}; both towers need gelu, or both quick_gelu")
    for tower in (vision, text):
        if abs(tower.layer_norm_eps - 1e-5) > 1e-9:
            raise ValueError(f"{path}: `layer_norm_eps` is {tower.layer_norm_eps}; open_clip's towers have 1e-5")
    if text.eos_token_id not in (2, text.vocab_size - 1):  # old configs say 2 and mean the highest
        raise ValueError(f"{path}: `eos_token_id` is {text.eos_token_id}, not the last of {text.vocab_size} tokens")
