"""BLIP's two towers in its publishers' names, as transformers' modules, and the vocabulary beside them."""

from pathlib import Path

from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from icthp.files import read_json
from icthp.scorers.states import fill, renamed, under

_RENAMES = (  # of BLIP's own vision tower, of transformers'
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."), ("blocks.", "encoder.layers."), (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."), (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."),
)  # fmt: skip


def blip_towers(state: dict[str, Tensor], folder: Path, file: Path) -> tuple[BlipVisionModel, BlipTextModel]:
    """Filled from the names blip.visual_encoder and blip.text_encoder of a file; med_config.json of its folder says what the second is.
    FileNotFoundError, or ValueError for weights that do not fit."""
    vision, text = under("blip.visual_encoder.", state), under("blip.text_encoder.", state)
    if "cls_token" not in vision:
        raise ValueError(f"{file} has no blip.visual_encoder.cls_token: it holds no BLIP, name the released file")
    text.pop("embeddings.position_ids", None)
    return fill(_vision_tower(vision), _to_transformers(vision), file), fill(_text_tower(folder, vision), text, file)


def _vision_tower(state: dict[str, Tensor]) -> BlipVisionModel:
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    return BlipVisionModel(BlipVisionConfig(
        hidden_size=width, intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0], num_hidden_layers=layers,
        num_attention_heads=width // 64, image_size=side * patch, patch_size=patch, layer_norm_eps=1e-6))  # fmt: skip


def _to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BLIP's own names of the vision tower to transformers'."""
    last_norm = {f"post_layernorm.{name}": value for name, value in under("norm.", state).items()}
    return renamed({name: value for name, value in state.items() if not name.startswith("norm.")}, _RENAMES) | last_norm


def _text_tower(folder: Path, vision: dict[str, Tensor]) -> BlipTextModel:
    med_config = read_json(folder / "med_config.json")
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
              "vocab_size", "max_position_embeddings")  # fmt: skip
    config = BlipTextConfig(**{name: med_config[name] for name in fields}, encoder_hidden_size=vision["cls_token"].shape[-1])
    return BlipTextModel(config, add_pooling_layer=False)


def bert_tokenizer(folder: Path, special: dict, size: int) -> BertTokenizer:
    """BERT's tokenizer by vocab.txt and with `special` tokens, `size` together. transformers makes one of five tokens where the file is
    missing, so that is FileNotFoundError here, and ValueError for another size."""
    if not (folder / "vocab.txt").is_file():
        raise FileNotFoundError(f"{folder} has no vocab.txt: put that of bert-base-uncased there")
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens(special)
    if len(tokenizer) != size:
        raise ValueError(f"{folder}/vocab.txt gives {len(tokenizer)} tokens, the weights are for {size}: take that of bert-base-uncased")
    return tokenizer


def linear_head(state: dict[str, Tensor], file: Path, between: type[nn.Module]) -> nn.Module:
    """The linear layers of a head at their released places, `between` at the places without weights."""
    last = max((int(name.partition(".")[0]) for name in state), default=-1)
    weights = [state.get(f"{i}.weight") for i in range(last + 1)]
    layers = [between() if weight is None else nn.Linear(*reversed(weight.shape)) for weight in weights]
    return fill(nn.Sequential(*layers), state, file)
