"""A paged key cache: the operands that describe one, and where it holds its keys and scales.

The cache is declared [num_blocks, block, 1, D + 4] in bytes, but a block is block * D bytes of keys, then block * 4 bytes of
float32 scales in the keys' order. Blocks may lie further apart than they are long.

The keys lie in tiles, one behind the other: a tile holds the first 16 bytes of each of its keys, then the next 16 of each, and
so on. With T keys in a tile, byte d of key t of a block lies at ``t // T * T * D + d // 16 * T * 16 + t % T * 16 + d % 16``. A
flat cache has tiles of one key, a preshuffled one of 16 (aiter: ``shuffle_weight`` with layout (16, 16); vLLM: SHUFFLE).
:mod:`.key_formats` declares that, and the layouts of keys in MX formats, whose caches :mod:`.mx_cache` checks.
"""

import torch

from .checks import check_choice
from .key_formats import BLOCK_SIZES, BLOCK_WORDS, PACKET, SCALE_BYTES, layouts_of
from .key_formats import LAYOUTS as DECLARED
from .operands import Limit, Operand, among
from .rules import MAX_HEADS, MAX_NEXT

LAYOUTS = {name: DECLARED[name].tile for name in layouts_of("fp8")}  # and the keys of a tile

# A dimension "D + 4" is a key's bytes with those of its scale.
CACHE = Operand((("num_blocks", "block", 1, "D + 4"),), (torch.uint8,), (among("block", BLOCK_SIZES, BLOCK_WORDS),))
NEXT = Limit("next_n", 1, MAX_NEXT)
LENGTHS = Operand((("B",), ("B", "next_n")), (torch.int32,), (NEXT,))
TABLE = Operand((("B", "max_blocks"),), (torch.int32,))


def with_scale(dim: int) -> int:
    """Bytes of a key and its scale."""
    return dim + SCALE_BYTES


def check_blocks(kv_cache: torch.Tensor, layout: str = "flat") -> None:
    """Raise ValueError for a cache, otherwise as CACHE says, whose blocks are not of adjacent bytes, of whole tiles and apart.

    TypeError or ValueError for a layout that is none.
    """
    check_choice("layout", layout, tuple(LAYOUTS))
    check_adjacent(kv_cache, LAYOUTS[layout], layout)


def check_adjacent(kv_cache: torch.Tensor, tile: int, layout: str) -> None:
    """As :func:`check_blocks`, of a layout with ``tile`` keys in a tile, and of keys of any format."""
    blocks, block, _, width = kv_cache.shape
    distance, row, _, step = kv_cache.stride()
    if block % tile:
        raise ValueError(f"kv_cache: got blocks of {block} keys, needs a multiple of {tile} in a {layout} cache")
    adjacent = step == 1 and (block == 1 or row == width)
    if not adjacent or distance % SCALE_BYTES or (blocks > 1 and distance < block * width):
        raise ValueError(
            f"kv_cache: got strides {tuple(kv_cache.stride())}, needs blocks of adjacent bytes, "
            f"a multiple of {SCALE_BYTES} and at least {block * width} bytes apart"
        )


def keys_of(kv_cache: torch.Tensor) -> torch.Tensor:
    """The key bytes of a checked cache: a view of shape [num_blocks, block, D], by keys where it is flat."""
    blocks, block, _, width = kv_cache.shape
    dim = width - SCALE_BYTES
    return kv_cache.as_strided((blocks, block, dim), (kv_cache.stride(0), dim, 1), kv_cache.storage_offset())


def packets_of(kv_cache: torch.Tensor, layout: str) -> torch.Tensor:
    """The key bytes of a checked cache: a view of shape [num_blocks, tiles of a block, keys of a tile, D // 16, 16]."""
    blocks, block, _, width = kv_cache.shape
    dim, tile = width - SCALE_BYTES, LAYOUTS[layout]
    shape = (blocks, block // tile, tile, dim // PACKET, PACKET)
    return kv_cache.as_strided(shape, (kv_cache.stride(0), tile * dim, PACKET, tile * PACKET, 1), kv_cache.storage_offset())


def readable(kv_cache: torch.Tensor) -> torch.Tensor:
    """A checked cache, or where it has no block one of zeros: there is something to read in place of missing keys."""
    return kv_cache if kv_cache.shape[0] else kv_cache.new_zeros((1, *kv_cache.shape[1:]))


def scale_bytes_of(kv_cache: torch.Tensor) -> torch.Tensor:
    """The bytes of the scales of a checked cache: a view of shape [num_blocks, block, 4]."""
    blocks, block, _, width = kv_cache.shape
    offset = kv_cache.storage_offset() + (block * (width - SCALE_BYTES) if blocks else 0)
    return kv_cache.as_strided((blocks, block, SCALE_BYTES), (kv_cache.stride(0), SCALE_BYTES, 1), offset)


def check_address(kv_cache: torch.Tensor) -> None:
    """Raise ValueError for a cache whose scales are not aligned; apart from check_blocks, since torch.compile cannot follow."""
    if not kv_cache.is_meta and kv_cache.data_ptr() % SCALE_BYTES:
        raise ValueError(f"kv_cache: got address {kv_cache.data_ptr():#x}, needs a multiple of {SCALE_BYTES}")


def copies_directly(kv_cache: torch.Tensor, weights: torch.Tensor, block_table: torch.Tensor) -> bool:
    """Whether keys, weights and table entries can go straight to LDS: keys in 16-byte chunks, all at offsets of 32 bits.

    Blocks of a multiple of 64 keys may lie anywhere: a tile lies in one, which is then the base of its offsets.
    """
    (blocks, block), step = kv_cache.shape[:2], kv_cache.stride(0)
    aligned = kv_cache.data_ptr() % 16 == 0 and step % 16 == 0
    (row, head), entry = weights.stride(), block_table.stride(1)
    next_n = weights.shape[0] // max(1, block_table.shape[0])
    nearest = weights.itemsize * (next_n * row + MAX_HEADS * head), 4 * max(64, block_table.shape[1]) * entry
    farthest = max(*nearest, 0 if block % 64 == 0 else blocks * step)
    return bool(aligned and farthest < 2**31)


def scales_of(kv_cache: torch.Tensor) -> torch.Tensor:
    """The scales of a checked cache: a float32 view of shape [num_blocks, block]. ValueError where they are not aligned."""
    check_address(kv_cache)
    return scale_bytes_of(kv_cache).view(torch.float32)[:, :, 0]
