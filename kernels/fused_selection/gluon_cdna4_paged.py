"""fp8_select_paged_keys in Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0: scan, filter, refresh.

Compiled and emulated; it has not run on a GPU. The keys of all requests are shared out among workers by a schedule, and
scored, as in fp8_paged_mqa_logits' gluon_cdna4: a request's rows are in as many waves as they need, one where it is enough, and
keys, scales and table entries go straight to LDS. What is done with the logits is :mod:`.gluon_cdna4`'s: each wave appends what
passes to the lists of its own rows (:mod:`.device.wave_lists`), which are looked at when the longest might be full. A tile's
logits are appended when the next one has come, as the logits' kernel stores them.

Tiles take turns in LDS, and the loop has a turn of all slots in a pass, so that their places are constants: the lists are
looked at after whole turns.

A request that lies in one worker's share becomes its results there; what the shares have of others :mod:`.classic_paged`'s
second launch merges.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, async_copy, barrier, cdna4, gl, gluon, reinterpret

from ..common.device.cdna4 import load_queries, logit_layout, rows_together
from ..common.device.cdna4_paged import (
    copy_ahead,
    in_order,
    places_in_block,
    read_weights,
    score_held,
    start_entries,
    start_tiles,
    start_weights,
    weight_places,
)
from ..common.device.pieces import piece_keys
from ..common.device.windows import keys_of_share, load_share, longest_seen, seen
from ..key_selection.operands import Paged
from .classic_paged import UNSPECIALISED, merge_of
from .device.lists import COUNTS
from .device.shares import first_worker, kept_between
from .device.wave_lists import (
    LANES,
    agreed,
    append,
    copy_lists,
    from_here,
    in_all_lanes,
    longest_of,
    pass_keys,
    refresh,
    table_of,
    write_lists,
)
from .operation import Problem
from .paged_launches import plan_of, scan_of
from .tunings import classic as classic_tuning
from .tunings import gluon_cdna4_paged as tuning


@gluon.jit(do_not_specialize=UNSPECIALISED)
def select_cached_kernel(
    q,  # [B, NEXT_N, H, D] fp8
    keys,  # [num_blocks, BLOCK, D] fp8, in tiles of TILE keys
    scales,  # [num_blocks, BLOCK] float32
    weights,  # [B * NEXT_N, H] float32 or bfloat16
    lens,  # [B] int32, or [B, NEXT_N] if ROW_LENS
    table,  # [B, max_blocks] int32
    schedule,  # [num_workers + 1, 2] int32
    offsets,  # [B * NEXT_N] int32, or None: 0
    page_table,  # [num_rows, num_pages] int32, or None
    requests,  # [B * NEXT_N] int32, or None: the request
    results,  # [B * NEXT_N, top_k] int32
    scores,  # as results, float32, or None
    list_values,  # [groups, workers, ROWS, STRIDE] float32
    list_indices,  # as list_values, int32
    slot_values,  # [groups * ROWS, 2 * workers * stride_slots] float32
    slot_indices,  # as slot_values, int32
    counters,  # [groups * workers, COUNTS] int32, or None
    num_requests,
    num_blocks,  # of the cache; keys of others score as -inf
    limit,  # keys that a row can see
    top_k,
    num_rows,  # of the page table
    num_pages,
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
    stride_offsets,
    stride_table,
    stride_pages,
    stride_requests,
    stride_results,
    stride_scores,
    stride_slots,
    NEXT_N: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK: gl.constexpr,
    TILE: gl.constexpr,
    BLOCK_KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    LEAST_TILES: gl.constexpr,  # for which a list must have room, a turn of all slots at least
    CHUNK: gl.constexpr,
    ENTRIES: gl.constexpr,  # that a list has room for
    STRIDE: gl.constexpr,  # entries from one list to the next
    ROW_LENS: gl.constexpr,
    PAGE: gl.constexpr,
    INDEX: gl.constexpr,
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
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, LANES, NUM_WARPS))
    copied: gl.constexpr = in_order([BLOCKS, PIECE_KEYS, DIM], 16, NUM_WARPS)
    scales_copied: gl.constexpr = in_order([REPEATS, BLOCKS, PIECE_KEYS], 1, NUM_WARPS)
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // DIM, DIM // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    worker = gl.program_id(0)
    program = gl.program_id(1) * gl.num_programs(0) + worker
    first_row = gl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    # The first worker begins at the first request, keys or no keys: every row has a result.
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, worker, num_requests, True)
    num_blocks = gl.to_tensor(num_blocks).to(gl.uint32)
    list_values += program.to(gl.int64) * (ROWS * STRIDE)
    list_indices += program.to(gl.int64) * (ROWS * STRIDE)
    if counters is not None:
        counters += program * COUNTS

    # Addresses past an edge are clamped, not masked: what they load is never appended or has weight 0.
    weight_at = weight_places(first_row, stride_ws, stride_wh, NEXT_N, HEADS, PADDED_HEADS, TOGETHER, COLUMNS, line_copied)
    key_at, scale_at = places_in_block(DIM, TILE, False, copied, scales_copied, BLOCKS, PIECE_KEYS, REPEATS)

    row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    zeros = gl.zeros([ROWS, LANES], gl.int32, logits)
    lane = gl.arange(0, LANES, gl.SliceLayout(0, logits))[None, :] + zeros
    list_place = in_all_lanes(row * STRIDE, zeros) + lane  # less its lane where a row's list begins, which no register is for

    tile_keys = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCKS, PIECE_KEYS, DIM], plain)
    keys_read = reinterpret(tile_keys, gl.float8e4nv, [STAGES * BLOCK_KEYS // 32, 32, DIM], swizzled)
    tile_scales = gl.allocate_shared_memory(gl.float32, [STAGES, REPEATS, BLOCKS, PIECE_KEYS], plain)
    scales_read = reinterpret(tile_scales, gl.float32, [STAGES, 64 * NUM_WARPS], line)
    tile_blocks = gl.allocate_shared_memory(gl.int32, [STAGES, 64 * NUM_WARPS], line)
    columns_weights = gl.allocate_shared_memory(gl.float32, [max(COLUMNS, 64 * NUM_WARPS)], line)

    past_request = gl.minimum(gl.where(last_chunk > 0, last_request + 1, last_request), num_requests)
    for request in range(first_request, past_request):
        request64 = request.to(gl.int64)
        longest_row = longest_seen(lens, request, first_row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS, ROWS)
        my_begin, my_end = keys_of_share(request, longest_row, first_request, first_chunk, last_request, last_chunk, CHUNK)
        my_first = my_begin // BLOCK_KEYS
        my_last = gl.cdiv(my_end, BLOCK_KEYS)
        length = seen(lens, request, first_row + row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)

        past = agreed(list_place - lane)
        barrier()  # some waves may still read the last request's keys
        if my_first < my_last:
            entries = table + request64 * stride_tb
            request_weights = weights + request64 * NEXT_N * stride_ws
            start_entries(tile_blocks, entries, my_first, my_last - 1, 1, longest_row, stride_tk, BLOCK, BLOCK_KEYS)
            start_weights(columns_weights, request_weights, weight_at)
            query = load_queries(
                q + (request64 * stride_qb + first_row.to(gl.int64) * stride_qn), NEXT_N - 1 - first_row, 0,
                stride_qn, stride_qh, stride_qd, HEADS, DIM, PADDED_HEADS, ROWS, INDEX, True, operand, TOGETHER,
            )  # fmt: skip
            added = row * 0
            if offsets is not None:
                near_row = gl.minimum(first_row + row, NEXT_N - 1)
                added += gl.load(offsets + (request64 * NEXT_N + near_row) * stride_offsets)
            async_copy.wait_group(0)
            weight = read_weights(columns_weights, HEADS, PADDED_HEADS, TOGETHER, COLUMNS, gl.SliceLayout(1, mfma))
            blocks = start_tiles(
                tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, my_first, my_last - 1, 1,
                longest_row, num_blocks, stride_tk, stride_keys, stride_scales, BLOCK, BLOCK_KEYS, gl.SliceLayout(0, logits),
                False,
            )  # fmt: skip

            open_end = in_all_lanes(gl.minimum(length, my_end), zeros) - lane  # so that one scalar is compared with all lanes'
            number = lane + in_all_lanes(added, zeros)
            threshold = gl.full([ROWS, LANES], float("nan"), gl.float32, logits)  # nothing compares with it: everything passes
            next_tile = my_first
            turns = ENTRIES // (STAGES * BLOCK_KEYS)  # of all slots, for whose tiles all lists have room
            while next_tile < my_last:
                first_tile = next_tile
                next_tile = gl.minimum(first_tile + turns * STAGES, my_last)
                base = limit  # of the tile before, whose logits are appended when the next one has come: nothing is left
                logit = gl.zeros([ROWS, LANES], gl.float32, logits)
                for turn in range(first_tile, next_tile, STAGES):
                    for slot in gl.static_range(STAGES):  # a constant, and so are all places in LDS
                        tile = turn + slot
                        async_copy.wait_group(STAGES - 2)
                        rank, passing = pass_keys(logit, threshold, base, None, open_end)
                        past = append(logit, number + base, rank, passing, past, list_values, list_indices)
                        base = tile * BLOCK_KEYS
                        block = copy_ahead(
                            tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, base,
                            (my_last - 1) * BLOCK_KEYS, BLOCK_KEYS, longest_row, num_blocks, stride_tk, stride_keys,
                            stride_scales, slot, BLOCK, BLOCK_KEYS, gl.SliceLayout(0, logits),
                        )  # fmt: skip
                        if tile < my_last:
                            logit = score_held(
                                query, weight, blocks[0], keys_read, scales_read, num_blocks, slot, BLOCKS, ROWS, PADDED_HEADS,
                                BLOCK_KEYS, False, logits,
                            )  # fmt: skip
                        blocks = blocks[1:] + (block,)  # noqa: RUF005 - Triton knows no starred elements
                rank, passing = pass_keys(logit, threshold, base, None, open_end)
                past = append(logit, number + base, rank, passing, past, list_values, list_indices)
                longest = longest_of(past + lane - list_place)
                done = next_tile == my_last
                if (longest > ENTRIES - LEAST_TILES * BLOCK_KEYS) | (done & (longest > top_k)):
                    past, threshold, open_end = refresh(
                        past, threshold, open_end, longest, list_values, list_indices, list_place, lane, top_k, counters,
                        LEAST_TILES * BLOCK_KEYS, ENTRIES,
                    )  # fmt: skip
                    longest = top_k
                turns = (ENTRIES - longest) // (STAGES * BLOCK_KEYS)
            async_copy.wait_group(0)

        size = past + lane - list_place
        # No address of a result is made in front of the loops: they would take 8 vector registers more.
        place, each = from_here(list_place), from_here(lane)
        my_row = from_here(in_all_lanes(first_row + row, zeros))
        wanted = my_row < NEXT_N
        my_row = my_row.to(gl.int64)
        begun = (request == first_request) & (first_chunk > 0)  # by the workers before
        if begun | ((request == last_request) & (last_chunk > 0)):
            owner = first_worker(schedule, worker, request)
            earlier = kept_between(schedule, owner, worker, request, length, top_k, CHUNK)
            kept = (my_row * (2 * gl.num_programs(0)) + 2 * owner + 1) * stride_slots + in_all_lanes(earlier, zeros)
            copy_lists(list_values, list_indices, place, each, size, wanted, slot_values, slot_indices, kept)
        else:
            result_row = request64 * NEXT_N + my_row
            pages = (None, None, None, PAGE)
            if page_table is not None:
                paged = my_row * 0 + request64
                if requests is not None:
                    near_result = request64 * NEXT_N + gl.minimum(my_row, NEXT_N - 1)
                    paged = gl.load(requests + near_result * stride_requests).to(gl.int64)
                pages_row, known_pages = table_of(page_table, paged, num_rows, num_pages, stride_table)
                pages = (pages_row, known_pages, stride_pages, PAGE)
            offset = (result_row * stride_results, None if scores is None else result_row * stride_scores)
            write_lists(list_values, list_indices, place, each, size, top_k, wanted, results, scores, offset, pages)


def prepare(
    problem: Problem,
    inputs: Paged,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    max_context_len: int,
    page_size: int = 1,
    layout: str = "flat",
    memory: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> tuple[compat.Launch, ...]:
    """As :func:`.classic_paged.prepare`."""
    q, (_, next_n, heads, dim) = inputs.q, inputs.q.shape
    tune = tuning(problem)
    plan = plan_of(problem, inputs, indices.shape[1], max_context_len, tune, memory)
    _, qn, qh, qd = q.stride()
    farthest = next_n * qn + heads * qh + dim * qd  # byte that a program reaches from q; buffer instructions reach 2 GiB
    constants = {
        "STAGES": tune.num_stages,
        "LEAST_TILES": max(tune.segment_tiles, tune.num_stages),
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    scan = scan_of(
        select_cached_kernel, plan, inputs, indices, scores, tune, constants,
        page_size=page_size, layout=layout, counters=counters,
    )  # fmt: skip
    merge = merge_of(
        inputs, indices, scores, plan, tune._replace(num_warps=classic_tuning(problem).num_warps), page_size, counters
    )
    return (*plan.before, scan, merge)


kernel = compat.Kernel(prepare, tuning=tuning)
