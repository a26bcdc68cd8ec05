"""Calls of paged MQA logits in MXFP4 as aiter's functions take them."""

from typing import Any

import torch

from . import mx_paged
from .mx_paged import MxPagedCall


def q_scales_of_flydsl(words: torch.Tensor) -> torch.Tensor:
    """[..., H] words as FlyDSL's kernels take scales of queries: [..., 1, 4, 16, P], P a multiple of 4; each byte by itself."""
    heads = words.shape[-1]
    octets = words.contiguous()[..., None].view(torch.uint8)
    laid = torch.full((*words.shape[:-1], 1, 4, 16, -(-heads // 64) * 4), 0xFF, dtype=torch.uint8, device=words.device)
    for head in range(heads):
        for group in range(4):
            laid[..., 0, group, head % 16, head // 16] = octets[..., head, group]
    return laid


def flydsl_operands(call: MxPagedCall, rows: bool = False) -> dict[str, Any]:
    """What both FlyDSL functions take; with ``rows`` of one row to a request as that for prefill does."""
    kv_cache, kv_scale = mx_paged.apart(call, gap=16)
    line = slice(None) if not rows else 0
    return {
        "q_fp4": call.q[:, line],
        "q_scale": q_scales_of_flydsl(call.q_scale)[:, line],
        "kv_cache": kv_cache,
        "kv_scale": kv_scale,
        "block_tables": call.block_table,
        "weights": call.weights,
    }


def gluon_operands(call: MxPagedCall) -> dict[str, Any]:
    return {
        "q": call.q,
        "q_scales": call.q_scale.contiguous()[..., None].view(torch.uint8),
        "kv_cache": call.kv_cache,
        "weights": call.weights,
        "context_lens": call.context_lens,
        "block_table": call.block_table,
    }
