"""The signatures of vLLM's operators over this package's functions. Errors of those use their own argument names."""

from .key_cache import cp_gather_indexer_k_quant_cache, indexer_k_quant_and_cache
from .top_k import top_k_per_row_decode, top_k_per_row_prefill

__all__ = [
    "cp_gather_indexer_k_quant_cache",
    "indexer_k_quant_and_cache",
    "top_k_per_row_decode",
    "top_k_per_row_prefill",
]
