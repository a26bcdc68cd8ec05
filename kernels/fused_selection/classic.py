"""fp8_select_keys in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP: scan, filter, refresh.

As many programs as the GPU holds take groups of query rows in turn. A program scores the key tiles of a group as
fp8_mqa_logits does, and appends the logits that are above their row's threshold to the row's list, in memory of its own. Every
few tiles a list that has become long is selected from: exactly top_k entries stay, and the least of them is the new threshold.
After a group's last tile its lists become its results.

Where groups do not come out even the last ones are shared: each program leaves what a share of a group's tiles has of each row,
at most top_k entries, in slots, and a second launch merges them. A row's slots are filled without gaps and in the order of its
keys: how many entries earlier shares leave follows from the windows.

Nothing is added up across programs, and which entries are kept is no matter of time, so results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.classic import operands, score
from ..common.device.windows import cover, my_tiles, window
from ..common.rules import padded_heads, product_options
from ..key_selection.operands import Dense
from ..mqa_logits.classic import load_tile
from .device.lists import COUNTS, append, copy_list, keep_list, merge_slots, refresh, write_result
from .device.shares import kept_before
from .launches import Plan, cut_of, plan_of, shape_of, strides_of
from .operation import Problem
from .tunings import Tuning
from .tunings import classic as tuning

UNSPECIALISED = ["num_queries", "num_keys", "width", "groups", "whole", "shared", "splits", "num_requests", "num_pages"]


@triton.jit(do_not_specialize=UNSPECIALISED)
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
    stride_kd,
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
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SEGMENT: tl.constexpr,  # tiles after which lists are looked at
    ENTRIES: tl.constexpr,  # that a list has room for
    STRIDE: tl.constexpr,  # entries from one list to the next: behind its own a list has room for SLOTS that are kept
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
    COMPRESSED: tl.constexpr,
    RELATIVE: tl.constexpr,
    PAGE: tl.constexpr,
    TO_FNUZ: tl.constexpr,
    MAXIMUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    program = tl.program_id(0)
    list_values += program.to(tl.int64) * (ROWS * STRIDE)
    list_indices += program.to(tl.int64) * (ROWS * STRIDE)
    if counters is not None:
        counters += program * COUNTS
    written = (results, stride_results, scores, stride_scores)
    pages = (page_table, num_requests, num_pages, stride_table, stride_pages, requests, stride_requests, PAGE, 1)
    column = tl.arange(0, ROWS * PADDED_HEADS)
    head = column % PADDED_HEADS
    near_head = tl.minimum(head, HEADS - 1).to(INDEX)
    dim = tl.arange(0, DIM).to(INDEX)
    place = tl.arange(0, BLOCK_KEYS)
    row = tl.arange(0, ROWS)

    for item in range(program, whole + shared * splits, tl.num_programs(0)):
        # Under a causal window the last rows see the most keys: longest work first.
        sharing = item - whole
        split = tl.where(sharing < 0, 0, sharing % splits)
        parts = tl.where(sharing < 0, 1, splits)
        group = tl.where(sharing < 0, groups - 1 - item, shared - 1 - sharing // splits)
        first_row = group * ROWS

        # Addresses past an edge are clamped, not masked: what they load is never appended or has weight 0.
        column_row = tl.minimum(column // PADDED_HEADS, num_queries - 1 - first_row).to(INDEX)
        query_rows = q + first_row.to(tl.int64) * stride_qs + column_row * stride_qs + near_head * stride_qh
        weight_rows = weights + first_row.to(tl.int64) * stride_ws + column_row * stride_ws + near_head * stride_wh
        tl.debug_barrier()  # some warps may still read the lists, or what of the last query lies in shared memory
        query = tl.load(query_rows[None, :] + (dim * stride_qd)[:, None])  # [DIM, ROWS * PADDED_HEADS]
        weight = tl.load(weight_rows, mask=head < HEADS, other=0.0).to(tl.float32)
        query, weight = operands(query, weight, TO_FNUZ, MAXIMUM)

        _, begin, end = window(
            first_row + row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
        )
        added = -begin if RELATIVE else begin * 0
        if offsets is not None:
            near_row = tl.minimum(first_row + row, num_queries - 1).to(tl.int64)
            added += tl.load(offsets + near_row * stride_offsets)
        first, last, _, _ = cover(
            (num_keys, 0, 0, num_keys), first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS,
            COMPRESSED,
        )  # fmt: skip
        _, _, my_first, my_last = my_tiles(first, last, split, parts, BLOCK_KEYS)

        fill = tl.zeros((ROWS,), tl.int32)
        threshold = tl.full((ROWS,), float("nan"), tl.float32)  # nothing compares with it, so that everything passes
        open_end = end
        for segment in range(my_first, my_last, SEGMENT):
            for tile in range(segment, tl.minimum(segment + SEGMENT, my_last)):
                base = tile * BLOCK_KEYS
                key, scale = load_tile(
                    k, k_scale, base, num_keys, stride_kn, stride_kd, stride_scale, DIM, BLOCK_KEYS, TO_FNUZ, False, INDEX
                )
                logit = score(query, weight, key, ROWS, PADDED_HEADS, MAXIMUM) * scale[:, None]

                position = (base + place)[:, None]
                inside = (position >= begin[None, :]) & (position < open_end[None, :])
                passes = inside & ~(logit <= threshold[None, :])
                fill = append(logit, position + added[None, :], passes, fill, row * STRIDE, list_values, list_indices)
            # Out of the loop of tiles, which Triton pipelines only without barriers. This one is for the lists, and for the
            # next segment's first copies, before which Triton 3.8.0 places none. A list has room for one more segment.
            tl.debug_barrier()
            fill, threshold, open_end = refresh(
                fill, threshold, open_end, list_values, list_indices, top_k, counters, ROWS, SEGMENT * BLOCK_KEYS, ENTRIES,
                STRIDE, RUNS, PLANES, SLOTS,
            )  # fmt: skip

        earlier = begin * 0
        if slot_values is not None:
            earlier = kept_before(begin, end, first, last, split, parts, top_k, BLOCK_KEYS)
        tl.debug_barrier()
        for number in range(ROWS):
            if first_row + number < num_queries:
                mine = row == number
                size = tl.sum(tl.where(mine, fill, 0), 0)
                values = list_values + number * STRIDE
                indices = list_indices + number * STRIDE
                kept, size = keep_list(values, indices, size, top_k, counters, ENTRIES, RUNS, PLANES, SLOTS)
                result_row = (first_row + number).to(tl.int64)
                if parts == 1:
                    write_result(values + kept, indices + kept, size, result_row, top_k, written, pages, RUNS)
                elif slot_values is not None:
                    slot = result_row * stride_slots + tl.sum(tl.where(mine, earlier, 0), 0)
                    copy_list(values + kept, indices + kept, size, slot_values + slot, slot_indices + slot, RUNS)


@triton.jit(do_not_specialize=UNSPECIALISED)
def merge_shared_kernel(
    starts,  # [S] int32
    ends,  # [S] int32
    page_table,
    requests,
    results,
    scores,
    list_values,
    list_indices,
    slot_values,
    slot_indices,
    counters,  # [rows, COUNTS] int32, or None
    num_queries,
    num_keys,
    width,
    top_k,
    splits,
    num_requests,
    num_pages,
    stride_starts,
    stride_ends,
    stride_table,
    stride_pages,
    stride_requests,
    stride_results,
    stride_scores,
    stride_slots,
    ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    ENTRIES: tl.constexpr,
    STRIDE: tl.constexpr,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
    COMPRESSED: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One program for each row that programs shared. Parameters as of :func:`select_scored_kernel`, whose lists are free."""
    row = tl.program_id(0)
    first_row = row // ROWS * ROWS
    first, last, _, _ = cover(
        (num_keys, 0, 0, num_keys), first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS,
        COMPRESSED,
    )  # fmt: skip
    _, begin, end = window(row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED)
    size = kept_before(begin, end, first, last, splits, splits, top_k, BLOCK_KEYS)
    slot = row.to(tl.int64) * stride_slots
    own = row.to(tl.int64) * STRIDE
    if counters is not None:
        counters += row * COUNTS
    written = (results, stride_results, scores, stride_scores)
    pages = (page_table, num_requests, num_pages, stride_table, stride_pages, requests, stride_requests, PAGE, 1)
    merge_slots(
        slot_values + slot,
        slot_indices + slot,
        size,
        row.to(tl.int64),
        top_k,
        list_values + own,
        list_indices + own,
        counters,
        written,
        pages,
        ENTRIES,
        RUNS,
        PLANES,
        SLOTS,
    )


