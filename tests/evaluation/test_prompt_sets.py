"""GenEval 2, T2I-CompBench and DPG-Bench: files in and out, and scores against closed forms, answered by models made of a line."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from icthp import files
from icthp.evaluation import prompt_sets

COWS = {"prompt": "four white bicycles, and three cows", "atom_count": 4,
        "vqa_list": [["How many bicycles are in the image?", "four"], ["Are the bicycles white?", "Yes"], ["How many cows?", "three"]],
        "skills": ["count", "attribute", "count"]}  # fmt: skip
PIG = {"prompt": "ein Schwein, größer", "atom_count": 3, "vqa_list": [["Are there any pigs in the image?", "Yes"]], "skills": ["object"]}


def solid(level: float, size: int = 4) -> torch.Tensor:
    return torch.full((3, size, size), level)


class Draws:
    """Pictures of one level, the id of their noise; counts what it is asked."""

    def __init__(self, fails_at=None):
        self.asked = []
        self.fails_at = fails_at

    def __call__(self, prompts, ids):
        assert len(prompts) == len(ids)
        if self.fails_at in ids:
            raise RuntimeError("killed")
        self.asked += zip(prompts, ids)
        return torch.stack([solid(i / 255) for i in ids])


def level(path) -> int:
    return np.asarray(Image.open(path))[0, 0, 0]


# ---- GenEval 2 --------------------------------------------------------------------------------------------------


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_geneval2_is_read_as_published(tmp_path):
    assert prompt_sets.read_geneval2(write_lines(tmp_path / "g.jsonl", COWS, PIG)) == [COWS, PIG]


@pytest.mark.parametrize("change", [
    {"prompt": 7}, {"prompt": ""}, {"atom_count": "4"}, {"vqa_list": []}, {"vqa_list": [["q"]] * 3}, {"vqa_list": [["q", 4]] * 3},
    {"skills": ["count"]}, {"skills": "abc"}, {"vqa_list": None},
])  # fmt: skip
def test_a_malformed_line_of_geneval2_is_named(tmp_path, change):
    with pytest.raises(ValueError, match="g.jsonl, line 2 is none of GenEval 2's"):
        prompt_sets.read_geneval2(write_lines(tmp_path / "g.jsonl", PIG, COWS | change))


@pytest.mark.parametrize("rows", [[], [PIG, PIG]])
def test_geneval2_without_prompts_or_with_one_twice_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="g.jsonl is empty or has a prompt twice"):
        prompt_sets.read_geneval2(write_lines(tmp_path / "g.jsonl", *rows))


def test_geneval2_pictures_are_named_by_their_prompts_and_a_killed_run_goes_on(tmp_path):
    rows = [PIG | {"prompt": f"{i}, größer"} for i in range(5)]
    with pytest.raises(RuntimeError, match="killed"):
        prompt_sets.draw_geneval2(tmp_path, rows, Draws(fails_at=4), batch=2)
    assert not (tmp_path / "images.json").exists() and len(list(tmp_path.iterdir())) == 4
    again = Draws()
    paths = files.read_json(prompt_sets.draw_geneval2(tmp_path, rows, again, batch=2))
    assert again.asked == [("4, größer", 4)] and [level(paths[row["prompt"]]) for row in rows] == [0, 1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*(f"0000{i}.png" for i in range(5)), "images.json"]


@pytest.mark.parametrize("answer, forms", [
    ("four", ["four", "Four", "4", " four", " Four", " 4"]), ("4", ["four", "Four", "4", " four", " Four", " 4"]),
    ("Yes", ["yes", "Yes", " yes", " Yes"]), (" dark red", ["dark red", "Dark red", " dark red", " Dark red"]),
    ("11", ["11", " 11"]), ("ten", ["ten", "Ten", "10", " ten", " Ten", " 10"]),
])  # fmt: skip
def test_surface_forms_are_those_of_geneval2(answer, forms):
    assert prompt_sets.surface_forms(answer) == forms


def answers_by(table):
    """ask: the probability of a question is table[question]."""
    seen = []

    def ask(pixels, questions, forms):
        seen.append((tuple(pixels.shape), questions, forms))
        return torch.tensor([table[q] for q in questions])

    ask.seen = seen
    return ask


def test_soft_tifa_has_the_published_means(tmp_path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "x.png")
    pictures = {row["prompt"]: tmp_path / "x.png" for row in (COWS, PIG)}
    values = {q: p for (q, _), p in zip([*COWS["vqa_list"], *PIG["vqa_list"]], (0.5, 0.25, 1.0, 0.75))}
    ask = answers_by({f"{q} Answer in one word.": p for q, p in values.items()})
    answers = prompt_sets.soft_tifa([COWS, PIG], pictures, ask)
    assert ask.seen[0][0] == (3, 3, 4, 6) and ask.seen[0][2][0] == ["four", "Four", "4", " four", " Four", " 4"]
    assert answers.probability.tolist() == [0.5, 0.25, 1, 0.75] and answers.skill.tolist() == ["count", "attribute", "count", "object"]
    scores = prompt_sets.soft_tifa_scores(answers).set_index(["measure", "part"])
    expected = {("am", "all"): (58.33333 + 75) / 2, ("gm", "all"): (50 + 75) / 2, ("am", "count"): 75, ("am", "attribute"): 25,
                ("am", "object"): 75, ("gm", "3 atoms"): 75, ("gm", "4 atoms"): 50}  # fmt: skip
    assert scores["mean"].to_dict() == pytest.approx(expected)
    whole = scores.loc[("gm", "all")]
    assert (whole.low, whole.high, whole.groups) == pytest.approx((50, 75, 2)) and math.isnan(scores.loc[("am", "object"), "low"])


def test_a_wrong_atom_makes_the_geometric_mean_nothing():
    answers = pd.DataFrame({"prompt": list("aabb"), "atom_count": 3, "skill": "count", "question": "q", "probability": [0, 1, 1, 1]})
    scores = prompt_sets.soft_tifa_scores(answers).set_index(["measure", "part"])["mean"]
    assert scores.to_dict() == {("am", "all"): 75, ("gm", "all"): 50, ("am", "count"): 75, ("gm", "3 atoms"): 50}


@pytest.mark.parametrize("found", [[1.1], [-0.1], [float("nan")], [0.5, 0.5], 0.5])
def test_what_is_no_probability_is_refused(tmp_path, found):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="it should be a probability each"):
        prompt_sets.soft_tifa([PIG], {PIG["prompt"]: tmp_path / "x.png"}, lambda pixels, questions, forms: torch.tensor(found))
    with pytest.raises(ValueError, match="there is no picture of the prompt 'ein Schwein, größer'"):
        prompt_sets.soft_tifa([PIG], {}, None)


# ---- T2I-CompBench ----------------------------------------------------------------------------------------------


def test_compbench_prompts_and_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="lacks color_val.txt, shape_val.txt"):
        prompt_sets.read_compbench(tmp_path)
    for category in prompt_sets.CATEGORIES:
        (tmp_path / f"{category}_val.txt").write_bytes(f"a {category} thing, größer.\r\na\tb\r\n\r\nend".encode())
    prompts = prompt_sets.read_compbench(tmp_path)
    assert [*prompts] == [*prompt_sets.CATEGORIES] and prompts["non_spatial"] == ["a non_spatial thing, größer.", "a", "end"]
    draws = Draws()
    folder = prompt_sets.draw_compbench(tmp_path / "examples", ["a, größer.", "b", "b"], draws, count=2, batch=4)
    names = ["a, größer._000000.png", "a, größer._000001.png", "b_000002.png", "b_000003.png", "b_000004.png", "b_000005.png"]
    assert folder == tmp_path / "examples/samples" and sorted(p.name for p in folder.iterdir()) == names
    assert [level(folder / name) for name in names] == [*range(6)] and draws.asked[2:4] == [("b", 2), ("b", 3)]
    (folder / names[3]).unlink()
    prompt_sets.draw_compbench(tmp_path / "examples", ["a, größer.", "b", "b"], again := Draws(), count=2)
    assert again.asked == [("b", 3)]


@pytest.mark.parametrize("prompt", ["../x", "a_b", "ö" * 121, "a\0"])
def test_a_prompt_that_no_file_can_be_named_by_is_refused(tmp_path, prompt):
    with pytest.raises(ValueError, match="cannot be in a file's name as T2I-CompBench wants it"):
        prompt_sets.draw_compbench(tmp_path, ["fine", prompt], Draws())
    assert not list(tmp_path.iterdir())


def test_compbench_answers_become_a_mean_over_prompts(tmp_path):
    rows = [{"question_id": i, "answer": f"{0.1 * (i // 2):.4f}"} for i in (3, 0, 1, 2)]
    (tmp_path / "vqa_result.json").write_text(json.dumps(rows), encoding="utf-8")
    score = prompt_sets.compbench_score(tmp_path / "vqa_result.json", prompts=2, count=2)
    assert score == pytest.approx({"mean": 0.05, "low": 0, "high": 0.1, "n": 4, "groups": 2})


@pytest.mark.parametrize("rows, message", [
    ([], "has no rows"), ([{"question_id": 0, "answer": "0.5"}], "has 1 answers, not one for each of the pictures 0 to 1"),
    ([{"question_id": 0, "answer": "0.5"}] * 2, "has 2 answers, not one for each"),
    ([{"question_id": 0, "answer": "no"}, {"question_id": 1, "answer": "1"}], "`answer`, row 0 is 'no', which is no number"),
    ([{"question_id": 0}, {"question_id": 1, "answer": "1"}], "value 0 is not finite"), ([7], "is no list of JSON objects"),
])  # fmt: skip
def test_answers_that_are_not_one_a_picture_are_refused(tmp_path, rows, message):
    (tmp_path / "vqa_result.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        prompt_sets.compbench_score(tmp_path / "vqa_result.json", prompts=2, count=1)


# ---- DPG-Bench --------------------------------------------------------------------------------------------------

DPG = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
p97,"a truck, größer",,1,0,entity,whole,entity - whole (truck),Is there a truck?
p97,"a truck, größer",,2,1,attribute,color,"attribute - color (truck, red)",Is the truck red?
p97,"a truck, größer",,3,"1, 2",relation,spatial,"relation - spatial (truck, beach, on)",Is it on the beach?
7,a song,,2,1,global,,global - (art),Is it art?
7,a song,,1,0,entity,whole,entity - whole (song),Is there a song?
"""


