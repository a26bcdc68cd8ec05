"""Logits of listed blocks by the judge of ``capgate verify``, and calls of which nothing but the listed keys is there."""

from typing import Any

import torch

from capgate.kernels.tools.verify.sparse import (
    CACHED,
    MxPagedSparseCall,
    MxSparseCall,
    PagedSparseCall,
    SparseCall,
    check,
    formula,
    judge,
    lists,
    make_call,
    make_paged_call,
    mx_paged,
    paged,
    windows,
)

__all__ = [
    "MxPagedSparseCall",
    "MxSparseCall",
    "PagedSparseCall",
    "SparseCall",
    "check",
    "formula",
    "judge",
    "lists",
    "make_call",
    "make_paged_call",
    "paged",
    "poisoned",
    "windows",
]


def poisoned(call: Any, block: int, *, relative: bool = True, layout: str = "flat") -> Any:
    """The call with NaN for the keys that no row lists, and for their scales; of a cache every other byte is 0xFF.

    That is NaN in scales, in MX formats too, and in e4m3fn; in e4m3fnuz it is -240.
    """
    (first, counts), cached = windows(call), isinstance(call, CACHED)
    wanted = set()
    for row, (start, count) in enumerate(zip(first, counts, strict=True)):
        for number in call.candidates[row * len(call.candidates) // len(counts)].tolist()[: -(-count // block)]:
            local = (number - (0 if relative or cached else start // block)) * block
            request = row // call.q.shape[1] if cached else 0
            wanted |= {(request, start + local + place) for place in range(block) if 0 <= local + place < count}
    if not cached:
        kept = torch.tensor([(0, key) in wanted for key in range(call.k.shape[0])])
        if isinstance(call, MxSparseCall):
            return call._replace(k_scale=call.k_scale.masked_fill(~kept, -1))
        octets = call.k.view(torch.uint8).masked_fill(~kept[:, None], 0x7F if call.k.dtype == torch.float8_e4m3fn else 0x80)
        return call._replace(k=octets.view(call.k.dtype), k_scale=call.k_scale.masked_fill(~kept, float("nan")))
    kv_cache, page = call.kv_cache, call.kv_cache.shape[1]
    width, memory = kv_cache.shape[3] - 4, torch.full_like(judge.storage_of(kv_cache, torch.uint8), 0xFF)
    source = judge.storage_of(kv_cache, torch.uint8)
    for request, key in wanted:
        start = int(call.block_table[request, key // page]) * kv_cache.stride(0)
        inside = torch.tensor([key % page])
        values = start + mx_paged.value_places(layout, inside, width, page)
        scales = start + page * width + mx_paged.scale_places(layout, inside, 4, page)
        for places in (values, scales):
            memory[places] = source[places]
    return call._replace(kv_cache=memory.as_strided(kv_cache.shape, kv_cache.stride()))
