"""Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

A program owns a few query rows and walks the key tiles of their joint window, as the classic variant does. Rows x heads lie on
the M side of the MFMA: then the products of a key and a row are registers of two lanes, and every wave has rows of its own.
Key tiles and their scales go from memory straight to LDS, two tiles ahead of the arithmetic, and every wave reads each of
them. Relu, weights and head sum happen in registers; k_scale multiplies once per logit, after the sum.

LDS without bank conflicts: a direct copy writes 16 bytes a lane, lane after lane, so a swizzle can only come from the addresses
that it reads. The copy sees a plain buffer and fetches permuted packets, at offsets that no iteration changes; the arithmetic
sees the same bytes under a swizzled layout. Packet c (16 bytes) of key n lies at c ^ (n * D / 256 mod D / 16): then the 16 keys
that one phase of ds_read_b128 reads lie in all 64 banks (phases: HipKittens, arXiv 2511.08083, table 5). This needs no layout
that only later Tritons can copy to, and no lane exchanges addresses with another.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, cdna4, gl, gluon

from ..common.device.cdna4 import load_group
from ..common.device.cdna4_dense import cover_rows, fill_beside, rows_of_program, score_tiles
from ..common.device.cdna4_packed import RELU_RANGE, clamp_keeps_nan
from ..common.device.windows import my_tiles
from ..common.rules import in_packets, packs_relu, padded_heads
from ..common.work_order import UNSPECIALISED, order_for
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna4 as tuning


@gluon.jit(do_not_specialize=UNSPECIALISED)
def mqa_logits_kernel(
    q,  # [S, H, D] fp8
    k,  # [N, D] fp8
    k_scale,  # [N] float32
    weights,  # [S, H] float32 or bfloat16
    starts,  # [S] int32
    ends,  # [S] int32
    out,  # [S, N] float32 or bfloat16, or [S, width] if COMPRESSED
    splits,  # of a group's keys; this and the next three: work_order.Order
    xcds,
    classes,
    cells,
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
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_KEYS: gl.constexpr,
    PART_KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    STRIP: gl.constexpr,
    CLEAN: gl.constexpr,
    COMPRESSED: gl.constexpr,
    INDEX: gl.constexpr,
    PACKETS: gl.constexpr,
    PACKED_RELU: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = ROWS * PADDED_HEADS
    INSTRUCTION_DIM: gl.constexpr = 64 if DIM >= 64 else 16  # dims of the f8f6f4 instruction, or of the older fp8 one
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, INSTRUCTION_DIM], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )

    first_row, split = rows_of_program((xcds, classes, cells), num_queries, ROWS)
    covered = cover_rows(first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS, COMPRESSED)
    first_tile, last_tile, my_first, my_last = my_tiles(covered[0], covered[1], split, splits, BLOCK_KEYS)
    rows = out + first_row.to(gl.int64) * stride_os
    strips = ()
    if CLEAN:
        strips = fill_beside(
            rows, first_row, (split, splits), covered, (first_tile, last_tile), (my_first, my_last), starts, ends,
            num_queries, num_keys, width, stride_starts, stride_ends, stride_os, stride_on,
            1, ROWS, STRIP, BLOCK_KEYS, COMPRESSED, INDEX,
        )  # fmt: skip
    if my_first < my_last:
        query, weight = load_group(
            q, weights, first_row, num_queries, stride_qs, stride_qh, stride_qd, stride_ws, stride_wh,
            HEADS, DIM, PADDED_HEADS, ROWS, INDEX, PACKETS, mfma,
        )  # fmt: skip
        if PACKED_RELU:
            clamp_keeps_nan()
            weight *= RELU_RANGE
        score_tiles(
            query, weight, k, k_scale, starts, ends, rows, first_row, (my_first, my_last), strips, num_queries, num_keys, width,
            stride_kn, stride_scale, stride_starts, stride_ends, stride_os, stride_on,
            PADDED_HEADS, ROWS, BLOCK_KEYS, PART_KEYS, STAGES, STRIP, CLEAN, COMPRESSED, INDEX, PACKED_RELU, DIM, gl.float8e4nv,
        )  # fmt: skip


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, dim), num_keys = q.shape, k.shape[0]
    tune = tuning(problem)
    strip = max(8 * 64 * tune.num_warps // tune.rows, 256)  # two stores of 4 cells a lane, and whole waves
    groups = -(-num_queries // tune.rows)
    tiles = -(-num_keys // tune.block_keys)
    order = order_for(problem.device, groups, tiles, tune.resident)

    strides = (*q.stride(), *k.stride(), *k_scale.stride(), *weights.stride(), *starts.stride(), *ends.stride(), *out.stride())
    qs, qh, qd, _, _, _, ws, wh, _, _, os, on = strides
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        tune.rows * qs + heads * qh + dim * qd,
        weights.itemsize * (tune.rows * ws + heads * wh),
        out.itemsize * (tune.rows * os + max(strip, tune.block_keys, out.shape[1] if compressed else 0) * on),
    )
    arguments = (q, k, k_scale, weights, starts, ends, out, *order[1:], num_queries, num_keys, out.shape[1], *strides)
    keywords = {
        "HEADS": heads,
        "DIM": dim,
        "PADDED_HEADS": padded_heads(heads),
        "ROWS": tune.rows,
        "BLOCK_KEYS": tune.block_keys,
        "PART_KEYS": tune.part_keys,
        "STAGES": tune.num_stages,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "COMPRESSED": compressed,
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        "PACKED_RELU": packs_relu(problem.device, problem.dtype, dim),
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return compat.Launch(mqa_logits_kernel, (order.programs,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
