"""Preference losses against their formulas, the identities between them, and their gradients in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from icthp.tuning import preferences
from icthp.tuning.preferences import all_pairs, best_over_worst, bounded, kto_loss, pair_loss, rank_weight, safe_scale, soft_weight


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_hot_weights_are_dpo_and_their_swap_is_npo():
    score, rewards = random(5, 2), random(5, 2, seed=1)
    lead = torch.where(rewards[:, 0] > rewards[:, 1], score[:, 0] - score[:, 1], score[:, 1] - score[:, 0])
    assert torch.allclose(pair_loss(score, best_over_worst(rewards)), -F.logsigmoid(lead).mean())
    assert torch.allclose(pair_loss(score, best_over_worst(rewards).mT), -F.logsigmoid(-lead).mean())
    assert torch.equal(best_over_worst(-rewards), best_over_worst(rewards).mT)


@pytest.mark.parametrize("link, formula", [
    (preferences.logistic, lambda u: math.log(1 + math.exp(-u))), (preferences.hinge, lambda u: max(0.0, 1 - u)),
    (preferences.square, lambda u: u * u)])  # fmt: skip
def test_links_scale_and_margin(link, formula):
    score, weight = random(3, 4), random(3, 4, 4, seed=1).abs()
    scale, margin = random(3, 4, 4, seed=2), random(3, 4, 4, seed=3)
    pairs = [(b, i, j) for b in range(3) for i in range(4) for j in range(4)]
    expected = sum(weight[k] * formula((scale[k] * (score[k[0], k[1]] - score[k[0], k[2]]) - margin[k]).item()) for k in pairs) / 3
    assert torch.allclose(pair_loss(score, weight, link=link, scale=scale, margin=margin), expected)


def test_the_bernoulli_divergence_is_torchs():
    u = random(7)
    bernoulli = torch.distributions.Bernoulli
    divergence = torch.distributions.kl_divergence(bernoulli(logits=u), bernoulli(torch.tensor(0.99, dtype=torch.float64)))
    assert torch.allclose(preferences.bernoulli_kl(u), divergence)
    assert preferences.bernoulli_kl(torch.tensor(0.99).logit()).item() == pytest.approx(0, abs=1e-6)


def test_soft_labels_are_a_cross_entropy_per_pair():
    score, p = random(4, 3), torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = p.triu(1) + (1 - p.mT).tril(-1)
    difference = score[:, :, None] - score[:, None, :]
    above = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)
    expected = F.binary_cross_entropy_with_logits(difference[:, above], p[:, above], reduction="none").sum(1).mean()
    assert torch.allclose(pair_loss(score, soft_weight(p)), expected)


def test_ties_prefer_nobody():
    rewards = torch.tensor([[1.0, 1, 1], [2, 2, 0]])
    assert not best_over_worst(rewards)[0].any() and not all_pairs(rewards)[0].any()
    assert all_pairs(rewards)[1].sum() == pytest.approx(1) and best_over_worst(rewards)[1].sum() == 1


def test_rank_weights_of_two_are_a_constant():
    """Whatever the generator's own order; of more they follow it."""
    gain = torch.tensor([[0.9, 0.2], [0.1, 0.6]], dtype=torch.float64)
    two = rank_weight(gain, random(2, 2))
    assert torch.allclose(two, rank_weight(gain, -random(2, 2)))
    constant = 1 / math.log(2) - 1 / math.log(3)
    assert two[0, 0, 1].item() == pytest.approx((2**0.9 - 2**0.2) * constant) and two[0, 1, 0] == 0
    assert two[1, 1, 0].item() == pytest.approx((2**0.6 - 2**0.1) * constant)
    gain, score = torch.tensor([[0.9, 0.5, 0.1]], dtype=torch.float64), torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    expected = (2**0.9 - 2**0.1) * abs(1 / math.log(4) - 1 / math.log(3))
    assert rank_weight(gain, score)[0, 0, 2].item() == pytest.approx(expected)
    assert not rank_weight(gain, score.requires_grad_()).requires_grad


