"""Readers of published votes, on small folders in their formats, and agreement against closed forms."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from icthp.evaluation import human_votes

SDV2 = """HITId,Input.index,Input.prompt_id,Input.image_id,Input.image_url,Input.caption,Input.object_0_name,Input.object_1_name,Input.object_0_name_plural,Input.object_1_name_plural,Input.exclude,Answer.ee,Answer.task-color-0,Answer.task-color-1,Answer.task-count-0,Answer.task-count-1,Answer.task-objects,Answer.task-position-x,Answer.task-position-y,Answer.task-quality,Answer.task-real-0,Answer.task-real-1
A,0_1,0,1,https://x.org/images/sdv2/00000/samples/00001.png,a photo of a white bear,bear,,bears,,"object-1,position",80.1,black|white,,1,,bear,,,4,3.0,
A,0_1,0,1,https://x.org/images/sdv2/00000/samples/00001.png,a photo of a white bear,bear,,bears,,"object-1,position",10.1,black,,1,,bear,,,3,2.0,
B,1_0,1,0,https://x.org/images/sdv2/00001/samples/00000.png,a photo of three cows,cow,,cows,,"object-1,position",9.1,brown,,2,,none,,,1,1.0,
"""  # noqa: E501
METADATA = [{"tag": "colors", "include": [{"class": "bear", "count": 1, "color": "white"}], "prompt": "a photo of a white bear"},
            {"tag": "counting", "include": [{"class": "cow", "count": 3}], "prompt": "a photo of three cows"}]  # fmt: skip


def flickr8k(folder):
    (folder / "Flickr8k.token.txt").write_text('a.jpg#0\tA dog runs .\nb.jpg#2\tTwo "men" talk .\n')
    (folder / "ExpertAnnotations.txt").write_text("a.jpg\ta.jpg#0\t4\t4\t4\na.jpg\tb.jpg#2\t1\t2\t1\nc.jpg\ta.jpg#0\t3\t2\t1\n")


def agiqa3k(folder):
    (folder / "data.csv").write_text("name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"
                                     'x_000.jpg,"a cat, sitting",,,,2.5,0.1,3.25,0.2\ny_000.jpg,a dog,,,,1.0,0.1,4.0,0.2\n')  # fmt: skip


def imagereward(folder):
    rows = [{"id": "1-1", "prompt": "a cola", "generations": ["p/1.webp", "p/2.webp"], "ranking": [1, 3]}]
    (folder / "test.json").write_text(json.dumps(rows))


def geneval(folder):
    (folder / "annotations_sdv2.csv").write_text(SDV2)
    (folder / "geneval_metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METADATA))


def test_flickr8k_has_every_judgement_but_of_own_captions(tmp_path):
    flickr8k(tmp_path)
    table = human_votes.read(f"flickr8k:{tmp_path}")
    assert sorted(zip(table.image.str[-5:], table.prompt, table.value)) == sorted(
        [("a.jpg", 'Two "men" talk .', v) for v in (1, 2, 1)] + [("c.jpg", "A dog runs .", v) for v in (3, 2, 1)]
    )
    assert table.image[0] == str(tmp_path / "Flicker8k_Dataset/a.jpg") and set(table.axis) == {"alignment"}


def test_agiqa3k_has_two_axes(tmp_path):
    agiqa3k(tmp_path)
    table = human_votes.read(f"agiqa3k:{tmp_path}")
    assert table.axis.tolist() == ["quality"] * 2 + ["alignment"] * 2 and table.value.tolist() == [2.5, 1, 3.25, 4]
    assert table.prompt[0] == "a cat, sitting" and table.image[0] == str(tmp_path / "x_000.jpg")


def test_imagereward_ranks_become_values(tmp_path):
    imagereward(tmp_path)
    table = human_votes.read(f"imagereward:{tmp_path}")
    assert table.value.tolist() == [-1, -3] and table.image[1] == str(tmp_path / "p/2.webp") and set(table.prompt) == {"a cola"}


def test_geneval_averages_its_people(tmp_path):
    """One of two people sees white; three cows were asked for and two counted."""
    geneval(tmp_path)
    table = human_votes.read(f"geneval:{tmp_path}").pivot(index="image", columns="axis", values="value")
    assert table.index.tolist() == [str(tmp_path / f"sdv2/0000{i}/samples/0000{1 - i}.png") for i in (0, 1)]
    assert table.quality.tolist() == [3.5, 1] and table.realism.tolist() == [2.5, 1] and table.alignment.tolist() == [0.75, 0]


def test_a_table_of_ones_own(tmp_path):
    table = pd.DataFrame({"prompt": ["a", "a"], "image": ["1.png", "2.png"], "axis": "beauty", "value": [1, 2], "more": 0})
    table.to_csv(tmp_path / "votes.csv", index=False)
    assert human_votes.read(str(tmp_path / "votes.csv")).image.tolist() == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    table.drop(columns="axis").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=r"bad.csv has no column `axis`; it has prompt, image"):
        human_votes.read(str(tmp_path / "bad.csv"))
    with pytest.raises(ValueError, match="no set of votes agiqa4k: it is one of flickr8k, agiqa3k"):
        human_votes.read("agiqa4k:/somewhere")
    for name in human_votes.READERS:
        with pytest.raises(FileNotFoundError, match="is missing: it is a file of the published set"):
            human_votes.read(f"{name}:{tmp_path}")


ODD = ["None", "NA", "1984", "007", "a\u2028b", "café \U0001f600"]


def test_prompts_of_published_sets_are_texts(tmp_path):
    """However they look; with a byte order mark, with CRLF, and with a name of a picture that looks like a number."""
    lines = [f"p.jpg#{i}\t{prompt}\r\n" for i, prompt in enumerate(ODD)]
    (tmp_path / "Flickr8k.token.txt").write_bytes(("\ufeff" + "".join(lines)).encode())
    judgements = "".join(f"007\tp.jpg#{i}\t1\t2\t4\n" for i in range(len(ODD)))
    (tmp_path / "ExpertAnnotations.txt").write_text(judgements, encoding="utf-8")
    table = human_votes.read(f"flickr8k:{tmp_path}")
    assert sorted(set(table.prompt)) == sorted(ODD) and len(table) == 3 * len(ODD) and table.image[0].endswith("/007")

    rows = "".join(f"007,{prompt},4,5.5\r\n" for prompt in ODD)
    (tmp_path / "data.csv").write_bytes(f"\ufeffname,prompt,mos_quality,mos_align\r\n{rows}".encode())
    table = human_votes.read(f"agiqa3k:{tmp_path}")
    assert table.prompt.tolist() == ODD * 2 and table.image[0].endswith("/007") and table.value.tolist() == [4] * 6 + [5.5] * 6

    ranked = [{"prompt": prompt, "generations": ["1984"], "ranking": [1]} for prompt in ODD]
    (tmp_path / "test.json").write_text(json.dumps(ranked, ensure_ascii=False), encoding="utf-8-sig")
    table = human_votes.read(f"imagereward:{tmp_path}")
    assert table.prompt.tolist() == ODD and table.image[0].endswith("/1984")

    geneval(tmp_path)
    answers = SDV2.replace("a photo of a white bear", "NA").replace(",black|white,", ",null,").replace(",brown,", ",,")
    (tmp_path / "annotations_sdv2.csv").write_text(answers, encoding="utf-8-sig")
    metadata = "".join(json.dumps(row | {"prompt": "a\u2028b"}, ensure_ascii=False) + "\n" for row in METADATA)
    (tmp_path / "geneval_metadata.jsonl").write_text(metadata, "utf-8")
    table = human_votes.read(f"geneval:{tmp_path}").pivot(index=["image", "prompt"], columns="axis", values="value").reset_index()
    assert table.prompt.tolist() == ["NA", "a photo of three cows"] and table.alignment.tolist() == [0.5, 0]


@pytest.mark.parametrize("name, file, text, message", [
    ("agiqa3k", "data.csv", "name,prompt,mos_quality\na,b,1\n", "data.csv has no column `mos_align`"),
    ("agiqa3k", "data.csv", "name,prompt,mos_quality,mos_align\na,b,good,1\n", "`mos_quality`, row 0 is 'good', which is no number"),
    ("agiqa3k", "data.csv", "name,prompt,mos_quality,mos_align\na,,1,1\n", "column `prompt` is empty in row 0"),
    ("imagereward", "test.json", "{}", "test.json is no list of JSON objects"),
    ("imagereward", "test.json", '[{"prompt": "a", "generations": ["x"]}]', "test.json: row 0 has no prompt, generations and ranking"),
    ("imagereward", "test.json", '[{"prompt": "a", "generations": ["x", "y"], "ranking": [1]}]', "test.json: row 0 has no"),
    ("imagereward", "test.json", '[{"prompt": "a", "generations": "x", "ranking": 1}]', "test.json: row 0 has no"),
    ("imagereward", "test.json", '[{"prompt": 7, "generations": ["x"], "ranking": [1]}]', "column `prompt`, row 0 is 7, which is no text"),
    ("flickr8k", "ExpertAnnotations.txt", "a.jpg\ta.jpg#0\t4\t4\n", "ExpertAnnotations.txt, line 1 has 4 cells, not the 5"),
    ("flickr8k", "ExpertAnnotations.txt", "a.jpg\ta.jpg#0\t4\t4\tx\n", "row 0 is 'x', which is no number"),
    ("geneval", "annotations_sdv2.csv", SDV2.replace("Input.prompt_id", "Input.id"), "annotations_sdv2.csv has no column `prompt_id`"),
    ("geneval", "annotations_sdv2.csv", SDV2.replace("0_1,0,1,", "0_1,2,1,"), "annotations_sdv2.csv asks of prompt 2"),
    ("geneval", "geneval_metadata.jsonl", "{", "geneval_metadata.jsonl, line 1 is no JSON"),
])  # fmt: skip
def test_a_published_set_that_is_not_as_published_is_named(tmp_path, name, file, text, message):
    globals()[name](tmp_path)
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        human_votes.read(f"{name}:{tmp_path}")


def test_agreement_closed_forms():
    """A score that orders as people do, one that does the opposite, one that is constant; equal values make no pair."""
    prompts = np.repeat([f"p{i}" for i in range(20)], 4)
    value = np.tile([1.0, 2, 3, 3], 20) + np.repeat(np.arange(20) * 10, 4)
    table = pd.DataFrame({"prompt": prompts, "image": np.arange(80).astype(str), "axis": "a", "value": value})
    means = lambda score: human_votes.agreement(table.assign(score=score)).set_index("measure")["mean"]
    same = means(table.value**3)
    opposite = means(-table.value)
    constant = means(1.0)
    assert same.pairs == 1 and same.spearman == pytest.approx(1) and opposite.pairs == 0 and opposite.spearman == pytest.approx(-1)
    assert constant.pairs == 0.5 and np.isnan(constant.spearman) and np.isnan(constant.tau_c)
    assert same.tau_c == pytest.approx(stats.kendalltau(table.value, table.value, variant="c").statistic)


def test_a_picture_is_no_pair_with_itself():
    """Three judges each for three pictures; a score that orders the pictures as their means do is always right."""
    table = pd.DataFrame({"prompt": "p", "image": np.repeat(["a", "b", "c"], 3), "axis": "x", "value": [1, 2, 1, 2, 3, 2, 4, 3, 4]})
    table = pd.concat([table, table.assign(prompt="q")]).assign(score=lambda t: t.image.map({"a": 0.1, "b": 0.2, "c": 0.3}))
    assert human_votes.agreement(table).set_index("measure")["mean"].pairs == 1
    correct, prompts = human_votes.ordered_pairs(table)
    assert correct.tolist() == [1] * 6 and prompts.tolist() == ["p"] * 3 + ["q"] * 3
    with pytest.raises(ValueError, match="no picture has both"):
        human_votes.agreement(table.assign(score=np.nan))


@pytest.mark.slow
def test_agreement_covers_the_truth():
    """Scores with noise: a pair of values 1 apart with noise of standard deviation 1 in the score is ordered with Phi(1 / sqrt 2)."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(80), 2).astype(str)
    table = pd.DataFrame({"prompt": prompts, "image": np.arange(160), "axis": "a", "value": np.tile([0.0, 1.0], 80)})
    inside = 0
    for i in range(40):
        table["score"] = table.value + rng.normal(size=160)
        row = human_votes.agreement(table, seed=i, resamples=60).set_index("measure").loc["pairs"]
        inside += row.low <= stats.norm.cdf(1 / 2**0.5) <= row.high
    assert inside >= 33 and row.n == 80
