"""How a paged call divides its keys among programs, whatever they are scored from: its schedule, and what shares a worker."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from capgate import compat

from ..tuning import Tuning
from .classic import Planned, new_schedule, programs_of_a_worker, workers_that_fit


class PagedProblem(Protocol):
    """A class of calls whose requests have ``next_n`` rows each, and whose cache ``block_size`` keys in a block."""

    @property
    def device(self) -> Any: ...
    @property
    def next_n(self) -> int: ...
    @property
    def block_size(self) -> int: ...


class PagedOperands(Protocol):
    """What a call says of its requests."""

    @property
    def context_lens(self) -> torch.Tensor: ...
    @property
    def block_table(self) -> torch.Tensor: ...
    @property
    def schedule(self) -> torch.Tensor | None: ...


def groups_of(tune: Tuning, next_n: int) -> int:
    """How many programs share a request's rows."""
    return -(-next_n // (tune.rows * (tune.passes or 1)))


def workers(tuning: Callable[[Any], Tuning], problem: PagedProblem) -> int:
    """As :func:`capgate.kernels.paged_mqa_workers`, of a variant with these tunings."""
    tune = tuning(problem)
    return workers_that_fit(problem.device, tune.resident, groups_of(tune, problem.next_n))


class Plan(NamedTuple):
    """How the keys of a call are divided among programs.

    tune : the problem's
    planned : the schedule, and what makes it where none is given
    splits : programs that share a worker's tiles, taking turns
    grid : of programs: those of all workers, and groups of a request's rows
    limit : keys that a row can see: as many as it has cells, and its row of the table has room for
    row_lens : whether each row has a length of its own
    lens_strides : from one request's length, and from one row's, to the next one's
    """

    tune: Tuning
    planned: Planned
    splits: int
    grid: tuple[int, int]
    limit: int
    row_lens: bool
    lens_strides: tuple[int, ...]


def plan_of(
    tuning: Callable[[Any], Tuning], problem: PagedProblem, inputs: PagedOperands, out: torch.Tensor, chunk_keys: int
) -> Plan:
    """The plan of a call of a variant with these tunings."""
    lens, table, schedule = inputs.context_lens, inputs.block_table, inputs.schedule
    tune = tuning(problem)
    if schedule is None:
        early = compat.capabilities(problem.device).dependent_launch
        planned = new_schedule(lens, workers(tuning, problem), chunk_keys, early=early)
    else:
        planned = Planned(schedule)
    groups = groups_of(tune, problem.next_n)
    splits = programs_of_a_worker(problem.device, tune.resident, groups, planned.schedule)
    limit = min(out.shape[1], table.shape[1] * problem.block_size)
    row_lens = lens.ndim == 2
    lens_strides = lens.stride() if row_lens else (lens.stride(0), 0)
    programs = (planned.schedule.shape[0] - 1) * splits
    return Plan(tune, planned, splits, (programs, groups), limit, row_lens, lens_strides)
