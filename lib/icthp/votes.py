"""What people said of pictures, one axis at a time, and how far a score agrees with them.

A table of votes has the columns prompt, image (a path), axis and value, a number that is higher for the better. Readers bring published
sets into it; none of their pictures trained anything here."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from icthp.evaluate import wins
from icthp.geneval import read_metadata
from icthp.pictures import read_columns
from icthp.prompts import same_prompt

COLUMNS = ["prompt", "image", "axis", "value"]


def read(source: str) -> pd.DataFrame:
    """ "NAME:folder" for the readers below (flickr8k, agiqa3k, imagereward, geneval), or a csv, jsonl or parquet table of votes, image
    paths relative to it."""
    name, _, folder = source.partition(":")
    if name in READERS:
        return READERS[name](Path(folder))
    if name != source and not Path(source).exists():
        raise ValueError(f"there is no set of votes {name}: it is one of {', '.join(READERS)}, or give the path of a table")
    return read_columns(Path(source), ["image"], [c for c in COLUMNS if c != "image"])[COLUMNS]


def flickr8k(folder: Path) -> pd.DataFrame:
    """Flickr8k-Expert (Hodosh et al. 2013): ExpertAnnotations.txt (image, caption id, three judgements from 1 to 4), Flickr8k.token.txt,
    and the pictures in Flicker8k_Dataset, as its authors spell it. Each judgement is a row; pictures beside one of their own captions
    are left out, as in CLIPScore (arXiv 2104.08718)."""
    captions = pd.read_csv(_there(folder / "Flickr8k.token.txt"), sep="\t", names=["caption", "prompt"], quoting=3)
    rows = pd.read_csv(_there(folder / "ExpertAnnotations.txt"), sep="\t", names=["file", "caption", "1", "2", "3"], quoting=3)
    rows = rows[rows.file != rows.caption.str.partition("#")[0]].merge(captions, on="caption")
    rows = rows.melt(["file", "prompt"], ["1", "2", "3"])
    return _table(folder / "Flicker8k_Dataset", rows.file, rows.prompt, alignment=rows.value)


def agiqa3k(folder: Path) -> pd.DataFrame:
    """AGIQA-3K (arXiv 2306.04717): data.csv with mean opinions of quality and alignment, pictures beside it."""
    rows = pd.read_csv(_there(folder / "data.csv"))
    return _table(folder, rows["name"], rows.prompt, quality=rows.mos_quality, alignment=rows.mos_align)


def imagereward(folder: Path) -> pd.DataFrame:
    """ImageReward's test.json (arXiv 2304.05977): rankings of the pictures of a prompt, 1 the best, pictures beside it."""
    rows = pd.DataFrame(json.loads(_there(folder / "test.json").read_text(encoding="utf-8"))).explode(["generations", "ranking"])
    return _table(folder, rows.generations, rows.prompt, preference=-rows.ranking.astype(float))


def geneval(folder: Path) -> pd.DataFrame:
    """GenEval's people: every annotations_*.csv, with geneval_metadata.jsonl, pictures in {model}/00000/samples/00000.png. Axes, each the
    mean over the people: quality (1 to 4), realism of the objects (1 to 3), alignment, the share of the prompt's counts and colours
    that they confirm (not positions, whose reference the file does not tell)."""
    asked = read_metadata(_there(folder / "geneval_metadata.jsonl"))
    files = sorted(folder.glob("annotations_*.csv"))
    _there(files[0] if files else folder / "annotations_sdv2.csv")
    parts = []
    for file in files:
        rows = pd.read_csv(file, keep_default_na=True).rename(columns=lambda c: c.rpartition(".")[2])
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


def _table(folder: Path, files, prompts, **axes) -> pd.DataFrame:
    parts = [pd.DataFrame({"prompt": list(prompts), "image": [str(folder / f) for f in files], "axis": axis, "value": list(map(float, v))})
             for axis, v in axes.items()]  # fmt: skip
    return pd.concat(parts, ignore_index=True).dropna(subset="value", ignore_index=True)


def _confirmed(answer: dict, metadata: dict) -> float:
    right = []
    for i, want in enumerate(metadata["include"]):
        count, colour = answer.get(f"task-count-{i}"), answer.get(f"task-color-{i}")
        right.append(count == want["count"] if metadata["tag"] == "counting" else count >= want["count"])
        if "color" in want:
            right.append(want["color"] in str(colour).split("|"))
    return float(np.mean(right))


# ---- agreement --------------------------------------------------------------------------------------------------


def agreement(table: pd.DataFrame, score: str = "score", resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far the column `score` agrees with `value`, a row an axis and measure, with 95 % bootstrap intervals over prompts (what CLIP's
    tokenizer reads as one is one) and the number of prompts: `pairs`, the share of pairs of pictures of one prompt that it orders as
    people do (ties of the score count half, pairs that people call equal are left out, a picture counts by the mean of its judgements);
    `spearman`; `tau_c`, Kendall's tau-c over all judgements, as in CLIPScore. ValueError where nothing has both a score and a value."""
    rows, table = [], table.dropna(subset=[score, "value"])
    table = table.assign(prompt=table.prompt.map(lambda p: same_prompt(str(p)), na_action="ignore"))
    if not len(table):
        raise ValueError(f"no picture has both a value and a number in the column {score}")
    for axis, part in table.groupby("axis", sort=False):
        by_prompt = [p[[score, "value"]].to_numpy(float) for _, p in part.groupby("prompt", sort=False)]
        pictures = part.groupby(["prompt", "image"], sort=False)[[score, "value"]].mean()  # several people may have judged one
        right = [_ordered(p.to_numpy(float)) for _, p in pictures.groupby(level="prompt", sort=False)]
        measures = {
            "pairs": lambda chosen, right=right: _mean([right[i] for i in chosen]),
            "spearman": lambda chosen, own=by_prompt: _correlation(stats.spearmanr, [own[i] for i in chosen]),
            "tau_c": lambda chosen, own=by_prompt: _correlation(partial(stats.kendalltau, variant="c"), [own[i] for i in chosen]),
        }
        draw = np.random.default_rng(seed).integers(len(by_prompt), size=(resamples, len(by_prompt)))
        for name, measure in measures.items():
            drawn = np.array([measure(chosen) for chosen in draw])
            low, high = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else (np.nan, np.nan)
            rows.append(
                {"axis": axis, "measure": name, "mean": measure(range(len(by_prompt))), "low": low, "high": high, "n": len(by_prompt)}
            )
    return pd.DataFrame(rows)


def _ordered(values: np.ndarray) -> np.ndarray:
    """Of the scores and values (n, 2) of one prompt: 1, 0.5 or 0 for each pair that people tell apart."""
    a, b = np.triu_indices(len(values), 1)
    sign = np.sign(values[a, 1] - values[b, 1])
    better, worse = values[a, 0] * sign, values[b, 0] * sign
    return wins(*map(torch.from_numpy, (better, worse))).numpy()[sign != 0]


def _correlation(of, parts: list[np.ndarray]) -> float:
    """NaN where there is none, of a constant."""
    score, value = np.concatenate(parts).T
    return of(score, value).statistic if np.ptp(score) and np.ptp(value) else np.nan


def _mean(parts: list[np.ndarray]) -> float:
    flat = np.concatenate(parts)
    return flat.mean() if len(flat) else np.nan
