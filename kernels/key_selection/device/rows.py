"""A row of logits or of what stands for them, in Triton: loaded four elements at a time, and listed as it is."""

import triton
import triton.language as tl

from .words import index_of, split_quads


@triton.jit
def window_of(
    starts,
    ends,
    row,
    stride_starts,
    stride_ends,
    columns,
    num_keys,
    COMPRESSED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """(begin, aligned, skip, size): the first key that a row sees, and where it is: ``skip`` cells behind column ``aligned``, a
    multiple of four with ALIGNED, from which on ``size`` cells are read."""
    start = (row * 0).to(tl.int32)  # Gluon calls this too, and makes no scalar by tl.full
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
    return begin, aligned, skip, count + skip


@triton.jit
def pages_of(requests, row, num_requests, num_pages, stride_table, stride_requests, ROWS: tl.constexpr):
    """Where in the page table the row begins that a row looks into, and how many pages are known there."""
    request = row // ROWS if requests is None else tl.load(requests + row * stride_requests).to(tl.int64)
    known = (request >= 0) & (request < num_requests)
    return tl.where(known, request, 0) * stride_table, tl.where(known, num_pages, 0)


@triton.jit
def load_four(source, offset, size, stride, QUADS: tl.constexpr, INDEX: tl.constexpr):
    """Four tensors, the elements at ``offset``, ``offset + 1`` and so on; from ``size`` on they hold anything.

    QUADS : every offset is 16-byte aligned; with a load of 16 bytes comes also what lies behind ``size``
    """
    if QUADS:
        nth = tl.arange(0, 4)
        quads = tl.load(source + offset[:, None] + nth[None, :], mask=(offset < size)[:, None] & (nth < 4)[None, :])
        first, second, third, fourth = split_quads(quads)
    else:
        at = offset.to(INDEX) * stride
        first = tl.load(source + at, mask=offset < size)
        source += stride  # by one stride at a time: three of them may need 64 bits
        second = tl.load(source + at, mask=offset + 1 < size)
        source += stride
        third = tl.load(source + at, mask=offset + 2 < size)
        source += stride
        fourth = tl.load(source + at, mask=offset + 3 < size)
    return first, second, third, fourth


@triton.jit
def list_all(
    source,
    count,
    stride,
    numbering,
    indices,
    values,
    room,
    RUNS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Write the indices of ``count`` logits, and their values where ``values`` is given, and -1 and -inf up to ``room``."""
    for first in range(0, room, RUNS):
        number = first + tl.arange(0, RUNS)
        exists = number < count
        index = index_of(number, exists, numbering, -1)
        if numbering[0] is None:
            index = tl.where(exists, index, -1)
        tl.store(indices + number, index, mask=number < room)
        if values is not None:
            value = tl.load(source + number.to(INDEX) * stride, mask=exists, other=float("-inf"))
            tl.store(values + number, value.to(tl.float32), mask=number < room)
