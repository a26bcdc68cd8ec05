"""How a call of sparse logits divides its listed keys among programs: what its variants that launch kernels have in common."""

from typing import NamedTuple

import torch

from capgate import compat

from ..common.schedule.classic import new_schedule, programs_of_a_worker, workers_that_fit
from ..common.tuning import Tuning
from .operands import Cached, Inputs
from .operation import Problem

WAVES = 4
MAX_KEYS = 2**30  # that a row of a request can see, so that a position is 32 bits wide


class Plan(NamedTuple):
    """How the listed keys of a call are divided among programs.

    before : the launches that make the schedule where none is given
    schedule : the call's, or the one that they make
    splits : programs that share a worker's tiles, taking turns
    grid : of programs: those of all workers, and groups of rows that share a list
    list_rows : rows that share a list
    row_lens : whether each row of a request has a length of its own
    lens_strides : from one request's length, or window's end, and from one row's length to the next one's
    """

    before: tuple[compat.Launch, ...]
    schedule: torch.Tensor
    splits: int
    grid: tuple[int, int]
    list_rows: int
    row_lens: bool
    lens_strides: tuple[int, ...]


def plan_of(tune: Tuning, problem: Problem, inputs: Inputs, out: torch.Tensor, chunk_keys: int) -> Plan:
    """The plan of a call of a variant with this row of its table."""
    ends, starts = (inputs.context_lens, None) if isinstance(inputs, Cached) else (inputs.ends, inputs.starts)
    list_rows, next_n = out.shape[0] // len(inputs.candidates), problem.next_n or 1
    groups, slots = -(-list_rows // tune.rows), workers_that_fit(problem.device, tune.resident, 1)
    before: tuple[compat.Launch, ...] = ()
    schedule = inputs.schedule
    if schedule is None:
        each, last = (None, slice(None)) if list_rows > 1 and next_n > 1 else (next_n, slice(list_rows - 1, None, list_rows))
        lens = ends if next_n > 1 else ends[last]
        begins = None if starts is None else starts[last]
        shared = workers_that_fit(problem.device, tune.resident, groups)
        schedule, before = new_schedule(lens, shared, chunk_keys, starts=begins, rows=each, most=out.shape[1])
    splits = programs_of_a_worker(problem.device, tune.resident, groups, schedule)
    if groups > 1:  # all programs have the same work: several waves of them, so that the last one is a small part
        splits = max(splits, -(-WAVES * slots // (groups * (schedule.shape[0] - 1))))
    row_lens = ends.ndim == 2
    lens_strides = ends.stride() if row_lens else (ends.stride(0), 0)
    return Plan(before, schedule, splits, ((schedule.shape[0] - 1) * splits, groups), list_rows, row_lens, lens_strides)
