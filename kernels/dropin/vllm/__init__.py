"""vLLM's signatures of its own operators (``torch.ops._C``), over this package's functions.

Its sparse indexers call them so, on CUDA and on ROCm. Errors that this package's functions raise use their own argument names.
"""

from .top_k import top_k_per_row_decode, top_k_per_row_prefill

__all__ = ["top_k_per_row_decode", "top_k_per_row_prefill"]
