"""The audit of a data set of triplets: what else than quality tells I3 from I2, and can the controls be trusted?"""

from functools import partial

import datasets
import numpy as np

from icthp import threads
from icthp.data import audit
from icthp.data.parquet import as_files

MATCHES = {"encoded": (), "coloured": ("colour",), "matched": ("colour", "spectrum")}  # what a pair is matched in, beside format and size
PERTURBED_PAIRS = 500  # at most

Correct = dict[str, np.ndarray]  # what audit.predict_better returns: cue -> (n,) 1 where it names the better picture


def file_contents(rows: datasets.Dataset, i: int) -> list[bytes]:
    """The files of I1, I2 or I3 (i) of triplets, as they are stored."""
    return [file["bytes"] for file in as_files(rows.select_columns(f"image_{i}"))[f"image_{i}"]]


def match_i3(rows: datasets.Dataset, side: int, controls=()) -> tuple[tuple[bytes], tuple[bytes]]:
    """I2 and I3 of triplets in one format at side x side pixels, and matched in `controls` (`audit.match_pairs`)."""
    reduced = [threads.each(partial(audit.reduced, side=side), file_contents(rows, i), "reduce") for i in (2, 3)]
    return audit.match_pairs(*reduced, side, controls)


def audit_triplets(rows: datasets.Dataset, side: int) -> dict[str, Correct]:
    """`audit.predict_better` of i2_i1 and i3_i2 as their files are stored, and of i3_i2 after each of MATCHES: i3_i2_encoded,
    i3_i2_coloured, i3_i2_matched. Pixels are measured on pictures of a longest side of at most `side`; rows of one easy prompt are in one
    fold."""
    cues = [audit.all_cues(file_contents(rows, i), side) for i in (1, 2, 3)]
    pairs = {"i2_i1": cues[:2], "i3_i2": cues[1:]}
    pairs |= {f"i3_i2_{name}": match_i3(rows, side, controls) for name, controls in MATCHES.items()}
    prompts = list(rows["easy_prompt"])
    return {name: audit.predict_better(*pair, groups=prompts) for name, pair in pairs.items()}


def audit_perturbed(rows: datasets.Dataset, side: int) -> dict[str, Correct]:
    """Can the controls be trusted? Pairs of two I2 of other rows, of which one has nothing but one cue changed (audit.PERTURBATIONS): the
    cue -> {"before": what this cue alone says, "after": what all say together once the pair is matched in it}, (n,) each."""
    half = min(len(rows), PERTURBED_PAIRS) // 2
    rows = rows.select(range(2 * half))
    i2 = threads.each(partial(audit.reduced, side=side), file_contents(rows, 2), "reduce")
    prompts = list(rows["easy_prompt"])
    return {cue: _before_and_after(i2, cue, side, prompts) for cue in audit.PERTURBATIONS}


def _before_and_after(i2: list[bytes], cue: str, side: int, prompts: list[str]) -> Correct:
    plain, changed = zip(*threads.each(partial(audit.perturb, cue=cue), i2, "perturb"))
    half = len(i2) // 2
    changed = changed[half:] + changed[:half]  # of other rows
    controls = [cue] if cue in audit.CONTROLS else []
    before = audit.predict_better(plain, changed, groups=prompts)
    after = audit.predict_better(*audit.match_pairs(plain, changed, side, controls), groups=prompts)
    return {"before": before[cue if cue in audit.CUES else "all"], "after": after["all"]}
