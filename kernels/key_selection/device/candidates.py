"""Candidates of a long row, in Triton: logits that reach a bar are appended to a list, from which top_k are selected.

A candidate is 64 bits: the logit, and above it the index that it stands for. A list has them in the order of their keys. Here a
plane's logits are quads apart: element ``run`` of plane ``p`` is number ``(p // 4 * RUNS + run) * 4 + p % 4`` of a block, so that
the threads of a warp load and write adjacent quads.
"""

import triton
import triton.language as tl

from .rows import load_four
from .search import COUNT_BIT, COUNT_ONE, PAST_LARGEST, find_threshold, key_of, tally_reaching, value_of
from .words import slot_of

MARGIN = tl.constexpr(5.0)  # standard deviations of a sample's count by which its bar is lower than where top_k should reach it
GOLDEN = tl.constexpr(2654435769)  # 2 ** 32 over the golden ratio: its multiples are spread evenly modulo 2 ** 32


@triton.jit
def places_of(bits, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """(places, total): how many marked logits come before each quad of a run, in the order of their numbers, and how many there
    are. ``bits`` has a bit for each plane whose logit is marked."""
    pairs = bits - ((bits >> 1) & 0x5555)
    counts = (pairs & 0x3333) + ((pairs >> 2) & 0x3333)  # of each quad in four bits
    packed = ((counts & 0xF) | ((counts & 0xF0) << 12)).to(tl.int64)  # and in sixteen
    if PLANES > 8:
        packed |= (((counts >> 8) & 0xF) | ((counts & 0xF000) << 4)).to(tl.int64) << 32
    before = tl.cumsum(packed, 0) - packed
    sums = tl.sum(packed, 0)
    places = ()
    total = tl.full((), 0, tl.int32)
    for quad in tl.static_range(PLANES // 4):
        places += (total + ((before >> (quad * 16)) & 0xFFFF).to(tl.int32),)
        total += ((sums >> (quad * 16)) & 0xFFFF).to(tl.int32)
    return places, total


@triton.jit
def bits_between(low, high):
    """The lower four bits from number ``low`` on and below number ``high``."""
    low = tl.minimum(tl.maximum(low, 0), 4)
    high = tl.minimum(tl.maximum(high, 0), 4)
    return ((1 << high) - 1) & ~((1 << low) - 1)


@triton.jit
def sample_bar(
    source, skip, size, stride, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr, QUADS: tl.constexpr, INDEX: tl.constexpr
):
    """A logit that a few more than top_k of source[skip:size] should reach; to be verified by counting. -inf for no idea.

    It is sampled: a quad of each of RUNS * PLANES / 4 parts of the row, anywhere in its part, so that nothing that repeats at a
    constant distance is seen always or never.
    """
    points: tl.constexpr = RUNS * PLANES // 4
    first = tl.cdiv(skip, 4)
    quads = size // 4 - first
    step = quads // points
    spare = quads - step * points
    sample = ()
    for group in tl.static_range(PLANES // 4):
        point = tl.arange(0, RUNS) * (PLANES // 4) + group  # each plane has all of the row, for the first guess
        inside = tl.umulhi(point.to(tl.uint32) * GOLDEN, step.to(tl.uint32)).to(tl.int32)
        place = (first + point * step + point * spare // points + inside) * 4
        loaded = load_four(source, place, size, stride, QUADS, INDEX)
        for plane in tl.static_range(4):
            sample += (loaded[plane].to(tl.float32),)
    expected = 1.0 * top_k * (RUNS * PLANES) / (size - skip).to(tl.float32)
    least = tl.minimum((expected + MARGIN * tl.sqrt(expected)).to(tl.int32) + 2, RUNS * PLANES - 1)
    bar, reached, exceeded, tally = find_threshold(
        sample, 0, tl.full((), RUNS * PLANES, tl.int32), least, RUNS, PLANES, least + (least >> 3)
    )
    return bar


@triton.jit
def load_block(source, first, end, stride, RUNS: tl.constexpr, PLANES: tl.constexpr, QUADS: tl.constexpr, INDEX: tl.constexpr):
    """source[first:end] as PLANES tensors, of a block's size at most; behind ``end`` they hold anything."""
    loaded = ()
    for quad in tl.static_range(PLANES // 4):
        loaded += load_four(source, first + (quad * RUNS + tl.arange(0, RUNS)) * 4, end, stride, QUADS, INDEX)
    return loaded


@triton.jit
def append_section(
    source,
    skip,
    begin,
    end,
    stride,
    first_index,
    bar,
    top_k,
    candidates,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    ROOM: tl.constexpr,
    MOST: tl.constexpr,
    LIST_PLANES: tl.constexpr,
    QUADS: tl.constexpr,
    INDEX: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Make a list of the logits of source[begin:end] that are not less than ``bar``, and return how many those are, MOST at most.
    Cells before ``skip`` are no keys. Index i of the row is ``first_index + i``.

    The list has room for all: where the next block may not fit, the top_k of the list are selected, and from then on only larger
    logits are appended, for the others come after top_k of the row.
    """
    block: tl.constexpr = RUNS * PLANES
    number = tl.arange(0, RUNS) * 4
    fill = tl.full((), 0, tl.int32)
    if AHEAD:
        coming = load_block(source, begin, end, stride, RUNS, PLANES, QUADS, INDEX)
    for first in range(begin, end + block, block):
        if (fill > ROOM - block) | ((first >= end) & (fill > MOST)):
            bar = refresh(candidates, fill, bar, top_k, ROOM // LIST_PLANES, LIST_PLANES)
            fill = tl.full((), 0, tl.int32) + top_k
        if first < end:
            if AHEAD:
                loaded = coming
            else:
                loaded = load_block(source, first, end, stride, RUNS, PLANES, QUADS, INDEX)
            logits = ()
            for plane in tl.static_range(PLANES):
                logits += (loaded[plane].to(tl.float32),)
            if AHEAD:
                coming = load_block(source, first + block, end, stride, RUNS, PLANES, QUADS, INDEX)
            bits = tally_reaching(logits, bar, RUNS, PLANES) & 0xFFFF
            if (first < skip) | (first + block > end):
                for quad in tl.static_range(PLANES // 4):
                    place = number + (first + quad * RUNS * 4)
                    bits &= (bits_between(skip - place, end - place) << (quad * 4)) | ~(0xF << (quad * 4))
            places, total = places_of(bits, RUNS, PLANES)
            index = first_index + first + number
            cells = candidates + fill
            for quad in tl.static_range(PLANES // 4):
                place = places[quad]
                for plane in tl.static_range(4):
                    mark = (bits >> (quad * 4 + plane)) & 1
                    candidate = candidate_of(logits[quad * 4 + plane], index + (quad * RUNS * 4 + plane))
                    tl.store(cells + place, candidate, mask=mark != 0)
                    place += mark
            fill += total
    return fill


@triton.jit
def candidate_of(logit, index):
    """The 64 bits of a logit and its index."""
    return (index.to(tl.int64) << 32) | (logit.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def load_candidates(candidates, cell, left):
    """Four tensors of candidates, those in ``cell`` and behind it; from number ``left`` on they are anything."""
    nth = tl.arange(0, 2)  # 16 bytes a thread: of 32 Triton makes two threads' work, and moves them
    cells = candidates + cell[:, None] + nth[None, :]
    first, second = tl.split(tl.load(cells, mask=(left > 0)[:, None] & (nth < 2)[None, :]))
    third, fourth = tl.split(tl.load(cells + 2, mask=(left > 2)[:, None] & (nth < 2)[None, :]))
    return first, second, third, fourth


@triton.jit
def logit_of(candidate):
    """Its logit."""
    return candidate.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def guess_above(logits, bar, total, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """As :func:`.search.first_guess`, for ``total`` logits that are larger than ``bar``: the tail of a distribution, which falls
    about as an exponential one does. Without a bar, -inf, the mean is one, and half of them are larger."""
    number = total.to(tl.float32)
    if bar == float("-inf"):
        summed = tl.zeros((RUNS,), tl.float32)
        for plane in tl.static_range(PLANES):
            summed += tl.where(tl.abs(logits[plane]) < float("inf"), logits[plane], 0.0)
        bar = tl.sum(summed, 0) / number
        number *= 0.5
    summed = tl.zeros((RUNS,), tl.float32)
    for plane in tl.static_range(PLANES):
        summed += tl.maximum(logits[plane] - bar, 0.0)
    scale = tl.sum(summed, 0) / number
    return bar + scale * 0.6931472 * tl.log2(number / top_k), scale / top_k


@triton.jit
def mark_top(candidates, cells, left, total, bar, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr, IN_TURN: tl.constexpr):
    """(bits, threshold): which of ``total`` candidates are the top_k largest, of equal ones the first; there are as many.

    cells, left : for each quad of a run, where it begins and how many candidates are left in its list from there on
    bar : what most of them should be larger than, -inf for no idea
    """
    logits = ()
    exist = tl.zeros((RUNS,), tl.int32)
    for quad in tl.static_range(PLANES // 4):
        found = load_candidates(candidates, cells[quad], left[quad])
        for plane in tl.static_range(4):
            logits += (tl.where(left[quad] > plane, logit_of(found[plane]), float("-inf")),)
        exist |= bits_between(0, left[quad]) << (quad * 4)
        if IN_TURN:
            tl.debug_barrier()
    guessed = guess_above(logits, bar, total, top_k, RUNS, PLANES)
    threshold, reached, exceeded, tally = find_threshold(logits, 0, total, top_k, RUNS, PLANES, guessed=guessed)
    bits = tally_reaching(logits, threshold, RUNS, PLANES) & exist
    if reached != top_k:
        larger = tl.zeros((RUNS,), tl.float32)
        for plane in tl.static_range(PLANES):
            larger = tl.fma(tl.where(logits[plane] <= threshold, 0.0, 1.0), COUNT_ONE + (1 << plane), larger)
        exceeded = tl.sum(larger.to(tl.int32) >> COUNT_BIT, 0)
        larger = larger.to(tl.int32) & exist
        equals = bits & ~larger
        if exceeded >= top_k:  # larger than inf is NaN; where there are enough of those, they are the equal ones
            equals = larger
            larger = larger * 0
            exceeded = exceeded * 0
        before, number = places_of(equals, RUNS, PLANES)
        bits = larger
        for quad in tl.static_range(PLANES // 4):
            place = before[quad]
            for plane in tl.static_range(4):
                mark = (equals >> (quad * 4 + plane)) & 1
                bits |= tl.where(place < top_k - exceeded, mark, 0) << (quad * 4 + plane)
                place += mark
    return bits, threshold


@triton.jit
def refresh(candidates, fill, bar, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """Leave the top_k of a list's ``fill`` candidates, which are more, in their order; returns the bar from now on: what comes
    later must be larger than the least of them. NaN is larger than inf, so inf and NaN alone pass where that is inf."""
    cells = ()
    left = ()
    for quad in tl.static_range(PLANES // 4):
        cells += ((quad * RUNS + tl.arange(0, RUNS)) * 4,)
        left += (fill - cells[quad],)
    tl.debug_barrier()
    bits, threshold = mark_top(candidates, cells, left, fill, bar, top_k, RUNS, PLANES, True)
    places, taken = places_of(bits, RUNS, PLANES)
    for quad in tl.static_range(PLANES // 4):
        found = load_candidates(candidates, cells[quad], left[quad])
        tl.debug_barrier()  # a candidate's new place is never behind its old one
        place = places[quad]
        for plane in tl.static_range(4):
            mark = (bits >> (quad * 4 + plane)) & 1
            tl.store(candidates + place, found[plane], mask=mark != 0)
            place += mark
    tl.debug_barrier()
    next_key = key_of(threshold + 0.0) + 1  # of 0 and not of -0
    return value_of(tl.minimum(next_key, PAST_LARGEST - 1))


@triton.jit
def cells_of(
    candidates,
    sections,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    ROOM: tl.constexpr,
):
    """(cells, left), as :func:`mark_top` takes them, for the lists of a row's sections, one after the other."""
    width: tl.constexpr = 16
    weight: tl.constexpr = 2**20  # more than quads before
    section = tl.arange(0, width)
    packed = ()
    for quad in tl.static_range(PLANES // 4):
        packed += (tl.zeros((RUNS,), tl.int32),)
    upto = tl.full((), 0, tl.int32)
    for first in range(0, sections, width):
        cell = (first + section) * (ROOM + 2) + ROOM
        quads = (tl.load(candidates + cell, mask=first + section < sections, other=0).to(tl.int32) + 3) // 4
        ends = upto + tl.cumsum(quads, 0)
        weights = tl.where(first + section < sections, quads + weight, 0)
        summed = ()
        for quad in tl.static_range(PLANES // 4):
            number = quad * RUNS + tl.arange(0, RUNS)
            passed = tl.where(ends[:, None] <= number[None, :], weights[:, None], 0)
            summed += (packed[quad] + tl.sum(passed, 0),)
        packed = summed
        upto += tl.sum(quads, 0)
    cells = ()
    left = ()
    for quad in tl.static_range(PLANES // 4):
        mine = packed[quad] // weight
        before = (quad * RUNS + tl.arange(0, RUNS) - packed[quad] % weight) * 4
        count = tl.load(candidates + mine * (ROOM + 2) + ROOM, mask=mine < sections, other=0).to(tl.int32)
        cells += (mine * (ROOM + 2) + before,)
        left += (tl.where(mine < sections, count - before, 0),)
    return cells, left


@triton.jit
def write_top(
    candidates,
    sections,
    total,
    bar,
    top_k,
    numbering,
    indices,
    values,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    ROOM: tl.constexpr,
):
    """Write indices and values of the top_k of ``total`` candidates, in the lists of a row's sections."""
    if sections is None:
        cells = ()
        left = ()
        for quad in tl.static_range(PLANES // 4):
            cells += ((quad * RUNS + tl.arange(0, RUNS)) * 4,)
            left += (total - cells[quad],)
    else:
        cells, left = cells_of(candidates, sections, RUNS, PLANES, ROOM)
    bits, threshold = mark_top(candidates, cells, left, total, bar, top_k, RUNS, PLANES, False)
    places, taken = places_of(bits, RUNS, PLANES)
    for quad in tl.static_range(PLANES // 4):
        found = load_candidates(candidates, cells[quad], left[quad])
        place = places[quad]
        for plane in tl.static_range(4):
            number = (bits >> (quad * 4 + plane)) & 1
            mark = number != 0
            index = (found[plane] >> 32).to(tl.int32)
            tl.store(indices + place, slot_of(index, mark, numbering), mask=mark)
            if values is not None:
                tl.store(values + place, logit_of(found[plane]), mask=mark)
            place += number
