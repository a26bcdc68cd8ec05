"""What the launches of the fused selections have in common."""

from typing import Any, NamedTuple

import torch

from ..key_selection.operands import Dense
from .operation import MOST_PARTS, Problem
from .scratch import Lists, list_entries, lists, programs, slot_entries
from .tunings import Tuning, slots_of


class Plan(NamedTuple):
    """How groups of the rows of a call of packed keys are divided among programs, and what these work in.

    columns : keys that a row can see
    running : programs
    groups, whole, shared : of rows: all, those that a program takes alone, as many for each, and those that are left
    splits : programs that share each of those
    slot_row : entries from one row's slots to the next one's
    held : the lists, and the slots where programs share rows
    """

    columns: int
    running: int
    groups: int
    whole: int
    shared: int
    splits: int
    slot_row: int
    held: Lists


def plan_of(
    problem: Problem, inputs: Dense, top_k: int, max_window: int | None, tune: Tuning, memory: torch.Tensor | None
) -> Plan:
    """The plan of a call; ``memory`` as :func:`.classic.prepare` takes it."""
    rows, keys = inputs.q.shape[0], inputs.k.shape[0]
    columns = keys if max_window is None else max_window
    groups, tiles = -(-rows // tune.rows), -(-columns // tune.block_keys)
    running = max(1, min(programs(problem, tune), groups * max(tiles, 1)))
    whole = groups // running * running
    shared = groups - whole
    splits = _splits(shared, running, tiles, tune.shares, top_k / max(columns, 1)) if shared else 1
    slot_row = splits * slot_entries(top_k) if splits > 1 else 0
    entries = running * tune.rows * list_entries(tune, top_k)
    held = lists(entries, shared * tune.rows * slot_row, memory, inputs.q.device)
    if splits == 1:
        held = held._replace(slot_values=None, slot_indices=None)
    return Plan(columns, running, groups, whole, shared, splits, slot_row, held)


def _splits(shared: int, running: int, tiles: int, shares: int, merging: float) -> int:
    """How many programs share each of the groups that are left: so many that all have one share, or more where that is more
    even, up to ``shares`` for each.

    merging : what a further share costs the merge, in times of a group: that of as many keys as are selected, by estimate
    """
    least = max(1, min(running // shared, tiles))
    choices = range(least, max(least, min(shares * running // shared, MOST_PARTS, tiles)) + 1 if shares > 1 else least + 1)
    return min(choices, key=lambda splits: -(-shared * splits // running) / splits + splits * merging)


def strides_of(*tensors: torch.Tensor | None, axes: int = 1) -> tuple[int | None, ...]:
    """The strides of tensors, one after the other; of one that is not given as many None as it has ``axes``."""
    return tuple(step for tensor in tensors for step in ((None,) * axes if tensor is None else tensor.stride()))


def shape_of(page_table: torch.Tensor | None) -> tuple[int | None, ...]:
    """The shape of a page table, None and None without one."""
    return (None, None) if page_table is None else page_table.shape


def cut_of(tune: Tuning, top_k: int, page_size: int) -> dict[str, Any]:
    """The constants of a kernel that scores and of the one that merges: how lists are cut, and what a page holds."""
    return {
        "ENTRIES": tune.block_entries,
        "STRIDE": list_entries(tune, top_k),
        "RUNS": tune.block_entries // tune.planes,
        "PLANES": tune.planes,
        "SLOTS": slots_of(top_k),
        "PAGE": page_size,
        "num_warps": tune.num_warps,
    }
