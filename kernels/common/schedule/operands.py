"""What paged_mqa_schedule takes."""

from typing import Annotated, NamedTuple

import torch

from ..cache import LENGTHS
from ..operands import Operand, Operands


class Inputs(NamedTuple):
    """The tensors of a call, but for the schedule.

    starts : of windows, which ``context_lens`` are then the ends of; paged_mqa_schedule does not take them
    """

    context_lens: Annotated[torch.Tensor, LENGTHS]
    starts: Annotated[torch.Tensor | None, Operand((("B",),), (torch.int32,))] = None


OPERANDS = Operands(Inputs)


def last_lengths(context_lens: torch.Tensor) -> torch.Tensor:
    """[B]: how many keys each request's last row sees, which are those that a schedule counts."""
    return context_lens if context_lens.ndim == 1 else context_lens[:, -1]
