"""What a picture, a scorer or a tuned generator is worth: paradox, preference accuracy, GenEval, JPEG size, diversity."""

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from icthp import geneval, microworld, pictures
from icthp.geneval import Detection
from icthp.statistics import flat as flat
from icthp.statistics import interval as interval
from icthp.statistics import keyed as keyed
from icthp.statistics import paired as paired
from icthp.statistics import wins as wins

# ---- pictures ---------------------------------------------------------------------------------------------------


def diversity(features: Tensor, groups) -> Tensor:
    """Mean cosine distance between pictures of one group. features (b, d), groups b ids -> one value a group of two or more, (g,).
    ValueError where no group has two."""
    unit, groups = torch.nn.functional.normalize(features, dim=-1), np.asarray(groups)
    out = []
    for g in dict.fromkeys(groups.tolist()):
        f = unit[torch.from_numpy(groups == g)]
        n = len(f)
        if n > 1:
            out.append((n * n - (f @ f.T).sum()) / (n * (n - 1)))
    if not out:
        raise ValueError("diversity lies between pictures of one group, and no group has two")
    return torch.stack(out)


def vendi(features: Tensor, groups) -> Tensor:
    """Vendi score (Friedman and Dieng, arXiv 2210.02410) of each group: exp of the entropy of the eigenvalues of the cosines
    over n, from 1, all the same, to n, all orthogonal. features (b, d), groups b ids -> (g,)."""
    unit, groups, out = torch.nn.functional.normalize(features.double(), dim=-1), np.asarray(groups), []
    for g in dict.fromkeys(groups.tolist()):
        f = unit[torch.from_numpy(groups == g)]
        spectrum = torch.linalg.svdvals(f).square() / len(f)
        out.append(torch.special.entr(spectrum).sum().exp())
    return torch.stack(out)


