"""Calls of paged MQA logits in MX formats, whose cache is filled byte by byte by each engine's own formula."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from capgate.kernels import mx_paged_mqa_logits

from . import judge, paged
from .mx import dequantized, key_bytes, scale_place, value_place
from .mx_logits import PAIRS, random_values, values_of
from .paged import GARBAGE


class MxPagedCall(NamedTuple):
    """The tensors that mx_paged_mqa_logits takes by position."""

    q: torch.Tensor
    q_scale: torch.Tensor
    kv_cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor


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
    seed: int = 0,
) -> MxPagedCall:
    """Random operands whose requests have scattered blocks; every byte that is no key or scale of theirs is 0xFF.

    gap : bytes between the blocks
    rows : whether lengths are of rows, earlier ones seeing fewer keys
    """
    random = np.random.default_rng(seed)
    width = key_bytes(pair[1], dim)
    used = [-(-max(length, 0) // block) for length in lens]
    pages = random.permutation(sum(used) + 2).tolist()
    table = torch.tensor(GARBAGE, dtype=torch.int32).repeat(len(lens), max(used, default=0) + 3)[:, : max(used, default=0) + 3]
    table = table.contiguous()
    stride = block * (width + 4) + gap
    memory = np.full((sum(used) + 2) * stride, 0xFF, np.uint8)
    for request, length in enumerate(lens):
        octets, words = random_values(random, pair[1], max(length, 0), dim)
        octets, scales = octets.view(torch.uint8).numpy(), words.contiguous().numpy()[:, None].view(np.uint8)
        for position in range(max(length, 0)):
            if position % block == 0:
                table[request, position // block] = pages.pop()
            start, key = int(table[request, position // block]) * stride, position % block
            for byte in range(width):
                memory[start + value_place(layout, key, byte, width, block)] = octets[position, byte]
            for group in range(4):
                memory[start + block * width + scale_place(layout, key, group, block)] = scales[position, group]
    kv_cache = torch.from_numpy(memory).as_strided(
        (len(memory) // stride, block, 1, width + 4), (stride, width + 4, width + 4, 1)
    )
    q, q_scale = random_values(random, pair[0], len(lens), next_n, heads, dim)
    weights = torch.from_numpy(random.standard_normal((len(lens) * next_n, heads))).float()
    context_lens = torch.tensor(lens, dtype=torch.int32)
    if rows:
        context_lens = (context_lens[:, None] - 5 * torch.arange(next_n).flip(0)).int()
    return MxPagedCall(q, q_scale, kv_cache, weights, context_lens, table)


def formula(call: MxPagedCall, columns: int, layout: str = "flat") -> judge.Answer:
    """:func:`.paged.formula` of keys that lie so; -inf for keys whose block the cache lacks."""
    (requests, next_n), block = call.q.shape[:2], call.kv_cache.shape[1]
    q = values_of(call.q, call.q_scale).double()
    dim, width = q.shape[-1], call.kv_cache.shape[3] - 4
    name = "mxfp8" if width == dim else "mxfp4"
    seen = paged.PagedCall(call.q, *call[2:]).seen.clamp(0, min(columns, call.block_table.shape[1] * block))
    inside = (torch.arange(columns) < seen[..., None]).flatten(0, 1)
    logits, magnitude = (torch.zeros(requests * next_n, columns, dtype=torch.float64) for _ in range(2))
    memory = judge.storage_of(call.kv_cache, torch.uint8).numpy()
    places = np.array([[value_place(layout, key, byte, width, block) for byte in range(width)] for key in range(block)])
    of_scales = np.array([[scale_place(layout, key, group, block) for group in range(dim // 32)] for key in range(block)])
    weights = call.weights.double().unflatten(0, (requests, next_n))
    for request in range(requests):
        batch = slice(request * next_n, (request + 1) * next_n)
        position = np.arange(int(seen[request].max()))
        pages = call.block_table[request].numpy().astype(np.int64)[position // block]
        held = (pages >= 0) & (pages < call.kv_cache.shape[0])
        logits[batch, : len(position)] = float("-inf")
        position, start = position[held], pages[held, None] * call.kv_cache.stride(0)
        octets = memory[start + places[position % block]]
        scales = memory[start + block * width + of_scales[position % block]]
        key = torch.from_numpy(dequantized(octets, scales, name))
        dots = torch.einsum("nhd,jd->nhj", q[request], key).relu_()
        sizes = torch.einsum("nhd,jd->nhj", q[request].abs(), key.abs())
        logits[batch, position] = torch.einsum("nh,nhj->nj", weights[request], dots)
        magnitude[batch, position] = torch.einsum("nh,nhj->nj", weights[request].abs(), sizes)
    return judge.Answer(logits, inside, magnitude)


def check(call: MxPagedCall, variant: str | None, columns: int, layout: str = "flat", **options: Any) -> torch.Tensor:
    """:func:`.paged.check` of mx_paged_mqa_logits."""
    answer = formula(call, columns, layout)
    return paged.check(call, variant, columns, layout=layout, function=mx_paged_mqa_logits, answer=answer, **options)
