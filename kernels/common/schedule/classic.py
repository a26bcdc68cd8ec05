"""Schedules in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from capgate import compat

from ..device.classic import units_of_rows
from ..device.dependent import gdc_launch_dependents
from ..hardware import multiprocessors
from .operands import Inputs, last_lengths
from .operation import CHUNK_KEYS, MOST, Problem
from .tunings import classic as tuning


@triton.jit
def schedule_kernel(
    starts,  # [num_rows] int32 if WINDOWS
    ends,  # [num_rows] int32, or lengths as windows.seen takes them
    schedule,  # [num_workers + 1, 2] int32
    num_rows,
    num_workers,
    most,
    stride_starts,
    stride_ends,
    stride_next,
    CHUNK: tl.constexpr,
    REQUESTS: tl.constexpr,
    NEXT_N: tl.constexpr,
    ROW_LENS: tl.constexpr,
    WINDOWS: tl.constexpr,
    EARLY: tl.constexpr,  # what works by the schedule is started now, and waits for it
):
    if EARLY:
        gdc_launch_dependents()
    total = tl.full((), 0, tl.int64)
    for base in range(0, num_rows, REQUESTS):
        row = base + tl.arange(0, REQUESTS)
        units = units_of_rows(
            row, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, CHUNK, NEXT_N, ROW_LENS, WINDOWS
        )
        total += tl.sum(units, axis=0)
    worker = tl.program_id(0)
    share = total // num_workers
    one_less = num_workers - (total - share * num_workers)  # workers in front that have one chunk less than those behind
    start = share * worker + tl.maximum(worker - one_less, 0)
    passed_rows = 0
    first_chunk = 0
    for base in range(0, num_rows, REQUESTS):
        row = base + tl.arange(0, REQUESTS)
        units = units_of_rows(
            row, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, CHUNK, NEXT_N, ROW_LENS, WINDOWS
        )
        chunk = start - (tl.cumsum(units, axis=0) - units)
        passed_rows += tl.sum(((chunk >= units) & (row < num_rows)).to(tl.int32), axis=0)
        # Of one row at most, and 2**24 at most: a sum of 32 bits is one instruction.
        first_chunk += tl.sum(tl.where((chunk >= 0) & (chunk < units), chunk, 0).to(tl.int32), axis=0)
        start -= tl.sum(units, axis=0)
    tl.store(schedule + 2 * worker, passed_rows)
    tl.store(schedule + 2 * worker + 1, first_chunk)


def prepare(
    problem: Problem,
    inputs: Inputs,
    schedule: torch.Tensor,
    *,
    chunk_keys: int = CHUNK_KEYS,
    rows: int | None = None,
    most: int = MOST,
    early: bool = False,
) -> compat.Launch:
    """The launch that fills ``schedule`` [num_workers + 1, 2]; options are those of the reference.

    early : the next launch may start before this one ends
    """
    tune, (lens, starts) = tuning(problem), inputs
    if rows is None:
        lens, rows = last_lengths(lens), 1
    row_lens, num_workers = lens.ndim == 2, schedule.shape[0] - 1
    strides = lens.stride() if row_lens else (lens.stride(0), 0)
    windows = (lens, 0) if starts is None else (starts, starts.stride(0))
    arguments = (windows[0], lens, schedule, lens.shape[0] * rows, num_workers, most, windows[1], *strides)
    keywords = {
        "CHUNK": chunk_keys,
        "REQUESTS": tune.block_requests,
        "NEXT_N": rows,
        "ROW_LENS": row_lens,
        "WINDOWS": starts is not None,
        "EARLY": early,
        "num_warps": tune.num_warps,
    }
    return compat.Launch(schedule_kernel, (num_workers + 1,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)


class Planned(NamedTuple):
    """A call's schedule, the caller's own or a new one.

    schedule : [num_workers + 1, 2] int32
    before : the launch that fills it, if one does
    early : whether the launch that works by it starts before that one's end
    """

    schedule: torch.Tensor
    before: tuple[compat.Launch, ...] = ()
    early: bool = False

    def launches(
        self, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[compat.Launch, ...]:
        """Those of a call: what fills the schedule, if it is new, and the kernel that works by it."""
        early = {"EARLY": True, "launch_pdl": True} if self.early else {}
        return (*self.before, compat.Launch(kernel, grid, arguments, keywords | early))


def new_schedule(
    context_lens: torch.Tensor,
    num_workers: int,
    chunk_keys: int,
    *,
    starts: torch.Tensor | None = None,
    rows: int | None = None,
    most: int = MOST,
    early: bool = False,
) -> Planned:
    """A new schedule, and what fills it: for kernels that were given none.

    early : whether the kernel is started before its schedule is there, and waits for it
    """
    schedule = torch.empty((num_workers + 1, 2), dtype=torch.int32, device=context_lens.device)
    problem, inputs = Problem(context_lens.device), Inputs(context_lens, starts)
    launch = prepare(problem, inputs, schedule, chunk_keys=chunk_keys, rows=rows, most=most, early=early)
    return Planned(schedule, (launch,), early)


def workers_that_fit(device: Any, resident: int, groups: int) -> int:
    """As many workers as a device holds programs, ``resident`` on each SM or CU, where each takes ``groups`` of them."""
    return max(1, multiprocessors(device) * resident // groups)


def programs_of_a_worker(device: Any, resident: int, groups: int, schedule: torch.Tensor) -> int:
    """How many programs of each group of rows share a worker's tiles, so that schedules of few workers fill a device, too."""
    return max(1, workers_that_fit(device, resident, groups) // (schedule.shape[0] - 1))
