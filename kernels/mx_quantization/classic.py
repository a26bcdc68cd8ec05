"""The quantisers of MX formats in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.cached_keys import SCALE_BYTES
from ..common.device.number_formats import mx_octets, widened
from ..common.mx_rules import RULES, constants_of
from .operands import Inputs
from .operation import Problem
from .tunings import classic


@triton.jit
def quantize_mx_kernel(
    values,  # [rows, D] floating point
    octets,  # [rows, D or D / 2] uint8, contiguous
    scales,  # [rows, 4] uint8, contiguous
    rows,
    stride_row,
    stride_dim,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
    FP4: tl.constexpr,
    GROUP: tl.constexpr,
    LARGEST: tl.constexpr,
    CARRY: tl.constexpr,
    EXPONENT: tl.constexpr,
    LEAST: tl.constexpr,
    EVEN: tl.constexpr,
    SIGNED_ZERO: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM)
    inside = (row < rows)[:, None]
    cell = values + row[:, None] * stride_row + (dim.to(tl.int64) * stride_dim)[None, :]
    value = widened(tl.load(cell, mask=inside, other=0.0))
    octet, byte = mx_octets(value, FP4, GROUP, LARGEST, CARRY, EXPONENT, LEAST, EVEN, SIGNED_ZERO)
    key_bytes: tl.constexpr = octet.shape[1]
    tl.store(octets + row[:, None] * key_bytes + tl.arange(0, key_bytes)[None, :], octet, mask=inside)
    word = scales + row[:, None] * SCALE_BYTES
    tl.store(word + tl.arange(0, DIM // 32)[None, :], byte.to(tl.uint8), mask=inside)
    if DIM // 32 < SCALE_BYTES:  # the bytes of a word that no group has are 0
        group = tl.arange(0, SCALE_BYTES)[None, :]
        tl.store(word + group, tl.zeros((KEYS, SCALE_BYTES), tl.uint8), mask=inside & (group >= DIM // 32))


def prepare(
    problem: Problem, inputs: Inputs, octets: torch.Tensor, scales: torch.Tensor, *, key_format: str, rule: str
) -> compat.Launch:
    """The launch that fills ``octets`` and ``scales``, both contiguous."""
    values, tune = inputs.values, classic(problem)
    rows, dim = values.shape
    constants = {"DIM": dim, "KEYS": tune.block_keys, **constants_of(key_format, RULES[key_format][rule], dim)}
    arguments = (values, octets, scales[:, None].view(torch.uint8), rows, *values.stride())
    keywords = {**constants, "num_warps": tune.num_warps}
    return compat.Launch(quantize_mx_kernel, (-(-rows // tune.block_keys),), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=classic)
