"""What a program's share of the keys is, and what it leaves of a row that others share too, in Triton: all of it follows from
windows, lengths and the schedule, so that programs tell each other nothing."""

import triton
import triton.language as tl

from ...common.device.windows import my_tiles


@triton.jit
def kept_before(begin, end, first, last, split, splits, top_k, BLOCK_KEYS: tl.constexpr):
    """How many entries the shares before a split's leave of rows with windows [begin, end), in a group with keys [first, last):
    top_k each, or as many keys as they see."""
    kept = begin * 0
    for before in range(split):
        _, _, my_first, my_last = my_tiles(first, last, before, splits, BLOCK_KEYS)
        low = my_first * BLOCK_KEYS
        high = my_last * BLOCK_KEYS
        # Each is cut to the share before they are subtracted: an inverted window may be 2 ** 32 wide.
        seen = tl.minimum(tl.maximum(end, low), high) - tl.minimum(tl.maximum(begin, low), high)
        kept += tl.minimum(tl.maximum(seen, 0), top_k)
    return kept


@triton.jit
def continued(schedule, worker, request):
    """Whether a worker's share begins inside a request."""
    return (tl.load(schedule + 2 * worker) == request) & (tl.load(schedule + 2 * worker + 1) > 0)


@triton.jit
def first_worker(schedule, worker, request):
    """The first of the workers that have keys of a request, one of them being ``worker``."""
    while (worker > 0) & continued(schedule, worker, request):
        worker -= 1
    return worker


@triton.jit
def kept_between(schedule, first, past, request, length, top_k, CHUNK: tl.constexpr):
    """How many entries workers [first, past) leave of rows that see ``length`` keys of a request; ``first`` has its first
    ones. Each leaves top_k, or as many keys as it sees."""
    kept = length * 0
    begin = first * 0
    for worker in range(first, past):
        end = tl.where(continued(schedule, worker + 1, request), tl.load(schedule + 2 * worker + 3) * CHUNK, 0x7FFFFFFF)
        mine = tl.minimum(length, end) - tl.minimum(length, begin)
        kept += tl.minimum(mine, top_k)
        begin = end
    return kept
