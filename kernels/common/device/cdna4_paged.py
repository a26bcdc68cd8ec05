"""What the paged kernels for CDNA4 (gfx950) do alike, of fp8 keys and of MX formats: fills, tiles on their way to LDS, scores.

The docstring of fp8_paged_mqa_logits' variant says how.
"""

from capgate.compat.gluon import async_copy, constexpr_function, gl, gluon, reinterpret

from .cdna4 import fill, score, store
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


@gluon.jit
def copy_blocks(
    tile_blocks, entries, tile, longest, stride_tk, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, LAYOUT: gl.constexpr
):
    """Start the copy of the table's entries for one tile to LDS: for each key its block."""
    tile = tile.to(gl.uint32)  # as it is not below 0, one instruction divides
    first = tile // (BLOCK // BLOCK_KEYS) if BLOCK % BLOCK_KEYS == 0 else tile * BLOCK_KEYS // BLOCK
    number = gl.arange(0, tile_blocks.shape[0], LAYOUT) % BLOCK_KEYS
    if BLOCK_KEYS % BLOCK == 0 or BLOCK % BLOCK_KEYS == 0:  # a tile begins where a block does, or lies in one
        number = number // min(BLOCK, BLOCK_KEYS)
    else:
        number = ((tile * BLOCK_KEYS % BLOCK).to(gl.int32) + number) // BLOCK
    if BLOCK % BLOCK_KEYS:
        number = gl.minimum(
            number, (longest - 1) // BLOCK - first.to(gl.int32)
        )  # what the table holds behind that may be garbage
    at = (first * stride_tk).to(gl.uint32) * 4  # in bytes: one instruction less
    near = entries.to(gl.pointer_type(gl.int8), bitcast=True) + at.to(gl.int64)
    async_copy.buffer_load_to_shared(tile_blocks, near.to(entries.dtype, bitcast=True), number * stride_tk)


@gluon.jit
def copy_tile(
    tile_keys, tile_scales, tile_blocks, tile, num_blocks,
    keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK: gl.constexpr, of_lanes: gl.constexpr,
):  # fmt: skip
    """Start the copy of one tile's keys and scales to LDS, out of the blocks that ``tile_blocks`` names.

    Returns the tile's block, or where it has several the block of each of its keys in the layout ``of_lanes``.
    """
    BLOCKS: gl.constexpr = tile_keys.shape[0]
    PIECE_KEYS: gl.constexpr = tile_keys.shape[1]
    if BLOCKS == 1:
        of_keys: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, key_at.type.layout))
        block = gl.max(async_copy.load_shared_relaxed(tile_blocks.slice(0, 1, 0), of_keys), 0)
        # Every lane has the same, but the compiler would loop over the lanes round each copy.
        block = gl.inline_asm_elementwise("v_readfirstlane_b32 $0, $1", "=s,v", [block], dtype=gl.int32, is_pure=True, pack=1)
        apart = gl.to_tensor(stride_keys)
        if apart.dtype == gl.int32:  # not below 0: one instruction multiplies instead of three
            apart = apart.to(gl.uint32)
        keys += near_block(block, num_blocks).to(gl.int64) * apart.to(gl.int64)
        # A block's scales lie behind its keys: from one base, so that it is worked out once.
        scales = keys.to(scales.dtype)
        scale_at += BLOCK * tile_keys.shape[2] // 4
        if BLOCK > PIECE_KEYS:
            first = tile.to(gl.uint32) * PIECE_KEYS % BLOCK  # not below 0
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
            piece = gl.arange(0, BLOCKS, gl.SliceLayout(1, gl.SliceLayout(2, key_at.type.layout)))
            key_at += ((tile * BLOCKS + piece) * PIECE_KEYS % BLOCK * tile_keys.shape[2])[:, None, None]
            piece = gl.arange(0, BLOCKS, gl.SliceLayout(0, gl.SliceLayout(2, scale_at.type.layout)))
            scale_at += ((tile * BLOCKS + piece) * PIECE_KEYS % BLOCK)[None, :, None]
        block = answered(block)  # as the others are: one wave alone meets no barrier before it copies over what it reads here
    async_copy.buffer_load_to_shared(tile_keys, keys, key_at)
    async_copy.buffer_load_to_shared(tile_scales, scales, scale_at)
    return block


