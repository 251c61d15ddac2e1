"""losses.ict_loss with the same signature, faster; `impl` says how. Value and gradient come from one pass.

"eager"    the oracle itself
"gram"     no matrix of cosines: the sum of c_ij^2 is <T'T, V'V>; 20 b d^2 FLOPs, exact while the weight is 1
"chunked"  the cosines a block of prompts at a time, their gradient at once; 36 b^2 d FLOPs, memory linear in b, any weight
"triton"   the same, cosines and their gradient in one kernel on a GPU
"auto"     the fastest of those that are exact for this size, device and weight
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
    impl: str = "auto",
) -> Tensor:
    """icthp.losses.ict_loss by the implementation `impl`: arguments, shapes and value are the oracle's.

    float64 and float32 are computed in their own precision. bfloat16 mismatched cosines are bfloat16 products if the
    processor has them (the value is then exact to 2e-3); all else is float32. Raises ValueError for an unknown impl, for "gram"
    with a weight that is not constant, and for `rounded` with any impl but "eager". See also `sharded_ict_loss`."""
    data = image_features, easy, refined, easy_labels, refined_labels
    losses.check_ict(*data, groups)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {impl!r}")
    if impl == "auto":
        fused = easy.is_cuda and easy.dtype == torch.bfloat16 and ict_triton.available()
        impl = select_impl(*easy.shape, alpha, beta, rounded, _count_same_group(groups), fused)
    options = {"neg_lambda": neg_lambda, "alpha": alpha, "beta": beta, "groups": groups}
    if impl == "eager":
        return losses.ict_loss(*data, rounded=rounded, **options)
    if rounded:
        raise ValueError(f'rounded=True, the released code\'s bfloat16, is for impl="eager", not {impl!r}')
    if impl == "gram" and not losses.constant_weight(alpha, beta):
        raise ValueError('impl="gram" is exact only with a constant weight, alpha * (beta - 1) >= 17.4')
    return _apply(data, options | {"impl": impl, "world_size": 1})


def _count_same_group(groups: Tensor | None) -> int:
    """How many ordered pairs of different rows share a group."""
    if groups is None:
        return 0
    counts = torch.unique(groups, return_counts=True)[1]
    return int((counts.square() - counts).sum())


@losses.full_precision
def sharded_ict_loss(
    image_features, easy, refined, easy_labels, refined_labels, *, neg_lambda=0.5, alpha=20.0, beta=6.0, groups=None, rounded=False
) -> Tensor:
    """ict_loss of a batch of which every process holds an equal part: the mean over the processes is the loss, and
    DistributedDataParallel's mean of the gradients is its gradient. On one process it is ict_loss.

    While the weight is constant, processes exchange two (d, d) matrices, whatever the batch, and nothing in the backward pass;
    otherwise the features themselves. groups must be None on all processes or on none."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    data = image_features, easy, refined, easy_labels, refined_labels
    losses.check_ict(*data, groups)
    options = {"neg_lambda": neg_lambda, "alpha": alpha, "beta": beta}
    if world_size > 1 and groups is None and not rounded and losses.constant_weight(alpha, beta):
        return _apply(data, options | {"groups": None, "impl": "gram", "world_size": world_size})
    if world_size > 1:
        data = [_gather(x, 1 if x is image_features else 0) for x in data]
        groups = None if groups is None else _gather(groups, 0)
    return ict_loss(*data, groups=groups, rounded=rounded, **options)


def _gather(x: Tensor, dim: int) -> Tensor:
    """All processes' parts, joined along `dim`; the gradient reaches this one's own, times their number, which a mean takes back."""
    world_size = dist.get_world_size()
    rank = dist.get_rank()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = parts[rank] + world_size * (x - x.detach()) if x.requires_grad else parts[rank]
    return torch.cat(parts, dim)


def _apply(data: tuple, options: dict) -> Tensor:
    return _IctLoss.apply(*data, torch.is_grad_enabled() and any(x.requires_grad for x in data), options)


