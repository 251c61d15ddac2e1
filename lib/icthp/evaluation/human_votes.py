"""How people judged pictures, one axis at a time, and how far a score agrees with them.

A table of votes has the columns prompt, image (a path), axis and value, a number that is higher for the better, and perhaps comparison:
an id of the pair or ranking within which alone the value has a meaning. READERS bring published sets into this form; none of their pictures
trained anything here."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from icthp.data.prompts import same_prompt
from icthp.evaluation import vote_pairs, vote_sets
from icthp.evaluation.geneval import read_metadata
from icthp.evaluation.statistics import bootstrap_ci, pairwise_accuracy
from icthp.evaluation.vote_rows import require
from icthp.tables import declared, read_columns, read_csv, read_json

COLUMNS = ["prompt", "image", "axis", "value"]


def read(source: str, out=None, **options) -> pd.DataFrame:
    """Votes (COLUMNS, perhaps `comparison`) of "NAME:folder" for a published set of READERS, or of the path of a table of votes, its image
    paths relative to it. out: a folder for the pictures of a set that keeps them inside its tables (WITH_PICTURES). options: of the set's
    reader, such as split. ValueError and FileNotFoundError name the file, column and row that is not as it should be; the readers of
    `vote_sets` and `vote_pairs` leave such a row out and warn, with the reasons in attrs["left_out"]."""
    name, _, folder = source.partition(":")
    if name in READERS:
        return READERS[name](Path(folder), **options, **({"out": out} if name in WITH_PICTURES else {}))
    if name != source and not Path(source).exists():
        raise ValueError(f"there is no set of votes {name}: it is one of {', '.join(READERS)}, or give the path of a table")
    table = read_columns(source, ["image"], ["prompt", "axis"], ["value"], ["comparison"])
    return table[[*COLUMNS, *({"comparison"} & {*table})]]


def flickr8k(folder: Path) -> pd.DataFrame:
    """Flickr8k-Expert (Hodosh et al. 2013): ExpertAnnotations.txt (image, caption id, three judgements from 1 to 4), Flickr8k.token.txt,
    and the pictures in Flicker8k_Dataset, as its authors spell it. Each judgement is a row; pictures beside one of their own captions
    are left out, as in CLIPScore (arXiv 2104.08718)."""
    captions = _read_tabs(folder / "Flickr8k.token.txt", ["caption", "prompt"])
    rows = _read_tabs(folder / "ExpertAnnotations.txt", ["file", "caption"], ["1", "2", "3"])
    if unknown := sorted(set(rows.caption) - set(captions.caption)):
        raise ValueError(f"{folder / 'Flickr8k.token.txt'} lacks {len(unknown)} captions that were judged, {unknown[0]} among them")
    rows = rows[rows.file != rows.caption.str.partition("#")[0]].merge(captions, on="caption")
    rows = rows.melt(["file", "prompt"], ["1", "2", "3"])
    return _votes(folder / "Flicker8k_Dataset", rows.file, rows.prompt, alignment=rows.value)


def agiqa3k(folder: Path) -> pd.DataFrame:
    """AGIQA-3K (arXiv 2306.04717): data.csv with mean opinions of quality and alignment, pictures beside it."""
    path = folder / "data.csv"
    rows = declared(path, read_csv(require(path)), ["name", "prompt"], ["mos_quality", "mos_align"])
    return _votes(folder, rows["name"], rows.prompt, quality=rows.mos_quality, alignment=rows.mos_align)


def imagereward(folder: Path) -> pd.DataFrame:
    """ImageReward's test.json (arXiv 2304.05977): rankings of the pictures of a prompt, 1 the best, pictures beside it."""
    rows = _rankings(require(folder / "test.json"))
    return _votes(folder, rows.generation, rows.prompt, preference=-rows.ranking)


def geneval(folder: Path) -> pd.DataFrame:
    """GenEval's people: every annotations_*.csv, with geneval_metadata.jsonl, pictures in {model}/00000/samples/00000.png. Axes, each the
    mean over the people: quality (1 to 4), realism of the objects (1 to 3), alignment, the share of the prompt's counts and colours
    that they confirm (not positions, whose reference the file does not tell)."""
    prompts = read_metadata(require(folder / "geneval_metadata.jsonl"))
    files = sorted(folder.glob("annotations_*.csv"))
    require(files[0] if files else folder / "annotations_sdv2.csv")
    return pd.concat([_geneval_votes(folder, file, prompts) for file in files], ignore_index=True)


