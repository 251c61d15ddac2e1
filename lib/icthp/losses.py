"""Labels and losses of ICT, HP and ICT-HP as pure functions of tensors: the oracle of everything faster.

b triplets I1 (rejected), I2 (chosen), I3 (refined); two prompts each, easy and refined. Half-precision input is computed in
float32; float64 stays float64. The released code's forms are options: beta=6, rounded, activation="softmax", reduction="sum".
ValueError names a tensor of another shape than its docstring gives, and an empty batch, which has no mean.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # least divisor: a mean over no pairs is 0


def no_autocast(device: torch.device):
    """A context that switches autocast off, which would turn products into bfloat16; on the meta device it does nothing."""
    has_autocast = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_autocast else contextlib.nullcontext()


def full_precision(loss):
    """Decorator: the loss is computed outside any autocast region."""

    @functools.wraps(loss)
    def wrapper(*args, **kwargs) -> Tensor:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        with no_autocast(tensors[0].device if tensors else torch.device("cpu")):
            return loss(*args, **kwargs)

    return wrapper


def upcast(x: Tensor) -> Tensor:
    """x in float32; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def check_shapes(**tensors: tuple[Tensor | None, str]) -> None:
    """ValueError unless each tensor has the shape beside it: "3 b d" is (3, b, d), and a letter is one size in all of them; b is at
    least 1. None stands for an argument that was left out."""
    sizes = {}  # of each letter
    for name, (x, shape) in tensors.items():
        if x is None:
            continue
        letters = shape.split()
        fits = x.ndim == len(letters)
        for letter, n in zip(letters, x.shape):
            fits = fits and n == (int(letter) if letter.isdigit() else sizes.setdefault(letter, n))
        if not fits:
            known = "".join(f", {letter} = {n}" for letter, n in sizes.items() if letter in letters)
            raise ValueError(f"{name} must have the shape ({', '.join(letters)}){known}, not {tuple(x.shape)}")
        if sizes.get("b") == 0:
            raise ValueError(f"{name} of shape {tuple(x.shape)} is an empty batch, which has no mean: leave it out")


def check_ict(image_features, easy, refined, easy_labels, refined_labels, groups) -> None:
    """check_shapes of ict_loss's arguments."""
    check_shapes(image_features=(image_features, "3 b d"), easy=(easy, "b d"), refined=(refined, "b d"), easy_labels=(easy_labels, "b 3"),
                 refined_labels=(refined_labels, "b 3"), groups=(groups, "b"))  # fmt: skip


