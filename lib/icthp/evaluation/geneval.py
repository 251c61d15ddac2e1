"""GenEval (Ghosh et al., arXiv 2310.11513): does a picture show what its prompt asks? The rules of its six tasks on any detector's
objects, Mask2Former and CLIP where GenEval has them, and its files. Rules as in its own evaluation, at its default settings."""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

from icthp.images import SUFFIXES, path_text, to_image
from icthp.tables import read_jsonl

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COCO = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}  # COCO's names -> GenEval's


class Detection(NamedTuple):
    label: str
    score: float  # in [0, 1]
    box: tuple[float, float, float, float]  # left, top, right, bottom; y grows downwards
    colour: str = ""  # of a detector that knows it
    mask: np.ndarray | None = None  # (h, w) bool, of a detector that segments


def relations(a: Detection, b: Detection, threshold: float = 0.1) -> set[str]:
    """How a lies relative to b: a set of "left of", "right of", "above", "below". In each direction the distance of the centres counts
    beyond `threshold` times the sum of the two sides, and makes a relation when it is more than half of the whole distance."""
    low, high = np.array([a.box, b.box], dtype=float).reshape(2, 2, 2).swapaxes(0, 1)  # (object, x or y)
    offset = (low + high)[0] / 2 - (low + high)[1] / 2
    beyond = np.maximum(np.abs(offset) - threshold * np.abs(high - low).sum(0), 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    x, y = beyond / np.linalg.norm(offset)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, true in holds.items() if true}


def filter_detections(
    found: list[Detection], metadata: dict, threshold: float = 0.3, counting_threshold: float = 0.9, max_per_class: int = 16
) -> list[Detection]:
    """The detections that the rules count, most certain first: above a threshold, which is higher for the counting task, and at most
    `max_per_class` of a class."""
    threshold = counting_threshold if metadata["tag"] == "counting" else threshold
    certain = sorted((d for d in found if d.score > threshold), key=lambda d: -d.score)
    counts = Counter()
    filtered = []
    for detection in certain:
        if counts[detection.label] < max_per_class:
            filtered.append(detection)
        counts[detection.label] += 1
    return filtered


def stated_colours(objects: list[Detection], label: str) -> list[str]:
    """The colours that the detector itself gives."""
    return [d.colour for d in objects]


def check(
    found: list[Detection], metadata: dict, colours: Callable[[list[Detection], str], list[str]] = stated_colours
) -> tuple[bool, str]:
    """Is the prompt fulfilled, and if not, why: GenEval's rules on detections of `filter_detections`, most certain first.

    Each `include` wants `count` objects of its class; the most certain ones must all have its `color`, and lie in its relation to
    all those of the earlier include that its `position` names. Each `exclude` wants fewer than `count`. colours(objects, class) ->
    a colour each."""
    groups = []
    faults = []
    for want in metadata.get("include", []):
        group = [d for d in found if d.label == want["class"]][: want["count"]]
        fault = _fault(group, want, groups, colours)
        groups.append([] if fault else group)
        faults += [fault] if fault else []
    for ban in metadata.get("exclude", []):
        count = sum(d.label == ban["class"] for d in found)
        faults += [f"{count} of {ban['class']}, {ban['count']} are too many"] if count >= ban["count"] else []
    return not faults, "; ".join(faults)


def _fault(group: list[Detection], want: dict, earlier: list[list[Detection]], colours) -> str:
    """Why a group of detections is not what is wanted, "" if it is."""
    name = want["class"]
    if len(group) < want["count"]:
        return f"{len(group)} of {want['count']} {name}"
    if "color" in want and (found := colours(group, name)).count(want["color"]) < want["count"]:
        return f"{name} is {', '.join(found)}, not {want['color']}"
    if "position" in want:
        relation, other = want["position"]
        if not earlier[other]:
            return f"nothing for {name} to be {relation}"
        if not all(relation in relations(one, two) for one in group for two in earlier[other]):
            return f"{name} is not {relation} the other"
    return ""


