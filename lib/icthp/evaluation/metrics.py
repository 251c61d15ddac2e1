"""Measures of scores and of pictures: preference accuracy, the scoring paradox, diversity."""

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from icthp.evaluation.statistics import pairwise_accuracy

# ---- pictures ---------------------------------------------------------------------------------------------------


def diversity(features: Tensor, groups) -> Tensor:
    """Mean cosine distance between pictures of one group, in [0, 2]. features (b, d), groups b ids -> one value a group of two or more,
    (g,). ValueError where no group has two."""
    features = torch.nn.functional.normalize(features, dim=-1)
    distances = []
    for f in _by_group(features, groups):
        n = len(f)
        if n > 1:
            distances.append((n * n - (f @ f.T).sum()) / (n * (n - 1)))
    if not distances:
        raise ValueError("diversity lies between pictures of one group, and no group has two")
    return torch.stack(distances)


def vendi(features: Tensor, groups) -> Tensor:
    """Vendi score (Friedman and Dieng, arXiv 2210.02410) of each group: exp of the entropy of the eigenvalues of the cosines
    over n, from 1, all the same, to n, all orthogonal. features (b, d), groups b ids -> (g,)."""
    features = torch.nn.functional.normalize(features.double(), dim=-1)
    scores = []
    for f in _by_group(features, groups):
        eigenvalues = torch.linalg.svdvals(f).square() / len(f)
        scores.append(torch.special.entr(eigenvalues).sum().exp())
    return torch.stack(scores)


def _by_group(features: Tensor, groups) -> list[Tensor]:
    """The rows of each group, in order of first appearance."""
    groups = np.asarray(groups)
    return [features[torch.from_numpy(groups == g)] for g in dict.fromkeys(groups.tolist())]


# ---- preference -------------------------------------------------------------------------------------------------

PAIRS = {"i2_i1": (1, 0), "i3_i2": (2, 1), "i3_i1": (2, 0)}


def preference(scores: Tensor) -> dict[str, Tensor]:
    """scores (b, 3) of I1, I2, I3 -> for each pair of PAIRS (b,) 1 where the better picture scores higher, 0.5 at a tie, else 0.

    i2_i1 is measured against human votes; i3_i2 and i3_i1 hold by construction of the data.
    """
    return {name: pairwise_accuracy(scores[:, a], scores[:, b]) for name, (a, b) in PAIRS.items()}


# ---- the paradox ------------------------------------------------------------------------------------------------


def long_table(measured: dict[tuple[str, str], Tensor]) -> pd.DataFrame:
    """{(scorer, style): scores (b, levels)} as one row a score: scorer, style, scene, level, richness in [0, 1], score."""
    parts = []
    for (scorer, style), values in measured.items():
        scene, level = np.indices(values.shape).reshape(2, -1)
        parts.append(pd.DataFrame({"scorer": scorer, "style": style, "scene": scene, "level": level,
                                   "richness": level / (values.shape[1] - 1), "score": values.flatten().double().numpy()}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def paradox_rate(by_level: Tensor) -> Tensor:
    """Scores (b, levels) of ever richer pictures -> (b,) share of the pairs of levels in which the richer picture scores strictly lower.
    ValueError names a scene with a NaN."""
    if by_level.isnan().any():
        raise ValueError(f"the score of scene {int(by_level.isnan().any(1).nonzero()[0])} is NaN, and would count as no paradox")
    poorer, richer = torch.triu_indices(by_level.shape[1], by_level.shape[1], 1)
    return (by_level[:, richer] < by_level[:, poorer]).double().mean(1)


def spearman(by_level: Tensor) -> float:
    """Spearman correlation between level and mean score of scores (b, levels)."""
    return float(stats.spearmanr(np.arange(by_level.shape[1]), by_level.mean(0)).statistic)
