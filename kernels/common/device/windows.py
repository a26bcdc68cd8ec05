"""Which keys a row sees and a program scores, for classic and Gluon kernels alike: Gluon calls classic functions too.

Only what knows no layout can be shared so: scalars, and what is done to each element of a tensor.
"""

import triton
import triton.language as tl

from .dependent import gdc_wait


@triton.jit
def clip(start, end, num_keys, width, COMPRESSED: tl.constexpr):
    """(begin, end): a window cut to the keys and, if COMPRESSED, to the row's cells."""
    end = tl.minimum(end, num_keys)
    if COMPRESSED:
        end = tl.minimum(end, start + width)
    return tl.maximum(start, 0), end


@triton.jit
def window(row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED: tl.constexpr):
    """(start, begin, end): window [begin, end) is cut to the keys and to the row's cells; a row past the last has none."""
    near_row = tl.minimum(row, num_queries - 1).to(tl.int64)
    start = tl.load(starts + near_row * stride_starts)
    end = tl.where(row < num_queries, tl.minimum(tl.load(ends + near_row * stride_ends), num_keys), 0)
    if COMPRESSED:
        end = tl.minimum(end, start + width)
    return start, tl.maximum(start, 0), end


@triton.jit
def cover(
    covered,
    first_row,
    starts,
    ends,
    num_queries,
    num_keys,
    width,
    stride_starts,
    stride_ends,
    ROWS: tl.constexpr,
    COMPRESSED: tl.constexpr,
):
    """(first, last, full first, full last) for ROWS more rows than ``covered`` is of: [first, last) holds the windows of all,
    [full first, full last) lies in each of them. Of no row it is (keys, 0, 0, keys).

    Windows are read row by row into scalars: a reduction would leave AMD's compiler unsure that all lanes agree, and it would
    loop over lanes round every buffer access.
    """
    first, last, full_first, full_last = covered
    for r in tl.static_range(ROWS):
        _, begin, end = window(
            first_row + r, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
        )
        first = tl.where(begin < end, tl.minimum(first, begin), first)
        last = tl.where(begin < end, tl.maximum(last, end), last)
        full_first = tl.maximum(full_first, begin)
        full_last = tl.where(first_row + r < num_queries, tl.minimum(full_last, end), full_last)
    return first, last, full_first, full_last


@triton.jit
def work_of(program, xcds, classes, cells):
    """(group, split) of a program, as :class:`..work_order.Order` has it: each pair of the order's is one program's.

    Neighbouring programs go to the next die each. A die's own programs take its cells in turn, and groups in their order.
    """
    place = program // xcds
    cell = program % xcds * cells + place % cells
    return place // cells * classes + cell % classes, cell // classes


@triton.jit
def my_tiles(first, last, split, splits, BLOCK_KEYS: tl.constexpr):
    """(first tile, tile past the last, and the same of this split's): tiles that cover columns [first, last).

    They begin at multiples of BLOCK_KEYS, so that stores are aligned.
    """
    first_tile = first // BLOCK_KEYS
    last_tile = tl.maximum(tl.cdiv(last, BLOCK_KEYS), first_tile)
    share = tl.cdiv(last_tile - first_tile, splits)
    my_first = first_tile + split * share
    my_last = tl.maximum(tl.minimum(my_first + share, last_tile), my_first)
    return first_tile, last_tile, my_first, my_last


@triton.jit
def strip_base(strip, first, last, STRIP: tl.constexpr):
    """The first column of one of the whole strips of columns [0, first) and from last on."""
    left = first // STRIP
    return tl.where(strip < left, strip * STRIP, last + (strip - left) * STRIP)


@triton.jit
def seen(lens, request, row, most, stride_lb, stride_ln, NEXT_N: tl.constexpr, ROW_LENS: tl.constexpr):
    """How many keys a row of a request sees; none if the request has no such row."""
    return seen_of(load_length(lens, request, row, stride_lb, stride_ln, NEXT_N, ROW_LENS), row, most, NEXT_N, ROW_LENS)


