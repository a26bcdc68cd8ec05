"""What the launches of the paged variants have in common."""

from typing import Any

import torch

from capgate import compat

from ..common.cache import LAYOUTS, keys_of, readable, scales_of
from ..common.rules import padded_heads
from ..common.schedule.plan import Plan
from .operands import Inputs


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
        *(q, keys, scales, weights, context_lens, block_table, plan.planned.schedule, out),
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
    return plan.planned.launches(kernel, plan.grid, arguments, keywords)
