"""Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[b, t, j] = scale[b, j] * sum_h weights[b, t, h] * relu(q[b, t, h, :] . key[b, j, :])    for 0 <= j < seen[b, t]

The keys of all requests are shared out among programs by the classic variant's schedule; a tile is scored as in the dense
kernel, rows x heads on the M side of the MFMA. A request has few rows: where one wave holds them, a program is that wave alone,
so that waves share no keys and wait for none of each other at a barrier. Where it takes more, each wave of a program has rows
of its own, and they share the tiles. Programs that share a worker's tiles fill the GPU when a schedule has few workers.

Keys and scales go from memory straight to LDS, two tiles ahead of the arithmetic. Where each tile lies in one block, a lane
each has the table's entry of one of the next 64 tiles, which were loaded some 60 tiles before, and a tile is copied from a base
of 64 bits. Entries of tiles that cross blocks go to LDS, two tiles ahead of the keys: what comes with a tile says where the
tile lies whose copy is started then, from offsets of 32 bits, so that small blocks have to lie within 2 GiB. So one wait in a
pass covers all, and the table's latency is met once in a request. Only buffer instructions copy: the LLVM of Triton 3.7.1
counts global_load_lds among the LDS instructions, which hardware does not, and then waits too little for LDS reads
(llvm-project, pull request 179305).

LDS without bank conflicts: as in the dense kernel, packets of 16 bytes are fetched in a permuted order and read under a
swizzled layout. Of a preshuffled cache each lane fetches its packet from another place: LDS holds the same.
"""

from functools import partial

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, async_copy, cdna4, gl, gluon, reinterpret

from ..common.device.cdna4 import load_queries, logit_layout, rows_together
from ..common.device.cdna4_packed import RELU_RANGE, clamp_keeps_nan
from ..common.device.cdna4_paged import (
    fill_unseen,
    in_order,
    load_line,
    places_in_block,
    read_weights,
    score_tiles,
    start_entries,
    start_tiles,
    start_weights,
    weight_places,
)
from ..common.device.pieces import piece_keys
from ..common.device.windows import keys_of_share, load_share, longest_seen, next_turn, seen
from ..common.rules import in_packets, packs_relu
from ..common.schedule.operation import CHUNK_KEYS
from ..common.schedule.plan import plan_of, workers
from .launches import launches_of
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna4 as tuning


