"""The second signature of :func:`.mxfp4.paged_mxfp4_mqa_logits`: rows have ends, and candidates come as offsets."""

from typing import Any

import torch

from ..families import NotServed
from . import mxfp4


def paged_mxfp4_mqa_logits(
    q: torch.Tensor,
    q_scales: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    max_model_len: int,
    kv_scale_cache: torch.Tensor | None = None,
    out_logits: torch.Tensor | None = None,
    clean_logits: bool = True,
    preshuffle: int = 1,
    scale_mode: int = mxfp4.WIDE,
    dynamic: int = 0,
    schedule: torch.Tensor | None = None,
    cu_ends: torch.Tensor | None = None,
    gather: Any = None,
    block_scores: torch.Tensor | None = None,
    block_scores_only: bool = False,
    pin_newest: bool = False,
    candidate_block_size: int = 8,
) -> torch.Tensor:
    """As :func:`.mxfp4.paged_mxfp4_mqa_logits`, whose ``row_ends`` are ``cu_ends`` here."""
    if gather is not None:
        raise NotServed("logits of listed candidates")
    if block_scores is not None or block_scores_only or pin_newest:
        raise NotServed("scores of candidate blocks")
    if scale_mode != mxfp4.WIDE:
        raise NotServed("scales in the narrow order")
    operands = (q, q_scales, kv_cache, weights, context_lens, block_table, max_model_len)
    return mxfp4.score(*operands, kv_scale_cache, out_logits, clean_logits, preshuffle, cu_ends)
