"""The filter of a long row, in Triton: a sample of it says which logit is the bar, and what reaches that goes to a list."""

import triton
import triton.language as tl

from ..tunings import BAR_MARGIN
from .candidates import LEAST_BAR, candidate_of, load_block, places_of
from .rows import load_four
from .search import find_threshold, tally_reaching

MARGIN = tl.constexpr(BAR_MARGIN)
GOLDEN = tl.constexpr(2654435769)  # 2 ** 32 over the golden ratio: its multiples are spread evenly modulo 2 ** 32


@triton.jit
def sample_bar(
    source, skip, size, stride, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr, QUADS: tl.constexpr, INDEX: tl.constexpr
):
    """A logit that a few more than top_k of source[skip:size] should reach; to be verified by counting.

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
    bar, _reached, _exceeded, _tally = find_threshold(
        sample, 0, tl.full((), RUNS * PLANES, tl.int32), least, RUNS, PLANES, least + (least >> 3)
    )
    return tl.maximum(bar, LEAST_BAR)


@triton.jit
def append_section(
    source,
    skip,
    size,
    stride,
    first_index,
    bar,
    candidates,
    RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    ROOM: tl.constexpr,
    QUADS: tl.constexpr,
    INDEX: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Make a list of the logits of source[:size] that are not less than ``bar``, which is larger than -inf, and return how
    many those are. The list has room for ROOM. Cells before ``skip`` are no keys. Index i of the row is ``first_index + i``."""
    block: tl.constexpr = RUNS * PLANES
    fill = tl.full((), 0, tl.int32)
    if AHEAD:
        coming = load_block(source, 0, size, stride, RUNS, PLANES, QUADS, INDEX)
    for first in range(0, size, block):
        loaded = coming if AHEAD else load_block(source, first, size, stride, RUNS, PLANES, QUADS, INDEX)
        logits = ()
        for plane in tl.static_range(PLANES):
            logits += (loaded[plane].to(tl.float32),)
        if AHEAD:
            coming = load_block(source, first + block, size, stride, RUNS, PLANES, QUADS, INDEX)
        if (first < skip) | (first + block > size):
            number = tl.arange(0, RUNS) * 4 + first
            cut = ()
            for plane in tl.static_range(PLANES):
                place = number + (plane // 4 * RUNS * 4 + plane % 4)
                cut += (tl.where((place >= skip) & (place < size), logits[plane], float("-inf")),)
            logits = cut
        places, total = places_of(tally_reaching(logits, bar, RUNS, PLANES) & 0xFFFF, RUNS, PLANES)
        if fill + total <= ROOM:
            index = first_index + first + tl.arange(0, RUNS) * 4
            cells = candidates + fill
            for quad in tl.static_range(PLANES // 4):
                place = places[quad]
                for plane in tl.static_range(4):
                    mark = ~(logits[quad * 4 + plane] < bar)
                    candidate = candidate_of(logits[quad * 4 + plane], index + (quad * RUNS * 4 + plane))
                    tl.store(cells + place, candidate, mask=mark)
                    place += mark.to(tl.int32)
        fill += total
    return fill
