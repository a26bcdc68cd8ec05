"""mx_paged_mqa_logits in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from ..common.cache import readable
from ..common.mx_cache import any_format_of, pages_of, values_at
from ..common.mx_operands import dim_of, values_of
from ..common.reference import fill_requests, score, score_in_bfloat16
from ..common.schedule.operation import CHUNK_KEYS
from .operands import Inputs


def launch(
    inputs: Inputs,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    layout: str = "flat",
    chunk_keys: int = CHUNK_KEYS,
    accumulate: torch.dtype = torch.float32,
    bfloat16_sums: bool = False,
) -> None:
    """Fill ``out`` as :func:`capgate.kernels.mx_paged_mqa_logits` says; the arguments have been checked.

    inputs : but for the schedule, which is not needed here
    chunk_keys : of the schedule, and so not needed either
    accumulate : the type of products and sums, ``torch.float64`` to judge the other variants
    bfloat16_sums : sum over the heads as DeepGEMM's kernels for sm100 do: see :func:`..common.reference.score_in_bfloat16`

    Nothing is read back from the device, so that the call can be captured in a GPU graph. Memory beyond the operands is
    bounded by a few times SCORE_BYTES.
    """
    q, q_scale, kv_cache, weights, context_lens, block_table, _, kv_scale = inputs
    (requests, next_n, heads), dim = q.shape[:3], dim_of(q)
    key_format, of_heads = any_format_of(kv_cache, dim), score_in_bfloat16 if bfloat16_sums else score
    pages = pages_of(readable(kv_cache), None if kv_scale is None else readable(kv_scale), layout)
    weights = weights.unflatten(0, (requests, next_n))

    def logits(batch: slice, page: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        key = values_at(pages, page, place, key_format).to(accumulate)  # [b, columns, D]
        query = values_of(q[batch], q_scale[batch]).to(accumulate)
        return of_heads(query, weights[batch].to(accumulate), key)

    cache, widest = (kv_cache.shape[0], pages.block), max(next_n * heads, dim)
    options = {"clean_logits": clean_logits, "accumulate": accumulate}
    fill_requests(out, context_lens, block_table, cache, next_n, widest, logits, **options)
