"""fp8_select_paged_keys in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP: scan, filter, refresh.

The keys of all requests are shared out among workers by a schedule, as in fp8_paged_mqa_logits; what a worker does with the
keys of a request is what :mod:`.classic` does with those of a group. A request that lies in one worker's share becomes its
results there. Of one that lies in several, each worker leaves what its share has of each row, at most top_k entries, in slots,
and a second launch merges them. A worker shares no more than its first request and its last: two slots for each row.

Where a row's entries begin follows from the schedule and the lengths: nothing is counted in memory, so that a replay with other
lengths finds nothing that an earlier one has left.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.classic import operands, score
from ..common.device.windows import keys_of_share, load_share, longest_seen, seen
from ..common.rules import product_options
from ..common.schedule.operation import CHUNK_KEYS
from ..key_selection.operands import Paged
from ..paged_mqa_logits.classic import load_tile
from .device.lists import COUNTS, append, copy_list, keep_list, merge_slots, refresh, write_result
from .device.shares import continued, first_worker, kept_between
from .launches import cut_of, shape_of, strides_of
from .operation import Problem
from .paged_launches import Plan, plan_of, scan_of
from .tunings import Tuning
from .tunings import classic as tuning

UNSPECIALISED = ["num_requests", "num_blocks", "limit", "num_rows", "num_pages"]


@triton.jit(do_not_specialize=UNSPECIALISED)
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
    NEXT_N: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SEGMENT: tl.constexpr,  # tiles after which lists are looked at
    CHUNK: tl.constexpr,
    ENTRIES: tl.constexpr,  # that a list has room for
    STRIDE: tl.constexpr,  # entries from one list to the next: behind its own a list has room for SLOTS that are kept
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
    ROW_LENS: tl.constexpr,
    PAGE: tl.constexpr,
    TO_FNUZ: tl.constexpr,
    MAXIMUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    worker = tl.program_id(0)
    program = tl.program_id(1) * tl.num_programs(0) + worker
    first_row = tl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    # The first worker begins at the first request, keys or no keys: every row has a result.
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, worker, num_requests, True)
    list_values += program.to(tl.int64) * (ROWS * STRIDE)
    list_indices += program.to(tl.int64) * (ROWS * STRIDE)
    if counters is not None:
        counters += program * COUNTS
    written = (results, stride_results, scores, stride_scores)
    pages = (page_table, num_rows, num_pages, stride_table, stride_pages, requests, stride_requests, PAGE, NEXT_N)

    # Addresses past an edge are clamped, not masked: what they load is never appended or has weight 0.
    column = tl.arange(0, ROWS * PADDED_HEADS)
    column_row = tl.minimum(first_row + column // PADDED_HEADS, NEXT_N - 1).to(INDEX)
    head = column % PADDED_HEADS
    near_head = tl.minimum(head, HEADS - 1).to(INDEX)
    dim = tl.arange(0, DIM)
    place = tl.arange(0, BLOCK_KEYS)
    num_blocks = tl.full((), num_blocks, tl.uint32)
    row = tl.arange(0, ROWS)

    past_request = tl.minimum(tl.where(last_chunk > 0, last_request + 1, last_request), num_requests)
    for number in range(past_request - first_request):
        request = first_request + number
        request64 = request.to(tl.int64)
        longest = longest_seen(lens, request, first_row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS, ROWS)
        my_begin, my_end = keys_of_share(request, longest, first_request, first_chunk, last_request, last_chunk, CHUNK)
        query_rows = q + request64 * stride_qb + column_row * stride_qn + near_head * stride_qh
        weight_rows = weights + request64 * NEXT_N * stride_ws + column_row * stride_ws + near_head * stride_wh
        tl.debug_barrier()  # some warps may still read the lists, or what of the last query lies in shared memory
        query = tl.load(query_rows[None, :] + (dim.to(INDEX) * stride_qd)[:, None])  # [DIM, ROWS * PADDED_HEADS]
        weight = tl.load(weight_rows, mask=head < HEADS, other=0.0).to(tl.float32)
        query, weight = operands(query, weight, TO_FNUZ, MAXIMUM)
        length = seen(lens, request, first_row + row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
        entries = table + request64 * stride_tb
        added = row * 0
        if offsets is not None:
            near_row = tl.minimum(first_row + row, NEXT_N - 1)
            added += tl.load(offsets + (request64 * NEXT_N + near_row) * stride_offsets)

        fill = tl.zeros((ROWS,), tl.int32)
        threshold = tl.full((ROWS,), float("nan"), tl.float32)  # nothing compares with it, so that everything passes
        open_end = tl.minimum(length, my_end)
        my_last = tl.cdiv(my_end, BLOCK_KEYS)
        for segment in range(my_begin // BLOCK_KEYS, my_last, SEGMENT):
            for tile in range(segment, tl.minimum(segment + SEGMENT, my_last)):
                base = tile * BLOCK_KEYS
                key, scale, held = load_tile(
                    keys, scales, entries, base, longest, num_blocks, stride_keys, stride_scales, stride_tk, DIM, BLOCK, TILE,
                    BLOCK_KEYS, TO_FNUZ, 1,
                )  # fmt: skip
                logit = score(query, weight, key, ROWS, PADDED_HEADS, MAXIMUM) * scale[:, None]
                logit = tl.where(held, logit, float("-inf"))

                found = (base + place)[:, None]
                passes = (found < open_end[None, :]) & ~(logit <= threshold[None, :])
                fill = append(logit, found + added[None, :], passes, fill, row * STRIDE, list_values, list_indices)
            # Out of the loop of tiles, which Triton pipelines only without barriers. This one is for the lists, and for the
            # next segment's first copies, before which Triton 3.8.0 places none. A list has room for one more segment.
            tl.debug_barrier()
            fill, threshold, open_end = refresh(
                fill, threshold, open_end, list_values, list_indices, top_k, counters, ROWS, SEGMENT * BLOCK_KEYS, ENTRIES,
                STRIDE, RUNS, PLANES, SLOTS,
            )  # fmt: skip

        begun = (request == first_request) & (first_chunk > 0)  # by the workers before
        shared = begun | ((request == last_request) & (last_chunk > 0))
        earlier = row * 0
        slot = tl.full((), 0, tl.int64)
        if shared:
            owner = first_worker(schedule, worker, request)
            earlier = kept_between(schedule, owner, worker, request, length, top_k, CHUNK)
            slot = (2 * owner + 1).to(tl.int64) * stride_slots
        tl.debug_barrier()
        for nth in range(ROWS):
            if first_row + nth < NEXT_N:
                mine = row == nth
                size = tl.sum(tl.where(mine, fill, 0), 0)
                values = list_values + nth * STRIDE
                indices = list_indices + nth * STRIDE
                kept, size = keep_list(values, indices, size, top_k, counters, ENTRIES, RUNS, PLANES, SLOTS)
                if shared:
                    slots = slot + (first_row + nth).to(tl.int64) * (2 * tl.num_programs(0) * stride_slots)
                    slots += tl.sum(tl.where(mine, earlier, 0), 0)
                    copy_list(values + kept, indices + kept, size, slot_values + slots, slot_indices + slots, RUNS)
                else:
                    write_result(
                        values + kept, indices + kept, size, request64 * NEXT_N + first_row + nth, top_k, written, pages, RUNS
                    )


@triton.jit(do_not_specialize=UNSPECIALISED)
def merge_cached_kernel(
    lens,
    schedule,
    page_table,
    requests,
    results,
    scores,
    list_values,
    list_indices,
    slot_values,
    slot_indices,
    counters,  # [NEXT_N * workers, COUNTS] int32, or None
    limit,
    top_k,
    num_rows,
    num_pages,
    stride_lb,
    stride_ln,
    stride_table,
    stride_pages,
    stride_requests,
    stride_results,
    stride_scores,
    stride_slots,
    NEXT_N: tl.constexpr,
    CHUNK: tl.constexpr,
    ENTRIES: tl.constexpr,
    STRIDE: tl.constexpr,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
    ROW_LENS: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One program for each worker and row of a request: it merges the request that others go on with, if the worker began it.
    Parameters as those of :func:`select_cached_kernel`, whose lists are free."""
    worker = tl.program_id(0)
    row = tl.program_id(1)
    program = row * tl.num_programs(0) + worker
    request = tl.load(schedule + 2 * worker + 2)
    if continued(schedule, worker + 1, request) & (first_worker(schedule, worker, request) == worker):
        past = worker + 1
        while continued(schedule, past, request):
            past += 1
        length = seen(lens, request, row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
        size = kept_between(schedule, worker, past, request, length, top_k, CHUNK)
        slot = (row.to(tl.int64) * (2 * tl.num_programs(0)) + 2 * worker + 1) * stride_slots
        own = program.to(tl.int64) * STRIDE
        written = (results, stride_results, scores, stride_scores)
        pages = (page_table, num_rows, num_pages, stride_table, stride_pages, requests, stride_requests, PAGE, NEXT_N)
        if counters is not None:
            counters += program * COUNTS
        merge_slots(
            slot_values + slot,
            slot_indices + slot,
            size,
            request.to(tl.int64) * NEXT_N + row,
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
    inputs: Paged,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    plan: Plan,
    tune: Tuning,
    page_size: int,
    counters: torch.Tensor | None,
) -> compat.Launch:
    """What merges the rows that workers shared by a plan."""
    page_table, requests, next_n, top_k = inputs.page_table, inputs.requests, inputs.q.shape[1], indices.shape[1]
    return compat.Launch(
        merge_cached_kernel,
        (plan.workers, next_n),
        (
            *(inputs.context_lens, plan.schedule, page_table, requests, indices, scores),
            *(*plan.held, None if counters is None else counters[plan.workers * plan.groups :]),
            *(plan.limit, top_k, *shape_of(page_table), *plan.lens_strides),
            *(*strides_of(page_table, axes=2), *strides_of(requests)),
            *(indices.stride(0), None if scores is None else scores.stride(0), plan.room),
        ),
        {"NEXT_N": next_n, "CHUNK": CHUNK_KEYS, "ROW_LENS": plan.row_lens, **cut_of(tune, top_k, page_size)},
    )


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
    """The launches of one call: what makes the schedule, what scores and selects, and what merges rows that workers share.

    memory : aligned bytes for the lists, enough of them (see :func:`.scratch.bytes_needed`); allocated otherwise
    counters : [programs of the last two launches, COUNTS], int32, to which each adds what it counts
    """
    q, weights, (_, next_n, heads, dim), top_k = inputs.q, inputs.weights, inputs.q.shape, indices.shape[1]
    tune = tuning(problem)
    plan = plan_of(problem, inputs, top_k, max_context_len, tune, memory)
    _, qn, qh, qd = q.stride()
    ws, wh = weights.stride()
    farthest = max(
        next_n * qn + heads * qh + dim * qd, next_n * ws + heads * wh
    )  # that a program reaches from its base pointers
    constants = {
        "SEGMENT": tune.segment_tiles,
        "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
        "num_stages": tune.num_stages,
        **product_options(problem.device, problem.dtype),
        **cut_of(tune, top_k, page_size),
        **dict(tune.options),
    }
    scan = scan_of(
        select_cached_kernel, plan, inputs, indices, scores, tune, constants,
        page_size=page_size, layout=layout, counters=counters,
    )  # fmt: skip
    return (*plan.before, scan, merge_of(inputs, indices, scores, plan, tune, page_size, counters))


kernel = compat.Kernel(prepare, tuning=tuning)