def _geneval_votes(folder: Path, file: Path, prompts: list[dict]) -> pd.DataFrame:
    """The votes on one model's pictures; prompts: GenEval's metadata, in the order of prompt_id."""
    rows = _annotations(file)
    if unknown := [i for i in rows.prompt_id if i not in range(len(prompts))]:
        raise ValueError(f"{file} asks of prompt {unknown[0]:g}; geneval_metadata.jsonl has {len(prompts)}")
    rows["alignment"] = [_confirmed(row, prompts[int(row["prompt_id"])]) for row in rows.to_dict("records")]
    rows["realism"] = rows[["task-real-0", "task-real-1"]].mean(axis=1)
    rows = rows.rename(columns={"task-quality": "quality", "caption": "prompt", "image_url": "url"})
    mean = rows.groupby(["url", "prompt"], sort=False)[["quality", "realism", "alignment"]].mean().reset_index()
    model = file.stem.removeprefix("annotations_")
    images = model + "/" + mean.url.str.split("/").str[-3:].str.join("/")
    return _votes(folder, images, mean.prompt, quality=mean.quality, realism=mean.realism, alignment=mean.alignment)


READERS = {"flickr8k": flickr8k, "agiqa3k": agiqa3k, "imagereward": imagereward, "geneval": geneval,
           "hpdv2": vote_sets.hpdv2, "imagerewarddb": vote_sets.imagereward_db, "aigciqa2023": vote_sets.aigciqa2023,
           "evalmuse": vote_sets.evalmuse, "richhf": vote_sets.richhf, "hpdv3": vote_pairs.hpdv3, "hpdv3++": vote_pairs.hpdv3_plus,
           "rapidata": vote_pairs.rapidata, "mmrb2": vote_pairs.mmrb2}  # fmt: skip
WITH_PICTURES = {"richhf", "rapidata"}


def _read_tabs(path: Path, texts: list[str], numbers=()) -> pd.DataFrame:
    """A file without a header whose cells tabs set apart; quotes are characters like others."""
    return declared(path, read_csv(require(path), [*texts, *numbers], delimiter="\t", quoting=csv.QUOTE_NONE), texts, numbers)


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
    """A file of GenEval's, its columns without "Input." and "Answer.": counts, judgements and the prompt's id are numbers, colours
    texts."""
    rows = read_csv(path).rename(columns=lambda c: c.rpartition(".")[2])
    numbers = ["prompt_id", "task-quality", "task-real-0", "task-real-1", *(c for c in rows if c.startswith("task-count-"))]
    return declared(path, rows, ["image_url", "caption"], numbers)


def _votes(folder: Path, images, prompts, **axes) -> pd.DataFrame:
    """A table of votes on images of `folder`, their values by axis; rows without a value are left out."""
    parts = []
    for axis, values in axes.items():
        paths = [str(folder / image) for image in images]
        parts.append(pd.DataFrame({"prompt": list(prompts), "image": paths, "axis": axis, "value": list(map(float, values))}))
    return pd.concat(parts, ignore_index=True).dropna(subset="value", ignore_index=True)


def _confirmed(answer: dict, metadata: dict) -> float:
    """The share of the prompt's counts and colours that a person confirms, NaN where all such questions are left out."""
    correct = []
    for i, want in enumerate(metadata["include"]):
        count = answer.get(f"task-count-{i}")
        colours = answer.get(f"task-color-{i}")
        if count is not None and count == count:  # people leave questions out
            correct.append(count == want["count"] if metadata["tag"] == "counting" else count >= want["count"])
        if "color" in want and isinstance(colours, str):
            correct.append(want["color"] in colours.split("|"))
    return float(np.mean(correct)) if correct else np.nan


# ---- agreement --------------------------------------------------------------------------------------------------


