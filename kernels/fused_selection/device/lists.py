"""A row's list of entries, in Triton: what is appended to it, what is dropped from it, and how it becomes the row's result.

An entry is a logit and the index that it stands for. They are appended in the order of their keys. A *selection* keeps just
``top_k`` of them, the largest, of equal ones the first, and leaves them in that order. What it drops comes behind ``top_k``
others of the same row in the order (logit descending, index ascending), and so is in no result.
"""

import triton
import triton.language as tl

from ...key_selection.classic import select_block, write_first_equals
from ...key_selection.device.rows import list_all

# Of a program's counts: selections to make room, selections where equal logits were told apart, rows that took no more keys
# because all of their top_k are NaN, and, where registers may hold lists, selections that read theirs in passes instead.
REFRESHED: tl.constexpr = tl.constexpr(0)
TIED: tl.constexpr = tl.constexpr(1)
CLOSED: tl.constexpr = tl.constexpr(2)
REREAD: tl.constexpr = tl.constexpr(3)
COUNTS: tl.constexpr = tl.constexpr(4)


@triton.jit
def count(counters, which: tl.constexpr):
    """Count one more of something in a program's own counters, if there are any."""
    if counters is not None:
        tl.store(counters + which, tl.load(counters + which) + 1)


@triton.jit
def append(logit, index, passes, fill, first, values, indices):
    """Append the logits of a tile that pass, with their indices, to the lists of its rows; returns how many entries these have.

    logit, index, passes : [keys, rows]
    fill, first : [rows], entries of each list, and where it begins in ``values`` and ``indices``
    """
    number = passes.to(tl.int32)
    place = (first + fill)[None, :] + tl.cumsum(number, 0) - 1
    tl.store(values + place, logit, mask=passes)
    tl.store(indices + place, index, mask=passes)
    return fill + tl.sum(number, 0)


