"""What paged_mqa_schedule takes."""

from typing import Annotated, NamedTuple

import torch

from ..cache import LENGTHS
from ..checks import check_memory, check_strided
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


def check_given(schedule: torch.Tensor | None) -> None:
    """Raise ValueError for a schedule that does not lie as it was made; None is for the call to make one."""
    if schedule is not None and not schedule.is_contiguous():
        raise ValueError(f"schedule: got strides {tuple(schedule.stride())}, needs it contiguous, as it was made")


def check_out(out: torch.Tensor, num_workers: int, device: torch.device, whose: str) -> None:
    """Raise TypeError or ValueError for what cannot take a schedule of so many workers.

    whose : words for the operand that has the device, "context_lens's"
    """
    check_strided("out", out)
    if out.shape != (num_workers + 1, 2):
        raise ValueError(f"out: got shape {tuple(out.shape)}, needs {[num_workers + 1, 2]}")
    check_memory("out", out, (torch.int32,), device, whose, "schedules do")
    if not out.is_contiguous():
        raise ValueError(f"out: got strides {tuple(out.stride())}, needs it contiguous")
