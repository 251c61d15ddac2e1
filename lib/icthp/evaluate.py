"""What a picture, a scorer or a tuned generator is worth: paradox, preference accuracy, GenEval, JPEG size, diversity."""

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from icthp import geneval, microworld, pictures
from icthp.geneval import Detection


def interval(values, groups=None, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict:
    """Mean with a percentile bootstrap interval over the rows of `values` (n,): {"mean", "low", "high", "n"}.

    Rows of one group (n ids, e.g. prompts) are no independent draws: their mean counts as one row."""
    values = np.asarray(values, dtype=np.float64)
    if groups is not None:
        values = pd.Series(values).groupby(np.asarray(groups), sort=False).mean().to_numpy()
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, not {len(values)}")
    random, n = np.random.default_rng(seed), len(values)
    parts = np.array_split(np.arange(resamples), -(-resamples * n // 10_000_000))  # a hundred megabytes at a time
    means = np.concatenate([values[random.integers(n, size=(len(part), n))].mean(1) for part in parts])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"mean": values.mean().item(), "low": low.item(), "high": high.item(), "n": len(values)}


def flat(name: str, values, **kwargs) -> dict:
    """interval() as flat metric keys: name, name_low, name_high, name_n."""
    return keyed(name, interval(values, **kwargs))


def keyed(name: str, row: dict) -> dict:
    """The same of a row with mean, low, high and n."""
    return {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"], f"{name}_n": row["n"]}


# ---- pictures ---------------------------------------------------------------------------------------------------


def diversity(features: Tensor, groups) -> Tensor:
    """Mean cosine distance between pictures of one group. features (b, d), groups b ids -> one value a group, (g,)."""
    unit, groups = torch.nn.functional.normalize(features, dim=-1), np.asarray(groups)
    out = []
    for g in dict.fromkeys(groups.tolist()):
        f = unit[torch.from_numpy(groups == g)]
        n = len(f)
        if n > 1:
            out.append((n * n - (f @ f.T).sum()) / (n * (n - 1)))
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
    """What a generator is worth: {measure: one value a prompt}, and its pictures of the prompts (n, 3, h, w).

    draw(prompts, k) -> pixels, from the k-th noise. tasks: GenEval's metadata, a picture each, drawn 256 at once; look(pixels,
    tasks) -> {measure: a value a picture}, among them "right". scorers: by name; "clip" also measures diversity, between two
    pictures of a prompt and, as Vendi score, among each eight prompts. geneval_mean is the mean of the tasks' means, as GenEval has
    it; its values vary as much as they do within the tasks, so that an interval over them is that of fixed tasks."""
    rows = pd.DataFrame({"tag": [t["tag"] for t in tasks], "prompt": [t["prompt"] for t in tasks]})
    parts = [tasks[i : i + 256] for i in range(0, len(tasks), 256)]
    rows["right"] = [right for part in parts for right in look(draw([t["prompt"] for t in part], 0), part)["right"]]
    right = rows.groupby(["tag", "prompt"], sort=False).right.mean()  # pictures of one prompt are one draw
    values = {f"geneval_{task}": part.droplevel("tag") for task, part in right.groupby(level="tag", sort=False)}
    by_task = right.groupby(level="tag")
    weight = len(right) / len(values) / by_task.transform("size")
    values["geneval_mean"] = (right - by_task.transform("mean")) * weight + by_task.mean().mean()
    values["geneval_mean"].index = right.index.map(": ".join)  # two tasks may ask the same prompt
    pixels, again = draw(prompts, 1), draw(prompts, 2)
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


# ---- preference -------------------------------------------------------------------------------------------------

PAIRS = {"i2_i1": (1, 0), "i3_i2": (2, 1), "i3_i1": (2, 0)}


def wins(better: Tensor, worse: Tensor) -> Tensor:
    """float64: 1 where the first score is higher, 0.5 at a tie, else 0."""
    return (better > worse).double() + 0.5 * (better == worse)


def preference(scores: Tensor) -> dict[str, Tensor]:
    """scores (b, 3) of I1, I2, I3 -> for each pair (b,) 1 where the better picture scores higher, 0.5 at a tie.

    i2_i1 is measured against human votes; i3_i2 and i3_i1 hold by construction of the data.
    """
    return {name: wins(scores[:, a], scores[:, b]) for name, (a, b) in PAIRS.items()}


def paired(a, b, groups=None, resamples: int = 10_000, seed: int = 0) -> dict:
    """Mean of a - b (n,) with its interval, and `p`, two-sided, of a sign-flip permutation test of the groups' means."""
    difference = pd.Series(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
    means = (difference if groups is None else difference.groupby(np.asarray(groups), sort=False).mean()).to_numpy()
    test = stats.permutation_test((means, np.zeros_like(means)), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
                                  vectorized=True, n_resamples=resamples, rng=np.random.default_rng(seed))  # fmt: skip
    return interval(means) | {"p": float(test.pvalue)}


@torch.no_grad()
def score_triplets(scorer, triplets, kind: str = "easy", batch: int = 128, prompts: list[str] | None = None) -> Tensor:
    """Scores (n, 3) of I1, I2, I3 with each row's own prompt of that kind, or with `prompts` (n) instead."""
    prompts, out = prompts or triplets.texts[kind], []
    for rows in torch.arange(len(triplets)).split(batch):
        own = [prompts[r] for r in rows.tolist()]
        out.append(torch.stack([scorer.score(p.to(scorer.device), own).cpu() for p in triplets.pixels(rows)], 1))
    return torch.cat(out)


@torch.no_grad()
def score_all(scorer, pixels: Tensor, prompts: list[str], batch: int = 128) -> Tensor:
    """Scores (n,) on the CPU of pixels (n, 3, h, w) with their prompts, a batch at a time."""
    parts = zip(pixels.split(batch), range(0, len(pixels), batch))
    return torch.cat([scorer.score(p.to(scorer.device), prompts[i : i + batch]).cpu() for p, i in parts])


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
