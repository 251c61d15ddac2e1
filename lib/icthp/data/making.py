"""The steps from pairs to triplets that come before the labels: refined prompts are checked, rejected rows go, I2 may start an edit.

The splits of a data set are one dictionary, as in notebook 02: its name -> the rows, or what belongs to them."""

from collections.abc import Callable

import datasets
import pandas as pd
from torch import Tensor

from icthp.data import wording
from icthp.data.parquet import unreadable
from icthp.images import stack


def check_refined(rows: dict[str, datasets.Dataset], refined: dict[str, list[str]], fits: Callable[[str], bool]) -> pd.DataFrame:
    """Columns split, easy, refined and reason, a line for each of the rows of PAIRS: why it is rejected, "" if it is not. A reason is one
    of `wording.refinement_errors`, or says which of the row's pictures cannot be read. fits(text): does the text encoder read it without
    cutting?"""
    return pd.concat([_check(split, table, refined[split], fits) for split, table in rows.items()])


def _check(split: str, table: datasets.Dataset, refined: list[str], fits: Callable[[str], bool]) -> pd.DataFrame:
    easy = list(table["easy_prompt"])
    reasons = [text or picture for text, picture in zip(wording.refinement_errors(easy, refined, fits), unreadable(table))]
    return pd.DataFrame({"split": split, "easy": easy, "refined": refined, "reason": reasons})


def drop_rejected(
    rows: dict[str, datasets.Dataset], refined: dict[str, list[str]], checked: pd.DataFrame
) -> tuple[dict[str, datasets.Dataset], dict[str, list[str]]]:
    """The rows, and their refined prompts, for which `check_refined` gives no reason. ValueError where a split has none."""
    reasons = {split: list(part.reason) for split, part in checked.groupby("split", sort=False)}
    wording.raise_if_all_rejected(reasons)
    valid = {split: [i for i, reason in enumerate(why) if not reason] for split, why in reasons.items()}
    valid_rows = {split: table.select(valid.get(split, [])) for split, table in rows.items()}
    return valid_rows, {split: [texts[i] for i in valid.get(split, [])] for split, texts in refined.items()}


def edit_of_i2(rows: datasets.Dataset, size: int, strength: float) -> dict:
    """Keywords of `tuning.generate_shards` with which each I3 is an edit of its row's I2, at size x size pixels and noised to `strength` in
    (0, 1]. Strength 0 gives no keywords: I3 is drawn anew."""

    def read_i2(part: slice) -> Tensor:
        return stack(rows[part]["image_2"], size)

    return {"start": read_i2, "strength": strength} if strength else {}
