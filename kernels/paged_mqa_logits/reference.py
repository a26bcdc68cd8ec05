"""fp8_paged_mqa_logits in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from ..common.cache import LAYOUTS, packets_of, readable, scale_bytes_of
from ..common.reference import KEY_TILE, SCORE_BYTES, row_lengths, score
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
    blocks, block = kv_cache.shape[:2]
    columns = out.shape[1]
    limit = min(columns, block_table.shape[1] * block)
    lengths = row_lengths(context_lens, next_n)[..., None].clamp(max=limit)  # [B, next_n, 1]
    kv_cache = readable(kv_cache)
    packets, scales, tile = packets_of(kv_cache, layout), scale_bytes_of(kv_cache), LAYOUTS[layout]
    key_tile = min(KEY_TILE, columns)
    request_tile = max(1, SCORE_BYTES // (max(next_n * heads, dim) * key_tile * accumulate.itemsize))
    for first in range(0, requests, request_tile):
        batch = slice(first, first + request_tile)
        length = lengths[batch]
        for column in range(0, columns, key_tile):
            cells = out[first * next_n : (first + len(length)) * next_n, column : column + key_tile]
            position = torch.arange(column, column + cells.shape[1], device=q.device)
            inside = position < length  # [b, next_n, columns]
            flat = inside.flatten(0, 1)
            outside = torch.full_like(cells, float("-inf")) if clean_logits else cells
            if column >= limit or (q.device.type == "cpu" and not inside.any()):  # a look that would stop a GPU's queue
                cells.copy_(outside)
                continue
            # What the table holds past a request's longest row is not looked at.
            entry = block_table[batch, (position // block).clamp(max=block_table.shape[1] - 1)].long()
            held = inside.any(1) & (entry >= 0) & (entry < blocks)  # [b, columns]
            page, inside = torch.where(held, entry, 0), position % block
            octets = packets[page, inside // tile, inside % tile]  # indexing bytes works for every fp8 type
            key = octets.flatten(-2).view(q.dtype).to(accumulate)  # [b, columns, D]
            scale = scales[page, inside].view(torch.float32)[..., 0]
            weight = weights.unflatten(0, (requests, next_n))[batch].to(accumulate)
            logits = score(q[batch].to(accumulate), weight, key) * scale[:, None]
            logits.masked_fill_(~held[:, None], float("-inf"))
            cells.copy_(torch.where(flat, logits.flatten(0, 1).to(out.dtype), outside))
