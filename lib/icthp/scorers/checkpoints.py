"""CLIPs in their publishers' layouts: open_clip's folders and files, transformers' `CLIPModel` folders and files (PickScore, the released
ICT and HP). Nothing that comes with the weights is run, and every key must fit."""

import copy
import json
from pathlib import Path

import open_clip
import torch
from open_clip.convert import convert_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPConfig

from icthp import preprocessing
from icthp.scorers.states import FILES, check_finite, clip_folder, fill, read_state, weights_in

RELEASED = "ViT-H-14"  # the architecture of a folder that holds weights and no config, as 8y/ICT's and 8y/HP's do
TOKENIZER = {"clean", "strip_sep_token", "language", "reduction_mask"}  # what a config may hand to open_clip's tokenizers
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


def model_config(source: str, **options) -> dict:
    """open_clip's model_cfg of any source that `read_clip` takes, or of an open_clip folder's path."""
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    if ":" in source:
        folder = clip_folder(source, **options)
        local = not source.startswith("hf-hub:")
        return _open_clip_config(folder, local)["model_cfg"] if _is_open_clip(folder) else _from_transformers(folder)
    name, tag = _split(source)
    return open_clip.get_model_config(name) | ({"quick_gelu": True} if _quick_gelu(name, tag) else {})


def _quick_gelu(name: str, tag: str) -> bool:
    """Were these weights trained with the activation that open_clip's architecture of that name does not have? A tag's config says it; of a
    file, the open_clip_config.json or config.json beside it; a file alone is taken to have the architecture's own."""
    beside = _beside(tag)
    if "model_cfg" in beside:
        return bool(beside["model_cfg"].get("quick_gelu"))
    if "vision_config" in beside:
        return CLIPConfig(**beside).vision_config.hidden_act == "quick_gelu"
    return bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu"))


def _beside(file: str) -> dict:
    """What the open_clip_config.json or else the config.json of a CLIP says beside a file of weights."""
    folder = Path(file).parent
    for name, key in (("open_clip_config.json", "model_cfg"), ("config.json", "vision_config")):
        if Path(file).is_file() and (folder / name).is_file() and key in (said := read_json(folder / name)):
            return said if said.get("model_type", "clip") == "clip" else {}
    return {}


def read_json(path: Path) -> dict:
    """The fields of a JSON file; FileNotFoundError, or ValueError that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds a {type(said).__name__}, not fields")
    return said


def _from_transformers(folder) -> dict:
    """open_clip's model_cfg of a transformers CLIP folder, RELEASED's where it has no config.json. Raises ValueError for towers that
    open_clip cannot build."""
    path = Path(folder) / "config.json"
    if not path.exists():
        return open_clip.get_model_config(RELEASED)
    if read_json(path).get("model_type", "clip") != "clip":
        raise ValueError(f"{path}: `model_type` is {read_json(path)['model_type']!r}; only clip is read")
    config = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    _buildable(path, vision, text)
    tower = lambda c: {"width": c.hidden_size, "layers": c.num_hidden_layers, "mlp_ratio": c.intermediate_size / c.hidden_size}
    image = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
    }
    words = {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "heads": text.num_attention_heads}
    return {"embed_dim": config.projection_dim, "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": tower(vision) | image, "text_cfg": tower(text) | words}  # fmt: skip


def _buildable(path: Path, vision, text) -> None:
    """open_clip's towers share one activation, gelu or quick_gelu, and end a text at the highest token."""
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in ("gelu", "quick_gelu"):
        raise ValueError(f"{path}: `hidden_act` is {vision.hidden_act} and {text.hidden_act}; both towers need gelu, or both quick_gelu")
    for tower in (vision, text):
        if abs(tower.layer_norm_eps - 1e-5) > 1e-9:
            raise ValueError(f"{path}: `layer_norm_eps` is {tower.layer_norm_eps}; open_clip's towers have 1e-5")
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2: of old configs, read as the highest
        raise ValueError(f"{path}: `eos_token_id` is {text.eos_token_id}, not the last of {text.vocab_size} tokens")


def _is_open_clip(folder: Path) -> bool:
    return (folder / "open_clip_config.json").exists()


