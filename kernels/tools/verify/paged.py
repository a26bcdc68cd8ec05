"""Paged MQA logits in float64 straight from the formula, calls to try them on, and what a call must not write.

Independent of capgate's own layout and reference: of capgate only the public functions are used. capgate's tests judge by it,
too.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ...paged_mqa_logits import fp8_paged_mqa_logits
from . import judge

GARBAGE = (2**31 - 1, -(2**31), -1, 10**9, -7)  # of table entries past a request's keys, and of blocks that no cache has


def byte_of(key: torch.Tensor, byte: torch.Tensor, dim: int, layout: str) -> torch.Tensor:
    """Where a block has a byte of a key of ``dim`` bytes."""
    if layout == "flat":
        return key * dim + byte
    return key // 16 * 16 * dim + byte // 16 * 256 + key % 16 * 16 + byte % 16


class PagedCall(NamedTuple):
    """The five tensors that fp8_paged_mqa_logits takes by position."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor

    @property
    def seen(self) -> torch.Tensor:
        """How many keys each row sees, int64 [B, next_n]; 0 or less for none."""
        if self.context_lens.ndim == 2:
            return self.context_lens.long()
        steps = torch.arange(self.q.shape[1], device=self.q.device)
        return self.context_lens.long()[:, None] - self.q.shape[1] + 1 + steps


