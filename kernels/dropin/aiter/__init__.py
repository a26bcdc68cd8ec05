"""aiter's signatures over this package's functions.

ATOM, and vLLM and SGLang on ROCm, call them so. Errors that this package's functions raise use their own argument names.
"""

from .key_cache import cp_gather_indexer_k_quant_cache, indexer_k_quant_and_cache
from .mqa_logits import deepgemm_fp8_paged_mqa_logits, fp8_mqa_logits
from .top_k import top_k_per_row_decode, top_k_per_row_prefill

__all__ = [
    "cp_gather_indexer_k_quant_cache",
    "deepgemm_fp8_paged_mqa_logits",
    "fp8_mqa_logits",
    "indexer_k_quant_and_cache",
    "top_k_per_row_decode",
    "top_k_per_row_prefill",
]
