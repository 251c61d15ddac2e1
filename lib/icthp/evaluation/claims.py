"""What became of a published claim, by the intervals of what was measured about it."""

from collections.abc import Iterable, Mapping

VERDICTS = ("holds", "holds in part", "does not hold", "undecided")


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
