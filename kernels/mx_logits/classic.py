"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    logits[i, j] = sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

q and k being values times their scales. A program owns a few query rows and walks the key tiles of their joint window, as
fp8_mqa_logits does. Where the target has block-scaled matrix instructions keys stay in their format; elsewhere a tile is made
bfloat16 in registers, in which products of values and scales are exact, and so is the query, once for a group of rows.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.classic import fill_outside, fill_strip, head_sums, operands, rounded
from ..common.device.mx import mx_products, mx_query, scale_octets
from ..common.device.windows import cover, my_tiles, window
from ..common.hardware import multiprocessors
from ..common.rules import mx_product_options, padded_heads
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
    KEY_BYTES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(bytes, words of scales) of the keys of one tile; those past the last key are the last key's."""
    base64 = base.to(tl.int64)  # k may pass 2 GiB; inside a tile INDEX is wide enough
    near = tl.minimum(tl.arange(0, BLOCK_KEYS), num_keys - 1 - base).to(INDEX)
    byte = tl.arange(0, KEY_BYTES).to(INDEX)
    key = tl.load(k + base64 * stride_kn + (near * stride_kn)[:, None] + (byte * stride_kd)[None, :])
    return key, tl.load(k_scale + base64 * stride_scale + near * stride_scale)


@triton.jit
def mx_mqa_logits_kernel(
    q,  # [S, H, D or D / 2] uint8
    q_scale,  # [S, H] int32
    k,  # [N, D or D / 2] uint8
    k_scale,  # [N] int32
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
    stride_ss,
    stride_sh,
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
    Q_BYTES: tl.constexpr,
    KEY_BYTES: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    STRIP: tl.constexpr,
    CLEAN: tl.constexpr,
    COMPRESSED: tl.constexpr,
    SCALED: tl.constexpr,
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
    byte = tl.arange(0, Q_BYTES).to(INDEX)
    query_rows = q + first_row.to(tl.int64) * stride_qs + column_row * stride_qs + near_head * stride_qh
    octet = tl.load(query_rows[:, None] + (byte * stride_qd)[None, :])  # [ROWS * PADDED_HEADS, Q_BYTES]
    query_words = tl.load(q_scale + first_row.to(tl.int64) * stride_ss + column_row * stride_ss + near_head * stride_sh)
    weight_rows = weights + first_row.to(tl.int64) * stride_ws + column_row * stride_ws + near_head * stride_wh
    weight = tl.load(weight_rows, mask=head < HEADS, other=0.0).to(tl.float32)
    query, more = mx_query(octet, scale_octets(query_words, DIM), DIM, KEY_BYTES < DIM, SCALED, CUTS)
    query, weight = operands(query, weight, False, MAXIMUM)

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
        key, key_words = load_tile(k, k_scale, base, num_keys, stride_kn, stride_kd, stride_scale, KEY_BYTES, BLOCK_KEYS, INDEX)
        products = mx_products(key, scale_octets(key_words, DIM), query, more, DIM, SCALED, CUTS)
        logit = head_sums(products, weight, ROWS, PADDED_HEADS, MAXIMUM)

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
    q, q_scale, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, q_bytes), (num_keys, key_bytes) = q.shape, k.shape
    tune, target = tuning(problem), compat.capabilities(problem.device).target
    lanes = max(32, target.warp_size)  # the interpreter has one lane, and no use for short strips
    strip = 8 * lanes * tune.num_warps // tune.rows  # two 16-byte stores a lane, or one of bfloat16
    groups = -(-num_queries // tune.rows)
    tiles = -(-num_keys // tune.block_keys)
    splits = max(1, min(multiprocessors(problem.device) * tune.resident // groups, tiles))

    tensors = (q.view(torch.uint8), q_scale, k.view(torch.uint8), k_scale, weights, starts, ends, out)
    strides = tuple(step for tensor in tensors for step in tensor.stride())
    qs, qh, qd, ss, sh, kn, kd, scale, ws, wh, _, _, _, on = strides
    farthest = max(  # element that a program reaches from its base pointers
        tune.rows * qs + heads * qh + q_bytes * qd,
        tune.rows * max(ss, ws) + heads * max(sh, wh),
        tune.block_keys * max(kn, scale) + key_bytes * kd,
        max(strip, tune.block_keys) * on,
    )
    arguments = (*tensors, num_queries, num_keys, out.shape[1], *strides)
    keywords = {
        "HEADS": heads,
        "DIM": problem.dim,
        "Q_BYTES": q_bytes,
        "KEY_BYTES": key_bytes,
        "PADDED_HEADS": padded_heads(heads),
        "ROWS": tune.rows,
        "BLOCK_KEYS": tune.block_keys,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "COMPRESSED": compressed,
        "CUTS": compat.capabilities(problem.device).interpreter,
        "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
        "num_warps": tune.num_warps,
        "num_stages": tune.num_stages,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **mx_product_options(problem.device, problem.dim),
        **dict(tune.options),
    }
    return compat.Launch(mx_mqa_logits_kernel, (groups, splits), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
