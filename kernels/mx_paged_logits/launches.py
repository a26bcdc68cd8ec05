"""What the launches of the variants have in common."""

from typing import Any

import torch

from capgate import compat

from ..common.cache import readable
from ..common.mx_cache import pages_of
from ..common.rules import padded_heads
from ..common.schedule.plan import Plan
from .operands import Inputs
from .operation import Problem


def launches_of(
    kernel: Any,
    problem: Problem,
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
    """The launches of a call.

    inputs : with q in the dtype that the kernel reads
    constants : those that not every kernel has, and its options
    strip : cells that are filled at a time
    """
    q, q_scale, kv_cache, weights, context_lens, block_table, _, kv_scale = inputs
    requests, next_n, heads, q_bytes = q.shape
    values, scales, block, key_bytes, at = pages_of(
        readable(kv_cache), None if kv_scale is None else readable(kv_scale), layout
    )
    width, tune = out.shape[1], plan.tune
    arguments = (
        *(q, q_scale, values, scales, weights, context_lens, block_table, plan.planned.schedule, out),
        *(requests, kv_cache.shape[0], plan.limit, width, requests * next_n * -(-width // strip), plan.splits),
        *(*q.stride(), *q_scale.stride(), values.stride(0), scales.stride(0), *weights.stride(), *plan.lens_strides),
        *(*block_table.stride(), *out.stride()),
    )
    keywords = {
        "NEXT_N": next_n,
        "HEADS": heads,
        "DIM": problem.dim,
        "Q_BYTES": q_bytes,
        "KEY_BYTES": key_bytes,
        "PADDED_HEADS": padded_heads(heads),
        "ROWS": tune.rows,
        "BLOCK": block,
        "TILE": at.tile_of(block),
        "SCALE_TILE": at.scale_tile_of(block),
        "SCALE_LANES": at.scale_lanes,
        "BLOCK_KEYS": tune.block_keys,
        "CHUNK": chunk_keys,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "ROW_LENS": plan.row_lens,
        "num_warps": tune.num_warps,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **constants,
    }
    return plan.planned.launches(kernel, plan.grid, arguments, keywords)
