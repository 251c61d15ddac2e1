"""Losses that regress to own pictures, each with a weight that its reward gives it: best-of-n tuning, AWM, DiffusionNFT; and to the
reward's gradient. b prompts, n pictures of each. Tensors in, a scalar with its graph out."""

import torch
from torch import Tensor


def advantages(rewards: Tensor, over: str = "batch", clip: float = 5.0) -> Tensor:
    """rewards (b, n) -> (b, n): less the mean of the prompt, over the standard deviation of the "batch" (Flow-GRPO) or of the "prompt"
    (GRPO), within -clip and clip. 0 for a prompt whose rewards are all equal. ValueError for another `over`."""
    if over not in ("batch", "prompt"):
        raise ValueError(f"over must be batch or prompt, not {over!r}")
    centred = rewards - rewards.mean(1, keepdim=True)
    deviation = rewards.std() if over == "batch" else rewards.std(1, keepdim=True)
    return (centred / (deviation + 1e-4)).clamp(-clip, clip)


def winrate(beats: Tensor) -> Tensor:
    """Pref-GRPO's reward (arXiv 2508.20751): the share of the other pictures of its prompt that each one beats. beats (b, n, n): 1 where i
    is preferred to j, 0.5 for a tie; (b, n) in [0, 1], equally spaced where the order is strict."""
    n = beats.shape[1]
    return (beats * (1 - torch.eye(n, dtype=beats.dtype, device=beats.device))).sum(2) / (n - 1)


def matching_loss(error: Tensor, weight: Tensor, power: float = 1.0) -> Tensor:
    """The mean of weight phi(error), phi(e) = ((e + c)^p - c^p) / p, c = 1e-10: a scalar. error, weight: of one shape.

    power 1 is plain regression, whose negative weights know no bound; 1/4 is AWM's "ghuber" (arXiv 2509.25050;
    scxue/advantage_weighted_matching@advantage_weighted_matching/scripts/train_sd3_awm.py)."""
    tiny = 1e-10
    return (weight * ((error + tiny) ** power - tiny**power) / power).mean()


def nft_loss(velocity: Tensor, old: Tensor, target: Tensor, sigma: Tensor, r: Tensor, beta: float = 1.0) -> Tensor:
    """DiffusionNFT (arXiv 2509.16117; NVlabs/DiffusionNFT@scripts/train_nft_sd3.py): the mean of (r l(v+) + (1 - r) l(v-)) / beta,
    v+ = beta v + (1 - beta) v', v- = (1 + beta) v' - beta v, l(v) = |x0(v) - x0|^2 / mean |x0(v) - x0|, its denominator without a gradient.

    velocity, old (v'), target (k, c, h, w); sigma (k,) of the level; r (k,) in [0, 1], how good the picture is. Where v = v' the value does
    not depend on r, the gradient is (2 r - 1) that of l."""
    level = sigma[:, None, None, None]

    def distance(v: Tensor) -> Tensor:
        apart = level * (v - target)
        return (apart.square() / apart.detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-5)).mean((1, 2, 3))

    old = old.detach()
    positive = distance(beta * velocity + (1 - beta) * old)
    negative = distance((1 + beta) * old - beta * velocity)
    return ((r * positive + (1 - r) * negative) / beta).mean()


def pull_loss(velocity: Tensor, base: Tensor, gradient: Tensor, strength: Tensor) -> Tensor:
    """Reward Score Matching, VGG-Flow's form (arXiv 2604.17415; jaylee2000/rsm@sd35_first_order/lib/vggflow/algorithm.py): the mean squared
    distance of the velocity from base - strength gradient, the minus because a larger velocity lowers the finished latents.

    velocity, base, gradient (k, c, h, w): the last of the reward at the finished latents; strength (k,). No gradient but the velocity's."""
    target = base - strength[:, None, None, None] * gradient
    return (velocity - target.detach()).square().mean()


def clip_norms(gradient: Tensor, quantile: float) -> Tensor:
    """gradient (k, ...), each made as short as this quantile of their lengths where it is longer."""
    norms = gradient.flatten(1).norm(dim=1)
    factor = (norms.quantile(quantile) / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1)
    return gradient * factor.view(-1, *[1] * (gradient.ndim - 1))
