"""The losses of icthp.losses with the same signature, faster; `impl` says how.

"eager"    the oracle itself
"gram"     the mismatched sum without its (3, b, b) matrix: the sum of c_ij^2 is <T'T, V'V>; exact while the weight is 1
"chunked"  the mismatched sum a block of prompts at a time, recomputed in the backward pass; any weight, any groups
"auto"     whichever of these is right and fastest for the size
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from icthp import losses
from icthp.losses import matched_loss

IMPLEMENTATIONS = ("auto", "eager", "gram", "chunked")
CHUNK = 1024  # prompts a block


def constant_weight(alpha: float, beta: float) -> bool:
    """Is the negative weight 1 to float32 precision for every cosine in [-1, 1]? 1 - w < 2^-25 needs this."""
    return alpha * (beta - 1) >= 17.4


def choose(b: int, d: int, alpha: float, beta: float, groups, rounded: bool = False) -> str:
    """Gram costs 20 b d^2 FLOPs against 36 b^2 d, so it wins above b = 0.56 d; see tests/test_kernels.py."""
    if rounded:
        return "eager"
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
    rounded: bool = False,
    impl: str = "auto",
) -> Tensor:
    """icthp.losses.ict_loss by the implementation `impl`. Raises ValueError for an unknown one, or where it would be wrong:
    "gram" knows neither groups nor a weight that is not constant, and only "eager" rounds. See also `sharded_ict_loss`."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {impl!r}")
    b, d = easy.shape
    impl = choose(b, d, alpha, beta, groups, rounded) if impl == "auto" else impl
    if rounded and impl != "eager":
        raise ValueError(f'rounded=True, the released code\'s bfloat16, is for impl="eager", not {impl!r}')
    if impl == "gram" and (groups is not None or not constant_weight(alpha, beta)):
        raise ValueError('impl="gram" is exact only without groups and with a constant weight (alpha * (beta - 1) >= 17.4)')
    options = {"neg_lambda": neg_lambda, "alpha": alpha, "beta": beta, "groups": groups}
    if impl == "eager":
        return losses.ict_loss(images, easy, refined, easy_labels, refined_labels, rounded=rounded, **options)
    mismatched = {"gram": _gram, "chunked": _chunked}[impl]
    return _total(
        images, easy, refined, easy_labels, refined_labels, neg_lambda, lambda text: mismatched(images, text, alpha, beta, groups)
    )


def _total(
    images: Tensor, easy: Tensor, refined: Tensor, easy_labels: Tensor, refined_labels: Tensor, neg_lambda: float, mismatched
) -> Tensor:
    """Both prompt kinds' matched terms, and neg_lambda times mismatched(text)."""
    kinds = (easy, easy_labels), (refined, refined_labels)
    return sum(matched_loss(images, text, labels) + neg_lambda * mismatched(text) for text, labels in kinds)


def _gram(images: Tensor, text: Tensor, alpha: float, beta: float, groups) -> Tensor:
    b = len(text)
    everything, matched = _squares(images, text, lambda grams: grams)
    return (everything - matched) / max(1, 3 * b * (b - 1))


def _squares(images: Tensor, text: Tensor, summed) -> tuple[Tensor, Tensor]:
    """The sums of squares of all cosines and of the matched ones; `summed` adds up the two (d, d) Gram matrices of all processes."""
    v, t = losses._wide(images), losses._wide(text)
    grams = summed(torch.stack([t.T @ t, v.flatten(0, 1).T @ v.flatten(0, 1)]))
    return grams.prod(0).sum(), (v * t).sum(-1).square().sum()


@losses.full_precision
def sharded_ict_loss(
    images, easy, refined, easy_labels, refined_labels, *, neg_lambda=0.5, alpha=20.0, beta=6.0, groups=None, **options
) -> Tensor:
    """ict_loss of a batch of which every process holds an equal part: the mean over the processes is the loss, and
    DistributedDataParallel's mean of the gradients is its gradient. On one process it is ict_loss.

    While the weight is constant, processes exchange two (d, d) matrices a prompt kind, whatever the batch, and nothing in the
    backward pass; otherwise the features themselves. groups must be None on all processes or on none."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    data = images, easy, refined, easy_labels, refined_labels
    options |= {"neg_lambda": neg_lambda, "alpha": alpha, "beta": beta}
    if world == 1:
        return ict_loss(*data, groups=groups, **options)
    if groups is not None or options.get("rounded") or not constant_weight(alpha, beta):
        data = [_gathered(x, 1 if x is images else 0) for x in data]
        return ict_loss(*data, groups=None if groups is None else _gathered(groups, 0), **options)
    b = len(easy) * world

    def mismatched(text: Tensor) -> Tensor:
        everything, matched = _squares(images, text, _all_reduced)
        return (everything - world * matched) / (3 * b * (b - 1))

    return _total(*data, neg_lambda, mismatched)


def _all_reduced(grams: Tensor) -> Tensor:
    """The sum over processes; its gradient reaches this process's own part, times their number, which a mean takes back."""
    total = grams.detach().clone()
    dist.all_reduce(total)
    return total + dist.get_world_size() * (grams - grams.detach())


def _gathered(x: Tensor, dim: int) -> Tensor:
    """All processes' parts, joined along `dim`; the gradient as in _all_reduced."""
    world, rank = dist.get_world_size(), dist.get_rank()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = parts[rank] + world * (x - x.detach())
    return torch.cat(parts, dim)


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
