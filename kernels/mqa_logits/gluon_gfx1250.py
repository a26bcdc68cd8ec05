"""Gluon for gfx1250 (CDNA5), one source for Triton 3.7.1 to 3.9.0. Compiled for gfx1250; what was compiled has run nowhere.

    logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

A program owns a few query rows and walks the key tiles of their joint window, rows x heads on the M side of the WMMA, as the
variants for CDNA3 and CDNA4 do on that of the MFMA. Keys go the way of CDNA3, and nothing rests on the order of asynchronous
copies: a tile is loaded into registers while the tile before last is scored, and written to LDS while the last one is. Two
tiles lie in two allocations and take turns, so that the compiler places one barrier in a pass. Key scales are loaded by the
lanes that need them.

WMMA multiplies 64 or 128 dims of fp8: heads of 32 get as many zeros. It pairs the bytes that stand at one place of a lane in
both operands, so a lane may have any 16 dims side by side: it loads 16 bytes at a time. Packet c (16 bytes) of key n lies at
c ^ (n * D / 256 mod D / 16) in LDS: 16 lanes read all 64 banks.

There is no inline assembly: LLVM puts v_nop between a WMMA and vector instructions that touch its registers, and does not look
into any (GCNHazardRecognizer.cpp, WMMA co-execution hazards).
"""

import torch

from capgate import compat
from capgate.compat.gluon import barrier, gfx1250, gl, gluon, reinterpret

from ..common.device.cdna4 import fill_strip, load, load_queries, store
from ..common.device.cdna4_dense import cover_rows, fill_beside, first_key, rows_of_program
from ..common.device.gfx1250 import LANES, logit_layout, product_layout, score, with_zeros
from ..common.device.windows import my_tiles, window
from ..common.rules import in_packets, padded_heads
from ..common.work_order import UNSPECIALISED, order_for
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_gfx1250 as tuning


