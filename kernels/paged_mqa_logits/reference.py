"""fp8_paged_mqa_logits in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from ..common.cache import LAYOUTS, packets_of, readable, scale_bytes_of
from ..common.reference import fill_requests, score
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
) -> None:
    """Fill ``out`` as :func:`capgate.kernels.fp8_paged_mqa_logits` says; the arguments have been checked.

    inputs : but for the schedule, which is not needed here
    chunk_keys : of the schedule, and so not needed either
    accumulate : the type of products and sums, ``torch.float64`` to judge the other variants

    Nothing is read back from the device, so that the call can be captured in a GPU graph. Memory beyond the operands is
    bounded by a few times SCORE_BYTES.
    """
    q, kv_cache, weights, context_lens, block_table, _ = inputs
    requests, next_n, heads, dim = q.shape
    kv_cache, weights = readable(kv_cache), weights.unflatten(0, (requests, next_n))
    packets, scales, tile = packets_of(kv_cache, layout), scale_bytes_of(kv_cache), LAYOUTS[layout]

    def logits(batch: slice, page: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        octets = packets[page, place // tile, place % tile]  # indexing bytes works for every fp8 type
        key = octets.flatten(-2).view(q.dtype).to(accumulate)  # [b, columns, D]
        scale = scales[page, place].view(torch.float32)[..., 0]
        return score(q[batch].to(accumulate), weights[batch].to(accumulate), key) * scale[:, None]

    cache, widest = (kv_cache.shape[0], kv_cache.shape[1]), max(next_n * heads, dim)
    options = {"clean_logits": clean_logits, "accumulate": accumulate}
    fill_requests(out, context_lens, block_table, cache, next_n, widest, logits, **options)
