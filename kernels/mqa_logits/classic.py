"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

A program owns a few query rows and walks the key tiles of their joint window. Keys lie on the M side of the dot, rows x heads
on the N side: so wgmma applies for every head count, and the rows share each key tile. Relu, weights and head sum happen in
registers; k_scale multiplies once per logit, after the sum. Nothing is reduced across programs, so results repeat bit for bit.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.classic import fill, fill_edge, fill_strip, fn_to_fnuz, relu
from ..common.device.windows import window
from ..common.hardware import multiprocessors
from ..common.rules import padded_heads
from .operands import Inputs
from .operation import Problem


class Tuning(NamedTuple):
    """How the work is cut, and what is asked of the compiler."""

    block_keys: int  # keys in a tile, the M side of the dot
    rows: int  # query rows of a program; rows * padded heads is the N side
    num_warps: int
    num_stages: int
    resident: int  # programs that one SM or CU holds; few query rows split their keys until this many run on each
    options: tuple[tuple[str, Any], ...] = ()  # options that one backend alone knows


# (arch, clean_logits) -> block_keys, columns on the N side, num_warps, num_stages, resident, options; for every H and D alike.
TUNINGS: dict[tuple[str, bool], tuple[Any, ...]] = {
    # Measured on an H100 80GB with Triton 3.6.0, D = 128, causal and packed windows. 128-key tiles are 8-20 % slower, 8 warps
    # 5-40 %, one row of 64 heads 10 %; two stages 20 %, a fourth gains nothing. At 128 registers four programs share an SM.
    ("sm90", False): (64, 128, 4, 3, 3, ()),
    # The fill needs up to 153 registers; at 128 nothing spills, a fourth program fits, and it is 1-7 % faster. Twice the
    # columns (255 registers) halve the key traffic: 4 % faster on 2048 x 8192 and with 32 heads on 4096 x 4096, 8 % slower
    # with 32 heads on 8192 x 8192, even elsewhere.
    ("sm90", True): (64, 128, 4, 3, 3, (("maxnreg", 128),)),
    # Compiled for and emulated, not run; chosen by static counts. 8 waves of 32x32 MFMA: 89 vector instructions per 32 keys of
    # a row of 64 heads on 3.6.0, 87 on 3.9.0, about twice as many at 16x16; no spills; larger accumulators spill from 3.8.
    ("gfx950", False): (128, 128, 8, 2, 2, ()),
    # Compiled for, not run. As gfx950; at most 20 of its 64 KiB of LDS.
    ("gfx942", False): (128, 128, 8, 2, 2, ()),
    # Compiled for (sm89, sm100, sm120), not run: small enough for 99 KiB of shared memory.
    ("", False): (64, 128, 4, 3, 2, ()),
}