class Mask2Former:
    """The detector of GenEval from transformers: a Hub name or a folder of an instance segmentation model with COCO's classes."""

    def __init__(self, source: str = "facebook/mask2former-swin-small-coco-instance", device="cpu"):
        self.processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        self.model = Mask2FormerForUniversalSegmentation.from_pretrained(source).eval().to(device)
        self.labels = {i: COCO.get(name, name) for i, name in self.model.config.id2label.items()}

    @torch.no_grad()
    def detect(self, picture: Image.Image, threshold: float = 0.3) -> list[Detection]:
        """The objects of an RGB picture, boxes in pixels around their masks."""
        out = self.model(**self.processor(picture, return_tensors="pt").to(self.model.device))
        size = picture.size[::-1]
        result = self.processor.post_process_instance_segmentation(out, threshold, target_sizes=[size], return_binary_maps=True)[0]
        found = []
        for segment, mask in zip(result["segments_info"], result["segmentation"]):
            mask = mask.cpu().numpy() > 0.5
            if mask.any():  # it is empty for an object that is smaller than a pixel of the picture
                found.append(Detection(self.labels[segment["label_id"]], segment["score"], _bounding_box(mask), mask=mask))
        return found


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the pixels that are set; right and bottom lie just outside."""
    rows = mask.any(1).nonzero()[0]
    columns = mask.any(0).nonzero()[0]
    return columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1


class ClipColours:
    """GenEval's colours: a zero-shot CLIP (there ViT-L-14) reads each object, cut out, on grey. scorer: a ClipScorer."""

    def __init__(self, scorer):
        self.scorer = scorer
        self.classifier = lru_cache(maxsize=None)(self._classifier)

    @torch.no_grad()
    def _classifier(self, label: str) -> torch.Tensor:
        """(10, d): each colour's mean text feature over three sentences."""
        sentences = [f"a photo of a {{}} {label}", f"a photo of a {{}}-colored {label}", "a photo of a {} object"]
        texts = self.scorer.text_features([s.format(c) for c in COLOURS for s in sentences])
        return torch.nn.functional.normalize(texts.unflatten(0, (len(COLOURS), -1)).mean(1), dim=-1)

    @torch.no_grad()
    def __call__(self, picture: Image.Image, objects: list[Detection], label: str) -> list[str]:
        """The colour of each object of one class in an RGB picture."""
        grey = Image.new("RGB", picture.size, "#999")
        colours = []
        for d in objects:
            masked = picture if d.mask is None else Image.composite(picture, grey, Image.fromarray(d.mask))
            pixels = torch.from_numpy(np.array(masked.crop(d.box))).permute(2, 0, 1)[None].to(self.scorer.device)
            logits = self.scorer.image_features(pixels) @ self.classifier(label).T
            colours.append(COLOURS[logits.argmax().item()])
        return colours


class Evaluator:
    """GenEval's detector and colours, as `evaluate_generator` measures with them."""

    def __init__(self, detector: Mask2Former, colours: ClipColours):
        self.detector = detector
        self.colours = colours

    def measure(self, pixels: torch.Tensor, tasks: list[dict] | None = None) -> dict:
        """{"correct": a truth a picture of pixels (b, 3, h, w) in [0, 1]}; without tasks, nothing."""
        if not tasks:
            return {}
        arrays = pixels.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        rows = [evaluate(Image.fromarray(array), task, self.detector, self.colours) for array, task in zip(arrays, tasks)]
        return {"correct": [row["correct"] for row in rows]}


def evaluate(picture: Image.Image, metadata: dict, detector, colours: ClipColours) -> dict:
    """One picture by GenEval's own pipeline -> a row of its results file, without the filename. ValueError for a class that the
    detector does not know by that name."""
    known = set(detector.labels.values())
    if unknown := {want["class"] for want in metadata["include"]} - known:
        raise ValueError(f"the detector knows no {', '.join(sorted(unknown))}; it knows {', '.join(sorted(known))}")
    found = filter_detections(detector.detect(picture), metadata)
    correct, reason = check(found, metadata, partial(colours, picture))
    boxes = {}
    for d in found:
        boxes.setdefault(d.label, []).append([*d.box, d.score])
    return _result(metadata, correct, reason, boxes)


