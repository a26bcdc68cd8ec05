"""Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[b, t, j] = sum_h weights[b, t, h] * relu(q[b, t, h, :] . key[b, j, :])    for 0 <= j < seen[b, t]

q and key being values times their scales, which the f8f6f4 MFMA multiplies. Programs, their tiles and the way of keys to LDS
are as in fp8_paged_mqa_logits' variant, whose docstring says how; keys of 68 bytes leave LDS room for more programs. A key's
four bytes of scales are copied beside it as they lie in the cache, and a lane reads those of its key and groups: of layouts
that have scales in tiles, a piece of a tile of keys has whole ones.
"""

from functools import partial

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, async_copy, cdna4, gl, gluon, reinterpret

from ..common.device.cdna4 import load_queries, load_query_scales, logit_layout, rows_together
from ..common.device.cdna4_paged import (
    fill_unseen,
    in_order,
    load_line,
    places_in_block,
    read_weights,
    scales_as_read,
    score_tiles,
    start_entries,
    start_tiles,
    start_weights,
    weight_places,
)
from ..common.device.pieces import piece_keys
from ..common.device.windows import keys_of_share, load_share, longest_seen, next_turn, seen
from ..common.rules import in_packets
from ..common.schedule.operation import CHUNK_KEYS
from ..common.schedule.plan import plan_of, workers
from .launches import launches_of
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna4 as tuning


