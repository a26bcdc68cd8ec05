"""Device functions in Gluon for CDNA4 (gfx950) of sparse logits of cached keys: how a tile of listed keys gets to LDS."""

from capgate.compat.gluon import async_copy, gl, gluon, reinterpret

from ..common.device.cached_keys import first_byte
from ..common.device.cdna4_paged import answered
from ..common.device.windows import near_block
from .plan import MAX_KEYS

FAR = gl.constexpr(MAX_KEYS)  # further than any key that a row sees


@gluon.jit
def first_word(inside, PIECE_KEYS: gl.constexpr, SCALE_TILE: gl.constexpr, SCALE_LANES: gl.constexpr):
    """Where a block's words of scales have the first of a piece's keys, which begins at key ``inside``, whole pieces behind."""
    if PIECE_KEYS % SCALE_TILE == 0:
        return inside
    else:
        return inside // SCALE_TILE * SCALE_TILE + inside % SCALE_TILE // SCALE_LANES


@gluon.jit
def word_of_scales(word, PIECE_KEYS: gl.constexpr, SCALE_TILE: gl.constexpr, SCALE_LANES: gl.constexpr):
    """How far behind a piece's first word of scales the words lie that make them whole tiles: of the piece, if it has none.

    Of a tile the groups SCALE_LANES apart lie together: see :class:`..common.key_formats.Layout`.
    """
    if PIECE_KEYS % SCALE_TILE == 0:
        return word
    else:
        TOGETHER: gl.constexpr = PIECE_KEYS // SCALE_LANES
        return word // TOGETHER * (SCALE_TILE // SCALE_LANES) + word % TOGETHER


@gluon.jit
def copy_entries(
    tile_entries, tile_candidates, past, pages, stride_tk, BLOCK: gl.constexpr, CANDIDATE: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """Start the copy of the table's entries for the blocks that ``tile_candidates`` names to LDS: for each cell one.

    past : blocks that the row has; in place of others the entry of its last one
    """
    block = async_copy.load_shared_relaxed(tile_candidates, LAYOUT).to(gl.uint32)
    page = gl.minimum(block, past - 1) // (BLOCK // CANDIDATE)
    async_copy.buffer_load_to_shared(tile_entries, pages, page.to(gl.int32) * stride_tk)


@gluon.jit
def copy_tile(
    tile_keys, tile_scales, tile_candidates, tile_entries, tile, past, num_blocks,
    keys, scales, key_at, scale_at, stride_keys,
    BLOCK: gl.constexpr, CANDIDATE: gl.constexpr, TILE: gl.constexpr, SCALE_TILE: gl.constexpr, SCALE_LANES: gl.constexpr,
    of_lanes: gl.constexpr,
):  # fmt: skip
    """Start the copy of one tile's keys and scales to LDS, those of blocks ``tile_candidates`` that lie in ``tile_entries``.

    scales : the keys' bytes as words, since a block's scales lie behind its keys

    Returns which of the row's keys the tile's cells are of, in the layout ``of_lanes``; MAX_KEYS where the cache lacks one.
    """
    BLOCKS: gl.constexpr = tile_keys.shape[0]
    PIECE_KEYS: gl.constexpr = tile_keys.shape[1]
    BLOCK_KEYS: gl.constexpr = BLOCKS * PIECE_KEYS
    LANES: gl.constexpr = tile_entries.shape[0]
    pieces: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    tile_blocks = reinterpret(tile_candidates, gl.int32, [LANES // PIECE_KEYS, PIECE_KEYS], pieces).slice(0, BLOCKS, 0)
    tile_pages = reinterpret(tile_entries, gl.int32, [LANES // PIECE_KEYS, PIECE_KEYS], pieces).slice(0, BLOCKS, 0)
    skipped = tile.to(gl.uint32) * BLOCK_KEYS % CANDIDATE  # keys of a candidate block, where it has several tiles

    # Whichever candidate a row lists, and past its end: there are keys to read in the block that stands for it.
    of_keys: gl.constexpr = gl.SliceLayout(2, key_at.type.layout)
    block = async_copy.load_shared_relaxed(tile_blocks.slice(0, 1, 1), of_keys).to(gl.uint32)
    page = near_block(async_copy.load_shared_relaxed(tile_pages.slice(0, 1, 1), of_keys), num_blocks)
    inside = block % (BLOCK // CANDIDATE) * CANDIDATE
    if CANDIDATE > BLOCK_KEYS:
        inside += skipped
    key_at += (page.to(gl.int32) * stride_keys + first_byte(inside.to(gl.int32), tile_keys.shape[2], TILE))[:, :, None]

    of_scales: gl.constexpr = gl.SliceLayout(0, scale_at.type.layout)
    block = async_copy.load_shared_relaxed(tile_blocks, of_scales).to(gl.uint32)
    page = async_copy.load_shared_relaxed(tile_pages, of_scales).to(gl.uint32)
    inside = block % (BLOCK // CANDIDATE) * CANDIDATE
    place = gl.minimum(block, past) * CANDIDATE + gl.arange(0, PIECE_KEYS, gl.SliceLayout(0, of_scales)).to(gl.uint32)[None, :]
    if CANDIDATE > BLOCK_KEYS:
        inside += skipped
        place += skipped
    place = gl.where(page < num_blocks, place, FAR)
    page = near_block(page, num_blocks) * gl.to_tensor(stride_keys).to(gl.uint32) // 4
    scale_at += (page + first_word(inside, PIECE_KEYS, SCALE_TILE, SCALE_LANES)).to(gl.int32)[None, :, :]
    place = answered(place)  # as the others are: one wave alone meets no barrier before it copies over what it reads here
    async_copy.buffer_load_to_shared(tile_keys, keys, key_at)
    async_copy.buffer_load_to_shared(tile_scales, scales, scale_at)
    return gl.convert_layout(gl.reshape(place, [BLOCK_KEYS]), of_lanes)
