"""Schedules in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

from typing import Any

import torch
import triton
import triton.language as tl

from capgate import compat

from ..device.classic import units_of
from ..hardware import multiprocessors
from .operands import Inputs, last_lengths
from .operation import CHUNK_KEYS, Problem
from .tunings import classic as tuning


@triton.jit
def schedule_kernel(
    lens,  # [B] int32
    schedule,  # [num_workers + 1, 2] int32
    num_requests,
    num_workers,
    stride_lens,
    CHUNK: tl.constexpr,
    REQUESTS: tl.constexpr,
):
    total = tl.full((), 0, tl.int64)
    for base in range(0, num_requests, REQUESTS):
        request = base + tl.arange(0, REQUESTS)
        total += tl.sum(units_of(lens, request, num_requests, 0x7FFFFFFF, stride_lens, CHUNK), axis=0)
    worker = tl.program_id(0)
    share = total // num_workers
    one_less = num_workers - (total - share * num_workers)  # workers in front that have one chunk less than those behind
    start = share * worker + tl.maximum(worker - one_less, 0)
    passed_requests = 0
    first_chunk = 0
    for base in range(0, num_requests, REQUESTS):
        request = base + tl.arange(0, REQUESTS)
        units = units_of(lens, request, num_requests, 0x7FFFFFFF, stride_lens, CHUNK)
        chunk = start - (tl.cumsum(units, axis=0) - units)
        passed_requests += tl.sum(((chunk >= units) & (request < num_requests)).to(tl.int32), axis=0)
        # Of one request at most, and 2**24 at most: a sum of 32 bits is one instruction.
        first_chunk += tl.sum(tl.where((chunk >= 0) & (chunk < units), chunk, 0).to(tl.int32), axis=0)
        start -= tl.sum(units, axis=0)
    tl.store(schedule + 2 * worker, passed_requests)
    tl.store(schedule + 2 * worker + 1, first_chunk)


def prepare(problem: Problem, inputs: Inputs, schedule: torch.Tensor, *, chunk_keys: int = CHUNK_KEYS) -> compat.Launch:
    """The launch that fills ``schedule`` [num_workers + 1, 2]."""
    tune, lens = tuning(problem), last_lengths(inputs.context_lens)
    num_workers = schedule.shape[0] - 1
    arguments = (lens, schedule, lens.shape[0], num_workers, lens.stride(0))
    keywords = {"CHUNK": chunk_keys, "REQUESTS": tune.block_requests, "num_warps": tune.num_warps}
    return compat.Launch(schedule_kernel, (num_workers + 1,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)


def new_schedule(
    context_lens: torch.Tensor, num_workers: int, chunk_keys: int
) -> tuple[torch.Tensor, tuple[compat.Launch, ...]]:
    """A new schedule, and what fills it: for kernels that were given none."""
    schedule = torch.empty((num_workers + 1, 2), dtype=torch.int32, device=context_lens.device)
    return schedule, (prepare(Problem(context_lens.device), Inputs(context_lens), schedule, chunk_keys=chunk_keys),)


def workers_that_fit(device: Any, resident: int, groups: int) -> int:
    """As many workers as a device holds programs, ``resident`` on each SM or CU, where each takes ``groups`` of them."""
    return max(1, multiprocessors(device) * resident // groups)


def programs_of_a_worker(device: Any, resident: int, groups: int, schedule: torch.Tensor) -> int:
    """How many programs of each group of rows share a worker's tiles, so that schedules of few workers fill a device, too."""
    return max(1, workers_that_fit(device, resident, groups) // (schedule.shape[0] - 1))