@cache
def tuning(problem: Problem) -> Tuning:
    """The table's row for a problem's target and output mode, cut to its head count."""
    target, clean_logits = compat.capabilities(problem.device).target, problem.clean_logits
    keys = ((target.label, clean_logits), (target.label, False), ("", False))
    block_keys, columns, *rest = next(TUNINGS[key] for key in keys if key in TUNINGS)
    return Tuning(block_keys, columns // padded_heads(problem.heads), *rest)


@triton.jit
def mqa_logits_kernel(
    q,  # [S, H, D] fp8
    k,  # [N, D] fp8
    k_scale,  # [N] float32
    weights,  # [S, H] float32
    starts,  # [S] int32
    ends,  # [S] int32
    out,  # [S, N] float32, or [S, width] if COMPRESSED
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
    MAXIMUM: tl.constexpr,
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
    weight = tl.load(weight_rows, mask=head < HEADS, other=0.0)
    if TO_FNUZ:
        query = fn_to_fnuz(query)

    row = first_row + tl.arange(0, ROWS)
    row_exists = row < num_queries
    start, begin, end = window(row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED)
    row_offset = row.to(tl.int64) * stride_os
    if COMPRESSED:
        row_offset -= start.to(tl.int64) * stride_on

    # The group's tiles cover columns [first, last). Read row by row into scalars: a reduction over `begin` would leave AMD's
    # compiler unsure that all lanes agree, and it would loop over lanes round every buffer access.
    first = num_keys
    last = 0
    full_first = 0  # columns [full_first, full_last) are inside every row's window
    full_last = num_keys
    for r in tl.static_range(ROWS):
        _, row_begin, row_end = window(
            first_row + r, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
        )
        first = tl.where(row_begin < row_end, tl.minimum(first, row_begin), first)
        last = tl.where(row_begin < row_end, tl.maximum(last, row_end), last)
        full_first = tl.maximum(full_first, row_begin)
        full_last = tl.where(first_row + r < num_queries, tl.minimum(full_last, row_end), full_last)
    first_tile = first // BLOCK_KEYS  # tiles start at multiples of BLOCK_KEYS, so that stores are aligned
    last_tile = tl.maximum(tl.cdiv(last, BLOCK_KEYS), first_tile)
    share = tl.cdiv(last_tile - first_tile, splits)
    my_first = first_tile + split * share
    my_last = tl.maximum(tl.minimum(my_first + share, last_tile), my_first)

    # Cells outside the tiles become -inf strip by strip: one strip with each tile below, so that the stores drain behind the
    # arithmetic and DRAM never stalls it; first of all the strips that outnumber the tiles, and the ends too short for a strip.
    # The last tile may reach past the keys: num_keys - last is then negative, and truncation leaves no strip and no end.
    first = first_tile * BLOCK_KEYS
    last = last_tile * BLOCK_KEYS
    if CLEAN:
        strips = first // STRIP + (num_keys - last) // STRIP
        for strip in range((my_last - my_first) * splits + split, strips, splits):
            fill_strip(out, strip, first, last, row_offset, row_exists, stride_on, STRIP, INDEX)
        left_rest = tl.where(split == 0, first % STRIP, 0)
        right_rest = tl.where(split == 0, (num_keys - last) % STRIP, 0)
        fill(out, first - left_rest, left_rest, row_offset, row_exists, stride_on, STRIP, INDEX)
        fill(out, num_keys - right_rest, right_rest, row_offset, row_exists, stride_on, STRIP, INDEX)
        # Inside the tiles only those at the edge of a row's window have such cells: kept out of the loop below, whose every
        # instruction counts. An empty row makes all tiles edges; a tile that is both edges is filled twice with the same.
        left_last = tl.minimum(tl.cdiv(full_first, BLOCK_KEYS), my_last)
        right_first = tl.maximum(tl.maximum(full_last, 0) // BLOCK_KEYS, my_first)
        for tile in range(my_first, left_last):
            base = tile * BLOCK_KEYS
            fill_edge(out, base, begin, end, num_keys, row_offset, row_exists, stride_on, BLOCK_KEYS, INDEX)
        for tile in range(right_first, my_last):
            base = tile * BLOCK_KEYS
            fill_edge(out, base, begin, end, num_keys, row_offset, row_exists, stride_on, BLOCK_KEYS, INDEX)

    lane = tl.arange(0, BLOCK_KEYS)
    for tile in range(my_first, my_last):
        base = tile * BLOCK_KEYS
        base64 = base.to(tl.int64)  # k and out may pass 2 GiB; inside a tile INDEX is wide enough
        near = tl.minimum(lane, num_keys - 1 - base).to(INDEX)
        key = tl.load(k + base64 * stride_kn + (near * stride_kn)[:, None] + (dim * stride_kd)[None, :])
        scale = tl.load(k_scale + base64 * stride_scale + near * stride_scale)
        if TO_FNUZ:
            key = fn_to_fnuz(key)
            scale *= 4.0  # both operands were halved
        score = relu(tl.dot(key, query), MAXIMUM) * weight[None, :]
        logit = tl.sum(tl.reshape(score, (BLOCK_KEYS, ROWS, PADDED_HEADS)), axis=2) * scale[:, None]

        position = (base + lane)[:, None]
        inside = (position >= begin[None, :]) & (position < end[None, :])
        cell = out + base64 * stride_on + row_offset[None, :] + (lane.to(INDEX) * stride_on)[:, None]
        tl.store(cell, logit, mask=inside)
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
    strip = 8 * lanes * tune.num_warps // tune.rows  # two 16-byte stores a lane
    groups = -(-num_queries // tune.rows)
    tiles = -(-num_keys // tune.block_keys)
    splits = max(1, min(multiprocessors(out.device) * tune.resident // groups, tiles))

    strides = (*q.stride(), *k.stride(), *k_scale.stride(), *weights.stride(), *starts.stride(), *ends.stride(), *out.stride())
    qs, qh, qd, kn, kd, scale, ws, wh, _, _, _, on = strides
    farthest = max(  # element that a program reaches from its base pointers
        tune.rows * qs + heads * qh + dim * qd,
        tune.rows * ws + heads * wh,
        tune.block_keys * max(kn, scale) + dim * kd,
        max(strip, tune.block_keys) * on,
    )
    gfx942 = target.label == "gfx942"
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
        "TO_FNUZ": gfx942 and k.dtype == torch.float8_e4m3fn,  # its MFMA reads e4m3fnuz
        "MAXIMUM": not gfx942,
        "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
        "num_warps": tune.num_warps,
        "num_stages": tune.num_stages,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **dict(tune.options),
    }
    return compat.Launch(mqa_logits_kernel, (groups, splits), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
