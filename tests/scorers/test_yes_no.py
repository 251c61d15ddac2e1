"""P(yes) of two families of vision-language models, against their own processors and one forward of each picture alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_hpsv3 import CHAT_TEMPLATE, qwen_config, randomize, train_qwen_tokenizer
from torchvision.transforms.functional import to_pil_image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from icthp.scorers import yes_no

PROMPTS = ["a red circle", "two blue stars above a green heart, seen from far away, in the rain", "a"]
FORMS = {"yes": ["Yes", "yes", " Yes", " yes"], "no": ["No", "no", " No", " no"], "four": ["Four", "four", " Four", " four", "4"]}
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: {% for content in message['content'] %}{% if content['type'] == 'image' %}<image>\n"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14}  # fmt: skip
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 2048}  # fmt: skip


def write_yes_no(folder, family: str = "qwen2_vl") -> str:
    """A tiny vision-language model of a family, qwen2_vl or llava, as transformers saves it, with its processor and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_qwen_tokenizer([yes_no.QUESTION, *(" ".join(forms) for forms in FORMS.values()), *PROMPTS] * 20, 400)
    torch.manual_seed(0)
    if family == "qwen2_vl":
        image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 8 * 56 * 56})
        processor = Qwen2VLProcessor(image_processor, tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(qwen_config(tokenizer)))
    else:
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        image_processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        processor = LlavaProcessor(image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default",
                                   num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE)  # fmt: skip
        image_token = tokenizer.convert_tokens_to_ids("<image>")
        text = LLAMA | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=CLIP, text_config=text, image_token_index=image_token))
    processor.save_pretrained(folder)
    randomize(model.float()).save_pretrained(folder)
    return str(folder)


def reference(folder: str, pixels, questions: list[str]) -> torch.Tensor:
    """(b, vocabulary): probabilities of the first token, picture by picture, by one forward without padding."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    rows = []
    for picture, question in zip(pixels, questions):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[to_pil_image(picture)], return_tensors="pt")
        rows.append(model(**inputs).logits[0, -1].softmax(-1))
    return torch.stack(rows).detach()


def mass_of(probabilities, tokenizer, forms: list[str]):
    """The sum over the distinct first tokens."""
    return probabilities[:, sorted({tokenizer.encode(form, add_special_tokens=False)[0] for form in forms})].sum(1)


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def folder(request, tmp_path_factory):
    return write_yes_no(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    return write_yes_no(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, 3, 60, 84), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.slow
def test_values_are_those_of_one_forward_of_each_picture_alone(folder, pixels):
    scorer = yes_no.load_yes_no(folder)
    tokenizer = scorer.processor.tokenizer
    probabilities = reference(folder, pixels, [f'Does this figure show "{prompt}"? Please answer yes or no.' for prompt in PROMPTS])
    yes, no = (mass_of(probabilities, tokenizer, FORMS[word]) for word in ("yes", "no"))
    torch.testing.assert_close(scorer.score(pixels, PROMPTS), yes, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(scorer.score(pixels / 255, PROMPTS), yes, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(yes_no.load_yes_no(folder, normalised=True).score(pixels, PROMPTS), yes / (yes + no), rtol=1e-3, atol=1e-6)
    assert len(scorer.yes) == 4 and yes.std() / yes.mean() > 0.01
    assert not scorer.score((pixels / 255).requires_grad_(True), PROMPTS).requires_grad
    assert scorer.score(pixels[:0], []).shape == (0,) and "normalised=False" in repr(scorer)


@pytest.mark.slow
def test_a_batch_is_its_pictures_one_by_one(folder, pixels):
    scorer = yes_no.load_yes_no(folder)
    alone = torch.cat([scorer.score(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scorer.score(pixels, PROMPTS), alone, rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_an_answers_probability_counts_each_first_token_once_and_no_bare_space(qwen_folder, pixels):
    scorer = yes_no.load_yes_no(qwen_folder)
    tokenizer = scorer.processor.tokenizer
    space = tokenizer.encode(" 4")[0]
    assert tokenizer.decode([space]) == " " and space not in scorer.first_tokens(["4"])
    questions = ["How many stars are there?", "How many hearts?", "Is it red?"]
    probabilities = reference(qwen_folder, pixels, questions)
    expected = torch.stack([mass_of(probabilities, tokenizer, FORMS[word])[i] for i, word in enumerate(("four", "four", "yes"))])
    torch.testing.assert_close(scorer.answer(pixels, questions, [["4"], ["four", "Four"], ["Yes"]]), expected, rtol=1e-3, atol=1e-7)
    with pytest.raises(ValueError, match=r"no first token tells \[' '\] from other answers"):
        scorer.answer(pixels[:1], questions[:1], [[" "]])
    with pytest.raises(ValueError, match="3 pictures need as many questions and answers, not 1 and 3"):
        scorer.answer(pixels, ["?"], [["yes"]] * 3)
    assert scorer.answer(pixels[:0], [], []).shape == (0,)


@pytest.mark.parametrize("answer, forms", [
    ("Yes", ["Yes", "yes"]), ("four", ["4", "Four", "four"]), ("4", ["4", "Four", "four"]),
    ("NASA", ["NASA", "Nasa", "nasa"])])  # fmt: skip
def test_the_surface_forms_of_an_answer(answer, forms):
    assert yes_no.surface_forms(answer) == sorted([*forms, *(f" {form}" for form in forms)])


@pytest.mark.slow
def test_control_tokens_in_a_prompt_are_left_out(qwen_folder, pixels):
    scorer = yes_no.load_yes_no(qwen_folder)
    prompts = ["a <|image_pad|>cat", "a cat<|im_end|>", "a cat"]
    torch.testing.assert_close(scorer.score(pixels, prompts), scorer.score(pixels, ["a cat"] * 3), rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_files_that_are_missing_or_do_not_fit(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match="config.json is not there: name a vision-language model's folder"):
        yes_no.load_yes_no(str(folder))
    write_yes_no(folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if "merger.ln_q.weight" not in k}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of its Qwen2VLForConditionalGeneration: .*merger.ln_q.weight; fetch them again"):
        yes_no.load_yes_no(str(folder))
    path.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no vision-language model that transformers reads: .*safetensors"):
        yes_no.load_yes_no(str(folder))
    save_file(state, path, {"format": "pt"})
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template with its processor: fetch chat_template.jinja"):
        yes_no.load_yes_no(str(folder))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    code = {"model_type": "mystery", "auto_map": {"AutoConfig": "c.C", "AutoModelForImageTextToText": "c.M"}}
    (folder / "config.json").write_text(json.dumps(config | code), encoding="utf-8")
    (folder / "c.py").write_text("raise SystemExit('code of a folder was run')", encoding="utf-8")
    with pytest.raises(ValueError, match="transformers reads: it asks for Python of the folder, which is never run"):
        yes_no.load_yes_no(str(folder))
