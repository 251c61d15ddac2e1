"""GenEval's rules against hand-made cases and an independent reading of them; its detector, colours and files."""

import json

import numpy as np
import pytest
import torch
from geneval_layout import write_folder
from PIL import Image
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

from conftest import ROOT
from icthp.evaluation import geneval
from icthp.microworld import detector
from icthp.scorers import loading

SHARED = ROOT.parent / "shared/data/prompts/geneval_metadata.jsonl"


def at(label, colour="red", x=0.0, y=0.0, side=20, score=0.95):
    """An object by its centre, in pixels."""
    return geneval.Detection(label, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), colour)


def ask(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": ""}


ONE, STAR = {"class": "circle", "count": 1}, {"class": "star", "count": 1}
PLACED = ask("position", ONE, STAR | {"position": ["right of", 0]})
THREE = ask("counting", {"class": "circle", "count": 3}, exclude=[{"class": "circle", "count": 4}])
BOTH = ask("color_attr", ONE | {"color": "red"}, STAR | {"color": "blue"})
CASES = [
    ("there", [at("circle")], ask("single_object", ONE), ""),
    ("absent", [at("star")], ask("single_object", ONE), "0 of 1 circle"),
    ("nothing found", [], ask("single_object", ONE), "0 of 1 circle"),
    ("more than asked is no fault", [at("circle")] * 2, ask("single_object", ONE), ""),
    ("both", [at("circle"), at("star")], ask("two_object", ONE, STAR), ""),
    ("one of two", [at("circle")], ask("two_object", ONE, STAR), "0 of 1 star"),
    ("count", [at("circle")] * 3, THREE, ""),
    ("one too many", [at("circle")] * 4, THREE, "4 of circle, 4 are too many"),
    ("one too few", [at("circle")] * 2, THREE, "2 of 3 circle"),
    ("colour", [at("circle", "blue")], ask("colors", ONE | {"color": "blue"}), ""),
    ("other colour", [at("circle")], ask("colors", ONE | {"color": "blue"}), "circle is red, not blue"),
    ("the most certain one's colour counts", [at("circle"), at("circle", "blue", score=0.5)],
     ask("colors", ONE | {"color": "blue"}), "circle is red, not blue"),
    ("colours", [at("circle"), at("star", "blue")], BOTH, ""),
    ("colours swapped", [at("circle", "blue"), at("star")], BOTH, "circle is blue, not red; star is red, not blue"),
    ("right of", [at("circle", x=0), at("star", x=60)], PLACED, ""),
    ("left of instead", [at("circle", x=60), at("star", x=0)], PLACED, "star is not right of the other"),
    ("nothing to refer to", [at("star", x=60)], PLACED, "0 of 1 circle; nothing for star to be right of"),
    ("too near to say", [at("circle"), at("star", x=3)], PLACED, "star is not right of the other"),
    ("at the edge of the dead zone", [at("circle"), at("star", x=4.0)], PLACED, "star is not right of the other"),
    ("just half beyond it", [at("circle"), at("star", x=8.1)], PLACED, ""),
    ("just not half beyond it", [at("circle"), at("star", x=7.9)], PLACED, "star is not right of the other"),
    ("diagonal counts as both", [at("circle"), at("star", x=60, y=60)], PLACED, ""),
    ("mostly below", [at("circle"), at("star", x=12, y=60)], PLACED, "star is not right of the other"),
    ("large objects have a wide dead zone", [at("circle", side=200), at("star", x=60, side=200)], PLACED, "star is not right of the other"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "metadata", "fault"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_rules(found, metadata, fault):
    assert geneval.check(found, metadata) == (not fault, fault)


def test_every_pair_must_stand_so():
    """Two wanted, one of them on the wrong side."""
    metadata = ask("position", {"class": "circle", "count": 2}, STAR | {"position": ["right of", 0]})
    left = [at("circle", x=0), at("circle", x=20, y=30)]
    assert geneval.check([*left, at("star", x=200)], metadata)[0]
    assert not geneval.check([left[0], at("circle", x=400), at("star", x=200)], metadata)[0]


def test_detections_that_count():
    """Above 0.3, for counting above 0.9, never at it; sixteen of a class; most certain first."""
    found = [at("circle", score=s) for s in (0.3, 0.31, 0.9, 0.91)]
    assert [d.score for d in geneval.filter_detections(found, {"tag": "colors"})] == [0.91, 0.9, 0.31]
    assert [d.score for d in geneval.filter_detections(found, {"tag": "counting"})] == [0.91]
    found = [at("circle", score=0.4 + i / 100) for i in range(20)] + [at("star", score=0.35)]
    assert [d.label for d in geneval.filter_detections(found, {"tag": "colors"})] == ["circle"] * 16 + ["star"]


# ---- an independent reading of the rules: plain loops over numbers -----------------------------------------------------


def relations_by_hand(a, b):
    ax, bx = (a.box[0] + a.box[2]) / 2, (b.box[0] + b.box[2]) / 2
    ay, by = (a.box[1] + a.box[3]) / 2, (b.box[1] + b.box[3]) / 2
    length = ((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5
    found = []
    for i, delta, before, after in ((0, ax - bx, "left of", "right of"), (1, ay - by, "above", "below")):
        beyond = abs(delta) - 0.1 * (a.box[i + 2] - a.box[i] + b.box[i + 2] - b.box[i])
        if beyond > 1e-3 and beyond / length > 0.5:
            found.append(before if delta < 0 else after)
    return found


def check_by_hand(found, metadata):
    correct = True
    groups = []
    for want in metadata["include"]:
        group = []
        for d in found:
            if d.label == want["class"] and len(group) < want["count"]:
                group.append(d)
        fits = True
        if len(group) != want["count"]:
            fits = False
        elif "color" in want and any(d.colour != want["color"] for d in group):
            fits = False
        elif "position" in want:
            relation, other = want["position"]
            fits = groups[other] is not None and all(relation in relations_by_hand(d, t) for d in group for t in groups[other])
        correct = correct and fits
        groups.append(group if fits else None)
    for ban in metadata.get("exclude", []):
        correct = correct and len([d for d in found if d.label == ban["class"]]) < ban["count"]
    return correct


def metadata_of_every_task():
    return {
        "single_object": ask("single_object", ONE), "two_object": ask("two_object", ONE, STAR), "counting": THREE,
        "colors": ask("colors", ONE | {"color": "red"}), "position": PLACED, "color_attr": BOTH,
    }  # fmt: skip


@pytest.mark.parametrize("task", geneval.TASKS)
def test_rules_agree_with_an_independent_reading(task):
    """On 400 random lists of detections of which both answers are common."""
    rng = np.random.default_rng(geneval.TASKS.index(task))
    metadata = metadata_of_every_task()[task]
    correct = 0
    for _ in range(400):
        found = random_detections(rng, task)
        answer = geneval.check(found, metadata)[0]
        assert answer == check_by_hand(found, metadata), found
        correct += answer
    assert 20 < correct < 380


def random_detections(rng, task):
    found = []
    for label in rng.choice(["circle", "star"], rng.integers(1, 6) + 2 * (task == "counting")):
        x, y = rng.integers(0, 100, 2)
        width, height = rng.integers(1, 120, 2)
        box = (x, y, x + width, y + height)
        found.append(geneval.Detection(str(label), float(rng.random()), box, str(rng.choice(["red", "blue"]))))
    found = sorted(found, key=lambda d: -d.score)
    if task == "position" and rng.random() < 0.5:  # at the edges of the rule
        target = next((d for d in found if d.label == "circle"), at("circle"))
        centre = [(target.box[i] + target.box[i + 2]) / 2 + rng.choice([-1, 0, 1]) * rng.uniform(0, 30) for i in (0, 1)]
        found = [target, at("star", x=centre[0], y=centre[1], side=rng.uniform(1, 60))]
    return found


@pytest.mark.skipif(not SHARED.exists(), reason="GenEval's own prompts are not here")
def test_the_official_prompts(tmp_path):
    """All 553: a picture with just what is asked passes; without its last object it fails."""
    rows = geneval.read_metadata(SHARED)
    assert len(rows) == 553 and {r["tag"] for r in rows} == set(geneval.TASKS)
    places = {"left of": (-200, 0), "right of": (200, 0), "above": (0, -200), "below": (0, 200)}
    for row in rows:
        found = []
        for want in row["include"]:
            x, y = places[want["position"][0]] if "position" in want else (0, 0)
            found += [at(want["class"], want.get("color", ""), x, y) for _ in range(want["count"])]
        assert geneval.check(found, row) == (True, "") and not geneval.check(found[:-1], row)[0]
    classes = {w["class"] for r in rows for w in r["include"]}
    assert set(geneval.COCO.values()) <= classes and not set(geneval.COCO) & classes and len(classes) == 80


# ---- pictures and files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """A tiny random one in the Hub's format."""
    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
                      out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = Mask2FormerConfig(backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
                               dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=8,
                               num_labels=3, id2label={0: "person", 1: "mouse", 2: "keyboard"})  # fmt: skip
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}, num_labels=3, ignore_index=255).save_pretrained(folder)
    return folder


def picture(seed=0, size=(90, 70)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def test_mask2former_finds_boxes_around_its_masks(mask2former):
    found = geneval.Mask2Former(mask2former).detect(picture(), threshold=0.0)
    assert found and {d.label for d in found} <= {"person", "computer mouse", "computer keyboard"}
    for d in found:
        left, top, right, bottom = d.box
        assert d.mask.shape == (70, 90) and d.mask.dtype == bool and 0 <= d.score <= 1
        assert d.mask[top:bottom, left:right].sum() == d.mask.sum() > 0
        inside = d.mask[top:bottom, left:right]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_colours_are_read_inside_the_mask(clip_folder):
    """A CLIP whose text and image features are colours says the masked object's, not its surroundings'."""
    rgb = dict(zip(geneval.COLOURS, [(1, 0, 0), (1, 0.5, 0), (1, 1, 0), (0, 0.6, 0), (0, 0, 1), (0.5, 0, 0.5), (1, 0.7, 0.8), (0.4, 0.2, 0),
                             (0, 0, 0), (1, 1, 1)]))  # fmt: skip
    features = lambda values: torch.nn.functional.normalize(torch.tensor(values).float() - 0.5, dim=-1)

    class ColourScorer:
        device = torch.device("cpu")

        def text_features(self, texts):
            return features([next(v for c, v in rgb.items() if f" {c}" in t) for t in texts])

        def image_features(self, pixels):
            return features((pixels.float() / 255).mean((2, 3)).tolist())

    image = np.full((60, 60, 3), (0, 153, 0), dtype=np.uint8)
    image[10:30, 10:30] = (0, 0, 255)
    mask = np.zeros((60, 60), dtype=bool)
    mask[10:30, 10:30] = True
    whole = geneval.Detection("ball", 0.9, (0, 0, 60, 60), mask=None)
    masked = geneval.Detection("ball", 0.9, (10, 10, 30, 30), mask=mask)
    colours = geneval.ClipColours(ColourScorer())
    assert colours(Image.fromarray(image), [whole, masked], "ball") == ["green", "blue"]
    outside = masked._replace(mask=~mask, box=(0, 0, 60, 60))
    assert colours(Image.fromarray(image), [outside], "ball") == ["green"]
    real = geneval.ClipColours(loading.load("clip", f"local-dir:{clip_folder}"))
    assert set(real(Image.fromarray(image), [whole, masked], "ball")) <= set(geneval.COLOURS)


def test_a_folder_in_its_layout_is_read_and_evaluated(tmp_path, mask2former, clip_folder):
    person = ask("single_object", {"class": "person", "count": 1}) | {"prompt": "a person"}
    mice = ask("counting", {"class": "computer mouse", "count": 30}) | {"prompt": "thirty mice"}
    rows = [person, mice]
    write_folder(tmp_path / "drawn", [picture(i) for i in range(4)], [rows[0], rows[1], rows[0], rows[1]])
    (tmp_path / "drawn/00000/samples/grid.png").write_bytes(b"not one of the pictures")
    table = geneval.read_folder(tmp_path / "drawn")
    assert [p[-23:] for p in table.image] == [f"0000{i}/samples/0000{j}.png" for i in (0, 1) for j in (0, 1)]
    assert table.prompt.tolist() == ["a person"] * 2 + ["thirty mice"] * 2 and table.metadata[3] == rows[1]
    colours = geneval.ClipColours(loading.load("clip", f"local-dir:{clip_folder}"))
    results = geneval.evaluate_folder(tmp_path / "drawn", geneval.Mask2Former(mask2former), colours)
    assert list(results) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert json.loads(results.metadata[0]) == rows[0] and not results.correct[2:].any()
    summary = geneval.summary(results)
    assert summary.overall == pytest.approx((summary.single_object + summary.counting) / 2)


class FixedDetector:
    """Finds the same objects in every picture, and keeps the pictures."""

    labels = {0: "circle", 1: "star"}

    def __init__(self, *found):
        self.found = list(found)
        self.pictures = []

    def detect(self, picture):
        self.pictures.append(picture)
        return self.found


def test_detections_become_a_row_of_the_results():
    """A low score does not count, a colour is asked of the picture."""
    detector = FixedDetector(at("circle", score=0.5), at("star", score=0.2))
    red_circle = ask("colors", ONE | {"color": "red"})
    row = geneval.evaluate(picture(), red_circle, detector, lambda image, objects, label: ["red"] * len(objects))
    assert row["correct"] and json.loads(row["details"]) == {"circle": [[-10.0, -10.0, 10.0, 10.0, 0.5]]}
    assert not geneval.evaluate(picture(), red_circle, detector, lambda image, objects, label: ["blue"])["correct"]
    assert geneval.evaluate(picture(), ask("two_object", ONE, STAR), detector, len)["reason"] == "0 of 1 star"
    with pytest.raises(ValueError, match="knows no sofa; it knows circle, star"):
        geneval.evaluate(picture(), ask("single_object", {"class": "sofa", "count": 1}), detector, len)


def test_the_evaluator_measures_drawn_pixels():
    evaluator = geneval.Evaluator(FixedDetector(at("circle")), len)
    pixels = torch.zeros(2, 3, 8, 6)
    tasks = [ask("single_object", ONE), ask("single_object", STAR)]
    assert evaluator.measure(pixels, tasks) == {"correct": [True, False]} and evaluator.measure(pixels) == {}
    assert [p.size for p in evaluator.detector.pictures] == [(6, 8)] * 2


def test_bad_files_are_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"tag": "colors", "include": [], "prompt": "x"}\n{"prompt": "y"}\n')
    with pytest.raises(ValueError, match=r"m.jsonl, line 2 has no tag, include"):
        geneval.read_metadata(tmp_path / "m.jsonl")
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match="none.jsonl is empty"):
        geneval.read_metadata(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="GenEval's layout"):
        geneval.read_folder(tmp_path)


def test_samples_of_any_ending_are_read_and_the_rest_is_counted(tmp_path):
    row = ask("single_object", ONE) | {"prompt": "a"}
    write_folder(tmp_path / "g", [picture(i) for i in range(3)], [row] * 2 + [row | {"prompt": "b"}])
    samples = tmp_path / "g/00000/samples"
    picture(3).save(samples / "00002.jpg")
    picture(4).save(samples / "00003.webp")
    (samples / "grid.png").write_bytes(b"x")
    (tmp_path / "g/results.jsonl").write_text("", encoding="utf-8")
    table = geneval.read_folder(tmp_path / "g")
    assert [p[-9:] for p in table.image] == ["00000.png", "00001.png", "00002.jpg", "0003.webp", "00000.png"]
    assert table.attrs["left_out"] == {"entries beside the prompts' folders": 1, "files in samples that are no numbered picture": 1}
    (tmp_path / "g/00001/samples/00000.png").unlink()
    with pytest.raises(ValueError, match="g/00001 has no pictures: samples/0000.png"):
        geneval.read_folder(tmp_path / "g")


def test_a_sample_that_cannot_be_read_is_named_and_the_others_evaluated(tmp_path):
    write_folder(tmp_path / "g", [picture(i) for i in range(3)], [ask("single_object", ONE)] * 2 + [ask("two_object", STAR)])
    (tmp_path / "g/00000/samples/00001.png").write_bytes(b"x")
    results = geneval.evaluate_folder(tmp_path / "g", FixedDetector(at("circle", score=0.5)), len)
    assert results.correct.tolist() == [True, None, False] and "00001.png cannot be read" in results.reason[1]
    with pytest.warns(UserWarning, match="1 of 3 pictures count in no mean: .*00001.png cannot be read"):
        summary = geneval.summary(results)
    assert summary.to_dict() == {"single_object": 1, "two_object": 0, "overall": 0.5}


def test_a_deep_grey_is_evaluated_in_its_range(tmp_path):
    detector = FixedDetector()
    write_folder(tmp_path / "g", [picture()], [ask("single_object", ONE)])
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(tmp_path / "g/00000/samples/00000.png")
    geneval.evaluate_folder(tmp_path / "g", detector, len)
    pixels = np.asarray(detector.pictures[0])
    assert pixels.shape == (64, 64, 3) and abs(pixels.mean() - 127.5) < 1


def test_an_object_without_a_pixel_is_no_detection(mask2former, monkeypatch):
    detector = geneval.Mask2Former(mask2former)
    post_process = detector.processor.post_process_instance_segmentation

    def with_an_empty_mask(*args, **options):
        (result,) = post_process(*args, **options)
        result["segmentation"][0] = 0
        return [result]

    found = detector.detect(picture(), threshold=0.0)
    monkeypatch.setattr(detector.processor, "post_process_instance_segmentation", with_an_empty_mask)
    assert len(detector.detect(picture(), threshold=0.0)) == len(found) - 1


def test_a_detector_that_is_not_there_is_named_with_the_remedy():
    with pytest.raises(FileNotFoundError, match="data/gone is no folder with a detector .`dvc pull`"):
        detector.load_detector("data/gone")
