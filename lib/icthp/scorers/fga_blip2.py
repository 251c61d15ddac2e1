"""FGA-BLIP2, the scorer of EvalMuse: its score, its scores of a prompt's parts, and its released file as transformers' BLIP-2."""

import re

import open_clip
import torch
from torch import Tensor
from transformers import BertTokenizer, Blip2Config, Blip2ForImageTextRetrieval

from icthp import kernels
from icthp.files import read_json
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer, apply_head, is_longer
from icthp.scorers.blip import bert_tokenizer
from icthp.scorers.states import fill, folder_of, read_state, renamed

FILE = "fga_blip2.pth"
UNUSED = ("Qformer.cls.", "mask_proj.", "temp")  # of the file: the language model's head, and two parts of the training
CONFIG = {  # EVA's ViT-g and BERT-base are transformers' defaults
    "vision_config": {"image_size": 364}, "qformer_config": {"vocab_size": 30523, "use_qformer_text_input": True},
}  # fmt: skip
_RENAMES = (  # of LAVIS, of transformers
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"), ("ln_vision.", "vision_model.post_layernorm."),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"), (".norm1.", ".layer_norm1."),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."), (".norm2.", ".layer_norm2."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."), (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."), ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."), ("Qformer.bert.", "qformer."), ("attention.self.", "attention.attention."),
    ("vision_proj.", "vision_projection."), ("text_proj.", "text_projection."),
)  # fmt: skip


class FgaBlip2Scorer(Scorer):
    """FGA-BLIP2 (arXiv 2412.18150): BLIP-2's Q-Former reads the prompt with its queries' attention to the image; 1 + 4 * the mean, over
    the queries, of the probability softmax(head)[1] that they match (DYEvaLab/EvalMuse@lavis/models/blip2_models/fga_blip2.py)."""

    score_scale = "1 to 5"
    length = 32  # tokens of the prompt that it was trained on

    def __init__(self, model: Blip2ForImageTextRetrieval, tokenizer: BertTokenizer):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def extra_repr(self) -> str:
        return f"{self.preprocessing}, length={self.length}"

    @property
    def preprocessing(self) -> Preprocessing:
        """Squashed to the square of the vision tower (364 x 364)."""
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return Preprocessing((self.model.config.vision_config.image_size,) * 2, "squash", mean=mean, std=std)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return is_longer(self.tokenizer, [clean(prompt) for prompt in prompts], self.length)

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return 1 + 4 * self._matches(pixels, prompts)[0][:, : self.model.config.num_query_tokens].mean(1)

    def element_scores(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """(b, 32): the probability of a match at each token of the prompt, [CLS] first, NaN beyond its end. The score of an element of
        the prompt is the mean over the tokens of its text, after `clean`."""
        matches, is_token = self._matches(pixels, prompts)
        return matches[:, self.model.config.num_query_tokens :].masked_fill(~is_token, torch.nan)

    def _matches(self, pixels: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """(b, queries + 32) probabilities, and (b, 32) bool: is there a token?"""
        pixels = kernels.preprocess(pixels, self.preprocessing).to(self.model.query_tokens.dtype)
        texts = [clean(prompt) for prompt in prompts]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        tokens = {"input_ids": tokens.input_ids.to(pixels.device), "attention_mask": tokens.attention_mask.to(pixels.device)}
        states = self.model(pixel_values=pixels, use_image_text_matching_head=True, **tokens).text_model_output.last_hidden_state
        return apply_head(self.model.itm_head, states).softmax(-1)[..., 1], tokens["attention_mask"].bool()


def clean(prompt: str) -> str:
    """LAVIS's blip_caption: lower case, a space for punctuation and for several spaces, 50 words."""
    text = re.sub(r"\s{2,}", " ", re.sub(r'[.!"()*#:;~]', " ", prompt.lower()))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:50])


def load_fga_blip2(source: str) -> FgaBlip2Scorer:
    """A folder or "hf-hub:org/repo" with fga_blip2.pth, bare or under LAVIS's "model", and the vocabulary of bert-base-uncased
    (vocab.txt); transformers' config.json of a BLIP-2 beside them is for another size. FileNotFoundError, or ValueError for weights
    that do not fit."""
    folder = folder_of(source)
    state = read_state(folder / FILE)
    beside = folder / "config.json"
    config = Blip2Config(**(CONFIG | (read_json(beside) if beside.is_file() else {})))
    model = fill(Blip2ForImageTextRetrieval(config), _to_transformers(state), folder / FILE)
    model.vision_model.post_layernorm.eps = 1e-5  # LAVIS's ln_vision has torch's own; transformers gives it the tower's
    tokenizer = bert_tokenizer(folder, {"bos_token": "[DEC]"}, config.qformer_config.vocab_size)
    return FgaBlip2Scorer(model, tokenizer).requires_grad_(False).eval()


def _to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LAVIS's names to transformers'; queries and values have a bias there, keys none."""
    used = {name: value for name, value in state.items() if not name.startswith(UNUSED)}
    for layer in [name.removesuffix("q_bias") for name in used if name.endswith(".q_bias") and name.replace(".q_", ".v_") in used]:
        q, v = used.pop(f"{layer}q_bias"), used.pop(f"{layer}v_bias")
        used[f"{layer}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return renamed(used, _RENAMES)
