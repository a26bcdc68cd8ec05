"""What the launches of the fused selections from a paged cache have in common."""

from typing import Any, NamedTuple

import torch

from capgate import compat

from ..common.cache import LAYOUTS, keys_of, readable, scales_of
from ..common.rules import padded_heads
from ..common.schedule.classic import new_schedule, workers_that_fit
from ..common.schedule.operation import CHUNK_KEYS
from ..key_selection.operands import Paged
from .launches import shape_of, strides_of
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
    planned = new_schedule(lens, workers, CHUNK_KEYS)
    rows, room = groups * tune.rows, slot_entries(top_k)
    held = lists(workers * rows * list_entries(tune, top_k), SLOTS_PAGED * workers * rows * room, memory, inputs.q.device)
    row_lens = lens.ndim == 2
    lens_strides = lens.stride() if row_lens else (lens.stride(0), 0)
    return Plan(limit, workers, groups, planned.schedule, planned.before, row_lens, lens_strides, room, held)


def scan_of(
    kernel: Any,
    plan: Plan,
    inputs: Paged,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    tune: Tuning,
    constants: dict[str, Any],
    *,
    page_size: int,
    layout: str,
    counters: torch.Tensor | None,
) -> compat.Launch:
    """What scores and selects by a plan, with a kernel that loads through pointers.

    constants : those that not every such kernel has, and its options
    """
    q, kv_cache, weights, context_lens, block_table, offsets, page_table, requests = inputs
    (batch, next_n, heads, dim), (blocks, block), top_k = q.shape, kv_cache.shape[:2], indices.shape[1]
    kv_cache = readable(kv_cache)
    keys, scales = keys_of(kv_cache).view(q.dtype), scales_of(kv_cache)
    arguments = (
        *(q, keys, scales, weights, context_lens, block_table, plan.schedule, offsets, page_table, requests),
        *(indices, scores, *plan.held, counters),
        *(batch, blocks, plan.limit, top_k, *shape_of(page_table)),
        *(*q.stride(), keys.stride(0), scales.stride(0), *weights.stride(), *plan.lens_strides, *block_table.stride()),
        *(*strides_of(offsets), *strides_of(page_table, axes=2), *strides_of(requests)),
        *(indices.stride(0), None if scores is None else scores.stride(0), plan.room),
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
        "CHUNK": CHUNK_KEYS,
        "ENTRIES": tune.block_entries,
        "STRIDE": list_entries(tune, top_k),
        "ROW_LENS": plan.row_lens,
        "PAGE": page_size,
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **constants,
    }
    return compat.Launch(kernel, (plan.workers, plan.groups), arguments, keywords)
