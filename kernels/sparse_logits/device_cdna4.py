"""Device functions in Gluon for CDNA4 (gfx950) of sparse logits: what the kernels of packed and of cached keys do alike."""

from capgate.compat.gluon import async_copy, gl, gluon

from ..common.device.cdna4_paged import fill_behind
from ..common.device.windows import row_keys

NOWHERE = gl.constexpr(2**31 - 1)  # behind any key that a row begins at


@gluon.jit
def fill_unlisted(
    out, starts, ends, num_rows, most, strips, listed, stride_starts, stride_ends, stride_next, stride_os, stride_on,
    NEXT_N: gl.constexpr, CANDIDATE: gl.constexpr, STRIP: gl.constexpr, ROW_LENS: gl.constexpr, WINDOWS: gl.constexpr,
    INDEX: gl.constexpr,
):  # fmt: skip
    """-inf into the cells behind those of the entries that are looked at, of this program's share of all ``strips``."""
    width = listed * CANDIDATE
    row_strips = gl.cdiv(width, STRIP)
    step = gl.num_programs(0) * gl.num_programs(1)
    for strip in range(gl.program_id(0) * gl.num_programs(1) + gl.program_id(1), strips, step):
        row = (strip // row_strips).to(gl.int32)
        base = (strip % row_strips).to(gl.int32) * STRIP
        _, count = row_keys(
            row, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, NEXT_N, ROW_LENS, WINDOWS
        )
        end = gl.minimum(gl.cdiv(count, CANDIDATE), listed) * CANDIDATE
        fill_behind(out + row.to(gl.int64) * stride_os, base, end, width, stride_on, STRIP, INDEX)


@gluon.jit
def copy_candidates(
    tile_candidates, lines, tile, entries, stride_cc, CANDIDATE: gl.constexpr, BLOCK_KEYS: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """Start the copy of a tile's part of a list to LDS: for each cell its block; past ``entries`` the last one's."""
    cell = gl.arange(0, tile_candidates.shape[0], LAYOUT) % BLOCK_KEYS
    if BLOCK_KEYS % CANDIDATE == 0:
        number = tile * (BLOCK_KEYS // CANDIDATE) + cell // CANDIDATE
    else:
        number = gl.full([tile_candidates.shape[0]], 0, gl.int32, LAYOUT) + tile // (CANDIDATE // BLOCK_KEYS)
    async_copy.buffer_load_to_shared(tile_candidates, lines, gl.minimum(number, entries - 1) * stride_cc)


@gluon.jit
def agreed(value):
    """``value``, int32 and the same in every lane, as a scalar: the compiler would loop over lanes round its uses.

    Before it one wait state, which a lane's value needs, and which the compiler inserts for none of inline assembly.
    """
    return gl.inline_asm_elementwise(
        "s_nop 0\n\tv_readfirstlane_b32 $0, $1", "=s,v", [value], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def next_window(
    after, base_row, rows_left, starts, ends, num_rows, num_keys, stride_starts, stride_ends, ROWS: gl.constexpr
):  # fmt: skip
    """(first, how many) of the keys that those of ROWS rows see which begin next behind key ``after``; (any, 0) if none does.

    A lane has a row: as scalars their windows would take too many registers.
    """
    LINE: gl.constexpr = gl.BlockedLayout([1], [64], [gl.num_warps()], [0])
    row = base_row + gl.minimum(gl.arange(0, ROWS, LINE), rows_left - 1)
    begins, counts = row_keys(row, starts, ends, num_rows, num_keys, stride_starts, stride_ends, 0, 1, False, True)
    first = gl.min(gl.where((counts > 0) & (begins > after), begins, NOWHERE), 0)
    longest = gl.max(gl.where(begins == first, counts, 0), 0)
    return agreed(first), agreed(longest)
