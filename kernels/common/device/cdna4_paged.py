"""What the paged kernels for CDNA4 (gfx950) do alike, of fp8 keys and of MX formats: fills, and tiles on their way to LDS.

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
def copy_blocks(
    tile_blocks, entries, first_key, longest, stride_tk, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, LAYOUT: gl.constexpr
):
    """Start the copy of the table's entries for the tile of several blocks from a key on to LDS: for each key its block."""
    first_key = first_key.to(gl.uint32)  # as it is not below 0, one instruction divides
    first = first_key // BLOCK
    number = gl.arange(0, tile_blocks.shape[0], LAYOUT) % BLOCK_KEYS
    if BLOCK_KEYS % BLOCK:  # a tile begins anywhere in a block
        number += (first_key % BLOCK).to(gl.int32)
    number = number // BLOCK
    number = gl.minimum(number, (longest - 1) // BLOCK - first.to(gl.int32))  # what the table holds behind that may be garbage
    at = (first * stride_tk).to(gl.uint32) * 4  # in bytes: one instruction less
    near = entries.to(gl.pointer_type(gl.int8), bitcast=True) + at.to(gl.int64)
    async_copy.buffer_load_to_shared(tile_blocks, near.to(entries.dtype, bitcast=True), number * stride_tk)


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
def start_tiles(
    tile_keys, tile_scales, tile_blocks, entries, keys, scales, key_at, scale_at, my_first, my_last, splits, longest,
    num_blocks, stride_tk, stride_keys, stride_scales,
    BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr, of_lanes: gl.constexpr,
):  # fmt: skip
    """Start the copies of a program's first tiles, whose table entries have come, and of the entries of those behind them.

    tile_blocks : as :func:`score_tiles`; of a line the first lanes

    Returns a tuple of what :func:`copy_tile` does for each.
    """
    BLOCKS: gl.constexpr = tile_keys.shape[1]
    AHEAD: gl.constexpr = tile_keys.shape[0] - 1
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [gl.num_warps()], [0])
    blocks = ()
    for stage in gl.static_range(AHEAD):
        of_tile = of_lane(tile_blocks, stage) if BLOCKS == 1 else tile_blocks.index(stage + 1)
        block = copy_tile(
            tile_keys.index(stage), tile_scales.index(stage), of_tile, (my_first + stage * splits) * BLOCK_KEYS, num_blocks,
            keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK, of_lanes,
        )  # fmt: skip
        blocks += (block,)
        if BLOCKS > 1:
            ahead = gl.minimum(my_first + (stage + AHEAD) * splits, my_last) * BLOCK_KEYS
            copy_blocks(tile_blocks.index(stage), entries, ahead, longest, stride_tk, BLOCK, BLOCK_KEYS, line_copied)
        async_copy.commit_group()
    return blocks


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
    query, weight, query_scale, Q_KIND, K_KIND : as :func:`.cdna4.score`
    scales_read : of MX formats as that takes them, otherwise [stages, lanes] float32
    rows, cell : the first row's first cell, and [ROWS, BLOCK_KEYS] a tile's cells from it on
    length : [ROWS, BLOCK_KEYS] how many keys a row has to be given, less the place in a tile
    limit : no row is given as many
    """
    NUM_WARPS: gl.constexpr = gl.num_warps()
    STAGES: gl.constexpr = tile_keys.shape[0]
    BLOCKS: gl.constexpr = tile_keys.shape[1]
    AHEAD: gl.constexpr = STAGES - 1
    line_copied: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
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
                free = (slot + AHEAD) % STAGES
                async_copy.wait_group(AHEAD - 1)
                store(rows + base.to(gl.int64) * stride_on, cell, logit, base < length)
                base = first_key + slot * splits * BLOCK_KEYS
                if BLOCKS == 1:
                    of_tile = of_lane(line, number + slot + AHEAD)
                else:
                    ahead = afterwards(gl.minimum(base + 2 * AHEAD * splits * BLOCK_KEYS, my_last * BLOCK_KEYS))
                    copy_blocks(tile_blocks.index(free), entries, ahead, longest, stride_tk, BLOCK, BLOCK_KEYS, line_copied)
                    of_tile = tile_blocks.index(slot)
                block = copy_tile(
                    tile_keys.index(free), tile_scales.index(free), of_tile, base + AHEAD * splits * BLOCK_KEYS, num_blocks,
                    keys, scales, key_at, scale_at, stride_keys, stride_scales, BLOCK, gl.SliceLayout(0, logits),
                )  # fmt: skip
                async_copy.commit_group()
                if number + slot < left:
                    first_product = slot * (BLOCK_KEYS // 32)
                    if query_scale is not None:
                        logit = score(
                            query, weight, keys_read, first_product, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU,
                            query_scale, scales_read, slot * (2 * NUM_WARPS), Q_KIND, K_KIND,
                        )  # fmt: skip
                    else:
                        scale = async_copy.load_shared_relaxed(
                            scales_read.index(slot).slice(0, BLOCK_KEYS, 0), gl.SliceLayout(0, logits)
                        )
                        logit = score(query, weight, keys_read, first_product, ROWS, PADDED_HEADS, BLOCK_KEYS, PACKED_RELU)
                        logit *= scale[None, :]
                    held = blocks[0].to(gl.uint32) < num_blocks
                    if BLOCKS > 1:
                        held = held[None, :]
                    logit = gl.where(held, logit, float("-inf"))
                blocks = blocks[1:] + (block,)  # noqa: RUF005 - Triton knows no starred elements
            first_key += STAGES * splits * BLOCK_KEYS
    async_copy.wait_group(0)
    store(rows + base.to(gl.int64) * stride_on, cell, logit, base < length)
