"""What select_candidate_blocks and apply_candidate_mask take."""

from typing import Annotated, NamedTuple

import torch

from ..common.logits import FLOATS
from ..common.operands import Operand, Operands

WINDOWS = Operand((("G",),), (torch.int32,))


class Scored(NamedTuple):
    """The tensors of a selection, but for the result."""

    logits: Annotated[torch.Tensor, Operand((("S", "N"),), tuple(FLOATS))]
    starts: Annotated[torch.Tensor | None, WINDOWS]
    ends: Annotated[torch.Tensor, WINDOWS]


class Masked(NamedTuple):
    """The tensors of a call that masks."""

    logits: Annotated[torch.Tensor, Operand((("S", "N"),), tuple(FLOATS), written=True)]
    starts: Annotated[torch.Tensor | None, WINDOWS]
    ends: Annotated[torch.Tensor, WINDOWS]
    candidates: Annotated[torch.Tensor, Operand((("L", "C"),), (torch.int32,))]


SCORED, MASKED = Operands(Scored), Operands(Masked)