def read_dpg(tmp_path, text=DPG):
    (tmp_path / "dpg_bench.csv").write_text(text, encoding="utf-8")
    return prompt_sets.read_dpg(tmp_path / "dpg_bench.csv")


def test_dpg_reads_every_row(tmp_path):
    table = read_dpg(tmp_path)
    assert table.item_id.tolist() == ["p97"] * 3 + ["7"] * 2 and table.text[0] == "a truck, größer" and len(table) == 5
    assert table.parents.tolist() == [(), (1,), (1, 2), (1,), ()] and table.proposition_id.tolist() == [1, 2, 3, 2, 1]
    assert table.category.tolist() == ["entity - whole", "attribute - color", "relation - spatial", "global", "entity - whole"]


@pytest.mark.parametrize("before, after, message", [
    ('"1, 2"', '"1, 9"', "row 2 depends on question 9 of p97"),
    ('"1, 2"', "one", "`dependency`, row 2 is 'one', which is no list of numbers"),
    ("p97", "../p97", "row 0 has the item_id '../p97', which is no name of a file"),
    ("dependency", "parents", "has no column `dependency`"),
    (",Is it art?", ",", "column `question_natural_language` is empty in row 3"), (",3,", ",x,", "`proposition_id`, row 2 is 'x'"),
])  # fmt: skip
def test_a_row_of_dpg_that_is_not_as_published_is_named(tmp_path, before, after, message):
    with pytest.raises(ValueError, match=f"dpg_bench.csv.*{message}"):
        read_dpg(tmp_path, DPG.replace(before, after))


