"""What the launches of the paged variants have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from capgate import compat

from ..common.cache import LAYOUTS, keys_of, readable, scales_of
from ..common.rules import padded_heads
from ..common.schedule.classic import new_schedule, programs_of_a_worker, workers_that_fit
from ..common.tuning import Tuning
from .operands import Inputs
from .operation import Problem


def groups_of(tune: Tuning, next_n: int) -> int:
    """How many programs share a request's rows."""
    return -(-next_n // (tune.rows * (tune.passes or 1)))


def workers(tuning: Callable[[Problem], Tuning], problem: Problem) -> int:
    """As :func:`capgate.kernels.paged_mqa_workers`, of a variant with these tunings."""
    tune = tuning(problem)
    return workers_that_fit(problem.device, tune.resident, groups_of(tune, problem.next_n))


class Plan(NamedTuple):
    """How the keys of a call are divided among programs.

    tune : the problem's
    before : the launches that make the schedule where none is given
    schedule : the call's, or the one that they make
    splits : programs that share a worker's tiles, taking turns
    grid : of programs: those of all workers, and groups of a request's rows
    limit : keys that a row can see: as many as it has cells, and its row of the table has room for
    row_lens : whether each row has a length of its own
    lens_strides : from one request's length, and from one row's, to the next one's
    """

    tune: Tuning
    before: tuple[compat.Launch, ...]
    schedule: torch.Tensor
    splits: int
    grid: tuple[int, int]
    limit: int
    row_lens: bool
    lens_strides: tuple[int, ...]


def plan_of(tuning: Callable[[Problem], Tuning], problem: Problem, inputs: Inputs, out: torch.Tensor, chunk_keys: int) -> Plan:
    """The plan of a call of a variant with these tunings."""
    lens, table, schedule = inputs.context_lens, inputs.block_table, inputs.schedule
    tune = tuning(problem)
    before: tuple[compat.Launch, ...] = ()
    if schedule is None:
        schedule, before = new_schedule(lens, workers(tuning, problem), chunk_keys)
    groups = groups_of(tune, inputs.q.shape[1])
    splits = programs_of_a_worker(problem.device, tune.resident, groups, schedule)
    limit = min(out.shape[1], table.shape[1] * inputs.kv_cache.shape[1])
    row_lens = lens.ndim == 2
    lens_strides = lens.stride() if row_lens else (lens.stride(0), 0)
    return Plan(tune, before, schedule, splits, ((schedule.shape[0] - 1) * splits, groups), limit, row_lens, lens_strides)


def launches_of(
    kernel: Any,
    plan: Plan,
    inputs: Inputs,
    out: torch.Tensor,
    constants: dict[str, Any],
    *,
    strip: int,
    clean_logits: bool,
    layout: str,
    chunk_keys: int,
) -> tuple[compat.Launch, ...]:
    """The launches of a call by a kernel that loads through pointers.

    constants : those that not every such kernel has, and its options
    strip : cells that are filled at a time
    """
    q, kv_cache, weights, context_lens, block_table, _ = inputs
    requests, next_n, heads, dim = q.shape
    (blocks, block), width, tune = kv_cache.shape[:2], out.shape[1], plan.tune
    kv_cache = readable(kv_cache)
    keys, scales = keys_of(kv_cache).view(q.dtype), scales_of(kv_cache)
    arguments = (
        *(q, keys, scales, weights, context_lens, block_table, plan.schedule, out),
        *(requests, blocks, plan.limit, width, requests * next_n * -(-width // strip), plan.splits),
        *(*q.stride(), keys.stride(0), scales.stride(0), *weights.stride(), *plan.lens_strides),
        *(*block_table.stride(), *out.stride()),
    )
    keywords = {
        "NEXT_N": next_n,
        "HEADS": heads,
        "DIM": dim,
        "PADDED_HEADS": padded_heads(heads),
        "ROWS": tune.rows,
        "BLOCK": block,
        "TILE": LAYOUTS[layout],
        "BLOCK_KEYS": tune.block_keys,
        "CHUNK": chunk_keys,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "ROW_LENS": plan.row_lens,
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **constants,
    }
    return (*plan.before, compat.Launch(kernel, plan.grid, arguments, keywords))
