"""DeepGEMM's signatures for the MQA logits (its ``csrc/apis/attention.hpp``), over this package's functions.

SGLang, and vLLM on CUDA, call them so. DeepGEMM has had several under one name: ``GENERATIONS`` has those of each, and
installing binds the one that takes what the library's own does. Here are those of 2.8 and, of what it has no more, of 2.1 to
2.6. Queries that come with scales are in MX formats, and so are their keys then. Errors that this package's functions raise use
their own argument names.
"""

from . import before_2_8, sgl
from .dense import fp8_fp4_mqa_logits, fp8_mqa_logits, get_mqa_logits_metadata
from .paged import fp8_fp4_paged_mqa_logits, fp8_paged_mqa_logits, get_paged_mqa_logits_metadata
from .processors import get_num_sms, set_num_sms
from .sparse import (
    fp8_fp4_paged_sparse_mqa_logits,
    fp8_fp4_sparse_mqa_logits,
    get_paged_sparse_mqa_logits_metadata,
    get_sparse_mqa_logits_metadata,
)

__all__ = [
    "GENERATIONS",
    "fp8_fp4_mqa_logits",
    "fp8_fp4_paged_mqa_logits",
    "fp8_fp4_paged_sparse_mqa_logits",
    "fp8_fp4_sparse_mqa_logits",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "get_mqa_logits_metadata",
    "get_num_sms",
    "get_paged_mqa_logits_metadata",
    "get_paged_sparse_mqa_logits_metadata",
    "get_sparse_mqa_logits_metadata",
    "set_num_sms",
]

# Functions of one name that take different arguments; the first where a library does not say what its own takes.
GENERATIONS = {
    "fp8_mqa_logits": (fp8_mqa_logits, sgl.fp8_mqa_logits),
    "fp8_fp4_mqa_logits": (fp8_fp4_mqa_logits, before_2_8.fp8_fp4_mqa_logits),
    "fp8_fp4_paged_mqa_logits": (fp8_fp4_paged_mqa_logits, before_2_8.fp8_fp4_paged_mqa_logits),
}