@gluon.jit
def start_tiles(
    tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, my_first, my_last, splits, longest,
    num_blocks, stride_tk, stride_keys, stride_scales,
    BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, of_lanes: gl.constexpr,
):  # fmt: skip
    """Start the copies of a program's first tiles, whose table entries have come, and of the entries of those behind them.

    Returns a tuple of what :func:`copy_tile` does for each.
    """
    AHEAD: gl.constexpr = tile_keys.shape[0] - 1
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [gl.num_warps()], [0])
    blocks = ()
    for stage in gl.static_range(AHEAD):
        tile = gl.minimum(my_first + stage * splits, my_last)
        block = copy_tile(
            tile_keys.index(stage), tile_scales.index(stage), tile_blocks.index(stage + 1), tile, num_blocks,
            keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK, of_lanes,
        )  # fmt: skip
        blocks += (block,)
        tile = gl.minimum(my_first + (stage + AHEAD) * splits, my_last)
        copy_blocks(tile_blocks.index(stage), entries, tile, longest, stride_tk, BLOCK, BLOCK_KEYS, line_copied)
        async_copy.commit_group()
    return blocks


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
def score_tiles(
    query, weight, blocks, tile_keys, tile_scales, tile_blocks, keys_read, scales_read, entries, keys, scales, key_at, scale_at,
    rows, cell, length, my_first, my_last, past_tile, splits, limit, longest, num_blocks,
    stride_tk, stride_keys, stride_scales, stride_on,
    ROWS: gl.constexpr, PADDED_HEADS: gl.constexpr, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, PACKED_RELU: gl.constexpr,
    query_scale=None, Q_KIND: gl.constexpr = None, K_KIND: gl.constexpr = None,
):  # fmt: skip
    """Write the logits of a program's tiles: every ``splits``th from ``my_first`` on.

    blocks : what :func:`start_tiles` returned
    query, weight, keys_read, scales_read, query_scale, Q_KIND, K_KIND : as :func:`score_tile`
    rows, cell : the first row's first cell, and [ROWS, BLOCK_KEYS] a tile's cells from it on
    length : [ROWS, BLOCK_KEYS] how many keys a row has to be given, less the place in a tile
    limit : no row is given as many
    """
    NUM_WARPS: gl.constexpr = gl.num_warps()
    STAGES: gl.constexpr = tile_keys.shape[0]
    BLOCKS: gl.constexpr = tile_keys.shape[1]
    AHEAD: gl.constexpr = STAGES - 1
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    logits: gl.constexpr = length.type.layout
    # A tile's logits are stored when the next one has come, before more copies start: a wait is for all but the youngest
    # operations, of which Triton 3.6.0 and 3.7.1 count the copies alone. Behind a store among those it would be for one of the
    # next tile's copies as well.
    base = limit
    logit = gl.zeros([ROWS, BLOCK_KEYS], gl.float32, logits)
    for round_first in range(my_first, past_tile, STAGES * splits):
        for slot in gl.static_range(STAGES):  # a constant, and so are all places in LDS
            free = (slot + AHEAD) % STAGES
            tile = round_first + slot * splits
            async_copy.wait_group(AHEAD - 1)
            store(rows + base.to(gl.int64) * stride_on, cell, logit, base < length)
            ahead = afterwards(gl.minimum(tile + 2 * AHEAD * splits, my_last))
            copy_blocks(tile_blocks.index(free), entries, ahead, longest, stride_tk, BLOCK, BLOCK_KEYS, line_copied)
            ahead = gl.minimum(tile + AHEAD * splits, my_last)
            block = copy_tile(
                tile_keys.index(free), tile_scales.index(free), tile_blocks.index(slot), ahead, num_blocks,
                keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK, gl.SliceLayout(0, logits),
            )  # fmt: skip
            async_copy.commit_group()
            base = tile * BLOCK_KEYS
            if tile < past_tile:
                logit = score_tile(
                    query, weight, keys_read, scales_read, slot, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU, logits,
                    query_scale, Q_KIND, K_KIND,
                )  # fmt: skip
                held = blocks[0].to(gl.uint32) < num_blocks
                if BLOCKS > 1:
                    held = held[None, :]
                logit = gl.where(held, logit, float("-inf"))
            blocks = blocks[1:] + (block,)  # noqa: RUF005 - Triton knows no starred elements
    async_copy.wait_group(0)
    store(rows + base.to(gl.int64) * stride_on, cell, logit, base < length)
