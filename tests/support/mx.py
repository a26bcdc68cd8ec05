"""MX formats stated again, for tests: rounding and scales in exact numbers, and each byte's place by its engine's own formula.

Nothing of capgate is used. Values are numpy's float64, which holds float32 and all that is computed from them here exactly.
"""

from fractions import Fraction

import numpy as np

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3 = tuple(sorted({m * 2.0**-9 for m in range(8)} | {(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)} - {480.0}))
SIZES = {"mxfp4": E2M1, "mxfp8": E4M3}

# Of each producer: what a group's largest magnitude counts as at least, or its ratio to the format's largest value; to which
# side ties go; whether -0, and what is rounded to it, keeps its sign; and the elements of a group, None for a whole key.
AMAX, RATIO = "amax", "ratio"
PRODUCERS = {
    ("mxfp4", "vllm"): (AMAX, Fraction(6, 2**126), "even", True, 32),
    ("mxfp4", "deepgemm"): (AMAX, Fraction(1, 10**4), "smaller", False, 32),
    ("mxfp4", "sglang"): (RATIO, Fraction(1, 10**4), "smaller", False, 32),
    ("mxfp4", "sglang-rne"): (RATIO, Fraction(1, 10**4), "even", True, 32),
    ("mxfp4", "aiter"): (AMAX, Fraction(6, 2**126), "even", True, 32),
    ("mxfp8", "deepgemm"): (AMAX, Fraction(1, 10**4), "even", True, 32),
    ("mxfp8", "vllm"): (AMAX, Fraction(1, 10**4), "even", True, None),
}


def codes(values: np.ndarray, name: str, ties: str, signed_zero: bool) -> np.ndarray:
    """The nearest value's code for each of ``values``, sign in the highest bit: by distance to all there are."""
    sizes = np.array(SIZES[name])
    size = np.minimum(np.abs(values), sizes[-1])
    above = np.searchsorted(sizes, size)  # the first that is no smaller
    below = np.maximum(above - 1, 0)
    down, up = size - sizes[below], sizes[above] - size
    to_below = (down == up) & ((below % 2 == 0) if ties == "even" else (ties == "smaller"))
    code = np.where((down < up) | to_below, below, above)
    sign = np.signbit(values) & (signed_zero | (code > 0))
    return code + sign * len(sizes if name == "mxfp4" else range(128))


def exponent(largest: float, name: str, rule: str) -> int:
    """The least e for which a group with this largest magnitude is, divided by 2**e, within the format."""
    what, floor = PRODUCERS[name, rule][:2]
    top = Fraction(SIZES[name][-1])
    ratio = max(Fraction(largest), floor) / top if what == AMAX else max(Fraction(largest) / top, floor)
    e = ratio.numerator.bit_length() - ratio.denominator.bit_length() - 2
    while Fraction(2) ** e < ratio:
        e += 1
    return e


def quantized(values: np.ndarray, name: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes [n, D or D / 2] and scales [n, D / 32] of float64 values [n, D], both uint8.

    What is not finite makes its group NaN: scale 255, values of 0 in mxfp4, of byte 0x7F in mxfp8.
    """
    _, _, ties, signed_zero, group = PRODUCERS[name, rule]
    rows, dim = values.shape
    groups = values.reshape(rows, -1, group or dim)
    amax = np.abs(groups).max(-1)
    whole = np.isfinite(amax)
    exponents = np.zeros(amax.shape, np.int64)
    for largest in np.unique(amax[whole]):
        exponents[amax == largest] = exponent(float(largest), name, rule)
    scaled = np.where(whole[..., None], groups, 0.0) * np.exp2(-exponents.astype(np.float64))[..., None]
    code = codes(scaled, name, ties, signed_zero)
    code = np.where(whole[..., None], code, 0 if name == "mxfp4" else 0x7F).reshape(rows, dim).astype(np.uint8)
    scale = np.where(whole, exponents + 127, 255).astype(np.uint8)
    scale = np.repeat(scale, dim // 32 // scale.shape[1], axis=1)
    return (code[:, ::2] + 16 * code[:, 1::2] if name == "mxfp4" else code), scale


def value_place(layout: str, key: int, byte: int, key_bytes: int, block: int) -> int:
    """Where a block has a byte of a key's values."""
    if layout == "flat":
        return key * key_bytes + byte
    if layout == "preshuffled":  # 16 x 16
        return (key // 16) * 16 * key_bytes + (byte // 16) * 256 + (key % 16) * 16 + byte % 16
    if layout == "flydsl":  # [pages, D / 128, 4, R, 16], and D is 128
        return ((byte // 16) * block + key) * 16 + byte % 16
    n = {"gluon-16": 16, "gluon-32": 32}[layout]
    return (key // n) * n * 64 + (byte // 16) * n * 16 + (key % n) * 16 + byte % 16


def scale_place(layout: str, key: int, group: int, block: int) -> int:
    """Where a block's scales have a byte of a key's, counted from their first."""
    if layout in ("flat", "preshuffled"):
        return 4 * key + group
    if layout == "flydsl":  # [pages, D / 128, 4, R]
        return group * block + (key % 16) * (block // 16) + key // 16
    n = {"gluon-16": 16, "gluon-32": 32}[layout]
    lanes = 64 // n
    return (key // n) * n * 4 + (group % lanes) * n * (4 // lanes) + (key % n) * (4 // lanes) + group // lanes


# Every layout of each format, with the dims that it has.
LAYOUTS = {
    ("mxfp8", "flat"): (32, 64, 128),
    ("mxfp8", "preshuffled"): (32, 64, 128),
    ("mxfp4", "flat"): (64, 128),
    ("mxfp4", "preshuffled"): (64, 128),
    ("mxfp4", "gluon-16"): (128,),
    ("mxfp4", "gluon-32"): (128,),
    ("mxfp4", "flydsl"): (128,),
}


def key_bytes(name: str, dim: int) -> int:
    return dim // 2 if name == "mxfp4" else dim


def dequantized(octets: np.ndarray, scales: np.ndarray, name: str) -> np.ndarray:
    """float64 values [..., D] of bytes [..., D or D / 2] and scale bytes [..., D / 32 or more], either's NaN among them."""
    if name == "mxfp4":
        code = np.stack([octets & 15, octets >> 4], axis=-1).reshape(*octets.shape[:-1], 2 * octets.shape[-1])
        values = np.array([*E2M1, *(-size for size in E2M1)])[code]
    else:
        values = np.array([*E4M3, np.nan, *(-size for size in E4M3), np.nan])[octets]
    powers = np.where(scales == 255, np.nan, np.exp2(scales.astype(np.float64) - 127))
    return values * np.repeat(powers, 32, axis=-1)[..., : values.shape[-1]]
