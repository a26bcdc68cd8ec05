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
from capgate.compat.gluon import VGPRS_ONLY, async_copy, cdna4, gl, gluon, reinterpret

from ..common.device.cdna4 import fill_outside, fill_strip, load_group, logit_layout, score, store
from ..common.device.cdna4_packed import RELU_RANGE, clamp_keeps_nan
from ..common.device.windows import cover, my_tiles, window
from ..common.hardware import multiprocessors
from ..common.rules import in_packets, packs_relu, padded_heads
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna4 as tuning


@gluon.jit
def first_key(tile, num_keys, BLOCK_KEYS: gl.constexpr):
    """A tile's first key. The last tile moves back to end with the keys: what it shares with the one before is scored twice."""
    return gl.minimum(tile * BLOCK_KEYS, gl.maximum(num_keys - BLOCK_KEYS, 0))


@gluon.jit
def copy_tile(keys, scales, slot, tile, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS: gl.constexpr):
    """Start the copy of one key tile and its scales to LDS."""
    base = first_key(tile, num_keys, BLOCK_KEYS).to(gl.int64)
    async_copy.buffer_load_to_shared(keys.index(slot), k + base * stride_kn, packet)
    async_copy.buffer_load_to_shared(scales.index(slot), k_scale + base * stride_scale, near)
    async_copy.commit_group()


@gluon.jit
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
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, PART_KEYS, NUM_WARPS))
    filled: gl.constexpr = gl.BlockedLayout([1, 4], [1, 64], [NUM_WARPS, 1], [1, 0])
    copied: gl.constexpr = gl.BlockedLayout([1, 16], [1024 // DIM, DIM // 16], [NUM_WARPS, 1], [1, 0])
    scales_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // DIM, DIM // 16, [1, 0])
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
        query, weight = load_group(
            q, weights, first_row, num_queries, stride_qs, stride_qh, stride_qd, stride_ws, stride_wh,
            HEADS, DIM, PADDED_HEADS, ROWS, INDEX, PACKETS, mfma,
        )  # fmt: skip
        if PACKED_RELU:
            clamp_keeps_nan()
            weight *= RELU_RANGE

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
        byte = gl.arange(0, DIM, gl.SliceLayout(0, copied))
        packet = (byte[None, :] // 16) ^ (key * DIM // 256 % (DIM // 16))[:, None]
        packet = gl.minimum(key, num_keys - 1)[:, None] * stride_kn + packet * 16 + (byte % 16)[None, :]

        keys = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_KEYS, DIM], plain)
        keys_read = reinterpret(keys, gl.float8e4nv, [STAGES * BLOCK_KEYS // 32, 32, DIM], swizzled)
        scales = gl.allocate_shared_memory(gl.float32, [STAGES, 64 * NUM_WARPS], line)
        for stage in gl.static_range(STAGES - 1):
            copy_tile(
                keys, scales, stage, my_first + stage, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS
            )
        for round_first in range(my_first, my_last, STAGES):
            for slot in gl.static_range(STAGES):  # a constant, and so are all places in LDS
                tile = round_first + slot
                async_copy.wait_group(STAGES - 2)  # and for the waves that still read what is copied over now
                ahead = gl.minimum(tile + STAGES - 1, my_last - 1)
                copy_tile(
                    keys, scales, (slot + STAGES - 1) % STAGES, ahead, k, k_scale, near, packet, num_keys,
                    stride_kn, stride_scale, BLOCK_KEYS,
                )  # fmt: skip
                if tile < my_last:
                    base = first_key(tile, num_keys, BLOCK_KEYS)
                    for part in gl.static_range(0, BLOCK_KEYS, PART_KEYS):
                        first_product = (slot * BLOCK_KEYS + part) // 32
                        logit = score(query, weight, keys_read, first_product, ROWS, PADDED_HEADS, PART_KEYS, PACKED_RELU)
                        scale = async_copy.load_shared_relaxed(
                            scales.index(slot).slice(part, PART_KEYS, 0), gl.SliceLayout(0, logits)
                        )
                        logit *= scale[None, :]
                        inside = (base + part >= begin) & (base + part < end)
                        if COMPRESSED:
                            store(rows, cell + (base + part) * stride_on, logit, inside)
                        else:
                            store(rows + (base + part).to(gl.int64) * stride_on, cell, logit, inside)
                    if CLEAN:
                        strip = (tile - my_first) * splits + split
                        if strip < strips:
                            fill_strip(rows, strip, first, last, fill_offset, fill_wanted, stride_on, STRIP, INDEX, filled)
        async_copy.wait_group(0)


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, dim), num_keys = q.shape, k.shape[0]
    tune = tuning(problem)
    strip = max(8 * 64 * tune.num_warps // tune.rows, 256)  # two stores of 4 cells a lane, and whole waves
    groups = -(-num_queries // tune.rows)
    tiles = -(-num_keys // tune.block_keys)
    splits = max(1, min(multiprocessors(problem.device) * tune.resident // groups, tiles))

    strides = (*q.stride(), *k.stride(), *k_scale.stride(), *weights.stride(), *starts.stride(), *ends.stride(), *out.stride())
    qs, qh, qd, _, _, _, ws, wh, _, _, os, on = strides
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        tune.rows * qs + heads * qh + dim * qd,
        weights.itemsize * (tune.rows * ws + heads * wh),
        out.itemsize * (tune.rows * os + max(strip, tune.block_keys, out.shape[1] if compressed else 0) * on),
    )
    arguments = (q, k, k_scale, weights, starts, ends, out, num_queries, num_keys, out.shape[1], *strides)
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
    return compat.Launch(mqa_logits_kernel, (groups, splits), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