def _open_clip_config(folder: Path, local: bool = True) -> dict:
    """open_clip_config.json, checked: ValueError for a field that would run code, or of a `local` folder one that reaches for the Hub."""
    path = folder / "open_clip_config.json"
    said = read_json(path)
    model = said.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(k), dict) for k in ("vision_cfg", "text_cfg")):
        raise ValueError(f"{path} lacks `model_cfg` with its `vision_cfg` and `text_cfg`")
    text, vision, more = model["text_cfg"], model["vision_cfg"], model["text_cfg"].get("tokenizer_kwargs") or {}
    harmless = isinstance(more, dict) and all(k in TOKENIZER and isinstance(v, (str, bool, int)) for k, v in more.items())
    if not harmless:
        raise ValueError(
            f"{path}: `text_cfg.tokenizer_kwargs` is {more!r}; only {', '.join(sorted(TOKENIZER))} are read, nothing runs code"
        )
    if ":" in str(vision.get("timm_model_name", "")):
        raise ValueError(f"{path}: `vision_cfg.timm_model_name` is {vision['timm_model_name']!r}; name an architecture, not a place")
    if name := text.get("hf_model_name"):
        if local:
            raise ValueError(f"{path}: `text_cfg.hf_model_name` is {name!r} of the Hub, which a local folder may not reach; use hf-hub:")
        AutoConfig.from_pretrained(name, trust_remote_code=False)  # refuses a text tower that comes as code
    return said


def _split(source: str) -> tuple[str, str]:
    """Architecture and tag or file of "ViT-H-14/laion2b_s32b_b79k" or "ViT-H-14/path/to/weights.pt". Raises FileNotFoundError for a path
    that is not there, ValueError for an unknown tag."""
    name, _, tag = source.partition("/")
    if name not in open_clip.list_models():
        raise FileNotFoundError(f"{source} is neither a folder that is there nor one of open_clip's architectures and a / with its weights")
    if tag and not Path(tag).is_file() and not open_clip.get_pretrained_cfg(name, tag):
        if "/" in tag or Path(tag).suffix:
            raise FileNotFoundError(f"{tag} is not there: name the file of the weights of {name}")
        raise ValueError(f"open_clip has no weights {tag!r} of {name}: it has {', '.join(open_clip.list_pretrained_tags_by_model(name))}")
    return name, tag


def read_clip(source: str, **options) -> tuple[nn.Module, object]:
    """Model in eval mode, with its recipe (`visual.preprocess_cfg`), and tokenizer, of "local-dir:folder" or "hf-hub:org/repo" in
    open_clip's or transformers' layout, of "ViT-H-14/laion2b_s32b_b79k" (architecture/weights), or of "ViT-H-14/path/to/weights.pt" in
    either naming, which is taken to have the architecture's own activation and CLIP's preprocessing unless a config beside it says more.
    options: snapshot_download's. Raises ValueError, FileNotFoundError."""
    if ":" in source:
        folder = clip_folder(source, **options)
        return _read_open_clip(folder, source) if _is_open_clip(folder) else _read_transformers(folder)
    name, tag = _split(source)
    quick = _quick_gelu(name, tag)
    if Path(tag).is_file():
        model = _new(open_clip.get_model_config(name) | ({"quick_gelu": True} if quick else {}))
        fill(model, to_open_clip(read_state(tag)), tag)
        _state_recipe(model, _stated_beside(tag, model))
        return model, open_clip.get_tokenizer(name)
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    preprocessing.from_open_clip(
        dict(open_clip.get_pretrained_cfg(name, tag) or {}, size=size), source
    )  # refused before gigabytes are fetched
    model = open_clip.create_model(name, pretrained=tag or None, require_pretrained=True, force_quick_gelu=quick)
    check_finite(model.state_dict(), source)
    return model.eval(), open_clip.get_tokenizer(name)


def _new(config: dict) -> nn.Module:
    """Random weights of open_clip's class for a model_cfg, as its create_model chooses it; no tower fetches weights of its own."""
    config = copy.deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    return kind(**config)


def _state_recipe(model: nn.Module, stated: preprocessing.Preprocessing) -> None:
    open_clip.set_model_preprocess_cfg(model, preprocessing.to_open_clip(stated))