def ict_labels(clip_1: Tensor, clip_2: Tensor, text_sim: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Targets of the ICT score: easy (b, 3) = E1, E2, E3 and refined (b, 3) = R1, R2, R3.

    clip_1, clip_2 (b,): cosines of I1, I2 with the easy prompt; text_sim (b,): cosine of the two prompts; theta > 0.
    C = min(cosine / theta, 1); E3 = R3 = 1; E2 = C2; E1 = min(C1, E2); R1, R2 = E1, E2 times text_sim (arXiv 2507.19002,
    section on ICT).
    """
    if not theta > 0:
        raise ValueError(f"theta must be positive, not {theta}")
    check_shapes(clip_1=(clip_1, "n"), clip_2=(clip_2, "n"), text_sim=(text_sim, "n"))
    e2 = (clip_2 / theta).clamp(max=1)
    e1 = torch.minimum((clip_1 / theta).clamp(max=1), e2)
    one = torch.ones_like(e2)
    return torch.stack([e1, e2, one], 1), torch.stack([e1 * text_sim, e2 * text_sim, one], 1)


def negative_weight(cosine: Tensor, alpha: float, beta: float) -> Tensor:
    """1 / (1 + exp(alpha * (|cosine| - beta))) in (0, 1), any shape: it falls with |cosine|, so that likely false negatives count less.

    With the released alpha = 20, beta = 6 it is exactly 1 for every cosine; beta is in cosine units here."""
    return torch.sigmoid(-alpha * (cosine.abs() - beta))


def constant_weight(alpha: float, beta: float) -> bool:
    """Is negative_weight 1 to float32 precision, 1 - weight < 2^-25, for every cosine in [-1, 1]?"""
    return alpha * (beta - 1) >= 17.4


@full_precision
def ict_loss(
    image_features: Tensor,
    easy: Tensor,
    refined: Tensor,
    easy_labels: Tensor,
    refined_labels: Tensor,
    *,
    neg_lambda: float = 0.5,
    alpha: float = 20.0,
    beta: float = 6.0,
    groups: Tensor | None = None,
    rounded: bool = False,
) -> Tensor:
    """Scalar ICT loss. image_features (3, b, d), easy and refined (b, d): unit rows; labels (b, 3).

    For each prompt kind: the mean over (b, 3) of (matched cosine - label)^2, plus neg_lambda times the mean over the
    3 b (b - 1) mismatched (image, text) pairs of negative_weight * cosine^2. groups (b,) int: rows of equal id have the same
    prompt; the mean leaves the pairs among them out (0 if no pair is left). rounded: cosines and labels go through
    bfloat16 first, as released, which drops differences below 0.004.
    """
    check_ict(image_features, easy, refined, easy_labels, refined_labels, groups)
    total = 0
    for text, labels in ((easy, easy_labels), (refined, refined_labels)):
        total = total + matched_loss(image_features, text, labels, rounded)
        total = total + neg_lambda * mismatched_loss(image_features, text, alpha, beta, groups, rounded)
    return total


def matched_loss(image_features: Tensor, text: Tensor, labels: Tensor, rounded: bool = False) -> Tensor:
    """Mean over (b, 3) of (cosine of each image with its own prompt - label)^2. image_features (3, b, d), text (b, d), labels (b, 3)."""
    check_shapes(image_features=(image_features, "3 b d"), text=(text, "b d"), labels=(labels, "b 3"))
    cosine = (upcast(image_features) * upcast(text)).sum(-1)  # (3, b)
    square = (_round(cosine, rounded) - _round(upcast(labels).T, rounded)).square()
    return square.sum() / square.numel()


def _round(x: Tensor, rounded: bool) -> Tensor:
    return x.bfloat16().to(x.dtype) if rounded else x


def mismatched_loss(
    image_features: Tensor, text: Tensor, alpha: float, beta: float, groups: Tensor | None = None, rounded: bool = False
) -> Tensor:
    """Mean of negative_weight * cosine^2 over images (3, b, d) and other rows' prompts (b, d); holds (3, b, b) in memory. groups
    (b,) int: rows of equal id have the same prompt; their pairs are left out, and 0 is the mean over none."""
    check_shapes(image_features=(image_features, "3 b d"), text=(text, "b d"), groups=(groups, "b"))
    cosine = _round(upcast(image_features) @ upcast(text).T, rounded)
    ids = torch.arange(len(text), device=text.device) if groups is None else groups
    is_negative = (ids[:, None] != ids).to(cosine.dtype)
    total = (negative_weight(cosine, alpha, beta) * cosine.square() * is_negative).sum()
    return total / (3 * is_negative.sum()).clamp(min=TINY)


@full_precision
def hp_loss(hp: Tensor, margin: float = 0.3) -> Tensor:
    """hp (b, 3): scores of I1, I2, I3 -> scalar: mean over b of the hinges on (I2, I1) and (I3, I2)."""
    check_shapes(hp=(hp, "b 3"))
    hp = upcast(hp)
    return (F.relu(margin - (hp[:, 1:] - hp[:, :-1]))).sum(1).mean()


@full_precision
def icthp_loss(ict: Tensor, hp: Tensor, margin: float = 0.3, *, activation: str = "sigmoid", reduction: str = "mean") -> Tensor:
    """The same hinges on the product ICT * HP; both (b, 3). activation: "sigmoid" for an hp in (0, 1), or "softmax" of
    the triplet's logits; reduction: "mean" or "sum" over the batch. Released: softmax and sum."""
    if activation not in ("sigmoid", "softmax") or reduction not in ("mean", "sum"):
        raise ValueError(f'activation must be "sigmoid" or "softmax", reduction "mean" or "sum", not {activation!r}, {reduction!r}')
    check_shapes(ict=(ict, "b 3"), hp=(hp, "b 3"))
    ict, hp = upcast(ict), upcast(hp)
    loss = hp_loss(ict * (hp.softmax(1) if activation == "softmax" else hp), margin)
    return loss * len(hp) if reduction == "sum" else loss


@full_precision
def preference_loss(scores: Tensor) -> Tensor:
    """Bradley-Terry on (b, 3) scores of I1, I2, I3 -> scalar: mean over b of -log sigmoid of I2 - I1 plus that of I3 - I2; with
    logit-scaled cosines it is PickScore's loss (arXiv 2305.01569)."""
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