def agreement(table: pd.DataFrame, score: str = "score", resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far the column `score` agrees with `value`, a row an axis and measure, with 95 % bootstrap intervals over prompts (as
    `same_prompt` reads them), the number of pairs or judgements (n) and of prompts (groups).

    `pairs`: the share of pairs of pictures of one prompt that the score orders as people do (ties of the score count half, pairs that
    people call equal are left out, a picture counts by the mean of its judgements); of votes with a comparison, pairs within that.
    `spearman`, and `tau_c`, Kendall's tau-c, over all judgements without a comparison, as in CLIPScore. ValueError where nothing has both
    a score and a value."""
    if (incomplete := table[["prompt", "axis"]].isna().any(axis=1)).any():
        first = int(incomplete.to_numpy().argmax())
        raise ValueError(f"{incomplete.sum()} votes have no prompt or axis, the first in row {first}: fill them in")
    table = table.dropna(subset=[score, "value"])
    table = table.assign(prompt=table.prompt.map(lambda p: same_prompt(str(p)), na_action="ignore"))
    if not len(table):
        raise ValueError(f"no picture has both a value and a number in the column {score}")
    rows = []
    for axis, part in table.groupby("axis", sort=False):
        alone = part[part.comparison.isna()] if "comparison" in part else part
        measured = _pair_agreement(part, score, resamples, seed)
        measured |= _correlations(alone, score, resamples, seed) if len(alone) else {}
        rows += [{"axis": axis, "measure": measure} | row for measure, row in measured.items()]
    return pd.DataFrame(rows)


def ordered_pairs(votes: pd.DataFrame, score: str = "score") -> tuple[np.ndarray, np.ndarray]:
    """For each pair of pictures of one prompt, or of one comparison where votes have that, which people tell apart on one axis: does the
    column `score` order it as they do (1, 0.5 for a tie, 0), and the prompt. A picture counts by the mean of its judgements."""
    comparison = votes.comparison.astype(object) if "comparison" in votes else pd.Series(None, votes.index, dtype=object)
    votes = votes.assign(comparison=comparison.where(comparison.notna(), ""))
    groups = ["prompt", "comparison"]
    pictures = votes.groupby([*groups, "image"], sort=False)[[score, "value"]].mean()
    correct = {group: _correct_pairs(p.to_numpy(float)) for group, p in pictures.groupby(level=groups, sort=False)}
    return np.concatenate([*correct.values()]), np.repeat([prompt for prompt, _ in correct], [*map(len, correct.values())])


def _pair_agreement(votes: pd.DataFrame, score: str, resamples: int, seed: int) -> dict[str, dict]:
    """Without an interval where fewer than two prompts have a pair that people tell apart."""
    values, prompts = ordered_pairs(votes, score)
    groups = len(set(prompts))
    if groups >= 2:
        return {"pairs": bootstrap_ci(values, prompts, resamples=resamples, seed=seed)}
    mean = values.mean() if len(values) else np.nan
    return {"pairs": {"mean": mean, "low": np.nan, "high": np.nan, "n": len(values), "groups": groups}}


def _correct_pairs(values: np.ndarray) -> np.ndarray:
    """Of the scores and values (n, 2) of one prompt: 1, 0.5 or 0 for each pair that people tell apart."""
    a, b = np.triu_indices(len(values), 1)
    sign = np.sign(values[a, 1] - values[b, 1])
    better = torch.from_numpy(values[a, 0] * sign)
    worse = torch.from_numpy(values[b, 0] * sign)
    return pairwise_accuracy(better, worse).numpy()[sign != 0]


def _correlations(votes: pd.DataFrame, score: str, resamples: int, seed: int) -> dict[str, dict]:
    prompts = [p[[score, "value"]].to_numpy(float) for _, p in votes.groupby("prompt", sort=False)]
    samples = np.random.default_rng(seed).integers(len(prompts), size=(resamples, len(prompts)))
    rows = {}
    for name, correlate in (("spearman", stats.spearmanr), ("tau_c", partial(stats.kendalltau, variant="c"))):
        low, high = _percentile_ci(np.array([_correlation(correlate, [prompts[i] for i in sample]) for sample in samples]))
        mean = _correlation(correlate, prompts)
        rows[name] = {"mean": mean, "low": low, "high": high, "n": len(votes), "groups": len(prompts)}
    return rows


def _correlation(correlate, prompts: list[np.ndarray]) -> float:
    """Over the scores and values (n, 2) of all prompts together; NaN where either is constant."""
    score, value = np.concatenate(prompts).T
    return correlate(score, value).statistic if np.ptp(score) and np.ptp(value) else np.nan


def _percentile_ci(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values; NaN where all are equal, for nothing is known of their spread then."""
    finite = values[np.isfinite(values)]
    if not len(finite) or np.ptp(finite) == 0:
        return np.nan, np.nan
    return tuple(np.nanquantile(values, [0.025, 0.975]))
