"""What the paged kernels for CDNA4 (gfx950) do alike, of fp8 keys and of MX formats: fills, tiles on their way to LDS, scores.

The docstring of fp8_paged_mqa_logits' variant says how.
"""

from capgate.compat.gluon import async_copy, constexpr_function, gl, gluon, reinterpret

from .cached_keys import first_byte
from .cdna4 import fill, in_pairs, load, row_and_head, score, store
from .windows import near_block, seen


@constexpr_function
def in_order(SHAPE, ELEMENTS, NUM_WARPS):
    """Three dimensions in the order of memory, as copies to LDS write them: ELEMENTS a lane, lane by lane, wave by wave."""
    lanes, waves, lanes_of, waves_of = 64, NUM_WARPS, [], []
    for size in (SHAPE[2] // ELEMENTS, SHAPE[1]):
        lanes_of.append(min(lanes, size))
        waves_of.append(min(waves, size // lanes_of[-1]))
        lanes, waves = lanes // lanes_of[-1], waves // waves_of[-1]
    return gl.BlockedLayout([1, 1, ELEMENTS], [lanes, *lanes_of[::-1]], [waves, *waves_of[::-1]], [2, 1, 0])


@gluon.jit
def fill_behind(rows, base, end, width, stride_on, STRIP: gl.constexpr, INDEX: gl.constexpr):
    """-inf into the cells from ``end`` on of a row's strip that begins at ``base``; ``rows`` points to the row."""
    filled: gl.constexpr = gl.BlockedLayout([1, 4], [1, 64], [1, gl.num_warps()], [1, 0])
    near_strip = gl.arange(0, 1, gl.SliceLayout(1, filled))
    strip_offset = near_strip.to(INDEX)
    first = gl.maximum(base, end)
    last = gl.minimum(base + STRIP, width)
    if last - first == STRIP:  # no column mask, so a store has 4 cells
        fill(rows, gl.multiple_of(base, 16), STRIP, strip_offset, near_strip == 0, stride_on, STRIP, INDEX, filled)
    elif first < last:
        fill(rows, first, last - first, strip_offset, near_strip == 0, stride_on, STRIP, INDEX, filled)


@gluon.jit
def fill_unseen(
    out, lens, strips, limit, width, stride_lb, stride_ln, stride_os, stride_on,
    NEXT_N: gl.constexpr, STRIP: gl.constexpr, ROW_LENS: gl.constexpr, INDEX: gl.constexpr,
):  # fmt: skip
    """-inf into the cells that no row sees, of this program's share of all ``strips``."""
    row_strips = gl.cdiv(width, STRIP)
    step = gl.num_programs(0) * gl.num_programs(1)
    for strip in range(gl.program_id(0) * gl.num_programs(1) + gl.program_id(1), strips, step):
        row = (strip // row_strips).to(gl.int32)
        base = (strip % row_strips).to(gl.int32) * STRIP
        end = seen(lens, row // NEXT_N, row % NEXT_N, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
        fill_behind(out + row.to(gl.int64) * stride_os, base, end, width, stride_on, STRIP, INDEX)


@gluon.jit
def unknown(value):
    """``value`` as a number that the compiler does not know.

    LLVM keeps the first copy to LDS in place of all, and has a read at the same constant address wait for every copy under way.
    """
    return gl.inline_asm_elementwise("", "=s,0", [gl.to_tensor(value)], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def answered(value):
    """``value``, a read of LDS, once it has come: no copy that is started behind this overtakes the read."""
    return gl.inline_asm_elementwise("", "=v,0", [value], dtype=value.dtype, is_pure=False, pack=1)


@gluon.jit
def afterwards(value):
    """``value``, a scalar, for what stays behind the stores before this: Triton 3.7.1 would put copies in front of them."""
    return gl.inline_asm_elementwise("", "=s,0", [value], dtype=value.dtype, is_pure=False, pack=1)


@constexpr_function
def line_tiles(STAGES):
    """Tiles of a line of entries: whole rounds, so that lanes are left for the tiles that are copied ahead of the last one."""
    return (64 - (STAGES - 1)) // STAGES * STAGES


@gluon.jit
def load_line(entries, first, my_last, splits, stride_tk, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr):
    """The table's entries for 64 of a program's tiles from ``first`` on, those past ``my_last`` as for it: each lane has one.

    For Triton it is a scalar, which all lanes share: only :func:`of_lane` may use it.
    """
    lane = gl.inline_asm_elementwise(
        "v_mbcnt_lo_u32_b32 $0, -1, 0\n\tv_mbcnt_hi_u32_b32 $0, -1, $0", "=&v", [], dtype=gl.int32, is_pure=True, pack=1
    )
    tile = gl.minimum(first + lane * splits, my_last).to(gl.uint32)  # as it is not below 0, one instruction divides
    return gl.load(entries + (tile // (BLOCK // BLOCK_KEYS)).to(gl.int32) * stride_tk)


@gluon.jit
def of_lane(line, lane):
    """What a lane has of a line, for all lanes. Stays behind the stores before it, as :func:`afterwards`."""
    return gl.inline_asm_elementwise("v_readlane_b32 $0, $1, $2", "=s,v,s", [line, lane], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def places_in_block(
    DIM: gl.constexpr, TILE: gl.constexpr, PAIRS: gl.constexpr, keys_copied: gl.constexpr, scales_copied: gl.constexpr,
    BLOCKS: gl.constexpr, PIECE_KEYS: gl.constexpr, REPEATS: gl.constexpr,
):  # fmt: skip
    """(key_at, scale_at): from the first key of a piece of each of a tile's BLOCKS on, where each lane's packets and scale lie:
    packets in a permuted order, so that what reads LDS finds no bank conflict.

    DIM : bytes of a key
    PAIRS : whether dims are in the order of :func:`.cdna4.in_pairs`
    """
    key = gl.arange(0, PIECE_KEYS, gl.SliceLayout(0, gl.SliceLayout(2, keys_copied)))
    byte = gl.arange(0, DIM, gl.SliceLayout(0, gl.SliceLayout(1, keys_copied)))
    tile_key = gl.arange(0, BLOCKS, gl.SliceLayout(1, gl.SliceLayout(2, keys_copied)))[:, None] * PIECE_KEYS + key[None, :]
    packet = (byte // 16)[None, None, :] ^ (tile_key * DIM // 256 % (DIM // 16))[:, :, None]
    if PAIRS:
        packet = in_pairs(packet, DIM // 64)
    key_at = first_byte(key, DIM, TILE)[None, :, None] + packet * (16 * TILE) + (byte % 16)[None, None, :]
    scale_at = gl.arange(0, PIECE_KEYS, gl.SliceLayout(0, gl.SliceLayout(1, scales_copied)))[None, None, :]
    scale_at += gl.full([REPEATS, BLOCKS, PIECE_KEYS], 0, gl.int32, scales_copied)
    return key_at, scale_at


@gluon.jit
def weight_places(
    first_row, stride_ws, stride_wh, NEXT_N: gl.constexpr, HEADS: gl.constexpr, PADDED_HEADS: gl.constexpr,
    TOGETHER: gl.constexpr, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """From a request's first weight on, where those of columns rows x heads lie, of rows from ``first_row`` on: one for every
    lane. Past an edge they are those of the last one."""
    column = gl.arange(0, max(COLUMNS, 64 * gl.num_warps()), LAYOUT) % COLUMNS
    column_row, head = row_and_head(column, PADDED_HEADS, TOGETHER)
    column_row = gl.minimum(first_row + column_row, NEXT_N - 1)
    return column_row * stride_ws + gl.minimum(head, HEADS - 1) * stride_wh


@gluon.jit
def copy_blocks(
    tile_blocks, entries, first_key, longest, stride_tk, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, LAYOUT: gl.constexpr
):
    """Start the copy of the table's entries for the tile from a key on to LDS: for each key its block."""
    first_key = first_key.to(gl.uint32)  # as it is not below 0, one instruction divides
    first = first_key // BLOCK
    number = gl.arange(0, tile_blocks.shape[0], LAYOUT) % BLOCK_KEYS
    if BLOCK % BLOCK_KEYS == 0:  # the tile lies in one block
        number = number // BLOCK_KEYS
    else:
        if BLOCK_KEYS % BLOCK:  # a tile begins anywhere in a block
            number += (first_key % BLOCK).to(gl.int32)
        number = number // BLOCK
        number = gl.minimum(number, (longest - 1) // BLOCK - first.to(gl.int32))  # what lies behind that may be garbage
    at = (first * stride_tk).to(gl.uint32) * 4  # in bytes: one instruction less
    near = entries.to(gl.pointer_type(gl.int8), bitcast=True) + at.to(gl.int64)
    async_copy.buffer_load_to_shared(tile_blocks, near.to(entries.dtype, bitcast=True), number * stride_tk)


@gluon.jit
def entry_of(tile_blocks, key_at, BLOCKS: gl.constexpr):
    """What :func:`copy_tile` takes of a tile whose entries have come to LDS: these, or its one block, a scalar."""
    if BLOCKS == 1:
        LAYOUT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, key_at.type.layout))
        block = gl.max(async_copy.load_shared_relaxed(tile_blocks.slice(0, 1, 0), LAYOUT), 0)
        # Every lane has the same, but the compiler would loop over the lanes round each copy.
        return gl.inline_asm_elementwise("v_readfirstlane_b32 $0, $1", "=s,v", [block], dtype=gl.int32, is_pure=True, pack=1)
    else:
        return tile_blocks


@gluon.jit
def copy_tile(
    tile_keys, tile_scales, tile_blocks, first_key, num_blocks,
    keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK: gl.constexpr, of_lanes: gl.constexpr,
):  # fmt: skip
    """Start the copy of one tile's keys and scales to LDS.

    tile_blocks : the block in which the tile lies, or in LDS the blocks in which it lies

    Returns the tile's block, or where it has several the block of each of its keys in the layout ``of_lanes``.
    """
    BLOCKS: gl.constexpr = tile_keys.shape[0]
    PIECE_KEYS: gl.constexpr = tile_keys.shape[1]
    if BLOCKS == 1:
        block = tile_blocks
        apart = gl.to_tensor(stride_keys)
        if apart.dtype == gl.int32:  # not below 0: one instruction multiplies instead of three
            apart = apart.to(gl.uint32)
        keys += near_block(block, num_blocks).to(gl.int64) * apart.to(gl.int64)
        # A block's scales lie behind its keys: from one base, so that it is worked out once.
        scales = keys.to(scales.dtype)
        scale_at += BLOCK * tile_keys.shape[2] // 4
        if BLOCK > PIECE_KEYS:
            first = first_key.to(gl.uint32) % BLOCK  # not below 0
            scales += first.to(gl.int64)
            keys += (first * tile_keys.shape[2]).to(gl.int64)
    else:
        block = async_copy.load_shared_relaxed(tile_blocks.slice(0, BLOCKS * PIECE_KEYS, 0), of_lanes)
        pieces: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        firsts = reinterpret(tile_blocks, gl.int32, [tile_blocks.shape[0] // PIECE_KEYS, PIECE_KEYS], pieces)
        firsts = firsts.slice(0, BLOCKS, 0).slice(0, 1, 1)
        blocks = near_block(async_copy.load_shared_relaxed(firsts, gl.SliceLayout(2, key_at.type.layout)), num_blocks)
        key_at += (blocks.to(gl.int32) * stride_keys)[:, :, None]
        blocks = near_block(async_copy.load_shared_relaxed(firsts, gl.SliceLayout(0, scale_at.type.layout)), num_blocks)
        scale_at += (blocks.to(gl.int32) * stride_scales)[None, :, :]
        if BLOCK != PIECE_KEYS:  # a piece lies anywhere in its block
            first_key %= BLOCK
            piece = gl.arange(0, BLOCKS, gl.SliceLayout(1, gl.SliceLayout(2, key_at.type.layout)))
            key_at += ((first_key + piece * PIECE_KEYS) % BLOCK * tile_keys.shape[2])[:, None, None]
            piece = gl.arange(0, BLOCKS, gl.SliceLayout(0, gl.SliceLayout(2, scale_at.type.layout)))
            scale_at += ((first_key + piece * PIECE_KEYS) % BLOCK)[None, :, None]
        block = answered(block)  # as the others are: one wave alone meets no barrier before it copies over what it reads here
    async_copy.buffer_load_to_shared(tile_keys, keys, key_at)
    async_copy.buffer_load_to_shared(tile_scales, scales, scale_at)
    return block


@gluon.jit
def start_entries(
    tile_blocks, entries, my_first, my_last, splits, longest, stride_tk, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr
):
    """Start the copies of the table's entries for a program's first tiles of a request to LDS."""
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [gl.num_warps()], [0])
    for stage in gl.static_range(tile_blocks.shape[0] - 1):
        first_key = gl.minimum(my_first + stage * splits, my_last) * BLOCK_KEYS
        ahead = tile_blocks.index(unknown(stage + 1))
        copy_blocks(ahead, entries, first_key, longest, stride_tk, BLOCK, BLOCK_KEYS, line_copied)


@gluon.jit
def start_weights(columns_weights, weights, weight_at):
    """Start the copies of a request's weights to LDS, and end the group of what was started before.

    weights, weight_at : the request's first one, and what :func:`weight_places` returned
    """
    if weights.dtype.element_ty == gl.float32:
        async_copy.buffer_load_to_shared(columns_weights, weights, weight_at)
    else:  # no copy to LDS has 2 bytes for a lane
        columns_weights.store(load(weights, weight_at).to(gl.float32))
    async_copy.commit_group()


@gluon.jit
def read_weights(
    columns_weights, HEADS: gl.constexpr, PADDED_HEADS: gl.constexpr, TOGETHER: gl.constexpr, COLUMNS: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """[COLUMNS] weights that have come to LDS; 0 for heads that are not there."""
    _, head = row_and_head(gl.arange(0, COLUMNS, LAYOUT), PADDED_HEADS, TOGETHER)
    weight = async_copy.load_shared_relaxed(columns_weights.slice(0, COLUMNS, 0), LAYOUT)
    return gl.where(head < HEADS, weight, 0.0)


@gluon.jit
def start_tiles(
    tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, my_first, my_last, splits, longest,
    num_blocks, stride_tk, stride_keys, stride_scales,
    BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, of_lanes: gl.constexpr, IN_LINE: gl.constexpr,
):  # fmt: skip
    """Start the copies of a program's first tiles, whose table entries have come, and of the entries of those behind them.

    tile_blocks : entries in LDS; IN_LINE, of tiles that lie in one block each, a line of which lanes have them

    Returns a tuple of what :func:`copy_tile` does for each.
    """
    AHEAD: gl.constexpr = tile_keys.shape[0] - 1
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [gl.num_warps()], [0])
    blocks = ()
    for stage in gl.static_range(AHEAD):
        of_tile = of_lane(tile_blocks, stage) if IN_LINE else entry_of(tile_blocks.index(stage + 1), key_at, tile_keys.shape[1])
        block = copy_tile(
            tile_keys.index(stage), tile_scales.index(stage), of_tile, (my_first + stage * splits) * BLOCK_KEYS, num_blocks,
            keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK, of_lanes,
        )  # fmt: skip
        blocks += (block,)
        if not IN_LINE:
            ahead = gl.minimum(my_first + (stage + AHEAD) * splits, my_last) * BLOCK_KEYS
            copy_blocks(tile_blocks.index(stage), entries, ahead, longest, stride_tk, BLOCK, BLOCK_KEYS, line_copied)
        async_copy.commit_group()
    return blocks


@gluon.jit
def copy_ahead(
    tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, base, last_key, further, longest, num_blocks,
    stride_tk, stride_keys, stride_scales,
    SLOT: gl.constexpr, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, of_lanes: gl.constexpr,
):  # fmt: skip
    """Once a tile has come, to SLOT: start the copies of the one that goes to the slot in front of it, whose table entries have
    come with the tile, and of table entries as many tiles further ahead. Returns what :func:`copy_tile` does.

    base, last_key : the first keys of the tile and of the program's last one
    further : keys from a tile to the next
    """
    STAGES: gl.constexpr = tile_keys.shape[0]
    AHEAD: gl.constexpr = STAGES - 1
    FREE: gl.constexpr = (SLOT + AHEAD) % STAGES
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [gl.num_warps()], [0])
    ahead = afterwards(gl.minimum(base + 2 * AHEAD * further, last_key))
    copy_blocks(tile_blocks.index(FREE), entries, ahead, longest, stride_tk, BLOCK, BLOCK_KEYS, line_copied)
    of_tile = entry_of(tile_blocks.index(SLOT), key_at, tile_keys.shape[1])
    block = copy_tile(
        tile_keys.index(FREE), tile_scales.index(FREE), of_tile, base + AHEAD * further, num_blocks,
        keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK, of_lanes,
    )  # fmt: skip
    async_copy.commit_group()
    return block


@gluon.jit
def scales_as_read(tile_scales, GROUPS: gl.constexpr, SCALE_TILE: gl.constexpr, SCALE_LANES: gl.constexpr):
    """The UE8M0 bytes of all tiles in LDS as :func:`.cdna4.score` takes them, 64 keys a wave for each tile.

    tile_scales : [stages, ...] int32, a word for each key; pieces of a tile have whole tiles of SCALE_TILE keys
    SCALE_LANES : where it is 1, and keys have four groups, these are in the order of :func:`.cdna4.in_pairs`
    """
    PRODUCTS: gl.constexpr = tile_scales.shape[0] * 2 * gl.num_warps()
    if GROUPS == 4:
        LANES: gl.constexpr = max(SCALE_LANES, 2)
        in_tiles: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0])
        lying: gl.constexpr = [PRODUCTS, 32 // SCALE_TILE, LANES, SCALE_TILE, 4 // LANES]
        return reinterpret(tile_scales, gl.uint8, lying, in_tiles)
    else:
        by_keys: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        return reinterpret(tile_scales, gl.uint8, [PRODUCTS, 32, 4], by_keys)


@gluon.jit
def score_tile(
    query, weight, keys_read, scales_read, slot,
    ROWS: gl.constexpr, PADDED_HEADS: gl.constexpr, BLOCK_KEYS: gl.constexpr, PACKED_RELU: gl.constexpr, LAYOUT: gl.constexpr,
    query_scale=None, Q_KIND: gl.constexpr = None, K_KIND: gl.constexpr = None,
):  # fmt: skip
    """[ROWS, BLOCK_KEYS] logits, in LAYOUT, of the tile that lies in one of the slots of LDS.

    query, weight, keys_read, query_scale, Q_KIND, K_KIND : as :func:`.cdna4.score`
    scales_read : of MX formats as :func:`scales_as_read` returns it, otherwise [stages, lanes] float32
    """
    first_product = slot * (BLOCK_KEYS // 32)
    if query_scale is not None:
        return score(
            query, weight, keys_read, first_product, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU,
            query_scale, scales_read, slot * (2 * gl.num_warps()), Q_KIND, K_KIND,
        )  # fmt: skip
    else:
        of_lanes: gl.constexpr = gl.SliceLayout(0, LAYOUT)
        scale = async_copy.load_shared_relaxed(scales_read.index(slot).slice(0, BLOCK_KEYS, 0), of_lanes)
        logit = score(query, weight, keys_read, first_product, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU)
        return logit * scale[None, :]


@gluon.jit
def score_held(
    query, weight, block, keys_read, scales_read, num_blocks, slot,
    BLOCKS: gl.constexpr, ROWS: gl.constexpr, PADDED_HEADS: gl.constexpr, BLOCK_KEYS: gl.constexpr, PACKED_RELU: gl.constexpr,
    LAYOUT: gl.constexpr, query_scale=None, Q_KIND: gl.constexpr = None, K_KIND: gl.constexpr = None,
):  # fmt: skip
    """As :func:`score_tile`; -inf where the cache has no such block.

    block : what :func:`copy_tile` returned, of a tile with keys of so many BLOCKS
    """
    logit = score_tile(
        query, weight, keys_read, scales_read, slot, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU, LAYOUT, query_scale, Q_KIND,
        K_KIND,
    )  # fmt: skip
    held = block.to(gl.uint32) < num_blocks
    if BLOCKS > 1:
        held = held[None, :]
    return gl.where(held, logit, float("-inf"))


@gluon.jit
def score_tiles(
    query, weight, blocks, tile_keys, tile_scales, tile_blocks, keys_read, scales_read, entries, keys, scales, key_at, scale_at,
    rows, cell, length, my_first, my_last, tiles, splits, limit, longest, num_blocks,
    stride_tk, stride_keys, stride_scales, stride_on,
    ROWS: gl.constexpr, PADDED_HEADS: gl.constexpr, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, PACKED_RELU: gl.constexpr,
    query_scale=None, Q_KIND: gl.constexpr = None, K_KIND: gl.constexpr = None,
):  # fmt: skip
    """Write the logits of a program's ``tiles`` tiles: every ``splits``th from ``my_first`` to ``my_last``.

    blocks : what :func:`start_tiles` returned
    tile_blocks : of tiles that lie in one block each the line of the first ones, as :func:`load_line`; else entries in LDS
    query, weight, keys_read, scales_read, query_scale, Q_KIND, K_KIND : as :func:`score_tile`
    rows, cell : the first row's first cell, and [ROWS, BLOCK_KEYS] a tile's cells from it on
    length : [ROWS, BLOCK_KEYS] how many keys a row has to be given, less the place in a tile
    limit : no row is given as many
    """
    STAGES: gl.constexpr = tile_keys.shape[0]
    BLOCKS: gl.constexpr = tile_keys.shape[1]
    AHEAD: gl.constexpr = STAGES - 1
    LINE: gl.constexpr = line_tiles(STAGES)
    logits: gl.constexpr = length.type.layout
    # A tile's logits are stored when the next one has come, before more copies start: a wait is for all but the youngest
    # operations, of which Triton 3.6.0 and 3.7.1 count the copies alone. Behind a store among those it would be for one of the
    # next tile's copies as well.
    base = limit
    logit = gl.zeros([ROWS, BLOCK_KEYS], gl.float32, logits)
    first_key = my_first * BLOCK_KEYS
    for done in range(0, tiles, LINE):
        left = gl.minimum(tiles - done, LINE)
        if BLOCKS == 1:
            line = tile_blocks
            following = first_key // BLOCK_KEYS + LINE * splits
            tile_blocks = load_line(entries, following, my_last, splits, stride_tk, BLOCK, BLOCK_KEYS)
        for number in range(0, left, STAGES):
            for slot in gl.static_range(STAGES):  # a constant, and so are all places in LDS
                async_copy.wait_group(AHEAD - 1)
                store(rows + base.to(gl.int64) * stride_on, cell, logit, base < length)
                base = first_key + slot * splits * BLOCK_KEYS
                if BLOCKS == 1:
                    free = (slot + AHEAD) % STAGES
                    block = copy_tile(
                        tile_keys.index(free), tile_scales.index(free), of_lane(line, number + slot + AHEAD),
                        base + AHEAD * splits * BLOCK_KEYS, num_blocks, keys, scales, key_at, scale_at, stride_keys,
                        stride_scales, BLOCK, gl.SliceLayout(0, logits),
                    )  # fmt: skip
                    async_copy.commit_group()
                else:
                    block = copy_ahead(
                        tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, base,
                        my_last * BLOCK_KEYS, splits * BLOCK_KEYS, longest, num_blocks, stride_tk, stride_keys, stride_scales,
                        slot, BLOCK, BLOCK_KEYS, gl.SliceLayout(0, logits),
                    )  # fmt: skip
                if number + slot < left:
                    logit = score_held(
                        query, weight, blocks[0], keys_read, scales_read, num_blocks, slot, BLOCKS, ROWS, PADDED_HEADS,
                        BLOCK_KEYS, PACKED_RELU, logits, query_scale, Q_KIND, K_KIND,
                    )  # fmt: skip
                blocks = blocks[1:] + (block,)  # noqa: RUF005 - Triton knows no starred elements
            first_key += STAGES * splits * BLOCK_KEYS
    async_copy.wait_group(0)
    store(rows + base.to(gl.int64) * stride_on, cell, logit, base < length)
