"""How a call of sparse logits divides its listed keys among programs: what its variants that launch kernels have in common."""

from math import gcd
from typing import NamedTuple

import torch

from capgate import compat

from ..common.schedule.classic import Planned, new_schedule, programs_of_a_worker, workers_that_fit
from ..common.tuning import Tuning
from .operands import Cached, Inputs
from .operation import Problem

WAVES = 4
MAX_KEYS = 2**30  # that a row of a request can see, so that a position is 32 bits wide


class Plan(NamedTuple):
    """How the listed keys of a call are divided among programs.

    planned : the schedule, and what makes it where none is given
    splits : programs that share a worker's tiles, taking turns
    grid : of programs: those of all workers, and groups of rows that share a list
    list_rows : rows that share a list
    row_lens : whether each row of a request has a length of its own
    lens_strides : from one request's length, or window's end, and from one row's length to the next one's
    """

    planned: Planned
    splits: int
    grid: tuple[int, int]
    list_rows: int
    row_lens: bool
    lens_strides: tuple[int, ...]


class PersistentPlan(NamedTuple):
    """The same for programs that stay on their SM, of packed keys.

    planned, list_rows : as in :class:`Plan`
    workers : of the schedule
    pairs : of a group of rows that share a list, and a worker: what the programs have in equal numbers
    programs : as many as a GPU holds, or as there are pairs
    """

    planned: Planned
    list_rows: int
    workers: int
    pairs: int
    programs: int


def plan_of(tune: Tuning, problem: Problem, inputs: Inputs, out: torch.Tensor, chunk_keys: int) -> Plan:
    """The plan of a call of a variant with this row of its table."""
    list_rows = out.shape[0] // len(inputs.candidates)
    groups, slots = -(-list_rows // tune.rows), workers_that_fit(problem.device, tune.resident, 1)
    shared = workers_that_fit(problem.device, tune.resident, groups)
    planned = _planned(problem, inputs, out, list_rows, shared, chunk_keys)
    workers = planned.schedule.shape[0] - 1
    splits = programs_of_a_worker(problem.device, tune.resident, groups, planned.schedule)
    if groups > 1:  # all programs have the same work: several waves of them, so that the last one is a small part
        splits = max(splits, -(-WAVES * slots // (groups * workers)))
    ends = _ends_of(inputs)
    row_lens = ends.ndim == 2
    lens_strides = ends.stride() if row_lens else (ends.stride(0), 0)
    return Plan(planned, splits, (workers * splits, groups), list_rows, row_lens, lens_strides)


def persistent_plan(tune: Tuning, problem: Problem, inputs: Inputs, out: torch.Tensor, chunk_keys: int) -> PersistentPlan:
    """As :func:`plan_of`. The schedule that a call makes has so few workers that every program has as many pairs."""
    list_rows = out.shape[0] // len(inputs.candidates)
    groups, slots = -(-list_rows // tune.rows), workers_that_fit(problem.device, tune.resident, 1)
    planned = _planned(problem, inputs, out, list_rows, slots // gcd(slots, groups), chunk_keys)
    workers = planned.schedule.shape[0] - 1
    return PersistentPlan(planned, list_rows, workers, groups * workers, min(slots, groups * workers))


def _ends_of(inputs: Inputs) -> torch.Tensor:
    """Where windows end, or what says how many keys the rows of requests see."""
    return inputs.context_lens if isinstance(inputs, Cached) else inputs.ends


def _planned(problem: Problem, inputs: Inputs, out: torch.Tensor, list_rows: int, workers: int, chunk_keys: int) -> Planned:
    """The schedule of a call, or a new one of so many workers."""
    if inputs.schedule is not None:
        return Planned(inputs.schedule)
    ends, starts = _ends_of(inputs), None if isinstance(inputs, Cached) else inputs.starts
    next_n = problem.next_n or 1
    each, last = (None, slice(None)) if list_rows > 1 and next_n > 1 else (next_n, slice(list_rows - 1, None, list_rows))
    lens = ends if next_n > 1 else ends[last]
    begins = None if starts is None else starts[last]
    early = compat.capabilities(problem.device).dependent_launch
    return new_schedule(lens, workers, chunk_keys, starts=begins, rows=each, most=out.shape[1], early=early)
