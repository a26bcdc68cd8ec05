"""Triton kernels that the emulator was not written for: what Triton usually lowers, one per family of instructions."""

import triton
import triton.language as tl


@triton.jit
def softmax(x, out, columns, COLUMNS: tl.constexpr):
    """Rows of at most COLUMNS float32, one program each."""
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    value = tl.load(x + row * columns + column, mask=column < columns, other=float("-inf"))
    value = tl.exp(value - tl.max(value, axis=0))
    tl.store(out + row * columns + column, value / tl.sum(value, axis=0), mask=column < columns)


@triton.jit
def copy_rows(x, out, columns, stride=24, COLUMNS: tl.constexpr = 8):
    """Rows of at most COLUMNS; a launch need not name the last two."""
    column = tl.arange(0, COLUMNS)
    inside = column < columns
    tl.store(
        out + tl.program_id(0) * stride + column, tl.load(x + tl.program_id(0) * stride + column, mask=inside), mask=inside
    )


@triton.jit
def matmul(a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """c[m, n] = a[m, k] @ b[k, n], row major, float32 accumulator, sizes of any kind."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, k, BLOCK_K):
        inside = first + depth < k
        left = tl.load(a + row[:, None] * k + first + depth, mask=(row < m)[:, None] & inside[None, :], other=0.0)
        right = tl.load(b + (first + depth)[:, None] * n + column, mask=inside[:, None] & (column < n)[None, :], other=0.0)
        total = tl.dot(left, right, total)
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(c + row[:, None] * n + column, total.to(c.dtype.element_ty), mask=inside)


@triton.jit
def quantise(x, out, scale, COLUMNS: tl.constexpr):
    """A row of float32 as fp8 and its scale, rounded up to a power of two."""
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    value = tl.load(x + row * COLUMNS + column)
    largest = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-4)
    step = tl.exp2(tl.ceil(tl.log2(largest / 448.0)))
    tl.store(out + row * COLUMNS + column, (value / step).to(out.dtype.element_ty))
    tl.store(scale + row, step)


@triton.jit
def sort_and_scan(x, ordered, running, histogram, COLUMNS: tl.constexpr, BINS: tl.constexpr):
    """Sorted rows, running sums of them, and how often each bin occurs over all rows."""
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    value = tl.load(x + row * COLUMNS + column)
    value = tl.sort(value)
    tl.store(ordered + row * COLUMNS + column, value)
    tl.store(running + row * COLUMNS + column, tl.cumsum(value, axis=0))
    tl.atomic_add(histogram + (value & (BINS - 1)), 1)


@triton.jit
def scaled_matmul(
    a, a_scale, b, b_scale, c,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr,
):  # fmt: skip
    """c[M, N] = (a * scales) @ (b * scales); a scale (e8m0) for 32 values along K, a[M, K] and b[N, K] packed along K."""
    A_BYTES: tl.constexpr = K // 2 if A_FORMAT == "e2m1" else K
    B_BYTES: tl.constexpr = K // 2 if B_FORMAT == "e2m1" else K
    row = tl.arange(0, M)
    column = tl.arange(0, N)
    block = tl.arange(0, K // 32)
    left = tl.load(a + row[:, None] * A_BYTES + tl.arange(0, A_BYTES))
    right = tl.load(b + column[None, :] * B_BYTES + tl.arange(0, B_BYTES)[:, None])
    left_scale = tl.load(a_scale + row[:, None] * (K // 32) + block)
    right_scale = tl.load(b_scale + column[:, None] * (K // 32) + block)
    total = tl.dot_scaled(left, left_scale, A_FORMAT, right, right_scale, B_FORMAT)
    tl.store(c + row[:, None] * N + column, total)


@triton.jit
def layer_norm(x, weight, out, columns, eps, COLUMNS: tl.constexpr):
    """float16 rows, float32 statistics: mean, variance, reciprocal root."""
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    inside = column < columns
    value = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / columns
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / columns
    result = centred * tl.rsqrt(variance + eps) * tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + row * columns + column, result.to(tl.float16), mask=inside)