def test_kto_is_its_formula():
    score, label = random(6), torch.tensor([1.0, -1, 1, 1, -1, 0], dtype=torch.float64)
    z = max(0.0, score.mean().item())
    expected = sum(1 - 1 / (1 + math.exp(-y * (s - z))) for s, y in zip(score.tolist(), label.tolist())) / 6
    assert kto_loss(score, label).item() == pytest.approx(expected)
    assert kto_loss(score - 10, label).item() == pytest.approx(kto_loss(score - 10, label, torch.tensor(0.0)).item())


def test_mapos_score_is_bounded():
    """1 at 0 with slope -k / 2, finite and positive for large errors, its own inverse of nothing in half precision."""
    error = torch.tensor([0.0, 1e-6, 1e-3, 1.0, 30.0, 1e4], dtype=torch.float64, requires_grad=True)
    value = bounded(error, k=0.5, scale=1.0)
    expected = [1.0, *(0.5 * e / math.expm1(0.5 * e) for e in (1e-6, 1e-3, 1.0, 30.0)), 0.0]
    assert torch.allclose(value, torch.tensor(expected, dtype=torch.float64))
    slope = torch.autograd.grad(value.sum(), error)[0]
    assert slope[0].item() == pytest.approx(-0.25) and slope.isfinite().all() and (slope <= 0).all()
    assert bounded(torch.tensor([0.0, 0.1, 100.0]), 0.5, 1000.0).isfinite().all()


def test_the_safe_scale_keeps_the_chosen_error_from_rising():
    for seed in range(20):
        chosen, rejected = random(8, 3, 4, 4, seed=seed), random(8, 3, 4, 4, seed=seed + 100) + 0.5
        chosen = chosen + rejected * (seed % 3)
        scale = safe_scale(chosen, rejected, mu=0.9)
        inner = (chosen * (chosen - scale[:, None, None, None] * rejected)).sum((1, 2, 3))
        assert (inner >= 0.9 * chosen.square().sum((1, 2, 3)) - 1e-6).all() and ((scale >= 0) & (scale <= 1)).all()
    assert (safe_scale(chosen, -chosen, 0.9) == 1).all()  # they pull apart: nothing to fear


def test_a_scaled_gradient_leaves_the_value():
    x = random(4).requires_grad_()
    factor = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    value = preferences.scale_gradient(x, factor)
    assert torch.equal(value.detach(), x.detach()) or torch.allclose(value, x)
    assert torch.allclose(torch.autograd.grad(value.sum(), x)[0], factor)


def test_a_clipped_ratio_has_no_gradient_outside():
    logp = torch.tensor([-0.5, -0.05, 0.0, 0.05, 0.5], dtype=torch.float64, requires_grad=True)
    value = preferences.clipped_log_ratio(logp, torch.zeros(5, dtype=torch.float64), 0.1)
    assert torch.allclose(value, torch.tensor([math.log(0.9), -0.05, 0.0, 0.05, math.log(1.1)], dtype=torch.float64))
    assert torch.autograd.grad(value.sum(), logp)[0].tolist() == pytest.approx([0, 1, 1, 1, 0])
    far = torch.tensor([-1000.0, 1000.0], requires_grad=True)  # where exp overflows
    assert torch.autograd.grad(preferences.clipped_log_ratio(far, torch.zeros(2), 0.1).sum(), far)[0].tolist() == [0, 0]


LINKS = [preferences.logistic, preferences.hinge, preferences.square, preferences.bernoulli_kl]


@pytest.mark.parametrize("function", [
    *(partial(pair_loss, weight=random(3, 4, 4, seed=1).abs(), link=link, scale=0.7, margin=0.1) for link in LINKS),
    lambda score: kto_loss(score.flatten(), random(12, seed=1).sign(), torch.tensor(0.3)),
    lambda score: bounded(score.square() + 0.01, 0.5, 3.0).sum(),
    lambda score: preferences.clipped_log_ratio(score / 100, torch.zeros_like(score), 0.5).sum(),
    lambda score: pair_loss(score, rank_weight(torch.sigmoid(random(3, 4, seed=5)), random(3, 4, seed=6)))])  # fmt: skip
def test_gradients_in_float64(function):
    assert gradcheck(function, random(3, 4).requires_grad_())
