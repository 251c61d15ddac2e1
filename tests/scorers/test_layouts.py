"""Every published layout is loaded by its scorer's name, and docs/scorers.md says of each what its class does."""

import json
import re

import pytest
import torch
from test_aesthetic_v25 import write_aesthetic_v25
from test_clip_iqa import write_clip_iqa
from test_cyclereward import write_cyclereward
from test_fga_blip2 import write_fga_blip2
from test_hps import write_hps_v1
from test_hpsv3 import write_hpsv3
from test_mps import write_mps
from test_siglip import write_siglip
from test_vqascore import write_vqascore
from test_yes_no import write_yes_no

from conftest import ROOT
from icthp import scorers
from icthp.scorers import loading

LAYOUTS = {"aesthetic_v25": write_aesthetic_v25, "clip_iqa": write_clip_iqa, "cyclereward": write_cyclereward,
           "fga_blip2": write_fga_blip2, "hps": write_hps_v1, "hpsv3": write_hpsv3, "mps": write_mps, "siglip": write_siglip,
           "vqascore": write_vqascore, "yes_no": write_yes_no}  # fmt: skip
ELSEWHERE = {"hpsv2", "imagereward", "unifiedreward", "visionreward"}  # in tests of their own


def table() -> dict[str, list[str]]:
    """The rows of docs/scorers.md: name -> its other cells."""
    rows = re.findall(r"(?m)^\| `(\w+)` \|(.*)\|$", (ROOT / "docs/scorers.md").read_text(encoding="utf-8"))
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_loaded_by_its_name(name, tmp_path):
    scorer = scorers.load(name, LAYOUTS[name](tmp_path))
    pixels = torch.rand(2, 3, 40, 54, generator=torch.Generator().manual_seed(0)).requires_grad_()
    if name == "clip_iqa":
        pixels = torch.rand(2, 3, 64, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = scorer.score(pixels, ["a red circle", "two blue stars"])
    assert values.shape == (2,) and values.isfinite().all() and scorer.name == name and not scorer.training
    assert not any(p.requires_grad for p in scorer.parameters())
    assert values.requires_grad == (table()[name][1] == "yes"), "docs/scorers.md says otherwise"
    if values.requires_grad:
        assert torch.autograd.grad(values.sum(), pixels)[0].isfinite().all()


def test_every_scorer_is_in_the_table_and_every_layout_is_tested():
    assert set(loading.PUBLISHED) == LAYOUTS.keys() | ELSEWHERE
    assert set(loading.SOURCES) == table().keys()
    assert all(len(cells) == 5 and all(cells) for cells in table().values())


def test_a_scorer_behind_an_endpoint_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    scorer = scorers.load("unifiedreward", "http://localhost:1/v1,some-model")
    assert "some-model" in repr(scorer) and "secret" not in repr(scorer)
    (tmp_path / "weights.json").write_text(json.dumps({"coef": [[0.1] * 28], "intercept": [0.5]}), encoding="utf-8")
    assert scorers.load("visionreward", f"http://localhost:1/v1,some-model,{tmp_path / 'weights.json'}").coef.shape == (28,)
    with pytest.raises(ValueError, match='"URL,MODEL,WEIGHTS"'):
        scorers.load("visionreward", "http://localhost:1/v1,some-model")
