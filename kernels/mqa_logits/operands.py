"""What fp8_mqa_logits takes."""

from typing import Annotated, NamedTuple

import torch

from ..common.logits import FLOATS, FP8, QUERY_SIZES
from ..common.operands import Operand, Operands


class Inputs(NamedTuple):
    """The tensors of a call, but for the output."""

    q: Annotated[torch.Tensor, Operand((("S", "H", "D"),), tuple(FP8), QUERY_SIZES)]
    k: Annotated[torch.Tensor, Operand((("N", "D"),))]
    k_scale: Annotated[torch.Tensor, Operand((("N",), ("N", 1)), (torch.float32,))]  # variants get the first of them
    weights: Annotated[torch.Tensor, Operand((("S", "H"),), tuple(FLOATS))]
    starts: Annotated[torch.Tensor, Operand((("S",),), (torch.int32,))]
    ends: Annotated[torch.Tensor, Operand((("S",),), (torch.int32,))]


OPERANDS = Operands(Inputs)
