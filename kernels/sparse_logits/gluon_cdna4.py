"""Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[i, j * C + o] = scale * sum_h weights[i, h] * relu(q[i, h, :] . key)    of key o in the block candidates[i, j]

C being the keys of a candidate block, and keys those of a paged cache, in fp8 or in MX formats. These have no ``scale``: q and
keys are values times their scales, which the f8f6f4 MFMA multiplies, and a key's word of scales goes to LDS as its float32
does. The keys of all lists are shared out among programs by the classic variant's schedule; a tile of listed keys is scored as
the paged kernel scores one of adjacent keys, by a wave alone or by waves that have rows of their own and share the tiles.

Keys, scales, lists and table entries go from memory straight to LDS, and each is what the next one waits for: a tile's list
comes two tiles before its table entries, and these two tiles before its keys, which come two tiles before the arithmetic. So
one wait in a pass covers all, and memory's latency is met three times in a list. With a tile's table entries its list is copied
once more, so that both lie where its keys are asked for. Each candidate block lies in one block of the cache, and is copied
from offsets of 32 bits, so that the cache has to lie within 2 GiB.

LDS without bank conflicts: packets are permuted and read as in the paged kernel.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, async_copy, cdna4, gl, gluon, reinterpret

from ..common.device.cached_keys import first_byte
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
from .device import longest_from
from .device_cdna4 import copy_candidates, fill_unlisted
from .device_cdna4_paged import copy_entries, copy_tile, word_of_scales
from .launches import cached_keys, queries_of
from .operands import Cached
from .operation import Problem
from .plan import MAX_KEYS, plan_of
from .tunings import gluon_cdna4 as tuning


@gluon.jit
def paged_sparse_mqa_logits_kernel(
    q,  # [B, NEXT_N, H, Q_BYTES] fp8, or uint8 of mxfp4
    q_scale,  # [B, NEXT_N, H] int32, of an MX format
    keys,  # [num_blocks, BLOCK * KEY_BYTES] fp8, or uint8 of an MX format, in tiles of TILE keys; behind those of a block their
    # scales: [BLOCK] float32, or of an MX format [BLOCK * 4] uint8, in tiles of SCALE_TILE keys
    weights,  # [B * NEXT_N, H] float32 or bfloat16
    lens,  # [B] int32, or [B, NEXT_N] if ROW_LENS
    table,  # [B, max_blocks] int32
    candidates,  # [num_lists, listed] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [B * NEXT_N, width] float32 or bfloat16
    num_lists,
    list_rows,  # that share a list: as many for each
    num_blocks,  # of the cache; keys of others score as -inf
    most,  # keys that a row of the table has room for
    listed,  # candidates of a row
    strips,  # to fill: those of a row times the rows
    splits,  # programs that share a worker's tiles, taking turns
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_sb,
    stride_sn,
    stride_sh,
    stride_keys,
    stride_ws,
    stride_wh,
    stride_lb,
    stride_ln,
    stride_tb,
    stride_tk,
    stride_cs,
    stride_cc,
    stride_os,
    stride_on,
    NEXT_N: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    Q_BYTES: gl.constexpr,
    KEY_BYTES: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    CANDIDATE: gl.constexpr,
    SHARED: gl.constexpr,  # whether rows share lists, which the schedule counts by the last of them
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
    PAIRS: gl.constexpr = MX and GROUPS == 4 and SCALE_LANES == 1  # else scales lie in pairs as they are, or in none
    Q_KIND: gl.constexpr = "e2m1" if Q_BYTES < DIM else "e4m3"
    K_KIND: gl.constexpr = "e2m1" if KEY_BYTES < DIM else "e4m3"
    K_TYPE: gl.constexpr = gl.uint8 if KEY_BYTES < DIM else gl.float8e4nv
    SCALE_TYPE: gl.constexpr = gl.int32 if MX else gl.float32
    INSTRUCTION_DIM: gl.constexpr = 64 if DIM >= 64 else 16  # dims of the f8f6f4 instruction, or of the older fp8 one
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, INSTRUCTION_DIM], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, BLOCK_KEYS, NUM_WARPS))
    of_lanes: gl.constexpr = gl.SliceLayout(0, logits)
    copied: gl.constexpr = in_order([BLOCKS, PIECE_KEYS, KEY_BYTES], 16, NUM_WARPS)
    scales_copied: gl.constexpr = in_order([REPEATS, BLOCKS, PIECE_KEYS], 1, NUM_WARPS)
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // KEY_BYTES, KEY_BYTES // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    worker = gl.program_id(0) // splits
    split = gl.program_id(0) % splits
    first_in_list = gl.program_id(1) * ROWS  # of the rows that share a list
    rows_left = list_rows - first_in_list
    first_list, first_chunk, last_list, last_chunk = load_share(schedule, worker, num_lists, SHARED)
    num_blocks = gl.to_tensor(num_blocks).to(gl.uint32)
    scales = keys.to(gl.pointer_type(SCALE_TYPE), bitcast=True)

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        fill_unlisted(
            out, lens, lens, 0, most, strips, listed, 0, stride_lb, stride_ln, stride_os, stride_on,
            NEXT_N, CANDIDATE, STRIP, ROW_LENS, False, INDEX,
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
    key_at = first_byte(key, KEY_BYTES, TILE)[None, :, None] + packet * (16 * TILE) + (byte % 16)[None, None, :]
    scale_at = gl.arange(0, PIECE_KEYS, gl.SliceLayout(0, gl.SliceLayout(1, scales_copied)))
    scale_at = word_of_scales(scale_at, PIECE_KEYS, SCALE_TILE, SCALE_LANES)[None, None, :]
    scale_at += gl.full([REPEATS, BLOCKS, PIECE_KEYS], BLOCK * KEY_BYTES // 4, gl.int32, scales_copied)

    tile_keys = gl.allocate_shared_memory(keys.dtype.element_ty, [STAGES, BLOCKS, PIECE_KEYS, KEY_BYTES], plain)
    keys_read = reinterpret(tile_keys, K_TYPE, [STAGES * BLOCK_KEYS // 32, 32, KEY_BYTES], swizzled)
    tile_scales = gl.allocate_shared_memory(SCALE_TYPE, [STAGES, REPEATS, BLOCKS, PIECE_KEYS], plain)
    if MX:
        scales_read = scales_as_read(tile_scales, GROUPS, min(SCALE_TILE, PIECE_KEYS), SCALE_LANES)
    else:
        scales_read = reinterpret(tile_scales, gl.float32, [STAGES, 64 * NUM_WARPS], line)
    tile_entries = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)
    tile_candidates = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)  # those that entries are of
    next_candidates = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)  # those that entries will be of
    columns_weights = gl.allocate_shared_memory(gl.float32, [max(COLUMNS, 64 * NUM_WARPS)], line)

    if PACKED_RELU:
        clamp_keeps_nan()
    turn = split  # of this program, counted from a list's first tile
    past_list = gl.minimum(gl.where(last_chunk > 0, last_list + 1, last_list), num_lists)
    for which in range(first_list, past_list):
        base_row = which * list_rows + first_in_list
        request = base_row // NEXT_N
        request64, base_row64 = request.to(gl.int64), base_row.to(gl.int64)
        row64 = (base_row - request * NEXT_N).to(gl.int64)  # of its request
        longest = longest_from(
            gl.minimum(base_row, 0), base_row, rows_left, lens, lens, 0, most, 0, stride_lb, stride_ln, NEXT_N, ROW_LENS,
            False, ROWS,
        )  # fmt: skip
        entries = gl.minimum(gl.cdiv(longest, CANDIDATE), listed)
        begin, end = keys_of_share(which, entries * CANDIDATE, first_list, first_chunk, last_list, last_chunk, CHUNK)
        past_tile = gl.cdiv(end, BLOCK_KEYS)
        my_first = begin // BLOCK_KEYS + turn
        my_last = past_tile - 1 - (past_tile - 1 - my_first) % splits
        if my_first < past_tile:
            lines, pages = candidates + which.to(gl.int64) * stride_cs, table + request64 * stride_tb
            past = gl.cdiv(longest, CANDIDATE).to(gl.uint32)
            for stage in gl.static_range(AHEAD):
                tile = gl.minimum(my_first + stage * splits, my_last)
                there = next_candidates.index(unknown((stage + AHEAD) % STAGES))
                copy_candidates(there, lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied)
            request_weights = weights + base_row64 * stride_ws
            if weights.dtype.element_ty == gl.float32:
                async_copy.buffer_load_to_shared(columns_weights, request_weights, weight_at)
            else:  # no copy to LDS has 2 bytes for a lane
                columns_weights.store(load(request_weights, weight_at).to(gl.float32))
            async_copy.commit_group()
            query = load_queries(
                q + (request64 * stride_qb + row64 * stride_qn), rows_left - 1, 0,
                stride_qn, stride_qh, stride_qd, HEADS, Q_BYTES, PADDED_HEADS, ROWS, INDEX, PACKETS, operand, TOGETHER, PAIRS,
            )  # fmt: skip
            query_scale = None
            if MX:
                query_scale = load_query_scales(
                    q_scale + (request64 * stride_sb + row64 * stride_sn), rows_left - 1,
                    stride_sn, stride_sh, HEADS, PADDED_HEADS, ROWS, GROUPS, INDEX, operand, TOGETHER, PAIRS,
                )  # fmt: skip
            async_copy.wait_group(0)
            weight = async_copy.load_shared_relaxed(columns_weights.slice(0, COLUMNS, 0), gl.SliceLayout(1, mfma))
            weight = gl.where(head < HEADS, weight, 0.0)
            if PACKED_RELU:
                weight *= RELU_RANGE
            for stage in gl.static_range(AHEAD):
                known, there = next_candidates.index((stage + AHEAD) % STAGES), unknown(stage + 1)
                tile = gl.minimum(my_first + stage * splits, my_last)
                copy_entries(tile_entries.index(there), known, past, pages, stride_tk, BLOCK, CANDIDATE, line_copied)
                copy_candidates(
                    tile_candidates.index(there), lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied
                )
                tile = gl.minimum(my_first + (stage + AHEAD) * splits, my_last)
                copy_candidates(
                    next_candidates.index(there), lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied
                )
            async_copy.commit_group()
            async_copy.wait_group(0)
            places = ()  # of the tiles under way, as copy_tile says them
            for stage in gl.static_range(AHEAD):
                tile = gl.minimum(my_first + stage * splits, my_last)
                place = copy_tile(
                    tile_keys.index(stage), tile_scales.index(stage), tile_candidates.index(stage + 1),
                    tile_entries.index(stage + 1), tile, past, num_blocks, keys, scales, key_at, scale_at,
                    stride_keys, BLOCK, CANDIDATE, TILE, SCALE_TILE, SCALE_LANES, of_lanes,
                )  # fmt: skip
                places += (place,)
                tile = gl.minimum(my_first + (stage + AHEAD) * splits, my_last)
                known = next_candidates.index(stage + 1)
                copy_entries(tile_entries.index(stage), known, past, pages, stride_tk, BLOCK, CANDIDATE, line_copied)
                copy_candidates(
                    tile_candidates.index(stage), lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied
                )
                tile = gl.minimum(my_first + (stage + 2 * AHEAD) * splits, my_last)
                copy_candidates(
                    next_candidates.index(stage), lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied
                )
                async_copy.commit_group()

            near_member = base_row + gl.minimum(member, rows_left - 1)
            _begins, counts = row_keys(near_member, lens, lens, 0, most, 0, stride_lb, stride_ln, NEXT_N, ROW_LENS, False)
            counts = gl.where(member < rows_left, counts, 0)
            written = gl.minimum((counts + (CANDIDATE - 1)) // CANDIDATE, listed) * CANDIDATE
            written = gl.minimum(written, end)  # so that nothing is stored for a tile past the last
            written = written[:, None] - near_cell[None, :]  # of each cell of a tile, so that one scalar is compared with both
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
                    # Or each copy would keep a register with its place in LDS; and no copy is started before the store.
                    free = afterwards(gl.to_tensor((slot + AHEAD) % STAGES))
                    ahead = gl.minimum(tile + 3 * AHEAD * splits, my_last)
                    copy_candidates(
                        next_candidates.index(free), lines, ahead, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied
                    )
                    ahead = gl.minimum(tile + 2 * AHEAD * splits, my_last)
                    known = next_candidates.index(slot)
                    copy_entries(tile_entries.index(free), known, past, pages, stride_tk, BLOCK, CANDIDATE, line_copied)
                    copy_candidates(
                        tile_candidates.index(free), lines, ahead, entries, stride_cc, CANDIDATE, BLOCK_KEYS, line_copied
                    )
                    ahead = gl.minimum(tile + AHEAD * splits, my_last)
                    place = copy_tile(
                        tile_keys.index(free), tile_scales.index(free), tile_candidates.index(slot),
                        tile_entries.index(slot), ahead, past, num_blocks, keys, scales, key_at, scale_at,
                        stride_keys, BLOCK, CANDIDATE, TILE, SCALE_TILE, SCALE_LANES, of_lanes,
                    )  # fmt: skip
                    async_copy.commit_group()
                    base = tile * BLOCK_KEYS
                    if tile < past_tile:
                        logit = score_tile(
                            query, weight, keys_read, scales_read, slot, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU, logits,
                            query_scale, Q_KIND, K_KIND,
                        )  # fmt: skip
                        held = places[0][None, :] < counts[:, None]  # type: ignore[misc]
                        logit = gl.where(held, logit, float("-inf"))
                    places = places[1:] + (place,)  # noqa: RUF005 - Triton knows no starred elements
            async_copy.wait_group(0)
            store(rows + base.to(gl.int64) * stride_on, cell, logit, base < written)
        turn = next_turn(turn, past_tile - begin // BLOCK_KEYS, splits)


def prepare(
    problem: Problem,
    inputs: Cached,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    candidate_block: int,
    layout: str = "flat",
    chunk_keys: int = CHUNK_KEYS,
) -> tuple[compat.Launch, ...]:
    """The launches of one call: what makes the schedule where none is given, and what writes the cells of listed blocks.

    With ``clean_logits`` every other cell becomes -inf.
    """
    weights, block_table, candidates = inputs.weights, inputs.block_table, inputs.candidates
    (q, q_scale, q_strides), (keys, _, where) = queries_of(inputs), cached_keys(inputs, layout)
    (_, next_n, heads, q_bytes), (rows, width) = q.shape, out.shape
    tune = tuning(problem)
    plan = plan_of(tune, problem, inputs, out, chunk_keys)
    strip = 16 * 64 * tune.num_warps  # four stores of 4 cells a lane
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        next_n * q.stride(1) + heads * q.stride(2) + q_bytes * q.stride(3),
        4 * (next_n * q_strides[5] + heads * q_strides[6]),
        out.itemsize * (tune.rows * out.stride(0) + max(strip, tune.block_keys) * out.stride(1)),
    )
    most = min(block_table.shape[1] * where["BLOCK"], MAX_KEYS)
    sizes = len(candidates), plan.list_rows, inputs.kv_cache.shape[0], most, candidates.shape[1]
    arguments = (
        *(q, q_scale, keys, weights, inputs.context_lens, block_table, candidates, plan.planned.schedule, out),
        *(*sizes, rows * -(-width // strip), plan.splits),
        *(*q_strides, keys.stride(0), *weights.stride(), *plan.lens_strides),
        *(*block_table.stride(), *candidates.stride(), *out.stride()),
    )
    keywords = {
        "NEXT_N": next_n,
        "HEADS": heads,
        "DIM": problem.dim,
        "Q_BYTES": q_bytes,
        "PADDED_HEADS": padded_heads(heads),
        "CANDIDATE": candidate_block,
        "SHARED": plan.list_rows > 1,
        "ROWS": tune.rows,
        "BLOCK_KEYS": tune.block_keys,
        "CHUNK": chunk_keys,
        "STAGES": tune.num_stages,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "ROW_LENS": plan.row_lens,
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        "MX": problem.k_format is not None,
        "PACKED_RELU": problem.k_format is None and packs_relu(problem.device, problem.dtype, problem.dim),
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **where,
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return plan.planned.launches(paged_sparse_mqa_logits_kernel, plan.grid, arguments, keywords)


def workers(problem: Problem) -> int:
    """How many workers a schedule should have."""
    return workers_that_fit(problem.device, tuning(problem).resident, 1)


kernel = compat.Kernel(prepare, tuning=tuning, workers=workers)
