"""The formats of cached keys and the layouts of their blocks, declared once: how many bytes, and where each of them lies.

A block of the cache holds the values of its ``block`` keys, and behind them, or in memory of its own, their scales: four bytes
a key in every format. Tiles lie one behind the other. A tile holds the first packet of 16 bytes of each of its keys, then the
next one of each, and so on; tiles of scales have keys and groups in an order of their own. :class:`Layout` has the formulas, of
which ``docs/key-formats.md`` says whose they are. They hold for integers and for tensors of them alike; the device functions of
:mod:`.device.cached_keys` say the same in Triton, and get their constants from here.

Needs neither torch nor Triton.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from .rules import DIMS, output_of

Output = TypeVar("Output", bound=tuple[Any, ...])

PACKET = 16  # bytes of a key that lie together in any layout
GROUP = 32  # elements that share a UE8M0 byte
SCALE_BYTES = 4  # of a key, in every format
BLOCK_SIZES = (1, *range(16, 257, 16))  # the engines': ATOM's 16, 64 of most, 256 of aiter and of vLLM on ROCm
BLOCK_WORDS = f"1 or a multiple of 16 up to {BLOCK_SIZES[-1]}"
WHOLE_BLOCK = 0  # as many keys in a tile as in a block


class Format(NamedTuple):
    """What a key and its scales are.

    element_bits : of a value
    largest : magnitude of a value
    grouped : whether each 32 values have a UE8M0 byte, and not all of them one float32
    dims : that keys have
    """

    element_bits: int
    largest: float
    grouped: bool
    dims: tuple[int, ...]

    def key_bytes(self, dim: int) -> int:
        """Of a key's values. Element d is in byte ``d * element_bits // 8``, of a pair the even one in the low half."""
        return dim * self.element_bits // 8


class Layout(NamedTuple):
    """Where a block holds its bytes.

    tile : keys of a tile of values
    scale_tile : keys of a tile of scales
    scale_lanes : of a tile's groups of 32 elements, those that are ``scale_lanes`` apart lie together
    by_sixteens : whether keys 0, 16, 32 ... of a tile of scales come first, then 1, 17, 33 ...
    apart : whether scales have a tensor of their own
    formats : that lie so
    dims, blocks : that it has, if not all of the format's and of the cache's
    """

    tile: int = 1
    scale_tile: int = 1
    scale_lanes: int = 1
    by_sixteens: bool = False
    apart: bool = False
    formats: tuple[str, ...] = ("fp8", "mxfp8", "mxfp4")
    dims: tuple[int, ...] = DIMS
    blocks: tuple[int, ...] = ()

    def tile_of(self, block: int) -> int:
        """Keys of a tile of values in blocks of so many keys."""
        return self.tile or block

    def scale_tile_of(self, block: int) -> int:
        """Keys of a tile of scales in blocks of so many keys."""
        return self.scale_tile or block

    def value_byte(self, key: Any, byte: Any, key_bytes: int, block: int) -> Any:
        """Where byte ``byte`` of key ``key`` lies in a block."""
        tile = self.tile_of(block)
        packet = byte // PACKET * (tile * PACKET) + byte % PACKET
        return key // tile * (tile * key_bytes) + key % tile * PACKET + packet if tile > 1 else key * key_bytes + byte

    def scale_byte(self, key: Any, group: Any, block: int) -> Any:
        """Where byte ``group`` of key ``key``'s scales lies, counted from the first byte of the block's scales."""
        tile, together = self.scale_tile_of(block), SCALE_BYTES // self.scale_lanes
        place = key % tile
        if self.by_sixteens:
            place = place % 16 * (tile // 16) + place // 16
        line = group % self.scale_lanes * (tile * together)
        return key // tile * (tile * SCALE_BYTES) + line + place * together + group // self.scale_lanes


FORMATS = {
    "fp8": Format(8, 448.0, grouped=False, dims=DIMS),  # of float8_e4m3fn; float8_e4m3fnuz has its own, see ..quantize
    "mxfp8": Format(8, 448.0, grouped=True, dims=DIMS),
    "mxfp4": Format(4, 6.0, grouped=True, dims=(64, 128)),
}
_FP4, _OF_128 = ("mxfp4",), (128,)
LAYOUTS = {
    "flat": Layout(),
    "preshuffled": Layout(tile=16),
    "gluon-16": Layout(16, 16, scale_lanes=4, formats=_FP4, dims=_OF_128),
    "gluon-32": Layout(32, 32, scale_lanes=2, formats=_FP4, dims=_OF_128),
    "flydsl": Layout(
        WHOLE_BLOCK, WHOLE_BLOCK, scale_lanes=4, by_sixteens=True, apart=True, formats=_FP4, dims=_OF_128, blocks=(64,)
    ),
}


def layouts_of(name: str) -> tuple[str, ...]:
    """The layouts that a format's keys have."""
    return tuple(layout for layout, row in LAYOUTS.items() if name in row.formats)


# Formats of queries and keys, by the name that an output's mode has in front of it.
PAIRS = {
    "mxfp4": ("mxfp4", "mxfp4"),
    "mxfp8": ("mxfp8", "mxfp8"),
    "mxfp8-mxfp4": ("mxfp8", "mxfp4"),
    "mxfp4-mxfp8": ("mxfp4", "mxfp8"),
}


def mx_output_of(mode: str, modes: Mapping[str, Output], dim: int, dtype: str | None) -> tuple[Output, str]:
    """As :func:`.rules.output_of` for modes that mean formats first, of query and key; ValueError also for a dim that one of
    them lacks, and for a dtype."""
    output, floats = output_of(mode, modes)
    if dtype is not None:
        raise ValueError(f"dtype: got {dtype!r}, needs none: the mode says the formats")
    for name in output[:2]:
        if dim not in FORMATS[name].dims:
            raise ValueError(f"dim: got {dim}, needs one of {', '.join(map(str, FORMATS[name].dims))} in mode {mode}")
    return output, floats