def _result(metadata: dict, correct: bool | None, reason: str, boxes: dict) -> dict:
    return {"tag": metadata["tag"], "prompt": metadata["prompt"], "correct": correct, "reason": reason,
            "metadata": json.dumps(metadata), "details": json.dumps(boxes)}  # fmt: skip


# ---- files ------------------------------------------------------------------------------------------------------


def read_metadata(file) -> list[dict]:
    """GenEval's jsonl: a prompt a line, with its tag, include and perhaps exclude. ValueError names a malformed line."""
    rows = read_jsonl(file)
    types = {"tag": str, "include": list, "prompt": str}
    for line, row in rows:
        if missing := [name for name, kind in types.items() if not isinstance(row.get(name), kind)]:
            raise ValueError(f"{file}, line {line} has no {', '.join(missing)}; a line of GenEval's metadata has tag and prompt, which are "
                             "texts, and include, a list")  # fmt: skip
    if not rows:
        raise ValueError(f"{file} is empty; a line of GenEval's metadata has tag, include and prompt")
    return [row for _, row in rows]


def read_folder(folder) -> pd.DataFrame:
    """A folder of generated pictures in GenEval's layout, 00000/metadata.jsonl and 00000/samples/0000.png, or another ending of a picture
    -> a frame with the columns image, prompt and metadata (a dict); attrs["left_out"]: {other contents: how many}.
    ValueError for a prompt without pictures."""
    prompts = sorted(p for p in Path(folder).iterdir() if p.is_dir() and p.name.isdigit())
    left_out = Counter({"entries beside the prompts' folders": sum(1 for _ in Path(folder).iterdir()) - len(prompts)})
    rows = []
    for prompt in prompts:
        metadata = read_metadata(prompt / "metadata.jsonl")[0]
        entries = sorted((prompt / "samples").iterdir()) if (prompt / "samples").is_dir() else []
        samples = [f for f in entries if f.suffix.lower() in SUFFIXES and f.stem.isdigit()]
        if not samples:
            raise ValueError(f"{prompt} has no pictures: samples/0000.png and so on; draw them or delete the folder")
        rows += [{"image": path_text(f), "prompt": metadata["prompt"], "metadata": metadata} for f in samples]
        left_out["files in samples that are no numbered picture"] += len(entries) - len(samples)
    if not rows:
        raise ValueError(f"{folder} holds no pictures in GenEval's layout: 00000/metadata.jsonl and 00000/samples/0000.png")
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = dict(+left_out)
    return table


def evaluate_folder(folder, detector, colours: ClipColours) -> pd.DataFrame:
    """`evaluate` on every picture of a folder in GenEval's layout: the rows of its results.jsonl. Of one that cannot be read `correct` is
    None, and `reason` holds the error."""
    rows = []
    for image, metadata in read_folder(folder)[["image", "metadata"]].itertuples(index=False):
        try:
            picture = to_image(image)
        except ValueError as error:
            rows.append({"filename": image} | _result(metadata, None, str(error), {}))
        else:
            rows.append({"filename": image} | evaluate(picture, metadata, detector, colours))
    return pd.DataFrame(rows)


def summary(results: pd.DataFrame) -> pd.Series:
    """The share of correct pictures of each task, and `overall`, the plain mean of the tasks'. A picture that cannot be read counts in
    none; a warning names it."""
    unreadable = results[results.correct.isna()]
    if len(unreadable):
        reasons = "; ".join(unreadable.reason.head(5))
        warnings.warn(f"{len(unreadable)} of {len(results)} pictures count in no mean: {reasons}", stacklevel=2)
    readable = results.drop(unreadable.index)
    tasks = readable.correct.astype(bool).groupby(readable.tag, sort=False).mean()
    return pd.concat([tasks, pd.Series({"overall": tasks.mean()})])
