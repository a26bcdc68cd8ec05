"""Classic Triton for rows that are longer than a block, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

A quad of each of many parts of the row is a sample, which says what logit a few more than top_k should reach: the bar. The row is
then read once, and what reaches the bar is appended to a list of candidates (:mod:`.device.candidates`), from which exactly top_k
are selected. How many they are is counted, so a sample may mislead and cost time, and never a key: where too few reach the bar
the row is read again without one, and a list that grows too long is cut to its top_k on the way. One program takes a whole row,
or where there are few rows a section of one each, with lists of their own; a second launch then selects from a row's lists.
Nothing is added up in an order that may change, so results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from .device.candidates import append_section, sample_bar, write_top
from .device.rows import list_all
from .operands import Inputs, in_quads
from .operation import Problem
from .scratch import lists_in
from .tunings import long_rows


@triton.jit(do_not_specialize=["columns", "num_keys", "sections", "num_requests", "num_pages"])
def select_long_rows_kernel(
    source,  # [S, columns] float32 or bfloat16
    starts,  # [S] int32, or None: 0
    ends,  # [S] int32
    offsets,  # [S] int32, or None: 0
    page_table,  # [num_requests, num_pages] int32, or None
    requests,  # [S] int32, or None: row // ROWS
    lists,  # [S, sections, ROOM + 2] int64: candidates, how many they are, and the bar
    indices,  # [S, top_k] int32
    values,  # as indices, float32, or None
    columns,
    num_keys,
    top_k,
    sections,
    num_requests,
    num_pages,
    stride_source,
    stride,
    stride_starts,
    stride_ends,
    stride_offsets,
    stride_table,
    stride_pages,
    stride_requests,
    stride_indices,
    stride_values,
    BLOCK: tl.constexpr,
    PLANES: tl.constexpr,
    SAMPLE: tl.constexpr,
    ROOM: tl.constexpr,
    MOST: tl.constexpr,  # of them are left for the selection
    LIST_PLANES: tl.constexpr,
    APPENDS: tl.constexpr,  # to lists, those of a section each
    SELECTS: tl.constexpr,  # from lists, those of a row
    COMPRESSED: tl.constexpr,
    RELATIVE: tl.constexpr,
    PAGE: tl.constexpr,  # positions of a page
    ROWS: tl.constexpr,  # that look into the same row of the page table
    ALIGNED: tl.constexpr,  # sections begin on 16-byte boundaries, and the first one skips what is no key
    QUADS: tl.constexpr,
    INDEX: tl.constexpr,
    AHEAD: tl.constexpr,  # a block is loaded while the one before it is looked at
):
    # Under a causal window the last rows see the most keys: longest work first.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    start = tl.full((), 0, tl.int32)
    if starts is not None:
        start = tl.load(starts + row * stride_starts)
    end = tl.load(ends + row * stride_ends)
    if COMPRESSED:
        end = tl.minimum(end, start + columns)
    begin = tl.minimum(tl.maximum(start, 0), num_keys)
    count = tl.maximum(tl.maximum(tl.minimum(end, num_keys), 0) - begin, 0)
    column = begin - start if COMPRESSED else begin
    aligned = column // 4 * 4 if ALIGNED else column
    skip = column - aligned
    size = count + skip
    first_index = (0 if RELATIVE else begin) - skip
    if offsets is not None:
        first_index += tl.load(offsets + row * stride_offsets)
    source += row * stride_source + aligned.to(tl.int64) * stride
    lists += row * sections * (ROOM + 2)

    runs: tl.constexpr = BLOCK // PLANES
    if count > top_k:
        fill = tl.full((), 0, tl.int32)
        bar = tl.full((), float("-inf"), tl.float32)
        if APPENDS:
            if count > ROOM:
                bar = sample_bar(source, skip, size, stride, top_k, SAMPLE // PLANES, PLANES, QUADS, INDEX)
            if SELECTS:
                reached = bar
                while fill < top_k:
                    bar = reached
                    fill = append_section(
                        source,
                        skip,
                        skip * 0,
                        size,
                        stride,
                        first_index,
                        bar,
                        top_k,
                        lists,
                        runs,
                        PLANES,
                        ROOM,
                        MOST,
                        LIST_PLANES,
                        QUADS,
                        INDEX,
                        AHEAD,
                    )
                    reached = tl.full((), float("-inf"), tl.float32)
            else:
                section = tl.program_id(1)
                share = tl.cdiv(tl.cdiv(size, sections), 4 * runs) * 4 * runs
                mine = lists + section * (ROOM + 2)
                fill = append_section(
                    source,
                    skip,
                    section * share,
                    tl.minimum((section + 1) * share, size),
                    stride,
                    first_index,
                    bar,
                    top_k,
                    mine,
                    runs,
                    PLANES,
                    ROOM,
                    MOST,
                    LIST_PLANES,
                    QUADS,
                    INDEX,
                    AHEAD,
                )
                tl.store(mine + ROOM, fill.to(tl.int64))
                tl.store(mine + ROOM + 1, bar.to(tl.int32, bitcast=True).to(tl.int64))
        if SELECTS:
            taken = fill * 0 + fill
            held = tl.cdiv(fill, 4)
            found = sections
            if not APPENDS:
                bar = tl.load(lists + ROOM + 1).to(tl.int32).to(tl.float32, bitcast=True)
                for section in range(sections):
                    number = tl.load(lists + section * (ROOM + 2) + ROOM).to(tl.int32)
                    taken += number
                    held += tl.cdiv(number, 4)
                if (taken < top_k) | (held * 4 > MOST):
                    bar = tl.full((), float("-inf"), tl.float32)
                    taken = append_section(
                        source,
                        skip,
                        skip * 0,
                        size,
                        stride,
                        first_index,
                        bar,
                        top_k,
                        lists,
                        runs,
                        PLANES,
                        ROOM,
                        MOST,
                        LIST_PLANES,
                        QUADS,
                        INDEX,
                        AHEAD,
                    )
                    held = tl.cdiv(taken, 4)
                    found = 1
                    tl.debug_barrier()
                    tl.store(lists + ROOM, taken.to(tl.int64))
            tl.debug_barrier()
            if page_table is not None:
                request = row // ROWS if requests is None else tl.load(requests + row * stride_requests).to(tl.int64)
                known = (request >= 0) & (request < num_requests)
                page_table += tl.where(known, request, 0) * stride_table
                num_pages = tl.where(known, num_pages, 0)
            numbering = (None, 0, page_table, num_pages, stride_pages, PAGE)
            indices += row * stride_indices
            if values is not None:
                values += row * stride_values
            lists_of = None if APPENDS else found
            list_runs: tl.constexpr = ROOM // LIST_PLANES
            write_top(
                lists, lists_of, taken, bar, top_k, numbering, indices, values, list_runs, LIST_PLANES * MOST // ROOM, ROOM
            )
    elif SELECTS:
        if page_table is not None:
            request = row // ROWS if requests is None else tl.load(requests + row * stride_requests).to(tl.int64)
            known = (request >= 0) & (request < num_requests)
            page_table += tl.where(known, request, 0) * stride_table
            num_pages = tl.where(known, num_pages, 0)
        numbering = (None, first_index + skip, page_table, num_pages, stride_pages, PAGE)
        indices += row * stride_indices
        if values is not None:
            values += row * stride_values
        list_all(source + skip * stride, count, stride, numbering, indices, values, top_k, ROOM // LIST_PLANES, INDEX)


def prepare(
    problem: Problem,
    inputs: Inputs,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    num_keys: int | None,
    relative: bool,
    page_size: int,
    rows_per_request: int,
    scratch: torch.Tensor | None,
) -> list[compat.Launch]:
    """As :func:`.classic.prepare`, of rows that are longer than its block."""
    logits, starts, ends, offsets, page_table, requests = inputs
    (rows, columns), top_k = logits.shape, indices.shape[1]
    tune = long_rows(problem)
    room = tune.room(top_k)
    lists, sections = lists_in(problem.device, tune, rows, columns, top_k, scratch, logits.device)
    counts = (
        columns,
        columns if num_keys is None else num_keys,
        top_k,
        sections,
        *((None, None) if page_table is None else page_table.shape),
    )
    strides = (
        *logits.stride(),
        0 if starts is None else starts.stride(0),
        ends.stride(0),
        None if offsets is None else offsets.stride(0),
        *((None, None) if page_table is None else page_table.stride()),
        None if requests is None else requests.stride(0),
        indices.stride(0),
        0 if scores is None else scores.stride(0),
    )
    arguments = (logits, starts, ends, offsets, page_table, requests, lists, indices, scores, *counts, *strides)
    keywords = {
        "BLOCK": tune.block_logits,
        "PLANES": tune.planes,
        "SAMPLE": tune.sample,
        "ROOM": room,
        "LIST_PLANES": tune.planes,
        "COMPRESSED": num_keys is not None,
        "RELATIVE": relative,
        "PAGE": page_size,
        "ROWS": rows_per_request,
        "ALIGNED": in_quads(logits),
        "QUADS": in_quads(logits),
        "INDEX": tl.int32 if columns * logits.stride(1) < 2**31 else tl.int64,
        "AHEAD": tune.ahead,
        "num_warps": tune.num_warps,
        **dict(tune.options),
    }
    if sections == 1:
        steps = [((rows, 1), {"APPENDS": True, "SELECTS": True, "MOST": room // 2})]
    else:
        last = {"APPENDS": False, "SELECTS": True, "MOST": room, "num_warps": tune.last_warps}
        steps = [((rows, sections), {"APPENDS": True, "SELECTS": False, "MOST": room}), ((rows, 1), last)]
    return [compat.Launch(select_long_rows_kernel, grid, arguments, keywords | step) for grid, step in steps]
