"""What people said of pictures, one axis at a time, and how far a score agrees with them.

A table of votes has the columns prompt, image (a path), axis and value, a number that is higher for the better. Readers bring published
sets into it; none of their pictures trained anything here."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from icthp.data.prompts import same_prompt
from icthp.evaluation.geneval import read_metadata
from icthp.evaluation.statistics import bootstrap_ci, pairwise_accuracy
from icthp.tables import declared, read_columns, read_csv, read_json

COLUMNS = ["prompt", "image", "axis", "value"]


def read(source: str) -> pd.DataFrame:
    """ "NAME:folder" for the readers below (flickr8k, agiqa3k, imagereward, geneval), or a table of votes (tables.TABLES), image
    paths relative to it."""
    name, _, folder = source.partition(":")
    if name in READERS:
        return READERS[name](Path(folder))
    if name != source and not Path(source).exists():
        raise ValueError(f"there is no set of votes {name}: it is one of {', '.join(READERS)}, or give the path of a table")
    return read_columns(source, ["image"], ["prompt", "axis"], ["value"])[COLUMNS]


def flickr8k(folder: Path) -> pd.DataFrame:
    """Flickr8k-Expert (Hodosh et al. 2013): ExpertAnnotations.txt (image, caption id, three judgements from 1 to 4), Flickr8k.token.txt,
    and the pictures in Flicker8k_Dataset, as its authors spell it. Each judgement is a row; pictures beside one of their own captions
    are left out, as in CLIPScore (arXiv 2104.08718)."""
    captions = _tabs(folder / "Flickr8k.token.txt", ["caption", "prompt"])
    rows = _tabs(folder / "ExpertAnnotations.txt", ["file", "caption"], ["1", "2", "3"])
    if unknown := sorted(set(rows.caption) - set(captions.caption)):
        raise ValueError(f"{folder / 'Flickr8k.token.txt'} lacks {len(unknown)} captions that were judged, {unknown[0]} among them")
    rows = rows[rows.file != rows.caption.str.partition("#")[0]].merge(captions, on="caption")
    rows = rows.melt(["file", "prompt"], ["1", "2", "3"])
    return _table(folder / "Flicker8k_Dataset", rows.file, rows.prompt, alignment=rows.value)


def agiqa3k(folder: Path) -> pd.DataFrame:
    """AGIQA-3K (arXiv 2306.04717): data.csv with mean opinions of quality and alignment, pictures beside it."""
    rows = _csv(folder / "data.csv", ["name", "prompt"], ["mos_quality", "mos_align"])
    return _table(folder, rows["name"], rows.prompt, quality=rows.mos_quality, alignment=rows.mos_align)


def imagereward(folder: Path) -> pd.DataFrame:
    """ImageReward's test.json (arXiv 2304.05977): rankings of the pictures of a prompt, 1 the best, pictures beside it."""
    rows = _rankings(_there(folder / "test.json"))
    return _table(folder, rows.generation, rows.prompt, preference=-rows.ranking)


def geneval(folder: Path) -> pd.DataFrame:
    """GenEval's people: every annotations_*.csv, with geneval_metadata.jsonl, pictures in {model}/00000/samples/00000.png. Axes, each the
    mean over the people: quality (1 to 4), realism of the objects (1 to 3), alignment, the share of the prompt's counts and colours
    that they confirm (not positions, whose reference the file does not tell)."""
    asked = read_metadata(_there(folder / "geneval_metadata.jsonl"))
    files = sorted(folder.glob("annotations_*.csv"))
    _there(files[0] if files else folder / "annotations_sdv2.csv")
    parts = []
    for file in files:
        rows = _annotations(file)
        if unknown := [i for i in rows.prompt_id if i not in range(len(asked))]:
            raise ValueError(f"{file} asks of prompt {unknown[0]:g}; geneval_metadata.jsonl has {len(asked)}")
        rows["alignment"] = [_confirmed(row, asked[int(row["prompt_id"])]) for row in rows.to_dict("records")]
        rows["realism"] = rows[["task-real-0", "task-real-1"]].mean(axis=1)
        names = {"task-quality": "quality", "caption": "prompt", "image_url": "url"}
        mean = rows.rename(columns=names).groupby(["url", "prompt"], sort=False)[["quality", "realism", "alignment"]].mean().reset_index()
        model = file.stem.removeprefix("annotations_")
        names = model + "/" + mean.url.str.split("/").str[-3:].str.join("/")
        parts.append(_table(folder, names, mean.prompt, quality=mean.quality, realism=mean.realism, alignment=mean.alignment))
    return pd.concat(parts, ignore_index=True)


READERS = {"flickr8k": flickr8k, "agiqa3k": agiqa3k, "imagereward": imagereward, "geneval": geneval}


