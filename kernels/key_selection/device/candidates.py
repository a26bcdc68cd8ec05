"""Candidates of a long row, in Triton: top_k are selected from lists of the logits that reach a bar (:mod:`.filtering`).

A candidate is 64 bits: the logit, and above it the index that it stands for. A list has them in the order of their keys. Of a
block of a row element ``run`` of plane ``p`` is number ``(p // 4 * RUNS + run) * 4 + p % 4``: a warp's threads take adjacent
quads. Of candidates so are those of GROUP runs each, one group's after the other's, so that places are counted within a group.
"""

import triton
import triton.language as tl

from .rows import load_four
from .search import LOWEST, PAST_LARGEST, find_threshold, key_of, narrow, reciprocal, tally_reaching, value_of
from .words import slot_of, split_quads

LEAST_BAR = tl.constexpr(-3.4028234663852886e38)  # the least float32 but -inf
NO_CANDIDATE = tl.constexpr(0xFF800000)  # -inf, as the logit of the first key
SPARE_BITS = tl.constexpr(10)  # of the number of empty cells of a row's lists, three of each at most
GROUP = tl.constexpr(32)  # adjacent runs, which are lanes of a warp or of half a wave
SPARE_MASK = tl.constexpr((1 << SPARE_BITS.value) - 1)


@triton.jit
def quad_counts(bits):
    """How many of each four of sixteen bits are set, in four bits each."""
    pairs = bits - ((bits >> 1) & 0x5555)
    return (pairs & 0x3333) + ((pairs >> 2) & 0x3333)


