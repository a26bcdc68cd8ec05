"""How bytes of one fp8 format become another's, for classic and Gluon kernels alike: Gluon calls classic functions too."""

import triton
import triton.language as tl  # noqa: F401 - Triton's interpreter looks for it beside a function


@triton.jit
def quad_to_fnuz(quad):
    """Four e4m3fn in a uint32 -> e4m3fnuz of half the value: -0 (fnuz's NaN) becomes 0, either NaN fnuz's."""
    size = quad & 0x7F7F7F7F
    quad &= (size + 0x7F7F7F7F) | 0x7F7F7F7F  # of a byte's sign and size: no carry leaves it
    nan = (size + 0x01010101) & 0x80808080
    size = nan - (nan >> 7)
    return (quad | nan | size) ^ size
