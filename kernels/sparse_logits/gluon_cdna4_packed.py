"""Gluon for CDNA4 (gfx950) and packed keys, one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; not run on a GPU.

    logits[i, j * C + o] = k_scale[n] * sum_h weights[i, h] * relu(q[i, h, :] . k[n, :])    of key n, the o-th of block j

C being the keys of a candidate block; in MX formats there is no ``k_scale``. As the kernel of cached keys, without a table: a
tile's list comes to LDS two tiles before its keys, and these two tiles before the arithmetic, so that one wait in a pass covers
both. Keys are copied from offsets of 32 bits from a window's first one, so that all have to lie within 2 GiB. Rows that share a
list and begin at different keys have no key in common where blocks are counted from there: they take turns.

LDS without bank conflicts: packets are permuted and read as in the dense kernel.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, async_copy, cdna4, gl, gluon, reinterpret

from ..common.device.cdna4 import (
    in_pairs,
    load,
    load_queries,
    load_query_scales,
    logit_layout,
    row_and_head,
    rows_together,
    store,
)
from ..common.device.cdna4_packed import RELU_RANGE, clamp_keeps_nan
from ..common.device.cdna4_paged import afterwards, in_order, scales_as_read, score_tile, unknown
from ..common.device.windows import keys_of_share, load_share, next_turn, row_keys
from ..common.rules import in_packets, packs_relu, padded_heads
from ..common.schedule.classic import workers_that_fit
from ..common.schedule.operation import CHUNK_KEYS
from .device_cdna4 import copy_candidates, fill_unlisted, next_window
from .launches import queries_of
from .operands import MxDense, Packed
from .operation import Problem
from .plan import plan_of
from .tunings import gluon_cdna4 as tuning


@gluon.jit
def copy_tile(
    tile_keys, tile_scales, tile_candidates, tile, first_block, count,
    keys, scales, packet, stride_kn, stride_scale, ADJACENT: gl.constexpr, CANDIDATE: gl.constexpr, of_lanes: gl.constexpr,
):  # fmt: skip
    """Start the copy of one tile's keys and scales to LDS, those of blocks ``tile_candidates``.

    keys, scales : from the first key of a window of ``count`` on, which lies in ``first_block``
    packet : the bytes of a key that each lane copies

    Returns which of the row's keys the tile's cells are of, in the layout ``of_lanes``; ``count`` or more where there is none.
    """
    BLOCKS: gl.constexpr = tile_keys.shape[0]
    PIECE_KEYS: gl.constexpr = tile_keys.shape[1]
    BLOCK_KEYS: gl.constexpr = BLOCKS * PIECE_KEYS
    LANES: gl.constexpr = tile_candidates.shape[0]
    pieces: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    tile_blocks = reinterpret(tile_candidates, gl.int32, [LANES // PIECE_KEYS, PIECE_KEYS], pieces).slice(0, BLOCKS, 0)
    count = count.to(gl.uint32)
    past = gl.cdiv(count, CANDIDATE)

    # Below the first block is a large number, and whatever lies past the last block stands for the one behind it.
    of_keys: gl.constexpr = gl.SliceLayout(2, packet.type.layout)
    block = async_copy.load_shared_relaxed(tile_blocks.slice(0, 1, 1), of_keys).to(gl.uint32)
    place = gl.minimum(block - first_block, past) * CANDIDATE
    place += gl.arange(0, PIECE_KEYS, gl.SliceLayout(0, of_keys)).to(gl.uint32)[None, :]
    if CANDIDATE > BLOCK_KEYS:  # a candidate block has several tiles
        place += tile.to(gl.uint32) * BLOCK_KEYS % CANDIDATE
    near = gl.minimum(place, count - 1).to(gl.int32)
    packet += (near * (tile_keys.shape[2] if ADJACENT else stride_kn))[:, :, None]

    of_scales: gl.constexpr = gl.SliceLayout(0, in_order([LANES // BLOCK_KEYS, BLOCKS, PIECE_KEYS], 1, gl.num_warps()))
    block = async_copy.load_shared_relaxed(tile_blocks, of_scales).to(gl.uint32)
    place = gl.minimum(block - first_block, past) * CANDIDATE
    place += gl.arange(0, PIECE_KEYS, gl.SliceLayout(0, of_scales)).to(gl.uint32)[None, :]
    if CANDIDATE > BLOCK_KEYS:
        place += tile.to(gl.uint32) * BLOCK_KEYS % CANDIDATE
    near = gl.minimum(place, count - 1).to(gl.int32) * stride_scale
    scale_at = gl.full([LANES // BLOCK_KEYS, BLOCKS, PIECE_KEYS], 0, gl.int32, of_scales.parent) + near[None, :, :]
    async_copy.buffer_load_to_shared(tile_keys, keys, packet)
    async_copy.buffer_load_to_shared(tile_scales, scales, scale_at)
    return gl.convert_layout(gl.reshape(place, [BLOCK_KEYS]), of_lanes)


@gluon.jit
def sparse_mqa_logits_kernel(
    q,  # [S, H, Q_BYTES] fp8, or uint8 of mxfp4
    q_scale,  # [S, H] int32, of an MX format
    k,  # [N, KEY_BYTES] fp8, or uint8 of an MX format
    k_scale,  # [N] float32, or int32 of an MX format
    weights,  # [S, H] float32 or bfloat16
    starts,  # [S] int32
    ends,  # [S] int32
    candidates,  # [num_lists, listed] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [S, width] float32 or bfloat16
    num_rows,
    num_keys,
    num_lists,
    list_rows,  # that share a list: as many for each
    listed,  # candidates of a row
    strips,  # to fill: those of a row times the rows
    splits,  # programs that share a worker's tiles, taking turns
    stride_qs,
    stride_qh,
    stride_qd,
    stride_ss,
    stride_sh,
    stride_kn,
    stride_scale,
    stride_ws,
    stride_wh,
    stride_starts,
    stride_ends,
    stride_cs,
    stride_cc,
    stride_os,
    stride_on,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    Q_BYTES: gl.constexpr,
    KEY_BYTES: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    CANDIDATE: gl.constexpr,
    ADJACENT: gl.constexpr,  # whether no byte lies between keys
    RELATIVE: gl.constexpr,
    SHARED: gl.constexpr,  # whether rows share lists, which the schedule counts by the last of them
    ROWS: gl.constexpr,
    BLOCK_KEYS: gl.constexpr,
    CHUNK: gl.constexpr,
    STAGES: gl.constexpr,
    STRIP: gl.constexpr,
    CLEAN: gl.constexpr,
    INDEX: gl.constexpr,
    PACKETS: gl.constexpr,
    MX: gl.constexpr,
    PACKED_RELU: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = ROWS * PADDED_HEADS
    TOGETHER: gl.constexpr = rows_together(ROWS, PADDED_HEADS, NUM_WARPS)
    AHEAD: gl.constexpr = STAGES - 1
    PIECE_KEYS: gl.constexpr = min(CANDIDATE, BLOCK_KEYS)  # of a tile, in one block
    BLOCKS: gl.constexpr = BLOCK_KEYS // PIECE_KEYS  # of a tile, each with a piece of it
    REPEATS: gl.constexpr = 64 * NUM_WARPS // BLOCK_KEYS  # of a tile's scales: one for every lane, so that no lane is masked
    GROUPS: gl.constexpr = DIM // 32  # of a key in an MX format, each with a scale
    PAIRS: gl.constexpr = MX and GROUPS == 4  # of groups whose scales a lane reads at a time
    Q_KIND: gl.constexpr = "e2m1" if Q_BYTES < DIM else "e4m3"
    K_KIND: gl.constexpr = "e2m1" if KEY_BYTES < DIM else "e4m3"
    K_TYPE: gl.constexpr = gl.uint8 if KEY_BYTES < DIM else gl.float8e4nv
    INSTRUCTION_DIM: gl.constexpr = 64 if DIM >= 64 else 16  # dims of the f8f6f4 instruction, or of the older fp8 one
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, INSTRUCTION_DIM], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, BLOCK_KEYS, NUM_WARPS))
    of_lanes: gl.constexpr = gl.SliceLayout(0, logits)
    copied: gl.constexpr = in_order([BLOCKS, PIECE_KEYS, KEY_BYTES], 16, NUM_WARPS)
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // KEY_BYTES, KEY_BYTES // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    worker = gl.program_id(0) // splits
    split = gl.program_id(0) % splits
    first_in_list = gl.program_id(1) * ROWS  # of the rows that share a list
    rows_left = list_rows - first_in_list
    first_list, first_chunk, last_list, last_chunk = load_share(schedule, worker, num_lists, SHARED)

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        fill_unlisted(
            out, starts, ends, num_rows, num_keys, strips, listed, stride_starts, stride_ends, 0, stride_os, stride_on,
            1, CANDIDATE, STRIP, False, True, INDEX,
        )  # fmt: skip

    # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
    column = gl.arange(0, max(COLUMNS, 64 * NUM_WARPS), line_copied) % COLUMNS
    column_row, head = row_and_head(column, PADDED_HEADS, TOGETHER)
    weight_at = gl.minimum(column_row, rows_left - 1) * stride_ws + gl.minimum(head, HEADS - 1) * stride_wh
    _, head = row_and_head(gl.arange(0, COLUMNS, gl.SliceLayout(1, mfma)), PADDED_HEADS, TOGETHER)

    near_cell = gl.arange(0, BLOCK_KEYS, of_lanes)
    member = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    cell = (member.to(INDEX) * stride_os)[:, None] + (near_cell.to(INDEX) * stride_on)[None, :]

    key = gl.arange(0, PIECE_KEYS, gl.SliceLayout(0, gl.SliceLayout(2, copied)))
    byte = gl.arange(0, KEY_BYTES, gl.SliceLayout(0, gl.SliceLayout(1, copied)))
    tile_key = gl.arange(0, BLOCKS, gl.SliceLayout(1, gl.SliceLayout(2, copied)))[:, None] * PIECE_KEYS + key[None, :]
    packet = (byte // 16)[None, None, :] ^ (tile_key * KEY_BYTES // 256 % (KEY_BYTES // 16))[:, :, None]
    if PAIRS:
        packet = in_pairs(packet, KEY_BYTES // 64)
    packet = packet * 16 + (byte % 16)[None, None, :]

    tile_keys = gl.allocate_shared_memory(k.dtype.element_ty, [STAGES, BLOCKS, PIECE_KEYS, KEY_BYTES], plain)
    keys_read = reinterpret(tile_keys, K_TYPE, [STAGES * BLOCK_KEYS // 32, 32, KEY_BYTES], swizzled)
    tile_scales = gl.allocate_shared_memory(k_scale.dtype.element_ty, [STAGES, REPEATS, BLOCKS, PIECE_KEYS], plain)
    if MX:
        scales_read = scales_as_read(tile_scales, GROUPS, 1, 1)
    else:
        scales_read = reinterpret(tile_scales, gl.float32, [STAGES, 64 * NUM_WARPS], line)
    tile_candidates = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)
    columns_weights = gl.allocate_shared_memory(gl.float32, [max(COLUMNS, 64 * NUM_WARPS)], line)

    if PACKED_RELU:
        clamp_keeps_nan()
    turn = split  # of this program, counted from a list's first tile
    past_list = gl.minimum(gl.where(last_chunk > 0, last_list + 1, last_list), num_lists)
    for which in range(first_list, past_list):
        base_row = which * list_rows + first_in_list
        base_row64, past_row = base_row.to(gl.int64), base_row + rows_left
        first, longest = next_window(
            -1, base_row, rows_left, starts, ends, past_row, num_keys, stride_starts, stride_ends, ROWS
        )  # fmt: skip
        while longest > 0:
            entries = gl.minimum(gl.cdiv(longest, CANDIDATE), listed)
            begin, end = keys_of_share(which, entries * CANDIDATE, first_list, first_chunk, last_list, last_chunk, CHUNK)
            past_tile = gl.cdiv(end, BLOCK_KEYS)
            my_first = begin // BLOCK_KEYS + turn
            my_last = past_tile - 1 - (past_tile - 1 - my_first) % splits
            if my_first < past_tile:
                lines = candidates + which.to(gl.int64) * stride_cs
                for stage in gl.static_range(AHEAD):
                    tile = gl.minimum(my_first + stage * splits, my_last)
                    there = tile_candidates.index(unknown(stage + 1))
                    copy_candidates(there, lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied)
                group_weights = weights + base_row64 * stride_ws
                if weights.dtype.element_ty == gl.float32:
                    async_copy.buffer_load_to_shared(columns_weights, group_weights, weight_at)
                else:  # no copy to LDS has 2 bytes for a lane
                    columns_weights.store(load(group_weights, weight_at).to(gl.float32))
                async_copy.commit_group()
                query = load_queries(
                    q + base_row64 * stride_qs, rows_left - 1, 0, stride_qs, stride_qh, stride_qd,
                    HEADS, Q_BYTES, PADDED_HEADS, ROWS, INDEX, PACKETS, operand, TOGETHER, PAIRS,
                )  # fmt: skip
                query_scale = None
                if MX:
                    query_scale = load_query_scales(
                        q_scale + base_row64 * stride_ss, rows_left - 1, stride_ss, stride_sh,
                        HEADS, PADDED_HEADS, ROWS, GROUPS, INDEX, operand, TOGETHER, PAIRS,
                    )  # fmt: skip
                async_copy.wait_group(0)
                weight = async_copy.load_shared_relaxed(columns_weights.slice(0, COLUMNS, 0), gl.SliceLayout(1, mfma))
                weight = gl.where(head < HEADS, weight, 0.0)
                if PACKED_RELU:
                    weight *= RELU_RANGE
                keys, scales = k + first.to(gl.int64) * stride_kn, k_scale + first.to(gl.int64) * stride_scale
                first_block = gl.to_tensor(0 if RELATIVE else first // CANDIDATE).to(gl.uint32)
                places = ()  # of the tiles under way, as copy_tile says them
                for stage in gl.static_range(AHEAD):
                    tile = gl.minimum(my_first + stage * splits, my_last)
                    place = copy_tile(
                        tile_keys.index(stage), tile_scales.index(stage), tile_candidates.index(stage + 1),
                        tile, first_block, longest, keys, scales, packet, stride_kn, stride_scale,
                        ADJACENT, CANDIDATE, of_lanes,
                    )  # fmt: skip
                    places += (place,)
                    tile = gl.minimum(my_first + (stage + AHEAD) * splits, my_last)
                    there = tile_candidates.index(stage)
                    copy_candidates(there, lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied)
                    async_copy.commit_group()

                counts = gl.full([ROWS], 0, gl.int32, gl.SliceLayout(1, logits)) + longest
                if SHARED:
                    near_member = base_row + gl.minimum(member, rows_left - 1)
                    begins, counts = row_keys(
                        near_member, starts, ends, past_row, num_keys, stride_starts, stride_ends, 0, 1, False, True
                    )
                    counts = gl.where(begins == first, counts, 0)
                counts = gl.where(member < rows_left, counts, 0)
                written = gl.minimum((counts + (CANDIDATE - 1)) // CANDIDATE, listed) * CANDIDATE
                written = gl.minimum(written, end)  # so that nothing is stored for a tile past the last
                written = written[:, None] - near_cell[None, :]  # of each cell: one scalar is compared with both
                counts = counts.to(gl.uint32)

                # A tile's logits are stored when the next one has come, before more copies start: see the paged kernel.
                base = listed * CANDIDATE  # no row has as many cells
                logit = gl.zeros([ROWS, BLOCK_KEYS], gl.float32, logits)
                rows = out + base_row64 * stride_os
                for round_first in range(my_first, past_tile, STAGES * splits):
                    for slot in gl.static_range(STAGES):  # a constant, and so are all places in LDS
                        tile = round_first + slot * splits
                        async_copy.wait_group(AHEAD - 1)
                        store(rows + base.to(gl.int64) * stride_on, cell, logit, base < written)
                        # Or each copy would keep a register with its place in LDS; and none is started before the store.
                        free = afterwards(gl.to_tensor((slot + AHEAD) % STAGES))
                        ahead = gl.minimum(tile + 2 * AHEAD * splits, my_last)
                        there = tile_candidates.index(free)
                        copy_candidates(there, lines, ahead, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied)
                        ahead = gl.minimum(tile + AHEAD * splits, my_last)
                        place = copy_tile(
                            tile_keys.index(free), tile_scales.index(free), tile_candidates.index(slot),
                            ahead, first_block, longest, keys, scales, packet, stride_kn, stride_scale,
                            ADJACENT, CANDIDATE, of_lanes,
                        )  # fmt: skip
                        async_copy.commit_group()
                        base = tile * BLOCK_KEYS
                        if tile < past_tile:
                            logit = score_tile(
                                query, weight, keys_read, scales_read, slot, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU,
                                logits, query_scale, Q_KIND, K_KIND,
                            )  # fmt: skip
                            held = places[0][None, :] < counts[:, None]  # type: ignore[misc]
                            logit = gl.where(held, logit, float("-inf"))
                        places = places[1:] + (place,)  # noqa: RUF005 - Triton knows no starred elements
                async_copy.wait_group(0)
                store(rows + base.to(gl.int64) * stride_on, cell, logit, base < written)
            turn = next_turn(turn, past_tile - begin // BLOCK_KEYS, splits)
            if SHARED:
                first, longest = next_window(
                    first, base_row, rows_left, starts, ends, past_row, num_keys, stride_starts, stride_ends, ROWS
                )  # fmt: skip
            else:
                longest = gl.to_tensor(0)  # a constant, so that nothing is kept for another turn


def prepare(
    problem: Problem,
    inputs: Packed,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    candidate_block: int,
    relative: bool = True,
    chunk_keys: int = CHUNK_KEYS,
) -> tuple[compat.Launch, ...]:
    """The launches of one call: what makes the schedule where none is given, and what writes the cells of listed blocks.

    With ``clean_logits`` every other cell becomes -inf.
    """
    k, k_scale, weights, starts, ends, candidates, _ = inputs[-7:]
    q, q_scale, (*_, ss, _, sh) = queries_of(inputs)
    if isinstance(inputs, MxDense):
        k = k.view(torch.uint8)
    (num_rows, heads, q_bytes), (rows, width) = q.shape, out.shape
    tune = tuning(problem)
    plan = plan_of(tune, problem, inputs, out, chunk_keys)
    strip = 16 * 64 * tune.num_warps  # four stores of 4 cells a lane
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        tune.rows * q.stride(0) + heads * q.stride(1) + q_bytes * q.stride(2),
        4 * (tune.rows * ss + heads * sh),
        out.itemsize * (tune.rows * out.stride(0) + max(strip, tune.block_keys) * out.stride(1)),
    )
    arguments = (
        *(q, q_scale, k, k_scale, weights, starts, ends, candidates, plan.planned.schedule, out),
        *(num_rows, k.shape[0], len(candidates), plan.list_rows, candidates.shape[1], rows * -(-width // strip), plan.splits),
        *(*q.stride(), ss, sh, k.stride(0), k_scale.stride(0), *weights.stride(), starts.stride(0), ends.stride(0)),
        *(*candidates.stride(), *out.stride()),
    )
    keywords = {
        "HEADS": heads,
        "DIM": problem.dim,
        "Q_BYTES": q_bytes,
        "KEY_BYTES": k.shape[1],
        "PADDED_HEADS": padded_heads(heads),
        "CANDIDATE": candidate_block,
        "ADJACENT": k.stride(0) == k.shape[1],
        "RELATIVE": relative,
        "SHARED": plan.list_rows > 1,
        "ROWS": tune.rows,
        "BLOCK_KEYS": tune.block_keys,
        "CHUNK": chunk_keys,
        "STAGES": tune.num_stages,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        "MX": problem.k_format is not None,
        "PACKED_RELU": problem.k_format is None and packs_relu(problem.device, problem.dtype, problem.dim),
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return plan.planned.launches(sparse_mqa_logits_kernel, plan.grid, arguments, keywords)


def workers(problem: Problem) -> int:
    """How many workers a schedule should have."""
    return workers_that_fit(problem.device, tuning(problem).resident, 1)


kernel = compat.Kernel(prepare, tuning=tuning, workers=workers)
