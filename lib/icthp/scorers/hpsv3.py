"""HPS v3: its score, and its released file beside config.json and tokenizer of Qwen2-VL, differentiable in the pixels."""

import math
import re

import open_clip
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, Qwen2VLConfig
from transformers.initialization import no_init_weights

from icthp import kernels
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import apply_head
from icthp.scorers.states import fill, folder_of, read_state, under
from icthp.scorers.yes_no import VisionLanguageScorer

AREA = 256 * 28 * 28  # pixels of a picture that Qwen2-VL reads
WEIGHTS = "HPSv3.safetensors"
BESIDE = "config.json and the tokenizer of Qwen/Qwen2-VL-7B-Instruct"
REWARD = "<|Reward|>"
CHAT = (  # Qwen2-VL's chat template for one picture and one text
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>"
    "{text}<|im_end|>\n<|im_start|>assistant\n"
)
# The text that HPS v3 was trained with, to the last space: MizzenAI/HPSv3@hpsv3/dataset/data_collator_qwen.py.
RUBRIC = """
You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the best. 

**Visual Quality:**  
Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:
- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g., hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult material. If such content is present, the image quality and satisfaction score should be the lowest possible. 

**Text Alignment:**  
Assess how well the image matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align with the textual description. The subject should match the description in terms of number, appearance, and behavior.
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the image adheres to this style.
- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image logically fit the scenario described in the prompt. The environment should support and enhance the subject without contradictions.
- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, accessories, expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable, but critical attributes should be preserved.
- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The generated content should not introduce elements that conflict with or distort the original description.
Textual prompt - {text_prompt}



Please provide the overall ratings of this image: <|Reward|>

END
"""  # noqa: E501


class HpsV3Scorer(VisionLanguageScorer):
    """HPS v3 (arXiv 2508.03789, MizzenAI/HPSv3@hpsv3/model/qwen2vl_trainer.py): Qwen2-VL reads picture and rubric; Linear, ReLU,
    Dropout, Linear, ReLU, Linear on its last state at <|Reward|> give the mean of a normal score, which is the score, and the log of
    its standard deviation. As in training, positions count one by one, over the picture too: without Qwen2-VL's axes."""

    score_scale = "mean of a preference in HPS v3's own units"

    def __init__(self, model: nn.Module, head: nn.Module, tokenizer):
        super().__init__()
        self.model = model
        self.head = head
        self.tokenizer = tokenizer

    def extra_repr(self) -> str:
        return f"area={AREA}"

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.distribution(pixels, prompts)[0]

    def distribution(self, pixels: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of each picture's score, (b,) each."""
        mean, log_deviation = apply_head(self.head, self._reward_states(pixels, prompts)).unbind(-1)
        return mean, log_deviation.exp()

    def _reward_states(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """(b, d): the language model's last states at <|Reward|>."""
        patches, grid = self.patches(pixels)
        image = self.model.visual(patches.to(self.model.dtype), grid_thw=grid).pooler_output
        tokens = self._tokens(prompts, len(image) // len(prompts)).to(pixels.device)
        text = self.model.language_model
        is_image = (tokens.input_ids == self.model.config.image_token_id)[..., None]
        embeddings = text.embed_tokens(tokens.input_ids).masked_scatter(is_image, image)
        states = text(inputs_embeds=embeddings, attention_mask=tokens.attention_mask, use_cache=False).last_hidden_state
        reward = tokens.input_ids == self.tokenizer.convert_tokens_to_ids(REWARD)
        return states[reward]  # one in each row

    def _tokens(self, prompts: list[str], count: int):
        """Ids and mask of the whole texts, `count` tokens for each picture. Control tokens in a prompt are left out."""
        control = "|".join(map(re.escape, self.tokenizer.get_added_vocab()))
        texts = [RUBRIC.format(text_prompt=re.sub(control, "", prompt)) for prompt in prompts]
        texts = [CHAT.format(picture="<|image_pad|>" * count, text=text) for text in texts]
        return self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")

    def patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (b, 3, h, w) -> what Qwen2-VL's tower reads: patches (b * rows * columns, channels * frames * side * side), in blocks
        of 2 x 2 that the tower merges, the picture as two equal frames; and the grid (b, 3) of 1, rows, columns."""
        vision = self.model.config.vision_config
        side, merge, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        size = fitted_size(*pixels.shape[-2:], side * merge)
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        pixels = kernels.preprocess(pixels, Preprocessing(size, "squash", mean=mean, std=std))
        rows, columns = (n // side for n in size)
        blocks = pixels.reshape(-1, 3, rows // merge, merge, side, columns // merge, merge, side).permute(0, 2, 5, 3, 6, 1, 4, 7)
        blocks = blocks.unsqueeze(6).expand(*[-1] * 6, frames, -1, -1)
        grid = torch.tensor([[1, rows, columns]] * len(pixels), device=pixels.device)
        return blocks.reshape(len(pixels) * rows * columns, -1), grid


def fitted_size(height: int, width: int, factor: int = 28, area: int = AREA) -> tuple[int, int]:
    """Qwen2-VL's size of a picture: multiples of `factor` in its shape, just below `area` where the nearest ones lie above it, just above
    where they lie below. ValueError for a picture 200 times as long as wide."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a picture of {height} x {width} pixels is more than 200 times as long as wide: crop it for this scorer")
    sides = [round(n / factor) * factor for n in (height, width)]
    if math.prod(sides) > area:
        shrink = math.sqrt(height * width / area)
        sides = [max(factor, math.floor(n / shrink / factor) * factor) for n in (height, width)]
    elif math.prod(sides) < area:
        grow = math.sqrt(area / (height * width))
        sides = [math.ceil(n * grow / factor) * factor for n in (height, width)]
    return tuple(sides)


def load_hpsv3(source: str) -> HpsV3Scorer:
    """A folder with MizzenAI/HPSv3's HPSv3.safetensors beside config.json and tokenizer of Qwen/Qwen2-VL-7B-Instruct, or "hf-hub:" and a
    repository with all of them; in the file's precision, the head in float32. FileNotFoundError, or ValueError for files that do
    not fit."""
    folder = folder_of(source)
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is not there: put {WEIGHTS} of MizzenAI/HPSv3 beside {BESIDE}")
    state = read_state(folder / WEIGHTS)
    rows = len(state.get("model.embed_tokens.weight", ()))
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    tokenizer.add_tokens([REWARD], special_tokens=True)
    if (token := tokenizer.convert_tokens_to_ids(REWARD)) != rows - 1:
        raise ValueError(f"{folder}: {REWARD} is token {token} here and the last of {rows} in {WEIGHTS}: put that file beside {BESIDE}")
    config = Qwen2VLConfig.from_pretrained(str(folder))
    config.text_config.vocab_size = rows
    width = config.text_config.hidden_size
    with no_init_weights():  # each of them is filled
        model = AutoModel.from_config(config, dtype=state["model.embed_tokens.weight"].dtype)
    head = nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))
    body, head_state = _parts(state)
    scorer = HpsV3Scorer(fill(model, body, folder / WEIGHTS), fill(head, head_state, folder / WEIGHTS), tokenizer)
    return scorer.requires_grad_(False).eval()


def _parts(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the model, renamed from transformers 4.45 to 5, and of the head; the language model's own head is not read."""
    names = [name for name in state if not name.startswith(("rm_head.", "lm_head."))]
    return {re.sub(r"^model\.", "language_model.", name): state[name] for name in names}, under("rm_head.", state)
