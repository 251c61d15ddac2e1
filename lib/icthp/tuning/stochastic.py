"""Stochastic steps of a flow, whose next latents have a density: mean and deviation of a step, log-probabilities, ratios of two."""

import math

import torch
from torch import Tensor

LARGEST = 60.0  # a log-ratio: exp of more may overflow in float32, and the gradient of what is clipped be 0 times infinity

# ---- rules: (x (k, c, h, w), velocity, sigma, next sigma) -> mean (k, c, h, w), standard deviation ------------------------------------


def sde_step(x: Tensor, v: Tensor, sigma: float, to: float, s: float) -> tuple[Tensor, float]:
    """One Euler-Maruyama step of the flow's SDE with diffusion s, from level sigma down to `to`. With s = 0 it is Euler's.

    mean = x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt, deviation = s sqrt(-dt), dt = to - sigma
    (yifan123/flow_grpo@flow_grpo/diffusers_patch/sd3_sde_with_logprob.py)."""
    dt = to - sigma
    half = s * s * dt / (2 * sigma)
    return x * (1 + half) + v * (dt + half * (1 - sigma)), s * math.sqrt(-dt)


def flow_sde(x: Tensor, v: Tensor, sigma: float, to: float, *, a: float = 0.7) -> tuple[Tensor, float]:
    """Flow-GRPO's (arXiv 2505.05470): `sde_step` with s = a sqrt(sigma / (1 - sigma)), at sigma = 1 with the next level in the
    denominator."""
    return sde_step(x, v, sigma, to, a * math.sqrt(sigma / (1 - (to if sigma == 1 else sigma))))


def constant_sde(x: Tensor, v: Tensor, sigma: float, to: float, *, eta: float = 0.3) -> tuple[Tensor, float]:
    """DanceGRPO's (arXiv 2505.07818): `sde_step` with one s at every level."""
    return sde_step(x, v, sigma, to, eta)


def coefficients_preserving(x: Tensor, v: Tensor, sigma: float, to: float, *, eta: float = 0.7) -> tuple[Tensor, float]:
    """CPS (arXiv 2509.05952): the latents keep the share of noise that their level has, also in few steps. deviation =
    to sin(eta pi / 2), mean = (1 - to) x0 + sqrt(to^2 - deviation^2) x1, x0 = x - sigma v, x1 = x + (1 - sigma) v. eta = 0 is Euler's."""
    std = to * math.sin(eta * math.pi / 2)
    return (1 - to) * (x - sigma * v) + math.sqrt(to * to - std * std) * (x + (1 - sigma) * v), std


# ---- densities --------------------------------------------------------------------------------------------------


def step_logp(to: Tensor, mean: Tensor, std: float) -> Tensor:
    """(..., c, h, w) -> (...): the Gaussian log-density of the latents `to`, the mean over a picture's entries, as Flow-GRPO takes it, so
    that ratios stay near 1."""
    z = (to - mean) / std
    return (-0.5 * z.square() - math.log(std) - 0.5 * math.log(2 * math.pi)).flatten(-3).mean(-1)


def clipped_ratio_loss(
    logp: Tensor, old: Tensor, advantage: Tensor, clip: float, *, centre: Tensor | float = 0.0, scale: float = 1.0
) -> Tensor:
    """PPO's (arXiv 1707.06347): the mean of max(-A q, -A clip(q, 1 - clip, 1 + clip)), q = exp(scale (logp - old + centre)). All (k,).

    Where `old` is the same generator's q is 1 and the gradient -A scale times that of logp. GRPO-Guard (arXiv 2510.22319) centres the
    log-ratio, whose mean under the old density is -|mean - old mean|^2 / (2 std^2), and scales it by std."""
    ratio = (scale * (logp - old + centre)).clamp(max=LARGEST).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()


def step_kl(mean: Tensor, base: Tensor, std: float) -> Tensor:
    """(k, c, h, w) twice -> (k,): the Kullback-Leibler divergence of two steps of one deviation, the mean over a picture's entries."""
    return (mean - base).square().flatten(-3).mean(-1) / (2 * std * std)
