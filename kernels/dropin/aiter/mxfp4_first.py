"""The first signature of :func:`.mxfp4.paged_mxfp4_mqa_logits`: logits alone."""

import torch

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
    dynamic: int = 0,
    schedule: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`.mxfp4.paged_mxfp4_mqa_logits`."""
    operands = (q, q_scales, kv_cache, weights, context_lens, block_table, max_model_len)
    return mxfp4.score(*operands, kv_scale_cache, out_logits, clean_logits, preshuffle)
