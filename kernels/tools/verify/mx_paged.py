"""Calls of paged MQA logits in MX formats, whose cache is filled byte by byte by each engine's own formula."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ...mx_paged_logits import mx_paged_mqa_logits
from . import judge, paged
from .mx import dequantized, key_bytes, scale_place, value_place
from .mx_logits import PAIRS, random_values, values_of
from .paged import GARBAGE

APART = "flydsl"  # whose scales are a tensor of their own


class MxPagedCall(NamedTuple):
    """The tensors that mx_paged_mqa_logits takes by position."""

    q: torch.Tensor
    q_scale: torch.Tensor
    kv_cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor


def value_places(layout: str, key: torch.Tensor, width: int, block: int) -> torch.Tensor:
    """Where a block has the bytes of its keys ``key`` [n]: [n, width]."""
    place: torch.Tensor = value_place(layout, key[:, None], torch.arange(width, device=key.device), width, block)
    return place


def scale_places(layout: str, key: torch.Tensor, groups: int, block: int) -> torch.Tensor:
    """Where a block's scales have those of its keys ``key`` [n]: [n, groups]."""
    place: torch.Tensor = scale_place(layout, key[:, None], torch.arange(groups, device=key.device), block)
    return place


def make_call(
    lens: Sequence[int],
    next_n: int = 1,
    heads: int = 16,
    dim: int = 64,
    block: int = 64,
    pair: tuple[str, str] = PAIRS[0],
    *,
    layout: str = "flat",
    gap: int = 0,
    rows: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> MxPagedCall:
    """Random operands whose requests have scattered blocks; every byte that is no key or scale of theirs is 0xFF.

    layout : of keys whose scales lie apart, the call is of a flat cache, which :func:`apart` lays out so
    gap : bytes between the blocks
    rows : whether lengths are of rows, earlier ones seeing fewer keys
    """
    random, layout = torch.Generator().manual_seed(seed), "flat" if layout == APART else layout
    width = key_bytes(pair[1], dim)
    used = [-(-max(length, 0) // block) for length in lens]
    pages = torch.randperm(sum(used) + 2, generator=random)
    columns = max(used, default=0) + 3
    table = torch.tensor(GARBAGE, dtype=torch.int32).repeat(len(lens), columns)[:, :columns].contiguous()
    stride = block * (width + 4) + gap
    memory = torch.full(((sum(used) + 2) * stride,), 0xFF, dtype=torch.uint8)
    taken = 0
    for request, length in enumerate(lens):
        octets, words = random_values(random, pair[1], max(length, 0), dim)
        table[request, : used[request]] = pages[taken : taken + used[request]].int()
        taken += used[request]
        position = torch.arange(max(length, 0))
        start, key = table[request].long()[position // block][:, None] * stride, position % block
        memory[start + value_places(layout, key, width, block)] = octets.view(torch.uint8)
        scales = words.contiguous()[:, None].view(torch.uint8)
        memory[start + block * width + scale_places(layout, key, 4, block)] = scales
    q, q_scale = random_values(random, pair[0], len(lens), next_n, heads, dim)
    weights = torch.randn((len(lens) * next_n, heads), generator=random)
    context_lens = torch.tensor(lens, dtype=torch.int32)
    if rows:
        context_lens = (context_lens[:, None] - 5 * torch.arange(next_n).flip(0)).int()
    q, q_scale, memory, weights, context_lens, table = (
        tensor.to(device) for tensor in (q, q_scale, memory, weights, context_lens, table)
    )
    shape, strides = (len(memory) // stride, block, 1, width + 4), (stride, width + 4, width + 4, 1)
    return MxPagedCall(q, q_scale, memory.as_strided(shape, strides), weights, context_lens, table)


def formula(call: MxPagedCall, columns: int, layout: str = "flat") -> judge.Answer:
    """:func:`.paged.formula` of keys that lie so; -inf for keys whose block the cache lacks."""
    (requests, next_n), block, device = call.q.shape[:2], call.kv_cache.shape[1], call.q.device
    q = values_of(call.q, call.q_scale).double()
    dim, width = q.shape[-1], call.kv_cache.shape[3] - 4
    name = "mxfp8" if width == dim else "mxfp4"
    seen = paged.PagedCall(call.q, *call[2:]).seen.clamp(0, min(columns, call.block_table.shape[1] * block))
    inside = (torch.arange(columns, device=device) < seen[..., None]).flatten(0, 1)
    logits, magnitude = (torch.zeros(requests * next_n, columns, dtype=torch.float64, device=device) for _ in range(2))
    memory = judge.storage_of(call.kv_cache, torch.uint8)
    weights = call.weights.double().unflatten(0, (requests, next_n))
    for request in range(requests):
        batch = slice(request * next_n, (request + 1) * next_n)
        position = torch.arange(int(seen[request].max()), device=device)
        pages = call.block_table[request].long()[position // block]
        held = (pages >= 0) & (pages < call.kv_cache.shape[0])
        logits[batch, : len(position)] = float("-inf")
        position, start = position[held], pages[held, None] * call.kv_cache.stride(0)
        octets = memory[start + value_places(layout, position % block, width, block)]
        scales = memory[start + block * width + scale_places(layout, position % block, dim // 32, block)]
        key = dequantized(octets, scales, name)
        dots = torch.einsum("nhd,jd->nhj", q[request], key).relu_()
        sizes = torch.einsum("nhd,jd->nhj", q[request].abs(), key.abs())
        logits[batch, position] = torch.einsum("nh,nhj->nj", weights[request], dots)
        magnitude[batch, position] = torch.einsum("nh,nhj->nj", weights[request].abs(), sizes)
    return judge.Answer(logits, inside, magnitude)


def apart(call: MxPagedCall, gap: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The flat cache of a call as (kv_cache, kv_scale) with scales apart, byte by byte.

    gap : bytes between the blocks of each
    """
    (blocks, block), width, device = call.kv_cache.shape[:2], call.kv_cache.shape[3] - 4, call.q.device
    key = torch.arange(block, device=device)
    flat = call.kv_cache.as_strided((blocks, block * (width + 4)), (call.kv_cache.stride(0), 1))
    values = torch.full((blocks, block * width + gap), 0xFF, dtype=torch.uint8, device=device)
    scales = torch.full((blocks, block * 4 + gap), 0xFF, dtype=torch.uint8, device=device)
    values[:, value_places(APART, key, width, block)] = flat[:, : block * width].unflatten(1, (block, width))
    scales[:, scale_places(APART, key, 4, block)] = flat[:, block * width :].unflatten(1, (block, 4))
    kv_cache = values[:, : block * width].unflatten(1, (1, width // 16, block, 16))
    return kv_cache, scales[:, : block * 4].unflatten(1, (1, 4, block))


def check(call: MxPagedCall, variant: str | None, columns: int, layout: str = "flat", **options: Any) -> torch.Tensor:
    """:func:`.paged.check` of mx_paged_mqa_logits; a call as :func:`make_call` makes it for the layout."""
    if layout == APART:
        answer, (kv_cache, kv_scale) = formula(call, columns), apart(call, gap=20)
        call, options["function"] = call._replace(kv_cache=kv_cache), partial(mx_paged_mqa_logits, kv_scale=kv_scale)
    else:
        answer, options["function"] = formula(call, columns, layout), mx_paged_mqa_logits
    return paged.check(call, variant, columns, layout=layout, answer=answer, **options)