@gluon.jit
def paged_mqa_logits_kernel(
    q,  # [B, NEXT_N, H, D] fp8
    keys,  # [num_blocks, BLOCK, D] fp8, in tiles of TILE keys
    scales,  # [num_blocks, BLOCK] float32
    weights,  # [B * NEXT_N, H] float32 or bfloat16
    lens,  # [B] int32, or [B, NEXT_N] if ROW_LENS
    table,  # [B, max_blocks] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [B * NEXT_N, width] float32 or bfloat16
    num_requests,
    num_blocks,  # of the cache; keys of others score as -inf
    limit,  # keys that a row can see: as many as it has cells, and its row of the table has room for
    width,
    strips,  # to fill: those of a row times the rows
    splits,  # programs that share a worker's tiles, taking turns
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_keys,
    stride_scales,
    stride_ws,
    stride_wh,
    stride_lb,
    stride_ln,
    stride_tb,
    stride_tk,
    stride_os,
    stride_on,
    NEXT_N: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK: gl.constexpr,
    TILE: gl.constexpr,
    BLOCK_KEYS: gl.constexpr,
    CHUNK: gl.constexpr,
    STAGES: gl.constexpr,
    STRIP: gl.constexpr,
    CLEAN: gl.constexpr,
    ROW_LENS: gl.constexpr,
    INDEX: gl.constexpr,
    PACKETS: gl.constexpr,
    PACKED_RELU: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = ROWS * PADDED_HEADS
    TOGETHER: gl.constexpr = rows_together(ROWS, PADDED_HEADS, NUM_WARPS)
    PIECE_KEYS: gl.constexpr = piece_keys(BLOCK, BLOCK_KEYS)  # of a tile, in one block
    BLOCKS: gl.constexpr = BLOCK_KEYS // PIECE_KEYS  # of a tile, each with a piece of it
    REPEATS: gl.constexpr = 64 * NUM_WARPS // BLOCK_KEYS  # of a tile's scales: one for every lane, so that no lane is masked
    INSTRUCTION_DIM: gl.constexpr = 64 if DIM >= 64 else 16  # dims of the f8f6f4 instruction, or of the older fp8 one
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, INSTRUCTION_DIM], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, BLOCK_KEYS, NUM_WARPS))
    copied: gl.constexpr = in_order([BLOCKS, PIECE_KEYS, DIM], 16, NUM_WARPS)
    scales_copied: gl.constexpr = in_order([REPEATS, BLOCKS, PIECE_KEYS], 1, NUM_WARPS)
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // DIM, DIM // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    worker = gl.program_id(0) // splits
    split = gl.program_id(0) % splits
    first_row = gl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, worker, num_requests, ROW_LENS)
    num_blocks = gl.to_tensor(num_blocks).to(gl.uint32)

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        fill_unseen(out, lens, strips, limit, width, stride_lb, stride_ln, stride_os, stride_on, NEXT_N, STRIP, ROW_LENS, INDEX)

    # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
    weight_at = weight_places(first_row, stride_ws, stride_wh, NEXT_N, HEADS, PADDED_HEADS, TOGETHER, COLUMNS, line_copied)

    place = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, logits))
    row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    cell = (row.to(INDEX) * stride_os)[:, None] + (place.to(INDEX) * stride_on)[None, :]

    key_at, scale_at = places_in_block(DIM, TILE, False, copied, scales_copied, BLOCKS, PIECE_KEYS, REPEATS)

    tile_keys = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCKS, PIECE_KEYS, DIM], plain)
    keys_read = reinterpret(tile_keys, gl.float8e4nv, [STAGES * BLOCK_KEYS // 32, 32, DIM], swizzled)
    tile_scales = gl.allocate_shared_memory(gl.float32, [STAGES, REPEATS, BLOCKS, PIECE_KEYS], plain)
    scales_read = reinterpret(tile_scales, gl.float32, [STAGES, 64 * NUM_WARPS], line)
    if BLOCKS > 1:
        tile_blocks = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)
    columns_weights = gl.allocate_shared_memory(gl.float32, [max(COLUMNS, 64 * NUM_WARPS)], line)

    if PACKED_RELU:
        clamp_keeps_nan()
    turn = split  # of this program, counted from a request's first tile
    past_request = gl.minimum(gl.where(last_chunk > 0, last_request + 1, last_request), num_requests)
    for request in range(first_request, past_request):
        request64 = request.to(gl.int64)
        longest = longest_seen(lens, request, first_row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS, ROWS)
        begin, end = keys_of_share(request, longest, first_request, first_chunk, last_request, last_chunk, CHUNK)
        past_tile = gl.cdiv(end, BLOCK_KEYS)
        my_first = begin // BLOCK_KEYS + turn
        if my_first < past_tile:
            tiles = gl.cdiv(past_tile - my_first, splits)
            my_last = my_first + (tiles - 1) * splits
            entries = table + request64 * stride_tb
            if BLOCKS == 1:
                tile_blocks = load_line(entries, my_first, my_last, splits, stride_tk, BLOCK, BLOCK_KEYS)
            else:
                start_entries(tile_blocks, entries, my_first, my_last, splits, longest, stride_tk, BLOCK, BLOCK_KEYS)
            request_weights = weights + request64 * NEXT_N * stride_ws
            start_weights(columns_weights, request_weights, weight_at)
            query = load_queries(
                q + (request64 * stride_qb + first_row.to(gl.int64) * stride_qn), NEXT_N - 1 - first_row, 0,
                stride_qn, stride_qh, stride_qd, HEADS, DIM, PADDED_HEADS, ROWS, INDEX, PACKETS, operand, TOGETHER,
            )  # fmt: skip
            async_copy.wait_group(0)
            weight = read_weights(columns_weights, HEADS, PADDED_HEADS, TOGETHER, COLUMNS, gl.SliceLayout(1, mfma))
            if PACKED_RELU:
                weight *= RELU_RANGE
            blocks = start_tiles(
                tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, my_first, my_last, splits,
                longest, num_blocks, stride_tk, stride_keys, stride_scales, BLOCK, BLOCK_KEYS, gl.SliceLayout(0, logits),
                BLOCKS == 1,
            )  # fmt: skip

            length = seen(lens, request, first_row + row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
            length = gl.minimum(length, end)  # so that nothing is stored for a tile past the last
            length = length[:, None] - place[None, :]  # of each key of a tile, so that one scalar is compared with both
            rows = out + (request64 * NEXT_N + first_row) * stride_os
            score_tiles(
                query, weight, blocks, tile_keys, tile_scales, tile_blocks, keys_read, scales_read, entries, keys, scales,
                key_at, scale_at, rows, cell, length, my_first, my_last, tiles, splits, limit, longest, num_blocks,
                stride_tk, stride_keys, stride_scales, stride_on, ROWS, PADDED_HEADS, BLOCK, BLOCK_KEYS, PACKED_RELU,
            )  # fmt: skip
        turn = next_turn(turn, past_tile - begin // BLOCK_KEYS, splits)


def prepare(
    problem: Problem,
    inputs: Inputs,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    layout: str = "flat",
    chunk_keys: int = CHUNK_KEYS,
) -> tuple[compat.Launch, ...]:
    """The launches of one call: what makes the schedule where none is given, and what writes the logits that each row sees.

    With ``clean_logits`` every other cell becomes -inf.
    """
    q = inputs.q
    _, next_n, heads, dim = q.shape
    plan = plan_of(tuning, problem, inputs, out, chunk_keys)
    tune = plan.tune
    strip = 16 * 64 * tune.num_warps  # four stores of 4 cells a lane
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        next_n * q.stride(1) + heads * q.stride(2) + dim * q.stride(3),
        out.itemsize * (tune.rows * out.stride(0) + max(strip, tune.block_keys) * out.stride(1)),
    )
    constants = {
        "STAGES": tune.num_stages,
        "PACKED_RELU": packs_relu(problem.device, problem.dtype, dim),
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return launches_of(
        paged_mqa_logits_kernel, plan, inputs, out, constants,
        strip=strip, clean_logits=clean_logits, layout=layout, chunk_keys=chunk_keys,
    )  # fmt: skip


kernel = compat.Kernel(prepare, tuning=tuning, workers=partial(workers, tuning))
