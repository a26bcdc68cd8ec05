"""What memory a selection takes beside its results: candidates of long rows, and as many rows as fit a budget."""

from functools import cache
from typing import Any

import torch

from capgate import compat

from ..common.hardware import multiprocessors
from . import tunings

CANDIDATE_BYTES = 8  # a logit and the index that it stands for
ROW_GRANULE = 128


def list_bytes(tune: tunings.LongRows, columns: int, top_k: int) -> int:
    """Bytes of a list of candidates, with how many they are and the bar behind them: 16-byte boundaries stay such."""
    return CANDIDATE_BYTES * (tune.room(top_k, columns) + 2)


def scratch_bytes(target: compat.Target, columns: int, top_k: int) -> int:
    """The least bytes of scratch that the classic variant works in, for each row: a list, where it is longer than a block.

    For longer rows they are never less: engines size a workspace by their longest rows.
    """
    if columns <= tunings.for_target(target).block_logits:
        return 0
    return list_bytes(tunings.long_rows(target), columns, top_k)


def wanted_bytes(device: Any, rows: int, columns: int, top_k: int) -> int:
    """Bytes of scratch with which no row is cut in fewer sections than it should be; ``device`` as a problem has it."""
    target = compat.capabilities(device).target
    return rows * max(1, sections_of(device, rows, columns)) * scratch_bytes(target, columns, top_k)


def sections_of(device: Any, rows: int, columns: int) -> int:
    """In how many sections rows should be cut that are longer than a block; 0 where they are not."""
    target = compat.capabilities(device).target
    if columns <= tunings.for_target(target).block_logits:
        return 0
    return _sections(tunings.long_rows(target), rows, columns, multiprocessors(device))


@cache
def _sections(tune: tunings.LongRows, rows: int, columns: int, multiprocessors: int) -> int:
    """Remembered, as they are looked for."""
    return tune.sections(rows, columns, multiprocessors)


def lists_in(device: Any, tune: tunings.LongRows, rows: int, columns: int, top_k: int, memory: torch.Tensor) -> torch.Tensor:
    """The lists of a call, int64 [rows, sections, a list], in bytes of ``memory``: of as many sections as ``tune`` wants, or as
    it has room for."""
    size = list_bytes(tune, columns, top_k)
    sections = max(1, min(tune.sections(rows, columns, multiprocessors(device)), len(memory) // (rows * size)))
    return memory[: rows * sections * size].view(torch.int64).view(rows, sections, size // CANDIDATE_BYTES)


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
