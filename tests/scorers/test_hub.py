"""Model cards: what is written into them comes from file names, models and people, and is shown, not run."""

import html

import mistune
import pytest
from huggingface_hub import ModelCard

from icthp.scorers import hub

MEASURED = {"acc": 0.61, "acc_low": 0.5, "acc_high": 0.7, "acc_n": 90, "loss": 0.2}
HOSTILE = [
    "<script>alert(1)</script>", "a `<b>` b", "``` <img src=x onerror=y> ```", "[click](javascript:x)", "x | y | z",
    "two\n\n# lines", "two\n---\nlicense: other", "*bold* _under_ ~~gone~~", "back\\slash `", "&lt;b&gt;", "", "null", "yes: {no", "'\"#%@",
    "é 😀 \u2028 \x85 \x07", "- a\n- b", "1. one", "# one",
]  # fmt: skip
render = mistune.create_markdown(escape=False, plugins=["table", "strikethrough"])


def written(folder, name="ict", scale="micro", facts=None, metrics=MEASURED, **data):
    hub.write_model_card(folder, name, scale, facts or {"steps": 9, "near_lambda": "0.5"}, metrics, **data)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("name", ["ict", "hp", "lora"])
def test_a_card_says_what_was_trained_measured_and_fails(tmp_path, name):
    card = written(tmp_path / "new" / "folder", name, license="mit")
    assert "- steps: `9`\n- near_lambda: `0.5`" in card.text and "| acc | 0.610 | 0.500 to 0.700 | 90 |" in card.text
    assert "Known failures" in card.text and "micro numbers" in card.text and "loss" not in card.text.split("worth")[1].split("Known")[0]
    assert card.data.license == "mit" and [r.metric_value for r in card.data.eval_results] == [0.61]
    assert "not the paper's" not in written(tmp_path, name, "paper").text


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_shown_and_nothing_else(tmp_path, text):
    metrics = {f"{text}{end}": value for end, value in (("", 0.6), ("_low", 0.5), ("_high", 0.7), ("_n", 90))}
    card = written(tmp_path, "hp", text, {text: "value", "fact": text}, metrics, license=text or "x", base_model=text or "x")
    plain = written(tmp_path, "hp", "S", {"K": "value", "fact": "V"}, dict(zip(("M", "M_low", "M_high", "M_n"), (0.6, 0.5, 0.7, 90))))
    tags = lambda card: [part.split(">")[0] for part in render(card.text).split("<")[1:] if "code" not in part.split(">")[0]]
    assert tags(card) == tags(plain)  # the same headings, rows and cells, and no tag more
    one_line = lambda text: " ".join(text.split())
    assert card.data.license == card.data.base_model == (text or "x")
    assert card.data.eval_results[0].dataset_name == f"pick-high ({text})"
    row = next(line for line in card.text.split("\n") if line.startswith("- fact: "))
    shown = html.unescape(mistune.html(row))
    assert one_line(text) in shown or not text


def test_a_folder_with_an_unreadable_card_is_read_and_saved(tmp_path):
    class Scorer(hub.HubMixin):
        pass

    for contents in (b"---\nlicense: [\n---\ntext", b"---\n- a list\n---\n", b"caf\xe9", b""):
        (tmp_path / "README.md").write_bytes(contents)
        assert str(Scorer().with_card(tmp_path).generate_model_card())
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMine", encoding="utf-8")
    assert Scorer().with_card(tmp_path).generate_model_card().data.license == "mit"
