"""Schedules in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

from typing import Any

import torch
import triton
import triton.language as tl

from capgate import compat

from ..device.classic import locate, units_of
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
    WORKERS: tl.constexpr,
    REQUESTS: tl.constexpr,
):
    total = tl.full((), 0, tl.int64)
    for base in range(0, num_requests, REQUESTS):
        request = base + tl.arange(0, REQUESTS)
        units = units_of(lens, request, num_requests, 0x7FFFFFFF, stride_lens, CHUNK)
        total += tl.sum(units, axis=0)
    worker = tl.program_id(0) * WORKERS + tl.arange(0, WORKERS)
    one_less = num_workers - total % num_workers  # workers in front that have one chunk less than those behind
    start = total // num_workers * worker + tl.maximum(worker - one_less, 0)
    request, chunk = locate(start, lens, num_requests, 0x7FFFFFFF, stride_lens, CHUNK, REQUESTS)
    tl.store(schedule + 2 * worker, request, mask=worker <= num_workers)
    tl.store(schedule + 2 * worker + 1, chunk.to(tl.int32), mask=worker <= num_workers)


def prepare(problem: Problem, inputs: Inputs, schedule: torch.Tensor, *, chunk_keys: int = CHUNK_KEYS) -> compat.Launch:
    """The launch that fills ``schedule`` [num_workers + 1, 2]."""
    tune, lens = tuning(problem), last_lengths(inputs.context_lens)
    num_workers = schedule.shape[0] - 1
    arguments = (lens, schedule, lens.shape[0], num_workers, lens.stride(0))
    keywords = {
        "CHUNK": chunk_keys,
        "WORKERS": tune.block_workers,
        "REQUESTS": tune.requests,
        "num_warps": tune.num_warps,
    }
    return compat.Launch(schedule_kernel, (-(-(num_workers + 1) // tune.block_workers),), arguments, keywords)


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
