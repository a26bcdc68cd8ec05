"""What a program of the dense kernels for CDNA4 (gfx950) does: which rows it has, -inf outside their windows, and its tiles.

Of fp8 keys and of MX formats alike; the docstring of fp8_mqa_logits' variant says how a tile gets to LDS. The kernels for
CDNA3 and gfx1250 have the same rows and fills alike.
"""

from capgate.compat.gluon import async_copy, gl, gluon, reinterpret

from .cdna4 import fill_outside, fill_strip, logit_layout, score, store
from .windows import cover, window, work_of


@gluon.jit
def first_key(tile, num_keys, BLOCK_KEYS: gl.constexpr):
    """A tile's first key. The last tile moves back to end with the keys: what it shares with the one before is scored twice."""
    return gl.minimum(tile * BLOCK_KEYS, gl.maximum(num_keys - BLOCK_KEYS, 0))


@gluon.jit
def copy_tile(keys, scales, slot, tile, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS: gl.constexpr):
    """Start the copy of one key tile and its scales to LDS."""
    base = first_key(tile, num_keys, BLOCK_KEYS).to(gl.int64)
    async_copy.buffer_load_to_shared(keys.index(slot), k + base * stride_kn, packet)
    async_copy.buffer_load_to_shared(scales.index(slot), k_scale + base * stride_scale, near)
    async_copy.commit_group()


@gluon.jit
def rows_of_program(order, num_queries, ROWS: gl.constexpr):
    """(first row, split) of this program. Of one that finds no group the first row lies behind the last."""
    xcds, classes, cells = order
    group, split = work_of(gl.program_id(0), xcds, classes, cells)
    groups = gl.cdiv(num_queries, ROWS)
    # Under a causal window the last rows see the most keys: longest work first.
    return gl.where(group < groups, (groups - 1 - group) * ROWS, num_queries), split


@gluon.jit
def cover_rows(
    first_row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, ROWS: gl.constexpr,
    COMPRESSED: gl.constexpr,
):  # fmt: skip
    """As :func:`.windows.cover`, of all of a program's rows. Four at a time: 16 would not fit into the scalar registers."""
    first = num_keys
    last = 0
    full_first = 0
    full_last = num_keys
    for some_row in range(first_row, first_row + ROWS, 4):
        first, last, full_first, full_last = cover(
            (first, last, full_first, full_last), some_row, starts, ends, num_queries, num_keys, width, stride_starts,
            stride_ends, 4, COMPRESSED,
        )  # fmt: skip
    return first, last, full_first, full_last


@gluon.jit
def fill_beside(
    out, first_row, part, covered, tiles, mine, starts, ends, num_queries, num_keys, width,
    stride_starts, stride_ends, stride_os, stride_on,
    PASS: gl.constexpr, ROWS: gl.constexpr, STRIP: gl.constexpr, BLOCK_KEYS: gl.constexpr, COMPRESSED: gl.constexpr,
    INDEX: gl.constexpr, LANES: gl.constexpr = 64,
):  # fmt: skip
    """-inf into what this program, (split, splits) ``part``, has of the cells outside windows, but for what it returns.

    covered : as :func:`cover_rows` gives it; tiles, mine : (first, past the last) of all splits and of this one
    PASS : tiles for each strip that the loop of tiles fills
    LANES : of a wave

    Returns (split, splits, number of strips, columns [first, last) between them, offsets of rows, whether they are wanted).
    """
    filled: gl.constexpr = gl.BlockedLayout([1, 4], [1, LANES], [gl.num_warps(), 1], [1, 0])
    split, splits = part
    _, _, full_first, full_last = covered
    first_tile, last_tile = tiles
    first = first_tile * BLOCK_KEYS
    last = last_tile * BLOCK_KEYS
    row = gl.arange(0, ROWS, gl.SliceLayout(1, filled))
    wanted = first_row + row < num_queries
    offset = row.to(INDEX) * stride_os
    _, begin, end = window(first_row + row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED)
    number = fill_outside(
        out, (first, last, full_first, full_last), mine, part, begin, end, num_keys, offset, wanted, stride_on,
        PASS, STRIP, BLOCK_KEYS, INDEX, filled,
    )  # fmt: skip
    return split, splits, number, first, last, offset, wanted


