"""CycleReward: ImageReward's form with a head of its own, and its released layout."""

from pathlib import Path

from torch import nn

from icthp.scorers.imagereward import ImageRewardScorer, load_blip_scorer
from icthp.scorers.states import folder_of


class CycleRewardScorer(ImageRewardScorer):
    """CycleReward (arXiv 2506.02095): BLIP's text tower reads the prompt with attention to the image; linear layers with GELU between on
    its first token, as they are (hjbahng/cyclereward@cyclereward/model.py)."""

    score_scale = "logit of CycleReward's own preferences"
    length = 128
    mean, std = 0.0, 1.0


def load_cyclereward(source: str) -> CycleRewardScorer:
    """A folder or "hf-hub:org/repo" with CycleReward-Combo.pth, CycleReward-I2T.pth or CycleReward-T2I.pth, and as for ImageReward
    med_config.json and the vocabulary of bert-base-uncased (vocab.txt). FileNotFoundError, or ValueError for weights that do not fit."""
    folder = folder_of(source)
    return load_blip_scorer(CycleRewardScorer, folder, _released_name(folder), nn.GELU)


def _released_name(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("CycleReward-*.pth"))
    if not names:
        raise FileNotFoundError(f"{folder} has no CycleReward-Combo.pth, -I2T.pth or -T2I.pth: put one of the released files there")
    if len(names) > 1:
        raise ValueError(f"{folder} has {' and '.join(names)}: leave one of them there, and name the folder")
    return names[0]
