"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

A program owns a few query rows and walks the key tiles of their joint window. Keys lie on the M side of the dot, rows x heads
on the N side: so wgmma applies for every head count, and the rows share each key tile. Relu, weights and head sum happen in
registers; k_scale multiplies once per logit, after the sum. Nothing is reduced across programs, so results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.classic import fill_outside, fill_strip, fn_to_fnuz, operands, rounded, score
from ..common.device.windows import cover, my_tiles, window
from ..common.hardware import multiprocessors
from ..common.rules import padded_heads, product_options
from .operands import Inputs
from .operation import Problem
from .tunings import classic as tuning


@triton.jit
def load_tile(
    k,
    k_scale,
    base,
    num_keys,
    stride_kn,
    stride_kd,
    stride_scale,
    DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    TO_FNUZ: tl.constexpr,
    WORDS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(keys, scales) of one tile as :func:`score` takes them; those past the last key are the last key's."""
    base64 = base.to(tl.int64)  # k may pass 2 GiB; inside a tile INDEX is wide enough
    near = tl.minimum(tl.arange(0, BLOCK_KEYS), num_keys - 1 - base).to(INDEX)
    keys = k + base64 * stride_kn
    if WORDS:
        keys = keys.to(tl.pointer_type(tl.uint32))
        key = tl.load(keys + (near * (stride_kn // 4))[:, None] + tl.arange(0, DIM // 4)[None, :])
    else:
        key = tl.load(keys + (near * stride_kn)[:, None] + (tl.arange(0, DIM).to(INDEX) * stride_kd)[None, :])
    scale = tl.load(k_scale + base64 * stride_scale + near * stride_scale)
    if TO_FNUZ:
        key = fn_to_fnuz(key)
        scale *= 4.0  # both operands were halved
    return key, scale


@triton.jit
def mqa_logits_kernel(
    q,  # [S, H, D] fp8
    k,  # [N, D] fp8
    k_scale,  # [N] float32
    weights,  # [S, H] float32 or bfloat16
    starts,  # [S] int32
    ends,  # [S] int32
    out,  # [S, N] float32 or bfloat16, or [S, width] if COMPRESSED
    num_queries,
    num_keys,
    width,
    stride_qs,
    stride_qh,
    stride_qd,
    stride_kn,
    stride_kd,
    stride_scale,
    stride_ws,
    stride_wh,
    stride_starts,
    stride_ends,
    stride_os,
    stride_on,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    STRIP: tl.constexpr,
    CLEAN: tl.constexpr,
    COMPRESSED: tl.constexpr,
    TO_FNUZ: tl.constexpr,
    WORDS: tl.constexpr,
    MAXIMUM: tl.constexpr,
    CUTS: tl.constexpr,
    INDEX: tl.constexpr,
):
    # Under a causal window the last rows see the most keys: longest work first.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    split = tl.program_id(1)
    splits = tl.num_programs(1)

    # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
    column = tl.arange(0, ROWS * PADDED_HEADS)
    column_row = tl.minimum(column // PADDED_HEADS, num_queries - 1 - first_row).to(INDEX)
    head = column % PADDED_HEADS
    near_head = tl.minimum(head, HEADS - 1).to(INDEX)
    dim = tl.arange(0, DIM).to(INDEX)
    query_rows = q + first_row.to(tl.int64) * stride_qs + column_row * stride_qs + near_head * stride_qh
    query = tl.load(query_rows[None, :] + (dim * stride_qd)[:, None])  # [DIM, ROWS * PADDED_HEADS]
    weight_rows = weights + first_row.to(tl.int64) * stride_ws + column_row * stride_ws + near_head * stride_wh
    weight = tl.load(weight_rows, mask=head < HEADS, other=0.0).to(tl.float32)
    query, weight = operands(query, weight, TO_FNUZ, MAXIMUM)

    row = first_row + tl.arange(0, ROWS)
    row_exists = row < num_queries
    start, begin, end = window(row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED)
    row_offset = row.to(tl.int64) * stride_os
    if COMPRESSED:
        row_offset -= start.to(tl.int64) * stride_on

    # The group's tiles cover columns [first, last); columns [full_first, full_last) are inside every row's window.
    first, last, full_first, full_last = cover(
        (num_keys, 0, 0, num_keys), first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS,
        COMPRESSED,
    )  # fmt: skip
    first_tile, last_tile, my_first, my_last = my_tiles(first, last, split, splits, BLOCK_KEYS)

    first = first_tile * BLOCK_KEYS
    last = last_tile * BLOCK_KEYS
    if CLEAN:
        strips = fill_outside(
            out, (first, last, full_first, full_last), (my_first, my_last), (split, splits), begin, end, num_keys, row_offset,
            row_exists, stride_on, 1, STRIP, BLOCK_KEYS, INDEX,
        )  # fmt: skip

    place = tl.arange(0, BLOCK_KEYS)
    for tile in range(my_first, my_last):
        base = tile * BLOCK_KEYS
        key, scale = load_tile(
            k, k_scale, base, num_keys, stride_kn, stride_kd, stride_scale, DIM, BLOCK_KEYS, TO_FNUZ, WORDS, INDEX
        )
        logit = score(query, weight, key, ROWS, PADDED_HEADS, MAXIMUM) * scale[:, None]

        position = (base + place)[:, None]
        inside = (position >= begin[None, :]) & (position < end[None, :])
        cell = out + base.to(tl.int64) * stride_on + row_offset[None, :] + (place.to(INDEX) * stride_on)[:, None]
        tl.store(cell, rounded(logit, out, CUTS), mask=inside)
        if CLEAN:
            strip = (tile - my_first) * splits + split
            if strip < strips:
                fill_strip(out, strip, first, last, row_offset, row_exists, stride_on, STRIP, INDEX)


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, dim), num_keys = q.shape, k.shape[0]
    tune, target = tuning(problem), compat.capabilities(problem.device).target
    lanes = max(32, target.warp_size)  # the interpreter has one lane, and no use for short strips
    strip = 8 * lanes * tune.num_warps // tune.rows  # two 16-byte stores a lane, or one of bfloat16
    groups = -(-num_queries // tune.rows)
    tiles = -(-num_keys // tune.block_keys)
    splits = max(1, min(multiprocessors(problem.device) * tune.resident // groups, tiles))

    strides = (*q.stride(), *k.stride(), *k_scale.stride(), *weights.stride(), *starts.stride(), *ends.stride(), *out.stride())
    qs, qh, qd, kn, kd, scale, ws, wh, _, _, _, on = strides
    farthest = max(  # element that a program reaches from its base pointers
        tune.rows * qs + heads * qh + dim * qd,
        tune.rows * ws + heads * wh,
        tune.block_keys * max(kn, scale) + dim * kd,
        max(strip, tune.block_keys) * on,
    )
    products = product_options(problem.device, problem.dtype)
    arguments = (q, k, k_scale, weights, starts, ends, out, num_queries, num_keys, out.shape[1], *strides)
    keywords = {
        "HEADS": heads,
        "DIM": dim,
        "PADDED_HEADS": padded_heads(heads),
        "ROWS": tune.rows,
        "BLOCK_KEYS": tune.block_keys,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "COMPRESSED": compressed,
        "WORDS": products["TO_FNUZ"] and problem.direct_keys,  # keys lie so that four bytes are loaded as one word
        "CUTS": compat.capabilities(problem.device).interpreter,
        "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
        "num_warps": tune.num_warps,
        "num_stages": tune.num_stages,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **products,
        **dict(tune.options),
    }
    return compat.Launch(mqa_logits_kernel, (groups, splits), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
