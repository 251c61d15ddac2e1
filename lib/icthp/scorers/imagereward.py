"""ImageReward: its score, and its released layout, ImageReward.pt beside med_config.json and BERT's vocabulary, as transformers' BLIP
towers."""

from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from icthp import kernels
from icthp.preprocessing import Preprocessing, from_side
from icthp.scorers.base import Scorer, apply_head
from icthp.scorers.checkpoints import read_json
from icthp.scorers.states import fill, folder_of, read_state

_NAMES = (  # of BLIP's own vision tower and of transformers'
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."), ("blocks.", "encoder.layers."), (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."), (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."),
)  # fmt: skip


class ImageRewardScorer(Scorer):
    """ImageReward (arXiv 2304.05977): BLIP's text tower reads the prompt while it looks at the picture; linear layers on its
    first token, (r - 0.1672) / 1.0333."""

    score_scale = "standard deviations of ImageReward's own data"
    length = 35  # tokens that its text tower reads

    def __init__(self, vision: nn.Module, text: nn.Module, head_: nn.Module, tokenizer):
        super().__init__()
        self.vision, self.text, self.head, self.tokenizer = vision, text, head_, tokenizer

    def extra_repr(self) -> str:
        return f"{self.preprocessing}, length={self.length}"

    @property
    def preprocessing(self) -> Preprocessing:
        """CLIP's own preprocessing at the side of the vision tower."""
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return from_side(self.vision.config.image_size)._replace(mean=mean, std=std)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return torch.tensor(
            [len(ids) > self.length for ids in self.tokenizer(list(prompts)).input_ids] if prompts else [], dtype=torch.bool
        )

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = kernels.preprocess(pixels, self.preprocessing).to(self.vision.embeddings.class_embedding.dtype)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt").to(
            pixels.device
        )
        told = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen)
        return (apply_head(self.head, told.last_hidden_state[:, 0]).squeeze(-1) - 0.16717362830052426) / 1.0333394966054072


def load(source: str) -> tuple[nn.Module, nn.Module, nn.Module, object]:
    """Vision tower, text tower, head and tokenizer of a folder or "hf-hub:org/repo" with ImageReward.pt, med_config.json and the
    vocabulary of bert-base-uncased (vocab.txt), to which BLIP's two tokens are added."""
    folder = folder_of(source)
    state = read_state(folder / "ImageReward.pt")
    under = lambda prefix: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    vision, text, head = under("blip.visual_encoder."), under("blip.text_encoder."), under("mlp.layers.")
    text.pop("embeddings.position_ids", None)
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    layers = [nn.Linear(*reversed(w.shape)) if (w := head.get(f"{i}.weight")) is not None else nn.Dropout(0.1) for i in range(8)]
    return (fill(_vision(vision), _renamed(vision), folder), fill(_text(folder, vision), text, folder),
            fill(nn.Sequential(*layers), head, folder), tokenizer)  # fmt: skip


def _vision(state: dict[str, Tensor]) -> BlipVisionModel:
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    return BlipVisionModel(BlipVisionConfig(
        hidden_size=width, intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0], num_hidden_layers=layers,
        num_attention_heads=width // 64, image_size=side * patch, patch_size=patch, layer_norm_eps=1e-6))  # fmt: skip


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        name = f"post_layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        out[name] = value
    return out


def _text(folder: Path, vision: dict[str, Tensor]) -> BlipTextModel:
    med = read_json(folder / "med_config.json")
    taken = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
             "vocab_size", "max_position_embeddings")  # fmt: skip
    config = BlipTextConfig(**{name: med[name] for name in taken}, encoder_hidden_size=vision["cls_token"].shape[-1])
    return BlipTextModel(config, add_pooling_layer=False)
