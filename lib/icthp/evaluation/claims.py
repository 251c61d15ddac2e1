"""What became of the paper's claims, by the intervals of what was measured about each."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from icthp.figures.marks import minus
from icthp.figures.palette import label
from icthp.figures.published import PAIRS
from icthp.figures.writing import format_ci

VERDICTS = ("holds", "holds in part", "does not hold", "undecided")
NOT_MEASURED = "not measured"
MEASURES = {"geneval_mean": "GenEval", "jpeg_kb": "kB", "micro_quality": "quality", "micro_utility": "utility"}
TRANSFERS = {"ict_text": "ICT's text tower", "ict_text_alone": "ICT's text tower as the only encoder"}


class Number(NamedTuple):
    """Something that was measured: what it is, in words, and its mean, low and high."""

    title: str
    row: Mapping


class Claim(NamedTuple):
    """What the paper says, the numbers it publishes for that, and the side of `value`, ">" or "<", on which it puts the numbers here:
    keys of `evidence`."""

    text: str
    published: str
    side: str
    value: float
    keys: tuple[tuple[str, ...], ...]


def _tuned(reward: str, measure: str) -> tuple[tuple[str, ...], ...]:
    """Keys of a tuned generator's effect, by DRaFT-1 without an anchor and as the pipeline tunes."""
    return ("tuned", f"{reward}_k1", measure), ("tuned", reward, measure)


CLAIMS = (
    Claim("Scorers fall for the paradox: a richer picture scores lower", "", ">", 0.5, (("paradox", "clip"), ("paradox", "pickscore"))),
    Claim("ICT and HP do not", "", "<", 0.5, (("paradox", "ict"), ("paradox", "hp"), ("paradox", "icthp"))),
    Claim("ICT and HP name I3, better than PickScore does", "100 %; PickScore 75 and 87 %", ">", 0,
          tuple(("votes", scorer, pair) for scorer in ("ict", "hp") for pair in ("i3_i2", "i3_i1"))),
    Claim("On votes they are no better than PickScore", "65 %; PickScore 75 %", "<", 0,
          (("votes", "ict", "i2_i1"), ("votes", "hp", "i2_i1"))),
    Claim("CLIP's reward collapses the generator", "GenEval 0.69 to 0.13", "<", 0, _tuned("clip", "geneval_mean")),
    Claim("PickScore's reward harms alignment", "GenEval 0.69 to 0.66", "<", 0, _tuned("pickscore", "geneval_mean")),
    Claim("ICT's reward raises GenEval", "0.69 to 0.71", ">", 0, _tuned("ict", "geneval_mean")),
    Claim("HP's reward makes larger JPEG files", "313 to 335 kB", ">", 0, _tuned("hp", "jpeg_kb")),
    Claim("HP's reward raises aesthetics", "6.29 to 6.45", ">", 0, _tuned("hp", "micro_quality")),
    Claim("Pictures tuned on HP win votes over untuned ones", "71 %", ">", 0, _tuned("hp", "micro_utility")),
    Claim("So do those tuned on ICT-HP", "", ">", 0, _tuned("icthp", "micro_utility")),
    Claim("ICT's text tower in another generator helps", "", ">", 0, (("transfer", "ict_text"), ("transfer", "ict_text_alone"))),
)  # fmt: skip

# ---- the numbers ------------------------------------------------------------------------------------------------


def evidence(metrics: dict, versus: pd.DataFrame, effects: pd.DataFrame, tuned: pd.DataFrame) -> dict[tuple[str, ...], Number]:
    """The numbers that claims are about, by keys: ("paradox", scorer), a rate; ("votes", scorer, pair), accuracy less PickScore's;
    ("tuned", row, measure), a generator less the untuned one; ("transfer", model), GenEval with ICT's text tower less with CLIP's.

    metrics: those of notebook 06; versus: its paired differences (against, scorer, pair, mean, low, high); effects: `study/tuning.csv`;
    tuned: notebook 06's (model, measure, minus, minus_low, minus_high)."""
    return _paradox_rates(metrics) | _votes(versus) | _effects(effects) | _transfers(tuned)


