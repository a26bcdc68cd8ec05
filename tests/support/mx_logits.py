"""Calls of MQA logits in MX formats: every code and scales of many sizes, and what the operands mean."""

from typing import Any, NamedTuple

import numpy as np
import torch

from capgate.kernels import mx_mqa_logits

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


def random_values(random: np.random.Generator, name: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of any bits but a NaN's, and words of scales from 2**-12 to 2**7; what D leaves over of a word are any bits."""
    *lines, dim = shape
    octets = random.integers(0, 256, (*lines, key_bytes(name, dim)), np.uint8)
    if name == "mxfp8":
        octets[octets & 0x7F == 0x7F] ^= 0x40
    scales = random.integers(0, 256, (*lines, 4), np.uint8)
    scales[..., : dim // 32] = random.integers(115, 135, (*lines, dim // 32))
    return torch.from_numpy(octets).view(DTYPES[name]), torch.from_numpy(scales.view(np.int32)[..., 0])


def make_call(
    rows: int, keys: int, heads: int, dim: int, pair: tuple[str, str] = PAIRS[0], windows: str = "packed", *, seed: int = 0
) -> MxCall:
    random = np.random.default_rng(seed)
    q, k = random_values(random, pair[0], rows, heads, dim), random_values(random, pair[1], keys, dim)
    weights = torch.from_numpy(random.standard_normal((rows, heads))).float()
    return MxCall(*q, *k, weights, *judge.make_windows(windows, rows, keys))


def values_of(octets: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 values, in which each is exact."""
    name = next(name for name, dtype in DTYPES.items() if dtype == octets.dtype)
    words = scales[..., None].contiguous().view(torch.uint8).numpy()
    return torch.from_numpy(dequantized(octets.contiguous().view(torch.uint8).numpy(), words, name)).float()


def meaning(call: MxCall) -> judge.Call:
    """The same call in float32, as the formula takes it."""
    q, k = values_of(call.q, call.q_scale), values_of(call.k, call.k_scale)
    return judge.Call(q, k, torch.ones(len(k)), call.weights, call.starts, call.ends)


def check(call: MxCall, variant: str | None, **options: Any) -> torch.Tensor:
    """:func:`.judge.check` of mx_mqa_logits."""
    return judge.check(call, variant, function=mx_mqa_logits, values=meaning(call), **options)
