"""Labels and losses of ICT, HP and ICT-HP as pure functions of tensors: the oracle of everything faster.

b triplets I1 (lost), I2 (won), I3 (refined); two prompts each, easy and refined. Half-precision input is computed in
float32; float64 stays float64. The released code's forms are options: beta=6, rounded, activation="softmax", reduction="sum".
ValueError names a tensor whose shape is another than its docstring says, and an empty batch: it has no mean.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # a sum of no weights divides nothing


def no_autocast(device: torch.device):
    """A context outside any autocast region, which would turn products into bfloat16; the meta device knows none."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()


def full_precision(loss):
    """Decorator: the loss is computed outside any autocast region."""

    @functools.wraps(loss)
    def outside(*args, **options) -> Tensor:
        with no_autocast(next((x for x in (*args, *options.values()) if isinstance(x, Tensor)), torch.empty(0)).device):
            return loss(*args, **options)

    return outside


def upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def check_shapes(**tensors: tuple[Tensor | None, str]) -> None:
    """ValueError unless each tensor has the shape beside it: "3 b d" is (3, b, d), and a letter is one size in all of them; b is at
    least 1. None, what is not given, has any shape."""
    sizes = {}
    for name, (x, shape) in tensors.items():
        if x is None:
            continue
        wanted = shape.split()
        if x.ndim != len(wanted) or any(n != (int(k) if k.isdigit() else sizes.setdefault(k, n)) for k, n in zip(wanted, x.shape)):
            known = "".join(f", {k} = {n}" for k, n in sizes.items() if k in wanted)
            raise ValueError(f"{name} must have the shape ({', '.join(wanted)}){known}, not {tuple(x.shape)}")
        if sizes.get("b") == 0:
            raise ValueError(f"{name} of shape {tuple(x.shape)} is an empty batch, which has no mean: leave it out")


def check_ict(images, easy, refined, easy_labels, refined_labels, groups, sample_weights) -> None:
    """check_shapes of ict_loss's arguments."""
    check_shapes(images=(images, "3 b d"), easy=(easy, "b d"), refined=(refined, "b d"), easy_labels=(easy_labels, "b 3"),
                 refined_labels=(refined_labels, "b 3"), groups=(groups, "b"), sample_weights=(sample_weights, "b"))  # fmt: skip


