"""losses.ict_loss with the same signature, faster; `impl` says how. Value and gradient come from one pass.

"eager"    the oracle itself
"gram"     no matrix of cosines: the sum of c_ij^2 is <T'T, V'V>; 20 b d^2 FLOPs, exact while the weight is 1
"chunked"  the cosines a block of prompts at a time, their gradient at once; 36 b^2 d FLOPs, memory linear in b, any weight
"triton"   the same, cosines and their gradient in one kernel on a GPU
"auto"     whichever of these is right and fastest for size, device and weight
"""

import itertools
import math

import torch
import torch.distributed as dist
from torch import Tensor

from icthp import losses
from icthp.kernels import ict_triton

IMPLEMENTATIONS = ("auto", "eager", "gram", "chunked", "triton")
CHUNK = 1024  # prompts a block


def select_impl(b: int, d: int, alpha: float, beta: float, rounded: bool = False, pairs: int = 0, fused: bool = False) -> str:
    """The implementation for b prompts of width d, `pairs` of which are of one group. Gram costs 20 b d^2 FLOPs, and 36 d for
    each of those pairs at about a tenth of a product's speed; the others cost 36 b^2 d. fused: are there bfloat16 on a GPU
    and Triton?"""
    if rounded:
        return "eager"
    if losses.constant_weight(alpha, beta) and 20 * b * d + 360 * pairs < 36 * b * b:
        return "gram"
    return "triton" if fused and b > CHUNK else "chunked"


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
    sample_weights: Tensor | None = None,
    negative_target: float = 0.0,
    rounded: bool = False,
    impl: str = "auto",
) -> Tensor:
    """icthp.losses.ict_loss by the implementation `impl`: arguments, shapes and value are the oracle's.

    float64 and float32 are computed as they are; bfloat16 mismatched cosines in bfloat16 products where the processor has
    them (the value is then exact to 2e-3), all else in float32. "gram" takes the pairs that are no negatives from the sum of
    all: where one triplet has nearly all the weight, float32 loses the others. sample_weights are constants: only "eager" gives
    them a gradient. Raises ValueError for an unknown impl, or where it would be wrong: "gram" knows no weight that is not
    constant, only "eager" rounds. See also `sharded_ict_loss`."""
    data = images, easy, refined, easy_labels, refined_labels
    losses.check_ict(*data, groups, sample_weights)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {impl!r}")
    if impl == "auto":
        counts = None if groups is None else torch.unique(groups, return_counts=True)[1]
        pairs = 0 if groups is None else int((counts.square() - counts).sum())
        fused = easy.is_cuda and easy.dtype == torch.bfloat16 and ict_triton.available()
        impl = select_impl(*easy.shape, alpha, beta, rounded, pairs, fused)
    options = {"alpha": alpha, "beta": beta, "groups": groups, "sample_weights": sample_weights, "negative_target": negative_target}
    if impl == "eager":
        return losses.ict_loss(*data, neg_lambda=neg_lambda, rounded=rounded, **options)
    if rounded:
        raise ValueError(f'rounded=True, the released code\'s bfloat16, is for impl="eager", not {impl!r}')
    if impl == "gram" and not losses.constant_weight(alpha, beta):
        raise ValueError('impl="gram" is exact only with a constant weight, alpha * (beta - 1) >= 17.4')
    return _apply(data, options | {"neg_lambda": neg_lambda, "impl": impl, "world": 1})


