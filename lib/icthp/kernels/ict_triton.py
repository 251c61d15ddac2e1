"""One block of kernels.ict's "chunked" on a GPU: cosines, weights, loss and gradient in one kernel, so that the cosines never
reach memory; the two products that follow are cuBLAS's."""

import torch
from torch import Tensor

from icthp import losses

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton has no wheel for this platform
    triton = None
TILE = {"ROWS": 128, "COLUMNS": 64, "DEPTH": 64}  # with 8 warps 153 registers; twice the columns spill


def available() -> bool:
    """Is there a Triton, and a GPU or its interpreter (TRITON_INTERPRET=1) to run it?"""
    return triton is not None and (torch.cuda.is_available() or triton.knobs.runtime.interpret)


if triton:

    @triton.jit
    def _cosine_gradient(
        t, v, t_ids, v_ids, t_weights, v_weights, slope, partial,
        n, m, d, alpha, beta, target,
        CONSTANT: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """slope (n, m) = d loss / d cosine for t (n, d), v (m, d), contiguous; partial: one sum of the loss a tile."""
        top, left = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
        row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        i, j = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
        t += top.to(tl.int64) * d  # only where a tile begins needs 64 bits
        v += left.to(tl.int64) * d
        slope += top.to(tl.int64) * m + left
        cosine = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, d, DEPTH):
            k = start + tl.arange(0, DEPTH)
            a = tl.load(t + row * d + k[None, :], (i < n)[:, None] & (k < d)[None, :], 0.0)
            b = tl.load(v + column * d + k[:, None], (j < m)[None, :] & (k < d)[:, None], 0.0)
            cosine = tl.dot(a, b, cosine, input_precision=PRECISION)
        there = (i < n)[:, None] & (j < m)[None, :]
        other = tl.load(t_ids + i, i < n, 0)[:, None] != tl.load(v_ids + j, j < m, 0)[None, :]
        away = tl.where(there & other, cosine - target, 0.0)
        square, gradient = away * away, 2 * away
        if not CONSTANT:
            weight = tl.sigmoid(-alpha * (tl.abs(cosine) - beta))
            sign = tl.where(cosine > 0, 1.0, tl.where(cosine < 0, -1.0, 0.0))
            gradient = weight * (gradient - alpha * (1 - weight) * sign * square)
            square = weight * square
        if WEIGHTED:
            both = tl.load(t_weights + i, i < n, 0.0)[:, None] * tl.load(v_weights + j, j < m, 0.0)[None, :]
            square, gradient = square * both, gradient * both
        tl.store(slope + (row * m + column), gradient.to(slope.dtype.element_ty), there)
        tl.store(partial + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(square))


def block(t: Tensor, v: Tensor, ids, weights, alpha: float, beta: float, target: float) -> tuple[Tensor, Tensor]:
    """kernels.ict._block: prompts t (n, d), pictures v (m, d) -> the loss's sum, float32, and its gradient (n, m) in the cosines.
    float32 products are IEEE's, float64 is not supported. Deterministic: every tile's sum has its own place."""
    if not available() or not (t.is_cuda or triton.knobs.runtime.interpret):
        raise ValueError('impl="triton" needs Triton and tensors on a GPU; impl="chunked" computes the same')
    if t.dtype == torch.float64:
        raise ValueError('impl="triton" computes in float32; use impl="chunked" for float64')
    t, v = t.contiguous(), v.contiguous()
    (n, d), m = t.shape, len(v)
    grid = triton.cdiv(n, TILE["ROWS"]), triton.cdiv(m, TILE["COLUMNS"])
    slope, partial = t.new_empty(n, m), torch.empty(grid, dtype=torch.float32, device=t.device)
    weighted = weights[0] is not None
    with torch.cuda.device_of(t):
        _cosine_gradient[grid](
            t, v, *ids, *(weights if weighted else (t, v)), slope, partial, n, m, d, alpha, beta, target,
            CONSTANT=losses.constant_weight(alpha, beta), WEIGHTED=weighted, PRECISION="ieee", **TILE,
            num_warps=8, num_stages=3)  # fmt: skip
    return partial.sum(), slope
