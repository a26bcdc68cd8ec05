"""The public functions: checks, and dispatch through an operator that torch.compile and GPU graphs understand."""

import torch

from ..common import mx
from ..common.checks import check_choice
from ..common.key_formats import FORMATS
from ..common.mx_cache import MX_FORMATS
from ..common.mx_rules import DEFAULT_RULE, NAN_BYTE, RULES, check_rule
from ..common.torch_ops import register
from .operands import DECODE, KEYS, OPERANDS, PREFILL, Inputs
from .operation import Problem, operation

VALUES = {"mxfp8": torch.float8_e4m3fn, "mxfp4": torch.uint8}
ONES = 0x7F7F7F7F  # scales of 1


def quantize_mx_keys(
    k: torch.Tensor, key_format: str = "mxfp4", *, rule: str = DEFAULT_RULE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each 32 values of a key by their largest magnitude, to a power of two as scale.

    k : [N, D], float16, bfloat16 or float32; D is 64 or 128, in mxfp8 also 32
    key_format : "mxfp4" (E2M1, two values in a byte) or "mxfp8" (E4M3)
    rule : whose rounding: in mxfp4 "vllm", "deepgemm", "sglang", "sglang-rne" or "aiter", in mxfp8 "deepgemm", or "vllm", which
        gives the 128 values of a key one scale, four times. ``docs/key-formats.md`` says how they differ.

    Returns the keys, uint8 [N, D / 2] with the even element of a pair in the low half, or float8_e4m3fn [N, D], and their
    scales, int32 [N]: byte g of a word, counted from the lowest, is e + 127 of the scale ``2**e`` of values 32 g to 32 g + 31.
    Where D is less than 128 the bytes left over are 0. So DeepGEMM takes them.

    A group with a NaN or an infinity has a scale of 0xFF, a NaN, and values of 0 in mxfp4, NaN in mxfp8.
    Raises TypeError or ValueError for arguments that are not so.
    """
    check_choice("key_format", key_format, MX_FORMATS)
    KEYS[key_format].check((k,), "the keys")
    check_rule(key_format, rule, k.shape[-1])
    octets, scales = torch.ops.capgate.quantize_mx(k, key_format, rule)
    return octets.view(VALUES[key_format]), scales


def quantize_mx_queries(
    q: torch.Tensor, weights: torch.Tensor, key_format: str = "mxfp4", *, rule: str = DEFAULT_RULE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise each 32 values of each head of a query, as :func:`quantize_mx_keys` does a key's.

    q : [S, H, D], or [B, next_n, H, D] for a paged cache, float16, bfloat16 or float32; D is 64 or 128, in mxfp8 also 32
    weights : as q but for the last dimension; also float64
    key_format, rule : as there

    Returns the queries, uint8 or float8_e4m3fn; their scales, int32 of the weights' shape; and the weights in float32,
    multiplied by ``D ** -0.5 * H ** -0.5``. With rule "vllm" in mxfp8 the scale of a head is folded into its weight, and all
    scales are 1, as vLLM has it. Raises TypeError or ValueError for arguments that are not so.
    """
    check_choice("key_format", key_format, MX_FORMATS)
    tables = DECODE if isinstance(q, torch.Tensor) and q.ndim == 4 else PREFILL
    tables[key_format].check((q, weights), "the queries")
    heads, dim = q.shape[-2:]
    check_rule(key_format, rule, dim)
    octets, scales = torch.ops.capgate.quantize_mx(q.reshape(-1, dim), key_format, rule)
    octets, scales = octets.unflatten(0, q.shape[:-1]), scales.unflatten(0, q.shape[:-1])
    folded = weights.float()
    if RULES[key_format][rule].whole:
        byte = scales & 0xFF
        folded = folded * torch.where(byte == NAN_BYTE, torch.nan, (byte << 23).view(torch.float32))
        scales = torch.full_like(scales, ONES)
    return octets.view(VALUES[key_format]), scales, folded * (dim**-0.5 * heads**-0.5)


def dequantize_mx(octets: torch.Tensor, scales: torch.Tensor, key_format: str = "mxfp4") -> torch.Tensor:
    """The float32 values [..., D] of keys or queries and their scales, as :func:`quantize_mx_keys` returns them.

    NaN where a scale is 0xFF. Raises TypeError or ValueError for another key_format, or tensors that do not belong together.
    """
    check_choice("key_format", key_format, MX_FORMATS)
    if not isinstance(octets, torch.Tensor) or octets.element_size() != 1:
        got = octets.dtype if isinstance(octets, torch.Tensor) else type(octets).__name__
        raise TypeError(f"octets: got {got}, needs a tensor of a type of one byte")
    dim = octets.shape[-1] * 8 // FORMATS[key_format].element_bits if octets.ndim else 0
    if dim not in FORMATS[key_format].dims:
        raise ValueError(f"octets: got shape {tuple(octets.shape)}, needs D in {FORMATS[key_format].dims} in {key_format}")
    if not isinstance(scales, torch.Tensor) or scales.dtype != torch.int32:
        got = scales.dtype if isinstance(scales, torch.Tensor) else type(scales).__name__
        raise TypeError(f"scales: got {got}, needs torch.int32")
    if scales.shape != octets.shape[:-1]:
        raise ValueError(f"scales: got shape {tuple(scales.shape)}, needs {list(octets.shape[:-1])} to match octets")
    return mx.dequantize(octets.view(torch.uint8), mx.unpacked(scales, dim), key_format)


def _quantize(inputs: Inputs, key_format: str, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::quantize_mx``; the values as bytes."""
    octets, scales = _empty(inputs, key_format, rule)
    if len(octets):
        operation(Problem(inputs.values.device), inputs, octets, scales, key_format=key_format, rule=rule)
    return octets, scales


def _empty(inputs: Inputs, key_format: str, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows, dim = inputs.values.shape
    key_bytes = FORMATS[key_format].key_bytes(dim)
    new = inputs.values.new_empty
    return new((rows, key_bytes), dtype=torch.uint8), new((rows,), dtype=torch.int32)


register("quantize_mx", OPERANDS, "str key_format, str rule", "(Tensor, Tensor)", _quantize, _empty)