@losses.full_precision
def sharded_ict_loss(
    images,
    easy,
    refined,
    easy_labels,
    refined_labels,
    *,
    neg_lambda=0.5,
    alpha=20.0,
    beta=6.0,
    groups=None,
    sample_weights=None,
    negative_target=0.0,
    rounded=False,
) -> Tensor:
    """ict_loss of a batch of which every process holds an equal part: the mean over the processes is the loss, and
    DistributedDataParallel's mean of the gradients is its gradient. On one process it is ict_loss.

    While the weight is constant, processes exchange two (d, d) matrices, whatever the batch, and nothing in the backward pass;
    otherwise the features themselves. groups and sample_weights must be None on all processes or on none."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    data = images, easy, refined, easy_labels, refined_labels
    losses.check_ict(*data, groups, sample_weights)
    parts = {"groups": groups, "sample_weights": sample_weights}
    options = {"alpha": alpha, "beta": beta, "negative_target": negative_target}
    if world > 1 and groups is None and not rounded and losses.constant_weight(alpha, beta):
        return _apply(data, options | parts | {"neg_lambda": neg_lambda, "impl": "gram", "world": world})
    if world > 1:
        data = [_gathered(x, 1 if x is images else 0) for x in data]
        parts = {name: None if x is None else _gathered(x, 0) for name, x in parts.items()}
    return ict_loss(*data, neg_lambda=neg_lambda, rounded=rounded, **options, **parts)


def _gathered(x: Tensor, dim: int) -> Tensor:
    """All processes' parts, joined along `dim`; the gradient reaches this one's own, times their number, which a mean takes back."""
    world, rank = dist.get_world_size(), dist.get_rank()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = parts[rank] + world * (x - x.detach()) if x.requires_grad else parts[rank]
    return torch.cat(parts, dim)


def _apply(data: tuple, options: dict) -> Tensor:
    return _IctLoss.apply(*data, torch.is_grad_enabled() and any(x.requires_grad for x in data), options)


class _IctLoss(torch.autograd.Function):
    """The gradients, where they are `wanted`, are made in the forward pass and kept, so that nothing of size b^2 outlives it."""

    @staticmethod
    def forward(ctx, images, easy, refined, easy_labels, refined_labels, wanted, options):
        labels = torch.stack([easy_labels.T, refined_labels.T])
        value, dv, dt, dl = _value_and_gradients(images, (easy, refined), labels, wanted, **options)
        if wanted:
            ctx.save_for_backward(dv, *dt, *dl.mT)
        ctx.dtypes = [x.dtype for x in (images, easy, refined, easy_labels, refined_labels)]
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return *((upstream * g).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)), None, None


def _value_and_gradients(images, texts, labels, wanted, *, neg_lambda, impl, world, groups, sample_weights, alpha, beta, negative_target):
    """images (3, b, d), texts 2 x (b, d), labels (2, 3, b) -> the loss and its gradient in each of them; None for that in images and
    texts where it is not `wanted`."""
    wide_v, wide_t = losses.upcast(images), torch.stack([losses.upcast(text) for text in texts])
    sample_weights = None if sample_weights is None else sample_weights.to(wide_t.dtype)
    u = torch.ones_like(wide_t[0, :, 0]) if sample_weights is None else sample_weights
    rows, mass = _counts(u, groups, world)
    scale = neg_lambda / (3 * mass)
    error = _matched(wide_v, wide_t) - losses.upcast(labels)
    slope = 2 * world * (u / (3 * rows).clamp(min=losses.TINY)) * error
    dv, dt = (torch.zeros_like(wide_v), torch.zeros_like(wide_t)) if wanted else (None, None)
    _add_matched(dv, dt, slope, wide_v, wide_t)
    on_cpu = impl != "triton" and torch.cpu._is_avx512_bf16_supported()  # Triton's interpreter cannot multiply bfloat16
    fast = all(x.dtype == torch.bfloat16 for x in (images, *texts)) and (images.is_cuda or on_cpu)
    factors = (images.flatten(0, 1), torch.cat(texts)) if fast else (wide_v.flatten(0, 1), wide_t.flatten(0, 1))
    if impl == "gram":
        total = 0  # of the pairs that are no negatives
        for i, j in [(None, None), *_blocks_of_pairs(groups)]:
            away = _matched(wide_v, wide_t, i, j) - negative_target
            weight = -world * (u.square() if i is None else u[i] * u[j])
            total = total + (weight * away.square()).sum()
            _add_matched(dv, dt, 2 * scale * weight * away, wide_v, wide_t, i, j)
        everything, dv, dt = _gram(*factors, dv, dt, scale, sample_weights, negative_target, world)
        total = total + everything
    else:
        block = ict_triton.block if impl == "triton" else _block
        ids = torch.arange(len(u), device=u.device) if groups is None else groups
        total = _chunked(*factors, dv, dt, scale, ids, sample_weights, alpha, beta, negative_target, block)
    return (slope * error).sum() / 2 + scale * total, dv, dt, -slope


def _counts(u: Tensor, groups: Tensor | None, world: int) -> tuple[Tensor, Tensor]:
    """The weight of all prompts, and of all pairs of prompts of different groups; where there are none but for rounding,
    infinity, by which nothing is divided."""
    one = u if groups is None else torch.zeros_like(u).double().index_add_(0, torch.unique(groups, return_inverse=True)[1], u.double())
    rows, same = _summed(torch.stack([u.double().sum(), one.double().square().sum()]), world)
    mass = rows.square() - same
    return rows.to(u.dtype), mass.where(mass > 1e-14 * rows.square(), math.inf).to(u.dtype)


def _summed(x: Tensor, world: int) -> Tensor:
    """The sum over processes, in place."""
    if world > 1:
        dist.all_reduce(x)
    return x


def _matched(v: Tensor, t: Tensor, i: Tensor | None = None, j: Tensor | None = None) -> Tensor:
    """(2, 3, p) products of the rows i of v (3, b, d) with the rows j of t (2, b, d); of all with their own by default."""
    v, t = (v, t) if i is None else (v[:, i], t[:, j])
    return torch.stack([torch.stack([(rows * prompts).sum(-1) for rows in v]) for prompts in t])


def _add_matched(dv: Tensor, dt: Tensor, slope: Tensor, v: Tensor, t: Tensor, i: Tensor | None = None, j: Tensor | None = None):
    """Add what slope (2, 3, p), the gradient in `_matched`, means for v and t, where that is wanted."""
    if dv is None:
        return
    for s, k in itertools.product(range(len(t)), range(len(v))):
        by = slope[s, k, :, None]
        if i is None:
            dv[k].addcmul_(by, t[s])
            dt[s].addcmul_(by, v[k])
        else:
            dv[k].index_add_(0, i, by * t[s, j])
            dt[s].index_add_(0, j, by * v[k, i])


def same_group(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(p,), (p,): the ordered pairs of different rows that have the same id, of groups (b,) int."""
    order = groups.argsort(stable=True)
    counts = torch.unique_consecutive(groups[order], return_counts=True)[1]
    size, start = (x.repeat_interleave(counts) for x in (counts, counts.cumsum(0) - counts))  # of each sorted row's group
    row = torch.arange(len(order), device=order.device).repeat_interleave(size)
    column = torch.arange(len(row), device=order.device) - (size.cumsum(0) - size)[row] + start[row]
    return order[row[row != column]], order[column[row != column]]