def ict_labels(clip_1: Tensor, clip_2: Tensor, text_sim: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Targets of the ICT score: easy (b, 3) = E1, E2, E3 and refined (b, 3) = R1, R2, R3.

    clip_1, clip_2 (b,): cosines of I1, I2 with the easy prompt; text_sim (b,): cosine of the two prompts; theta > 0.
    C = min(cosine / theta, 1); E3 = R3 = 1; E2 = C2; E1 = min(C1, E2); R1, R2 = E1, E2 times text_sim (the paper's
    section on ICT, as two independent notes have it).
    """
    if not theta > 0:
        raise ValueError(f"theta must be positive, not {theta}")
    check_shapes(clip_1=(clip_1, "n"), clip_2=(clip_2, "n"), text_sim=(text_sim, "n"))
    e2 = (clip_2 / theta).clamp(max=1)
    e1 = torch.minimum((clip_1 / theta).clamp(max=1), e2)
    one = torch.ones_like(e2)
    return torch.stack([e1, e2, one], 1), torch.stack([e1 * text_sim, e2 * text_sim, one], 1)


def negative_weight(cosine: Tensor, alpha: float, beta: float) -> Tensor:
    """1 / (1 + exp(alpha * (|cosine| - beta))), any shape: it falls with |cosine|, so likely false negatives are spared.

    With the released alpha = 20, beta = 6 it is exactly 1 for every cosine; beta is in cosine units here."""
    return torch.sigmoid(-alpha * (cosine.abs() - beta))


def constant_weight(alpha: float, beta: float) -> bool:
    """Is that weight 1 to float32 precision for every cosine in [-1, 1]? 1 - w < 2^-25 needs this."""
    return alpha * (beta - 1) >= 17.4


@full_precision
def ict_loss(
    images: Tensor,
    easy: Tensor,
    refined: Tensor,
    easy_labels: Tensor,
    refined_labels: Tensor,
    *,
    neg_lambda: float = 0.5,
    alpha: float = 20.0,
    beta: float = 6.0,
    groups: Tensor | None = None,
    sample_weights: Tensor | None = None,
    negative_target: float = 0.0,
    rounded: bool = False,
) -> Tensor:
    """Scalar ICT loss. images (3, b, d), easy and refined (b, d): unit rows; labels (b, 3).

    For each prompt kind: the mean over (b, 3) of (matched cosine - label)^2, plus neg_lambda times the mean over the
    3 b (b - 1) mismatched (image, text) pairs of weight * (cosine - negative_target)^2. groups (b,) int: rows of equal id have
    the same prompt; pairs among them are no negatives, and the mean is over those that remain (0 where none does).
    sample_weights (b,): how much a triplet counts, a pair as the product of its two; the means are weighted ones. rounded:
    cosines and labels go through bfloat16 first, as released, which drops differences below 0.004.
    """
    check_ict(images, easy, refined, easy_labels, refined_labels, groups, sample_weights)
    total = 0
    for text, labels in ((easy, easy_labels), (refined, refined_labels)):
        total = total + matched_loss(images, text, labels, sample_weights, rounded)
        total = total + neg_lambda * mismatched_loss(images, text, alpha, beta, groups, sample_weights, negative_target, rounded)
    return total


def matched_loss(images: Tensor, text: Tensor, labels: Tensor, sample_weights: Tensor | None = None, rounded: bool = False) -> Tensor:
    """Weighted mean over (b, 3) of (cosine of each image with its own prompt - label)^2. images (3, b, d), text (b, d), labels (b, 3)."""
    check_shapes(images=(images, "3 b d"), text=(text, "b d"), labels=(labels, "b 3"), sample_weights=(sample_weights, "b"))
    cosine = (upcast(images) * upcast(text)).sum(-1)  # (3, b)
    square = (_round(cosine, rounded) - _round(upcast(labels).T, rounded)).square()
    u = torch.ones_like(square[0]) if sample_weights is None else sample_weights.to(square.dtype)
    return (square * u).sum() / (3 * u.sum()).clamp(min=TINY)


def _round(x: Tensor, rounded: bool) -> Tensor:
    return x.bfloat16().to(x.dtype) if rounded else x


def mismatched_loss(
    images, text, alpha: float, beta: float, groups=None, sample_weights=None, negative_target: float = 0.0, rounded: bool = False
) -> Tensor:
    """Mean of weight * (cosine - negative_target)^2 over images (3, b, d) and other rows' prompts (b, d); holds (3, b, b) in memory."""
    check_shapes(images=(images, "3 b d"), text=(text, "b d"), groups=(groups, "b"), sample_weights=(sample_weights, "b"))
    cosine = _round(upcast(images) @ upcast(text).T, rounded)
    ids = torch.arange(len(text), device=text.device) if groups is None else groups
    counts = (ids[:, None] != ids).to(cosine.dtype)
    if sample_weights is not None:
        u = sample_weights.to(cosine.dtype)
        counts = counts * u[:, None] * u
    total = (negative_weight(cosine, alpha, beta) * (cosine - negative_target).square() * counts).sum()
    return total / (3 * counts.sum()).clamp(min=TINY)


@full_precision
def hp_loss(hp: Tensor, margin: float = 0.3) -> Tensor:
    """hp (b, 3): scores of I1, I2, I3 -> scalar: mean over b of the hinges on (I2, I1) and (I3, I2). No text enters."""
    check_shapes(hp=(hp, "b 3"))
    hp = upcast(hp)
    return (F.relu(margin - (hp[:, 1:] - hp[:, :-1]))).sum(1).mean()


@full_precision
def icthp_loss(ict: Tensor, hp: Tensor, margin: float = 0.3, *, activation: str = "sigmoid", reduction: str = "mean") -> Tensor:
    """The same hinges on the product ICT * HP; both (b, 3). activation: "sigmoid", hp in (0, 1) as it is, or "softmax" over the
    triplet's raw scores; reduction: "mean" or "sum" over the batch. Released: softmax and sum."""
    if activation not in ("sigmoid", "softmax") or reduction not in ("mean", "sum"):
        raise ValueError(f'activation must be "sigmoid" or "softmax", reduction "mean" or "sum", not {activation!r}, {reduction!r}')
    check_shapes(ict=(ict, "b 3"), hp=(hp, "b 3"))
    ict, hp = upcast(ict), upcast(hp)
    loss = hp_loss(ict * (hp.softmax(1) if activation == "softmax" else hp), margin)
    return loss * len(hp) if reduction == "sum" else loss


@full_precision
def preference_loss(scores: Tensor) -> Tensor:
    """Bradley-Terry on (b, 3) scores of I1, I2, I3 -> scalar: mean over b of -log sigmoid of I2 - I1 plus that of I3 - I2; with
    logit-scaled cosines it is PickScore's recipe (arXiv 2305.01569)."""
    check_shapes(scores=(scores, "b 3"))
    scores = upcast(scores)
    return F.softplus(scores[:, :-1] - scores[:, 1:]).sum(1).mean()


@full_precision
def uncertain_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Thurstone's model: each score is a normal variable; (b, 3), (b, 3) -> scalar: mean over b of -log P(I2 > I1) and
    -log P(I3 > I2), P(a > b) = Phi((mean_a - mean_b) / sqrt(variance_a + variance_b)). A noisy vote can widen the variance
    instead of bending the mean (the idea of HPSv3, arXiv 2508.03789)."""
    check_shapes(mean=(mean, "b 3"), log_variance=(log_variance, "b 3"))
    mean, variance = upcast(mean), upcast(log_variance).exp()
    z = (mean[:, 1:] - mean[:, :-1]) / (variance[:, 1:] + variance[:, :-1]).sqrt()
    return -torch.special.log_ndtr(z).sum(1).mean()