def _paradox_rates(metrics: dict) -> dict:
    prefix = "micro_paradox_rate_short_"
    names = [key.removeprefix(prefix) for key in metrics if key.startswith(prefix) and f"{key}_low" in metrics]
    ends = {"mean": "", "low": "_low", "high": "_high"}
    return {("paradox", name): Number(f"{label(name)}, rate", {end: metrics[f"{prefix}{name}{suffix}"] for end, suffix in ends.items()})
            for name in names}  # fmt: skip


def _votes(versus: pd.DataFrame) -> dict:
    rows = versus[versus.against == "pickscore"].to_dict("records") if len(versus) else []
    return {("votes", row["scorer"], row["pair"]): Number(f"{label(row['scorer'])} less PickScore, {PAIRS[row['pair']]}", row)
            for row in rows}  # fmt: skip


def _effects(effects: pd.DataFrame) -> dict:
    found = {}
    for row in minus(effects[effects.measure.isin(list(MEASURES))]).to_dict("records"):
        tuning = ", DRaFT-1" if row["row"].endswith("_k1") else ""
        title = f"{label(row['row'].removesuffix('_k1'))}{tuning}, {MEASURES[row['measure']]} less untuned"
        found["tuned", row["row"], row["measure"]] = Number(title, row)
    return found


def _transfers(tuned: pd.DataFrame) -> dict:
    rows = minus(tuned[(tuned.measure == "geneval_mean") & tuned.model.isin(list(TRANSFERS))]).to_dict("records")
    return {("transfer", row["model"]): Number(f"{TRANSFERS[row['model']]}, GenEval less with CLIP's", row) for row in rows}


# ---- the verdicts -----------------------------------------------------------------------------------------------


def tabulate(found: dict[tuple[str, ...], Number], scale: str, claims: Iterable[Claim] = CLAIMS) -> pd.DataFrame:
    """A row a claim: what is published, what was measured, the verdict. A number that was not measured is left out; a claim without any
    has NOT_MEASURED in the place of a verdict."""
    rows = []
    for claim in claims:
        numbers = [found[key] for key in claim.keys if key in found]
        measured = "; ".join(f"{number.title} {format_ci(number.row)}" for number in numbers)
        decided = verdict((number.row, claim.value, claim.side) for number in numbers) if numbers else NOT_MEASURED
        rows.append({"claim": claim.text, "published": claim.published, f"measured ({scale})": measured, "verdict": decided})
    return pd.DataFrame(rows).set_index("claim")


def verdict(measured: Iterable[tuple[Mapping, float, str]]) -> str:
    """One of VERDICTS for a claim about some numbers: (row with "low" and "high", the value that it is compared with, the side, ">" or "<",
    on which the claim puts it). An interval speaks for the claim where all of it lies on that side, against it where all lies on the other.

    "holds": every number speaks for it. "holds in part": some do. "does not hold": none does, and some speak against it. "undecided": all
    intervals hold the value. ValueError for no number and for another side."""
    sides = [_side(row, value, claimed) for row, value, claimed in measured]
    if not sides:
        raise ValueError("a claim needs a number")
    if max(sides) > 0:
        return "holds" if min(sides) > 0 else "holds in part"
    return "does not hold" if min(sides) < 0 else "undecided"


def _side(row: Mapping, value: float, claimed: str) -> int:
    """1 where the interval lies on the claimed side of the value, -1 on the other, else 0."""
    if claimed not in ("<", ">"):
        raise ValueError(f"a claim puts a number above (>) or below (<) another, not {claimed!r}")
    sign = 1 if row["low"] > value else -1 if row["high"] < value else 0
    return sign if claimed == ">" else -sign