@triton.jit
def keep_top(
    values,
    indices,
    size,
    top_k,
    kept_values,
    kept_indices,
    counters,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Write the top_k of ``size`` entries, which are more, to another place, in their order. ``values`` begins on a 16-byte
    boundary, and memory goes on to the next multiple of four. A barrier comes before it, and one after it."""
    numbering = (indices, 0, None, 0, 0, 1)
    threshold, reached, exceeded = select_block(
        values, 0, size, 1, top_k, numbering, kept_indices, kept_values, RUNS, PLANES, SLOTS, True, tl.int32
    )
    if reached != top_k:
        write_first_equals(values, 0, size, 1, top_k, threshold, exceeded, numbering, kept_indices, kept_values, RUNS, tl.int32)
        count(counters, TIED)
    tl.debug_barrier()


@triton.jit
def keep_list(
    values,
    indices,
    size,
    top_k,
    counters,
    ENTRIES: tl.constexpr,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """(how far behind the list's beginning, how many): where the entries are that are left of a list in the end."""
    if size > top_k:
        keep_top(values, indices, size, top_k, values + ENTRIES, indices + ENTRIES, counters, RUNS, PLANES, SLOTS)
    return tl.where(size > top_k, ENTRIES, 0), tl.minimum(size, top_k)


@triton.jit
def copy_list(values, indices, size, to_values, to_indices, WIDTH: tl.constexpr):
    """Copy so many entries to another place, which does not overlap theirs."""
    list_all(values, size, 1, (indices, 0, None, 0, 0, 1), to_indices, to_values, size, WIDTH, tl.int32)


@triton.jit
def least_of(values, size, WIDTH: tl.constexpr):
    """(the least of so many logits, whether all of them are NaN); NaN is larger than inf, and inf stands for it here."""
    least = tl.full((WIDTH,), float("inf"), tl.float32)
    ordered = tl.zeros((WIDTH,), tl.int32)
    for first in range(0, size, WIDTH):
        place = first + tl.arange(0, WIDTH)
        value = tl.load(values + place, mask=place < size, other=float("nan"))
        least = tl.minimum(least, tl.where(value == value, value, float("inf")))
        ordered += (value == value).to(tl.int32)
    return tl.min(least, 0), tl.sum(ordered, 0) == 0


@triton.jit
def refresh(
    fill,
    threshold,
    end,
    values,
    indices,
    top_k,
    counters,
    ROWS: tl.constexpr,
    COMING: tl.constexpr,  # keys before the next look, for all of which a list must have room
    ENTRIES: tl.constexpr,  # that a list has room for
    STRIDE: tl.constexpr,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Select from the lists that may become too long; returns ``fill``, ``threshold`` and ``end`` of the rows, [rows], anew.
    A barrier comes before it.

    The threshold becomes the least logit that is kept: of the keys that follow, whose indices are higher, only larger ones and
    NaN can still be in the result. Where all that are kept are NaN none can: the window then ends at 0.
    """
    if tl.max(fill, 0) > ENTRIES - COMING:
        row = tl.arange(0, ROWS)
        for number in range(ROWS):
            mine = row == number
            size = tl.sum(tl.where(mine, fill, 0), 0)
            if size > ENTRIES - COMING:
                mine_values = values + number * STRIDE
                mine_indices = indices + number * STRIDE
                kept_values = mine_values + ENTRIES
                kept_indices = mine_indices + ENTRIES
                keep_top(mine_values, mine_indices, size, top_k, kept_values, kept_indices, counters, RUNS, PLANES, SLOTS)
                count(counters, REFRESHED)
                copy_list(kept_values, kept_indices, top_k, mine_values, mine_indices, RUNS)
                least, closed = least_of(kept_values, top_k, RUNS)
                if closed:
                    count(counters, CLOSED)
                fill = tl.where(mine, top_k, fill)
                threshold = tl.where(mine, least, threshold)
                end = tl.where(mine & closed, 0, end)
    return fill, threshold, end


@triton.jit
def write_result(values, indices, size, row, top_k, written, pages, WIDTH: tl.constexpr):
    """Write a row's ``size`` entries as its result, at most top_k: indices or slots of the page table, then -1 and -inf.

    written : (results, their row stride, scores or None, their row stride)
    pages : (page table or None, its rows, its columns, their strides, the row of it that each row looks into or None, their
        stride, positions of a page, how many rows look into the same row of it)
    """
    results = written[0] + row * written[1]
    scores = written[2]
    if scores is not None:
        scores += row * written[3]
    if pages[0] is None:
        list_all(values, size, 1, (indices, 0, None, 0, 0, 1), results, scores, top_k, WIDTH, tl.int32)
    else:
        request = row // pages[8] if pages[5] is None else tl.load(pages[5] + row * pages[6]).to(tl.int64)
        known = (request >= 0) & (request < pages[1])
        table = pages[0] + tl.where(known, request, 0) * pages[3]
        numbering = (indices, 0, table, tl.where(known, pages[2], 0), pages[4], pages[7])
        list_all(values, size, 1, numbering, results, scores, top_k, WIDTH, tl.int32)


@triton.jit
def merge_slots(
    values,
    indices,
    size,
    row,
    top_k,
    kept_values,
    kept_indices,
    counters,
    written,
    pages,
    ENTRIES: tl.constexpr,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Select a row's result from the ``size`` entries that programs left of it, side by side and in the order of their keys.

    While they are more than a list has room for the first of them are selected from, and what is kept takes the places right
    before those that follow. ``values`` begins on a 16-byte boundary, and stays on one.
    """
    while size > ENTRIES:
        taken = ENTRIES - (ENTRIES - top_k) % 4
        keep_top(values, indices, taken, top_k, kept_values, kept_indices, counters, RUNS, PLANES, SLOTS)
        count(counters, REFRESHED)
        dropped = taken - top_k
        values += dropped
        indices += dropped
        size -= dropped
        copy_list(kept_values, kept_indices, top_k, values, indices, RUNS)
        tl.debug_barrier()
    if size > top_k:
        keep_top(values, indices, size, top_k, kept_values, kept_indices, counters, RUNS, PLANES, SLOTS)
        write_result(kept_values, kept_indices, top_k, row, top_k, written, pages, RUNS)
    else:
        write_result(values, indices, size, row, top_k, written, pages, RUNS)
