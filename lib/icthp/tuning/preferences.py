"""Losses on preferences, as functions of one score a picture: what Diffusion-DPO and its descendants have in common.

The score of a picture is minus beta / 2 times its error less the untuned generator's (`Fit.gain`); without a reference, minus the error
itself; on a sampler's steps, beta times a log-ratio. b prompts, n pictures of each. Tensors in, a scalar with its graph out."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Link = Callable[[Tensor], Tensor]  # a difference of two scores -> its loss, element by element


# ---- links ------------------------------------------------------------------------------------------------------


def logistic(u: Tensor) -> Tensor:
    """-log sigmoid(u), Bradley-Terry's: Diffusion-DPO (arXiv 2311.12908)."""
    return -F.logsigmoid(u)


def hinge(u: Tensor) -> Tensor:
    """max(0, 1 - u): no gradient once the better picture leads by 1 (Diffusion-NPO's and PSO's offline form, arXiv 2410.03190)."""
    return (1 - u).relu()


def square(u: Tensor) -> Tensor:
    """u^2: with a margin, the lead that is wanted, IPO's (arXiv 2310.12036); with the rewards' difference as margin, CRD's (2603.14128)."""
    return u.square()


def bernoulli_kl(u: Tensor, alpha: float = 0.01) -> Tensor:
    """KL(Bernoulli(sigmoid(u)) || Bernoulli(1 - alpha)): DMPO, as huaishengzhu/DSPO has it."""
    log_p, log_q = F.logsigmoid(u), F.logsigmoid(-u)
    return log_p.exp() * (log_p - torch.log1p(torch.tensor(-alpha))) + log_q.exp() * (log_q - torch.tensor(alpha).log())


# ---- losses -----------------------------------------------------------------------------------------------------


def pair_loss(score: Tensor, weight: Tensor, *, link: Link = logistic, scale: Tensor | float = 1.0, margin: Tensor | float = 0.0) -> Tensor:
    """sum_ij W_ij link(C_ij (s_i - s_j) - M_ij), the mean over prompts: a scalar.

    score (b, n); weight (b, n, n): W_ij, how much the preference of i over j counts; both triangles are soft labels. scale, margin: C and
    M, numbers or (b, n, n)."""
    u = scale * (score[:, :, None] - score[:, None, :]) - margin
    return (weight * link(u)).sum((1, 2)).mean()


def kto_loss(score: Tensor, label: Tensor, baseline: Tensor | None = None) -> Tensor:
    """Diffusion-KTO (arXiv 2404.04465; jacklishufan/diffusion-kto@train_kto_sd_v1.5.py): the mean of 1 - sigmoid(y (s - z)).

    score (k,): minus beta times `Fit.gain`; label (k,): y, 1 for a good picture, -1 for a bad one. baseline: z, by default the mean score
    of these pictures where it is positive, without its gradient."""
    z = score.detach().mean().clamp(min=0) if baseline is None else baseline
    return (1 - torch.sigmoid(label * (score - z))).mean()


# ---- who is preferred to whom -----------------------------------------------------------------------------------


def best_over_worst(rewards: Tensor) -> Tensor:
    """rewards (b, n) -> (b, n, n): 1 for the best over the worst picture of each prompt, all 0 where the two are equal."""
    better = F.one_hot(rewards.argmax(1), rewards.shape[1]) * (rewards.amax(1) > rewards.amin(1))[:, None]
    return (better[:, :, None] * F.one_hot(rewards.argmin(1), rewards.shape[1])[:, None, :]).to(rewards.dtype)


def all_pairs(rewards: Tensor) -> Tensor:
    """rewards (b, n) -> (b, n, n): of each prompt the same weight for every pair whose first has the higher reward, in sum 1."""
    better = (rewards[:, :, None] > rewards[:, None, :]).to(rewards.dtype)
    return better / better.sum((1, 2), keepdim=True).clamp(min=1)


def soft_weight(p: Tensor) -> Tensor:
    """p (b, n, n), how likely i is preferred to j -> weights: p itself without its diagonal, each pair once in either triangle."""
    return p * (1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device))


def rank_weight(gain: Tensor, score: Tensor) -> Tensor:
    """RankDPO's (arXiv 2410.18013): |G_i - G_j| |1 / D_i - 1 / D_j| for every pair whose first has the higher gain.

    gain (b, n): how good each picture is, in [0, 1], G = 2^gain - 1; score (b, n): the tuned generator's own, by whose ranks (1 the best)
    D = log(1 + rank). (b, n, n) without a gradient."""
    rank = score.detach().argsort(1, descending=True).argsort(1) + 1
    discount = 1 / torch.log1p(rank.to(gain.dtype))
    worth = torch.exp2(gain) - 1
    differ = lambda x: (x[:, :, None] - x[:, None, :]).abs()
    return differ(worth) * differ(discount) * (gain[:, :, None] > gain[:, None, :])


# ---- scores -----------------------------------------------------------------------------------------------------


def bounded(error: Tensor, k: float = 0.5, scale: float = 1000.0) -> Tensor:
    """MaPO's score of a picture (arXiv 2406.06424; mapo-t2i/mapo@utils.py), without a reference: T psi(e), psi(e) = k e / (exp(k e) - 1),
    which is 1 at e = 0, falls as -k e / 2 at first, and stays above 0. error (b, n) >= 0, of the noise, not of the velocity."""
    x = k * error
    small = x.abs() < 1e-4
    safe = x.where(~small, 1.0)
    return scale * torch.where(small, 1 - x / 2, safe * (-safe).exp() / -(-safe).expm1())  # without the overflow of exp(safe)


def clipped_log_ratio(logp: Tensor, base: Tensor, clip: float) -> Tensor:
    """log clip(exp(logp - base), 1 - clip, 1 + clip): how far a step has moved from a reference's; outside it has no gradient."""
    return (logp - base).clamp(math.log1p(-clip), math.log1p(clip))  # not through exp, whose overflow has no gradient but NaN


def safe_scale(residual: Tensor, other: Tensor, mu: float) -> Tensor:
    """Diffusion-SDPO's (arXiv 2511.03317; AIDC-AI/Diffusion-SDPO@train.py) share of the rejected picture's gradient that the chosen one
    can bear: clip((1 - mu) |r|^2 / <r, r'>, 0, 1) where the product is positive, else 1.

    residual, other (b, ...): velocity less target of the chosen and of the rejected picture. (b,) without a gradient; <r, r - scale r'> is
    at least mu |r|^2. The released script has one scale for a batch, this one a scale for each pair."""
    chosen, rejected = residual.detach().flatten(1), other.detach().flatten(1)
    inner = (chosen * rejected).sum(1)
    scale = ((1 - mu) * chosen.square().sum(1) / (inner + 1e-9)).clamp(0, 1)
    return scale.where(inner > 0, 1.0)


def scale_gradient(value: Tensor, factor: Tensor) -> Tensor:
    """value, whose gradient counts `factor` times."""
    return factor * value + (1 - factor) * value.detach()
