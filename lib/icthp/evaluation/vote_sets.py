"""Published rankings and ratings of pictures as votes: HPDv2, ImageRewardDB, AIGCIQA2023, EvalMuse-40K, RichHF-18K.

Each function reads a folder of the set's own layout and returns a table of votes (`human_votes.COLUMNS`, perhaps `comparison`); rows that
cannot be used are left out as `vote_rows.gather` says."""

import ast
import json
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from scipy.io import loadmat

from icthp.data.parquet import shards
from icthp.evaluation import tfrecord
from icthp.evaluation.vote_rows import (
    Vote,
    field,
    gather,
    json_rows,
    need_out,
    number,
    numbers,
    parquet_rows,
    picture,
    require,
    text,
    texts,
    write_picture,
)


def hpdv2(folder: Path) -> pd.DataFrame:
    """HPDv2's test set (arXiv 2306.09341; Hub ymhao/HPDv2, Apache-2.0): test.json with prompt, image_path and rank, the people's
    averaged ranking, the lowest the best; pictures in test/. Each row is a comparison. The published accuracy counts a pair of equal ranks
    as right, here it is left out."""
    path = require(folder / "test.json")

    def votes_of(i, row):
        prompt = field(row, "prompt", text)
        names = field(row, "image_path", texts)
        ranks = field(row, "rank", numbers)
        if len(names) != len(ranks):
            raise ValueError("image_path and rank are not of one length")
        return [Vote(prompt, picture(folder / "test", name), "preference", -rank, str(i)) for name, rank in zip(names, ranks)]

    return gather(path, json_rows(path), votes_of)


RATINGS = {"overall": "overall_rating", "alignment": "image_text_alignment_rating", "fidelity": "fidelity_rating"}


def imagereward_db(folder: Path, split: str = "test") -> pd.DataFrame:
    """ImageRewardDB (arXiv 2304.05977; Hub THUDM/ImageRewardDB, Apache-2.0): metadata-{split}.parquet with prompt_id, prompt, image_path,
    rank (1 the best; axis preference, a comparison for each prompt_id) and three ratings from 1 to 7. Pictures lie where image_path says,
    in images/{split}/{split}_{n}/, unpacked from the zips of those names."""
    path = require(folder / f"metadata-{split}.parquet")
    place = folder / "images" / split
    if not any(p.is_dir() for p in place.glob("*")):
        raise FileNotFoundError(f"{place} has no unpacked pictures: run `for i in *.zip; do unzip -q $i -d ${{i%.zip}}; done` in it")

    def votes_of(i, row):
        prompt = field(row, "prompt", text)
        image = picture(folder, field(row, "image_path", text))
        votes = [Vote(prompt, image, "preference", -field(row, "rank", number), field(row, "prompt_id", text))]
        return votes + [Vote(prompt, image, axis, field(row, name, number)) for axis, name in RATINGS.items()]

    return gather(path, parquet_rows(path, ["prompt_id", "prompt", "image_path", "rank", *RATINGS.values()]), votes_of)


# ---- AIGCIQA2023 ------------------------------------------------------------------------------------------------

