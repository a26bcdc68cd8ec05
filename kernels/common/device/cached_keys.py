"""Device functions, for classic Triton and Gluon alike: where a block of the cache holds the bytes of its keys.

A tile of TILE keys holds their packets of 16 bytes side by side: see :mod:`..key_formats`, whose formulas these are. With one
key in a tile a block is flat. Where keys are loaded in words of WORD bytes, places are counted in those.
"""

import triton
import triton.language as tl

from ..key_formats import PACKET as PACKET_BYTES
from ..key_formats import SCALE_BYTES as BYTES_OF_SCALES

PACKET: tl.constexpr = tl.constexpr(PACKET_BYTES)
SCALE_BYTES: tl.constexpr = tl.constexpr(BYTES_OF_SCALES)


@triton.jit
def first_byte(inside, DIM: tl.constexpr, TILE: tl.constexpr, WORD: tl.constexpr = 1):
    """Where a block has the first byte of its keys ``inside``."""
    if TILE == 1:
        return inside * (DIM // WORD)
    else:
        return inside // TILE * (TILE * DIM // WORD) + inside % TILE * (PACKET // WORD)


@triton.jit
def further_byte(dim, TILE: tl.constexpr, WORD: tl.constexpr = 1):
    """How far behind a key's first byte its bytes ``dim`` lie, or its words."""
    return dim if TILE == 1 else dim // (PACKET // WORD) * (TILE * PACKET // WORD) + dim % (PACKET // WORD)


@triton.jit
def scale_byte(inside, group, TILE: tl.constexpr, LANES: tl.constexpr, BY_SIXTEENS: tl.constexpr):
    """Where a block's scales have the byte ``group`` of its keys ``inside``: :meth:`..key_formats.Layout.scale_byte`."""
    place = inside % TILE
    if BY_SIXTEENS:
        place = place % 16 * (TILE // 16) + place // 16
    line = group % LANES * (TILE * SCALE_BYTES // LANES)
    return inside // TILE * (TILE * SCALE_BYTES) + line + place * (SCALE_BYTES // LANES) + group // LANES
