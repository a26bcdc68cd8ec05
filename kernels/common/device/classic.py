"""Device functions in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP: relu and head sums, fills, counted units.

Those that :mod:`.cdna4` has too have the same names there, in the same order, and the same parameters in front of the layouts.
"""

import triton
import triton.language as tl

from .cached_keys import first_byte, further_byte
from .formats import quad_to_fnuz
from .windows import near_block, row_keys, strip_base


@triton.jit
def relu(x, MAXIMUM: tl.constexpr):
    """max(x, 0) that keeps NaN, in one instruction: where the target has no maximum, x + |x|, which is twice that."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) if MAXIMUM else x + tl.abs(x)


@triton.jit
def fn_to_fnuz(x):
    """e4m3fn [n, m], or four of them in a uint32 -> e4m3fnuz of half the value, as :func:`.formats.quad_to_fnuz` makes them.

    Four bytes are converted at a time. Where they come in one register it stays one; those of a byte each are put together.
    """
    quad = quad_to_fnuz(x if x.dtype == tl.uint32 else quads(x))
    half = tl.join(quad & 0xFFFF, quad >> 16)
    byte = tl.join(half & 0xFF, half >> 8).to(tl.uint8)
    return tl.reshape(byte, (x.shape[0], 4 * quad.shape[1])).to(tl.float8e4b8, bitcast=True)


@triton.jit
def quads(x):
    """Adjacent elements of one byte [n, m], four to a uint32, the first lowest."""
    byte = tl.reshape(x.to(tl.uint8, bitcast=True).to(tl.uint32), (x.shape[0], x.shape[1] // 4, 2, 2))
    even, odd = tl.split(byte)
    low, high = tl.split(even | odd << 8)
    return low | high << 16


@triton.jit
def operands(query, weight, TO_FNUZ: tl.constexpr, MAXIMUM: tl.constexpr):
    """A query [DIM, columns] and the weights of its columns as :func:`score` takes them on this target."""
    if not MAXIMUM:
        weight *= 0.5  # relu gives twice the value
    if TO_FNUZ:
        query = tl.trans(fn_to_fnuz(tl.trans(query)))
    return query, weight


@triton.jit
def score(query, weight, keys, ROWS: tl.constexpr, PADDED_HEADS: tl.constexpr, MAXIMUM: tl.constexpr):
    """[keys, ROWS] logits, not yet times the keys' scales, from keys [keys, D] and query [D, ROWS * PADDED_HEADS]."""
    return head_sums(tl.dot(keys, query), weight, ROWS, PADDED_HEADS, MAXIMUM)


@triton.jit
def head_sums(products, weight, ROWS: tl.constexpr, PADDED_HEADS: tl.constexpr, MAXIMUM: tl.constexpr):
    """[keys, ROWS] sums over the heads of max(x, 0) * weight, x being products [keys, ROWS * PADDED_HEADS]."""
    positive = relu(products, MAXIMUM) * weight[None, :]
    return tl.sum(tl.reshape(positive, (products.shape[0], ROWS, PADDED_HEADS)), axis=2)


@triton.jit
def rounded(logit, out, CUTS: tl.constexpr):
    """Logits as the cells of ``out`` take them: float32, or bfloat16, to the nearest and ties to even.

    CUTS : whether Triton's own conversion to bfloat16 would cut off, as its interpreter's does
    """
    if out.dtype.element_ty == tl.float32:
        return logit
    elif CUTS:
        bits = logit.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nearest = tl.where(logit == logit, nearest, 0x7FC0)
        return nearest.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return logit.to(tl.bfloat16)


@triton.jit
def fill(out, base, width, row_offset, wanted, stride_on, STRIP: tl.constexpr, INDEX: tl.constexpr):
    """-inf into columns [base, base + width) of the wanted rows; width is at most STRIP."""
    place = tl.arange(0, STRIP)
    cell = out + base.to(tl.int64) * stride_on + row_offset[:, None] + (place.to(INDEX) * stride_on)[None, :]
    value = tl.full([row_offset.shape[0], STRIP], float("-inf"), tl.float32)
    tl.store(cell, value, mask=wanted[:, None] & (place < width)[None, :])