def test_dpg_pictures_are_grids_of_four_row_by_row(tmp_path):
    table = read_dpg(tmp_path)
    draws = Draws()
    folder = prompt_sets.draw_dpg(tmp_path / "grids", table, draws, batch=6)
    assert sorted(p.name for p in folder.iterdir()) == ["7.png", "p97.png"] and [i for _, i in draws.asked] == [*range(8)]
    grid = np.asarray(Image.open(folder / "7.png"))[..., 0]
    assert grid.shape == (8, 8) and [grid[y, x] for y in (0, 4) for x in (0, 4)] == [4, 5, 6, 7]
    assert not Draws().asked and prompt_sets.draw_dpg(folder, table, again := Draws()) == folder and not again.asked


def test_dpg_asks_each_question_of_each_quarter(tmp_path):
    table = read_dpg(tmp_path)
    folder = prompt_sets.draw_dpg(tmp_path / "grids", table, Draws())
    seen = []

    def ask(pixels, questions, forms):
        seen.append((round(pixels[0, 0, 0, 0].item() * 255), tuple(pixels.shape), questions, forms[0]))
        return (pixels[:, 0, 0, 0] * 255 > 2.5).float() * 0.6

    answers = prompt_sets.dpg_answers(table, folder, ask)
    assert [s[0] for s in seen] == [*range(8)] and seen[0][1:] == (
        (3, 3, 4, 4), ["Is there a truck?", "Is the truck red?", "Is it on the beach?"], ["yes", "Yes", " yes", " Yes"])  # fmt: skip
    scores = prompt_sets.dpg_scores(answers).set_index("part")
    assert len(answers) == 20 and scores.loc["all", "mean"] == (25 + 100) / 2 and scores.loc["all", "groups"] == 2
    one = prompt_sets.dpg_answers(table, folder, ask, count=1)
    assert set(one["sample"]) == {0} and seen[-1][1] == (2, 3, 8, 8)