class _IctLoss(torch.autograd.Function):
    """The gradients, if `needs_grad`, are made in the forward pass and kept, so that nothing of size b^2 outlives it."""

    @staticmethod
    def forward(ctx, image_features, easy, refined, easy_labels, refined_labels, needs_grad, options):
        labels = torch.stack([easy_labels.T, refined_labels.T])
        value, dv, dt, dl = _value_and_gradients(image_features, (easy, refined), labels, needs_grad, **options)
        if needs_grad:
            ctx.save_for_backward(dv, *dt, *dl.mT)
        ctx.dtypes = [x.dtype for x in (image_features, easy, refined, easy_labels, refined_labels)]
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return *((upstream * g).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)), None, None


def _value_and_gradients(image_features, texts, labels, needs_grad, *, neg_lambda, alpha, beta, groups, impl, world_size):
    """image_features v (3, b, d), texts t 2 x (b, d), labels (2, 3, b) -> the loss and its gradients dv (3, b, d), dt (2, b, d) and dl
    (2, 3, b); dv and dt are None unless `needs_grad`."""
    v = losses.upcast(image_features)
    t = torch.stack([losses.upcast(text) for text in texts])
    rows, pairs = _counts(t[0, :, 0], groups, world_size)
    scale = neg_lambda / (3 * pairs)
    error = _matched(v, t) - losses.upcast(labels)
    grad_cosine = 2 * world_size * (1 / (3 * rows)) * error
    dv, dt = (torch.zeros_like(v), torch.zeros_like(t)) if needs_grad else (None, None)
    _add_matched(dv, dt, grad_cosine, v, t)
    factors = _factors(image_features, texts, v, t, impl)
    if impl == "gram":
        same_prompt = _subtract_same_prompt(v, t, dv, dt, scale, groups, world_size)
        all_pairs, dv, dt = _gram(*factors, dv, dt, scale, world_size)
        total = same_prompt + all_pairs
    else:
        ids = torch.arange(t.shape[1], device=t.device) if groups is None else groups
        total = _chunked(*factors, dv, dt, scale, ids, alpha, beta, ict_triton.block if impl == "triton" else _block)
    return (grad_cosine * error).sum() / 2 + scale * total, dv, dt, -grad_cosine


