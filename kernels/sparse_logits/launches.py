"""What the launches of the variants have in common: queries with their scales, and where a cache holds keys."""

from typing import Any

import torch

from ..common.cache import LAYOUTS, keys_of, readable, scales_of
from ..common.key_formats import SCALE_BYTES
from ..common.mx_cache import pages_of
from .operands import Cached, Inputs, Mx, MxPaged

SCALES_OF_ONE = {"SCALE_TILE": 1, "SCALE_LANES": 1}  # keys whose scales lie in their order


def queries_of(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """(queries, their scales, strides of both): over requests, rows, heads, dims; requests, rows, heads.

    fp8 queries have no scales: the queries themselves stand there, and are not read as such.
    """
    q = inputs.q
    steps = q.stride() if q.ndim == 4 else (q.stride(0), 0, *q.stride()[1:])
    if not isinstance(inputs, Mx):
        return q, q, (*steps, 0, 0, 0)
    of_scales = inputs.q_scale.stride()
    return q, inputs.q_scale, (*steps, *(of_scales if len(of_scales) == 3 else (of_scales[0], 0, of_scales[1])))


def cached_keys(inputs: Cached, layout: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """(keys, scales, constants of where they lie) of a cache; there is something to read in one without blocks."""
    block, width = inputs.kv_cache.shape[1::2]
    kv_cache, where = readable(inputs.kv_cache), {"BLOCK": block, "KEY_BYTES": width - SCALE_BYTES}
    if isinstance(inputs, MxPaged):
        keys, scales, _, _, at = pages_of(kv_cache, None, layout)
        where |= {"TILE": at.tile_of(block), "SCALE_TILE": at.scale_tile_of(block), "SCALE_LANES": at.scale_lanes}
        return keys, scales, where
    return keys_of(kv_cache).view(inputs.q.dtype), scales_of(kv_cache), {**where, "TILE": LAYOUTS[layout], **SCALES_OF_ONE}
