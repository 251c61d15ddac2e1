"""The microworld's tasks: GenEval's six in its own prompts, the units of a prompt that a picture shows, scores along richness."""

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
    """(b, levels): the scores of the same scenes at every richness. score(pixels on `device`, prompts) -> (b,); style: "short"
    prompts, the same at every level, or "long" ones, which name what is drawn."""
    columns = []
    for level in range(LEVELS):
        drawn = scenes.at(level / (LEVELS - 1))
        pixels = renderer.render(drawn, device=device)
        columns.append(score(pixels, captions(drawn, style)).detach().cpu())
    return torch.stack(columns, 1)


# ---- GenEval in the microworld ----------------------------------------------------------------------------------

KIND_OF_TASK = dict(zip(geneval.TASKS, (0, 1, 2, 0, 1, 1)))  # task -> the kind of scene whose prompt asks for it


def micro_geneval(each: int, generator: torch.Generator) -> list[dict]:
    """Held-out prompts of the microworld in GenEval's metadata format, `each` for every one of its six tasks. Two objects of a
    prompt are of two classes, as in GenEval."""
    scenes = sample(each * 400, generator)
    same_class = (scenes.latents["kind"] == 1) & (scenes.latents["shape_a"] == scenes.latents["shape_b"])
    scenes = scenes[held_out(scenes) & ~same_class]
    rows = []
    start = 0
    for task, kind in KIND_OF_TASK.items():
        of_kind = (scenes.latents["kind"] == kind).nonzero()[:, 0]
        task_scenes = scenes[of_kind[start : start + each]]
        start += each  # tasks of one kind take different scenes
        rows += [geneval_metadata(task_scenes[i : i + 1], task) for i in range(len(task_scenes))]
    return rows


KINDS = ("one", "pair", "group")  # of scenes, by the latent's value


def held_out_kinds(each: int, generator: torch.Generator) -> dict[str, Scenes]:
    """`each` held-out scenes of every kind: "one" object, a "pair", a "group" of two or three."""
    scenes = sample(each * 40, generator)
    scenes = scenes[held_out(scenes)]
    return {name: scenes[(scenes.latents["kind"] == kind).nonzero()[:each, 0]] for kind, name in enumerate(KINDS)}


def geneval_metadata(scene: Scenes, task: str | None = None) -> dict:
    """GenEval's metadata of one scene: what the task asks of its short prompt; with task None, all that the prompt says."""
    s = {name: value.item() for name, value in scene.latents.items()}
    tag = task or ("colors", "position", "counting")[s["kind"]]
    include = [{"class": SHAPES[s["shape_a"]], "count": 1}]
    exclude = {}
    if tag == "counting":
        include[0]["count"] = 2 + s["count"]
        exclude = {"exclude": [{"class": include[0]["class"], "count": include[0]["count"] + 1}]}
    if s["kind"] == 1:
        include.append({"class": SHAPES[s["shape_b"]], "count": 1})
    if task in (None, "colors", "color_attr"):
        for entry, k in zip(include, "ab"):
            entry["color"] = COLOURS[s["colour_" + k]]
    if tag == "position":  # the first object is left of or above the second; GenEval refers to an earlier class
        include[1]["position"] = [("right of", "below")[s["relation"]], 0]
    return {"tag": tag, "include": include} | exclude | {"prompt": captions(scene)[0]}


# ---- units of a prompt ------------------------------------------------------------------------------------------


def units_found(found: list[Detection], metadata: dict) -> list[bool]:
    """One truth for each unit of a prompt, where GenEval judges the prompt as a whole. The units of an included class: it is there
    (exactly `count` times for the counting task, else at least so often), in its colour, in its relation to the other object. The
    other object may be of the same class."""
    correct = []
    matched = []  # for each included class, the objects found
    for entry in metadata["include"]:
        objects = [d for d in found if d.label == entry["class"]]
        count = entry["count"]
        correct.append(len(objects) == count if metadata["tag"] == "counting" else len(objects) >= count)
        if "color" in entry:
            correct.append(sum(d.colour == entry["color"] for d in objects) >= count)
        if "position" in entry:
            relation, target = entry["position"]
            correct.append(_any_in_relation(objects, relation, matched[target]))
        matched.append(objects)
    return correct


def _any_in_relation(objects: list[Detection], relation: str, targets: list[Detection]) -> bool:
    return any(relation in geneval.relations(o, t) for o in objects for t in targets if o is not t)


def prompt_coverage(detector, pixels: Tensor, scenes: Scenes) -> Tensor:
    """(b,) in [0, 1]: the share of the units of each scene's short prompt (objects, counts, colours, relation) that the detector
    finds in the pixels (b, 3, h, w)."""
    shares = []
    for i, found in enumerate(detector.detect(pixels)):
        units = units_found(found, geneval_metadata(scenes[i : i + 1]))
        shares.append(np.mean(units))
    return torch.tensor(shares, dtype=torch.float32)


def prompt_fulfilled(detector, pixels: Tensor, scenes: Scenes) -> list[bool]:
    """For each picture (b, 3, h, w): does the detector find every unit of its scene's short prompt?"""
    return (prompt_coverage(detector, pixels, scenes) == 1).tolist()


def check_generator(draw, detector, each: int, generator: torch.Generator) -> dict[tuple[str, str], dict[str, Tensor]]:
    """What the detector reads in `each` pictures that draw(prompts) -> pixels makes of held-out scenes of every kind, with the short prompt
    and with the longest: {(kind, style): {"correct", every unit of the short prompt is there; "units", their share; "richness";
    "artefact"}}, (each,) in [0, 1]."""
    found = {}
    for kind, scenes in held_out_kinds(each, generator).items():
        for style in ("short", "long"):
            pixels = draw(captions(scenes.at(1), style))
            measured = detector.measure(pixels)
            units = prompt_coverage(detector, pixels, scenes)
            found[kind, style] = {"correct": (units == 1).float(), "units": units,
                                  "richness": measured["micro_richness"], "artefact": measured["micro_artefact"]}  # fmt: skip
    return found
