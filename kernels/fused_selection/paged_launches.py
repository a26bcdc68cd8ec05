"""What the launches of the fused selections from a paged cache have in common."""

from typing import NamedTuple

import torch

from capgate import compat

from ..common.schedule.classic import new_schedule, workers_that_fit
from ..common.schedule.operation import CHUNK_KEYS
from ..key_selection.operands import Paged
from .operation import Problem
from .scratch import SLOTS_PAGED, Lists, list_entries, lists, slot_entries
from .tunings import Tuning


class Plan(NamedTuple):
    """How the keys of a paged call are divided among workers, and what these work in.

    limit : keys that a row can see: as many as its row of the block table has room for
    workers, groups : programs: those of the schedule, each for a group of every request's rows
    schedule, before : the call's schedule, and the launches that make it
    lens_strides : from one request's length, and from one row's, to the next one's
    room : entries from one slot to the next
    held : the lists and the slots
    """

    limit: int
    workers: int
    groups: int
    schedule: torch.Tensor
    before: tuple[compat.Launch, ...]
    row_lens: bool
    lens_strides: tuple[int, ...]
    room: int
    held: Lists


def plan_of(
    problem: Problem, inputs: Paged, top_k: int, max_context_len: int, tune: Tuning, memory: torch.Tensor | None
) -> Plan:
    """The plan of a paged call; ``memory`` as :func:`.classic_paged.prepare` takes it."""
    lens, (blocks, block), next_n = inputs.context_lens, inputs.kv_cache.shape[:2], inputs.q.shape[1]
    limit = min(max_context_len, inputs.block_table.shape[1] * block if blocks else 0)
    groups = -(-next_n // tune.rows)
    workers = workers_that_fit(problem.device, tune.resident, groups)
    schedule, before = new_schedule(lens, workers, CHUNK_KEYS)
    rows, room = groups * tune.rows, slot_entries(top_k)
    held = lists(workers * rows * list_entries(tune, top_k), SLOTS_PAGED * workers * rows * room, memory, inputs.q.device)
    row_lens = lens.ndim == 2
    lens_strides = lens.stride() if row_lens else (lens.stride(0), 0)
    return Plan(limit, workers, groups, schedule, before, row_lens, lens_strides, room, held)
