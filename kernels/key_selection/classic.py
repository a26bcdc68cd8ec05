"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    row i: the top_k largest of logits[i, j] for max(starts[i], 0) <= j < min(ends[i], N), equal ones by their index

A program reads up to BLOCK logits of a row into registers, once, and looks for the threshold that exactly top_k of them reach
(:mod:`.device.search`). A prefix sum then says where the selected logits of each thread go, and they are written four at a time
(:mod:`.device.words`). A longer row is cut: each program leaves the top_k of its block, in order, and the next launch selects
from those, until a row fits one block. How many launches that takes depends on shapes alone. Counts are exact and nothing is
added up in an order that may change, so results repeat bit for bit. A row of top_k keys or fewer is listed, and its logits are
not read but for its scores and, where rows are cut, as candidates' values.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from . import classic_long
from .device.rows import list_all, load_four
from .device.search import COUNT_BIT, find_threshold
from .device.words import index_of, join_quads, leave_words, place_of, split_quads, word_after
from .operands import Inputs, in_quads
from .operation import Problem
from .scratch import buffers, rooms
from .tunings import classic as tuning

LONG = True
SMALLEST_SLOTS = 128  # a store of 16 bytes of each thread of a warp


@triton.jit
def load_logits(source, skip, size, stride, RUNS: tl.constexpr, PLANES: tl.constexpr, QUADS: tl.constexpr, INDEX: tl.constexpr):
    """PLANES float32 tensors of RUNS logits: element r of plane p is source[r * PLANES + p], -inf outside [skip, size)."""
    offset = tl.arange(0, RUNS) * PLANES
    loaded = ()
    for quad in tl.static_range(0, PLANES, 4):
        first, second, third, fourth = load_four(source, offset + quad, size, stride, QUADS, INDEX)
        # Exact, and in the same order: bfloat16 is the upper half of a float32.
        loaded += (first.to(tl.float32), second.to(tl.float32), third.to(tl.float32), fourth.to(tl.float32))
    # No load may wait for the first guess, which looks at a few logits: without a barrier ptxas has six of 16 wait, and 8192 x
    # 8192 logits take 147 us on an H100, not 143.
    tl.debug_barrier()
    room = size - offset  # each run's own limits, so that a plane's number is compared with them
    front = skip - offset
    planes = loaded
    if size - skip < RUNS * PLANES:  # long rows have full blocks: 142 us, not 146
        planes = ()
        for plane in tl.static_range(PLANES):
            inside = plane < room
            if plane < 3:  # no more than three are skipped
                inside &= plane >= front
            planes += (tl.where(inside, loaded[plane], float("-inf")),)
    return planes