OPINIONS = {"quality": "mosz1", "authenticity": "mosz2", "alignment": "mosz3"}
LARGEST = 50_000_000  # bytes of an unpacked xlsx
SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def aigciqa2023(folder: Path) -> pd.DataFrame:
    """AIGCIQA2023 (arXiv 2307.00211; Hub IntMeGroup/AIGCIQA2023, no licence stated): mean opinions `MOSz` in DATA/MOS/mosz{1,2,3}.mat
    (quality, authenticity, correspondence), prompts in column C of AIGCIQA2023_Prompts.xlsx, pictures Image/allimg/{i}.png. The files name
    no picture: number i is of prompt i // 4 % 100, for pic-index.xlsx lists six models of 100 prompts of four pictures."""
    prompts = _column(require(folder / "AIGCIQA2023_Prompts.xlsx"), "C")
    opinions = [_mean_opinions(require(folder / f"DATA/MOS/{name}.mat")) for name in OPINIONS.values()]
    if len({len(values) for values in opinions}) > 1 or len(opinions[0]) % (4 * len(prompts)):
        raise ValueError(f"{folder} has opinions on {[*map(len, opinions)]} pictures, not four a model of each of {len(prompts)} prompts")

    def votes_of(i, values):
        prompt = text(prompts[i // 4 % len(prompts)], "prompt")
        image = picture(folder / "Image/allimg", f"{i}.png")
        return [Vote(prompt, image, axis, number(value, axis)) for axis, value in zip(OPINIONS, values)]

    return gather(folder, zip(*opinions), votes_of)


def _mean_opinions(path: Path) -> list[float]:
    """The numbers of a MATLAB file of version 5, of which nothing is called."""
    try:
        return loadmat(path, variable_names=["MOSz"])["MOSz"].astype(float).ravel().tolist()
    except Exception as error:  # scipy's are of many kinds
        raise ValueError(f"{path} has no MOSz that can be read: {error!r}") from error


def _column(path: Path, letter: str) -> list[str]:
    """The texts in a column of an xlsx file's first sheet."""
    try:
        with zipfile.ZipFile(path) as book:
            if sum(part.file_size for part in book.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST} bytes")
            strings = ElementTree.fromstring(book.read("xl/sharedStrings.xml")).iter(f"{SHEET}si")
            cells = ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml")).iter(f"{SHEET}c")
        shared = ["".join(part.text or "" for part in string.iter(f"{SHEET}t")) for string in strings]
        found = [shared[int(cell.findtext(f"{SHEET}v"))] for cell in cells if cell.get("r", "").rstrip("0123456789") == letter]
        if not found:
            raise ValueError(f"column {letter} is empty")
        return found
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of prompts that can be read: {error!r}") from error


# ---- EvalMuse-40K -----------------------------------------------------------------------------------------------


def evalmuse(folder: Path) -> pd.DataFrame:
    """EvalMuse-40K (arXiv 2412.18150; Hub DY-Evalab/EvalMuse, BSD-3-Clause): train_list.json (test.json has no scores) with prompt,
    img_path in images/, total_score (axis alignment: the mean of ratings from 1 to 5) and element_score, {element: [0 or 1 a person]} as a
    text (axis elements: the share that people find). Prompts that people call meaningless are there too. Pictures come from
    `cat images.zip.part-* > images.zip; unzip images.zip`."""
    path = require(folder / "train_list.json")

    def votes_of(i, row):
        prompt = field(row, "prompt", text)
        image = picture(folder / "images", field(row, "img_path", text))
        alignment = np.mean(field(row, "total_score", numbers)).item()
        return [Vote(prompt, image, "alignment", alignment), Vote(prompt, image, "elements", field(row, "element_score", _share_found))]

    return gather(path, json_rows(path), votes_of)


def _share_found(value, name: str) -> float:
    """The mean over elements of the mean over people. value: a dict, or the text of one, of JSON or Python, which is parsed and not run."""
    if isinstance(value, str) and len(value) < 100_000:
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = parse(value)
                break
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{name} is no dict of elements")
    return np.mean([np.mean(numbers(found, name)) for found in value.values()]).item()


# ---- RichHF-18K -------------------------------------------------------------------------------------------------

SCORES = {"aesthetics": "aesthetics_score", "plausibility": "artifact_score", "alignment": "misalignment_score", "overall": "overall_score"}
PICKAPIC_SPLIT = {"train": "train", "dev": "train", "test": "test"}  # RichHF's -> where its pictures are in Pick-a-Pic v1
SIDES = [(f"image_{side}_uid", f"jpg_{side}") for side in (0, 1)]


def richhf(folder: Path, split: str = "test", out=None) -> pd.DataFrame:
    """RichHF-18K (arXiv 2312.10240; google-research-datasets/richhf-18k, no licence stated): {split}.tfrecord (train, dev or test; Git LFS)
    with filename and mean scores in [0, 1], the higher the better whatever a name says: artifact_score is plausibility, misalignment_score
    is alignment. Prompts and pictures are Pick-a-Pic v1's, whose parquet files lie in pickapic_v1/ (or its data/): the filename's stem is
    a picture's uid there. Pictures are written into `out`."""
    path = require(folder / f"{split}.tfrecord")
    need_out(out, path)
    rows = [{name: example.get(name) or [None] for name in ("filename", *SCORES.values())} for example in tfrecord.examples(path)]
    files = shards(folder / "pickapic_v1", PICKAPIC_SPLIT[split], "RichHF-18K has no pictures; download yuvalkirstain/pickapic_v1 there")
    known = _pick_a_pic(files, {uid for row in rows if (uid := _uid(row))}, out)

    def votes_of(i, row):
        if (uid := _uid(row)) not in known:
            raise ValueError("the filename is no picture of Pick-a-Pic v1" if uid else "the record has no filename")
        return [Vote(*known[uid], axis, number(row[name][0], name)) for axis, name in SCORES.items()]

    return gather(path, rows, votes_of)


def _uid(row: dict) -> str:
    name = row["filename"][0]
    return PurePosixPath(name.decode(errors="replace")).stem if isinstance(name, bytes) else ""


def _pick_a_pic(files: list[str], wanted: set[str], out) -> dict[str, tuple[str, str]]:
    """{uid: (prompt, path)} of those pictures of Pick-a-Pic v1 that are wanted and whole."""
    known = {}
    for row in (row for file in files for row in parquet_rows(file, ["caption", *(name for side in SIDES for name in side)])):
        for uid, contents in SIDES:
            if row[uid] in wanted and row[uid] not in known:
                with suppress(ValueError):
                    known[row[uid]] = text(row["caption"], "caption"), write_picture(row[contents], out)
    return known
