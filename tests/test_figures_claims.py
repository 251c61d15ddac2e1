"""The table of claims, from the frames that notebooks 06 and the study write."""

import pandas as pd
import pytest

from conftest import ROOT
from icthp.evaluation import claims
from icthp.evaluation.claims import Claim, Number


def minus(mean, half=0.05) -> dict:
    return {"mean": 0.5, "low": 0.4, "high": 0.6, "minus": mean, "minus_low": mean - half, "minus_high": mean + half}


METRICS = {"micro_paradox_rate_short_clip": 0.9, "micro_paradox_rate_short_clip_low": 0.85, "micro_paradox_rate_short_clip_high": 0.95,
           "micro_paradox_rate_short_clip_n": 9, "scale": "micro"}  # fmt: skip
VERSUS = pd.DataFrame([{"against": peer, "scorer": "ict", "pair": "i3_i2", "mean": 0.5, "low": 0.4, "high": 0.6}
                       for peer in ("clip", "pickscore")])  # fmt: skip
EFFECTS = pd.DataFrame([
    {"row": "base", "measure": "jpeg_kb"} | minus(0) | {"minus": None},
    {"row": "hp", "measure": "jpeg_kb"} | minus(0.2),
    {"row": "hp_k1", "measure": "jpeg_kb"} | minus(0.0),
    {"row": "hp", "measure": "vendi"} | minus(1),
])  # fmt: skip
TUNED = pd.DataFrame([{"model": model, "measure": "geneval_mean"} | minus(-0.2) for model in ("ict_text", "hp")])


def test_the_evidence_is_named_in_words():
    found = claims.evidence(METRICS, VERSUS, EFFECTS, TUNED)
    assert {key: number.title for key, number in found.items()} == {
        ("paradox", "clip"): "CLIP, rate",
        ("votes", "ict", "i3_i2"): "ICT less PickScore, I3 > I2 (by construction)",
        ("tuned", "hp", "jpeg_kb"): "HP, kB less untuned",
        ("tuned", "hp_k1", "jpeg_kb"): "HP, DRaFT-1, kB less untuned",
        ("transfer", "ict_text"): "ICT's text tower, GenEval less with CLIP's",
    }
    assert found["paradox", "clip"].row == {"mean": 0.9, "low": 0.85, "high": 0.95}
    assert found["tuned", "hp", "jpeg_kb"].row["low"] == pytest.approx(0.15)


def test_a_table_decides_each_claim_by_what_was_measured():
    table = claims.tabulate(claims.evidence(METRICS, VERSUS, EFFECTS, TUNED), "micro")
    assert list(table.columns) == ["published", "measured (micro)", "verdict"] and len(table) == len(claims.CLAIMS)
    assert table.loc["HP's reward makes larger JPEG files", "measured (micro)"] == (
        "HP, DRaFT-1, kB less untuned 0.00 [-0.05, 0.05]; HP, kB less untuned 0.20 [0.15, 0.25]")  # fmt: skip
    verdicts = table.verdict.to_dict()
    assert verdicts["HP's reward makes larger JPEG files"] == "holds in part"
    assert verdicts["Scorers fall for the paradox: a richer picture scores lower"] == "holds"
    assert verdicts["ICT's text tower in another generator helps"] == "does not hold"
    assert verdicts["CLIP's reward collapses the generator"] == claims.NOT_MEASURED


def test_without_pickscore_and_the_study_nothing_is_claimed():
    table = claims.tabulate(claims.evidence({}, pd.DataFrame(), EFFECTS[:0], TUNED[:0]), "lab")
    assert set(table.verdict) == {claims.NOT_MEASURED} and set(table["measured (lab)"]) == {""}


def test_a_claim_lies_on_a_side_of_its_own_value():
    below_a_half = Claim("it is rare", "", "<", 0.5, (("rate",),))
    verdicts = {}
    for low, high in ((0.1, 0.4), (0.4, 0.6), (0.6, 0.7)):
        found = {("rate",): Number("rate", {"mean": low, "low": low, "high": high})}
        verdicts[low] = claims.tabulate(found, "micro", [below_a_half]).verdict.item()
    assert verdicts == {0.1: "holds", 0.4: "undecided", 0.6: "does not hold"}


def test_the_study_has_every_number_that_a_claim_is_about():
    found = claims.evidence({}, pd.DataFrame(), pd.read_csv(ROOT / "study/tuning.csv"), TUNED)
    assert not [key for claim in claims.CLAIMS for key in claim.keys if key[0] == "tuned" and key not in found]
