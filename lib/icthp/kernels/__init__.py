"""The losses of icthp.losses with the same signature, faster; `impl` says how.

"eager"    the oracle itself
"gram"     the mismatched sum without its (3, b, b) matrix: the sum of c_ij^2 is <T'T, V'V>; exact while the weight is 1
"chunked"  the mismatched sum a block of prompts at a time, recomputed in the backward pass; any weight, any groups
"auto"     whichever of these is right and fastest for the size
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from icthp import losses
from icthp.losses import matched_loss

IMPLEMENTATIONS = ("auto", "eager", "gram", "chunked")
CHUNK = 1024  # prompts a block


def constant_weight(alpha: float, beta: float) -> bool:
    """Is the negative weight 1 to float32 precision for every cosine in [-1, 1]? 1 - w < 2^-25 needs this."""
    return alpha * (beta - 1) >= 17.4


def choose(b: int, d: int, alpha: float, beta: float, groups) -> str:
    """Gram costs 20 b d^2 FLOPs against 36 b^2 d, so it wins above b = 0.56 d; see tests/test_kernels.py."""
    if constant_weight(alpha, beta) and groups is None and b > 0.56 * d:
        return "gram"
    return "chunked" if b > 2 * CHUNK else "eager"


@losses.full_precision
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
    impl: str = "auto",
) -> Tensor:
    """icthp.losses.ict_loss by the implementation `impl`. Raises ValueError for an unknown one, or where "gram" would
    be wrong: groups, or a weight that is not constant."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {impl!r}")
    b, d = easy.shape
    impl = choose(b, d, alpha, beta, groups) if impl == "auto" else impl
    if impl == "gram" and (groups is not None or not constant_weight(alpha, beta)):
        raise ValueError('impl="gram" is exact only without groups and with a constant weight (alpha * (beta - 1) >= 17.4)')
    mismatched = {"eager": losses.mismatched_loss, "gram": _gram, "chunked": _chunked}[impl]
    total = 0
    for text, labels in ((easy, easy_labels), (refined, refined_labels)):
        total = total + matched_loss(images, text, labels) + neg_lambda * mismatched(images, text, alpha, beta, groups)
    return total


def _gram(images: Tensor, text: Tensor, alpha: float, beta: float, groups) -> Tensor:
    v, t = losses._wide(images), losses._wide(text)
    b, flat = len(t), v.flatten(0, 1)
    everything = ((t.T @ t) * (flat.T @ flat)).sum()
    matched = (v * t).sum(-1).square().sum()
    return (everything - matched) / max(1, 3 * b * (b - 1))


def _chunked(images: Tensor, text: Tensor, alpha: float, beta: float, groups) -> Tensor:
    b = len(text)
    ids = torch.arange(b, device=text.device) if groups is None else groups

    def block(v, t, rows):
        cosine = losses._wide(v) @ losses._wide(t).T
        return (losses.negative_weight(cosine, alpha, beta) * cosine.square() * (ids[:, None] != rows[None])).sum()

    parts = zip(text.split(CHUNK), ids.split(CHUNK))
    total = sum(checkpoint(block, images, t, rows, use_reentrant=False) for t, rows in parts)
    same = torch.unique(ids, return_counts=True)[1].square().sum()
    return total / (3 * (b * b - same)).clamp(min=1)