def _stated_beside(file: str, model: nn.Module) -> preprocessing.Preprocessing:
    """The recipe in the config beside a file of weights, else the architecture's own."""
    folder, said = Path(file).parent, _beside(file)
    if "model_cfg" in said:
        stated = said.get("preprocess_cfg") or {}
        return preprocessing.from_open_clip(stated | {"size": model.visual.image_size}, folder / "open_clip_config.json")
    own = preprocessing.from_open_clip({"size": model.visual.image_size}, file)
    return _transformers_recipe(folder, own.size[0]) if "vision_config" in said else own


def _read_open_clip(folder: Path, source: str) -> tuple[nn.Module, object]:
    path, local = folder / "open_clip_config.json", not source.startswith("hf-hub:")
    said = _open_clip_config(folder, local)
    file = _found(folder, source)
    try:
        model = _new(said["model_cfg"])
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, AssertionError, OSError) as error:
        raise ValueError(f"{path} describes no model that open_clip builds: {error}") from error
    state = convert_state_dict(model, to_open_clip(read_state(file)))
    scalars = {k: v.reshape(()) for k, v in state.items() if k in ("logit_scale", "logit_bias") and v.numel() == 1}
    fill(model, state | scalars, file)
    stated = dict(said.get("preprocess_cfg") or {}, size=model.visual.image_size)
    _state_recipe(model, preprocessing.from_open_clip(stated, path))
    return model, _tokenizer(folder, said["model_cfg"]["text_cfg"], local)


def _read_transformers(folder: Path) -> tuple[nn.Module, object]:
    file, config = _found(folder, folder), _from_transformers(folder)
    model = _new(config)
    fill(model, to_open_clip(read_state(file)), file)
    _state_recipe(model, _transformers_recipe(folder, config["vision_cfg"]["image_size"]))
    text = config["text_cfg"]
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return model, FolderTokenizer(folder, text["context_length"])
    return model, _tokenizer(folder, text, True)  # CLIP's own tokens, as open_clip reads them


class FolderTokenizer:
    """A transformers folder's own tokenizer under open_clip's interface. It reads a text as it is, where open_clip's own mends quotes,
    entities and white space first: PickScore, say, was trained without that."""

    def __init__(self, folder: Path, context_length: int):
        self.context_length = context_length
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{folder} has no tokenizer that can be read: {why}") from error

    def __call__(self, texts: list[str] | str, context_length: int | None = None) -> Tensor:
        """(b, context_length) int64, cut there."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.tokenizer(texts, padding="max_length", truncation=True, max_length=context_length or self.context_length,
                              return_tensors="pt").input_ids  # fmt: skip


def _found(folder: Path, source) -> Path:
    if (file := weights_in(folder)) is None:
        raise FileNotFoundError(f"{source} has no weights: looked for {', '.join(FILES[:3])} and the like; name the publisher's folder")
    return file


def _transformers_recipe(folder: Path, side: int) -> preprocessing.Preprocessing:
    """What preprocessor_config.json, or processor_config.json of newer versions, says; CLIP's own where there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path := folder / name).is_file():
            said = read_json(path)
            if name.startswith("pre") or "image_processor" in said:
                return preprocessing.from_transformers(said if name.startswith("pre") else said["image_processor"], side, path)
    return preprocessing.from_side(side)._replace(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)


def _tokenizer(folder: Path, text: dict, local: bool):
    """open_clip's own tokenizer, or the one that the config names, of a `local` folder the one inside it; no code of theirs is run."""
    more = text.get("tokenizer_kwargs") or {}
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    inside = local or (folder / "tokenizer_config.json").exists()
    place = str(folder) if inside else text.get("hf_tokenizer_name")
    try:
        if not text.get("hf_tokenizer_name"):
            return open_clip.SimpleTokenizer(context_length=length, **more)
        return open_clip.tokenizer.HFTokenizer(place, context_length=length, tokenizer_mode=text.get("tokenizer_mode"),
                                               trust_remote_code=False, local_files_only=inside, **more)  # fmt: skip
    except (ValueError, OSError, KeyError, TypeError, ImportError, AttributeError, AssertionError) as error:
        if inside and (folder / "tokenizer_config.json").exists() and "auto_map" in read_json(folder / "tokenizer_config.json"):
            raise ValueError(f"{folder}/tokenizer_config.json: `auto_map` asks for Python of the folder, which is never run") from error
        raise ValueError(f"{place} has no tokenizer that can be read: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