@gluon.jit
def load_tile(k, tile, word_at, there, num_keys, stride_kn, BLOCK_KEYS: gl.constexpr):
    """One tile's keys, in words of four bytes; those that are not there are 0."""
    base = first_key(tile, num_keys, BLOCK_KEYS).to(gl.int64)
    return gfx1250.buffer_load((k + base * stride_kn).to(gl.pointer_type(gl.uint32)), word_at, mask=there, other=0)


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
    STRIP: gl.constexpr,
    CLEAN: gl.constexpr,
    COMPRESSED: gl.constexpr,
    INDEX: gl.constexpr,
    PACKETS: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    SOME_HEADS: gl.constexpr = min(PADDED_HEADS, 64)  # whose products are in registers at a time
    COLUMNS: gl.constexpr = ROWS * SOME_HEADS
    PADDED_DIM: gl.constexpr = max(DIM, 64)  # of the WMMA
    wmma: gl.constexpr = product_layout(COLUMNS, PADDED_DIM, NUM_WARPS)
    operand: gl.constexpr = gl.DotOperandLayout(0, wmma, 16)
    logits: gl.constexpr = logit_layout(ROWS, NUM_WARPS)
    loaded: gl.constexpr = gl.BlockedLayout([1, 4], [16 * LANES // PADDED_DIM, PADDED_DIM // 16], [NUM_WARPS, 1], [1, 0])
    written: gl.constexpr = gl.SwizzledSharedLayout(4, 256 // PADDED_DIM, PADDED_DIM // 16, [1, 0])  # in words of 4 bytes
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // PADDED_DIM, PADDED_DIM // 16, [1, 0])

    first_row, split = rows_of_program((xcds, classes, cells), num_queries, ROWS)
    covered = cover_rows(first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS, COMPRESSED)
    first_tile, last_tile, my_first, my_last = my_tiles(covered[0], covered[1], split, splits, BLOCK_KEYS)
    rows = out + first_row.to(gl.int64) * stride_os
    if CLEAN:
        _, _, strips, first, last, fill_offset, fill_wanted = fill_beside(
            rows, first_row, (split, splits), covered, (first_tile, last_tile), (my_first, my_last), starts, ends,
            num_queries, num_keys, width, stride_starts, stride_ends, stride_os, stride_on,
            2, ROWS, STRIP, BLOCK_KEYS, COMPRESSED, INDEX, LANES,
        )  # fmt: skip
    if my_first < my_last:
        # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
        queries = ()
        row_weights = ()
        for first_head in gl.static_range(0, PADDED_HEADS, SOME_HEADS):
            query = load_queries(
                q + first_row.to(gl.int64) * stride_qs, num_queries - 1 - first_row, first_head,
                stride_qs, stride_qh, stride_qd, HEADS, DIM, SOME_HEADS, ROWS, INDEX, PACKETS, operand, LANES=LANES,
            )  # fmt: skip
            queries += (query if DIM == PADDED_DIM else with_zeros(query, operand),)
            column = gl.arange(0, COLUMNS, gl.SliceLayout(1, wmma))
            column_row = gl.minimum(column // SOME_HEADS, num_queries - 1 - first_row).to(INDEX)
            head = first_head + column % SOME_HEADS
            near_head = gl.minimum(head, HEADS - 1).to(INDEX)
            weight_offset = column_row * stride_ws + near_head * stride_wh
            weight = load(weights + first_row.to(gl.int64) * stride_ws, weight_offset).to(gl.float32)
            row_weights += (gl.where(head < HEADS, weight, 0.0),)

        place = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, logits))
        row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
        start, begin, end = window(
            first_row + row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
        )
        row_offset = row.to(INDEX) * stride_os
        if COMPRESSED:
            row_offset -= start.to(INDEX) * stride_on
        cell = row_offset[:, None] + (place.to(INDEX) * stride_on)[None, :]
        begin = begin[:, None] - place[None, :]  # of each key of a tile, so that one scalar is compared with both
        end = gl.maximum(end, 0)[:, None] - place[None, :]

        key = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(1, loaded))
        word = gl.arange(0, PADDED_DIM // 4, gl.SliceLayout(0, loaded))
        word_at = (gl.minimum(key, num_keys - 1) * (stride_kn // 4))[:, None] + word[None, :]
        there = (word < DIM // 4)[None, :]
        scale_at = gl.minimum(place, num_keys - 1) * stride_scale

        even = gl.allocate_shared_memory(gl.uint32, [BLOCK_KEYS, PADDED_DIM // 4], written)
        odd = gl.allocate_shared_memory(gl.uint32, [BLOCK_KEYS, PADDED_DIM // 4], written)
        even_keys = reinterpret(even, k.dtype.element_ty, [BLOCK_KEYS, PADDED_DIM], swizzled)
        odd_keys = reinterpret(odd, k.dtype.element_ty, [BLOCK_KEYS, PADDED_DIM], swizzled)
        even.store(load_tile(k, my_first, word_at, there, num_keys, stride_kn, BLOCK_KEYS))
        words = load_tile(k, gl.minimum(my_first + 1, my_last - 1), word_at, there, num_keys, stride_kn, BLOCK_KEYS)
        for pair in range(my_first, my_last, 2):
            for half in gl.static_range(2):
                barrier()
                base = first_key(gl.minimum(pair + half, my_last - 1), num_keys, BLOCK_KEYS)
                scale = load(k_scale + base.to(gl.int64) * stride_scale, scale_at)
                (even if half else odd).store(words)
                words = load_tile(k, gl.minimum(pair + half + 2, my_last - 1), word_at, there, num_keys, stride_kn, BLOCK_KEYS)
                logit = score(queries, row_weights, odd_keys if half else even_keys, ROWS) * scale[None, :]
                inside = (base >= begin) & (base < end)
                if COMPRESSED:
                    store(rows, cell + base * stride_on, logit, inside)
                else:
                    store(rows + base.to(gl.int64) * stride_on, cell, logit, inside)
            if CLEAN:
                filled: gl.constexpr = fill_offset.type.layout.parent
                strip = (pair - my_first) // 2 * splits + split
                if strip < strips:
                    fill_strip(rows, strip, first, last, fill_offset, fill_wanted, stride_on, STRIP, INDEX, filled)


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, dim), num_keys = q.shape, k.shape[0]
    tune = tuning(problem)
    strip = max(8 * LANES.value * tune.num_warps // tune.rows, 128)  # two stores of 4 cells a lane, and whole waves
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
        "STRIP": strip,
        "CLEAN": clean_logits,
        "COMPRESSED": compressed,
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,
        **dict(tune.options),
    }
    return compat.Launch(mqa_logits_kernel, (order.programs,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
