import numpy as np
import pytest
import torch

from icthp.evaluation import metrics


def test_preference_counts_ties_half():
    correct = metrics.preference(torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.5, 0.1]]))
    assert correct["i2_i1"].tolist() == [1, 0.5] and correct["i3_i2"].tolist() == [1, 0] and correct["i3_i1"].tolist() == [1, 0]


def test_paradox_rate_by_hand():
    by_level = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0, 1.0]])
    assert metrics.paradox_rate(by_level).tolist() == pytest.approx([1, 0, 2 / 3])  # a tie is not a fall
    assert metrics.spearman(by_level[:1]) == -1


def test_diversity_closed_form():
    features = torch.tensor([[1.0, 0], [0, 2.0], [1.0, 1], [3.0, 3], [5.0, 0]])
    assert metrics.diversity(features, ["a", "a", "b", "b", "alone"]).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_vendi_closed_forms():
    """All the same: 1. n orthogonal: n. Two orthogonal kinds in shares p and 1 - p: exp of that entropy."""
    same, apart = torch.ones(4, 3), torch.eye(4)
    features = torch.cat([same, apart[:, :3], torch.tensor([[1.0, 0, 0]] * 3 + [[0, 2.0, 0]])])
    features[7] = torch.tensor([0.0, 0, 1])  # 4 rows of 3 directions: shares 1/4, 1/4, 1/2
    found = metrics.vendi(features, np.repeat(["same", "apart", "kinds"], 4))
    entropy = lambda *p: np.exp(-sum(x * np.log(x) for x in p))
    assert found.tolist() == pytest.approx([1, entropy(0.25, 0.25, 0.5), entropy(0.75, 0.25)], rel=1e-6)
