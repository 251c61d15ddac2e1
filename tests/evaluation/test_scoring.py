import pandas as pd
import pytest
import torch
from PIL import Image

from icthp import images
from icthp.evaluation import metrics, scoring
from icthp.scorers import jpeg


class Broken(jpeg.JpegScorer):
    """NaN for a black picture."""

    def forward(self, pixels, prompts=None):
        return pixels.mean((1, 2, 3)).log() * 0


def test_a_score_that_is_nan_is_named():
    """NaN would lose every comparison in silence, and count as no paradox."""
    nan = torch.tensor([[0.1, 0.2, 0.3], [0.1, float("nan"), 0.3]])
    with pytest.raises(ValueError, match="row 1 is NaN"):
        metrics.preference(nan)
    with pytest.raises(ValueError, match="scene 1 is NaN"):
        metrics.paradox_rate(nan)
    with pytest.raises(ValueError, match="Broken scores NaN in 1 of 3 rows, first in row 1: 'b'"):
        scoring.score_all(Broken(), torch.tensor([0.5, 0, 0.5])[:, None, None, None].expand(3, 3, 4, 4), ["a", "b", "c"])


def test_files_of_a_table_are_scored_by_level(tmp_path):
    for name, grey in (("a", 51), ("b", 102)):
        Image.new("RGB", (8, 6 + len(name)), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    pd.DataFrame({"prompt": ["x", "yy"], "I1": ["a.png", "b.png"], "I2": ["b.png", "b.png"]}).to_csv(tmp_path / "t.csv")
    table = images.read_levels(tmp_path / "t.csv", ["I1", "I2"])
    scores = scoring.score_files(lambda pixels, prompts: pixels.mean((1, 2, 3)) * len(prompts[0]), table, ["I1", "I2"])
    assert torch.allclose(scores, torch.tensor([[0.2, 0.4], [0.8, 0.8]]))
    with pytest.raises(ValueError, match="no column `I3`"):
        images.read_levels(tmp_path / "t.csv", ["I1", "I3"])
    long = metrics.long_table({("clip", "short"): scores})
    assert long[long.scene.eq(1) & long.level.eq(0)].score.item() == pytest.approx(0.8) and long.richness.max() == 1