def _there(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: it is a file of the published set, to be put there as it is")
    return path


def _tabs(path: Path, texts: list[str], numbers=()) -> pd.DataFrame:
    """A file without a header whose cells tabs set apart; quotes are characters like others."""
    return declared(path, read_csv(_there(path), [*texts, *numbers], delimiter="\t", quoting=csv.QUOTE_NONE), texts, numbers)


def _csv(path: Path, texts: list[str], numbers: list[str]) -> pd.DataFrame:
    return declared(path, read_csv(_there(path)), texts, numbers)


def _rankings(path: Path) -> pd.DataFrame:
    """prompt, generation (a file) and ranking, a row a picture."""
    rows = []
    for i, row in enumerate(read_json(path)):
        files, ranks = row.get("generations"), row.get("ranking")
        if "prompt" not in row or not isinstance(files, list) or not isinstance(ranks, list) or len(files) != len(ranks):
            raise ValueError(f"{path}: row {i} has no prompt, generations and ranking, the last two lists of one length")
        rows += [(row["prompt"], *pair) for pair in zip(files, ranks)]
    table = pd.DataFrame(rows, columns=["prompt", "generation", "ranking"], dtype=object)
    return declared(path, table, ["prompt", "generation"], ["ranking"])


def _annotations(path: Path) -> pd.DataFrame:
    """One of GenEval's, without what stands before a column's name: counts, judgements and the prompt's id are numbers, colours texts."""
    rows = read_csv(path).rename(columns=lambda c: c.rpartition(".")[2])
    numbers = ["prompt_id", "task-quality", "task-real-0", "task-real-1", *(c for c in rows if c.startswith("task-count-"))]
    return declared(path, rows, ["image_url", "caption"], numbers)


def _table(folder: Path, files, prompts, **axes) -> pd.DataFrame:
    parts = [pd.DataFrame({"prompt": list(prompts), "image": [str(folder / f) for f in files], "axis": axis, "value": list(map(float, v))})
             for axis, v in axes.items()]  # fmt: skip
    return pd.concat(parts, ignore_index=True).dropna(subset="value", ignore_index=True)


def _confirmed(answer: dict, metadata: dict) -> float:
    right = []
    for i, want in enumerate(metadata["include"]):
        count, colour = answer.get(f"task-count-{i}"), answer.get(f"task-color-{i}")
        if count is not None and count == count:  # people leave questions out
            right.append(count == want["count"] if metadata["tag"] == "counting" else count >= want["count"])
        if "color" in want and isinstance(colour, str):
            right.append(want["color"] in colour.split("|"))
    return float(np.mean(right)) if right else np.nan


# ---- agreement --------------------------------------------------------------------------------------------------


def agreement(table: pd.DataFrame, score: str = "score", resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far the column `score` agrees with `value`, a row an axis and measure, with 95 % bootstrap intervals over prompts (what CLIP's
    tokenizer reads as one is one), the number of pairs or judgements (n) and of prompts (groups): `pairs`, the share of pairs of pictures
    of one prompt that it orders as people do (ties of the score count half, pairs that people call equal are left out, a picture counts by
    the mean of its judgements); `spearman`; `tau_c`, Kendall's tau-c over all judgements, as in CLIPScore. ValueError where nothing has
    both a score and a value."""
    if (lacking := table[["prompt", "axis"]].isna().any(axis=1)).any():
        raise ValueError(f"{lacking.sum()} votes have no prompt or axis, the first in row {int(lacking.to_numpy().argmax())}: fill them in")
    rows, table = [], table.dropna(subset=[score, "value"])
    table = table.assign(prompt=table.prompt.map(lambda p: same_prompt(str(p)), na_action="ignore"))
    if not len(table):
        raise ValueError(f"no picture has both a value and a number in the column {score}")
    for axis, part in table.groupby("axis", sort=False):
        by_prompt = [p[[score, "value"]].to_numpy(float) for _, p in part.groupby("prompt", sort=False)]
        pictures = part.groupby(["prompt", "image"], sort=False)[[score, "value"]].mean()  # several people may have judged one
        right = {prompt: _ordered(p.to_numpy(float)) for prompt, p in pictures.groupby(level="prompt", sort=False)}
        rows.append({"axis": axis, "measure": "pairs"} | _pairs(right, resamples, seed))
        measures = {
            "spearman": lambda chosen, own=by_prompt: _correlation(stats.spearmanr, [own[i] for i in chosen]),
            "tau_c": lambda chosen, own=by_prompt: _correlation(partial(stats.kendalltau, variant="c"), [own[i] for i in chosen]),
        }
        draw = np.random.default_rng(seed).integers(len(by_prompt), size=(resamples, len(by_prompt)))
        for name, measure in measures.items():
            drawn = np.array([measure(chosen) for chosen in draw])
            known = np.ptp(drawn[np.isfinite(drawn)]) > 0 if np.isfinite(drawn).any() else False  # else nothing is known of its spread
            low, high = np.nanquantile(drawn, [0.025, 0.975]) if known else (np.nan, np.nan)
            found = {"mean": measure(range(len(by_prompt))), "low": low, "high": high, "n": len(part), "groups": len(by_prompt)}
            rows.append({"axis": axis, "measure": name} | found)
    return pd.DataFrame(rows)


def _pairs(right: dict[str, np.ndarray], resamples: int, seed: int) -> dict:
    """The share of pairs that are right; without an interval where fewer than two prompts have a pair that people tell apart."""
    values, prompts = np.concatenate([*right.values()]), np.repeat([*right], [*map(len, right.values())])
    if len(set(prompts)) < 2:
        return {
            "mean": values.mean() if len(values) else np.nan,
            "low": np.nan,
            "high": np.nan,
            "n": len(values),
            "groups": len(set(prompts)),
        }
    return bootstrap_ci(values, prompts, resamples=resamples, seed=seed)


def _ordered(values: np.ndarray) -> np.ndarray:
    """Of the scores and values (n, 2) of one prompt: 1, 0.5 or 0 for each pair that people tell apart."""
    a, b = np.triu_indices(len(values), 1)
    sign = np.sign(values[a, 1] - values[b, 1])
    better, worse = values[a, 0] * sign, values[b, 0] * sign
    return pairwise_accuracy(*map(torch.from_numpy, (better, worse))).numpy()[sign != 0]


def _correlation(of, parts: list[np.ndarray]) -> float:
    """NaN where there is none, of a constant."""
    score, value = np.concatenate(parts).T
    return of(score, value).statistic if np.ptp(score) and np.ptp(value) else np.nan
