"""Device functions in classic Triton: products of queries and keys in MX formats, by scaled matrix instructions or in bfloat16.

Values times their scales are exact in bfloat16, if they are not below 2**-126: E4M3 has four significant bits, E2M1 two.
"""

import triton
import triton.language as tl

from .number_formats import widened


@triton.jit
def scale_octets(words, DIM: tl.constexpr):
    """The bytes of scales [n, DIM / 32] in int32 words [n], as int32 of 0 to 255."""
    return (words[:, None] >> 8 * tl.arange(0, DIM // 32)[None, :]) & 0xFF


@triton.jit
def e8m0_values(octet):
    """float32 of UE8M0 bytes: 2**(byte - 127), and NaN of 0xFF."""
    bits = tl.where(octet == 0, 1 << 22, octet << 23)  # 2**-127 is subnormal
    return tl.where(octet == 0xFF, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def e2m1_values(code):
    """float32 of the codes, int32 of 0 to 15, of E2M1."""
    bits = (code & 7) << 22 | (code & 8) << 28  # exponent and fraction of a value 2**126 times smaller
    return bits.to(tl.float32, bitcast=True) * 2.0**126


@triton.jit
def e4m3_values(octet):
    """float32 of the bytes, int32 of 0 to 255, of float8_e4m3fn. In integers: no interpreter converts its NaN."""
    bits = (octet & 0x7F) << 20 | (octet & 0x80) << 24
    value = bits.to(tl.float32, bitcast=True) * 2.0**120
    return tl.where((octet & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def scaled(value, scale, WIDEN: tl.constexpr):
    """bfloat16 of values [n, m] times the scales [n, groups] of adjacent ones.

    WIDEN : then float32, since Triton's interpreter multiplies the bits of bfloat16
    """
    ROWS: tl.constexpr = value.shape[0]
    SIZE: tl.constexpr = value.shape[1]
    GROUPS: tl.constexpr = scale.shape[1]
    product = tl.reshape(value, (ROWS, GROUPS, SIZE // GROUPS)) * scale[:, :, None]
    product = tl.reshape(product, (ROWS, SIZE)).to(tl.bfloat16)
    return widened(product) if WIDEN else product


@triton.jit
def halves(octet, scale, WIDEN: tl.constexpr):
    """The even and the odd elements, bfloat16 [n, D / 2] each, of mxfp4 bytes [n, D / 2] and of scales [n, D / 32]."""
    scale, octet = e8m0_values(scale.to(tl.int32)), octet.to(tl.int32)
    return scaled(e2m1_values(octet & 0xF), scale, WIDEN), scaled(e2m1_values(octet >> 4), scale, WIDEN)


@triton.jit
def whole(octet, scale, WIDEN: tl.constexpr):
    """bfloat16 [n, D] of mxfp8 bytes [n, D] and of scales [n, D / 32]."""
    return scaled(e4m3_values(octet.to(tl.int32)), e8m0_values(scale.to(tl.int32)), WIDEN)


@triton.jit
def mx_query(octet, scale, DIM: tl.constexpr, K_FP4: tl.constexpr, SCALED: tl.constexpr, WIDEN: tl.constexpr):
    """A query's bytes [columns, DIM or DIM / 2] and scales [columns, DIM / 32] as :func:`mx_products` takes them.

    Keys in mxfp4 stay in halves, even and odd elements, and so queries come in halves for them.
    """
    if SCALED:
        return tl.trans(octet), scale.to(tl.uint8)
    elif octet.shape[1] < DIM:
        even, odd = halves(octet, scale, WIDEN)
        if K_FP4:
            return tl.trans(even), tl.trans(odd)
        else:
            both = tl.reshape(tl.join(even, odd), (even.shape[0], DIM))
            return tl.trans(both), scale
    else:
        values = whole(octet, scale, WIDEN)
        if K_FP4:
            even, odd = tl.split(tl.reshape(values, (values.shape[0], DIM // 2, 2)))
            return tl.trans(even), tl.trans(odd)
        else:
            return tl.trans(values), scale


@triton.jit
def mx_products(key, scale, query, more, DIM: tl.constexpr, SCALED: tl.constexpr, WIDEN: tl.constexpr):
    """float32 [keys, columns]: keys in bytes [keys, DIM or DIM / 2] and scales [keys, DIM / 32], times what mx_query made."""
    if SCALED:
        Q_KIND: tl.constexpr = "e2m1" if query.shape[0] < DIM else "e4m3"
        K_KIND: tl.constexpr = "e2m1" if key.shape[1] < DIM else "e4m3"
        return tl.dot_scaled(key, scale.to(tl.uint8), K_KIND, query, more, Q_KIND)
    elif key.shape[1] < DIM:
        even, odd = halves(key, scale, WIDEN)
        return tl.dot(odd, more, tl.dot(even, query))
    else:
        return tl.dot(whole(key, scale, WIDEN), query)
