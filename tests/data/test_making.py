"""From pairs to triplets: what is rejected and why, what remains, and where an edit starts."""

import pytest
import torch

from faulty_pairs import faulty_pairs
from icthp import data, images
from icthp.data import parquet, refine
from icthp.microworld import grammar

FITS = lambda text: len(text.split()) <= 60


@pytest.fixture(scope="module")
def pairs(scenes):
    return faulty_pairs(scenes[:6])


def cut_picture(pairs, row):
    """The same pairs; half of the file of I2 of one row is missing."""
    files = list(parquet.as_files(pairs)["image_2"])
    files[row] = {"bytes": files[row]["bytes"][:50], "path": None}
    return pairs.remove_columns("image_2").add_column("image_2", files)


def test_a_row_goes_with_its_refined_prompt_and_its_reason_is_named(pairs):
    easy = list(pairs["easy_prompt"])
    refined = {"train": [f"{text} at dusk" for text in easy], "test": [f"{text} at noon" for text in easy]}
    refined["train"][1] = "nothing of it"
    rows = {"train": cut_picture(pairs, 4), "test": pairs}
    checked = data.check_refined(rows, refined, FITS)
    assert list(checked.columns) == ["split", "easy", "refined", "reason"] and list(checked.split) == ["train"] * 6 + ["test"] * 6
    reasons = list(checked.reason)
    assert reasons[1] == "a unit is lost" and reasons[4].startswith("image_2 cannot be read")
    assert not any(reasons[:1] + reasons[2:4] + reasons[5:])

    valid_rows, valid_refined = data.drop_rejected(rows, refined, checked)
    assert valid_rows["train"]["prompt_id"][:] == [pairs["prompt_id"][i] for i in (0, 2, 3, 5)] and len(valid_rows["test"]) == 6
    assert valid_refined == {"train": [f"{easy[i]} at dusk" for i in (0, 2, 3, 5)], "test": refined["test"]}


def test_a_split_without_a_valid_row_is_an_error(pairs):
    rows, refined = {"train": pairs, "test": pairs}, {"train": [f"{text} at dusk" for text in pairs["easy_prompt"]], "test": [""] * 6}
    checked = data.check_refined(rows, refined, FITS)
    with pytest.raises(ValueError, match="all 6 rows of test are rejected"):
        data.drop_rejected(rows, refined, checked)


def test_an_edit_starts_from_i2_and_a_new_picture_from_nothing(pairs):
    assert data.edit_of_i2(pairs, 32, 0.0) == {}
    keywords = data.edit_of_i2(pairs, 32, 0.6)
    assert keywords["strength"] == 0.6
    torch.testing.assert_close(keywords["start"](slice(1, 3)), images.stack(pairs[1:3]["image_2"], 32))


def test_a_language_model_is_asked_once_for_each_prompt(monkeypatch, tmp_path):
    asked = []

    def endpoint(prompts, model, url, tokens):
        asked.append((list(prompts), model, url, tokens))
        yield from (f"{prompt} at dusk" for prompt in prompts)

    monkeypatch.setattr(refine, "endpoint", endpoint)
    answers = tmp_path / "refined.jsonl"
    ask = refine.language_model("endpoint", "a-model", answers, url="http://a", tokens=7, seed=3)
    assert ask(["a red circle"]) == ["a red circle at dusk"] and ask(["a red circle", "a blue cross"])[1] == "a blue cross at dusk"
    assert asked == [(["a red circle"], "a-model", "http://a", 7), (["a blue cross"], "a-model", "http://a", 7)]
    assert refine.cached(["a blue cross"], pytest.fail, answers, "endpoint a-model 3") == ["a blue cross at dusk"]
    with pytest.raises(ValueError, match="transformers, endpoint, or the microworld's, not 'oracle'"):
        refine.language_model("oracle", "", answers)


def test_the_grammars_own_refiner_passes_the_check(scenes, pairs):
    refined = {"test": grammar.captions(scenes[:6].at(1), "long")}
    assert not data.check_refined({"test": pairs}, refined, FITS).reason.any()
