"""Logits of listed blocks in float64: the dense formula's, gathered as the lists say, and what a call must not write or read.

Independent of capgate's own reference: of capgate only the public functions are used. capgate's tests judge by it, too. Calls
are made on the CPU, where the formula goes through the lists one by one, and run on any device.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ...sparse_logits import (
    mx_paged_sparse_mqa_logits,
    mx_sparse_mqa_logits,
    paged_sparse_mqa_logits,
    sparse_mqa_logits,
)
from . import judge, mx_logits, mx_paged, paged


class SparseCall(NamedTuple):
    """The seven tensors that sparse_mqa_logits takes by position."""

    q: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor
    candidates: torch.Tensor


class PagedSparseCall(NamedTuple):
    """The six tensors that paged_sparse_mqa_logits takes by position."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    candidates: torch.Tensor


class MxSparseCall(NamedTuple):
    """The eight tensors that mx_sparse_mqa_logits takes by position."""

    q: torch.Tensor
    q_scale: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor
    candidates: torch.Tensor


class MxPagedSparseCall(NamedTuple):
    """The seven tensors that mx_paged_sparse_mqa_logits takes by position."""

    q: torch.Tensor
    q_scale: torch.Tensor
    kv_cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    candidates: torch.Tensor


CACHED = (PagedSparseCall, MxPagedSparseCall)
FUNCTIONS: dict[type, Any] = {
    SparseCall: sparse_mqa_logits,
    PagedSparseCall: paged_sparse_mqa_logits,
    MxSparseCall: mx_sparse_mqa_logits,
    MxPagedSparseCall: mx_paged_sparse_mqa_logits,
}


