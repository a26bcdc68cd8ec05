"""The quantisers of MX formats in plain torch: the judge of the others, and what a CPU takes."""

import torch

from ..common import mx
from ..common.mx_rules import RULES
from .operands import Inputs


def launch(inputs: Inputs, octets: torch.Tensor, scales: torch.Tensor, *, key_format: str, rule: str) -> None:
    """Fill ``octets`` [rows, D or D / 2] and ``scales`` [rows]."""
    values, bytes_of = mx.quantize(inputs.values, key_format, RULES[key_format][rule])
    octets.copy_(values)
    scales.copy_(mx.packed(bytes_of))