def make_call(
    lens: Sequence[int] | Sequence[Sequence[int]],
    next_n: int = 1,
    heads: int = 16,
    dim: int = 32,
    block: int = 64,
    *,
    gap: int = 0,
    spare_entries: int = 3,
    layout: str = "flat",
    dtype: torch.dtype = torch.float8_e4m3fn,
    device: str = "cpu",
    seed: int = 0,
) -> PagedCall:
    """Random operands whose requests have scattered blocks; every byte that is no key or scale of theirs is 0xFF, a NaN.

    lens : context_lens, one for each request or one for each row
    gap : bytes between the blocks
    spare_entries : columns of the table that no request needs
    layout : of a block's keys, "flat" or "preshuffled"
    """
    generator = torch.Generator().manual_seed(seed)
    context_lens = torch.tensor(lens, dtype=torch.int32)
    contexts: list[int] = [max(0, row) if isinstance(row, int) else max(0, *row) for row in lens]
    used = [-(-context // block) for context in contexts]
    num_blocks = sum(used) + 2
    pages = torch.randperm(num_blocks, generator=generator).tolist()
    table = torch.tensor(GARBAGE, dtype=torch.int32).repeat(len(lens), max(used, default=0) + spare_entries)
    table = table[:, : max(used, default=0) + spare_entries].contiguous()
    requests = judge.make_call(len(lens) * next_n, sum(contexts), heads, dim, "empty", dtype=dtype, seed=seed)
    stride = block * (dim + 4) + gap
    memory = torch.full((num_blocks * stride,), 0xFF, dtype=torch.uint8)
    kv_cache = memory.as_strided((num_blocks, block, 1, dim + 4), (stride, dim + 4, dim + 4, 1))
    octets, scales, key = requests.k.view(torch.uint8), requests.k_scale[:, None].view(torch.uint8), 0
    for request, context in enumerate(contexts):
        for position in range(0, context, block):
            page, count = pages.pop(), min(block, context - position)
            table[request, position // block] = page
            flat = memory[page * stride :]
            flat[byte_of(torch.arange(count)[:, None], torch.arange(dim), dim, layout)] = octets[key : key + count]
            flat[block * dim : block * dim + count * 4] = scales[key : key + count].flatten()
            key += count
    q = requests.q.view(torch.uint8).unflatten(0, (len(lens), next_n)).view(dtype)
    tensors = (q, kv_cache, requests.weights, context_lens, table)
    if device == "cpu":
        return PagedCall(*tensors)
    on_device = [tensor.to(device) for tensor in tensors]
    on_device[1] = memory.to(device).as_strided(kv_cache.shape, kv_cache.stride())
    return PagedCall(*on_device)


def without_blocks(call: PagedCall, every: int = 2) -> PagedCall:
    """The call with every so manieth of its blocks replaced by one that the cache does not have, just past it or far out."""
    blocks, table = call.kv_cache.shape[0], call.block_table.clone()
    absent = torch.tensor((*GARBAGE, blocks), dtype=torch.int32, device=table.device)
    lost = torch.arange(0, table.numel(), every, device=table.device)
    table.view(-1)[lost] = absent[torch.arange(len(lost), device=table.device) % len(absent)]
    return call._replace(block_table=table)


def read_keys(
    kv_cache: torch.Tensor, pages: torch.Tensor, inside: torch.Tensor, dtype: torch.dtype, layout: str = "flat"
) -> tuple[torch.Tensor, ...]:
    """Keys [..., D] and scales [...] in float64 at positions ``inside`` of blocks ``pages``, from the cache's raw bytes."""
    memory = judge.storage_of(kv_cache, torch.uint8)
    block, dim = kv_cache.shape[1], kv_cache.shape[3] - 4
    start = kv_cache.storage_offset() + pages.long() * kv_cache.stride(0)
    device = kv_cache.device
    octets = memory[start[..., None] + byte_of(inside[..., None], torch.arange(dim, device=device), dim, layout)]
    scales = memory[(start + block * dim + inside * 4)[..., None] + torch.arange(4, device=device)]
    return octets.view(dtype).float().double(), scales.view(torch.float32)[..., 0].double()


def formula(call: PagedCall, columns: int, layout: str = "flat") -> judge.Answer:
    """judge.Answer for the first ``columns`` cells of every row, in float64; -inf for keys whose block the cache lacks."""
    requests, next_n = call.q.shape[:2]
    device = call.q.device
    rows = requests * next_n
    logits = torch.zeros(rows, columns, dtype=torch.float64, device=device)
    magnitude = torch.zeros_like(logits)
    room = call.block_table.shape[1] * call.kv_cache.shape[1]
    seen = call.seen.clamp(0, min(columns, room))
    inside = (torch.arange(columns, device=device) < seen[..., None]).flatten(0, 1)
    q = call.q.float().double()
    weights = call.weights.double().unflatten(0, (requests, next_n))
    for request in range(requests):
        context = int(seen[request].max())
        if context == 0:
            continue
        position = torch.arange(context, device=device)
        pages = call.block_table[request].long()[position // call.kv_cache.shape[1]]
        held = (pages >= 0) & (pages < call.kv_cache.shape[0])
        position, pages = position[held], pages[held]
        key, scale = read_keys(call.kv_cache, pages, position % call.kv_cache.shape[1], call.q.dtype, layout)
        dots = torch.einsum("nhd,jd->nhj", q[request], key).relu_()
        sizes = torch.einsum("nhd,jd->nhj", q[request].abs(), key.abs())
        batch = slice(request * next_n, (request + 1) * next_n)
        logits[batch, :context] = float("-inf")
        logits[batch, position] = torch.einsum("nh,nhj->nj", weights[request], dots) * scale
        magnitude[batch, position] = torch.einsum("nh,nhj->nj", weights[request].abs(), sizes) * scale.abs()
    return judge.Answer(logits, inside, magnitude)


def check(
    call: Any,
    variant: str | None,
    max_context_len: int,
    *,
    clean_logits: bool = False,
    layout: str = "flat",
    schedule: torch.Tensor | None = None,
    schedule_chunk_keys: int = 128,
    out: torch.Tensor | None = None,
    function: Callable[..., torch.Tensor] = fp8_paged_mqa_logits,
    answer: judge.Answer | None = None,
) -> torch.Tensor:
    """As judge.check: run into sentinels, hold what was written against the formula, and return the output.

    function, answer : another function of a paged cache, and what is right, where the formula cannot read its operands
    """
    rows = call.q.shape[0] * call.q.shape[1]
    out = judge.sentinels(rows, max_context_len, str(call.q.device)) if out is None else out
    options: dict[str, Any] = {"max_context_len": max_context_len, "clean_logits": clean_logits, "layout": layout}
    options |= {"schedule": schedule, "schedule_chunk_keys": schedule_chunk_keys}
    run = partial(function, *call, **options, variant=variant)
    right = partial(formula, call, max_context_len, layout) if answer is None else lambda: answer
    judge.hold(call, run, out, right, clean_logits=clean_logits, variant=variant, lacking=True)
    return out
