"""MX formats in plain torch: from values to bytes and scales by a producer's rule, and back."""

from itertools import pairwise

import torch

from .key_formats import FORMATS, GROUP
from .mx_rules import NAN_BYTE, Rule, group_of

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of a code's three low bits; the fourth is the sign
MIDPOINTS = tuple((low + high) / 2 for low, high in pairwise(E2M1))
FP8_NAN = 0x7F  # of float8_e4m3fn


def quantize(values: torch.Tensor, name: str, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of values [..., D] in a format, uint8 [..., D or D / 2], and of their scales, uint8 [..., D / 32].

    A group that is not finite has scale 0xFF, and values of 0 in mxfp4, NaN in mxfp8.
    """
    groups, largest = values.float().unflatten(-1, (-1, group_of(rule, values.shape[-1]))), FORMATS[name].largest
    amax = groups.abs().amax(-1)
    whole = amax.isfinite()
    ratio = (torch.where(whole, amax, 0.0) / torch.full_like(amax, largest)).clamp(min=rule.least)
    mantissa, exponent = torch.frexp(ratio)  # ratio = mantissa * 2**exponent with mantissa in [0.5, 1)
    byte = (exponent - (mantissa == 0.5).int() + 127).clamp(min=rule.least_byte)
    scaled = groups.contiguous() * (254 - byte << 23).int().view(torch.float32)[..., None]
    octets = (_e2m1(scaled, rule) if name == "mxfp4" else _e4m3(scaled, largest)).where(
        whole[..., None], torch.tensor(0 if name == "mxfp4" else FP8_NAN, dtype=torch.uint8, device=values.device)
    )
    octets, byte = octets.flatten(-2), torch.where(whole, byte, NAN_BYTE).to(torch.uint8)
    if name == "mxfp4":
        octets = octets[..., 0::2] | octets[..., 1::2] << 4
    return octets, byte.expand(*byte.shape[:-1], values.shape[-1] // GROUP) if rule.whole else byte


def _e2m1(scaled: torch.Tensor, rule: Rule) -> torch.Tensor:
    size = scaled.abs()
    # How many midpoints lie below: ties are to the smaller value. Every second one's smaller value has an odd code.
    code = torch.bucketize(size, torch.tensor(MIDPOINTS, device=scaled.device))
    if rule.even:
        for midpoint in MIDPOINTS[1::2]:
            code += size == midpoint
    negative = torch.signbit(scaled) if rule.signed_zero else torch.signbit(scaled) & (code != 0)
    return (code | negative.long() << 3).to(torch.uint8)


def _e4m3(scaled: torch.Tensor, largest: float) -> torch.Tensor:
    return scaled.clamp(-largest, largest).to(torch.float8_e4m3fn).view(torch.uint8)


def dequantize(octets: torch.Tensor, scales: torch.Tensor, name: str) -> torch.Tensor:
    """float32 values [..., D] of bytes and scales as :func:`quantize` makes them; NaN where a scale is 0xFF."""
    if name == "mxfp4":
        code = torch.stack((octets & 0xF, octets >> 4), -1).flatten(-2).long()
        sizes = torch.tensor(E2M1, device=octets.device)[code & 7]
        values = torch.where(code > 7, -sizes, sizes)
    else:
        values = octets.view(torch.float8_e4m3fn).float()
    exponent = scales.int()
    # 2**-127 is subnormal: its bits are no exponent.
    power = torch.where(exponent == 0, 1 << 22, exponent << 23).int().view(torch.float32)
    power = torch.where(exponent == NAN_BYTE, torch.nan, power)
    return (values.unflatten(-1, (-1, GROUP)) * power[..., None]).flatten(-2)


def packed(scales: torch.Tensor) -> torch.Tensor:
    """Bytes [..., D / 32] as int32 words [...], the first lowest: as engines pass scales. Bytes that a word has over are 0."""
    words = scales.new_zeros((*scales.shape[:-1], 4))
    words[..., : scales.shape[-1]] = scales
    return words.view(torch.int32)[..., 0]


def unpacked(scales: torch.Tensor, dim: int) -> torch.Tensor:
    """The bytes [..., D / 32] of words [...]: the way back from :func:`packed`."""
    return scales[..., None].contiguous().view(torch.uint8)[..., : dim // GROUP]
