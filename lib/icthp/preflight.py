"""What can be known of a run before it begins: parameters that are not set, files that are missing or hold no column or class that a stage
reads. `icthp.strip` refuses before the first stage, `icthp.plan` prints it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from icthp import tables
from icthp.params import UNSET, unset

COCO_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}  # GenEval's, of COCO's


def problems(params: dict[str, dict]) -> list[str]:
    """A sentence for each of them, with its remedy."""
    found = [f"params.yaml: {name} is not set ({UNSET})" for name in unset(params)]
    shared = params.get("shared", {})
    named = {_pictures: shared.get("pictures_table"), _prompts: shared.get("prompts"), _pairs: params.get("pick_high", {}).get("pairs")}
    for check, value in named.items():
        try:
            found += list(check(value, shared)) if value is not None and UNSET not in value else []
        except (ValueError, OSError) as error:
            found.append(str(error))
    return found


def _pictures(source: str, shared: dict) -> Iterator[str]:
    if source:
        tables.read_columns(source, tables.names(shared["levels"]), ["prompt"])
    elif not shared.get("micro", True):
        yield "params.yaml: without the microworld 01 and 06 need real pictures: name them as shared.pictures_table"


def _prompts(folder: str, shared: dict) -> Iterator[str]:
    for name in ("train.txt", "test.txt"):
        if not tables.read_lines(Path(folder) / name):
            yield f"{folder}/{name} is empty: write a prompt a line"
    wanted = {want["class"] for _, row in tables.read_jsonl(Path(folder) / "geneval.jsonl") for want in row.get("include", [])}
    config = Path(shared["detector"]) / "config.json"
    names = json.loads(config.read_text(encoding="utf-8")).get("id2label", {}).values() if config.exists() else ()
    if unknown := sorted(wanted - {COCO_NAMES.get(name, name) for name in names}) if names else []:
        asked = ", ".join(unknown[:5])
        yield f"{folder}/geneval.jsonl asks for {asked}, which the detector {shared['detector']} does not know: take GenEval's own"


def _pairs(folder: str, shared: dict) -> Iterator[str]:
    for split in ("train", "test"):
        files = sorted(Path(folder).rglob(f"{split}*.parquet")) or sorted(Path(folder).glob(f"**/{split}/*.parquet"))
        if not files:
            yield f"{folder}/{split}.parquet is missing: name the folder of your pairs (pick_high.pairs), or let notebook A4 write it"
            continue
        if missing := {"easy_prompt", "image_1", "image_2"} - set(pq.read_schema(files[0]).names):
            yield f"{files[0]} has no column {', '.join(sorted(missing))}: pairs have easy_prompt, image_1 (lost) and image_2 (won)"
