"""What memory a selection takes beside its results: candidates of rows that are cut, and as many rows as fit a budget."""

import torch

from capgate import compat

from ..common.hardware import multiprocessors
from . import tunings

CANDIDATE_BYTES = 8  # a logit and the index that it stands for
ROW_GRANULE = 128


def rooms(columns: int, top_k: int, block: int) -> list[int]:
    """Candidates that a row may have after each launch but the last.

    A program leaves ``top_k`` of its block, or all of what it has if that is less; the launch that finds a row's candidates
    in one block is the last.
    """
    found = []
    while columns > block:
        columns = columns // block * top_k + min(columns % block, top_k)
        found.append(columns)
    return found


def scratch_rooms(columns: int, top_k: int, block: int) -> list[int]:
    """Candidates that a row has room for in each scratch buffer: two at most, which the launches fill in turn. Their rows
    begin on 16-byte boundaries, and Triton is told of multiples of 16 elements."""
    return [-(-room // 16) * 16 for room in rooms(columns, top_k, block)[:2]]


def scratch_bytes(target: compat.Target, columns: int, top_k: int) -> int:
    """Bytes of scratch that the classic variant allocates for each row."""
    return CANDIDATE_BYTES * sum(scratch_rooms(columns, top_k, tunings.for_target(target).for_columns(columns).block_logits))


def buffers(
    rows: int, columns: int, top_k: int, block: int, memory: torch.Tensor | None, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The scratch buffers, each of indices and of logits, [rows, room], in bytes of ``memory``, or new ones."""
    found = []
    for room in scratch_rooms(columns, top_k, block):
        size = rows * room
        if memory is None:
            memory = torch.empty(
                CANDIDATE_BYTES * rows * sum(scratch_rooms(columns, top_k, block)), dtype=torch.uint8, device=device
            )
        pair = []
        for dtype in (torch.int32, torch.float32):
            taken, memory = memory[: 4 * size], memory[4 * size :]
            pair.append(taken.view(dtype).view(rows, room))
        found.append((pair[0], pair[1]))
    return found


def rows_within(budget: int, row_bytes: int, rows: int) -> int:
    """How many rows of ``row_bytes`` to take at a time within ``budget`` bytes; 0 where there is no room for one.

    All of them if they fit, otherwise a multiple of ROW_GRANULE, or a power of two below it, as serving engines cut theirs.
    """
    if rows * row_bytes <= budget:
        return rows
    most = budget // row_bytes
    if most >= ROW_GRANULE:
        return most // ROW_GRANULE * ROW_GRANULE
    return 1 << most.bit_length() >> 1


def list_bytes(tune: tunings.LongRows, top_k: int) -> int:
    """Bytes of a list of candidates, with how many they are and the bar behind them."""
    return CANDIDATE_BYTES * (tune.room(top_k) + 2)


def lists_in(
    on: object,
    tune: tunings.LongRows,
    rows: int,
    columns: int,
    top_k: int,
    memory: torch.Tensor | None,
    device: torch.device,
) -> tuple[torch.Tensor, int]:
    """(lists, sections): a list for each section of a row, int64, and in how many a row is cut: no more than ``memory`` has
    room for, where it is given."""
    sections, size = tune.sections(rows, columns, multiprocessors(on)), list_bytes(tune, top_k)
    if memory is None:
        memory = torch.empty(rows * sections * size, dtype=torch.uint8, device=device)
    sections = max(1, min(sections, len(memory) // (rows * size)))
    taken = memory[: rows * sections * size].view(torch.int64)
    return taken.view(rows, sections, size // CANDIDATE_BYTES), sections
