"""VQAScore: the probability of the answer "Yes" by CLIP-FlanT5, from its published folder, differentiable in the pixels."""

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration
from transformers.initialization import no_init_weights

from icthp import kernels
from icthp.files import read_json
from icthp.losses import upcast
from icthp.preprocessing import Preprocessing, from_side
from icthp.scorers.base import Scorer
from icthp.scorers.states import fill, folder_of, read_state, under, weights_in
from icthp.scorers.yes_no import QUESTION

# The text around picture and question: linzhiqiu/t2v_metrics@t2v_metrics/constants.py and models/vqascore_models/clip_t5_model.py.
BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers "
    "to the user's questions. USER: "
)
AFTER = "\n" + QUESTION + " ASSISTANT: "
ANSWER = "Yes"
ALIASES = ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # of shared.weight
TOWER = "vision_tower.vision_tower.vision_model."
# Weights from which the sizes are read.
SHAPES = ("shared.weight", "mm_projector.0.weight", *(f"{TOWER}{name}" for name in (
    "embeddings.class_embedding", "embeddings.position_embedding.weight", "embeddings.patch_embedding.weight",
    "encoder.layers.0.mlp.fc1.bias")))  # fmt: skip
T5_FIELDS = ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "relative_attention_num_buckets",
             "relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj", "tie_word_embeddings", "pad_token_id",
             "eos_token_id", "decoder_start_token_id")  # fmt: skip


class VqaScorer(Scorer):
    """VQAScore (arXiv 2404.01291, linzhiqiu/t2v_metrics@t2v_metrics/models/vqascore_models/clip_t5_model.py): CLIP's patches of its last
    but one layer, two linear layers with GELU between, and T5 reads them before the question; exp(mean log P) over the tokens of "Yes"
    and the end token, which is sqrt(P(Yes) P(end))."""

    score_scale = "geometric mean probability of the answer's tokens"
    length = 2048  # tokens of text and picture's place that it reads

    def __init__(self, vision: nn.Module, projector: nn.Module, text: nn.Module, tokenizer):
        super().__init__()
        self.vision = vision
        self.projector = projector
        self.text = text
        self.tokenizer = tokenizer

    def extra_repr(self) -> str:
        return f"{self.preprocessing}, length={self.length}"

    @property
    def preprocessing(self) -> Preprocessing:
        """CLIP's own, of pictures that are square by then."""
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return from_side(self.vision.config.image_size)._replace(mean=mean, std=std)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return torch.tensor([len(self._ids(BEFORE)) + 1 + len(self._question(p)) > self.length for p in prompts], dtype=torch.bool)

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        embed = self.text.get_input_embeddings()
        before = embed(self._ids(BEFORE).to(pixels.device)).expand(len(pixels), -1, -1)
        picture = self.image_features(pixels)
        questions = [self._question(prompt)[: self.length - 1 - before.shape[1]] for prompt in prompts]
        after = pad_sequence(questions, batch_first=True, padding_value=-1).to(pixels.device)
        mask = F.pad(after >= 0, (before.shape[1] + picture.shape[1], 0), value=True)
        labels = self._ids(ANSWER).to(pixels.device).repeat(len(pixels), 1)
        inputs = torch.cat([before, picture, embed(after.clamp(min=0))], 1)
        logits = upcast(self.text(inputs_embeds=inputs, attention_mask=mask.long(), labels=labels).logits)
        return (-F.cross_entropy(logits.mT, labels, reduction="none").mean(1)).exp()

    def image_features(self, pixels: Tensor) -> Tensor:
        """pixels (b, 3, h, w) -> (b, patches, d): what stands in the picture's place."""
        pixels = kernels.preprocess(on_square(pixels), self.preprocessing).to(self.vision.dtype)
        return self.projector(self.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:])

    def _question(self, prompt: str) -> Tensor:
        return self._ids(AFTER.replace("{}", prompt))

    def _ids(self, text: str) -> Tensor:
        """Its tokens and the end token, which was there after each piece of text in training."""
        return torch.tensor(self.tokenizer(text).input_ids)


def on_square(pixels: Tensor) -> Tensor:
    """Pixels (b, 3, h, w) in the middle of a square of CLIP's mean colour, as bytes have it; the smaller half of an odd margin first."""
    height, width = pixels.shape[-2:]
    side = max(height, width)
    colour = torch.tensor([int(255 * mean) for mean in open_clip.OPENAI_DATASET_MEAN], device=pixels.device)[:, None, None]
    colour = colour.to(pixels.dtype) / 255 if pixels.is_floating_point() else colour.to(pixels.dtype)
    square = colour.repeat(len(pixels), 1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    square[..., top : top + height, left : left + width] = pixels
    return square


def load_vqascore(source: str) -> VqaScorer:
    """A folder or "hf-hub:org/repo" as zhiqiulin/clip-flant5-xl's: T5's config.json and tokenizer, and one file or shards of weights with
    T5's own names, `mm_projector.*` and `vision_tower.*`; in their precision. FileNotFoundError, or ValueError for weights that
    do not fit."""
    folder = folder_of(source)
    path = weights_in(folder)
    if path is None or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} lacks weights or config.json: name the folder of zhiqiulin/clip-flant5-xl or -xxl")
    state = read_state(path)
    if embeddings := [state.pop(name) for name in ("shared.weight", *ALIASES) if name in state]:  # once or more, as the file was made
        state["shared.weight"] = embeddings[0]
    if missing := [name for name in SHAPES if name not in state]:
        raise ValueError(f"{path} lacks {missing[0]}, so that it is no CLIP-FlanT5: fetch zhiqiulin/clip-flant5-xl or -xxl")
    vision, projector = (under(prefix, state) for prefix in (TOWER, "mm_projector."))
    text = {name: value for name, value in state.items() if not name.startswith((TOWER, "mm_projector."))}
    return VqaScorer(
        fill(_vision_tower(vision), vision, path),
        fill(_projector(projector), projector, path),
        fill(_text_model(read_json(folder / "config.json"), state["shared.weight"]),
             text | dict.fromkeys(ALIASES[1:], text["shared.weight"]), path),
        AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True),
    ).requires_grad_(False).eval()  # fmt: skip


def _vision_tower(state: dict[str, Tensor]) -> CLIPVisionModel:
    """CLIP's image tower in the sizes of its weights."""
    places, width = state["embeddings.position_embedding.weight"].shape
    patch = state["embeddings.patch_embedding.weight"].shape[-1]
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    config = CLIPVisionConfig(hidden_size=width, intermediate_size=len(state["encoder.layers.0.mlp.fc1.bias"]), patch_size=patch,
                              num_hidden_layers=layers, num_attention_heads=width // 64,
                              image_size=patch * round((places - 1) ** 0.5))  # fmt: skip
    return CLIPVisionModel(config).to(state["embeddings.class_embedding"].dtype)


def _projector(state: dict[str, Tensor]) -> nn.Module:
    width, features = state["0.weight"].shape
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width)).to(state["0.weight"].dtype)


def _text_model(config: dict, embeddings: Tensor) -> T5ForConditionalGeneration:
    """T5 with an output matrix of its own, as FLAN-T5 has it: transformers 5 ties that of every T5 to the embeddings."""
    config = T5Config(**{name: config[name] for name in T5_FIELDS if name in config}, vocab_size=len(embeddings))
    with no_init_weights():  # each of them is filled
        model = T5ForConditionalGeneration(config)
        model.lm_head = nn.Linear(config.d_model, len(embeddings), bias=False)
    return model.to(embeddings.dtype)
