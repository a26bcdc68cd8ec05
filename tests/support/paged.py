"""The judge of ``capgate verify`` for paged caches, by which the tests judge, too."""

from capgate.kernels.tools.verify.paged import (
    GARBAGE,
    PagedCall,
    byte_of,
    check,
    formula,
    judge,
    make_call,
    read_keys,
    without_blocks,
)

__all__ = ["GARBAGE", "PagedCall", "byte_of", "check", "formula", "judge", "make_call", "read_keys", "without_blocks"]
