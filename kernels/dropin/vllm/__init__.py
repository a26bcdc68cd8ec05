"""The signatures of vLLM's operators over this package's functions. Errors of those use their own argument names."""

from .key_cache import cp_gather_indexer_k_quant_cache, indexer_k_quant_and_cache
from .top_k import cooperative_topk, persistent_topk, top_k_per_row_decode, top_k_per_row_prefill

__all__ = [
    "cooperative_topk",
    "cp_gather_indexer_k_quant_cache",
    "indexer_k_quant_and_cache",
    "persistent_topk",
    "top_k_per_row_decode",
    "top_k_per_row_prefill",
]
