"""microworld.tasks."""

import numpy as np
import torch
from torch import Tensor

from icthp.evaluation import geneval
from icthp.evaluation.geneval import Detection
from icthp.microworld import renderer
from icthp.microworld.grammar import captions
from icthp.microworld.scenes import COLOURS, LEVELS, SHAPES, Scenes, held_out, sample

# ---- the paradox ------------------------------------------------------------------------------------------------


def score_by_level(score, scenes: Scenes, style: str = "short", device="cpu") -> Tensor:
    """The same scenes at every richness: score(pixels on `device`, prompts) -> (b,) becomes (b, levels). style: "short"
    prompts, the same at every level, or "long" ones, which name what is drawn."""
    columns = []
    for level in range(LEVELS):
        at = scenes.at(level / (LEVELS - 1))
        columns.append(score(renderer.render(at, device=device), captions(at, style)).detach().cpu())
    return torch.stack(columns, 1)


# ---- GenEval in the microworld ----------------------------------------------------------------------------------


def micro_geneval(each: int, generator: torch.Generator) -> list[dict]:
    """Held-out microworld prompts in GenEval's metadata format, `each` for every one of its six tasks; as there, two objects of
    a prompt are of two classes."""
    scenes = sample(each * 400, generator)
    same = (scenes.latents["kind"] == 1) & (scenes.latents["shape_a"] == scenes.latents["shape_b"])
    scenes = scenes[held_out(scenes) & ~same]
    kind_of = dict(zip(geneval.TASKS, (0, 1, 2, 0, 1, 1)))
    rows, start = [], 0
    for task, kind in kind_of.items():
        chosen = scenes[(scenes.latents["kind"] == kind).nonzero()[start : start + each, 0]]
        start += each  # tasks of one kind take different scenes
        rows += [geneval_metadata(chosen[i : i + 1], task) for i in range(len(chosen))]
    return rows


def geneval_metadata(scene: Scenes, task: str | None = None) -> dict:
    """GenEval's metadata of one scene: what the task asks of its short prompt, or with task None all that it says."""
    s = {k: v.item() for k, v in scene.latents.items()}
    asked = task or ("colors", "position", "counting")[s["kind"]]
    include = [{"class": SHAPES[s["shape_a"]], "count": 2 + s["count"] if asked == "counting" else 1}]
    exclude = {"exclude": [{"class": include[0]["class"], "count": include[0]["count"] + 1}]} if asked == "counting" else {}
    if s["kind"] == 1:
        include.append({"class": SHAPES[s["shape_b"]], "count": 1})
    if task in (None, "colors", "color_attr"):
        for entry, k in zip(include, "ab"):
            entry["color"] = COLOURS[s["colour_" + k]]
    if asked == "position":  # the first object is left of or above the second; GenEval refers to an earlier class
        include[1]["position"] = [("right of", "below")[s["relation"]], 0]
    return {"tag": asked, "include": include} | exclude | {"prompt": captions(scene)[0]}


def units_found(found: list[Detection], metadata: dict) -> list[bool]:
    """One truth for each unit of a prompt, on its own where GenEval judges the whole: every included class is there (exactly `count`
    times for the counting task, at least so often otherwise), in its colour, in its relation to the other object, which may be of
    its class too."""
    matched, right = [], []
    for want in metadata["include"]:
        objects, count = [d for d in found if d.label == want["class"]], want["count"]
        right.append(len(objects) == count if metadata["tag"] == "counting" else len(objects) >= count)
        if "color" in want:
            right.append(sum(d.colour == want["color"] for d in objects) >= count)
        if "position" in want:
            relation, other = want["position"]
            right.append(any(relation in geneval.relations(o, t) for o in objects for t in matched[other] if o is not t))
        matched.append(objects)
    return right


def prompt_fulfilled(detector, pixels: Tensor, scenes: Scenes) -> list[bool]:
    """For each picture (b, 3, h, w): does the detector find all that the short prompt of its scene says?"""
    return (prompt_coverage(detector, pixels, scenes) == 1).tolist()


def prompt_coverage(detector, pixels: Tensor, scenes: Scenes) -> Tensor:
    """(b,) the share of the short prompt's units (objects, counts, colours, relation) that the detector finds."""
    rows = enumerate(detector.detect(pixels))
    return torch.tensor([np.mean(units_found(found, geneval_metadata(scenes[i : i + 1]))) for i, found in rows], dtype=torch.float32)
