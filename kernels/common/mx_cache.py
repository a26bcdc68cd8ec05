"""Paged caches of keys in MX formats: the operands that describe one, the check of how it lies, and its bytes.

Where a layout has the scales behind the values, the cache is declared as an fp8 one is, a key's bytes being D or D / 2; else it
is a tensor of values and one of scales, whose pages are flat in the same way.
"""

from typing import NamedTuple

import torch

from . import mx
from .cache import check_adjacent
from .checks import check_choice, either
from .key_formats import BLOCK_SIZES, BLOCK_WORDS, FORMATS, GROUP, LAYOUTS, PACKET, SCALE_BYTES, Layout, layouts_of
from .mx_operands import check_dim
from .operands import Derived, Operand, among

MX_FORMATS = tuple(name for name, row in FORMATS.items() if row.grouped)
WIDTHS = {8: "D + 4", 4: "D / 2 + 4"}  # of a key and its scales, by the bits of an element
# Of every format and D: a key's bytes with those of its scales.
WIDTHS_OF_ALL = tuple(sorted({FORMATS[name].key_bytes(dim) + SCALE_BYTES for name in MX_FORMATS for dim in FORMATS[name].dims}))


def cache_rows(name: str, layout: str) -> dict[str, Operand]:
    """The operands kv_cache, and kv_scale where it is one, of a format in a layout; they make D."""
    row, at = FORMATS[name], LAYOUTS[layout]
    dims = tuple(dim for dim in row.dims if dim in at.dims)
    if not at.apart:
        bits, width = row.element_bits, WIDTHS[row.element_bits]
        limits = (
            among("block", BLOCK_SIZES, BLOCK_WORDS),
            among(width, tuple(row.key_bytes(dim) + SCALE_BYTES for dim in dims)),
        )
        of_width = Derived("D", lambda size: (size - SCALE_BYTES) * 8 // bits, (width,))
        return {"kv_cache": Operand((("num_blocks", "block", 1, width),), (torch.uint8,), limits, (of_width,))}
    # A chunk is a group's values, of one packet.
    dims_limit = among("chunks", tuple(dim // GROUP for dim in dims))
    sizes = (among("block", at.blocks), dims_limit, among("bytes", (PACKET,)))
    of_chunks = Derived("D", lambda chunks: chunks * GROUP, ("chunks",))
    return {
        "kv_cache": Operand((("num_blocks", 1, "chunks", "block", "bytes"),), (torch.uint8,), sizes, (of_chunks,)),
        "kv_scale": Operand((("num_blocks", 1, "chunks", "block"),), (torch.uint8,)),
    }


class Pages(NamedTuple):
    """The bytes of a checked cache.

    values, scales : a line of bytes for each block, as far apart as the blocks are
    block, key_bytes : keys of a block, bytes of a key's values
    layout : where they lie
    """

    values: torch.Tensor
    scales: torch.Tensor
    block: int
    key_bytes: int
    layout: Layout


def check_pages(kv_cache: torch.Tensor, kv_scale: torch.Tensor | None, layout: str) -> None:
    """Raise ValueError for tensors, otherwise as :func:`cache_rows` says, whose blocks are not of adjacent bytes and apart."""
    at = LAYOUTS[layout]
    if not at.apart:
        check_adjacent(kv_cache, at.tile, layout)
        return
    for name, tensor in (("kv_cache", kv_cache), ("kv_scale", kv_scale)):
        assert tensor is not None, "the table of operands asks for it"
        size, expected = 1, []
        for extent in reversed(tensor.shape[1:]):
            expected.append(size)
            size *= extent
        steps = zip(tensor.shape[1:], tensor.stride()[1:], reversed(expected), strict=True)
        if any(step != wanted for extent, step, wanted in steps if extent > 1) or (
            tensor.shape[0] > 1 and tensor.stride(0) < size
        ):
            raise ValueError(
                f"{name}: got strides {tuple(tensor.stride())}, needs blocks of adjacent bytes, at least {size} bytes apart"
            )


def check_layout(name: str, layout: str, kv_scale: torch.Tensor | None) -> None:
    """Raise TypeError or ValueError for a layout that a format's keys do not have, and for scales where they have no place."""
    check_choice("layout", layout, layouts_of(name))
    if not LAYOUTS[layout].apart:
        check_no_scales(layout, kv_scale)


def check_no_scales(layout: str, kv_scale: torch.Tensor | None) -> None:
    """Raise ValueError for scales beside a cache in a layout that has none there."""
    if kv_scale is not None:
        raise ValueError(f"kv_scale: got {type(kv_scale).__name__}, needs None: {layout} blocks hold the scales of their keys")


def format_of(kv_cache: torch.Tensor, dim: int) -> str:
    """The format of a cache's keys, which hold their scales, of D ``dim``. ValueError where their bytes are those of none."""
    widths = {FORMATS[name].key_bytes(dim) + SCALE_BYTES: name for name in MX_FORMATS if dim in FORMATS[name].dims}
    if kv_cache.shape[3] not in widths:
        needed = either([f"{width} ({name})" for width, name in widths.items()])
        raise ValueError(f"kv_cache: got keys of {kv_cache.shape[3]} bytes, needs {needed}, as q has D {dim}")
    return widths[kv_cache.shape[3]]


def check_inside(kv_cache: torch.Tensor, key_format: str, layout: str, dim: int) -> None:
    """Raise TypeError or ValueError for a layout without scales behind the values, or one that such keys do not have, and for
    blocks that do not lie so."""
    inside = tuple(name for name in layouts_of(key_format) if not LAYOUTS[name].apart)
    check_choice("layout", layout, inside)
    if dim not in LAYOUTS[layout].dims:
        raise ValueError(f"layout: got {layout!r}, which has D {either(LAYOUTS[layout].dims)}, needs one with D {dim}")
    check_pages(kv_cache, None, layout)


def check_cache(q: torch.Tensor, kv_cache: torch.Tensor, layout: str) -> None:
    """Raise TypeError or ValueError for a cache whose keys are not of q's dims, or do not lie as the layout says."""
    dim = check_dim("q", q)
    check_inside(kv_cache, format_of(kv_cache, dim), layout, dim)


def check_apart_cache(q: torch.Tensor, kv_cache: torch.Tensor, kv_scale: torch.Tensor, layout: str) -> None:
    """As :func:`check_cache`, of a cache and scales that are otherwise as :func:`cache_rows` says for a layout with both."""
    wanted, found = check_dim("q", q), kv_cache.shape[2] * GROUP
    if found != wanted:
        raise ValueError(f"kv_cache: got keys of D {found}, which layout {layout!r} has, needs q's {wanted}")
    check_pages(kv_cache, kv_scale, layout)


def any_format_of(kv_cache: torch.Tensor, dim: int) -> str:
    """As :func:`format_of`, of a cache in any layout: the one whose scales lie apart has keys in mxfp4."""
    return "mxfp4" if kv_cache.ndim == 5 else format_of(kv_cache, dim)


def block_of(kv_cache: torch.Tensor) -> int:
    """Keys of a block of a cache in any layout."""
    size: int = kv_cache.shape[3 if kv_cache.ndim == 5 else 1]
    return size


def places(inside: torch.Tensor, pages: Pages) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a block has the bytes of its keys ``inside`` [...], and of their scales: [..., bytes of a key] and [..., 4]."""
    byte, group = (torch.arange(count, device=inside.device) for count in (pages.key_bytes, SCALE_BYTES))
    key, layout = inside[..., None], pages.layout
    return layout.value_byte(key, byte, pages.key_bytes, pages.block), layout.scale_byte(key, group, pages.block)


def pages_of(kv_cache: torch.Tensor, kv_scale: torch.Tensor | None, layout: str) -> Pages:
    """The bytes of a checked cache."""
    blocks, at = kv_cache.shape[0], LAYOUTS[layout]
    block, width = (kv_cache.shape[3], kv_cache.shape[2] * kv_cache.shape[4]) if at.apart else kv_cache.shape[1::2]
    key_bytes = width if at.apart else width - SCALE_BYTES
    values = kv_cache.as_strided((blocks, block * key_bytes), (kv_cache.stride(0), 1), kv_cache.storage_offset())
    if kv_scale is None:
        offset = kv_cache.storage_offset() + (block * key_bytes if blocks else 0)
        scales = kv_cache.as_strided((blocks, block * SCALE_BYTES), (kv_cache.stride(0), 1), offset)
    else:
        scales = kv_scale.as_strided((blocks, block * SCALE_BYTES), (kv_scale.stride(0), 1), kv_scale.storage_offset())
    return Pages(values, scales, block, key_bytes, at)


def values_at(pages: Pages, page: torch.Tensor, inside: torch.Tensor, key_format: str) -> torch.Tensor:
    """float32 values [..., D] of the keys at places ``inside`` of blocks ``page``, which go together as [...]."""
    groups = pages.key_bytes * 8 // FORMATS[key_format].element_bits // GROUP
    value_at, scale_at = places(inside, pages)
    scale = pages.scales[page[..., None], scale_at][..., :groups]
    return mx.dequantize(pages.values[page[..., None], value_at], scale, key_format)
