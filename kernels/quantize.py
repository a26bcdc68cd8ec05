"""From float activations to the fp8 operands of the MQA logits: one scale a key, and query scales folded into the weights."""

import torch

# Largest magnitude that a quantised value takes: e4m3fn's 448 and e4m3fnuz's 240.
FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}
AMAX_FLOOR = 1e-4  # of a row's largest magnitude, as the serving engines do: a row of zeros gets a finite scale


def quantize_keys(
    k: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn, *, scale_format: str = "fp32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each key by its largest magnitude.

    k : [N, D], floating point
    dtype : float8_e4m3fn or float8_e4m3fnuz
    scale_format : "fp32", or "ue8m0" to round each scale up to a power of two

    Returns the keys [N, D] in ``dtype`` and their scales [N] in float32, so that ``k8 * scale[:, None]`` is about ``k``.
    Raises ValueError for another dtype or format.
    """
    if scale_format not in ("fp32", "ue8m0"):
        raise ValueError(f"scale_format: got {scale_format!r}, needs 'fp32' or 'ue8m0'")
    return _quantize(k, dtype, power_of_two=scale_format == "ue8m0")


def quantize_queries(
    q: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each head of each query by its largest magnitude and fold that scale into the head's weight.

    q : [S, H, D], or [B, next_n, H, D] for a paged cache, floating point
    weights : as q but for the last dimension, floating point

    Returns the queries in ``dtype`` and the weights in float32, in the shapes of theirs, multiplied by the query's scale and by
    ``D ** -0.5 * H ** -0.5``. Raises ValueError for another dtype.
    """
    heads, dim = q.shape[-2:]
    quantized, scale = _quantize(q, dtype, power_of_two=False)
    return quantized, weights.float() * scale * (dim**-0.5 * heads**-0.5)


def _quantize(values: torch.Tensor, dtype: torch.dtype, *, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if dtype not in FP8_MAX:
        raise ValueError(f"dtype: got {dtype}, needs float8_e4m3fn or float8_e4m3fnuz")
    values = values.float()
    amax = values.abs().amax(-1).clamp(min=AMAX_FLOOR)
    scale = amax / torch.full_like(amax, FP8_MAX[dtype])  # by a number, CUDA multiplies with its inverse: another rounding
    if power_of_two:
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2**exponent with mantissa in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    limit = FP8_MAX[dtype]
    return (values / scale[..., None]).clamp(-limit, limit).to(dtype), scale
