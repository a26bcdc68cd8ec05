"""Sources of modules that call DeepGEMM as vLLM's and SGLang's do: through globals that are filled once, and through caches."""

VLLM = """
import functools, importlib
_fp8_fp4_mqa_logits_impl = _fp8_fp4_paged_mqa_logits_impl = _get_paged_mqa_logits_metadata_impl = None

@functools.cache
def _import_deep_gemm():
    for name in ("deep_gemm", "vllm.third_party.deep_gemm"):
        try:
            return importlib.import_module(name)
        except ImportError:
            pass

def _lazy_init():
    global _fp8_fp4_mqa_logits_impl, _fp8_fp4_paged_mqa_logits_impl, _get_paged_mqa_logits_metadata_impl
    if _get_paged_mqa_logits_metadata_impl is not None:
        return
    library = _import_deep_gemm()
    if library is None:
        return
    _fp8_fp4_mqa_logits_impl = getattr(library, "fp8_fp4_mqa_logits", None)
    _fp8_fp4_paged_mqa_logits_impl = getattr(library, "fp8_fp4_paged_mqa_logits", None)
    _get_paged_mqa_logits_metadata_impl = getattr(library, "get_paged_mqa_logits_metadata", None)

def fp8_fp4_mqa_logits(q, kv, weights, cu_seqlen_ks, cu_seqlen_ke, max_seqlen_k):
    _lazy_init()
    return _fp8_fp4_mqa_logits_impl(q, kv, weights, cu_seqlen_ks, cu_seqlen_ke, max_seqlen_k)

def get_paged_mqa_logits_metadata(context_lens, block_size, num_sms, indices=None):
    _lazy_init()
    kwargs = {} if indices is None else {"indices": indices}
    return _get_paged_mqa_logits_metadata_impl(context_lens, block_size, num_sms, **kwargs)

def fp8_fp4_paged_mqa_logits(
    q, kv_cache, weights, context_lens, block_tables, schedule_metadata, max_model_len, indices=None
):
    _lazy_init()
    kwargs = {} if indices is None else {"indices": indices}
    return _fp8_fp4_paged_mqa_logits_impl(
        q, kv_cache, weights, context_lens, block_tables, schedule_metadata, max_model_len, **kwargs
    )
"""
VLLM_FILE = "vllm/utils/deep_gemm.py"
VLLM_GLOBALS = ("_fp8_fp4_mqa_logits_impl", "_fp8_fp4_paged_mqa_logits_impl", "_get_paged_mqa_logits_metadata_impl")

SGLANG = """
from functools import lru_cache

@lru_cache(maxsize=1)
def resolve_fp8_mqa_logits_fn():
    import deep_gemm
    return deep_gemm.fp8_mqa_logits

@lru_cache(maxsize=1)
def resolve_fp8_paged_mqa_logits_fn():
    import deep_gemm
    return deep_gemm.fp8_paged_mqa_logits

@lru_cache(maxsize=None)
def resolve_paged_mqa_logits_metadata_fn():
    import deep_gemm
    return deep_gemm.get_paged_mqa_logits_metadata

@lru_cache(maxsize=1)
def resolve_num_sms():
    return [132]
"""
SGLANG_FILE = "sglang/srt/layers/attention/dsa/utils.py"
