"""The key caches of engines as ours: rows that may be wider, bytes of any type, and blocks without a dimension of heads."""

from typing import Any

import torch

from ..common.cache import with_scale
from ..common.checks import check_strided
from ..common.operands import Operands

MASKED = 64  # cells of a request that are masked at a time: all of them up to next_n = 9, and of any other a row or some


def cache_of(name: str, kv_cache: torch.Tensor, dim: int) -> torch.Tensor:
    """An engine's cache [num_blocks, block, W] or [num_blocks, block, 1, W] of one-byte elements, as our functions take it.

    name : the engine's, for errors
    dim : bytes of a key

    W is ``dim + 4`` or more: what it has beyond that is room at the end of each block. Nothing is copied. Raises TypeError or
    ValueError for what is no such cache, as far as our functions will not.
    """
    check_strided(name, kv_cache)
    if kv_cache.element_size() != 1:
        raise TypeError(f"{name}: got {kv_cache.dtype}, needs torch.uint8 or another type of one byte")
    octets = kv_cache.view(torch.uint8)
    if octets.ndim == 3:
        octets = octets.unsqueeze(2)
    width = with_scale(dim)
    if octets.ndim != 4 or octets.shape[2] != 1 or octets.shape[3] <= width:
        return octets
    blocks, block, _, room = octets.shape
    if octets.stride(3) != 1 or (block > 1 and octets.stride(1) != room):
        raise ValueError(f"{name}: got strides {tuple(octets.stride())}, needs blocks of adjacent bytes")
    return octets.as_strided((blocks, block, 1, width), (octets.stride(0), width, width, 1), octets.storage_offset())


def of_queries(operands: Operands[Any], q: torch.Tensor, kv_cache: torch.Tensor) -> torch.Tensor:
    """As :func:`cache_of` for the cache of a paged call, held against its queries.

    operands : the queries and the cache, by the engine's names
    q : [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz
    """
    q_name, name = operands.rows
    check_strided(q_name, q)
    cache = cache_of(name, kv_cache, q.shape[-1] if q.ndim == 4 else 0)
    operands.check((q, cache))
    return cache


def mask_drafts(out: torch.Tensor, context_lens: torch.Tensor, next_n: int) -> None:
    """Set the cells of draft rows to -inf whose keys only later rows of the request see. Nothing is read from the device.

    Some 25 bytes are allocated for each of :data:`MASKED` cells of a request, or of next_n - 1 if those are more.

    out : [B * next_n, columns], float32
    context_lens : [B], int32, row t of next_n seeing ``context_lens[b] - next_n + t + 1`` keys
    """
    if next_n == 1 or out.numel() == 0:  # a request's last row sees all
        return
    columns, lens = out.shape[1], context_lens.long()[:, None, None]
    cell = out.view(len(context_lens), next_n, columns)  # splitting rows needs no copy, whatever their strides
    last = lens.clamp(max=columns) - 1
    first, rows = 0, next_n - 1  # the last row sees all
    while first < rows:
        width = min(rows - first, columns)  # of the strip's first row, which has the most such cells
        end = min(first + max(1, MASKED // width), rows)
        seen = (lens + torch.arange(first - rows, end - rows, device=out.device)[:, None]).clamp(min=0)  # [B, strip, 1]
        # Places past the last one write to it what it gets anyway.
        place = torch.minimum(seen + torch.arange(width, device=out.device), last).clamp(min=0)
        strip, masked = cell[:, first:end], (place >= seen) & (last >= 0)
        strip.scatter_(2, place, torch.where(masked, float("-inf"), strip.gather(2, place)))
        first = end
