"""ImageReward: its score, and its released layout, ImageReward.pt beside med_config.json and BERT's vocabulary, as transformers' BLIP
towers."""

from pathlib import Path

import open_clip
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

from icthp import kernels
from icthp.preprocessing import Preprocessing, from_side
from icthp.scorers.base import Scorer, apply_head, is_longer
from icthp.scorers.blip import bert_tokenizer, blip_towers, linear_head
from icthp.scorers.states import folder_of, read_state, under


class ImageRewardScorer(Scorer):
    """ImageReward (arXiv 2304.05977): BLIP's text tower reads the prompt with attention to the image; linear layers on its
    first token, (r - 0.1672) / 1.0333."""

    score_scale = "standard deviations of ImageReward's own data"
    length = 35  # tokens that its text tower reads
    mean, std = 0.16717362830052426, 1.0333394966054072  # of the raw score on ImageReward's own data

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
        return is_longer(self.tokenizer, prompts, self.length)

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = kernels.preprocess(pixels, self.preprocessing).to(self.vision.embeddings.class_embedding.dtype)
        image_states = self.vision(pixel_values=pixels).last_hidden_state
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        tokens = tokens.to(pixels.device)
        text_states = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=image_states)
        return (apply_head(self.head, text_states.last_hidden_state[:, 0]).squeeze(-1) - self.mean) / self.std


def load_imagereward(source: str) -> ImageRewardScorer:
    """A folder or "hf-hub:org/repo" with ImageReward.pt, med_config.json and the vocabulary of bert-base-uncased (vocab.txt), to which
    BLIP's two tokens are added. FileNotFoundError, or ValueError for weights that do not fit."""
    return load_blip_scorer(ImageRewardScorer, folder_of(source), "ImageReward.pt", nn.Dropout)


def load_blip_scorer(scorer_class: type[ImageRewardScorer], folder: Path, name: str, between: type[nn.Module]) -> ImageRewardScorer:
    """A scorer of ImageReward's form from a file of a folder; between: what lies between the linear layers of its head."""
    state = read_state(folder / name)
    vision, text = blip_towers(state, folder, folder / name)
    head = linear_head(under("mlp.layers.", state), folder / name, between)
    special = {"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]}
    scorer = scorer_class(vision, text, head, bert_tokenizer(folder, special, text.config.vocab_size))
    return scorer.requires_grad_(False).eval()
