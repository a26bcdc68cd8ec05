"""What paged_mqa_schedule takes."""

from typing import Annotated, NamedTuple

import torch

from ..cache import LENGTHS
from ..operands import Operands


class Inputs(NamedTuple):
    """The tensors of a call, but for the schedule."""

    context_lens: Annotated[torch.Tensor, LENGTHS]


OPERANDS = Operands(Inputs)
