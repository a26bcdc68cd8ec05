"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    row i: the top_k largest of logits[i, j] for max(starts[i], 0) <= j < min(ends[i], N), equal ones by their index

A program reads up to BLOCK logits of a row into registers, once, and looks for the threshold that exactly top_k of them reach
(:mod:`.device.search`). A prefix sum then says where the selected logits of each thread go, and they are written four at a time
(:mod:`.device.words`). Longer rows: :mod:`.classic_long`. Counts are exact and nothing is added up in an order that may change,
so results repeat bit for bit. A row of top_k keys or fewer is listed, and its logits are not read but for its scores.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from . import classic_long
from .device.rows import list_all, load_four, pages_of, window_of
from .device.search import COUNT_BIT, find_threshold
from .device.words import index_of, join_quads, leave_words, place_of, split_quads, word_after
from .operands import Arguments, Inputs, in_quads
from .operation import Problem
from .tunings import classic as tuning

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
    source,  # [S, columns] float32 or bfloat16
    starts,  # [S] int32, or None: 0
    ends,  # [S] int32
    offsets,  # [S] int32, or None: 0
    page_table,  # [num_requests, num_pages] int32, or None
    requests,  # [S] int32, or None: row // ROWS
    indices,  # [S, top_k] int32
    values,  # as indices, float32, or None
    columns,
    num_keys,
    top_k,
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
    SLOTS: tl.constexpr,  # a power of two that is not less than top_k
    COMPRESSED: tl.constexpr,
    RELATIVE: tl.constexpr,
    PAGE: tl.constexpr,  # positions of a page
    ROWS: tl.constexpr,  # that look into the same row of the page table
    ALIGNED: tl.constexpr,  # the block begins on a 16-byte boundary, and skips what is no key
    INDEX: tl.constexpr,
):
    # Under a causal window the last rows see the most keys: longest work first.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    begin, aligned, skip, size = window_of(
        starts, ends, row, stride_starts, stride_ends, columns, num_keys, COMPRESSED, ALIGNED
    )
    first_index = (0 if RELATIVE else begin) - skip
    if offsets is not None:
        first_index += tl.load(offsets + row * stride_offsets)
    if page_table is not None:
        table_row, num_pages = pages_of(requests, row, num_requests, num_pages, stride_table, stride_requests, ROWS)
        page_table += table_row
    numbering = (None, first_index, page_table, num_pages, stride_pages, PAGE)
    source += row * stride_source + aligned.to(tl.int64) * stride
    indices += row * stride_indices
    if values is not None:
        values += row * stride_values
    runs: tl.constexpr = BLOCK // PLANES
    half: tl.constexpr = PLANES // 2
    fourth: tl.constexpr = PLANES // 4
    if size - skip <= top_k:
        skipped = (None, first_index + skip, page_table, num_pages, stride_pages, PAGE)
        list_all(source + skip * stride, size - skip, stride, skipped, indices, values, top_k, runs, INDEX)
    else:
        if size <= BLOCK // 4:
            threshold, reached, exceeded = select_block(
                source, skip, size, stride, top_k, numbering, indices, values, runs, fourth, SLOTS, ALIGNED, INDEX
            )
        elif size <= BLOCK // 2:
            threshold, reached, exceeded = select_block(
                source, skip, size, stride, top_k, numbering, indices, values, runs, half, SLOTS, ALIGNED, INDEX
            )
        else:
            threshold, reached, exceeded = select_block(
                source, skip, size, stride, top_k, numbering, indices, values, runs, PLANES, SLOTS, ALIGNED, INDEX
            )
        if reached != top_k:
            write_first_equals(source, skip, size, stride, top_k, threshold, exceeded, numbering, indices, values, runs, INDEX)


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
    scratch : bytes for the candidates of rows that are longer than a block, aligned and enough of them; allocated otherwise
    """
    (rows, columns), top_k = inputs.logits.shape, indices.shape[1]
    arguments = Arguments(inputs, indices, scores, num_keys)
    constants = {
        "COMPRESSED": num_keys is not None,
        "RELATIVE": relative,
        "PAGE": page_size,
        "ROWS": rows_per_request,
        "ALIGNED": in_quads(inputs.logits),
    }
    tune = tuning(problem).for_columns(columns)
    block = tune.block_logits
    if columns > block:
        return classic_long.launches(problem, arguments, constants, scratch)
    keywords = {
        "BLOCK": block,
        "PLANES": tune.planes,
        "SLOTS": max(SMALLEST_SLOTS, 1 << (top_k - 1).bit_length()),
        **constants,
        "INDEX": tl.int32 if block * inputs.logits.stride(1) < 2**31 else tl.int64,
        "num_warps": tune.num_warps,
        **dict(tune.options),
    }
    return [compat.Launch(select_keys_kernel, (rows,), (*arguments.tensors, *arguments.counts, *arguments.strides), keywords)]


kernel = compat.Kernel(prepare, tuning=tuning)
