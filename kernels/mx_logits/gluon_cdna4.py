"""Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[i, j] = sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

q and k being values times their scales, which the f8f6f4 MFMA multiplies. Most else is as in fp8_mqa_logits' variant, whose
docstring says how keys get to LDS: packet c (16 bytes) of key n lies at c ^ (n * B / 256 mod B / 16), B being its bytes. Words
of scales lie beside them, and a lane reads the bytes of its key and groups. Unlike there, the place of a tile in LDS is a
number that the loop carries.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, async_copy, cdna4, gl, gluon, reinterpret

from ..common.device.cdna4 import fill_outside, fill_strip, load, load_queries, logit_layout, score, store
from ..common.device.windows import cover, my_tiles, window
from ..common.hardware import multiprocessors
from ..common.rules import in_packets, padded_heads
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna4 as tuning


@gluon.jit
def copy_tile(keys, scales, slot, tile, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS: gl.constexpr):
    """Start the copy of one key tile and its scales to LDS."""
    # The last tile moves back to end with the keys: what it shares with the one before is computed twice, alike.
    base = gl.minimum(tile * BLOCK_KEYS, gl.maximum(num_keys - BLOCK_KEYS, 0)).to(gl.int64)
    async_copy.buffer_load_to_shared(keys.index(slot), k + base * stride_kn, packet)
    async_copy.buffer_load_to_shared(scales.index(slot), k_scale + base * stride_scale, near)
    async_copy.commit_group()


@gluon.jit
def mx_mqa_logits_kernel(
    q,  # [S, H, Q_BYTES] uint8
    q_scale,  # [S, H] int32
    k,  # [N, KEY_BYTES] uint8
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
    Q_KIND: gl.constexpr = "e2m1" if Q_BYTES < DIM else "e4m3"
    K_KIND: gl.constexpr = "e2m1" if KEY_BYTES < DIM else "e4m3"
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, 64], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    of_queries: gl.constexpr = cdna4.get_mfma_scale_layout(operand, [COLUMNS, DIM // 32])
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, PART_KEYS, NUM_WARPS))
    filled: gl.constexpr = gl.BlockedLayout([1, 4], [1, 64], [NUM_WARPS, 1], [1, 0])
    copied: gl.constexpr = gl.BlockedLayout([1, 16], [1024 // KEY_BYTES, KEY_BYTES // 16], [NUM_WARPS, 1], [1, 0])
    scales_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // KEY_BYTES, KEY_BYTES // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    # Under a causal window the last rows see the most keys: longest work first.
    first_row = (gl.num_programs(0) - 1 - gl.program_id(0)) * ROWS
    split = gl.program_id(1)
    splits = gl.num_programs(1)

    # The group's tiles cover columns [first, last). Four rows at a time: 16 would not fit into the scalar registers.
    first = num_keys
    last = 0
    full_first = 0  # columns [full_first, full_last) are inside every row's window
    full_last = num_keys
    for some_row in range(first_row, first_row + ROWS, 4):
        first, last, full_first, full_last = cover(
            (first, last, full_first, full_last), some_row, starts, ends, num_queries, num_keys, width, stride_starts,
            stride_ends, 4, COMPRESSED,
        )  # fmt: skip
    first_tile, last_tile, my_first, my_last = my_tiles(first, last, split, splits, BLOCK_KEYS)

    rows = out + first_row.to(gl.int64) * stride_os
    if CLEAN:
        first = first_tile * BLOCK_KEYS
        last = last_tile * BLOCK_KEYS
        fill_row = gl.arange(0, ROWS, gl.SliceLayout(1, filled))
        fill_wanted = first_row + fill_row < num_queries
        fill_offset = fill_row.to(INDEX) * stride_os
        _, fill_begin, fill_end = window(
            first_row + fill_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
        )
        strips = fill_outside(
            rows, (first, last, full_first, full_last), (my_first, my_last), (split, splits), fill_begin, fill_end, num_keys,
            fill_offset, fill_wanted, stride_on, 1, STRIP, BLOCK_KEYS, INDEX, filled,
        )  # fmt: skip

    if my_first < my_last:
        # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
        query = load_queries(
            q + first_row.to(gl.int64) * stride_qs, num_queries - 1 - first_row, 0, stride_qs, stride_qh, stride_qd,
            HEADS, Q_BYTES, PADDED_HEADS, ROWS, INDEX, PACKETS, operand,
        )  # fmt: skip
        column = gl.arange(0, COLUMNS, gl.SliceLayout(1, of_queries))
        column_row = gl.minimum(column // PADDED_HEADS, num_queries - 1 - first_row).to(INDEX)
        near_head = gl.minimum(column % PADDED_HEADS, HEADS - 1).to(INDEX)
        word = load(q_scale + first_row.to(gl.int64) * stride_ss, column_row * stride_ss + near_head * stride_sh)
        group = gl.arange(0, DIM // 32, gl.SliceLayout(0, of_queries))
        query_scale = (word[:, None] >> 8 * group[None, :]).to(gl.uint8)
        column = gl.arange(0, COLUMNS, gl.SliceLayout(1, mfma))
        column_row = gl.minimum(column // PADDED_HEADS, num_queries - 1 - first_row).to(INDEX)
        head = column % PADDED_HEADS
        near_head = gl.minimum(head, HEADS - 1).to(INDEX)
        weight_offset = column_row * stride_ws + near_head * stride_wh
        weight = load(weights + first_row.to(gl.int64) * stride_ws, weight_offset).to(gl.float32)
        weight = gl.where(head < HEADS, weight, 0.0)

        place = gl.arange(0, PART_KEYS, gl.SliceLayout(0, logits))
        row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
        start, begin, end = window(
            first_row + row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
        )
        row_offset = row.to(INDEX) * stride_os
        if COMPRESSED:
            row_offset -= start.to(INDEX) * stride_on
        cell = row_offset[:, None] + (place.to(INDEX) * stride_on)[None, :]
        begin = begin[:, None] - place[None, :]  # of each key of a part, so that one scalar is compared with both
        end = gl.maximum(end, 0)[:, None] - place[None, :]

        near = gl.arange(0, 64 * NUM_WARPS, scales_copied) % BLOCK_KEYS  # a scale for every lane: no lane is masked
        near = gl.minimum(near, num_keys - 1) * stride_scale
        key = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(1, copied))
        byte = gl.arange(0, KEY_BYTES, gl.SliceLayout(0, copied))
        packet = (byte[None, :] // 16) ^ (key * KEY_BYTES // 256 % (KEY_BYTES // 16))[:, None]
        packet = gl.minimum(key, num_keys - 1)[:, None] * stride_kn + packet * 16 + (byte % 16)[None, :]

        K_TYPE: gl.constexpr = gl.uint8 if KEY_BYTES < DIM else gl.float8e4nv
        keys = gl.allocate_shared_memory(gl.uint8, [STAGES, BLOCK_KEYS, KEY_BYTES], plain)
        keys_read = reinterpret(keys, K_TYPE, [STAGES * BLOCK_KEYS // 32, 32, KEY_BYTES], swizzled)
        scales = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)
        scales_read = reinterpret(scales, gl.uint8, [STAGES * 2 * NUM_WARPS, 32, 4], plain)
        for stage in gl.static_range(STAGES - 1):
            copy_tile(
                keys, scales, stage, my_first + stage, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS
            )
        slot = 0
        free = STAGES - 1
        for tile in range(my_first, my_last):
            ahead = gl.minimum(tile + STAGES - 1, my_last - 1)
            copy_tile(keys, scales, free, ahead, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS)
            async_copy.wait_group(STAGES - 1)
            base = gl.minimum(tile * BLOCK_KEYS, gl.maximum(num_keys - BLOCK_KEYS, 0))
            for part in gl.static_range(0, BLOCK_KEYS, PART_KEYS):
                first_product = (slot * BLOCK_KEYS + part) // 32
                logit = score(
                    query, weight, keys_read, first_product, ROWS, PADDED_HEADS, PART_KEYS, False,
                    query_scale, scales_read, slot * (2 * NUM_WARPS) + part // 32, Q_KIND, K_KIND,
                )  # fmt: skip
                inside = (base + part >= begin) & (base + part < end)
                if COMPRESSED:
                    store(rows, cell + (base + part) * stride_on, logit, inside)
                else:
                    store(rows + (base + part).to(gl.int64) * stride_on, cell, logit, inside)
            free = slot
            slot = gl.where(slot == STAGES - 1, 0, slot + 1)
            if CLEAN:
                strip = (tile - my_first) * splits + split
                if strip < strips:
                    fill_strip(rows, strip, first, last, fill_offset, fill_wanted, stride_on, STRIP, INDEX, filled)
        async_copy.wait_group(0)


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, q_scale, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, q_bytes), (num_keys, key_bytes) = q.shape, k.shape
    tune = tuning(problem)
    strip = max(8 * 64 * tune.num_warps // tune.rows, 256)  # two stores of 4 cells a lane, and whole waves
    groups = -(-num_queries // tune.rows)
    tiles = -(-num_keys // tune.block_keys)
    splits = max(1, min(multiprocessors(problem.device) * tune.resident // groups, tiles))

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
    arguments = (*tensors, num_queries, num_keys, out.shape[1], *strides)
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
    return compat.Launch(mx_mqa_logits_kernel, (groups, splits), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
