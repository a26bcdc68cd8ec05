"""MX formats by the judge of ``capgate verify``, with numpy's arrays in the place of tensors."""

import numpy as np
import torch

from capgate.kernels.tools.verify import mx
from capgate.kernels.tools.verify.mx import LAYOUTS, PRODUCERS, SIZES, exponent, key_bytes, scale_place, value_place

__all__ = [
    "LAYOUTS",
    "PRODUCERS",
    "SIZES",
    "dequantized",
    "exponent",
    "key_bytes",
    "quantized",
    "scale_place",
    "value_place",
]


def quantized(values: np.ndarray, name: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes [n, D or D / 2] and scales [n, D / 32] of float64 values [n, D], both uint8."""
    octets, scales = mx.quantized(torch.from_numpy(values), name, rule)
    return octets.numpy(), scales.numpy()


def dequantized(octets: np.ndarray, scales: np.ndarray, name: str) -> np.ndarray:
    """float64 values [..., D] of bytes [..., D or D / 2] and scale bytes [..., D / 32 or more], either's NaN among them."""
    return mx.dequantized(torch.from_numpy(octets), torch.from_numpy(np.ascontiguousarray(scales)), name).numpy()