@gluon.jit
def score_tiles(
    query, weight, k, k_scale, starts, ends, out, first_row, mine, strips, num_queries, num_keys, width,
    stride_kn, stride_scale, stride_starts, stride_ends, stride_os, stride_on,
    PADDED_HEADS: gl.constexpr, ROWS: gl.constexpr, BLOCK_KEYS: gl.constexpr, PART_KEYS: gl.constexpr, STAGES: gl.constexpr,
    STRIP: gl.constexpr, CLEAN: gl.constexpr, COMPRESSED: gl.constexpr, INDEX: gl.constexpr, PACKED_RELU: gl.constexpr,
    KEY_BYTES: gl.constexpr, K_TYPE: gl.constexpr, query_scale=None, Q_KIND: gl.constexpr = None, K_KIND: gl.constexpr = None,
):  # fmt: skip
    """Write the logits of ROWS rows from ``first_row`` on, and with CLEAN -inf into strips beside them.

    query, weight, query_scale, Q_KIND, K_KIND : as :func:`.cdna4.score`
    out : the first row's first cell
    mine : (first, past the last) tile
    strips : what :func:`fill_beside` leaves to this, a strip for each tile
    K_TYPE : as which the KEY_BYTES of a key are read from LDS
    """
    NUM_WARPS: gl.constexpr = gl.num_warps()
    logits: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS, PART_KEYS, NUM_WARPS))
    copied: gl.constexpr = gl.BlockedLayout([1, 16], [1024 // KEY_BYTES, KEY_BYTES // 16], [NUM_WARPS, 1], [1, 0])
    scales_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 256 // KEY_BYTES, KEY_BYTES // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    my_first, my_last = mine

    place = gl.arange(0, PART_KEYS, gl.SliceLayout(0, logits))
    row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    start, begin, end = window(
        first_row + row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED
    )
    row_offset = row.to(INDEX) * stride_os
    if COMPRESSED:
        row_offset -= start.to(INDEX) * stride_on
    cell = row_offset[:, None] + (place.to(INDEX) * stride_on)[None, :]
    begin = begin[:, None] - place[None, :]  # of each key of a part, so that one scalar is compared with both
    end = gl.maximum(end, 0)[:, None] - place[None, :]

    near = gl.arange(0, 64 * NUM_WARPS, scales_copied) % BLOCK_KEYS  # a scale for every lane: no lane is masked
    near = gl.minimum(near, num_keys - 1) * stride_scale
    key = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(1, copied))
    byte = gl.arange(0, KEY_BYTES, gl.SliceLayout(0, copied))
    packet = (byte[None, :] // 16) ^ (key * KEY_BYTES // 256 % (KEY_BYTES // 16))[:, None]
    packet = gl.minimum(key, num_keys - 1)[:, None] * stride_kn + packet * 16 + (byte % 16)[None, :]

    keys = gl.allocate_shared_memory(k.dtype.element_ty, [STAGES, BLOCK_KEYS, KEY_BYTES], plain)
    keys_read = reinterpret(keys, K_TYPE, [STAGES * BLOCK_KEYS // 32, 32, KEY_BYTES], swizzled)
    scales = gl.allocate_shared_memory(k_scale.dtype.element_ty, [STAGES, 64 * NUM_WARPS], line)
    if query_scale is not None:
        scales_read = reinterpret(scales, gl.uint8, [STAGES * 2 * NUM_WARPS, 32, 4], plain)
    for stage in gl.static_range(STAGES - 1):
        copy_tile(
            keys, scales, stage, my_first + stage, k, k_scale, near, packet, num_keys, stride_kn, stride_scale, BLOCK_KEYS
        )
    for round_first in range(my_first, my_last, STAGES):
        for slot in gl.static_range(STAGES):  # a constant, and so are all places in LDS
            tile = round_first + slot
            async_copy.wait_group(STAGES - 2)  # and for the waves that still read what is copied over now
            ahead = gl.minimum(tile + STAGES - 1, my_last - 1)
            copy_tile(
                keys, scales, (slot + STAGES - 1) % STAGES, ahead, k, k_scale, near, packet, num_keys,
                stride_kn, stride_scale, BLOCK_KEYS,
            )  # fmt: skip
            if tile < my_last:
                base = first_key(tile, num_keys, BLOCK_KEYS)
                for part in gl.static_range(0, BLOCK_KEYS, PART_KEYS):
                    first_product = (slot * BLOCK_KEYS + part) // 32
                    if query_scale is not None:
                        logit = score(
                            query, weight, keys_read, first_product, ROWS, PADDED_HEADS, PART_KEYS, PACKED_RELU,
                            query_scale, scales_read, slot * (2 * NUM_WARPS) + part // 32, Q_KIND, K_KIND,
                        )  # fmt: skip
                    else:
                        logit = score(query, weight, keys_read, first_product, ROWS, PADDED_HEADS, PART_KEYS, PACKED_RELU)
                        scale = async_copy.load_shared_relaxed(
                            scales.index(slot).slice(part, PART_KEYS, 0), gl.SliceLayout(0, logits)
                        )
                        logit *= scale[None, :]
                    inside = (base + part >= begin) & (base + part < end)
                    if COMPRESSED:
                        store(out, cell + (base + part) * stride_on, logit, inside)
                    else:
                        store(out + (base + part).to(gl.int64) * stride_on, cell, logit, inside)
                if CLEAN:
                    split, splits, number, first, last, fill_offset, fill_wanted = strips
                    filled: gl.constexpr = fill_offset.type.layout.parent
                    strip = (tile - my_first) * splits + split
                    if strip < number:
                        fill_strip(out, strip, first, last, fill_offset, fill_wanted, stride_on, STRIP, INDEX, filled)
    async_copy.wait_group(0)