def _blocks_of_pairs(groups: Tensor | None) -> list:
    """The pairs of same_group, as many at a time as there are rows."""
    return [] if groups is None else list(zip(*(x.split(len(groups)) for x in same_group(groups))))


def _gram(v, t, dv, dt, scale, u: Tensor | None, target: float, world: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of u_i u_j (cosine_ij - target)^2 over all pairs of v (3 b, d) and t (2 b, d), matched ones too; dv (3, b, d) and
    dt (2, b, d) plus `scale` times its gradients. With y = target it is <T'T, V'V> - 2 y <sum of T, sum of V> + y^2 times the
    number of pairs, all weighted (the Gramian trick, arXiv 1807.07187)."""
    uv, ut = (v, t) if u is None else (x * u.repeat(n)[:, None].to(x.dtype) for n, x in ((3, v), (2, t)))
    grams = _summed(losses.upcast(torch.stack([uv.T @ v, ut.T @ t])), world)
    total, factor = grams.prod(0).sum(), 2 * world * scale
    if target:
        u = torch.ones_like(losses.upcast(t[: len(t) // 2, 0])) if u is None else u
        sums = _summed(torch.stack([losses.upcast(x).sum(0) for x in (uv, ut)]), world)
        total = total - 2 * target * sums.prod(0).sum() + 6 * (target * _summed(u.sum(), world)).square()
        if dv is not None:
            dv.addcmul_(u[:, None], factor * sums[1], value=-target)
            dt.addcmul_(u[:, None], factor * sums[0], value=-target)
    if dv is None:
        return total, None, None
    return total, _plus(dv, uv, factor * grams[1]), _plus(dt, ut, factor * grams[0])


def _plus(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x + a b in a's type, in x's place if that is its type too; of bfloat16 only the sum is rounded."""
    flat = x.flatten(0, 1).to(a.dtype)
    return torch.addmm(flat, a, b.to(a.dtype), out=flat).view_as(x)


def _chunked(v, t, dv, dt, scale, ids, u, alpha, beta, target, block) -> Tensor:
    """The sum of u_i u_j weight (cosine_ij - target)^2 over pairs of v (3 b, d) and t (2 b, d) of different ids; adds `scale` times its
    gradients to dv (3, b, d) and dt (2, b, d)."""
    columns, parts = ((ids.repeat(n), None if u is None else u.repeat(n)) for n in (3, 2))
    total = 0
    for start in range(0, len(t), CHUNK):
        here = slice(start, start + CHUNK)
        value, slope = block(t[here], v, *((None if r is None else r[here], c) for r, c in zip(parts, columns)), alpha, beta, target)
        total = total + value
        if dv is not None:
            dt.flatten(0, 1)[here].addcmul_(scale, losses.upcast(slope @ v))
            dv.flatten(0, 1).addcmul_(scale, losses.upcast(slope.T @ t[here]))
    return total


def _block(t, v, ids, weights, alpha, beta, target) -> tuple[Tensor, Tensor]:
    """The sum over one block of prompts t (n, d) with all pictures v (m, d), and its gradient (n, m) in the cosines, in t's dtype.
    ids, weights: pairs of (n,) and (m,); weights may hold None."""
    cosine = losses.upcast(t @ v.T)
    away = (cosine - target).masked_fill_(ids[0][:, None] == ids[1], 0)
    square, slope = away.square(), 2 * away
    if not losses.constant_weight(alpha, beta):
        weight = losses.negative_weight(cosine, alpha, beta)
        slope = weight * (slope - alpha * (1 - weight) * cosine.sign() * square)
        square = weight * square
    if weights[0] is not None:
        both = weights[0][:, None] * weights[1]
        square, slope = square * both, slope * both
    return square.sum(), slope.to(t.dtype)