@triton.jit
def row_keys(
    row,
    starts,
    ends,
    num_rows,
    most,
    stride_starts,
    stride_ends,
    stride_next,
    NEXT_N: tl.constexpr,
    ROW_LENS: tl.constexpr,
    WINDOWS: tl.constexpr,
):
    """(first, how many) of the keys that a row sees, or rows [n]: of its window if WINDOWS, or of a request with NEXT_N rows.

    ends : of windows; otherwise lengths, as :func:`seen` takes them
    most : keys that there are, or that a row of a request can see
    """
    if WINDOWS:
        _, begin, end = window(row, starts, ends, num_rows, most, most, stride_starts, stride_ends, False)
        return begin, tl.maximum(tl.maximum(end, 0) - begin, 0)
    else:
        count = seen(ends, row // NEXT_N, row % NEXT_N, most, stride_ends, stride_next, NEXT_N, ROW_LENS)
        return tl.minimum(count, 0), count


@triton.jit
def load_length(lens, request, row, stride_lb, stride_ln, NEXT_N: tl.constexpr, ROW_LENS: tl.constexpr):
    """What the lengths say of a row of a request: how many keys it sees if ROW_LENS, or how many the last row does."""
    near = tl.minimum(row, NEXT_N - 1)
    if ROW_LENS:
        return tl.load(lens + request.to(tl.int64) * stride_lb + near.to(tl.int64) * stride_ln)
    else:
        return tl.load(lens + request.to(tl.int64) * stride_lb)


@triton.jit
def seen_of(length, row, most, NEXT_N: tl.constexpr, ROW_LENS: tl.constexpr):
    """How many keys a row sees by what :func:`load_length` found; none if its request has no such row."""
    if not ROW_LENS:
        length = tl.maximum(length, 0) - (NEXT_N - 1) + tl.minimum(row, NEXT_N - 1)
    return tl.where(row < NEXT_N, tl.minimum(tl.maximum(length, 0), most), 0)


@triton.jit
def load_share(schedule, worker, num_requests, ROW_LENS: tl.constexpr, EARLY: tl.constexpr = False):
    """(first request, chunk of it, last request, chunk of it): where a worker begins and ends.

    Whatever a schedule holds, requests are those of the batch, or behind it, and no chunk lies before a request's first.
    EARLY: the launch in front makes the schedule, and this one was started before its end.
    """
    if EARLY:
        gdc_wait()
    words = schedule + 2 * worker
    first_request = tl.minimum(tl.maximum(tl.load(words), 0), num_requests)
    last_request = tl.minimum(tl.maximum(tl.load(words + 2), 0), num_requests)
    first_chunk = tl.maximum(tl.load(words + 1), 0)
    if ROW_LENS:  # it counts the last rows' keys alone: where requests in front have none, other rows of theirs may see some
        first_request = tl.where(worker == 0, 0, first_request)
        first_chunk = tl.where(worker == 0, 0, first_chunk)
    return first_request, first_chunk, last_request, tl.maximum(tl.load(words + 3), 0)


@triton.jit
def longest_seen(
    lens, request, first_row, most, stride_lb, stride_ln, NEXT_N: tl.constexpr, ROW_LENS: tl.constexpr, ROWS: tl.constexpr
):
    """How many keys the longest of ROWS rows of a request sees, of which the request has the first at least.

    Lengths of rows are read row by row into a scalar: AMD's compiler would not know a reduction to agree in all lanes.
    """
    longest = 0
    if not ROW_LENS:  # the later a row, the more keys it sees
        first_row = tl.minimum(first_row + (ROWS - 1), NEXT_N - 1)
    for row in tl.static_range(ROWS if ROW_LENS else 1):
        row_seen = seen(lens, request, first_row + row, most, stride_lb, stride_ln, NEXT_N, ROW_LENS)
        longest = tl.maximum(longest, row_seen)
    return longest


@triton.jit
def keys_of_share(request, longest, first_request, first_chunk, last_request, last_chunk, CHUNK: tl.constexpr):
    """[begin, end): of a request's first ``longest`` keys those of a worker's share."""
    chunks = tl.cdiv(longest, CHUNK)
    begin = tl.where(request == first_request, tl.minimum(first_chunk, chunks) * CHUNK, 0)
    end = tl.where(request == last_request, tl.minimum(tl.minimum(last_chunk, chunks) * CHUNK, longest), longest)
    return begin, end


@triton.jit
def next_turn(turn, tiles, splits):
    """Which tile of the next request is a program's first, once so many have gone round among a worker's programs."""
    turn = (turn - tiles) % splits
    return tl.where(turn < 0, turn + splits, turn)


@triton.jit
def near_block(block, num_blocks):
    """Blocks, as unsigned numbers, that the cache has; in place of others its last, which may be read."""
    return tl.minimum(block.to(tl.uint32), tl.maximum(num_blocks, 1) - 1)
