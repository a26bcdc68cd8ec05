"""From float activations to the fp8 operands of the MQA logits: one scale a key, and query scales folded into the weights.

A row with a NaN or an infinity has no scale that would keep its other values: all of it becomes NaN, and its scale too, so that
a query's or key's logits say so. The bytes are 0x7F in float8_e4m3fn, 0x80 in float8_e4m3fnuz and 0x7FC00000 in a scale. So it
is here and in the kernel of :func:`capgate.kernels.quantize_keys_to_cache`, for every scale format.
"""

from typing import Annotated, NamedTuple

import torch

from .common.checks import check_choice
from .common.operands import Limit, Operand, Operands

# Largest magnitude that a quantised value takes: e4m3fn's 448 and e4m3fnuz's 240.
FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}
SCALE_FORMATS = ("fp32", "ue8m0")
AMAX_FLOOR = 1e-4  # of a row's largest magnitude, as the serving engines do: a row of zeros gets a finite scale

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WIDTH = Limit("D", 1)
_QUERIES = Operand((("S", "H", "D"), ("B", "next_n", "H", "D")), _FLOATS, (Limit("H", 1), _WIDTH))


class _Keys(NamedTuple):
    k: Annotated[torch.Tensor, Operand((("N", "D"),), _FLOATS, (_WIDTH,))]


class _Prefill(NamedTuple):
    q: Annotated[torch.Tensor, _QUERIES]
    weights: Annotated[torch.Tensor, Operand((("S", "H"),), _FLOATS)]


class _Decode(NamedTuple):
    q: Annotated[torch.Tensor, _QUERIES]
    weights: Annotated[torch.Tensor, Operand((("B", "next_n", "H"),), _FLOATS)]


KEYS, PREFILL, DECODE = Operands(_Keys), Operands(_Prefill), Operands(_Decode)


def quantize_keys(
    k: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn, *, scale_format: str = "fp32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each key by its largest magnitude.

    k : [N, D], float16, bfloat16, float32 or float64 (taken as float32)
    dtype : float8_e4m3fn or float8_e4m3fnuz
    scale_format : "fp32", or "ue8m0" to round each scale up to a power of two

    Returns the keys [N, D] in ``dtype`` and their scales [N] in float32, so that ``k8 * scale[:, None]`` is about ``k``.
    Raises TypeError or ValueError for arguments that are not so.
    """
    KEYS.check((k,))
    check_choice("dtype", dtype, tuple(FP8_MAX))
    check_choice("scale_format", scale_format, SCALE_FORMATS)
    return quantize_rows(k, dtype, power_of_two=scale_format == "ue8m0")


def quantize_queries(
    q: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each head of each query by its largest magnitude and fold that scale into the head's weight.

    q : [S, H, D], or [B, next_n, H, D] for a paged cache, float16, bfloat16, float32 or float64 (taken as float32)
    weights : as q but for the last dimension, of the same dtypes

    Returns the queries in ``dtype`` and the weights in float32, in the shapes of theirs, multiplied by the query's scale and by
    ``D ** -0.5 * H ** -0.5``. Raises TypeError or ValueError for arguments that are not so.
    """
    (DECODE if isinstance(q, torch.Tensor) and q.ndim == 4 else PREFILL).check((q, weights))
    check_choice("dtype", dtype, tuple(FP8_MAX))
    heads, dim = q.shape[-2:]
    quantized, scale = quantize_rows(q, dtype, power_of_two=False)
    return quantized, weights.float() * scale * (dim**-0.5 * heads**-0.5)


def quantize_rows(
    values: torch.Tensor, dtype: torch.dtype, *, power_of_two: bool, largest: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [..., D] in ``dtype``, of which a row's largest magnitude is ``largest`` (None: that of ``dtype``), and scales."""
    values, limit = values.float(), FP8_MAX[dtype] if largest is None else largest
    amax = values.abs().amax(-1)
    whole = amax.isfinite()
    # By a number, CUDA multiplies with its inverse: another rounding.
    scale = amax.clamp(min=AMAX_FLOOR) / torch.full_like(amax, limit)
    if power_of_two:
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2**exponent with mantissa in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    scale = torch.where(whole, scale, torch.nan)
    scaled = torch.where(whole[..., None], (values / scale[..., None]).clamp(-limit, limit), torch.nan)
    return scaled.to(dtype), scale
