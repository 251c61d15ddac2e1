"""Random steps: without noise they are Euler's, their densities are torch's, their ratios PPO's."""

import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from icthp.tuning import stochastic
from icthp.tuning.stochastic import clipped_ratio_loss, step_kl, step_logp


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rule", [
    lambda *step: stochastic.sde_step(*step, 0.0), lambda *step: stochastic.flow_sde(*step, a=0.0),
    lambda *step: stochastic.constant_sde(*step, eta=0.0), lambda *step: stochastic.coefficients_preserving(*step, eta=0.0)])  # fmt: skip
@pytest.mark.parametrize("sigma, to", [(1.0, 0.7), (0.7, 0.2), (0.2, 0.05)])
def test_without_noise_a_step_is_eulers(rule, sigma, to):
    x, v = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    mean, std = rule(x, v, sigma, to)
    assert std == 0 and torch.allclose(mean, x + (to - sigma) * v)


def test_the_flows_noise_by_hand():
    """Mean and deviation as Flow-GRPO writes them; DanceGRPO's other form of the mean is the same."""
    x, v = random(1, 1, 2, 2), random(1, 1, 2, 2, seed=1)
    sigma, to, a = 0.6, 0.4, 0.7
    s, dt = a * math.sqrt(0.6 / 0.4), -0.2
    mean, std = stochastic.flow_sde(x, v, sigma, to, a=a)
    assert torch.allclose(mean, x * (1 + s * s * dt / (2 * sigma)) + v * (1 + s * s * (1 - sigma) / (2 * sigma)) * dt)
    assert std == pytest.approx(s * math.sqrt(0.2))
    assert stochastic.flow_sde(x, v, 1.0, 0.8, a=a)[1] == pytest.approx(a * math.sqrt(1 / 0.2) * math.sqrt(0.2))
    eta = 0.3
    x0 = x - sigma * v
    dance = x + (v + 0.5 * eta**2 * (x - (1 - sigma) * x0) / sigma**2) * dt
    mean, std = stochastic.constant_sde(x, v, sigma, to, eta=eta)
    assert std == pytest.approx(eta * math.sqrt(0.2))
    assert torch.allclose(mean, x * (1 + eta**2 * dt / (2 * sigma)) + v * (dt + eta**2 * (1 - sigma) * dt / (2 * sigma)))
    assert torch.allclose(dance, mean)


def test_coefficients_preserving_keeps_the_noise_of_a_level():
    """With the true velocity of one picture the next latents have its mean and the level's deviation, whatever eta."""
    noise = random(20_000, 1, 1, 1)
    x0 = torch.full_like(noise, 2.0)
    sigma, to = 0.8, 0.5
    mean, std = stochastic.coefficients_preserving((1 - sigma) * x0 + sigma * noise, noise - x0, sigma, to, eta=0.6)
    drawn = mean + std * random(20_000, 1, 1, 1, seed=1)
    assert drawn.mean().item() == pytest.approx(0.5 * 2.0, abs=0.02) and drawn.std().item() == pytest.approx(to, abs=0.01)


def test_densities_are_torchs():
    to, mean, std = random(2, 5, 3, 4, 4), random(2, 5, 3, 4, 4, seed=1), 0.3
    expected = torch.distributions.Normal(mean, std).log_prob(to).mean((2, 3, 4))
    assert torch.allclose(step_logp(to, mean, std), expected)
    a, b = torch.distributions.Normal(to, std), torch.distributions.Normal(mean, std)
    assert torch.allclose(step_kl(to, mean, std), torch.distributions.kl_divergence(a, b).mean((2, 3, 4)))


def test_ppo_by_hand_and_on_policy():
    logp, old = torch.tensor([0.3, -0.3, 0.05, 0.3], dtype=torch.float64).requires_grad_(), torch.zeros(4, dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, -2.0, -1.0], dtype=torch.float64)
    ratio = logp.detach().exp()
    expected = [-min(r * a, min(max(r, 0.9), 1.1) * a) for r, a in zip(ratio.tolist(), advantage.tolist())]
    loss = clipped_ratio_loss(logp, old, advantage, 0.1)
    assert loss.item() == pytest.approx(sum(expected) / 4)
    assert grad(loss, logp)[0].tolist() == pytest.approx([0, -ratio[1].item() / 4, 2 * ratio[2].item() / 4, ratio[3].item() / 4])
    on_policy = clipped_ratio_loss(logp, logp.detach(), advantage, 1e-4)
    assert grad(on_policy, logp)[0].tolist() == pytest.approx((-advantage / 4).tolist())


def test_a_ratio_beyond_float32_leaves_a_finite_gradient():
    """1 where it is clipped: a better picture that is already far more likely."""
    logp = torch.tensor([200.0, 0.0], requires_grad=True)
    loss = clipped_ratio_loss(logp, torch.zeros(2), torch.tensor([1.0, 1.0]), 0.1)
    assert torch.autograd.grad(loss, logp)[0].tolist() == [0, -0.5]


def test_guards_log_ratio_has_mean_zero_under_the_old_steps():
    old, std = random(1, 3, 4, 4).expand(4000, -1, -1, -1), 0.4
    mean = old + 0.3
    to = old + std * random(4000, 3, 4, 4, seed=1)
    plain = step_logp(to, mean, std) - step_logp(to, old, std)
    centre = step_kl(mean, old, std)
    standard_error = plain.std() / 4000**0.5
    assert plain.mean() < -5 * standard_error and (plain + centre).mean().abs() < 4 * standard_error


def test_gradients_in_float64():
    mean, to, old = random(2, 3, 1, 2, 2).requires_grad_(), random(2, 3, 1, 2, 2, seed=1), random(2, 3, 1, 2, 2, seed=2)
    assert gradcheck(lambda m: step_logp(to, m, 0.5), mean) and gradcheck(lambda m: step_kl(m, old, 0.5), mean)
    logp = (random(6) / 10).requires_grad_()
    assert gradcheck(lambda p: clipped_ratio_loss(p, torch.zeros(6).double(), random(6, seed=1), 0.5, centre=0.01, scale=0.7), logp)
    v = random(2, 1, 2, 2).requires_grad_()
    for rule in (stochastic.flow_sde, stochastic.constant_sde, stochastic.coefficients_preserving):
        assert gradcheck(lambda v, rule=rule: rule(random(2, 1, 2, 2, seed=3), v, 0.6, 0.3)[0], v)
