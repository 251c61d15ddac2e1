"""Published choices between two pictures, on small folders of their layouts, and agreement within comparisons."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from vote_layout import ODD, touch

from icthp.evaluation import human_votes, vote_pairs


def preferred(table) -> list[str]:
    """The name of the preferred picture of each comparison."""
    return table[table.value == 1].image.str.rpartition("/")[2].tolist()


def pairs_of(table, score) -> float:
    return human_votes.agreement(table.assign(score=score), resamples=20).set_index("measure").loc["pairs", "mean"]


# ---- HPDv3 and HPDv3++ ------------------------------------------------------------------------------------------


def write_hpdv3(folder, count=30, prompts=5):
    """Each picture against each later one, the earlier preferred, as rows of one of a few prompts."""
    names = [f"images/{i:02d}.jpg" for i in range(count)]
    rest = {"model1": "x", "model2": "y", "confidence": None, "choice_dist": None}
    pairs = enumerate(combinations(names, 2))
    rows = [{"prompt": f"{ODD} {i % prompts}", "path1": a, "path2": b} | rest for i, (a, b) in pairs]
    touch(folder, *names)
    (folder / "test.json").write_text(json.dumps(rows), "utf-8")
    return rows


def test_every_choice_of_hpdv3_counts_once_within_its_own_pair(tmp_path):
    rows = write_hpdv3(tmp_path)
    table = human_votes.read(f"hpdv3:{tmp_path}")
    assert table.columns.tolist() == [*human_votes.COLUMNS, "comparison"] and len(table) == 2 * len(rows) == 870
    number = -table.image.str[-6:-4].astype(int)
    assert pairs_of(table, number) == 1 and pairs_of(table, -number) == 0
    row = human_votes.agreement(table.assign(score=number)).iloc[0]
    assert (row["measure"], row.n, row.groups) == ("pairs", len(rows), 5)
    assert table.prompt.str.startswith(ODD).all() and set(table.image) == {str(tmp_path / r["path1"]) for r in rows} | {table.image.max()}


def test_a_score_gains_nothing_from_the_order_of_the_pictures(tmp_path):
    write_hpdv3(tmp_path)
    table = human_votes.read(f"hpdv3:{tmp_path}")
    assert pairs_of(table, 1.0) == 0.5
    first = np.arange(len(table)) % 2 == 0
    assert abs(pairs_of(table, first * 1.0) - 0.5) < 0.06 and abs(pairs_of(table, -np.arange(len(table))) - 0.5) < 0.06  # 2.5 deviations


def test_the_order_follows_from_the_row_alone(tmp_path):
    """In each process and folder; these were drawn once."""
    orders = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_hpdv3(folder, 5)
        table = human_votes.read(f"hpdv3:{folder}")
        orders.append(table.value[::2].astype(int).tolist())
    assert orders[0] == orders[1] == [0, 0, 0, 1, 0, 1, 0, 1, 0, 0]


def test_a_bad_choice_is_left_out(tmp_path):
    rows = write_hpdv3(tmp_path, 3, 1)
    touch(tmp_path.parent, "outside.jpg")
    bad = [rows[0] | {"path2": rows[0]["path1"]}, rows[0] | {"path1": "../outside.jpg"}, rows[0] | {"path2": "images/none.jpg"},
           rows[0] | {"prompt": None}, rows[0] | {"path1": 3}, None, []]  # fmt: skip
    (tmp_path / "test.json").write_text(json.dumps([*bad, *rows]), "utf-8")
    with pytest.warns(UserWarning, match="7 of 10 rows are left out: a picture is compared with itself"):
        table = human_votes.read(f"hpdv3:{tmp_path}")
    assert len(table) == 6 and table.attrs["left_out"] == {
        "a picture is compared with itself": 1, "a picture lies outside the folder of the set": 1, "a picture is missing": 1,
        "prompt is empty or no text": 1, "path1 is empty or no text": 3}  # fmt: skip
    with pytest.raises(FileNotFoundError, match="train.json is missing"):
        human_votes.read(f"hpdv3:{tmp_path}", split="train")


@pytest.mark.parametrize("place", ["test/", ""])
def test_hpdv3_plus_has_two_axes(tmp_path, place):
    touch(tmp_path, "images/qwen_image/a.png", "images/qwen_image/b.png", f"{place}x")
    row = {"path1": "images/qwen_image/a.png", "path2": "images/qwen_image/b.png", "prompt": ODD}
    swapped = {"path1": row["path2"], "path2": row["path1"], "prompt": ODD}
    (tmp_path / f"{place}test_tf.json").write_text(json.dumps([row, row]), "utf-8")
    with pytest.raises(FileNotFoundError, match="test/test_aes.json is missing"):
        human_votes.read(f"hpdv3++:{tmp_path}")
    (tmp_path / f"{place}test_aes.json").write_text(json.dumps([swapped]), "utf-8")
    table = human_votes.read(f"hpdv3++:{tmp_path}")
    best = table[table.value == 1]
    assert list(zip(best.axis, best.image.str[-5:])) == [("alignment", "a.png")] * 2 + [("aesthetics", "b.png")]
    assert human_votes.agreement(table.assign(score=table.image == best.image[best.index[0]]))[["axis", "mean"]].values.tolist() == [
        ["alignment", 1], ["aesthetics", 0]]  # fmt: skip


# ---- Rapidata ---------------------------------------------------------------------------------------------------


def rapidata_row(i, votes=(20, 6), **changed):
    images = {f"image{k}": {"bytes": f"{i}-{k}".encode(), "path": "/etc/hostname"} for k in (1, 2)}
    paths = {f"image{k}_path": f"model{k}/{i}.jpg" for k in (1, 2)}
    row = {"prompt": f"{ODD} {i}", "votes_image1": votes[0], "votes_image2": votes[1], "model1": "a", "detailed_results": "{"}
    return row | images | paths | changed


def write_rapidata(folder, *shards):
    (folder / "data").mkdir(parents=True)
    for i, rows in enumerate(shards, 1):
        pd.DataFrame(rows).to_parquet(folder / f"data/train_{i:04d}-00000-of-00001.parquet")
    return folder


def test_rapidata_votes_are_shares_and_its_pictures_files(tmp_path):
    shards = [rapidata_row(0), rapidata_row(1, (13, 13))], [rapidata_row(2, (0, 26))]
    folder = write_rapidata(tmp_path / "117k_human_Alignment_flux", *shards)
    with pytest.raises(ValueError, match="keeps its pictures inside its tables: give `out`"):
        human_votes.read(f"rapidata:{folder}")
    table = human_votes.read(f"rapidata:{folder}", tmp_path / "out")
    contents = [open(path, "rb").read().decode() for path in table.image]
    values = {content: value for content, value in zip(contents, table.value)}
    assert values == {"0-1": 20 / 26, "0-2": 6 / 26, "1-1": 0.5, "1-2": 0.5, "2-1": 0, "2-2": 1} and set(table.axis) == {"alignment"}
    assert [len(set(part)) for part in np.split(table.comparison.to_numpy(), 3)] == [1, 1, 1]
    row = human_votes.agreement(table.assign(score=[c == "2-2" or c == "0-1" for c in contents])).iloc[0]
    assert (row["mean"], row.n, row.groups) == (1, 2, 2)  # the tie is no pair
    assert human_votes.read(f"rapidata:{folder}", tmp_path / "out").equals(table)


def test_rapidata_leaves_out_rows_without_votes_or_pictures(tmp_path):
    rows = [rapidata_row(0), rapidata_row(1, (0, 0)), rapidata_row(2, (-1, 5)), rapidata_row(3, (None, 3)), rapidata_row(4, prompt=""),
            rapidata_row(5, image2={"bytes": None, "path": "/etc/hostname"}), rapidata_row(6, image1_path="model2/6.jpg")]  # fmt: skip
    folder = write_rapidata(tmp_path / "sets", rows)
    with pytest.raises(ValueError, match="does not tell what people were asked: give axis, one of preference, alignment, coherence"):
        human_votes.read(f"rapidata:{folder}", tmp_path / "out")
    with pytest.warns(UserWarning, match="6 of 7 rows are left out"):
        table = human_votes.read(f"rapidata:{folder}", tmp_path / "out", axis="coherence")
    assert table.axis.tolist() == ["coherence"] * 2 and table.attrs["left_out"] == {
        "nobody voted": 2, "votes_image1 is no number": 1, "prompt is empty or no text": 1, "a picture is missing": 1,
        "a picture is compared with itself": 1}  # fmt: skip


# ---- MMRB2 ------------------------------------------------------------------------------------------------------

SOURCES = {"oneigbench": {"id": "124", "category": "Text_Rendering"}, "wise": {"id": 828, "category": "x", "version": "rewrite"},
           "evalmuse": {"id": "03251"}, "r2ibench": {"id": "logical_73", "category": "logical"}}  # fmt: skip
LOOKUP = {"oneigbench": "124_Text_Rendering", "wise": "828_rewrite", "r2ibench": "logical_73"}


def mmrb2_row(source, chosen="A", **changed):
    name = f"{source}_124_-80043_imagen4"
    sides = {f"response_{s}": {"model_name": "m", "response_content": [["image", f"{name}_{k}.jpg"]]} for k, s in enumerate("ab")}
    return {"id": name, "chosen": chosen, "human_annotations": [6, 2, 5], "prompt_source": source,
            "prompt_metadata": SOURCES.get(source, {"id": "1"})} | sides | changed  # fmt: skip


def write_mmrb2(folder, rows, file="t2i_response_only.json"):
    (folder / file).write_text(json.dumps({"pairs": rows}), "utf-8")
    touch(folder, *(f"images/{source}_124_-80043_imagen4_{k}.jpg" for source in SOURCES for k in (0, 1)))
    for source, metadata in SOURCES.items():
        line = {"id": metadata["id"], "prompt_content": [["text", f"{ODD} {source}"]], "metadata": metadata}
        line |= {"lookup_key": LOOKUP[source]} if source in LOOKUP else {}
        touch(folder, f"sources/{source}/x")
        other = json.dumps({"id": "other", "prompt_content": [["text", "no"]]})
        (folder / f"sources/{source}/prompts.jsonl").write_text(f"{other}\n{json.dumps(line)}\n", "utf-8")


def test_mmrb2_takes_prompts_from_their_sources(tmp_path):
    write_mmrb2(tmp_path, [mmrb2_row(source, "AB"[i % 2]) for i, source in enumerate(SOURCES)])
    table = human_votes.read(f"mmrb2:{tmp_path}")
    best = table[table.value == 1].set_index("prompt").image.str[-5]
    assert best.to_dict() == {f"{ODD} {source}": "01"[i % 2] for i, source in enumerate(SOURCES)} and len(table) == 8


def test_mmrb2_as_its_scripts_build_it(tmp_path):
    images = {f"response_{s}": {"response_content": [["image", f"images/wise_124_-80043_imagen4_{k}.jpg"]]} for k, s in enumerate("ab")}
    write_mmrb2(tmp_path, [mmrb2_row("wise", "B", prompt_content=[["text", ODD]], **images)], "t2i.json")
    table = human_votes.read(f"mmrb2:{tmp_path}")
    assert set(table.prompt) == {ODD} and preferred(table) == ["wise_124_-80043_imagen4_1.jpg"]


def test_mmrb2_leaves_out_pairs_without_prompt_or_pictures(tmp_path):
    content = lambda *entries: {"response_content": list(entries)}
    touch(tmp_path.parent, "outside.jpg")
    rows = [mmrb2_row("wise"), mmrb2_row("realunify_ueg"), mmrb2_row("wise", prompt_metadata={"id": 829, "version": "rewrite"}), 7,
            mmrb2_row("wise", "C"), mmrb2_row("wise", response_a=content(["image", "../../outside.jpg"])),
            mmrb2_row("wise", response_a=content()), mmrb2_row("wise", response_a=content(["image", "none.jpg"])),
            mmrb2_row("wise", response_b=content(["image", "a"], ["image", "b"])), mmrb2_row("wise", response_a=None),
            mmrb2_row("wise", prompt_content=7), mmrb2_row("wise", prompt_content=[["text"], 7])]  # fmt: skip
    write_mmrb2(tmp_path, rows)
    with pytest.warns(UserWarning, match="11 of 12 rows are left out"):
        table = human_votes.read(f"mmrb2:{tmp_path}")
    assert len(table) == 2 and table.attrs["left_out"] == {
        "sources has no such prompt": 2, "chosen is empty or no text": 1, "chosen is neither A nor B": 1,
        "a picture lies outside the folder of the set": 1, "response_content has no image, or more than one": 2, "a picture is missing": 1,
        "response_a is no object": 1, "prompt_content has no text, or more than one": 2}  # fmt: skip
    (tmp_path / "t2i.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError, match="t2i.json has no list of pairs"):
        human_votes.read(f"mmrb2:{tmp_path}")


# ---- agreement --------------------------------------------------------------------------------------------------


def test_votes_are_compared_within_their_comparison_alone(tmp_path):
    """Of one prompt: a beats b twice, b beats a once, and a ranking of c over d whose values are those of other comparisons."""
    rows = [("a", 1, "1"), ("b", 0, "1"), ("b", 0, "2"), ("a", 1, "2"), ("a", 0, "3"), ("b", 1, "3"), ("c", 0.5, "4"), ("d", 0.2, "4")]
    table = pd.DataFrame(rows, columns=["image", "value", "comparison"]).assign(prompt="p", axis="x")
    score = table.image.map({"a": 2, "b": 1, "c": 9, "d": 0})
    assert pairs_of(table, score) == 0.75
    alone = table.drop(columns="comparison")
    assert human_votes.agreement(alone.assign(score=score)).set_index("measure").loc["pairs", "n"] == 6
    table.assign(image=table.image + ".png").to_csv(tmp_path / "votes.csv", index=False)
    own = human_votes.read(str(tmp_path / "votes.csv"))
    assert own.columns.tolist() == [*human_votes.COLUMNS, "comparison"] and pairs_of(own, score.tolist()) == 0.75


def test_rows_without_a_comparison_are_compared_with_each_other(tmp_path):
    rows = [("a", 1, None), ("b", 2, None), ("c", 3, np.nan), ("a", 9, 1), ("b", 0, 1)]
    table = pd.DataFrame(rows, columns=["image", "value", "comparison"], dtype=object).assign(prompt="p", axis="x")
    table = table.assign(value=table.value.astype(float), score=table.image.map({"a": 1.0, "b": 2.0, "c": 3.0}))
    agreed = human_votes.agreement(table, resamples=20).set_index("measure")
    assert agreed.loc["pairs", ["mean", "n"]].tolist() == [0.75, 4] and agreed.loc["spearman", ["mean", "n"]].tolist() == [1, 3]


def test_names_of_a_comparison_decide_its_order_and_nothing_else():
    votes = [vote_pairs.compared(i, "x", "p", [f"{i}a", f"{i}b"], ["A", "B"], [1.0, 0.0]) for i in range(200)]
    assert 70 < sum(pair[0].image == "A" for pair in votes) < 130
    assert all(sorted(v.value for v in pair) == [0, 1] and {v.comparison for v in pair} == {str(i)} for i, pair in enumerate(votes))
    again = [vote_pairs.compared(9, "x", "p", [f"{i}a", f"{i}b"], ["C", "D"], [0.3, 0.7]) for i in range(200)]
    assert [pair[0].image == "A" for pair in votes] == [pair[0].image == "C" for pair in again]
