"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    row i: the top_k largest of logits[i, j] for max(starts[i], 0) <= j < min(ends[i], N), equal ones by their index

A program reads up to BLOCK logits of a row into registers, once, and looks for the threshold that exactly top_k of them reach:
it counts how many reach a pivot, and moves the pivot by interpolation, five or six times for logits as they come; where that
stalls it bisects the bits of a float, so that no row takes more than a few dozen counts. A prefix sum then says where the
selected logits of each thread go, and they are written four at a time. A longer row is cut: each program leaves the top_k of
its block, in order, and the next launch selects from those, until a row fits one block. How many launches that takes depends on
shapes alone. Counts are exact and nothing is added up in an order that may change, so results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl

from capgate import compat

from .operands import Inputs
from .operation import Problem
from .scratch import rooms, scratch_rooms
from .tunings import classic as tuning

LOWEST = tl.constexpr(0x007FFFFF)  # the key of -inf
PAST_LARGEST = tl.constexpr(0xFF800001)  # one more than the key of inf: only NaN is not less than its value, a NaN
COUNT_BIT = tl.constexpr(17)  # of a tally: from here up it counts, and below it has a bit for each plane
COUNT_ONE = tl.constexpr(2.0**COUNT_BIT.value)  # what counts one
SMALLEST_SLOTS = 128  # a store of 16 bytes of each thread of a warp
STEPS = tl.constexpr(8)  # of so many in the search for a threshold one draws the bracket in


