"""Saving and publishing what was trained: a scorer's save_pretrained(folder), push_to_hub("you/ict"), and model cards."""

import html
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, PyTorchModelHubMixin

from icthp.files import save_text

DESCRIPTIONS = {
    "ict": 'A reward model after Ba et al., ICCV 2025 (arXiv 2507.19002): does the picture contain the text? `icthp.load("ict", ...)`.',
    "hp": 'A reward model after Ba et al., ICCV 2025 (arXiv 2507.19002): how good is the picture alone? `icthp.load("hp", ...)`.',
    "lora": "A LoRA for a Stable Diffusion 3 pipeline, tuned on a reward model as in Ba et al., ICCV 2025 (arXiv 2507.19002): "
    "`pipe.load_lora_weights(...)`.",
}
FAILURES = {
    "ict": "I3 counts as better by construction, so its two columns cannot tell containing the prompt from being drawn by I3's "
    "generator. A prompt is truncated at the length of the text tower. Only I2 > I1 rests on votes.",
    "hp": "It reads no prompt, so it cannot see that a picture is beside the point, and a generator tuned on it alone may leave the "
    "prompt for texture. I3 beats I2 by construction; only I2 > I1 rests on votes.",
    "lora": "It was tuned on one score, and a higher score is not yet a better picture: what the reward does not see "
    "(diversity, the prompt, a viewer's eye) may have paid for it. Look at the other measures, and at pictures.",
}
TAGS = {"lora": ["lora", "text-to-image", "diffusers"]}
TEXT = """
# {title} ({scale} scale)

{what} Made with the corrected reproduction `icthp`.
{note}
## How it was trained

{facts}

## What it is worth

Held-out prompts, 95 % bootstrap interval over prompts. Columns with I3 hold by construction of the data.

| measure | mean | interval | n |
|---|---|---|---|
{rows}

## Known failures

{failures}
"""
NO_CARD = "---\nlibrary_name: icthp\n---\nA scorer that `icthp.load` reads, without a readable card of its own.\n"


class HubMixin(PyTorchModelHubMixin):
    """A scorer that huggingface_hub can save and push. Subclasses write and read the folder; its README.md travels with it."""

    card = ""

    def generate_model_card(self, **_) -> ModelCard:
        try:
            return ModelCard(self.card or NO_CARD)
        except (ValueError, yaml.YAMLError):  # a card with broken fields must not keep the weights from being saved
            return ModelCard(NO_CARD)

    def with_card(self, folder):
        """The scorer itself, with the README.md of its folder, if there is one."""
        readme = Path(folder) / "README.md"
        self.card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        return self


def _plain(text) -> str:
    """Any text as one line of Markdown that shows it and does nothing: no HTML, no links, no table cells."""
    shown = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"[\\`*~$|\[\]]|(?<!\w)_|_(?!\w)|^[-+#]|(?<=^\d)[.)]", r"\\\g<0>", shown)


def _code(value) -> str:
    """A value in Markdown's type of code, unless it holds characters that end that."""
    text = " ".join(str(value).split())
    return f"`{text}`" if text and not re.search("[<>`]", text) else _plain(text)


def write_model_card(folder, name: str, scale: str, facts: dict, metrics: dict, **fields) -> None:
    """folder/README.md of a trained "ict", "hp" or "lora": how it was trained (facts), every metric that has an interval
    (NAME, NAME_low, NAME_high, NAME_n in `metrics`), and what is known to fail. fields: more of the Hub's, such as base_model or
    license."""
    measured = [key for key in metrics if f"{key}_low" in metrics]
    results = [_eval_result(name, scale, key, metrics[key]) for key in measured]
    data = ModelCardData(library_name="diffusers" if name == "lora" else "icthp", tags=TAGS.get(name, ["reward-model", name]),
                         model_name=name, eval_results=results, **fields)  # fmt: skip
    text = TEXT.format(title={"lora": "LoRA"}.get(name, name.upper()), what=DESCRIPTIONS[name], scale=_plain(scale), note=_note(scale),
                       failures=FAILURES[name], rows="\n".join(_row(key, metrics) for key in measured),
                       facts="\n".join(f"- {_plain(k)}: {_code(v)}" for k, v in facts.items()))  # fmt: skip
    save_text(Path(folder) / "README.md", f"---\n{data.to_yaml()}\n---\n{text}")


def _eval_result(name: str, scale: str, key: str, value: float) -> EvalResult:
    task, dataset = ("text-to-image", "held-out-prompts") if name == "lora" else ("image-scoring", "pick-high")
    return EvalResult(task, dataset, f"{dataset} ({scale})", "mean", value, metric_name=key)


def _note(scale: str) -> str:
    if scale == "paper":
        return ""
    return f"\n**These are {_plain(scale)} numbers, not the paper's: they say that the code works, no more.**\n"


def _row(key: str, metrics: dict) -> str:
    ci = f"{metrics[key + '_low']:.3f} to {metrics[key + '_high']:.3f}"
    return f"| {_plain(key)} | {metrics[key]:.3f} | {ci} | {metrics[key + '_n']} |"
