"""Calls whose logits are chosen, to the bit, so that what is selected from them can be told without scoring.

A row looks at two dims of its own of the keys, in which these have a digit each: ``scale * weight * (16 * high + low)``, of
integers up to 255 that every product and sum has exactly. capgate's tests judge by them, too.
"""

from collections.abc import Sequence
from typing import Any

import torch

from . import judge, paged

HEADS, DIM = 2, 32
FN = torch.float8_e4m3fn


def make_call(
    numbers: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,
    windows: Any = None,
    *,
    heads: int = HEADS,
    dim: int = DIM,
    dtype: torch.dtype = FN,
) -> judge.Call:
    """A call of S rows and N keys with ``logits[i, j] = scales[j] * weights[i] * numbers[i, j]``, on the CPU.

    numbers : [S, N], integers from 0 to 255; at most dim / 2 rows
    windows : starts and ends; all keys otherwise
    heads : of which two count; the others have queries and weights of 0
    """
    rows, keys = numbers.shape
    q, k = torch.zeros(rows, heads, dim), torch.zeros(keys, dim)
    for row in range(rows):
        q[row, 0, 2 * row] = q[row, 1, 2 * row + 1] = 1.0
        k[:, 2 * row], k[:, 2 * row + 1] = numbers[row] // 16, numbers[row] % 16
    starts, ends = windows or judge.make_windows("full", rows, keys)
    both = torch.zeros(rows, heads)
    both[:, 0], both[:, 1] = 16 * weights, weights
    return judge.Call(q.to(dtype), k.to(dtype), scales, both, starts, ends)


def make_paged_call(
    numbers: Sequence[torch.Tensor],
    lens: Any,
    next_n: int,
    block: int = 64,
    *,
    heads: int = HEADS,
    dim: int = DIM,
    dtype: torch.dtype = FN,
    scales: Sequence[torch.Tensor] | None = None,
) -> paged.PagedCall:
    """A paged call whose rows of request b have the logits ``numbers[b]``, integers from 0 to 255, on the CPU.

    scales : of the keys of each request; 1 otherwise
    """
    call = paged.make_call(lens, next_n, heads, dim, block, dtype=dtype)
    requests = len(lens)
    q, memory = torch.zeros(requests, next_n, heads, dim), judge.storage_of(call.kv_cache, torch.uint8)
    q[:, :, 0, 0] = q[:, :, 1, 1] = 1.0
    for request, number in enumerate(numbers):
        k = torch.zeros(len(number), dim)
        k[:, 0], k[:, 1] = number // 16, number % 16
        octets = k.to(dtype).view(torch.uint8)
        context = int(torch.tensor(lens[request]).max())
        for first in range(0, context, block):
            count = min(block, context - first)
            flat = memory[int(call.block_table[request, first // block]) * call.kv_cache.stride(0) :]
            flat[: count * dim] = octets[first : first + count].flatten()
            scale = torch.ones(count) if scales is None else scales[request][first : first + count]
            flat[block * dim : block * dim + 4 * count] = scale.contiguous().view(torch.uint8)
    weights = torch.zeros(requests * next_n, heads)
    weights[:, 0], weights[:, 1] = 16.0, 1.0
    return call._replace(q=q.to(dtype), weights=weights)


def logits_of(numbers: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What a call made of the same scores: heads are added up in any order, of which none rounds."""
    number = numbers.float()
    return (16 * weights[:, None] * (number // 16) + weights[:, None] * (number % 16)) * scales
