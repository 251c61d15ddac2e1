"""P(yes): the probability of an answer's first token, of any vision-language model that transformers reads from a folder."""

import re

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModelForImageTextToText, AutoProcessor

from icthp.files import digest
from icthp.scorers.base import Scorer, check_pixels
from icthp.scorers.states import check_finite, folder_of

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # of VQAScore, arXiv 2404.01291
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SPELLINGS = dict(zip(NUMBERS, map(str, range(11)))) | dict(zip(map(str, range(11)), NUMBERS))


class VisionLanguageScorer(Scorer):
    """What the scorers with a vision-language model share. A change of dtype leaves rotary frequencies in float32: rounded to
    bfloat16 they blur the positions of a long text."""

    def _apply(self, fn, recurse=True):
        rotary = {name: buffer for name, buffer in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if name in rotary:
                buffer.data = rotary[name].to(buffer.device)
        return self


class YesNoScorer(VisionLanguageScorer):
    """P(yes), the sum of a softmax over the distinct first tokens of "Yes", "yes", " Yes" and " yes" where the answer to `question`
    begins (arXiv 2404.01291, for any model); normalised: P(yes) / (P(yes) + P(no)). The picture goes through the model's own
    processor as bytes, so that there is no gradient in the pixels."""

    score_scale = "probability of yes"

    def __init__(self, model, processor, question: str = QUESTION, normalised: bool = False):
        super().__init__()
        self.model = model
        self.processor = processor
        self.question = question
        self.normalised = normalised
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # the answer begins where the rows end
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.yes, self.no = self.first_tokens(["yes"]), self.first_tokens(["no"])

    def extra_repr(self) -> str:
        processor = digest(self.processor.image_processor.to_json_string(), self.processor.chat_template)
        return f"question={self.question!r}, normalised={self.normalised}, processor={processor}"

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        logs = self._first_token(pixels, [self.question.replace("{}", prompt) for prompt in prompts])
        yes, no = logs[:, self.yes].logsumexp(1), logs[:, self.no].logsumexp(1)
        return torch.sigmoid(yes - no) if self.normalised else yes.exp().clamp(max=1)

    def answer(self, pixels: Tensor, questions: list[str], answers: list[list[str]]) -> Tensor:
        """P(answer) of each picture (b, 3, h, w) and its question -> (b,), an atom's score of Soft-TIFA (GenEval 2, arXiv 2512.16853).
        answers: for each question, what counts as the answer; each in all its `surface_forms`."""
        check_pixels(pixels)
        if not len(pixels) == len(questions) == len(answers):
            raise ValueError(f"{len(pixels)} pictures need as many questions and answers, not {len(questions)} and {len(answers)}")
        if not len(pixels):
            return pixels.new_zeros(0, dtype=torch.float32)
        logs = self._first_token(pixels, questions)
        return torch.stack([row[self.first_tokens(forms)].exp().sum().clamp(max=1) for row, forms in zip(logs, answers)])

    def first_tokens(self, answers: list[str]) -> list[int]:
        """The distinct tokens with which the surface forms of the answers begin, without those that hold a space alone: " 4" begins with
        one in many vocabularies, as any other number does. ValueError if none is left."""
        tokenizer = self.processor.tokenizer
        forms = [form for answer in answers for form in surface_forms(answer)]
        tokens = {token for form in forms for token in tokenizer.encode(form, add_special_tokens=False)[:1]}
        tokens = sorted(token for token in tokens if token != tokenizer.unk_token_id and tokenizer.decode([token]).strip())
        if not tokens:
            raise ValueError(f"no first token tells {answers!r} from other answers in this model's vocabulary: ask for another word")
        return tokens

    @torch.no_grad()
    def _first_token(self, pixels: Tensor, texts: list[str]) -> Tensor:
        """(b, vocabulary): log-probabilities where the answers begin."""
        levels = pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 1).mul(255).round().byte()
        control = "|".join(map(re.escape, self.processor.tokenizer.get_added_vocab()))
        texts = [re.sub(control, "", text) if control else text for text in texts]
        pictures = [{"type": "image", "image": to_pil_image(picture)} for picture in levels.cpu()]
        contents = [[picture, {"type": "text", "text": text}] for picture, text in zip(pictures, texts)]
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": content}] for content in contents], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt", processor_kwargs={"padding": True})  # fmt: skip
        output = self.model.generate(
            **inputs.to(self.device, self.model.dtype), max_new_tokens=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True, pad_token_id=self.processor.tokenizer.pad_token_id)  # fmt: skip
        return output.logits[0].float().log_softmax(-1)


def surface_forms(answer: str) -> list[str]:
    """As it stands, in lower case and capitalised, a number up to ten as digit and as word, each with and without a space before it."""
    texts = {answer.strip(), SPELLINGS.get(answer.strip().lower(), answer.strip())}
    return sorted({space + form for text in texts for form in (text, text.lower(), text.capitalize()) for space in ("", " ")})


def load_yes_no(source: str, question: str = QUESTION, normalised: bool = False) -> YesNoScorer:
    """A folder or "hf-hub:org/repo" of an image-text-to-text model in transformers' format, its weights as safetensors, with its processor
    and chat template. FileNotFoundError, or ValueError for a folder that transformers cannot read without running its code, and
    for weights that do not fit."""
    folder = folder_of(source)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} is not there: name a vision-language model's folder as transformers saves it")
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        processor = AutoProcessor.from_pretrained(str(folder), **options)
        model, report = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # of whatever kind: the folder decides which class reads it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = "it asks for Python of the folder, which is never run" if "trust_remote_code" in str(error) else reason
        raise ValueError(f"{folder} holds no vision-language model that transformers reads: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks weights of its {type(model).__name__}: {', '.join(missing[:3])}; fetch them again")
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{folder} has no chat template with its processor: fetch chat_template.jinja or chat_template.json as well")
    check_finite(model.state_dict(), folder)
    return YesNoScorer(model, processor, question, normalised).requires_grad_(False).eval()
