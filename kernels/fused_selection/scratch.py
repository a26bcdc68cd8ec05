"""What memory a fused selection works in: lists of programs, and the slots of rows that programs share.

A list has room for ``block_entries`` of a row and behind them for the ``top_k`` of a selection. Programs are as many as a GPU
holds at a time, so that neither the number of rows nor that of keys matters.
"""

from typing import TYPE_CHECKING, NamedTuple

from ..common.hardware import multiprocessors
from . import tunings

if TYPE_CHECKING:
    import torch

    from .operation import Problem

ENTRY_BYTES = 8  # a logit and the index that it stands for
ALIGNMENT = 16  # entries: a list begins on a 16-byte boundary, and Triton is told of multiples of 16
SLOTS_PAGED = 2  # of top_k entries for each row of a program: a worker shares its first request and its last


class Lists(NamedTuple):
    """Entries of the lists and of the slots, their logits and their indices, each [any]; None where no row is shared."""

    values: "torch.Tensor"
    indices: "torch.Tensor"
    slot_values: "torch.Tensor | None"
    slot_indices: "torch.Tensor | None"


def programs(problem: "Problem", tune: tunings.Tuning | None = None) -> int:
    """Programs of a launch that fills the device: as many as it holds at a time, but one at least for all rows of a request.

    tune : of the variant that is meant; the classic one's otherwise
    """
    tune = tune or tunings.classic(problem)
    if problem.next_n is None:
        return multiprocessors(problem.device) * tune.resident
    groups = -(-problem.next_n // tune.rows)
    return groups * max(1, multiprocessors(problem.device) * tune.resident // groups)


def list_entries(tune: tunings.Tuning, top_k: int) -> int:
    """Entries from one list to the next."""
    return -(-(tune.block_entries + tunings.slots_of(top_k)) // ALIGNMENT) * ALIGNMENT


def slot_entries(top_k: int) -> int:
    """Entries from one slot to the next."""
    return -(-top_k // ALIGNMENT) * ALIGNMENT


def bytes_needed(problem: "Problem", tune: tunings.Tuning | None = None) -> int:
    """Bytes of the lists and slots of a call with as many programs as the device holds: the most that a call takes. ``tune`` as
    of :func:`programs`."""
    tune = tune or tunings.classic(problem)
    slots = tune.shares if problem.next_n is None else SLOTS_PAGED
    row_entries = list_entries(tune, problem.top_k) + slots * slot_entries(problem.top_k)
    return ENTRY_BYTES * programs(problem, tune) * tune.rows * row_entries


def lists(entries: int, slots: int, memory: "torch.Tensor | None", device: "torch.device") -> Lists:
    """Lists of so many entries in all, and slots of so many, in bytes of ``memory``, or in new ones."""
    import torch

    if memory is None:
        memory = torch.empty(ENTRY_BYTES * (entries + slots), dtype=torch.uint8, device=device)
    parts = []
    for count, dtype in ((entries, torch.float32), (entries, torch.int32), (slots, torch.float32), (slots, torch.int32)):
        parts.append(memory[: 4 * count].view(dtype))
        memory = memory[4 * count :]
    return Lists(*parts)
