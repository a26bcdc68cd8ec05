"""Gluon for CDNA3 (gfx942), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

A program owns a few query rows and walks the key tiles of their joint window, rows x heads on the M side of the MFMA, as the
variant for CDNA4 does. CDNA3 copies no 16 bytes a lane straight to LDS: a tile is loaded into registers while the tile before
last is scored, and written to LDS while the last one is. Two tiles lie in two allocations and take turns, so that the compiler
places one barrier in a pass. Key scales are loaded by the lanes that need them.

The matrix unit reads e4m3fnuz. e4m3fn queries are converted once for a group of rows, and keys on their way to LDS, four bytes
at a time, to half their value; the weights make up for both.

LDS without bank conflicts: packet c (16 bytes) of key n lies at c ^ (n * D / 128 mod D / 16). CDNA3 has 32 banks, and serves
ds_write_b128 by eight lanes in a row, ds_read_b128 by lanes {0-3, 20-23}, {4-7, 16-19}, {8-11, 28-31}, {12-15, 24-27} and the
same + 32 (AMD, ROCm blogs, "Avoiding LDS Bank Conflicts on AMD GPUs Using CK-Tile Framework"): each eight lie in all banks.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, barrier, cdna3, gl, gluon, reinterpret

from ..common.device.cdna3 import logit_layout, of_quads, quads, score, write_tile
from ..common.device.cdna4 import fill_strip, load, load_queries, store
from ..common.device.cdna4_dense import cover_rows, fill_beside, rows_of_program
from ..common.device.formats import quad_to_fnuz
from ..common.device.windows import my_tiles, window
from ..common.rules import in_packets, padded_heads
from ..common.work_order import UNSPECIALISED, order_for
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna3 as tuning


@gluon.jit
def first_key(tile, num_keys, BLOCK_KEYS: gl.constexpr):
    """A tile's first key. The last tile moves back to end with the keys: what it shares with the one before is scored twice."""
    return gl.minimum(tile * BLOCK_KEYS, gl.maximum(num_keys - BLOCK_KEYS, 0))


@gluon.jit
def load_tile(k, tile, word_at, num_keys, stride_kn, BLOCK_KEYS: gl.constexpr):
    """One tile's keys, in words of four bytes."""
    base = first_key(tile, num_keys, BLOCK_KEYS).to(gl.int64)
    return cdna3.buffer_load((k + base * stride_kn).to(gl.pointer_type(gl.uint32)), word_at)


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
    TO_FNUZ: gl.constexpr,
    INDEX: gl.constexpr,
    PACKETS: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    SOME_HEADS: gl.constexpr = min(PADDED_HEADS, 64)  # whose products are in registers at a time
    COLUMNS: gl.constexpr = ROWS * SOME_HEADS
    mfma: gl.constexpr = gl.amd.AMDMFMALayout(
        3, [32, 32, 16], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    logits: gl.constexpr = logit_layout(ROWS, NUM_WARPS)
    loaded: gl.constexpr = gl.BlockedLayout([1, 4], [1024 // DIM, DIM // 16], [NUM_WARPS, 1], [1, 0])
    written: gl.constexpr = gl.SwizzledSharedLayout(4, 128 // DIM, DIM // 16, [1, 0])  # in words of 4 bytes
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 128 // DIM, DIM // 16, [1, 0])

    first_row, split = rows_of_program((xcds, classes, cells), num_queries, ROWS)
    covered = cover_rows(first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS, COMPRESSED)
    first_tile, last_tile, my_first, my_last = my_tiles(covered[0], covered[1], split, splits, BLOCK_KEYS)
    rows = out + first_row.to(gl.int64) * stride_os
    if CLEAN:
        _, _, strips, first, last, fill_offset, fill_wanted = fill_beside(
            rows, first_row, (split, splits), covered, (first_tile, last_tile), (my_first, my_last), starts, ends,
            num_queries, num_keys, width, stride_starts, stride_ends, stride_os, stride_on,
            2, ROWS, STRIP, BLOCK_KEYS, COMPRESSED, INDEX,
        )  # fmt: skip
    if my_first < my_last:
        # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
        queries = ()
        factors = ()  # weights times what makes up for relu, which gives twice the value, and for two operands halved
        for first_head in gl.static_range(0, PADDED_HEADS, SOME_HEADS):
            query = load_queries(
                q + first_row.to(gl.int64) * stride_qs, num_queries - 1 - first_row, first_head,
                stride_qs, stride_qh, stride_qd, HEADS, DIM, SOME_HEADS, ROWS, INDEX, PACKETS, operand,
            )  # fmt: skip
            if TO_FNUZ:
                query = of_quads(quad_to_fnuz(quads(query)), operand)
            queries += (query,)
            column = gl.arange(0, COLUMNS, gl.SliceLayout(1, mfma))
            column_row = gl.minimum(column // SOME_HEADS, num_queries - 1 - first_row).to(INDEX)
            head = first_head + column % SOME_HEADS
            near_head = gl.minimum(head, HEADS - 1).to(INDEX)
            weight_offset = column_row * stride_ws + near_head * stride_wh
            weight = load(weights + first_row.to(gl.int64) * stride_ws, weight_offset).to(gl.float32)
            factors += (gl.where(head < HEADS, weight * (2.0 if TO_FNUZ else 0.5), 0.0),)

        place = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, logits))
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

        key = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(1, loaded))
        word = gl.arange(0, DIM // 4, gl.SliceLayout(0, loaded))
        word_at = (gl.minimum(key, num_keys - 1) * (stride_kn // 4))[:, None] + word[None, :]
        scale_at = gl.minimum(place, num_keys - 1) * stride_scale

        even = gl.allocate_shared_memory(gl.uint32, [BLOCK_KEYS, DIM // 4], written)
        odd = gl.allocate_shared_memory(gl.uint32, [BLOCK_KEYS, DIM // 4], written)
        even_keys = reinterpret(even, gl.float8e4b8, [BLOCK_KEYS, DIM], swizzled)
        odd_keys = reinterpret(odd, gl.float8e4b8, [BLOCK_KEYS, DIM], swizzled)
        write_tile(even, load_tile(k, my_first, word_at, num_keys, stride_kn, BLOCK_KEYS), TO_FNUZ)
        words = load_tile(k, gl.minimum(my_first + 1, my_last - 1), word_at, num_keys, stride_kn, BLOCK_KEYS)
        for pair in range(my_first, my_last, 2):
            for half in gl.static_range(2):
                barrier()
                tile = gl.minimum(pair + half, my_last - 1)
                base = first_key(tile, num_keys, BLOCK_KEYS)
                scale = load(k_scale + base.to(gl.int64) * stride_scale, scale_at)
                write_tile(even if half else odd, words, TO_FNUZ)
                words = load_tile(k, gl.minimum(pair + half + 2, my_last - 1), word_at, num_keys, stride_kn, BLOCK_KEYS)
                logit = score(queries, factors, odd_keys if half else even_keys, ROWS) * scale[None, :]
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
        "STRIP": strip,
        "CLEAN": clean_logits,
        "COMPRESSED": compressed,
        "TO_FNUZ": k.dtype == torch.float8_e4m3fn,  # the matrix unit reads e4m3fnuz
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return compat.Launch(mqa_logits_kernel, (order.programs,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