def merge_of(
    inputs: Dense,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    plan: Plan,
    tune: Tuning,
    compressed: bool,
    page_size: int,
    counters: torch.Tensor | None,
) -> compat.Launch:
    """What merges the rows that programs shared by a plan."""
    starts, ends, page_table, requests = inputs.starts, inputs.ends, inputs.page_table, inputs.requests
    return compat.Launch(
        merge_shared_kernel,
        (min(plan.shared * tune.rows, len(indices)),),
        (
            *(starts, ends, page_table, requests, indices, scores),
            *(*plan.held, None if counters is None else counters[plan.running :]),
            *(len(indices), inputs.k.shape[0], plan.columns, indices.shape[1], plan.splits, *shape_of(page_table)),
            *(*strides_of(starts, ends), *strides_of(page_table, axes=2), *strides_of(requests)),
            *(indices.stride(0), None if scores is None else scores.stride(0), plan.slot_row),
        ),
        {
            "ROWS": tune.rows,
            "BLOCK_KEYS": tune.block_keys,
            "COMPRESSED": compressed,
            **cut_of(tune, indices.shape[1], page_size),
        },
    )


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
    """The launches of one call: what scores and selects, and where programs share rows what merges those.

    memory : aligned bytes for the lists, enough of them (see :func:`.scratch.bytes_needed`); allocated otherwise
    counters : [programs of both launches, COUNTS], int32, to which each adds what it counts
    """
    q, k, k_scale, weights, starts, ends, offsets, page_table, requests = inputs
    (num_queries, heads, dim), num_keys, top_k = q.shape, k.shape[0], indices.shape[1]
    tune, compressed = tuning(problem), max_window is not None
    plan = plan_of(problem, inputs, top_k, max_window, tune, memory)
    (qs, qh, qd), (kn, kd), (ws, wh) = q.stride(), k.stride(), weights.stride()
    farthest = max(  # element that a program reaches from its base pointers
        tune.rows * qs + heads * qh + dim * qd,
        tune.rows * ws + heads * wh,
        tune.block_keys * max(kn, k_scale.stride(0)) + dim * kd,
    )
    scan = compat.Launch(
        select_scored_kernel,
        (plan.running,),
        (
            *(q, k, k_scale, weights, starts, ends, offsets, page_table, requests, indices, scores, *plan.held, counters),
            *(num_queries, num_keys, plan.columns, top_k, plan.groups, plan.whole, plan.shared, plan.splits),
            *(*shape_of(page_table), *strides_of(q, k, k_scale, weights, starts, ends, offsets)),
            *(*strides_of(page_table, axes=2), *strides_of(requests)),
            *(indices.stride(0), None if scores is None else scores.stride(0), plan.slot_row),
        ),
        {
            "HEADS": heads,
            "DIM": dim,
            "PADDED_HEADS": padded_heads(heads),
            "ROWS": tune.rows,
            "BLOCK_KEYS": tune.block_keys,
            "SEGMENT": tune.segment_tiles,
            "COMPRESSED": compressed,
            "RELATIVE": relative,
            "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
            "num_stages": tune.num_stages,
            "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
            **product_options(problem.device, problem.dtype),
            **cut_of(tune, top_k, page_size),
            **dict(tune.options),
        },
    )
    if plan.splits == 1:
        return (scan,)
    return scan, merge_of(inputs, indices, scores, plan, tune, compressed, page_size, counters)


kernel = compat.Kernel(prepare, tuning=tuning)
