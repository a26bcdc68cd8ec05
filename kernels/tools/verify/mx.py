"""MX formats stated again, to judge by: rounding and scales in exact numbers, each byte's place by its engine's own formula.

Nothing of capgate is used, and capgate's tests judge by it, too. Values are float64, which holds float32 and all that is
computed from them here exactly.
"""

from fractions import Fraction

import torch

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


def codes(values: torch.Tensor, name: str, ties: str, signed_zero: bool) -> torch.Tensor:
    """The nearest value's code for each of ``values``, sign in the highest bit: by distance to all there are."""
    sizes = torch.tensor(SIZES[name], dtype=torch.float64, device=values.device)
    size = values.abs().clamp(max=SIZES[name][-1])
    above = torch.searchsorted(sizes, size.contiguous())  # the first that is no smaller
    below = (above - 1).clamp(min=0)
    down, up = size - sizes[below], sizes[above] - size
    to_below = (down == up) & (
        below % 2 == 0 if ties == "even" else torch.full_like(below, ties == "smaller", dtype=torch.bool)
    )
    code = torch.where((down < up) | to_below, below, above)
    sign = values.signbit() & (signed_zero | (code > 0))
    return code + sign.long() * (len(sizes) if name == "mxfp4" else 128)


def exponent(largest: float, name: str, rule: str) -> int:
    """The least e for which a group with this largest magnitude is, divided by 2**e, within the format."""
    what, floor = PRODUCERS[name, rule][:2]
    top = Fraction(SIZES[name][-1])
    ratio = max(Fraction(largest), floor) / top if what == AMAX else max(Fraction(largest) / top, floor)
    e = ratio.numerator.bit_length() - ratio.denominator.bit_length() - 2
    while Fraction(2) ** e < ratio:
        e += 1
    return e


def quantized(values: torch.Tensor, name: str, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes [n, D or D / 2] and scales [n, D / 32] of float64 values [n, D], both uint8.

    What is not finite makes its group NaN: scale 255, values of 0 in mxfp4, of byte 0x7F in mxfp8.
    """
    _, _, ties, signed_zero, group = PRODUCERS[name, rule]
    rows, dim = values.shape
    groups = values.reshape(rows, -1, group or dim)
    amax = groups.abs().amax(-1)
    whole = amax.isfinite()
    exponents = torch.zeros(amax.shape, dtype=torch.int64, device=values.device)
    for largest in amax[whole].unique().tolist():
        exponents[amax == largest] = exponent(largest, name, rule)
    scaled = torch.where(whole[..., None], groups, 0.0) * torch.exp2(-exponents.double())[..., None]
    code = codes(scaled, name, ties, signed_zero)
    code = torch.where(whole[..., None], code, 0 if name == "mxfp4" else 0x7F).reshape(rows, dim).to(torch.uint8)
    scale = torch.where(whole, exponents + 127, 255).to(torch.uint8)
    scale = scale.repeat_interleave(dim // 32 // scale.shape[1], 1)
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


def dequantized(octets: torch.Tensor, scales: torch.Tensor, name: str) -> torch.Tensor:
    """float64 values [..., D] of bytes [..., D or D / 2] and scale bytes [..., D / 32 or more], either's NaN among them."""
    nan = float("nan")
    sizes = [*E2M1, *(-size for size in E2M1)] if name == "mxfp4" else [*E4M3, nan, *(-size for size in E4M3), nan]
    code = torch.stack([octets & 15, octets >> 4], -1).flatten(-2) if name == "mxfp4" else octets
    values = torch.tensor(sizes, dtype=torch.float64, device=octets.device)[code.long()]
    powers = torch.where(scales == 255, nan, torch.exp2(scales.double() - 127))
    return values * powers.repeat_interleave(32, -1)[..., : values.shape[-1]]
