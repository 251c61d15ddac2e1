"""One block of kernels.ict's "chunked" on a GPU: cosines, weights, loss and gradient in one kernel, so that the cosines
never reach memory; the two products that follow are cuBLAS's."""

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
    """Are there Triton and a GPU, or its interpreter (TRITON_INTERPRET=1), to run it?"""
    return triton is not None and (torch.cuda.is_available() or triton.knobs.runtime.interpret)


if triton:

    @triton.jit
    def _cosine_gradient(
        t, v, t_ids, v_ids, grad_cosine, partial,
        n, m, d, alpha, beta,
        CONSTANT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """grad_cosine (n, m) = d loss / d cosine for t (n, d), v (m, d), contiguous; partial: one sum of the loss a tile."""
        top, left = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
        row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        i, j = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
        t += top.to(tl.int64) * d  # the start of a tile alone needs 64 bits
        v += left.to(tl.int64) * d
        grad_cosine += top.to(tl.int64) * m + left
        cosine = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, d, DEPTH):
            k = start + tl.arange(0, DEPTH)
            a = tl.load(t + row * d + k[None, :], (i < n)[:, None] & (k < d)[None, :], 0.0)
            b = tl.load(v + column * d + k[:, None], (j < m)[None, :] & (k < d)[:, None], 0.0)
            cosine = tl.dot(a, b, cosine, input_precision=PRECISION)
        inside = (i < n)[:, None] & (j < m)[None, :]
        is_negative = tl.load(t_ids + i, i < n, 0)[:, None] != tl.load(v_ids + j, j < m, 0)[None, :]
        residual = tl.where(inside & is_negative, cosine, 0.0)
        square, gradient = residual * residual, 2 * residual
        if not CONSTANT:
            weight = tl.sigmoid(-alpha * (tl.abs(cosine) - beta))
            sign = tl.where(cosine > 0, 1.0, tl.where(cosine < 0, -1.0, 0.0))
            gradient = weight * (gradient - alpha * (1 - weight) * sign * square)
            square = weight * square
        tl.store(grad_cosine + (row * m + column), gradient.to(grad_cosine.dtype.element_ty), inside)
        tl.store(partial + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(square))


def block(t: Tensor, v: Tensor, text_ids: Tensor, image_ids: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """kernels.ict._block: prompts t (n, d), ids (n,), images v (m, d), ids (m,) -> the loss's sum, float32, and its gradient (n, m)
    in the cosines. float32 products are IEEE's. Deterministic: every tile's sum has its own place. ValueError for float64, and
    without Triton or a GPU."""
    if not available() or not (t.is_cuda or triton.knobs.runtime.interpret):
        raise ValueError('impl="triton" needs Triton and tensors on a GPU; impl="chunked" computes the same')
    if t.dtype == torch.float64:
        raise ValueError('impl="triton" computes in float32; use impl="chunked" for float64')
    t, v = t.contiguous(), v.contiguous()
    (n, d), m = t.shape, len(v)
    grid = triton.cdiv(n, TILE["ROWS"]), triton.cdiv(m, TILE["COLUMNS"])
    grad_cosine = t.new_empty(n, m)
    partial = torch.empty(grid, dtype=torch.float32, device=t.device)
    with torch.cuda.device_of(t):
        _cosine_gradient[grid](
            t, v, text_ids, image_ids, grad_cosine, partial, n, m, d, alpha, beta,
            CONSTANT=losses.constant_weight(alpha, beta), PRECISION="ieee", **TILE, num_warps=8, num_stages=3)  # fmt: skip
    return partial.sum(), grad_cosine