def _factors(image_features, texts, v: Tensor, t: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """The mismatched products' factors (3 b, d) and (2 b, d): in bfloat16 if all of them are and the processor multiplies it."""
    on_cpu = impl != "triton" and torch.cpu._is_avx512_bf16_supported()  # Triton's interpreter cannot multiply bfloat16
    if all(x.dtype == torch.bfloat16 for x in (image_features, *texts)) and (image_features.is_cuda or on_cpu):
        return image_features.flatten(0, 1), torch.cat(texts)
    return v.flatten(0, 1), t.flatten(0, 1)


def _counts(like: Tensor, groups: Tensor | None, world_size: int) -> tuple[Tensor, Tensor]:
    """How many prompts there are, and how many ordered pairs of prompts of different groups, in the dtype of `like` (b,); infinity
    instead of no pairs, so that a mean over them is 0."""
    counts = torch.ones_like(like) if groups is None else torch.unique(groups, return_counts=True)[1]
    counts = counts.double()
    rows, same = _all_reduce(torch.stack([counts.sum(), counts.square().sum()]), world_size)
    pairs = rows.square() - same
    return rows.to(like.dtype), pairs.where(pairs > 0, math.inf).to(like.dtype)


def _all_reduce(x: Tensor, world_size: int) -> Tensor:
    """The sum over processes, in place."""
    if world_size > 1:
        dist.all_reduce(x)
    return x


def _matched(v: Tensor, t: Tensor, i: Tensor | None = None, j: Tensor | None = None) -> Tensor:
    """(2, 3, p) products of the rows i of v (3, b, d) with the rows j of t (2, b, d); of each row with its own by default."""
    v, t = (v, t) if i is None else (v[:, i], t[:, j])
    return torch.stack([torch.stack([(rows * prompts).sum(-1) for rows in v]) for prompts in t])


def _add_matched(dv: Tensor, dt: Tensor, grad_cosine: Tensor, v: Tensor, t: Tensor, i: Tensor | None = None, j: Tensor | None = None):
    """Add to dv and dt what grad_cosine (2, 3, p), the gradient in `_matched`, means for v and t, unless they are None."""
    if dv is None:
        return
    for s, k in itertools.product(range(len(t)), range(len(v))):
        by = grad_cosine[s, k, :, None]
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


def _subtract_same_prompt(v, t, dv, dt, scale, groups: Tensor | None, world_size: int) -> Tensor:
    """Minus the sum of cosine^2 over the pairs of one prompt, a row with its own and rows of one group; takes `scale` times its
    gradients from dv and dt."""
    total = 0
    for i, j in [(None, None), *_blocks_of_pairs(groups)]:
        cosine = _matched(v, t, i, j)
        total = total + (-world_size * cosine.square()).sum()
        _add_matched(dv, dt, 2 * scale * -world_size * cosine, v, t, i, j)
    return total


def _blocks_of_pairs(groups: Tensor | None) -> list:
    """The pairs of same_group, at most len(groups) at a time."""
    return [] if groups is None else list(zip(*(x.split(len(groups)) for x in same_group(groups))))


def _gram(v, t, dv, dt, scale, world_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of cosine^2 over all pairs of v (3 b, d) and t (2 b, d), matched ones too, as <T'T, V'V> (the Gramian trick, arXiv
    1807.07187); dv (3, b, d) and dt (2, b, d) plus `scale` times its gradients."""
    grams = _all_reduce(losses.upcast(torch.stack([v.T @ v, t.T @ t])), world_size)
    total = grams.prod(0).sum()
    if dv is None:
        return total, None, None
    factor = 2 * world_size * scale
    return total, _addmm(dv, v, factor * grams[1]), _addmm(dt, t, factor * grams[0])


def _addmm(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x + a b in a's type, in x's place if that is its type too; of bfloat16 only the sum is rounded."""
    out = x.flatten(0, 1).to(a.dtype)
    return torch.addmm(out, a, b.to(a.dtype), out=out).view_as(x)


def _chunked(v, t, dv, dt, scale, ids, alpha, beta, block) -> Tensor:
    """The sum of weight * cosine^2 over pairs of v (3 b, d) and t (2 b, d) of different ids (b,); adds `scale` times its gradients to
    dv (3, b, d) and dt (2, b, d)."""
    image_ids = ids.repeat(3)
    text_ids = ids.repeat(2)
    total = 0
    for start in range(0, len(t), CHUNK):
        chunk = slice(start, start + CHUNK)
        value, grad_cosine = block(t[chunk], v, text_ids[chunk], image_ids, alpha, beta)
        total = total + value
        if dv is not None:
            dt.flatten(0, 1)[chunk].addcmul_(scale, losses.upcast(grad_cosine @ v))
            dv.flatten(0, 1).addcmul_(scale, losses.upcast(grad_cosine.T @ t[chunk]))
    return total


def _block(t: Tensor, v: Tensor, text_ids: Tensor, image_ids: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """The sum of weight * cosine^2 over prompts t (n, d), ids (n,), and images v (m, d), ids (m,), of different ids, and its gradient
    (n, m) in the cosines, in t's dtype."""
    cosine = losses.upcast(t @ v.T)
    residual = cosine.masked_fill(text_ids[:, None] == image_ids, 0)
    square, grad_cosine = residual.square(), 2 * residual
    if not losses.constant_weight(alpha, beta):
        weight = losses.negative_weight(cosine, alpha, beta)
        grad_cosine = weight * (grad_cosine - alpha * (1 - weight) * cosine.sign() * square)
        square = weight * square
    return square.sum(), grad_cosine.to(t.dtype)
