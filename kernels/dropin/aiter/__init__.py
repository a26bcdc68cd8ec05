"""aiter's signatures over this package's functions.

ATOM, and vLLM and SGLang on ROCm, call them so. Errors that this package's functions raise use their own argument names.
"""

from .mqa_logits import deepgemm_fp8_paged_mqa_logits, fp8_mqa_logits
from .top_k import top_k_per_row_decode, top_k_per_row_prefill

__all__ = ["deepgemm_fp8_paged_mqa_logits", "fp8_mqa_logits", "top_k_per_row_decode", "top_k_per_row_prefill"]
