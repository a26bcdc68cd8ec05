"""fp8_select_keys in Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0: scan, filter, refresh.

Compiled and emulated; it has not run on a GPU. What it does and in which order is as in :mod:`.classic`: programs take groups
of query rows in turn, the last groups are shared, and the same second launch merges what programs leave of shared rows. The
keys of a group are scored as in fp8_mqa_logits' gluon_cdna4, and each wave appends what passes to the lists of its own rows
(:mod:`.device.wave_lists`).

The lists are looked at when one might have become too long: after as many tiles as the longest had room for at the last look.
Then all of them are selected from.
"""

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, async_copy, barrier, cdna4, gl, gluon, reinterpret

from ..common.device.cdna4 import load_group, logit_layout, score
from ..common.device.cdna4_dense import copy_tile
from ..common.device.windows import cover, my_tiles, window
from ..common.rules import padded_heads
from ..key_selection.operands import Dense
from .classic import UNSPECIALISED, merge_of
from .device.lists import COUNTS
from .device.shares import kept_before
from .device.wave_lists import (
    LANES,
    agreed,
    append,
    copy_lists,
    in_all_lanes,
    longest_of,
    pass_keys,
    refresh,
    table_of,
    write_lists,
)
from .launches import plan_of, shape_of, strides_of
from .operation import Problem
from .scratch import list_entries
from .tunings import gluon_cdna4 as tuning


