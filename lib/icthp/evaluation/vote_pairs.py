"""Published choices between two pictures as votes: HPDv3, HPDv3++, Rapidata, MMRB2.

Each function reads a folder of the set's own layout and returns a table of votes (`human_votes.COLUMNS` and `comparison`), two rows a
choice. Which of the two comes first is drawn by a digest of the choice's own contents, so that a score gains nothing from the order; rows
that cannot be used are left out as `vote_rows.gather` says."""

from pathlib import Path

import pandas as pd

from icthp.evaluation.vote_rows import (
    Vote,
    field,
    gather,
    json_rows,
    need_out,
    number,
    parquet_rows,
    picture,
    require,
    text,
    write_picture,
)
from icthp.files import digest, read_json
from icthp.tables import read_jsonl


def compared(comparison, axis: str, prompt: str, names: list[str], images: list[str], values: list[float]) -> list[Vote]:
    """The votes on two pictures, in an order that follows from the axis, the prompt and the names alone."""
    if names[0] == names[1]:
        raise ValueError("a picture is compared with itself")
    votes = [Vote(prompt, image, axis, value, str(comparison)) for image, value in zip(images, values)]
    return votes[::-1] if int(digest(axis, prompt, *names), 16) % 2 else votes


# ---- HPDv3 and HPDv3++ ------------------------------------------------------------------------------------------


def hpdv3(folder: Path, split: str = "test") -> pd.DataFrame:
    """HPDv3 (arXiv 2508.03789; Hub MizzenAI/HPDv3, MIT): {split}.json with prompt, path1, which people prefer in every row, and path2;
    pictures below the folder (`cat images.tar.gz.* | tar -xz`). confidence and choice_dist, which many rows lack, are not used."""
    path = require(folder / f"{split}.json")
    return gather(path, json_rows(path), lambda i, row: _path1_preferred(folder, i, "preference", row))


FILES = {"alignment": "tf", "aesthetics": "aes"}


def hpdv3_plus(folder: Path, split: str = "test") -> pd.DataFrame:
    """HPDv3++ (arXiv 2606.14657; Hub Junjun2333/HPDv3-PlusPlus, Apache-2.0): HPDv3's rows in {split}/{split}_tf.json (text following; axis
    alignment) and {split}/{split}_aes.json (aesthetics), pictures of Qwen-Image below the folder (`cat images.tar.part* | tar -x`). Its
    labels were made "with human supervision", not by people alone."""
    names = {axis: f"{split}_{ending}.json" for axis, ending in FILES.items()}
    paths = {axis: require(folder / split / name, folder / name) for axis, name in names.items()}
    rows = ((axis, row) for axis, path in paths.items() for row in json_rows(path))
    return gather(folder, rows, lambda i, row: _path1_preferred(folder, i, *row))


def _path1_preferred(folder: Path, i: int, axis: str, row) -> list[Vote]:
    names = [field(row, name, text) for name in ("path1", "path2")]
    return compared(i, axis, field(row, "prompt", text), names, [picture(folder, name) for name in names], [1.0, 0.0])


# ---- Rapidata ---------------------------------------------------------------------------------------------------

AXES = ("preference", "alignment", "coherence")
SIDES = ("image1", "image2")
COLUMNS = ["prompt", *SIDES, *(f"votes_{side}" for side in SIDES), *(f"{side}_path" for side in SIDES)]


def rapidata(folder: Path, axis: str | None = None, out=None) -> pd.DataFrame:
    """Rapidata's sets (Hub Rapidata/700k_Human_Preference_Dataset_..., 117k_human_alignment_... and others, CDLA-Permissive-2.0; arXiv
    2409.11904): data/*.parquet with prompt, image1, image2 (contents), their names and how many of some 26 people chose each; a value is
    its share of the votes. Pictures are written into `out`. axis: what was asked, found in the folder's name unless given. Who chose by
    preference was not shown the prompt."""
    paths = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet")) or [require(folder / "data/train_0001.parquet")]
    need_out(out, folder)
    axis = axis or next((name for name in AXES if name in folder.name.lower()), None)
    if axis not in AXES:
        raise ValueError(f"the name of {folder} does not tell what people were asked: give axis, one of {', '.join(AXES)}")

    def votes_of(i, row):
        votes = [field(row, f"votes_{side}", number) for side in SIDES]
        if min(votes) < 0 or not sum(votes):
            raise ValueError("nobody voted")
        names = [field(row, f"{side}_path", text) for side in SIDES]
        prompt = field(row, "prompt", text)
        return compared(i, axis, prompt, names, [write_picture(row[side], out) for side in SIDES], [v / sum(votes) for v in votes])

    return gather(folder, (row for path in paths for row in parquet_rows(path, COLUMNS)), votes_of)


# ---- MMRB2 ------------------------------------------------------------------------------------------------------

KEYS = {"oneigbench": ("category", ""), "wise": ("version", "original")}  # what tells prompts of one id apart, and its default


def mmrb2(folder: Path) -> pd.DataFrame:
    """Multimodal RewardBench 2, text to image (facebookresearch/MMRB2, CC BY-NC 4.0; its benchmark folder): 1000 pairs of t2i.json, which
    its scripts build, or of t2i_response_only.json with the prompts of sources/{prompt_source}/prompts.jsonl, which they fetch; pictures in
    images/ (Hub facebook/MMRB2_image). `chosen` is A or B: in the published file A wherever most of the three people give 4 to 6."""
    path = require(folder / "t2i.json", folder / "t2i_response_only.json")
    prompts = _prompts(folder)
    rows = read_json(path).get("pairs")
    if not isinstance(rows, list):
        raise ValueError(f"{path} has no list of pairs")

    def votes_of(i, row):
        chosen = field(row, "chosen", text)
        if chosen not in ("A", "B"):
            raise ValueError("chosen is neither A nor B")
        names = [_content(field(row, f"response_{side}", _object), "response_content", "image") for side in "ab"]
        names = [name if name.startswith("images/") else f"images/{name}" for name in names]
        origin = row if "prompt_content" in row else prompts.get(_key(row))
        if not origin:
            raise ValueError("sources has no such prompt")
        prompt = _content(origin, "prompt_content", "text")
        images = [picture(folder, name) for name in names]
        return compared(field(row, "id", text), "preference", prompt, names, images, [float(chosen == side) for side in "AB"])

    return gather(path, rows, votes_of)


def _prompts(folder: Path) -> dict[tuple[str, str], dict]:
    """{(source, key): the row of a prompt}."""
    rows = ((file.parent.name, row) for file in folder.glob("sources/*/prompts.jsonl") for _, row in read_jsonl(file))
    return {(source, str(row.get("lookup_key", row.get("id")))): row for source, row in rows}


def _key(row: dict) -> tuple[str, str]:
    """The source of a pair's prompt, and its key there."""
    source = field(row, "prompt_source", text)
    metadata = field(row, "prompt_metadata", _object)
    parts = [metadata.get("id"), *([metadata.get(*KEYS[source])] if source in KEYS else [])]
    return source, "_".join(map(str, parts))


def _content(row: dict, name: str, kind: str) -> str:
    """The value of the one entry [kind, value] of a content list."""
    entries = row.get(name) if isinstance(row.get(name), list) else []
    found = [entry[1] for entry in entries if isinstance(entry, list) and len(entry) == 2 and entry[0] == kind]
    if len(found) != 1:
        raise ValueError(f"{name} has no {kind}, or more than one")
    return text(found[0], name)


def _object(value, name: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value
