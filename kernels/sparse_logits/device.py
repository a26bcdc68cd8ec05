"""Device functions of the sparse logits: which keys the cells of listed blocks are of, and where those keys and scales lie."""

import triton
import triton.language as tl

from ..common.device.cached_keys import scale_byte
from ..common.device.mx import scale_octets
from ..common.device.windows import near_block, row_keys


@triton.jit
def load_candidates(
    lines, tile, entries, stride_cc, CANDIDATE: tl.constexpr, BLOCK_KEYS: tl.constexpr, INDEX: tl.constexpr
):  # fmt: skip
    """The candidate blocks, uint32 [BLOCK_KEYS], of a tile's cells; of cells past a row's ``entries`` the last one's."""
    entry = tl.minimum(tile * (BLOCK_KEYS // CANDIDATE) + tl.arange(0, BLOCK_KEYS) // CANDIDATE, entries - 1)
    return tl.load(lines + entry.to(INDEX) * stride_cc).to(tl.uint32)


@triton.jit
def places_of(block, first_block, count, CANDIDATE: tl.constexpr):
    """Which of the row's keys, uint32, the cells of candidate blocks are of: from ``count`` on those that it does not see."""
    # Below the first block is a large number, and whatever lies past the last block stands for the one behind it.
    nearest = tl.minimum(block - first_block.to(tl.uint32), tl.cdiv(count, CANDIDATE).to(tl.uint32))
    return nearest * CANDIDATE + (tl.arange(0, block.shape[0]) % CANDIDATE).to(tl.uint32)


@triton.jit
def load_entries(table, place, count, stride_tk, BLOCK: tl.constexpr):
    """The entries of a request's row of the table, uint32, for its keys at these places; of packed keys nothing is loaded."""
    if BLOCK == 0:
        return place
    else:
        near = tl.minimum(place, count.to(tl.uint32) - 1)
        return tl.load(table + (near // BLOCK).to(tl.int64) * stride_tk).to(tl.uint32)


@triton.jit
def locate_keys(place, entry, first, count, num_blocks, BLOCK: tl.constexpr):
    """(block, place in it, place) as :func:`load_keys` takes the first two: a packed key is a block of one.

    The last is ``place``, or ``count`` where there is no key to score. Blocks and places in them may be read in any case.

    entry : what :func:`load_entries` found
    """
    count = count.to(tl.uint32)
    near, seen = tl.minimum(place, count - 1), tl.minimum(place, count)
    if BLOCK == 0:
        return first.to(tl.int64) + near.to(tl.int64), tl.zeros_like(near), seen
    else:
        return near_block(entry, num_blocks).to(tl.int64), near % BLOCK, tl.where(entry < num_blocks, seen, count)


@triton.jit
def longest_from(
    first, base_row, rows_left, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, NEXT_N: tl.constexpr,
    ROW_LENS: tl.constexpr, WINDOWS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """How many keys the longest of ROWS rows sees, of those whose first key is ``first``.

    Rows are read one by one into scalars: AMD's compiler would not know a reduction to agree in all lanes.
    """
    longest = tl.minimum(rows_left, 0)
    for r in tl.static_range(ROWS):
        begin, count = row_keys(
            base_row + tl.minimum(r, rows_left - 1), starts, ends, num_rows, most, stride_starts, stride_ends, stride_next,
            NEXT_N, ROW_LENS, WINDOWS,
        )  # fmt: skip
        longest = tl.where(begin == first, tl.maximum(longest, count), longest)
    return longest


@triton.jit
def load_scales(
    scales, page, inside, stride_scales, DIM: tl.constexpr, MX: tl.constexpr, BLOCK: tl.constexpr, SCALE_TILE: tl.constexpr,
    SCALE_LANES: tl.constexpr, BY_SIXTEENS: tl.constexpr,
):  # fmt: skip
    """The scales of keys where :func:`locate_keys` has found them: float32 [n], or in MX formats UE8M0 bytes [n, DIM / 32]."""
    if not MX:
        return tl.load(scales + page * stride_scales + inside)
    elif BLOCK == 0:
        return scale_octets(tl.load(scales + page * stride_scales), DIM)
    else:
        group = tl.arange(0, DIM // 32)
        at = scale_byte(inside[:, None], group[None, :], SCALE_TILE, SCALE_LANES, BY_SIXTEENS)
        return tl.load(scales + (page * stride_scales)[:, None] + at)