def test_a_question_counts_only_if_all_above_it_do(tmp_path):
    """Item 7 lists a question before the one that it depends on; categories are taken after the dependencies."""
    table = read_dpg(tmp_path)
    answers = pd.concat([table.assign(sample=0, correct=[True, False, True, True, False]), table.assign(sample=1, correct=True)])
    scores = prompt_sets.dpg_scores(answers).set_index("part")["mean"]
    assert scores.to_dict() == pytest.approx({
        "all": ((1 / 3 + 1) / 2 + (0 + 1) / 2) / 2 * 100, "entity": 75, "attribute": 50, "relation": 50, "global": 50,
        "entity - whole": 75, "attribute - color": 50, "relation - spatial": 50})  # fmt: skip


def test_dependencies_reach_grandchildren_in_any_order_and_circles_end(tmp_path):
    rows = [("c", (2,)), ("b", (1,)), ("a", ())]
    part = pd.DataFrame({"proposition_id": [3, 2, 1], "parents": [parents for _, parents in rows], "correct": [True, True, False]})
    assert prompt_sets._without_void(part) == [0, 0, 0] and prompt_sets._without_void(part.assign(correct=True)) == [1, 1, 1]
    circle = pd.DataFrame({"proposition_id": [1, 2], "parents": [(2,), (1,)], "correct": [True, True]})
    assert prompt_sets._without_void(circle) == [1, 1]