@gluon.jit
def mx_paged_mqa_logits_kernel(
    q,  # [B, NEXT_N, H, Q_BYTES] float8_e4m3fn or uint8
    q_scale,  # [B, NEXT_N, H] int32
    values,  # [num_blocks, BLOCK * KEY_BYTES] uint8, in tiles of TILE keys
    scales,  # [num_blocks, BLOCK * 4] uint8, in tiles of SCALE_TILE keys
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
    stride_sb,
    stride_sn,
    stride_sh,
    stride_values,
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
    Q_BYTES: gl.constexpr,
    KEY_BYTES: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK: gl.constexpr,
    TILE: gl.constexpr,
    SCALE_TILE: gl.constexpr,
    SCALE_LANES: gl.constexpr,
    BLOCK_KEYS: gl.constexpr,
    CHUNK: gl.constexpr,
    STAGES: gl.constexpr,
    STRIP: gl.constexpr,
    CLEAN: gl.constexpr,
    ROW_LENS: gl.constexpr,
    INDEX: gl.constexpr,
    PACKETS: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = ROWS * PADDED_HEADS
    TOGETHER: gl.constexpr = rows_together(ROWS, PADDED_HEADS, NUM_WARPS)
    PIECE_KEYS: gl.constexpr = piece_keys(BLOCK, BLOCK_KEYS)  # of a tile, in one block
    BLOCKS: gl.constexpr = BLOCK_KEYS // PIECE_KEYS  # of a tile, each with a piece of it
    REPEATS: gl.constexpr = 64 * NUM_WARPS // BLOCK_KEYS  # of a tile's scales: one for every lane, so that no lane is masked
    GROUPS: gl.constexpr = DIM // 32  # of a key, each with a scale
    PAIRS: gl.constexpr = GROUPS == 4 and SCALE_LANES == 1  # else scales lie in pairs as they are, or in none
    Q_KIND: gl.constexpr = "e2m1" if Q_BYTES < DIM else "e4m3"
    K_KIND: gl.constexpr = "e2m1" if KEY_BYTES < DIM else "e4m3"
    K_TYPE: gl.constexpr = gl.uint8 if KEY_BYTES < DIM else gl.float8e4nv
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, 64], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, BLOCK_KEYS, NUM_WARPS))
    copied: gl.constexpr = in_order([BLOCKS, PIECE_KEYS, KEY_BYTES], 16, NUM_WARPS)
    scales_copied: gl.constexpr = in_order([REPEATS, BLOCKS, PIECE_KEYS], 1, NUM_WARPS)
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // KEY_BYTES, KEY_BYTES // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    worker = gl.program_id(0) // splits
    split = gl.program_id(0) % splits
    first_row = gl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, worker, num_requests, ROW_LENS)
    num_blocks = gl.to_tensor(num_blocks).to(gl.uint32)
    words = scales.to(gl.pointer_type(gl.int32), bitcast=True)  # of a key each
    stride_words = stride_scales // 4

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        fill_unseen(out, lens, strips, limit, width, stride_lb, stride_ln, stride_os, stride_on, NEXT_N, STRIP, ROW_LENS, INDEX)

    # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
    weight_at = weight_places(first_row, stride_ws, stride_wh, NEXT_N, HEADS, PADDED_HEADS, TOGETHER, COLUMNS, line_copied)

    place = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, logits))
    row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    cell = (row.to(INDEX) * stride_os)[:, None] + (place.to(INDEX) * stride_on)[None, :]

    key_at, scale_at = places_in_block(KEY_BYTES, TILE, PAIRS, copied, scales_copied, BLOCKS, PIECE_KEYS, REPEATS)

    tile_keys = gl.allocate_shared_memory(gl.uint8, [STAGES, BLOCKS, PIECE_KEYS, KEY_BYTES], plain)
    keys_read = reinterpret(tile_keys, K_TYPE, [STAGES * BLOCK_KEYS // 32, 32, KEY_BYTES], swizzled)
    tile_scales = gl.allocate_shared_memory(gl.int32, [STAGES, REPEATS, BLOCKS, PIECE_KEYS], plain)
    scales_read = scales_as_read(tile_scales, GROUPS, SCALE_TILE, SCALE_LANES)
    if BLOCKS > 1:
        tile_blocks = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)
    columns_weights = gl.allocate_shared_memory(gl.float32, [max(COLUMNS, 64 * NUM_WARPS)], line)

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
                stride_qn, stride_qh, stride_qd, HEADS, Q_BYTES, PADDED_HEADS, ROWS, INDEX, PACKETS, operand, TOGETHER,
                PAIRS,
            )  # fmt: skip
            query_scale = load_query_scales(
                q_scale + (request64 * stride_sb + first_row.to(gl.int64) * stride_sn), NEXT_N - 1 - first_row,
                stride_sn, stride_sh, HEADS, PADDED_HEADS, ROWS, GROUPS, INDEX, operand, TOGETHER,
                PAIRS,
            )  # fmt: skip
            async_copy.wait_group(0)
            weight = read_weights(columns_weights, HEADS, PADDED_HEADS, TOGETHER, COLUMNS, gl.SliceLayout(1, mfma))
            blocks = start_tiles(
                tile_keys, tile_scales, tile_blocks, entries, values, words, key_at, scale_at, my_first, my_last, splits,
                longest, num_blocks, stride_tk, stride_values, stride_words, BLOCK, BLOCK_KEYS, gl.SliceLayout(0, logits),
                BLOCKS == 1,
            )  # fmt: skip

            length = seen(lens, request, first_row + row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
            length = gl.minimum(length, end)  # so that nothing is stored for a tile past the last
            length = length[:, None] - place[None, :]  # of each key of a tile, so that one scalar is compared with both
            rows = out + (request64 * NEXT_N + first_row) * stride_os
            score_tiles(
                query, weight, blocks, tile_keys, tile_scales, tile_blocks, keys_read, scales_read, entries, values, words,
                key_at, scale_at, rows, cell, length, my_first, my_last, tiles, splits, limit, longest, num_blocks,
                stride_tk, stride_values, stride_words, stride_on, ROWS, PADDED_HEADS, BLOCK, BLOCK_KEYS, False,
                query_scale, Q_KIND, K_KIND,
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
    q, q_scale = inputs.q, inputs.q_scale
    _, next_n, heads, q_bytes = q.shape
    plan = plan_of(tuning, problem, inputs, out, chunk_keys)
    tune = plan.tune
    strip = 16 * 64 * tune.num_warps  # four stores of 4 cells a lane
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        next_n * q.stride(1) + heads * q.stride(2) + q_bytes * q.stride(3),
        4 * (next_n * q_scale.stride(1) + heads * q_scale.stride(2)),
        out.itemsize * (tune.rows * out.stride(0) + max(strip, tune.block_keys) * out.stride(1)),
    )
    constants = {
        "STAGES": tune.num_stages,
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return launches_of(
        mx_paged_mqa_logits_kernel, problem, plan, inputs, out, constants,
        strip=strip, clean_logits=clean_logits, layout=layout, chunk_keys=chunk_keys,
    )  # fmt: skip


kernel = compat.Kernel(prepare, tuning=tuning, workers=partial(workers, tuning))