@triton.jit
def fill_strip(out, strip, first, last, row_offset, wanted, stride_on, STRIP: tl.constexpr, INDEX: tl.constexpr):
    """One of the whole strips of columns [0, first) and from last on: no column mask, so stores are 16 bytes wide."""
    base = tl.multiple_of(strip_base(strip, first, last, STRIP), 16)
    fill(out, base, STRIP, row_offset, wanted, stride_on, STRIP, INDEX)


@triton.jit
def fill_edge(out, base, begin, end, num_keys, row_offset, wanted, stride_on, BLOCK_KEYS: tl.constexpr, INDEX: tl.constexpr):
    """-inf into the cells of one tile, from column ``base``, that lie outside their row's window."""
    place = tl.arange(0, BLOCK_KEYS)
    position = (base + place)[None, :]
    outside = (position < begin[:, None]) | (position >= end[:, None])
    cell = out + base.to(tl.int64) * stride_on + row_offset[:, None] + (place.to(INDEX) * stride_on)[None, :]
    value = tl.full([row_offset.shape[0], BLOCK_KEYS], float("-inf"), tl.float32)
    tl.store(cell, value, mask=outside & (position < num_keys) & wanted[:, None])


@triton.jit
def fill_outside(
    out, covered, mine, part, begin, end, num_keys, row_offset, wanted, stride_on,
    PASS: tl.constexpr, STRIP: tl.constexpr, BLOCK_KEYS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """-inf into all cells of the wanted rows outside their windows, but for strips that the loop of tiles writes.

    Of the strips of this split it writes the first ones, one in each pass over PASS tiles, so that the stores drain behind the
    arithmetic and DRAM never stalls it. Here come the strips that outnumber the passes, and the ends that are too short for a
    strip. The last tile may reach past the keys: num_keys - last is then negative, and truncation leaves no strip and no end.
    Inside the tiles only those at the edge of a row's window have such cells: they are kept out of the loop, whose every
    instruction counts. An empty row makes all tiles edges; a tile that is both edges is filled twice with the same.

    covered : columns (first, last) of the tiles, and of those inside every row's window
    mine : the program's tiles (first, past the last)
    part : (which of the programs that share the rows, how many those are)

    Returns how many strips there are.
    """
    first, last, full_first, full_last = covered
    my_first, my_last = mine
    split, splits = part
    strips = first // STRIP + (num_keys - last) // STRIP
    for strip in range((my_last - my_first + PASS - 1) // PASS * splits + split, strips, splits):
        fill_strip(out, strip, first, last, row_offset, wanted, stride_on, STRIP, INDEX)
    left_rest = tl.where(split == 0, first % STRIP, 0)
    right_rest = tl.where(split == 0, (num_keys - last) % STRIP, 0)
    fill(out, first - left_rest, left_rest, row_offset, wanted, stride_on, STRIP, INDEX)
    fill(out, num_keys - right_rest, right_rest, row_offset, wanted, stride_on, STRIP, INDEX)
    left_last = tl.minimum(tl.cdiv(full_first, BLOCK_KEYS), my_last)
    right_first = tl.maximum(tl.maximum(full_last, 0) // BLOCK_KEYS, my_first)
    for tile in range(my_first, left_last):
        base = tile * BLOCK_KEYS
        fill_edge(out, base, begin, end, num_keys, row_offset, wanted, stride_on, BLOCK_KEYS, INDEX)
    for tile in range(right_first, my_last):
        base = tile * BLOCK_KEYS
        fill_edge(out, base, begin, end, num_keys, row_offset, wanted, stride_on, BLOCK_KEYS, INDEX)
    return strips


@triton.jit
def load_blocks(entries, num_blocks):
    """(blocks, whether the cache has them) from a table; in place of one that it has not, its last, which may be read."""
    block = tl.load(entries).to(tl.uint32)
    return near_block(block, num_blocks).to(tl.int64), block < num_blocks


@triton.jit
def load_keys(
    keys, block, inside, stride_keys, stride_dim, DIM: tl.constexpr, TILE: tl.constexpr, WORD: tl.constexpr, INDEX: tl.constexpr
):
    """Keys [n, DIM / WORD] at places ``inside`` [n] of blocks [n] of a cache, each of which may be another.

    keys : in elements of WORD bytes, and ``stride_dim`` in those; ``stride_keys`` in bytes
    """
    word = tl.arange(0, DIM // WORD)
    lines = keys + (block * (stride_keys // WORD) + first_byte(inside, DIM, TILE, WORD))[:, None]
    return tl.load(lines + (further_byte(word, TILE, WORD).to(INDEX) * stride_dim)[None, :])


@triton.jit
def units_of(lens, request, num_requests, most, stride_lens, UNIT: tl.constexpr):
    """How many units of UNIT keys the requests have, as int64; requests past the last have none."""
    length = tl.load(lens + request.to(tl.int64) * stride_lens, mask=request < num_requests, other=0)
    return (tl.minimum(tl.maximum(length, 0), most).to(tl.int64) + (UNIT - 1)) // UNIT


@triton.jit
def units_of_rows(
    row, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, UNIT: tl.constexpr, NEXT_N: tl.constexpr,
    ROW_LENS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """As :func:`units_of` for rows [n] as :func:`.windows.row_keys` takes them."""
    near = tl.minimum(row, num_rows - 1)
    _, count = row_keys(
        near, starts, ends, num_rows, 0x7FFFFFFF, stride_starts, stride_ends, stride_next, NEXT_N, ROW_LENS, WINDOWS
    )
    return (tl.where(row < num_rows, tl.minimum(count, most), 0).to(tl.int64) + (UNIT - 1)) // UNIT


@triton.jit
def locate(target, lens, num_requests, most, stride_lens, UNIT: tl.constexpr, REQUESTS: tl.constexpr):
    """(request, unit of it) of each of the ``target`` units [int64], counted through all requests; past the last unit,
    the number of requests and what is left."""
    request = tl.zeros(target.shape, tl.int32)
    passed_units = tl.zeros(target.shape, tl.int64)
    summed = tl.full((), 0, tl.int64)
    for base in range(0, num_requests, REQUESTS):
        candidate = base + tl.arange(0, REQUESTS)
        units = units_of(lens, candidate, num_requests, most, stride_lens, UNIT)
        ends = summed + tl.cumsum(units, axis=0)
        passed = (ends[None, :] <= target[:, None]) & (candidate < num_requests)[None, :]
        request += tl.sum(passed.to(tl.int32), axis=1)
        passed_units += tl.sum(tl.where(passed, units[None, :], 0), axis=1)
        summed += tl.sum(units, axis=0)
    return request, target - passed_units


@triton.jit
def locate_between(target, ends, num_requests, stride, REQUESTS: tl.constexpr):
    """(request, unit of it) of each of the ``target`` units [int64], from where each request begins and the last one ends.

    Request -1 before the first one's begin, the number of requests past the last one's end.
    """
    request = tl.full(target.shape, -1, tl.int32)
    begin = tl.zeros(target.shape, tl.int64)
    for base in range(0, num_requests + 1, REQUESTS):
        candidate = base + tl.arange(0, REQUESTS)
        end = tl.load(ends + candidate.to(tl.int64) * stride, mask=candidate <= num_requests, other=2**31 - 1).to(tl.int64)
        passed = (end[None, :] <= target[:, None]) & (candidate <= num_requests)[None, :]
        request += tl.sum(passed.to(tl.int32), axis=1)
        begin = tl.maximum(begin, tl.max(tl.where(passed, end[None, :], 0), axis=1))
    return request, target - begin
