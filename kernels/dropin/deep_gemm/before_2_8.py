"""The functions that DeepGEMM 2.4 to 2.6 have under the names of 2.8, with other arguments."""

from typing import Any

import torch

from . import dense, paged
from .kinds import queries_of


def fp8_fp4_mqa_logits(
    q: Any,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
    logits_dtype: torch.dtype = torch.float32,
    schedule_meta: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`.dense.fp8_mqa_logits`, with queries as in :func:`.dense.fp8_fp4_mqa_logits`.

    logits_dtype : float32 or bfloat16. Rows of an output are 1024 bytes or a multiple of that.
    schedule_meta : sgl-deep-gemm has it; not looked at
    """
    return dense.score(
        queries_of(q), kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits, max_seqlen_k, logits_dtype
    )


def fp8_fp4_paged_mqa_logits(
    q: Any,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    logits_dtype: torch.dtype = torch.float32,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`.paged.fp8_paged_mqa_logits`, with queries as in 2.8's function, and ``logits_dtype`` float32 or bfloat16."""
    operands = (queries_of(q), kv_cache, weights, context_lens, block_table, schedule_meta)
    return paged.score(*operands, max_context_len, clean_logits, indices, logits_dtype)
