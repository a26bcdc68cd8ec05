"""Device functions, for classic Triton and Gluon alike: where a block of the cache holds the bytes of its keys.

A tile of TILE keys holds their packets of 16 bytes side by side: see :mod:`..cache`. With one key in a tile a block is flat.
"""

import triton
import triton.language as tl

PACKET: tl.constexpr = tl.constexpr(16)


@triton.jit
def first_byte(inside, DIM: tl.constexpr, TILE: tl.constexpr):
    """Where a block has the first byte of its keys ``inside``."""
    return inside * DIM if TILE == 1 else inside // TILE * (TILE * DIM) + inside % TILE * PACKET


@triton.jit
def further_byte(dim, TILE: tl.constexpr):
    """How far behind a key's first byte its bytes ``dim`` lie."""
    return dim if TILE == 1 else dim // PACKET * (TILE * PACKET) + dim % PACKET
