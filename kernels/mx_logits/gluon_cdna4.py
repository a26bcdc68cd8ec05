"""Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[i, j] = sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

q and k being values times their scales, which the f8f6f4 MFMA multiplies. Most else is as in fp8_mqa_logits' variant, whose
docstring says how keys get to LDS: packet c (16 bytes) of key n lies at c ^ (n * B / 256 mod B / 16), B being its bytes. Words
of scales lie beside them, and a lane reads the bytes of its key and groups.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, cdna4, gl, gluon

from ..common.device.cdna4 import load, load_queries, load_query_scales, row_and_head, rows_together
from ..common.device.cdna4_dense import cover_rows, fill_beside, rows_of_program, score_tiles
from ..common.device.windows import my_tiles
from ..common.rules import in_packets, padded_heads
from ..common.work_order import UNSPECIALISED, order_for
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna4 as tuning


@gluon.jit(do_not_specialize=UNSPECIALISED)
def mx_mqa_logits_kernel(
    q,  # [S, H, Q_BYTES] uint8
    q_scale,  # [S, H] int32
    k,  # [N, KEY_BYTES] uint8
    k_scale,  # [N] int32
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
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    Q_BYTES: gl.constexpr,
    KEY_BYTES: gl.constexpr,
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
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = ROWS * PADDED_HEADS
    TOGETHER: gl.constexpr = rows_together(ROWS, PADDED_HEADS, NUM_WARPS)
    Q_KIND: gl.constexpr = "e2m1" if Q_BYTES < DIM else "e4m3"
    K_KIND: gl.constexpr = "e2m1" if KEY_BYTES < DIM else "e4m3"
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, 64], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    K_TYPE: gl.constexpr = gl.uint8 if KEY_BYTES < DIM else gl.float8e4nv

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
        # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
        query = load_queries(
            q + first_row.to(gl.int64) * stride_qs, num_queries - 1 - first_row, 0, stride_qs, stride_qh, stride_qd,
            HEADS, Q_BYTES, PADDED_HEADS, ROWS, INDEX, PACKETS, operand, TOGETHER,
        )  # fmt: skip
        query_scale = load_query_scales(
            q_scale + first_row.to(gl.int64) * stride_ss, num_queries - 1 - first_row, stride_ss, stride_sh,
            HEADS, PADDED_HEADS, ROWS, DIM // 32, INDEX, operand, TOGETHER,
        )  # fmt: skip
        row, head = row_and_head(gl.arange(0, COLUMNS, gl.SliceLayout(1, mfma)), PADDED_HEADS, TOGETHER)
        row = gl.minimum(row, num_queries - 1 - first_row).to(INDEX)
        near_head = gl.minimum(head, HEADS - 1).to(INDEX)
        weight_offset = row * stride_ws + near_head * stride_wh
        weight = load(weights + first_row.to(gl.int64) * stride_ws, weight_offset).to(gl.float32)
        weight = gl.where(head < HEADS, weight, 0.0)

        score_tiles(
            query, weight, k, k_scale, starts, ends, rows, first_row, (my_first, my_last), strips, num_queries, num_keys, width,
            stride_kn, stride_scale, stride_starts, stride_ends, stride_os, stride_on,
            PADDED_HEADS, ROWS, BLOCK_KEYS, PART_KEYS, STAGES, STRIP, CLEAN, COMPRESSED, INDEX, False, KEY_BYTES, K_TYPE,
            query_scale, Q_KIND, K_KIND,
        )  # fmt: skip


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, q_scale, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, q_bytes), (num_keys, key_bytes) = q.shape, k.shape
    tune = tuning(problem)
    strip = max(8 * 64 * tune.num_warps // tune.rows, 256)  # two stores of 4 cells a lane, and whole waves
    groups = -(-num_queries // tune.rows)
    tiles = -(-num_keys // tune.block_keys)
    order = order_for(problem.device, groups, tiles, tune.resident)

    octets = q.view(torch.uint8 if q_bytes < problem.dim else torch.float8_e4m3fn)
    tensors = (octets, q_scale, k.view(torch.uint8), k_scale, weights, starts, ends, out)
    strides = tuple(step for tensor in tensors for step in tensor.stride())
    qs, qh, qd, ss, sh, _, _, _, ws, wh, _, _, os, on = strides
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        tune.rows * qs + heads * qh + q_bytes * qd,
        4 * (tune.rows * ss + heads * sh),
        weights.itemsize * (tune.rows * ws + heads * wh),
        out.itemsize * (tune.rows * os + max(strip, tune.block_keys, out.shape[1] if compressed else 0) * on),
    )
    arguments = (*tensors, *order[1:], num_queries, num_keys, out.shape[1], *strides)
    keywords = {
        "HEADS": heads,
        "DIM": problem.dim,
        "Q_BYTES": q_bytes,
        "KEY_BYTES": key_bytes,
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
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return compat.Launch(mx_mqa_logits_kernel, (order.programs,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
