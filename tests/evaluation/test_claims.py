"""A claim holds by intervals, not by means."""

import pytest

from icthp.evaluation import claims

ABOVE, BELOW, AROUND = {"low": 0.1, "high": 0.3}, {"low": -0.3, "high": -0.1}, {"low": -0.1, "high": 0.3}


@pytest.mark.parametrize(
    "rows, verdict",
    [
        ([ABOVE], "holds"),
        ([ABOVE, ABOVE], "holds"),
        ([ABOVE, AROUND], "holds in part"),
        ([ABOVE, BELOW], "holds in part"),
        ([BELOW, AROUND], "does not hold"),
        ([AROUND], "undecided"),
    ],
)
def test_the_intervals_decide(rows, verdict):
    assert verdict in claims.VERDICTS
    assert claims.verdict((row, 0, ">") for row in rows) == verdict
    mirrored = [{"low": -row["high"], "high": -row["low"]} for row in rows]
    assert claims.verdict((row, 0, "<") for row in mirrored) == verdict


def test_the_value_need_not_be_zero_and_an_end_on_it_decides_nothing():
    assert claims.verdict([(ABOVE, 0.05, ">")]) == "holds"
    assert claims.verdict([(ABOVE, 0.5, ">")]) == "does not hold"
    assert claims.verdict([(ABOVE, 0.1, ">"), (ABOVE, 0.3, "<")]) == "undecided"


def test_bad_claims_are_refused():
    with pytest.raises(ValueError, match="needs a number"):
        claims.verdict([])
    with pytest.raises(ValueError, match="above .* or below"):
        claims.verdict([(ABOVE, 0, "=")])
