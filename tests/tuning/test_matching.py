"""Losses on own pictures against their formulas, and what holds where the old generator is the new one."""

import pytest
import torch
from torch.autograd import grad, gradcheck

from icthp.tuning.matching import advantages, clip_norms, matching_loss, nft_loss, pull_loss, winrate


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 8.0]])
    centred = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [-4.0, 4.0]])
    assert torch.allclose(advantages(rewards), centred / (rewards.std() + 1e-4))
    assert torch.allclose(advantages(rewards, over="prompt")[0], centred[0] / (2**0.5 + 1e-4))
    assert (advantages(rewards, over="prompt")[1] == 0).all()
    assert advantages(rewards, clip=0.5).abs().max() == 0.5
    with pytest.raises(ValueError, match="not 'group'"):
        advantages(rewards, over="group")


def test_the_winrate_of_a_strict_order_is_equally_spaced_and_of_ties_nobodys():
    rewards = torch.tensor([[5.0, 1.0, 9.0, 2.0], [3.0, 3.0, 3.0, 3.0]])
    rate = winrate(((rewards[:, :, None] - rewards[:, None, :]).sign() + 1) / 2)
    assert rate[0].tolist() == pytest.approx([2 / 3, 0, 1, 1 / 3]) and rate[1].tolist() == [0.5] * 4
    assert (advantages(rate, over="prompt")[1] == 0).all()


def test_matching_by_hand():
    error, weight = torch.tensor([[0.5, 2.0]], dtype=torch.float64), torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    assert matching_loss(error, weight).item() == pytest.approx((0.5 - 6.0) / 2)
    assert matching_loss(error, weight, 0.25).item() == pytest.approx((4 * 0.5**0.25 - 12 * 2**0.25) / 2, abs=0.05)
    assert matching_loss(torch.zeros(1, 2), weight.float(), 0.25) == 0


def test_nft_by_hand():
    v, old, target = (random(3, 2, 4, 4, seed=s) for s in range(3))
    sigma, r, beta = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), 0.7

    def distance(u, i):
        apart = (-sigma[i] * u) - (-sigma[i] * target[i])  # x0(u) = x - sigma u, x0 = x - sigma target
        return (apart.square() / apart.abs().mean()).mean()

    expected = 0
    for i in range(3):
        plus, minus = beta * v[i] + (1 - beta) * old[i], (1 + beta) * old[i] - beta * v[i]
        expected += (r[i] * distance(plus, i) + (1 - r[i]) * distance(minus, i)) / beta / 3
    assert torch.allclose(nft_loss(v, old, target, sigma, r, beta), expected)


def test_nft_where_the_old_generator_is_the_new_one():
    """Its value is free of r, its gradient (2 r - 1) that of the distance, and free of beta."""
    v, target = random(3, 2, 4, 4).requires_grad_(), random(3, 2, 4, 4, seed=1)
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    at = lambda r, beta=1.0: nft_loss(v, v.detach(), target, sigma, torch.full((3,), r, dtype=torch.float64), beta)
    assert at(0.1).item() == pytest.approx(at(0.9).item())
    of_one = grad(at(1.0), v)[0]
    assert torch.allclose(grad(at(0.2), v)[0], (2 * 0.2 - 1) * of_one) and torch.allclose(grad(at(1.0, 0.1), v)[0], of_one)
    assert grad(at(0.5), v)[0].abs().max() < 1e-12


def test_pull_by_hand_and_towards_the_reward():
    v, base, gradient = (random(2, 3, 4, 4, seed=s) for s in range(3))
    strength = torch.tensor([0.1, 2.0], dtype=torch.float64)
    expected = torch.stack([(v[i] - base[i] + strength[i] * gradient[i]).square().mean() for i in range(2)]).mean()
    assert torch.allclose(pull_loss(v, base, gradient, strength), expected)
    v = base.clone().requires_grad_()
    step = -grad(pull_loss(v, base, gradient, strength), v)[0]  # downhill
    assert ((-0.5 * step) * gradient).sum((1, 2, 3)).gt(0).all()  # the latents, x - sigma v, move with the reward's gradient


def test_norms_are_clipped_at_their_quantile():
    gradient = torch.ones(5, 2, 2) * torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])[:, None, None]
    clipped = clip_norms(gradient, 0.75).flatten(1).norm(dim=1)
    assert clipped.tolist() == pytest.approx([0, 2, 4, 6, 6])


def test_gradients_in_float64():
    v, old, target, base = (random(2, 1, 3, 3, seed=s).requires_grad_(s == 0) for s in range(4))
    sigma, r = torch.tensor([0.3, 0.8], dtype=torch.float64), torch.tensor([0.2, 0.9], dtype=torch.float64)
    assert gradcheck(lambda v: pull_loss(v, base, target, sigma), v)
    error, weight = random(3, 4).square().add(0.1).requires_grad_(), random(3, 4, seed=1)
    assert gradcheck(lambda e: matching_loss(e, weight), error) and gradcheck(lambda e: matching_loss(e, weight, 0.25), error)

    def closed_form(v):  # of nft_loss, whose denominators are stopped: 2 apart / denominator on either branch
        level = sigma[:, None, None, None]
        plus, minus = level * (v - target), level * (2 * old - v - target)
        size = lambda x: x.abs().mean((1, 2, 3), keepdim=True)
        by_r = r[:, None, None, None]
        return 2 * level * (by_r * plus / size(plus) - (1 - by_r) * minus / size(minus)) / v.numel()

    assert torch.allclose(grad(nft_loss(v, old, target, sigma, r), v)[0], closed_form(v.detach()))
