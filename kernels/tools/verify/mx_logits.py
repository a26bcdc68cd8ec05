"""Calls of MQA logits in MX formats: every code and scales of many sizes, and what the operands mean."""

from typing import Any, NamedTuple

import torch

from ...mx_logits import mx_mqa_logits
from . import judge
from .mx import dequantized, key_bytes

PAIRS = [("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp8", "mxfp4"), ("mxfp4", "mxfp8")]  # of queries and keys
DTYPES = {"mxfp4": torch.uint8, "mxfp8": torch.float8_e4m3fn}


class MxCall(NamedTuple):
    """The tensors that mx_mqa_logits takes by position."""

    q: torch.Tensor
    q_scale: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor


def random_values(random: torch.Generator, name: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of any bits but a NaN's, and words of scales from 2**-12 to 2**7; what D leaves over of a word are any bits."""
    *lines, dim = shape
    octets = torch.randint(0, 256, (*lines, key_bytes(name, dim)), generator=random, dtype=torch.uint8)
    if name == "mxfp8":
        octets = torch.where(octets & 0x7F == 0x7F, octets ^ 0x40, octets)
    scales = torch.randint(0, 256, (*lines, 4), generator=random, dtype=torch.uint8)
    scales[..., : dim // 32] = torch.randint(115, 135, (*lines, dim // 32), generator=random, dtype=torch.uint8)
    return octets.view(DTYPES[name]), scales.view(torch.int32)[..., 0]


def make_call(
    rows: int,
    keys: int,
    heads: int,
    dim: int,
    pair: tuple[str, str] = PAIRS[0],
    windows: str = "packed",
    *,
    device: str = "cpu",
    seed: int = 0,
) -> MxCall:
    """Random operands; made on the CPU, so that they are the same on every device."""
    random = torch.Generator().manual_seed(seed)
    q, k = random_values(random, pair[0], rows, heads, dim), random_values(random, pair[1], keys, dim)
    weights = torch.randn((rows, heads), generator=random)
    tensors = (*q, *k, weights, *judge.make_windows(windows, rows, keys))
    return MxCall(*(tensor.to(device) for tensor in tensors))


def values_of(octets: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 values, in which each is exact."""
    name = next(name for name, dtype in DTYPES.items() if dtype == octets.dtype)
    words = scales[..., None].contiguous().view(torch.uint8)
    return dequantized(octets.contiguous().view(torch.uint8), words, name).float()


def meaning(call: MxCall) -> judge.Call:
    """The same call in float32, as the formula takes it."""
    q, k = values_of(call.q, call.q_scale), values_of(call.k, call.k_scale)
    return judge.Call(q, k, torch.ones(len(k), device=k.device), call.weights, call.starts, call.ends)


def check(call: MxCall, variant: str | None, **options: Any) -> torch.Tensor:
    """:func:`.judge.check` of mx_mqa_logits."""
    return judge.check(call, variant, function=mx_mqa_logits, values=meaning(call), **options)
