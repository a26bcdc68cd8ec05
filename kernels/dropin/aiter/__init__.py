"""aiter's signatures over this package's functions.

ATOM, and vLLM and SGLang on ROCm, call them so. Of one name with several signatures ``GENERATIONS`` has ours for each, and
installing binds the one that takes what aiter's own does. Errors that this package's functions raise use their own argument
names.
"""

from . import mxfp4_first, mxfp4_gather
from .flydsl import flydsl_pa_mqa_logits_fp4, flydsl_pa_mqa_logits_fp4_prefill
from .key_cache import cp_gather_indexer_k_quant_cache, indexer_k_quant_and_cache
from .mqa_logits import deepgemm_fp8_paged_mqa_logits, fp8_mqa_logits
from .mxfp4 import paged_mxfp4_mqa_logits
from .top_k import top_k_per_row_decode, top_k_per_row_prefill

__all__ = [
    "GENERATIONS",
    "cp_gather_indexer_k_quant_cache",
    "deepgemm_fp8_paged_mqa_logits",
    "flydsl_pa_mqa_logits_fp4",
    "flydsl_pa_mqa_logits_fp4_prefill",
    "fp8_mqa_logits",
    "indexer_k_quant_and_cache",
    "paged_mxfp4_mqa_logits",
    "top_k_per_row_decode",
    "top_k_per_row_prefill",
]

GENERATIONS = {
    "paged_mxfp4_mqa_logits": (
        paged_mxfp4_mqa_logits,
        mxfp4_gather.paged_mxfp4_mqa_logits,
        mxfp4_first.paged_mxfp4_mqa_logits,
    ),
}