@triton.jit
def key_of(value):
    """An unsigned integer that has the float's order; -0 comes right before 0."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def value_of(key):
    """The float of a key."""
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ ((~bits >> 31) | -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def split_quads(quads):
    """The four columns of a tensor of quads."""
    even, odd = tl.split(tl.reshape(quads, (quads.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def join_quads(first, second, third, fourth):
    """The tensor of quads that has these four columns."""
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (first.shape[0], 4))


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
        cell = source + offset.to(INDEX) * stride
        first = tl.load(cell, mask=offset < size)
        second = tl.load(cell + stride, mask=offset + 1 < size)
        third = tl.load(cell + 2 * stride, mask=offset + 2 < size)
        fourth = tl.load(cell + 3 * stride, mask=offset + 3 < size)
    return first, second, third, fourth


@triton.jit
def load_logits(source, skip, size, stride, RUNS: tl.constexpr, PLANES: tl.constexpr, QUADS: tl.constexpr, INDEX: tl.constexpr):
    """PLANES tensors of RUNS logits: element r of plane p is source[r * PLANES + p], -inf outside [skip, size)."""
    offset = tl.arange(0, RUNS) * PLANES
    loaded = ()
    for quad in tl.static_range(0, PLANES, 4):
        loaded += load_four(source, offset + quad, size, stride, QUADS, INDEX)
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
def first_guess(logits, skip, size, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """(pivot, spacing): where a normal distribution with the mean and deviation of one plane has its threshold, and how far
    logits lie apart there. Neither need be finite."""
    sample = tl.where(tl.abs(logits[0]) < float("inf"), logits[0], 0.0)
    number = tl.cdiv(size, PLANES).to(tl.float32)
    mean = tl.sum(sample, 0) / number
    deviation = tl.sqrt(tl.maximum(tl.sum(sample * sample, 0) / number - mean * mean, 0.0))
    share = 1.0 * top_k / (size - skip).to(tl.float32)  # a top_k of 1 is a constant to Triton, which cannot be converted
    # Tukey's lambda distribution with 0.14 is within 0.01 of the normal one's quantiles.
    quantile = 4.91 * (tl.exp2(0.14 * tl.log2(1.0 - share)) - tl.exp2(0.14 * tl.log2(share)))
    density = tl.exp2(-0.7213475 * quantile * quantile) * 0.3989423 * (size - skip).to(tl.float32)
    return mean + quantile * deviation, deviation / density


@triton.jit
def tally_reaching(logits, pivot, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """[RUNS] int32: from COUNT_BIT up how many of each run's logits are not less than ``pivot``, below it a bit for each
    plane whose logit is one of them."""
    # As a float, in which a multiply-add serves both; the largest, 16 planes, is less than 2 ** 22.
    tally = tl.zeros((RUNS,), tl.float32)
    for plane in tl.static_range(PLANES):
        tally = tl.fma(tl.where(logits[plane] < pivot, 0.0, 1.0), COUNT_ONE + (1 << plane), tally)
    return tally.to(tl.int32)


@triton.jit
def find_threshold(logits, skip, size, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """(threshold, reached, exceeded, tally): ``reached`` logits are not less than ``threshold``, top_k at least. Where it is
    top_k, ``tally`` is :func:`tally_reaching` of the threshold; otherwise ``exceeded`` of them, fewer than top_k, are larger
    than the threshold, and the rest equal it. NaN is less than nothing, and counts as inf here.

    The threshold's key lies in [low, high), whose values at_low and at_high logits reach. It is found once at_low is top_k, or
    once one key is left.
    """
    low = tl.full((), LOWEST, tl.uint32)
    high = tl.full((), PAST_LARGEST, tl.uint32)
    at_low = size - skip
    at_high = tl.full((), 0, tl.int32)
    guess, spacing = first_guess(logits, skip, size, top_k, RUNS, PLANES)
    pivot = tl.where(tl.abs(guess) < float("inf"), key_of(guess), low + ((high - low) >> 1))
    tally = tl.zeros((RUNS,), tl.int32)
    step = tl.full((), 0, tl.int32)
    stalled = tl.full((), 0, tl.int32)
    while (at_low != top_k) & (high - low > 1):
        step += 1
        if step % STEPS == 0:
            low, high = draw_in(logits, low, high, RUNS, PLANES)
        else:
            pivot = tl.minimum(tl.maximum(pivot, low + 1), high - 1)
            value = value_of(pivot)
            tally = tally_reaching(logits, value, RUNS, PLANES)
            at_pivot = tl.sum(tally >> COUNT_BIT, 0)
            before = at_low - at_high
            enough = at_pivot >= top_k
            low = tl.where(enough, pivot, low)
            high = tl.where(enough, high, pivot)
            at_low = tl.where(enough, at_pivot, at_low)
            at_high = tl.where(enough, at_high, at_pivot)

            # The next pivot: interpolated between the values at both ends. While one end is infinite, a bit farther away than
            # the count was off, so that both come near. After the first drawing in, a step that does not halve the bracket is
            # followed by one that interpolates between the keys, which grow as a logarithm, and that by one halfway.
            between = at_low - at_high
            root = tl.rsqrt((between + 1).to(tl.float32))  # a division would take longer, and need not be exact
            share = ((at_low - top_k).to(tl.float32) + 0.5) * root * root
            if (low == LOWEST) | (high == PAST_LARGEST):
                missed = tl.abs(at_pivot - top_k).to(tl.float32)
                away = spacing * (1.15 * missed + 1.5 * tl.sqrt(missed) + 2.0)
                guess = tl.where(enough, value + away, value - away)
                spacing *= 4.0
            else:
                low_value = value_of(low)
                guess = low_value + (value_of(high) - low_value) * share
            middle = low + ((high - low) >> 1)
            pivot = tl.where(tl.abs(guess) < float("inf"), key_of(guess), middle)
            if step > STEPS:
                stalled = tl.where(2 * between <= before, 0, (stalled + 1) % 3)
                keyed = low + ((high - low).to(tl.float32) * share).to(tl.uint32)
                pivot = tl.where(stalled == 1, keyed, tl.where(stalled == 2, middle, pivot))
    return value_of(low), at_low, at_high, tally


@triton.jit
def draw_in(logits, low, high, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """[low, high) without the keys at either end that no logit has: of equal logits one key is left."""
    low_value, high_value = value_of(low), value_of(high)
    least = tl.where(logits[0] >= low_value, logits[0], float("inf"))
    most = tl.where(logits[0] < high_value, logits[0], float("-inf"))
    for plane in tl.static_range(1, PLANES):
        logit = logits[plane]
        least = tl.where((logit >= low_value) & (logit < least), logit, least)
        most = tl.where((logit < high_value) & (logit > most), logit, most)
    # 0 is added because -0 and 0 have two keys: the larger one serves both.
    least_key = tl.maximum(low, key_of(tl.min(least, 0) + 0.0))
    most_key = tl.minimum(high, key_of(tl.max(most, 0) + 0.0) + 1)
    return least_key, tl.where(high == PAST_LARGEST, high, most_key)  # NaN may lie in a bracket without an upper end


@triton.jit
def select_block(
    source,
    skip,
    size,
    stride,
    top_k,
    places,
    first_index,
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
        index = first_index + place if places is None else tl.load(places + place, mask=exists)
        tl.store(cells, index, mask=exists)
        if values is not None:
            tl.store(values + slot, tl.load(source + place.to(INDEX) * stride, mask=exists), mask=exists)
    return threshold, reached, exceeded


@triton.jit
def leave_words(bits, count, indices, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """Leave a word at the first slot of each run, and at the first slot of each quad that begins inside a run.

    bits, count : [RUNS] int32: the planes whose logits are selected, and how many those are

    A word has the run's number and, in its lower half, the bits of the logits from its slot on: the lowest is its own.
    """
    after = tl.cumsum(count, 0)
    slot = after - count
    word = (tl.arange(0, RUNS) << 16) | bits
    tl.store(indices + slot, word, mask=count > 0)
    quad = (slot | 3) + 1
    word = without_lowest(word)
    for number in tl.static_range(1, 4):
        word = tl.where(slot + number < quad, without_lowest(word), word)
    left = after - quad
    cell = indices + quad
    for behind in tl.static_range(0, PLANES, 4):
        tl.store(cell + behind, word, mask=behind < left)
        for _ in tl.static_range(4):
            word = without_lowest(word)


@triton.jit
def without_lowest(word):
    """A word without its lowest bit: that of the next slot, if the run has one."""
    return word & (word - 1)


@triton.jit
def word_after(word, found):
    """The word of the slot after ``word``'s: the same run's next one or, where that has no more, ``found``, which the run
    that begins there has left."""
    following = without_lowest(word)
    return tl.where((following & 0xFFFF) != 0, following, found)


@triton.jit
def place_of(word, PLANES: tl.constexpr):
    """Where in the block the logit of a word is: its run's first one is at a multiple of PLANES."""
    lowest = (word & -word).to(tl.float32).to(tl.int32, bitcast=True)  # a power of two, which its exponent tells
    return (word >> 16) * PLANES + (lowest >> 23) - 127


