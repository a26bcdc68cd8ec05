"""Scores of blocks and masked logits in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.number_formats import widened
from ..common.device.windows import window
from .operands import Masked, Scored
from .operation import Problem

BLOCKS = 256  # that a program looks at: 2048 columns of blocks of 8. Chosen, never timed
LISTED = 512  # candidates that are counted at a time
WARPS = 4


@triton.jit
def window_of(row, starts, ends, num_rows, num_columns, window_rows, stride_starts, stride_ends, STARTS: tl.constexpr):
    """(begin, end) of the columns that a row sees."""
    _, begin, end = window(
        row // window_rows,
        starts,
        ends,
        num_rows // window_rows,
        num_columns,
        num_columns,
        stride_starts,
        stride_ends,
        False,
    )
    if not STARTS:
        begin = tl.minimum(begin, 0)
    return begin, end


@triton.jit
def block_scores_kernel(
    logits,  # [num_rows, num_columns] float32 or bfloat16
    starts,  # [num_rows / window_rows] int32
    ends,
    scores,  # [num_rows, blocks] float32
    counts,  # [num_rows] int32
    num_rows,
    num_columns,
    window_rows,
    stride_ls,
    stride_ln,
    stride_starts,
    stride_ends,
    stride_ss,
    STARTS: tl.constexpr,
    CANDIDATE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0)
    begin, end = window_of(row, starts, ends, num_rows, num_columns, window_rows, stride_starts, stride_ends, STARTS)
    count = tl.cdiv(tl.maximum(tl.maximum(end, 0) - begin, 0), CANDIDATE)
    if tl.program_id(1) == 0:
        tl.store(counts + row, count)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    local = block[:, None] * CANDIDATE + tl.arange(0, CANDIDATE)[None, :]
    inside = (block < count)[:, None] & (local < end - begin)
    cell = logits + row.to(tl.int64) * stride_ls + (begin + local).to(tl.int64) * stride_ln
    value = widened(tl.load(cell, mask=inside, other=float("-inf")))
    value = tl.where(value == value, value, float("inf"))
    best = tl.where(block == count - 1, float("inf"), tl.max(value, axis=1))
    tl.store(scores + row.to(tl.int64) * stride_ss + block, best, mask=block < count)


@triton.jit
def candidate_mask_kernel(
    logits,  # [num_rows, num_columns] float32 or bfloat16
    starts,  # [num_rows / window_rows] int32
    ends,
    candidates,  # [num_rows / list_rows, listed] int32
    num_rows,
    num_columns,
    window_rows,
    list_rows,
    listed,
    stride_ls,
    stride_ln,
    stride_starts,
    stride_ends,
    stride_cs,
    stride_cc,
    STARTS: tl.constexpr,
    CANDIDATE: tl.constexpr,
    BLOCKS: tl.constexpr,
    LISTED: tl.constexpr,
):
    row = tl.program_id(0)
    begin, end = window_of(row, starts, ends, num_rows, num_columns, window_rows, stride_starts, stride_ends, STARTS)
    cells = logits + row.to(tl.int64) * stride_ls
    # How often each block of this program is listed; the bins of the second half stand for all other blocks.
    first = tl.program_id(1) * BLOCKS
    times = tl.zeros([2 * BLOCKS], tl.int32)
    lines = candidates + (row // list_rows).to(tl.int64) * stride_cs
    for entry in range(0, listed, LISTED):
        place = entry + tl.arange(0, LISTED)
        block = tl.load(lines + place.to(tl.int64) * stride_cc, mask=place < listed, other=-1)
        here = (block >= first) & (block - first < BLOCKS)
        times += tl.histogram(tl.where(here, block - first, BLOCKS), 2 * BLOCKS)
    near_block = tl.arange(0, 2 * BLOCKS)
    local = (first + near_block)[:, None] * CANDIDATE + tl.arange(0, CANDIDATE)[None, :]
    column = begin.to(tl.int64) + local
    unlisted = ((near_block < BLOCKS) & (times == 0))[:, None] & (column < end)
    fill = tl.full([2 * BLOCKS, CANDIDATE], float("-inf"), tl.float32).to(logits.dtype.element_ty)
    tl.store(cells + column * stride_ln, fill, mask=unlisted)
    # And the same share of the columns outside the window.
    place = (first * CANDIDATE).to(tl.int64) + tl.arange(0, BLOCKS * CANDIDATE)
    outside = ((place < begin) | (place >= end)) & (place < num_columns)
    empty = tl.full([BLOCKS * CANDIDATE], float("-inf"), tl.float32).to(logits.dtype.element_ty)
    tl.store(cells + place * stride_ln, empty, mask=outside)


def _prepare_scoring(
    problem: Problem, inputs: Scored, scores: torch.Tensor, counts: torch.Tensor, *, candidate_block: int
) -> compat.Launch:
    logits, starts, ends = inputs
    rows, columns = logits.shape
    windows = (ends, 0) if starts is None else (starts, starts.stride(0))
    grid = (rows, max(1, triton.cdiv(scores.shape[1], BLOCKS)))
    arguments = (
        *(logits, windows[0], ends, scores, counts, rows, columns, rows // len(ends)),
        *(*logits.stride(), windows[1], ends.stride(0), scores.stride(0)),
    )
    keywords = {"STARTS": starts is not None, "CANDIDATE": candidate_block, "BLOCKS": BLOCKS, "num_warps": WARPS}
    return compat.Launch(block_scores_kernel, grid, arguments, keywords)


def _prepare_masking(problem: Problem, inputs: Masked, *, candidate_block: int) -> compat.Launch:
    logits, starts, ends, candidates = inputs
    (rows, columns), listed = logits.shape, candidates.shape[1]
    windows = (ends, 0) if starts is None else (starts, starts.stride(0))
    grid = (rows, triton.cdiv(triton.cdiv(columns, candidate_block), BLOCKS))
    arguments = (
        *(logits, windows[0], ends, candidates, rows, columns, rows // len(ends), rows // len(candidates), listed),
        *(*logits.stride(), windows[1], ends.stride(0), *candidates.stride()),
    )
    keywords = {
        "STARTS": starts is not None,
        "CANDIDATE": candidate_block,
        "BLOCKS": BLOCKS,
        "LISTED": LISTED,
        "num_warps": WARPS,
    }
    return compat.Launch(candidate_mask_kernel, grid, arguments, keywords)


scoring = compat.Kernel(_prepare_scoring)
masking = compat.Kernel(_prepare_masking)
