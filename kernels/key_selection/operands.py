"""What select_from_logits takes; select_keys and select_paged_keys take what the logits do."""

from typing import Annotated, NamedTuple

import torch

from ..common.operands import Operand, Operands

_OF_ROWS = Operand((("S",),), (torch.int32,))


class Inputs(NamedTuple):
    """The tensors of a selection from logits, but for its results."""

    logits: Annotated[torch.Tensor, Operand((("S", "N"),), (torch.float32,))]
    starts: Annotated[torch.Tensor | None, _OF_ROWS]
    ends: Annotated[torch.Tensor, _OF_ROWS]


OPERANDS = Operands(Inputs)
