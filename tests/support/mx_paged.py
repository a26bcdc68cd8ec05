"""Paged MQA logits in MX formats by the judge of ``capgate verify``, by which the tests judge, too."""

import torch

from capgate.kernels.tools.verify.mx_paged import (
    MxPagedCall,
    check,
    formula,
    make_call,
    scale_places,
    value_places,
)

__all__ = ["MxPagedCall", "apart", "check", "formula", "make_call"]


def apart(call: MxPagedCall, gap: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The flat cache of a call as (kv_cache, kv_scale) in layout "flydsl", byte by byte by aiter's formula.

    gap : bytes between the blocks of each
    """
    blocks, block, _, width = call.kv_cache.shape
    key, width = torch.arange(block), width - 4
    flat = call.kv_cache.as_strided((blocks, block * (width + 4)), (call.kv_cache.stride(0), 1))
    values = torch.full((blocks, block * width + gap), 0xFF, dtype=torch.uint8)
    scales = torch.full((blocks, block * 4 + gap), 0xFF, dtype=torch.uint8)
    values[:, value_places("flydsl", key, width, block)] = flat[:, : block * width].unflatten(1, (block, width))
    scales[:, scale_places("flydsl", key, 4, block)] = flat[:, block * width :].unflatten(1, (block, 4))
    kv_cache = values[:, : block * width].unflatten(1, (1, width // 16, block, 16))
    return kv_cache, scales[:, : block * 4].unflatten(1, (1, 4, block))
