"""Small floating-point formats: OCP fp8, fp6, fp4, and the e8m0 scale ("OCP Microscaling Formats", version 1.0); and fnuz fp8.

Fnuz: "8-bit Numerical Formats for Deep Neural Networks", arXiv 2206.02915, as gfx942's matrix instructions read them.
"""

from functools import cache
from typing import NamedTuple

import numpy as np


class Format(NamedTuple):
    """A sign, then an exponent, then a mantissa.

    special : "nan" (one NaN of either sign, no infinity), "ieee" (infinities and NaNs), "fnuz" (-0 is the one NaN), "none"
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    special: str

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits


E4M3 = Format(4, 3, 7, "nan")
E5M2 = Format(5, 2, 15, "ieee")
E4M3_FNUZ = Format(4, 3, 8, "fnuz")
E5M2_FNUZ = Format(5, 2, 16, "fnuz")
E2M3 = Format(2, 3, 1, "none")
E3M2 = Format(3, 2, 3, "none")
E2M1 = Format(2, 1, 1, "none")


@cache
def table(number_format: Format) -> np.ndarray:
    """The float64 value of every code."""
    exponent_bits, mantissa_bits, bias, special = number_format
    code = np.arange(1 << number_format.bits)
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    normal = (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)
    value = np.where(exponent == 0, mantissa / (1 << mantissa_bits) * 2.0 ** (1 - bias), normal)
    last = (1 << exponent_bits) - 1
    if special == "ieee":
        value = np.where(exponent == last, np.where(mantissa == 0, np.inf, np.nan), value)
    elif special == "nan":
        value = np.where((exponent == last) & (mantissa == (1 << mantissa_bits) - 1), np.nan, value)
    value = np.where(code >> (number_format.bits - 1), -value, value)
    if special == "fnuz":
        value[1 << (number_format.bits - 1)] = np.nan
    value.flags.writeable = False
    return value


def encode(values: np.ndarray, number_format: Format, saturate: bool) -> np.ndarray:
    """Codes of real values, rounded to nearest even. What is too large becomes the largest, or NaN or infinity."""
    half = 1 << (number_format.bits - 1)
    positive = table(number_format)[:half]
    finite = positive[np.isfinite(positive)]
    largest = len(finite) - 1
    beyond = 2 * finite[-1] - finite[-2]
    steps = np.append(finite, beyond)
    middles = (steps[1:] + steps[:-1]) / 2
    size = np.abs(values.astype(np.float64))
    code = np.searchsorted(middles, size)
    code = code + ((code <= largest) & (size == middles[np.minimum(code, largest)]) & (code % 2 == 1))
    if saturate or number_format.special == "none":
        code = np.minimum(code, largest)
    else:
        code = np.where(code > largest, largest + 1, code)
    code = np.where(np.isnan(values), half - 1, code)
    return code + half * np.signbit(values)


def decode_dwords(dwords: np.ndarray, number_format: Format, count: int) -> np.ndarray:
    """``count`` values packed from bit 0 upwards in [..., dwords]."""
    values = table(number_format)
    octets = np.ascontiguousarray(dwords).view(np.uint8)
    if number_format.bits == 8:
        return values[octets[..., :count]]
    if number_format.bits == 4:
        codes = np.stack([octets & 15, octets >> 4], axis=-1)
        return values[codes.reshape(*octets.shape[:-1], -1)[..., :count]]
    bits = np.unpackbits(octets, axis=-1, bitorder="little")[..., : count * number_format.bits]
    bits = bits.reshape(*bits.shape[:-1], count, number_format.bits)
    return values[bits @ (1 << np.arange(number_format.bits))]


def scale_of(codes: np.ndarray) -> np.ndarray:
    """e8m0: a power of two; 255 is NaN."""
    return np.where(codes == 255, np.nan, np.exp2(codes.astype(np.float64) - 127))