@triton.jit
def write_first_equals(
    source,
    skip,
    size,
    stride,
    top_k,
    threshold,
    exceeded,
    places,
    first_index,
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
            logit = tl.load(source + place.to(INDEX) * stride, mask=place < size, other=0.0)
            exceeded += tl.sum((logit != logit).to(tl.int32), 0)
        threshold = tl.where(exceeded < top_k, threshold, float("nan"))
        exceeded = tl.where(exceeded < top_k, exceeded, 0)
    spare = top_k - exceeded
    bar = tl.zeros((WIDTH,), tl.float32) + threshold
    written = 0
    taken = 0
    for first in range(skip, size, WIDTH):
        place = first + tl.arange(0, WIDTH)
        logit = tl.load(source + place.to(INDEX) * stride, mask=place < size, other=float("-inf"))
        equals = ((logit == bar) | ((logit != logit) & (bar != bar))) & (place < size)
        exceeds = ~(logit <= bar) & (bar == bar)
        number = equals.to(tl.int32)
        selected = exceeds | (equals & (taken + tl.cumsum(number, 0) <= spare))
        position = written + tl.cumsum(selected.to(tl.int32), 0) - 1
        index = first_index + place if places is None else tl.load(places + place, mask=selected)
        tl.store(indices + position, index, mask=selected)
        if values is not None:
            tl.store(values + position, logit, mask=selected)
        taken += tl.sum(number, 0)
        written += tl.sum(selected.to(tl.int32), 0)


@triton.jit
def list_all(source, count, stride, places, first_index, indices, values, room, RUNS: tl.constexpr, INDEX: tl.constexpr):
    """Write the indices of ``count`` logits, and their values where ``values`` is given, and -1 and -inf up to ``room``."""
    for first in range(0, room, RUNS):
        number = first + tl.arange(0, RUNS)
        exists = number < count
        if places is not None:
            index = tl.load(places + number, mask=exists, other=-1)
        else:
            index = tl.where(exists, first_index + number, -1)
        tl.store(indices + number, index, mask=number < room)
        if values is not None:
            value = tl.load(source + number.to(INDEX) * stride, mask=exists, other=float("-inf"))
            tl.store(values + number, value, mask=number < room)


@triton.jit(do_not_specialize=["columns", "num_keys"])
def select_keys_kernel(
    source,  # [S, columns] float32: logits, or from the second launch on candidates
    places,  # [S, columns] int32: the candidates' indices; None for logits
    starts,  # [S] int32, or None: 0
    ends,  # [S] int32
    indices,  # [S, top_k] int32, or of the next launch's candidates
    values,  # as indices, float32, or None
    columns,  # of the logits
    num_keys,
    top_k,
    stride_source,
    stride,
    stride_places,
    stride_starts,
    stride_ends,
    stride_indices,
    stride_values,
    BLOCK: tl.constexpr,
    PLANES: tl.constexpr,
    SLOTS: tl.constexpr,  # a power of two that is not less than top_k
    LAUNCH: tl.constexpr,  # how many came before
    LAST: tl.constexpr,
    COMPRESSED: tl.constexpr,
    RELATIVE: tl.constexpr,
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
        skip = tl.where(block == 0, skip, 0)
        size = tl.minimum(size - first, BLOCK)
        source += row * stride_source + (aligned + first).to(tl.int64) * stride
        if places is not None:
            places += row * stride_places + first
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
            list_all(source, size - skip, stride, places, first_index + skip, indices, values, room, runs, INDEX)
        else:
            if size <= BLOCK // 4:
                threshold, reached, exceeded = select_block(
                    source, skip, size, stride, top_k, places, first_index, indices, values, runs, fourth, SLOTS, QUADS, INDEX
                )
            elif size <= BLOCK // 2:
                threshold, reached, exceeded = select_block(
                    source, skip, size, stride, top_k, places, first_index, indices, values, runs, half, SLOTS, QUADS, INDEX
                )
            else:
                threshold, reached, exceeded = select_block(
                    source, skip, size, stride, top_k, places, first_index, indices, values, runs, PLANES, SLOTS, QUADS, INDEX
                )
            if reached != top_k:
                write_first_equals(
                    source, skip, size, stride, top_k, threshold, exceeded, places, first_index, indices, values, runs, INDEX
                )


def in_quads(source: torch.Tensor) -> bool:
    """Whether the rows can be read 16 bytes at a time: they begin on 16-byte boundaries, and memory goes on to the next one."""
    rows, columns = source.shape
    if source.stride(1) != 1 or source.stride(0) % 16 or source.data_ptr() % 16:
        return False
    end = source.storage_offset() + (rows - 1) * source.stride(0) + -(-columns // 4) * 4
    return bool(4 * end <= source.untyped_storage().nbytes())


def prepare(
    problem: Problem,
    inputs: Inputs,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    num_keys: int | None,
    relative: bool,
) -> list[compat.Launch]:
    """The launches of one call, in order, with the scratch that they share; ``scores`` is written if it is given."""
    logits, starts, ends = inputs
    (rows, columns), top_k = logits.shape, indices.shape[1]
    tune = tuning(problem).for_columns(columns)
    block = tune.block_logits
    buffers = [
        (ends.new_empty((rows, room)), torch.empty((rows, room), dtype=torch.float32, device=ends.device))
        for room in scratch_rooms(columns, top_k, block)
    ]
    found: list[compat.Launch] = []
    source: torch.Tensor = logits
    places: torch.Tensor | None = None
    left = rooms(columns, top_k, block)
    for number in range(len(left) + 1):
        last = number == len(left)
        kept, values = (indices, scores) if last else buffers[number % 2]
        strides = (
            *source.stride(),
            0 if places is None else places.stride(0),
            0 if starts is None else starts.stride(0),
            ends.stride(0),
            kept.stride(0),
            0 if values is None else values.stride(0),
        )
        counts = (columns, columns if num_keys is None else num_keys, top_k)
        arguments = (source, places, starts, ends, kept, values, *counts, *strides)
        keywords = {
            "BLOCK": block,
            "PLANES": tune.planes,
            "SLOTS": max(SMALLEST_SLOTS, 1 << (top_k - 1).bit_length()),
            "LAUNCH": number,
            "LAST": last,
            "COMPRESSED": num_keys is not None,
            "RELATIVE": relative,
            "ALIGNED": in_quads(logits),
            "QUADS": in_quads(source),
            "INDEX": tl.int32 if block * source.stride(1) < 2**31 else tl.int64,
            "num_warps": tune.num_warps,
            **(dict(tune.options) if places is None else {}),
        }
        blocks = 1 if last else -(-(columns if number == 0 else left[number - 1]) // block)
        found.append(compat.Launch(select_keys_kernel, (rows, blocks), arguments, keywords))
        if not last:
            places, source = buffers[number % 2]
    return found


kernel = compat.Kernel(prepare, tuning=tuning)
