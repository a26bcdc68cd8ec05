"""Device functions, for classic Triton and Gluon alike: where a block of the cache holds the bytes of its keys.

A tile of TILE keys holds their packets of 16 bytes side by side: see :mod:`..cache`. With one key in a tile a block is flat.
Where keys are loaded in words of WORD bytes, places are counted in those.
"""

import triton
import triton.language as tl

PACKET: tl.constexpr = tl.constexpr(16)


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