@triton.jit
def places_of(bits, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """(places, total): how many marked logits come before each quad of a run, in the order of their numbers, and how many there
    are. ``bits`` has a bit for each plane whose logit is marked."""
    counts = quad_counts(bits)
    packed = ((counts & 0xF) | ((counts & 0xF0) << 12)).to(tl.int64)  # in sixteen bits each
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
def quad_number(run, quad, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """Which of the candidates' quads is a run's one number ``quad``, int32 as ``run``."""
    return run // GROUP * (GROUP * (PLANES // 4)) + quad * (GROUP if RUNS > GROUP else RUNS) + run % GROUP


@triton.jit
def listed_places_of(bits, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """How many marked candidates come before each quad of a run, in the order of their numbers, from ``bits`` as
    :func:`places_of` takes them. Quads are counted side by side, in eight bits each: a group has 128 of them at most."""
    lanes: tl.constexpr = GROUP if RUNS > GROUP else RUNS
    counts = quad_counts(bits)
    counts = (counts | (counts << 8)) & 0x00FF00FF
    counts = tl.reshape((counts | (counts << 4)) & 0x0F0F0F0F, (RUNS // lanes, lanes))
    within = tl.cumsum(counts, 1) - counts
    sums = tl.sum(counts, 1)
    number = tl.zeros((RUNS // lanes,), tl.int32)
    for quad in tl.static_range(PLANES // 4):
        number += (sums >> (quad * 8)) & 0xFF
    first = tl.cumsum(number, 0) - number
    places = ()
    for quad in tl.static_range(PLANES // 4):
        places += (tl.reshape(first[:, None] + ((within >> (quad * 8)) & 0xFF), (RUNS,)),)
        first += (sums >> (quad * 8)) & 0xFF
    return places


@triton.jit
def bits_between(low, high):
    """The lower four bits from number ``low`` on and below number ``high``."""
    low = tl.minimum(tl.maximum(low, 0), 4)
    high = tl.minimum(tl.maximum(high, 0), 4)
    return ((1 << high) - 1) & ~((1 << low) - 1)


@triton.jit
def load_block(source, first, end, stride, RUNS: tl.constexpr, PLANES: tl.constexpr, QUADS: tl.constexpr, INDEX: tl.constexpr):
    """source[first:end] as PLANES tensors, of a block's size at most; behind ``end`` they hold anything."""
    loaded = ()
    for quad in tl.static_range(PLANES // 4):
        loaded += load_four(source, first + (quad * RUNS + tl.arange(0, RUNS)) * 4, end, stride, QUADS, INDEX)
    return loaded


@triton.jit
def inside_bits(first, skip, end, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """[RUNS] int32: a bit for each plane whose logit, of a block that begins with cell ``first``, is one of [skip, end)."""
    bits = tl.zeros((RUNS,), tl.int32)
    for quad in tl.static_range(PLANES // 4):
        place = tl.arange(0, RUNS) * 4 + (first + quad * RUNS * 4)
        bits |= bits_between(skip - place, end - place) << (quad * 4)
    return bits


@triton.jit
def candidate_of(logit, index):
    """The 64 bits of a logit and its index."""
    return (index.to(tl.int64) << 32) | (logit.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def end_list(candidates, fill, ROOM: tl.constexpr):
    """Fill up the last quad of a list of ``fill`` candidates, if it has room for those, with what is none."""
    place = fill + tl.arange(0, 4)
    tl.store(candidates + place, NO_CANDIDATE, mask=(place < (fill + 3) // 4 * 4) & (place < ROOM))


@triton.jit
def load_candidates(candidates, cell, exist):
    """Four tensors of candidates, those in ``cell`` and behind it, or -inf where none ``exist``.

    Nothing but a load looks at what is missing: a choice by logit had ptxas wait for a load before it began the next one.
    """
    nth = tl.arange(0, 2)  # 16 bytes a thread: of 32 Triton makes two threads' work, and moves them
    cells = candidates + cell[:, None] + nth[None, :]
    exist = exist[:, None] & (nth < 2)[None, :]
    first, second = tl.split(tl.load(cells, mask=exist, other=NO_CANDIDATE))
    third, fourth = tl.split(tl.load(cells + 2, mask=exist, other=NO_CANDIDATE))
    return first, second, third, fourth


@triton.jit
def logit_of(candidate):
    """Its logit."""
    return candidate.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def guess_above(logits, bar, total, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """As :func:`.search.first_guess`, for ``total`` logits larger than ``bar``: the tail of a distribution, which falls about
    as an exponential one does. Without a bar, -inf, the mean is one, and half of them are larger."""
    number = total.to(tl.float32)
    if bar == LEAST_BAR:
        summed = tl.zeros((RUNS,), tl.float32)
        for plane in tl.static_range(PLANES):
            summed += tl.where(tl.abs(logits[plane]) < float("inf"), logits[plane], 0.0)
        bar = tl.sum(summed, 0) / number
        number *= 0.5
    summed = tl.zeros((RUNS,), tl.float32)
    for plane in tl.static_range(PLANES):
        summed += tl.maximum(logits[plane] - bar, 0.0)
    scale = tl.sum(summed, 0) * reciprocal(number)
    wanted = (total * 0 + top_k).to(tl.float32)  # a top_k of 1 is a constant to Triton, which cannot be converted
    # The logarithm of number / wanted, to a hundredth of it up to four, in a tenth of the instructions.
    part = (number - wanted) * reciprocal(number + wanted)
    square = part * part
    twice = part + part
    return bar + scale * (twice + twice * square * (0.3333333 + square * 0.2)), scale * reciprocal(wanted)


@triton.jit
def bits_larger(logits, threshold, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """[RUNS] int32: a bit for each plane whose logit is larger than ``threshold``, or NaN."""
    bits = tl.zeros((RUNS,), tl.int32)
    for plane in tl.static_range(PLANES):
        bits |= tl.where(logits[plane] <= threshold, 0, 1 << plane)
    return bits


@triton.jit
def count_of(bits):
    """How many of sixteen bits are set."""
    counts = quad_counts(bits)
    pairs = (counts & 0x0F0F) + ((counts >> 4) & 0x0F0F)
    return (pairs & 0xFF) + (pairs >> 8)


@triton.jit
def first_of(bits, before, number, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """The first ``number`` of the marked logits, by how many come before each quad."""
    found = tl.zeros((RUNS,), tl.int32)
    for quad in tl.static_range(PLANES // 4):
        place = before[quad]
        for plane in tl.static_range(4):
            mark = (bits >> (quad * 4 + plane)) & 1
            found |= tl.where(place < number, mark, 0) << (quad * 4 + plane)
            place += mark
    return found


@triton.jit
def mark_top(logits, total, bar, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """[RUNS] int32, a bit for each plane: which of ``total`` logits are the top_k largest, of equal ones the first.

    bar : what they are not less than, larger than -inf; others are -inf
    """
    guess, spacing = guess_above(logits, bar, total, top_k, RUNS, PLANES)
    bracket = narrow(logits, bar, total, top_k, guess, spacing, RUNS, PLANES)
    threshold, reached, _exceeded, _tally = find_threshold(logits, 0, total, top_k, RUNS, PLANES, bracket=bracket)
    bits = tally_reaching(logits, threshold, RUNS, PLANES) & 0xFFFF
    if reached != top_k:
        larger = bits_larger(logits, threshold, RUNS, PLANES)
        exceeded = tl.sum(count_of(larger), 0)
        equals = bits & ~larger
        if exceeded >= top_k:  # larger than inf is NaN; where there are enough of those, they are the equal ones
            equals = larger
            larger = larger * 0
            exceeded = exceeded * 0
        before = listed_places_of(equals, RUNS, PLANES)
        bits = larger | first_of(equals, before, top_k - exceeded, RUNS, PLANES)
    return bits


@triton.jit
def sizes_of(candidates, sections, ROOM: tl.constexpr, MOST: tl.constexpr):
    """[MOST] int32: how many quads each of a row's lists takes, one more than it has room for at most, and below that, in
    SPARE_BITS, how many cells of the last one are empty; 0 for those that there are not."""
    section = tl.arange(0, MOST)
    count = tl.load(candidates + section * (ROOM + 2) + ROOM, mask=section < sections, other=0)
    count = tl.minimum(count, ROOM + 4).to(tl.int32)
    quads = (count + 3) // 4
    return (quads << SPARE_BITS) | (quads * 4 - count)


@triton.jit
def cells_of(sizes, sections, held, RUNS: tl.constexpr, PLANES: tl.constexpr, ROOM: tl.constexpr, MOST: tl.constexpr):
    """(cells, exist): for each quad of a run in which cell it begins, and whether it exists, of lists of ``sizes``, one after
    the other, each in whole quads, with ``held`` cells. Its list is found by halving the lists, by where they end; for all of
    them at once, as each look goes through shared memory."""
    quads_of: tl.constexpr = PLANES // 4
    quads = sizes >> SPARE_BITS
    ends = tl.cumsum(quads, 0)
    quad = tl.arange(0, RUNS * quads_of)
    number = quad_number(quad % RUNS, quad // RUNS, RUNS, PLANES)
    mine = tl.zeros((RUNS * quads_of,), tl.int32)
    half = tl.full((), 1, tl.int32)
    while half < sections:
        half += half
    half = half >> 1
    while half > 0:
        ended = tl.gather(ends, mine + (half - 1), 0) <= number
        mine += tl.where(ended, half, 0)
        half = half >> 1
    begins = by_quad(tl.gather(ends - quads, mine, 0), RUNS, quads_of)
    mine = by_quad(mine, RUNS, quads_of)
    cells = ()
    exist = ()
    for quad in tl.static_range(quads_of):
        number = quad_number(tl.arange(0, RUNS), quad, RUNS, PLANES)
        cells += (mine[quad] * (ROOM + 2) + (number - begins[quad]) * 4,)
        exist += (number * 4 < held,)
    return cells, exist


@triton.jit
def by_quad(numbers, RUNS: tl.constexpr, QUADS: tl.constexpr):
    """The QUADS tensors of RUNS, two or four of them, that lie one after the other in ``numbers``."""
    numbers = tl.trans(tl.reshape(numbers, (QUADS, RUNS)))
    return split_quads(numbers) if QUADS == 4 else tl.split(numbers)


@triton.jit
def write_top(
    lists,
    top_k,
    numbering,
    indices,
    values,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    ROOM: tl.constexpr,
    MOST: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Write indices and values of the top_k of a row's candidates.

    lists : (candidates, sizes, sections, held, total, bar): in lists of ``sizes``, or in one where that is None, with ``held``
        cells, whole quads; how many candidates they are, and what those are not less than
    KEPT : their indices are kept while the threshold is looked for; otherwise they are loaded again
    """
    candidates, sizes, sections, held, total, bar = lists
    if sizes is not None:
        cells, exist = cells_of(sizes, sections, held, RUNS, PLANES, ROOM, MOST)
    else:
        cells = ()
        exist = ()
        for quad in tl.static_range(PLANES // 4):
            cells += (quad_number(tl.arange(0, RUNS), quad, RUNS, PLANES) * 4,)
            exist += (cells[quad] < total,)
    found = ()
    for quad in tl.static_range(PLANES // 4):
        found += load_candidates(candidates, cells[quad], exist[quad])
    logits = ()
    for plane in tl.static_range(PLANES):
        logits += (logit_of(found[plane]),)
    bits = mark_top(logits, total, bar, top_k, RUNS, PLANES)
    places = listed_places_of(bits, RUNS, PLANES)
    for quad in tl.static_range(PLANES // 4):
        loaded = found[quad * 4 : quad * 4 + 4] if KEPT else load_candidates(candidates, cells[quad], exist[quad])
        place = places[quad]
        for plane in tl.static_range(4):
            mark = (bits & (1 << (quad * 4 + plane))) != 0
            index = (loaded[plane] >> 32).to(tl.int32)
            tl.store(indices + place, slot_of(index, mark, numbering), mask=mark)
            if values is not None:
                tl.store(values + place, logit_of(loaded[plane]), mask=mark)
            place += mark.to(tl.int32)


@triton.jit
def count_reaching(
    source,
    skip,
    size,
    stride,
    value,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    QUADS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(how many of source[skip:size] are not less than ``value``, how many are NaN), by a read of the row."""
    number = tl.zeros((RUNS,), tl.int32)
    unordered = tl.zeros((RUNS,), tl.int32)
    for first in range(0, size, RUNS * PLANES):
        logits = ()
        loaded = load_block(source, first, size, stride, RUNS, PLANES, QUADS, INDEX)
        for plane in tl.static_range(PLANES):
            logits += (loaded[plane].to(tl.float32),)
        inside = inside_bits(first, skip, size, RUNS, PLANES)
        number += count_of(tally_reaching(logits, value, RUNS, PLANES) & inside)
        unordered += count_of(bits_larger(logits, float("inf"), RUNS, PLANES) & inside)
    return tl.sum(number, 0), tl.sum(unordered, 0)


@triton.jit
def write_by_counting(
    source,
    skip,
    size,
    stride,
    bar,
    top_k,
    numbering,
    indices,
    values,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    QUADS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Write indices and values of the top_k largest of source[skip:size] without a list: the row is read for each count.

    The threshold is searched for as in :func:`.search.find_threshold`, by halves, but for two looks at first: where many logits
    equal the bar, which is why they were too many for a list, it is the bar.
    """
    low = tl.full((), LOWEST, tl.uint32)
    high = tl.full((), PAST_LARGEST, tl.uint32)
    at_low = size - skip
    at_high = tl.full((), 0, tl.int32)
    unordered = tl.full((), 0, tl.int32)
    barred = key_of(bar + 0.0)  # of 0 and not of -0
    pivot = barred + 1
    step = tl.full((), 0, tl.int32)
    while (at_low != top_k) & (high - low > 1):
        step += 1
        pivot = tl.minimum(tl.maximum(pivot, low + 1), high - 1)
        reached, unordered = count_reaching(source, skip, size, stride, value_of(pivot), RUNS, PLANES, QUADS, INDEX)
        enough = reached >= top_k
        low = tl.where(enough, pivot, low)
        high = tl.where(enough, high, pivot)
        at_low = tl.where(enough, reached, at_low)
        at_high = tl.where(enough, at_high, reached)
        pivot = tl.where(step == 1, barred, low + ((high - low) >> 1))
    threshold = value_of(low)
    # Larger than inf is NaN; where there are enough of those, they are the equal ones.
    only_nan = (threshold == float("inf")) & (unordered >= top_k)
    exceeded = tl.where(threshold == float("inf"), unordered, at_high)
    spare = top_k - tl.where(only_nan, 0, exceeded)
    taken = tl.full((), 0, tl.int32)
    written = tl.full((), 0, tl.int32)
    for first in range(0, size, RUNS * PLANES):
        logits = ()
        loaded = load_block(source, first, size, stride, RUNS, PLANES, QUADS, INDEX)
        for plane in tl.static_range(PLANES):
            logits += (loaded[plane].to(tl.float32),)
        inside = inside_bits(first, skip, size, RUNS, PLANES)
        larger = bits_larger(logits, threshold, RUNS, PLANES) & inside
        equals = tally_reaching(logits, threshold, RUNS, PLANES) & inside & ~larger
        equals = tl.where(only_nan, larger, equals)
        before, number = places_of(equals, RUNS, PLANES)
        bits = tl.where(only_nan, 0, larger) | first_of(equals, before, spare - taken, RUNS, PLANES)
        taken += number
        places, number = places_of(bits, RUNS, PLANES)
        index = numbering[1] + first + tl.arange(0, RUNS) * 4
        for quad in tl.static_range(PLANES // 4):
            place = places[quad] + written
            for plane in tl.static_range(4):
                mark = (bits >> (quad * 4 + plane)) & 1
                found = slot_of(index + (quad * RUNS * 4 + plane), mark != 0, numbering)
                tl.store(indices + place, found, mask=mark != 0)
                if values is not None:
                    tl.store(values + place, logits[quad * 4 + plane], mask=mark != 0)
                place += mark
        written += number
