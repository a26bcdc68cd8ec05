"""How a tile of keys is copied where blocks of the cache are not of as many keys: for the Gluon variants."""

from capgate.compat.gluon import constexpr_function


@constexpr_function
def piece_keys(BLOCK, BLOCK_KEYS):
    """Keys of a piece: the most that lie in one block wherever a tile of BLOCK_KEYS keys, a power of two, begins."""
    return min(BLOCK & -BLOCK, BLOCK_KEYS)
