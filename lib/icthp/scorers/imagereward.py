"""ImageReward: its score, and its released layout, ImageReward.pt beside med_config.json and BERT's vocabulary, as transformers' BLIP
towers."""

from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from icthp import kernels
from icthp.files import read_json
from icthp.preprocessing import Preprocessing, from_side
from icthp.scorers.base import Scorer, apply_head
from icthp.scorers.states import fill, folder_of, read_state

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score on ImageReward's own data
_RENAMES = (  # of BLIP's own vision tower, of transformers'
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."), ("blocks.", "encoder.layers."), (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."), (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."),
)  # fmt: skip


class ImageRewardScorer(Scorer):
    """ImageReward (arXiv 2304.05977): BLIP's text tower reads the prompt with attention to the image; linear layers on its
    first token, (r - 0.1672) / 1.0333."""

    score_scale = "standard deviations of ImageReward's own data"
    length = 35  # tokens that its text tower reads

    def __init__(self, vision: BlipVisionModel, text: BlipTextModel, head: nn.Module, tokenizer: BertTokenizer):
        super().__init__()
        self.vision = vision
        self.text = text
        self.head = head
        self.tokenizer = tokenizer

    def extra_repr(self) -> str:
        return f"{self.preprocessing}, length={self.length}"

    @property
    def preprocessing(self) -> Preprocessing:
        """CLIP's own preprocessing at the side of the vision tower."""
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return from_side(self.vision.config.image_size)._replace(mean=mean, std=std)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        lengths = [len(ids) for ids in self.tokenizer(list(prompts)).input_ids] if prompts else []
        return torch.tensor([length > self.length for length in lengths], dtype=torch.bool)

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = kernels.preprocess(pixels, self.preprocessing).to(self.vision.embeddings.class_embedding.dtype)
        image_states = self.vision(pixel_values=pixels).last_hidden_state
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        tokens = tokens.to(pixels.device)
        text_states = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=image_states)
        return (apply_head(self.head, text_states.last_hidden_state[:, 0]).squeeze(-1) - MEAN) / STD


def load_imagereward(source: str) -> ImageRewardScorer:
    """A folder or "hf-hub:org/repo" with ImageReward.pt, med_config.json and the vocabulary of bert-base-uncased (vocab.txt), to which
    BLIP's two tokens are added. FileNotFoundError, or ValueError for weights that do not fit."""
    folder = folder_of(source)
    state = read_state(folder / "ImageReward.pt")
    vision = _under("blip.visual_encoder.", state)
    text = _under("blip.text_encoder.", state)
    text.pop("embeddings.position_ids", None)
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return ImageRewardScorer(
        fill(_vision_tower(vision), _rename(vision), folder),
        fill(_text_tower(folder, vision), text, folder),
        _head(_under("mlp.layers.", state), folder),
        tokenizer,
    )


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _head(state: dict[str, Tensor], folder: Path) -> nn.Module:
    """Linear layers at the released places 0 to 7, dropout between them."""
    layers = []
    for i in range(8):
        weight = state.get(f"{i}.weight")
        layers.append(nn.Dropout(0.1) if weight is None else nn.Linear(*reversed(weight.shape)))
    return fill(nn.Sequential(*layers), state, folder)


def _vision_tower(state: dict[str, Tensor]) -> BlipVisionModel:
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    return BlipVisionModel(BlipVisionConfig(
        hidden_size=width, intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0], num_hidden_layers=layers,
        num_attention_heads=width // 64, image_size=side * patch, patch_size=patch, layer_norm_eps=1e-6))  # fmt: skip


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BLIP's own names of the vision tower to transformers'."""
    out = {}
    for name, value in state.items():
        name = f"post_layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for old, new in _RENAMES:
            name = name.replace(old, new)
        out[name] = value
    return out


def _text_tower(folder: Path, vision: dict[str, Tensor]) -> BlipTextModel:
    med_config = read_json(folder / "med_config.json")
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
              "vocab_size", "max_position_embeddings")  # fmt: skip
    config = BlipTextConfig(**{name: med_config[name] for name in fields}, encoder_hidden_size=vision["cls_token"].shape[-1])
    return BlipTextModel(config, add_pooling_layer=False)
