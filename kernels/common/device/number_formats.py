"""Device functions in classic Triton: float32 values to bytes of fp8 and of MX formats, in integers where targets differ."""

import triton
import triton.language as tl


@triton.jit
def widened(value):
    """float32 values of floating-point ones; bfloat16 by its bits, of which Triton's interpreter gets subnormal ones wrong."""
    if value.dtype == tl.bfloat16:
        return (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def fp8_bytes(value, BIAS: tl.constexpr, FNUZ: tl.constexpr):
    """The bytes of float32 values that the fp8 format (three fraction bits) can hold, rounded to nearest, ties to even.

    In integers, because some architectures, and Triton's interpreter, cannot convert or round otherwise.
    """
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - BIAS) << 3)
    units = tl.abs(value) * (2.0 ** (BIAS + 2))  # of a subnormal; adding 2**23 rounds them to integers
    subnormal = (units + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000
    code = tl.where(magnitude < ((128 - BIAS) << 23), subnormal, normal)
    signed = code | ((bits >> 24) & 0x80)
    if FNUZ:  # no -0: its byte is the NaN
        signed = tl.where(code == 0, 0, signed)
    return tl.where(value != value, 0x80 if FNUZ else 0x7F, signed).to(tl.uint8)


@triton.jit
def e2m1_codes(value, EVEN: tl.constexpr, SIGNED_ZERO: tl.constexpr):
    """The codes, int32 of 0 to 15, of float32 values in E2M1, rounded to nearest and saturated.

    EVEN : ties go to the even code, and not to the smaller one
    SIGNED_ZERO : what becomes 0 keeps its sign
    """
    size = tl.abs(value)
    code = (size > 0.25).to(tl.int32) + (size > 1.25).to(tl.int32) + (size > 2.5).to(tl.int32) + (size > 5.0).to(tl.int32)
    if EVEN:
        code += (size >= 0.75).to(tl.int32) + (size >= 1.75).to(tl.int32) + (size >= 3.5).to(tl.int32)
    else:
        code += (size > 0.75).to(tl.int32) + (size > 1.75).to(tl.int32) + (size > 3.5).to(tl.int32)
    sign = (value.to(tl.int32, bitcast=True) >> 28) & 8
    return code | sign if SIGNED_ZERO else tl.where(code == 0, 0, code | sign)


@triton.jit
def mx_octets(
    value,
    FP4: tl.constexpr,
    GROUP: tl.constexpr,
    LARGEST: tl.constexpr,
    CARRY: tl.constexpr,
    EXPONENT: tl.constexpr,
    LEAST: tl.constexpr,
    EVEN: tl.constexpr,
    SIGNED_ZERO: tl.constexpr,
):
    """float32 values [n, D] by a rule of :mod:`..mx_rules`: their bytes [n, D or D / 2], and int32 those of scales [n, D / 32].

    GROUP : elements that have a scale of their own
    CARRY, EXPONENT : of ``carry_of(LARGEST)``
    LEAST : the least byte of a scale
    """
    ROWS: tl.constexpr = value.shape[0]
    DIM: tl.constexpr = value.shape[1]
    group = tl.reshape(value, (ROWS, DIM // GROUP, GROUP))
    # Magnitudes order as their bits do, those that are not finite last.
    bits = tl.max(group.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=2)
    whole = bits < 0x7F800000
    byte = tl.maximum((tl.where(whole, bits, 0) + CARRY >> 23) - EXPONENT, LEAST)
    inverse = ((254 - byte) << 23).to(tl.float32, bitcast=True)  # of the scale; a product with it is exact
    scaled = tl.where(whole[:, :, None], group, 0.0) * inverse[:, :, None]
    if FP4:
        code = e2m1_codes(tl.reshape(scaled, (ROWS, DIM)), EVEN, SIGNED_ZERO)
        even, odd = tl.split(tl.reshape(code, (ROWS, DIM // 2, 2)))
        octet = (even | odd << 4).to(tl.uint8)
    else:
        scaled = tl.where(whole[:, :, None], scaled, float("nan"))
        scaled = tl.where(scaled > LARGEST, LARGEST, scaled)  # comparisons keep NaN
        scaled = tl.where(scaled < -LARGEST, -LARGEST, scaled)
        octet = fp8_bytes(tl.reshape(scaled, (ROWS, DIM)), 7, False)
    byte = tl.where(whole, byte, 0xFF)
    if GROUP > 32:
        byte = tl.reshape(tl.broadcast_to(byte[:, :, None], (ROWS, DIM // GROUP, GROUP // 32)), (ROWS, DIM // 32))
    return octet, byte
