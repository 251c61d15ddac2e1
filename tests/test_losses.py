import math

import pytest
import torch
import torch.nn.functional as F

from icthp import kernels, losses


def triplets(b, d, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    unit = lambda *shape: F.normalize(torch.randn(*shape, d, generator=g, dtype=torch.float64), dim=-1).to(dtype)
    return unit(3, b), unit(b), unit(b), *torch.rand(2, b, 3, generator=g, dtype=torch.float64).to(dtype)


def by_hand(images, easy, refined, easy_labels, refined_labels, neg_lambda, alpha, beta, groups):
    """The definition, one pair at a time."""
    total, b = 0.0, len(easy)
    for text, labels in ((easy, easy_labels), (refined, refined_labels)):
        matched, negative = [], []
        for i in range(3):
            for v in range(b):
                for t in range(b):
                    c = float(images[i, v] @ text[t])
                    if v == t:
                        matched.append((c - float(labels[v, i])) ** 2)
                    elif groups is None or groups[v] != groups[t]:
                        negative.append(c * c / (1 + math.exp(alpha * (abs(c) - beta))))
        total += sum(matched) / len(matched) + neg_lambda * (sum(negative) / len(negative) if negative else 0)
    return total


@pytest.mark.parametrize("b", [1, 2, 5])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("beta", [6.0, 0.1])
def test_ict_loss_is_its_definition(b, groups, beta):
    data = triplets(b, 7)
    ids = torch.arange(b) // 2 if groups else None
    expected = by_hand(*data, 0.5, 20.0, beta, ids)
    assert losses.ict_loss(*data, beta=beta, groups=ids).item() == pytest.approx(expected, rel=1e-10)


def test_ict_loss_gradient():
    images, easy, refined, a, b = triplets(3, 4)
    inputs = [x.requires_grad_() for x in (images, easy, refined)]
    assert torch.autograd.gradcheck(lambda *x: losses.ict_loss(*x, a, b, beta=0.3), inputs)


def test_half_precision_is_computed_in_float32():
    data = triplets(9, 16)
    exact = losses.ict_loss(*data)
    rounded = [x.to(torch.bfloat16) for x in data]
    half = losses.ict_loss(*rounded)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(losses.ict_loss(*(x.float() for x in rounded)).item(), rel=1e-6)
    assert half.item() == pytest.approx(exact.item(), rel=0.03)


def test_autocast_does_not_reach_the_losses():
    data, hp = triplets(9, 16), torch.rand(9, 3)
    exact = losses.ict_loss(*data), losses.hp_loss(hp), kernels.ict_loss(*data, impl="gram"), kernels.ict_loss(*data, impl="chunked")
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.ict_loss(*data), losses.hp_loss(hp), kernels.ict_loss(*data, impl="gram"), kernels.ict_loss(*data, impl="chunked")
    assert exact == inside


def test_labels_follow_the_paper():
    easy, refined = losses.ict_labels(torch.tensor([0.2, 0.9]), torch.tensor([0.3, 0.4]), torch.tensor([0.8, 0.5]), theta=0.5)
    assert torch.allclose(easy, torch.tensor([[0.4, 0.6, 1.0], [0.8, 0.8, 1.0]]))  # E1 = min(C1, E2)
    assert torch.allclose(refined, torch.tensor([[0.32, 0.48, 1.0], [0.4, 0.4, 1.0]]))


def test_released_negative_weight_is_one_everywhere():
    """criterions/icthp_criterion.py:86-89: threshold 6 and sharpness 20 on raw cosines never weigh anything."""
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert (losses.negative_weight(cosine.to(dtype), 20, 6) == 1).all()


def test_negative_weight_closed_form():
    cosine = torch.tensor([-0.9, -0.06, 0.0, 0.06, 0.9], dtype=torch.float64)
    expected = 1 / (1 + torch.exp(20 * (cosine.abs() - 0.06)))
    assert torch.allclose(losses.negative_weight(cosine, 20, 0.06), expected)


def test_hp_loss_by_hand():
    hp = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.4, 0.3]])
    assert losses.hp_loss(hp, 0.3).item() == pytest.approx(((0.2 + 0) + (0.4 + 0.4)) / 2)
    assert losses.hp_loss(torch.zeros(256, 3)).item() == pytest.approx(0.6)


def test_icthp_loss_released_form():
    """Released: softmax over the triplet, and a sum over the batch where hp_loss is a mean (0.600 against about 152 at the start)."""
    ict, hp = torch.zeros(256, 3), torch.zeros(256, 3)
    assert losses.icthp_loss(ict, hp, variant="released").item() == pytest.approx(0.6 * 256, rel=1e-5)
    assert losses.icthp_loss(ict, hp).item() == pytest.approx(0.6)


def test_theta_must_be_positive():
    with pytest.raises(ValueError, match="theta must be positive"):
        losses.ict_labels(torch.ones(1), torch.ones(1), torch.ones(1), theta=0)