@torch.no_grad()
def assess(draw, prompts: list[str], tasks: list[dict], scorers: dict, look) -> tuple[dict[str, pd.Series], Tensor]:
    """What a generator is worth: {measure: one value a picture, indexed by its prompt}, and its pictures of the prompts (n, 3, h, w).

    draw(prompts, ids) -> pixels, from the noises of these ids, all different. tasks: GenEval's metadata, a picture each, drawn 256 at
    once; look(pixels, tasks) -> {measure: a value a picture}, among them "right". scorers: by name; "clip" also measures diversity,
    between two pictures of a prompt and, as Vendi score, among each eight prompts. geneval_mean is the mean of the tasks' means, as
    GenEval has it, rescaled so that the bootstrap over its index equals one within each task."""
    rows = pd.DataFrame({"tag": [t["tag"] for t in tasks], "prompt": [t["prompt"] for t in tasks]})
    rows["right"] = _judged(draw, tasks, look)
    values = {f"geneval_{task}": part.set_index("prompt").right for task, part in rows.groupby("tag", sort=False)}
    values["geneval_mean"] = _stratified(rows)
    far = max(10_000, len(tasks), len(prompts))
    pixels, again = (draw(prompts, range(k * far, k * far + len(prompts))) for k in (1, 2))
    per_picture = {"jpeg_kb": pictures.jpeg_bytes(pixels) / 1000} | pictures.statistics(pixels)
    per_picture |= {name: v for name, v in look(pixels, None).items() if name != "right"}
    per_picture |= {f"score_{name}": score_all(scorer, pixels, prompts) for name, scorer in scorers.items()}
    values |= {name: pd.Series(np.asarray(v, dtype=np.float64), prompts) for name, v in per_picture.items()}
    one, two = (
        torch.cat([scorers["clip"].image_features(p.to(scorers["clip"].device)).cpu() for p in x.split(64)]) for x in (pixels, again)
    )
    values["diversity"] = pd.Series(diversity(torch.cat([one, two]), list(range(len(one))) * 2).numpy(), prompts)
    whole = max(len(one) // 8 * 8, min(len(one), 8))  # a last, shorter group could not reach eight
    values["vendi"] = pd.Series(vendi(one[:whole], np.arange(whole) // 8).numpy())
    return values, pixels


def _judged(draw, tasks: list[dict], look, batch: int = 256) -> list[float]:
    """Is each task's picture right? `batch` pictures in memory at a time."""
    right = []
    for first in range(0, len(tasks), batch):
        part = tasks[first : first + batch]
        pixels = draw([task["prompt"] for task in part], range(first, first + len(part)))
        right += [float(r) for r in look(pixels, part)["right"]]
    return right


def _stratified(rows: pd.DataFrame) -> pd.Series:
    """`right` of rows with tag and prompt, scaled so that its mean is the mean of the tags' means and varies only within them."""
    mean, size = (rows.groupby("tag").right.transform(how) for how in ("mean", "size"))
    of_tags = rows.groupby("tag").right.mean()
    values = (rows.right - mean) * len(rows) / (len(of_tags) * size) + of_tags.mean()
    return values.set_axis(rows.tag + ": " + rows.prompt)  # two tasks may ask the same prompt


# ---- preference -------------------------------------------------------------------------------------------------

PAIRS = {"i2_i1": (1, 0), "i3_i2": (2, 1), "i3_i1": (2, 0)}


def preference(scores: Tensor) -> dict[str, Tensor]:
    """scores (b, 3) of I1, I2, I3 -> for each pair (b,) 1 where the better picture scores higher, 0.5 at a tie.

    i2_i1 is measured against human votes; i3_i2 and i3_i1 hold by construction of the data.
    """
    return {name: wins(scores[:, a], scores[:, b]) for name, (a, b) in PAIRS.items()}


@torch.no_grad()
def score_triplets(scorer, triplets, kind: str = "easy", batch: int = 128, prompts: list[str] | None = None) -> Tensor:
    """Scores (n, 3) of I1, I2, I3, as the scorer's own recipe reads them, with each row's own prompt of that kind, or with `prompts` (n)
    instead."""
    triplets, prompts, out = triplets.seen(getattr(scorer, "recipe", None)), prompts or triplets.texts[kind], []
    for rows in torch.arange(len(triplets)).split(batch):
        own = [prompts[r] for r in rows.tolist()]
        out.append(torch.stack([scorer.score(p.to(scorer.device), own).cpu() for p in triplets.pixels(rows)], 1))
    return _no_nan(torch.cat(out), scorer, prompts)


def _no_nan(scores: Tensor, scorer, prompts) -> Tensor:
    """The scores (n,) or (n, k) themselves; ValueError names the scorer and the first row with a NaN."""
    wrong = scores.isnan().view(len(scores), -1).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        name = getattr(scorer, "name", "") or type(scorer).__name__
        raise ValueError(f"{name} scores NaN in {int(wrong.sum())} of {len(scores)} rows, first in row {row}: {prompts[row]!r}")
    return scores


@torch.no_grad()
def score_all(scorer, pixels: Tensor, prompts: list[str], batch: int = 128) -> Tensor:
    """Scores (n,) on the CPU of pixels (n, 3, h, w) with their prompts, a batch at a time."""
    parts = zip(pixels.split(batch), range(0, len(pixels), batch))
    return _no_nan(torch.cat([scorer.score(p.to(scorer.device), prompts[i : i + batch]).cpu() for p, i in parts]), scorer, prompts)


# ---- the paradox ------------------------------------------------------------------------------------------------


def score_by_level(score, scenes: microworld.Scenes, style: str = "short", device="cpu") -> Tensor:
    """The same scenes at every richness: score(pixels on `device`, prompts) -> (b,) becomes (b, levels). style: "short"
    prompts, the same at every level, or "long" ones, which name what is drawn."""
    columns = []
    for level in range(microworld.LEVELS):
        at = scenes.at(level / (microworld.LEVELS - 1))
        columns.append(score(microworld.render(at, device=device), microworld.captions(at, style)).detach().cpu())
    return torch.stack(columns, 1)


@torch.no_grad()
def score_files(score, table, levels: list[str], device="cpu") -> Tensor:
    """The same for picture files of any sizes: pictures.read_levels' table -> (rows, levels)."""
    one = lambda path, prompt: score(pictures.to_pixels(path)[None].to(device), [prompt]).item()
    return torch.tensor([[one(path, prompt) for path in row] for prompt, *row in table[["prompt", *levels]].itertuples(index=False)])


def long_table(measured: dict[tuple[str, str], Tensor]) -> pd.DataFrame:
    """{(scorer, style): scores (b, levels)} as one row a score: scorer, style, scene, level, richness in [0, 1], score."""
    parts = []
    for (scorer, style), values in measured.items():
        scene, level = np.indices(values.shape).reshape(2, -1)
        parts.append(pd.DataFrame({"scorer": scorer, "style": style, "scene": scene, "level": level,
                                   "richness": level / (values.shape[1] - 1), "score": values.flatten().double().numpy()}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def paradox_rate(by_level: Tensor) -> Tensor:
    """(b, levels) -> (b,) share of ordered pairs of levels in which the richer picture scores strictly lower."""
    if by_level.isnan().any():
        raise ValueError(f"the score of scene {int(by_level.isnan().any(1).nonzero()[0])} is NaN, and would count as no paradox")
    poorer, richer = torch.triu_indices(by_level.shape[1], by_level.shape[1], 1)
    return (by_level[:, richer] < by_level[:, poorer]).double().mean(1)


def spearman(by_level: Tensor) -> float:
    """Spearman correlation between level and mean score."""
    return float(stats.spearmanr(np.arange(by_level.shape[1]), by_level.mean(0)).statistic)


# ---- GenEval in the microworld ----------------------------------------------------------------------------------


def micro_geneval(each: int, generator: torch.Generator) -> list[dict]:
    """Held-out microworld prompts in GenEval's metadata format, `each` for every one of its six tasks; as there, two objects of
    a prompt are of two classes."""
    scenes = microworld.sample(each * 400, generator)
    same = (scenes.latents["kind"] == 1) & (scenes.latents["shape_a"] == scenes.latents["shape_b"])
    scenes = scenes[microworld.held_out(scenes) & ~same]
    kind_of = dict(zip(geneval.TASKS, (0, 1, 2, 0, 1, 1)))
    rows, start = [], 0
    for task, kind in kind_of.items():
        chosen = scenes[(scenes.latents["kind"] == kind).nonzero()[start : start + each, 0]]
        start += each  # tasks of one kind take different scenes
        rows += [described(chosen[i : i + 1], task) for i in range(len(chosen))]
    return rows


def described(scene: microworld.Scenes, task: str | None = None) -> dict:
    """GenEval's metadata of one scene: what the task asks of its short prompt, or with task None all that it says."""
    s = {k: v.item() for k, v in scene.latents.items()}
    asked = task or ("colors", "position", "counting")[s["kind"]]
    include = [{"class": microworld.SHAPES[s["shape_a"]], "count": 2 + s["count"] if asked == "counting" else 1}]
    exclude = {"exclude": [{"class": include[0]["class"], "count": include[0]["count"] + 1}]} if asked == "counting" else {}
    if s["kind"] == 1:
        include.append({"class": microworld.SHAPES[s["shape_b"]], "count": 1})
    if task in (None, "colors", "color_attr"):
        for entry, k in zip(include, "ab"):
            entry["color"] = microworld.COLOURS[s["colour_" + k]]
    if asked == "position":  # the first object is left of or above the second; GenEval refers to an earlier class
        include[1]["position"] = [("right of", "below")[s["relation"]], 0]
    return {"tag": asked, "include": include} | exclude | {"prompt": microworld.captions(scene)[0]}


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


def described_right(detector, pixels: Tensor, scenes: microworld.Scenes) -> list[bool]:
    """For each picture (b, 3, h, w): does the detector find all that the short prompt of its scene says?"""
    return (units_contained(detector, pixels, scenes) == 1).tolist()


def units_contained(detector, pixels: Tensor, scenes: microworld.Scenes) -> Tensor:
    """(b,) the share of the short prompt's units (objects, counts, colours, relation) that the detector finds."""
    rows = enumerate(detector.detect(pixels))
    return torch.tensor([np.mean(units_found(found, described(scenes[i : i + 1]))) for i, found in rows], dtype=torch.float32)
