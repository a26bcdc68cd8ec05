"""What mx_mqa_logits takes."""

from typing import Annotated, NamedTuple

import torch

from ..common.logits import FLOATS
from ..common.mx_operands import SCALES, VALUES, among_bytes
from ..common.operands import Limit, Operand, Operands
from ..common.rules import MAX_HEADS, MIN_HEADS


class Inputs(NamedTuple):
    """The tensors of a call, but for the output."""

    q: Annotated[torch.Tensor, Operand((("S", "H", "Dq"),), VALUES, (Limit("H", MIN_HEADS, MAX_HEADS), among_bytes("Dq")))]
    q_scale: Annotated[torch.Tensor, Operand((("S", "H"),), SCALES)]
    k: Annotated[torch.Tensor, Operand((("N", "Dk"),), VALUES, (among_bytes("Dk"),))]
    k_scale: Annotated[torch.Tensor, Operand((("N",),), SCALES)]
    weights: Annotated[torch.Tensor, Operand((("S", "H"),), tuple(FLOATS))]
    starts: Annotated[torch.Tensor, Operand((("S",),), (torch.int32,))]
    ends: Annotated[torch.Tensor, Operand((("S",),), (torch.int32,))]


OPERANDS = Operands(Inputs)