def lists(counts: Sequence[int], listed: int, block: int, first: Sequence[int] | None = None, seed: int = 0) -> torch.Tensor:
    """For each row a random choice of the blocks of so many keys, ascending, and behind it what must not be looked at.

    first : the number of each row's first block
    """
    generator = torch.Generator().manual_seed(seed)
    result = torch.tensor(paged.GARBAGE, dtype=torch.int32).repeat(len(counts), listed)[:, :listed].contiguous()
    for row, count in enumerate(counts):
        blocks = -(-max(count, 0) // block)
        chosen = torch.randperm(blocks, generator=generator)[:listed].sort().values
        result[row, : len(chosen)] = chosen + (first[row] if first else 0)
    return result


def windows(call: Any) -> tuple[list[int], list[int]]:
    """(first key, how many) of each row of a call of any of the functions, in Python's integers."""
    if isinstance(call, CACHED):
        room = call.block_table.shape[1] * call.kv_cache.shape[1]
        of_requests = paged.PagedCall(call.q, call.kv_cache, call.weights, call.context_lens, call.block_table)
        seen = of_requests.seen.flatten().clamp(0, room).tolist()
        return [0] * len(seen), seen
    first = [max(start, 0) for start in call.starts.tolist()]
    ends = [min(end, call.k.shape[0]) for end in call.ends.tolist()]
    return first, [max(end - start, 0) for start, end in zip(first, ends, strict=True)]


def formula(call: Any, block: int, *, relative: bool, layout: str = "flat") -> judge.Answer:
    """judge.Answer of every cell: the logits of all keys, from where the lists point. Inside are the cells to be written."""
    (first, counts), (lists_given, listed) = windows(call), call.candidates.shape
    whole = _of_all_keys(call, max(counts, default=0), layout)
    shape = (len(counts), listed * block)
    logits, magnitude = torch.full(shape, float("-inf"), dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    inside = torch.zeros(shape, dtype=torch.bool)
    for row, (start, count) in enumerate(zip(first, counts, strict=True)):
        for entry, number in enumerate(call.candidates[row * lists_given // len(counts)].tolist()[: -(-count // block)]):
            inside[row, entry * block : (entry + 1) * block] = True
            local = (number - (0 if relative else start // block)) * block
            for place in range(block):
                if 0 <= local + place < count:
                    logits[row, entry * block + place] = whole.logits[row, start + local + place]
                    magnitude[row, entry * block + place] = whole.magnitude[row, start + local + place]
    return judge.Answer(logits, inside, magnitude)


def _of_all_keys(call: Any, columns: int, layout: str) -> judge.Answer:
    """The dense formula's."""
    operands = call[:-1]
    if isinstance(call, MxPagedSparseCall):
        return mx_paged.formula(mx_paged.MxPagedCall(*operands), columns, layout)
    if isinstance(call, PagedSparseCall):
        return paged.formula(paged.PagedCall(*operands), columns, layout)
    if isinstance(call, MxSparseCall):
        return judge.formula(mx_logits.meaning(mx_logits.MxCall(*operands)))
    return judge.formula(judge.Call(*operands))


def check(
    call: Any,
    variant: str | None,
    block: int = 8,
    *,
    relative: bool = True,
    layout: str = "flat",
    clean_logits: bool = False,
    out: torch.Tensor | None = None,
    device: str = "cpu",
    **schedule: Any,
) -> torch.Tensor:
    """As judge.check: run into sentinels, hold what was written against the formula, and return the output.

    device : that the call is run on
    """
    cached = isinstance(call, CACHED)
    rows, listed = len(call.weights), call.candidates.shape[1]
    answer = formula(call, block, relative=relative or cached, layout=layout)
    answer = judge.Answer(*(tensor.to(device) for tensor in answer))
    call = moved(call, device)
    out = judge.sentinels(rows, listed * block, device) if out is None else out
    options: dict[str, Any] = {"candidate_block": block, "clean_logits": clean_logits, "variant": variant, **schedule}
    options |= {"layout": layout} if cached else {"relative": relative}
    run = partial(FUNCTIONS[type(call)], *call, **options)
    judge.hold(call, run, out, lambda: answer, clean_logits=clean_logits, variant=variant, lacking=True)
    return out


def moved(call: Any, device: str) -> Any:
    """A call with its tensors on a device, laid out as they are."""
    on_device = type(call)(*(tensor.to(device) for tensor in call))
    if not isinstance(call, CACHED):
        return on_device
    memory, cache = judge.storage_of(call.kv_cache, torch.uint8).to(device), call.kv_cache
    return on_device._replace(kv_cache=memory.as_strided(cache.shape, cache.stride(), cache.storage_offset()))


def make_call(
    windows_of: str | Sequence[tuple[int, int]],
    rows: int,
    keys: int,
    listed: int,
    block: int = 8,
    heads: int = 16,
    dim: int = 32,
    *,
    relative: bool = True,
    dtype: torch.dtype = torch.float8_e4m3fn,
    pair: tuple[str, str] | None = None,
    seed: int = 0,
) -> Any:
    """Random packed operands, windows of one of judge's kinds or given ones, and lists of their blocks.

    pair : the formats of queries and keys that are in MX formats
    """
    kinds: Any
    dense: Any
    sizes, kind = (rows, keys, heads, dim), windows_of if isinstance(windows_of, str) else "full"
    if pair:
        kinds, dense = MxSparseCall, mx_logits.make_call(*sizes, pair, kind, seed=seed)
    else:
        kinds, dense = SparseCall, judge.make_call(*sizes, kind, dtype=dtype, seed=seed)
    if not isinstance(windows_of, str):
        starts, ends = torch.tensor(windows_of, dtype=torch.int32).unbind(1)
        dense = dense._replace(starts=starts.contiguous(), ends=ends.contiguous())
    call = kinds(*dense, torch.zeros((rows, listed), dtype=torch.int32))
    first, counts = windows(call)
    numbers = None if relative else [start // block for start in first]
    return call._replace(candidates=lists(counts, listed, block, numbers, seed))


def make_paged_call(
    lens: Sequence[int] | Sequence[Sequence[int]],
    listed: int,
    block: int = 8,
    next_n: int = 1,
    *,
    block_of_cache: int = 64,
    **options: Any,
) -> Any:
    """:func:`.paged.make_call`, or with a ``pair`` :func:`.mx_paged.make_call`, with lists of its rows' blocks.

    block_of_cache : ``block`` of those
    """
    kind: Any
    make: Any
    kind, make = (MxPagedSparseCall, mx_paged.make_call) if "pair" in options else (PagedSparseCall, paged.make_call)
    dense: Any = make(lens, next_n, block=block_of_cache, **options)
    call = kind(*dense, torch.zeros((1, listed), dtype=torch.int32))
    return call._replace(candidates=lists(windows(call)[1], listed, block))