@gluon.jit(do_not_specialize=UNSPECIALISED)
def select_scored_kernel(
    q,  # [S, H, D] fp8
    k,  # [N, D] fp8
    k_scale,  # [N] float32
    weights,  # [S, H] float32 or bfloat16
    starts,  # [S] int32
    ends,  # [S] int32
    offsets,  # [S] int32, or None: 0
    page_table,  # [num_requests, num_pages] int32, or None
    requests,  # [S] int32, or None: the row
    results,  # [S, top_k] int32
    scores,  # as results, float32, or None
    list_values,  # [programs, ROWS, STRIDE] float32
    list_indices,  # as list_values, int32
    slot_values,  # [shared * ROWS, splits * top_k, padded] float32, or None where no group is shared
    slot_indices,  # as slot_values, int32
    counters,  # [programs, COUNTS] int32, or None
    num_queries,
    num_keys,
    width,
    top_k,
    groups,  # of rows
    whole,  # groups, the last ones, that a program takes alone: as many for each
    shared,  # groups, the first ones, that are left
    splits,  # programs that share each of them
    num_requests,
    num_pages,
    stride_qs,
    stride_qh,
    stride_qd,
    stride_kn,
    stride_scale,
    stride_ws,
    stride_wh,
    stride_starts,
    stride_ends,
    stride_offsets,
    stride_table,
    stride_pages,
    stride_requests,
    stride_results,
    stride_scores,
    stride_slots,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    LEAST_TILES: gl.constexpr,  # for which a list must have room
    ENTRIES: gl.constexpr,  # that a list has room for
    STRIDE: gl.constexpr,  # entries from one list to the next
    COMPRESSED: gl.constexpr,
    RELATIVE: gl.constexpr,
    PAGE: gl.constexpr,
    INDEX: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = ROWS * PADDED_HEADS
    INSTRUCTION_DIM: gl.constexpr = 64 if DIM >= 64 else 16  # dims of the f8f6f4 instruction, or of the older fp8 one
    mfma: gl.constexpr = cdna4.AMDMFMALayout(
        4, [32, 32, INSTRUCTION_DIM], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, LANES, NUM_WARPS))
    copied: gl.constexpr = gl.BlockedLayout([1, 16], [1024 // DIM, DIM // 16], [NUM_WARPS, 1], [1, 0])
    scales_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // DIM, DIM // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    program = gl.program_id(0)
    list_values += program.to(gl.int64) * (ROWS * STRIDE)
    list_indices += program.to(gl.int64) * (ROWS * STRIDE)
    if counters is not None:
        counters += program * COUNTS

    keys = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_KEYS, DIM], plain)
    keys_read = reinterpret(keys, gl.float8e4nv, [STAGES * BLOCK_KEYS // 32, 32, DIM], swizzled)
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, 64 * NUM_WARPS], line)
    near = gl.arange(0, 64 * NUM_WARPS, scales_copied) % BLOCK_KEYS  # a scale for every lane: no lane is masked
    near = gl.minimum(near, num_keys - 1) * stride_scale
    key = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(1, copied))
    byte = gl.arange(0, DIM, gl.SliceLayout(0, copied))
    packet = (byte[None, :] // 16) ^ (key * DIM // 256 % (DIM // 16))[:, None]
    packet = gl.minimum(key, num_keys - 1)[:, None] * stride_kn + packet * 16 + (byte % 16)[None, :]

    row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    zeros = gl.zeros([ROWS, LANES], gl.int32, logits)
    lane = gl.arange(0, LANES, gl.SliceLayout(0, logits))[None, :] + zeros
    list_place = in_all_lanes(row * STRIDE, zeros) + lane  # less its lane where a row's list begins, which no register is for

    for item in range(program, whole + shared * splits, gl.num_programs(0)):
        # Under a causal window the last rows see the most keys: longest work first.
        sharing = item - whole
        split = gl.where(sharing < 0, 0, sharing % splits)
        parts = gl.where(sharing < 0, 1, splits)
        group = gl.where(sharing < 0, groups - 1 - item, shared - 1 - sharing // splits)
        first_row = group * ROWS

        _, begin, end = window(
            first_row + row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
        )
        added = -begin if RELATIVE else begin * 0
        if offsets is not None:
            near_row = gl.minimum(first_row + row, num_queries - 1).to(gl.int64)
            added += gl.load(offsets + near_row * stride_offsets)
        added = in_all_lanes(added, zeros)
        first, last, _, _ = cover(
            (num_keys, 0, 0, num_keys), first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS,
            COMPRESSED,
        )  # fmt: skip
        _, _, my_first, my_last = my_tiles(first, last, split, parts, BLOCK_KEYS)

        past = agreed(list_place - lane)
        barrier()  # some waves may still read the last group's keys
        if my_first < my_last:
            query, weight = load_group(
                q, weights, first_row, num_queries, stride_qs, stride_qh, stride_qd, stride_ws, stride_wh,
                HEADS, DIM, PADDED_HEADS, ROWS, INDEX, True, mfma,
            )  # fmt: skip

            open_begin = in_all_lanes(begin, zeros) - lane  # of each key of a part, so that one scalar is compared with both
            open_end = in_all_lanes(gl.maximum(end, 0), zeros) - lane
            number = lane + added
            threshold = gl.full([ROWS, LANES], float("nan"), gl.float32, logits)  # nothing compares with it: everything passes

            for stage in gl.static_range(STAGES - 1):
                ahead = gl.minimum(my_first + stage, my_last - 1)
                copy_tile(keys, scales, stage, ahead, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS)
            slot = 0
            free = STAGES - 1
            next_tile = my_first
            tiles = ENTRIES // BLOCK_KEYS  # for which all lists have room
            while next_tile < my_last:
                first_tile = next_tile
                next_tile = gl.minimum(first_tile + tiles, my_last)
                # The last tile moves back to end with the keys. It comes by itself, and does not look at what is not its own.
                if (next_tile * BLOCK_KEYS > num_keys) & (next_tile - first_tile > 1):
                    next_tile -= 1
                if next_tile * BLOCK_KEYS > num_keys:
                    open_begin = gl.maximum(open_begin, first_tile * BLOCK_KEYS - lane)
                for tile in range(first_tile, next_tile):
                    ahead = gl.minimum(tile + STAGES - 1, my_last - 1)
                    copy_tile(
                        keys, scales, free, ahead, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS
                    )
                    async_copy.wait_group(STAGES - 1)
                    base = gl.minimum(tile * BLOCK_KEYS, gl.maximum(num_keys - BLOCK_KEYS, 0))
                    for part in gl.static_range(0, BLOCK_KEYS, LANES):
                        first_product = (slot * BLOCK_KEYS + part) // 32
                        logit = score(query, weight, keys_read, first_product, ROWS, PADDED_HEADS, LANES, False)
                        scale = async_copy.load_shared_relaxed(
                            scales.index(slot).slice(part, LANES, 0), gl.SliceLayout(0, logits)
                        )
                        logit *= scale[None, :]
                        rank, passing = pass_keys(logit, threshold, base + part, open_begin, open_end)
                        past = append(logit, number + (base + part), rank, passing, past, list_values, list_indices)
                    free = slot
                    slot = gl.where(slot == STAGES - 1, 0, slot + 1)
                longest = longest_of(past + lane - list_place)
                done = next_tile == my_last
                if (longest > ENTRIES - LEAST_TILES * BLOCK_KEYS) | (done & (longest > top_k)):
                    past, threshold, open_end = refresh(
                        past, threshold, open_end, longest, list_values, list_indices, list_place, lane, top_k, counters,
                        LEAST_TILES * BLOCK_KEYS, ENTRIES,
                    )  # fmt: skip
                    longest = top_k
                tiles = (ENTRIES - longest) // BLOCK_KEYS
            async_copy.wait_group(0)

        size = past + lane - list_place
        result_row = in_all_lanes(first_row + row, zeros)
        wanted = result_row < num_queries
        result_row = result_row.to(gl.int64)
        if parts == 1:
            pages = (None, None, None, PAGE)
            if page_table is not None:
                request = result_row
                if requests is not None:
                    near_result = gl.minimum(result_row, num_queries - 1)
                    request = gl.load(requests + near_result * stride_requests).to(gl.int64)
                table, known_pages = table_of(page_table, request, num_requests, num_pages, stride_table)
                pages = (table, known_pages, stride_pages, PAGE)
            offset = (result_row * stride_results, None if scores is None else result_row * stride_scores)
            write_lists(list_values, list_indices, list_place, lane, size, top_k, wanted, results, scores, offset, pages)
        elif slot_values is not None:
            earlier = kept_before(begin, end, first, last, split, parts, top_k, BLOCK_KEYS)
            slots = result_row * stride_slots + in_all_lanes(earlier, zeros)
            copy_lists(list_values, list_indices, list_place, lane, size, wanted, slot_values, slot_indices, slots)


def prepare(
    problem: Problem,
    inputs: Dense,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    max_window: int | None,
    relative: bool,
    page_size: int = 1,
    memory: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> tuple[compat.Launch, ...]:
    """As :func:`.classic.prepare`."""
    q, k, k_scale, weights, starts, ends, offsets, page_table, requests = inputs
    (num_queries, heads, dim), num_keys, top_k = q.shape, k.shape[0], indices.shape[1]
    tune, compressed = tuning(problem), max_window is not None
    plan = plan_of(problem, inputs, top_k, max_window, tune, memory)
    (qs, qh, qd), (ws, wh) = q.stride(), weights.stride()
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        tune.rows * qs + heads * qh + dim * qd, weights.itemsize * (tune.rows * ws + heads * wh)
    )
    scan = compat.Launch(
        select_scored_kernel,
        (plan.running,),
        (
            *(q, k, k_scale, weights, starts, ends, offsets, page_table, requests, indices, scores, *plan.held, counters),
            *(num_queries, num_keys, plan.columns, top_k, plan.groups, plan.whole, plan.shared, plan.splits),
            *(*shape_of(page_table), *q.stride(), k.stride(0), *strides_of(k_scale, weights, starts, ends, offsets)),
            *(*strides_of(page_table, axes=2), *strides_of(requests)),
            *(indices.stride(0), None if scores is None else scores.stride(0), plan.slot_row),
        ),
        {
            "HEADS": heads,
            "DIM": dim,
            "PADDED_HEADS": padded_heads(heads),
            "ROWS": tune.rows,
            "BLOCK_KEYS": tune.block_keys,
            "STAGES": tune.num_stages,
            "LEAST_TILES": tune.segment_tiles,
            "ENTRIES": tune.block_entries,
            "STRIDE": list_entries(tune, top_k),
            "COMPRESSED": compressed,
            "RELATIVE": relative,
            "PAGE": page_size,
            "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
            "num_warps": tune.num_warps,
            "enable_fp_fusion": True,
            **VGPRS_ONLY,
            **dict(tune.options),
        },
    )
    if plan.splits == 1:
        return (scan,)
    return scan, merge_of(inputs, indices, scores, plan, tune, compressed, page_size, counters)


kernel = compat.Kernel(prepare, tuning=tuning)