@triton.jit
def select_block(
    source,
    skip,
    size,
    stride,
    top_k,
    numbering,
    indices,
    values,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
    QUADS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Write indices and values of the top_k largest of source[skip:size], which has more. Where equal logits would make it more
    than top_k nothing is written; returned is what :func:`find_threshold` found.

    The selected logits of a run have adjacent slots of the row. Each thread knows those of its own runs, which fill few
    slots of many 32-byte sectors, and the L2 cache takes a store sector by sector. So the runs leave words in the row, from
    which threads then write whole quads of slots: on an H100, 8192 x 8192 logits and 2048 keys, 153 us instead of 186 where
    each thread stores its own.
    """
    logits = load_logits(source, skip, size, stride, RUNS, PLANES, QUADS, INDEX)
    threshold, reached, exceeded, tally = find_threshold(logits, skip, size, top_k, RUNS, PLANES)
    if reached == top_k:
        slot = (tl.arange(0, SLOTS // 4) * 4)[:, None] + tl.arange(0, 4)[None, :]
        cells = indices + slot
        exists = slot < top_k
        # Not every cell gets a word, but all are read: without zeros L2 would have to fetch what nobody wrote.
        tl.store(cells, 0, mask=exists)
        tl.debug_barrier()
        leave_words(tally & 0xFFFF, tally >> COUNT_BIT, indices, RUNS, PLANES)
        # It orders global memory, too, among the threads of a program. On CDNA no wave waits for its stores: those of a
        # workgroup share one L1, which serves them in order (LLVM's memory model of AMDGPU, GFX940).
        tl.debug_barrier()
        first, second, third, fourth = split_quads(tl.load(cells, mask=exists, other=0))
        second = word_after(first, second)
        third = word_after(second, third)
        fourth = word_after(third, fourth)
        place = place_of(join_quads(first, second, third, fourth), PLANES)
        tl.store(cells, index_of(place, exists, numbering), mask=exists)
        if values is not None:
            value = tl.load(source + place.to(INDEX) * stride, mask=exists)
            tl.store(values + slot, value.to(tl.float32), mask=exists)
    return threshold, reached, exceeded


@triton.jit
def write_first_equals(
    source,
    skip,
    size,
    stride,
    top_k,
    threshold,
    exceeded,
    numbering,
    indices,
    values,
    WIDTH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """As select_block where too many logits equal the threshold: the row is read again, and the first of them are taken."""
    if threshold == float("inf"):  # what exceeds it is NaN; where there are enough of those, they are the equal ones
        exceeded = 0
        for first in range(skip, size, WIDTH):
            place = first + tl.arange(0, WIDTH)
            logit = tl.load(source + place.to(INDEX) * stride, mask=place < size, other=0.0).to(tl.float32)
            exceeded += tl.sum((logit != logit).to(tl.int32), 0)
        threshold = tl.where(exceeded < top_k, threshold, float("nan"))
        exceeded = tl.where(exceeded < top_k, exceeded, 0)
    spare = top_k - exceeded
    bar = tl.zeros((WIDTH,), tl.float32) + threshold
    written = 0
    taken = 0
    for first in range(skip, size, WIDTH):
        place = first + tl.arange(0, WIDTH)
        logit = tl.load(source + place.to(INDEX) * stride, mask=place < size, other=float("-inf")).to(tl.float32)
        equals = ((logit == bar) | ((logit != logit) & (bar != bar))) & (place < size)
        exceeds = ~(logit <= bar) & (bar == bar)
        number = equals.to(tl.int32)
        selected = exceeds | (equals & (taken + tl.cumsum(number, 0) <= spare))
        position = written + tl.cumsum(selected.to(tl.int32), 0) - 1
        tl.store(indices + position, index_of(place, selected, numbering), mask=selected)
        if values is not None:
            tl.store(values + position, logit, mask=selected)
        taken += tl.sum(number, 0)
        written += tl.sum(selected.to(tl.int32), 0)


@triton.jit(do_not_specialize=["columns", "num_keys", "num_requests", "num_pages"])
def select_keys_kernel(
    source,  # [S, columns] float32 or bfloat16: logits, or from the second launch on candidates, float32
    places,  # [S, columns] int32: the candidates' indices; None for logits
    starts,  # [S] int32, or None: 0
    ends,  # [S] int32
    offsets,  # [S] int32, or None: 0; of the first launch
    page_table,  # [num_requests, num_pages] int32, or None; of the last launch
    requests,  # [S] int32, or None: row // ROWS
    indices,  # [S, top_k] int32, or of the next launch's candidates
    values,  # as indices, float32, or None
    columns,  # of the logits
    num_keys,
    top_k,
    num_requests,
    num_pages,
    stride_source,
    stride,
    stride_places,
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
    SLOTS: tl.constexpr,  # a power of two that is not less than top_k
    LAUNCH: tl.constexpr,  # how many came before
    LAST: tl.constexpr,
    COMPRESSED: tl.constexpr,
    RELATIVE: tl.constexpr,
    PAGE: tl.constexpr,  # positions of a page
    ROWS: tl.constexpr,  # that look into the same row of the page table
    ALIGNED: tl.constexpr,  # of the first launch: blocks begin on 16-byte boundaries, and its first one skips what is no key
    QUADS: tl.constexpr,
    INDEX: tl.constexpr,
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
    for _ in tl.static_range(LAUNCH):
        kept = size // BLOCK * top_k + tl.minimum(size % BLOCK, top_k)
        size = tl.where(size <= BLOCK, tl.minimum(size - skip, top_k), kept)
        skip = skip * 0
    if LAUNCH > 0:
        aligned = aligned * 0

    block = tl.program_id(1)
    first = block * BLOCK
    if (first < size) | LAST:
        first_index = first - skip + (0 if RELATIVE else begin)
        if offsets is not None:
            first_index += tl.load(offsets + row * stride_offsets)
        skip = tl.where(block == 0, skip, 0)
        size = tl.minimum(size - first, BLOCK)
        source += row * stride_source + (aligned + first).to(tl.int64) * stride
        if places is not None:
            places += row * stride_places + first
        if page_table is not None:
            request = row // ROWS if requests is None else tl.load(requests + row * stride_requests).to(tl.int64)
            known = (request >= 0) & (request < num_requests)
            page_table += tl.where(known, request, 0) * stride_table
            num_pages = tl.where(known, num_pages, 0)
        numbering = (places, first_index, page_table, num_pages, stride_pages, PAGE)
        # The last launch has one block, and the compiler can then know that its slots are aligned.
        before = 0 if LAST else block * top_k
        indices += row * stride_indices + before
        if values is not None:
            values += row * stride_values + before
        runs: tl.constexpr = BLOCK // PLANES
        half: tl.constexpr = PLANES // 2
        fourth: tl.constexpr = PLANES // 4
        if size - skip <= top_k:
            room = top_k if LAST else size - skip
            source += skip * stride
            skipped = (places, first_index + skip, page_table, num_pages, stride_pages, PAGE)
            list_all(source, size - skip, stride, skipped, indices, values, room, runs, INDEX)
        else:
            if size <= BLOCK // 4:
                threshold, reached, exceeded = select_block(
                    source, skip, size, stride, top_k, numbering, indices, values, runs, fourth, SLOTS, QUADS, INDEX
                )
            elif size <= BLOCK // 2:
                threshold, reached, exceeded = select_block(
                    source, skip, size, stride, top_k, numbering, indices, values, runs, half, SLOTS, QUADS, INDEX
                )
            else:
                threshold, reached, exceeded = select_block(
                    source, skip, size, stride, top_k, numbering, indices, values, runs, PLANES, SLOTS, QUADS, INDEX
                )
            if reached != top_k:
                write_first_equals(
                    source, skip, size, stride, top_k, threshold, exceeded, numbering, indices, values, runs, INDEX
                )


def prepare(
    problem: Problem,
    inputs: Inputs,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    num_keys: int | None,
    relative: bool,
    page_size: int = 1,
    rows_per_request: int = 1,
    scratch: torch.Tensor | None = None,
) -> list[compat.Launch]:
    """The launches of one call, in order, with the scratch that they share; ``scores`` is written if it is given.

    rows_per_request : how many rows look into one row of the page table, where no ``requests`` are given
    scratch : bytes for the candidates between launches, aligned and enough of them; allocated otherwise
    """
    logits, starts, ends, offsets, page_table, requests = inputs
    (rows, columns), top_k = logits.shape, indices.shape[1]
    tune = tuning(problem).for_columns(columns)
    block = tune.block_logits
    if columns > block and LONG:
        return classic_long.prepare(
            problem,
            inputs,
            indices,
            scores,
            num_keys=num_keys,
            relative=relative,
            page_size=page_size,
            rows_per_request=rows_per_request,
            scratch=scratch,
        )
    between = buffers(rows, columns, top_k, block, scratch, logits.device)
    found: list[compat.Launch] = []
    source: torch.Tensor = logits
    places: torch.Tensor | None = None
    left = rooms(columns, top_k, block)
    for number in range(len(left) + 1):
        last = number == len(left)
        kept, values = (indices, scores) if last else between[number % 2]
        added = offsets if number == 0 else None
        table, looking = (page_table, requests) if last else (None, None)
        # What is None here is no parameter of the compiled kernel.
        counts = (
            columns,
            columns if num_keys is None else num_keys,
            top_k,
            *((None, None) if table is None else table.shape),
        )
        strides = (
            *source.stride(),
            0 if places is None else places.stride(0),
            0 if starts is None else starts.stride(0),
            ends.stride(0),
            None if added is None else added.stride(0),
            *((None, None) if table is None else table.stride()),
            None if looking is None else looking.stride(0),
            kept.stride(0),
            0 if values is None else values.stride(0),
        )
        arguments = (source, places, starts, ends, added, table, looking, kept, values, *counts, *strides)
        keywords = {
            "BLOCK": block,
            "PLANES": tune.planes,
            "SLOTS": max(SMALLEST_SLOTS, 1 << (top_k - 1).bit_length()),
            "LAUNCH": number,
            "LAST": last,
            "COMPRESSED": num_keys is not None,
            "RELATIVE": relative,
            "PAGE": page_size,
            "ROWS": rows_per_request,
            "ALIGNED": in_quads(logits),
            "QUADS": in_quads(source),
            "INDEX": tl.int32 if block * source.stride(1) < 2**31 else tl.int64,
            "num_warps": tune.num_warps,
            **(dict(tune.options) if places is None else {}),
        }
        blocks = 1 if last else -(-(columns if number == 0 else left[number - 1]) // block)
        found.append(compat.Launch(select_keys_kernel, (rows, blocks), arguments, keywords))
        if not last:
            places, source = between[number % 2]
    return found


kernel = compat.Kernel(prepare, tuning=tuning)
