"""What ``capgate verify`` times on a GPU: a call or two of each operation, with the work that they mean."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from capgate import compat

from ...candidate_blocks import apply_candidate_mask, select_candidate_blocks
from ...candidate_blocks.operation import masking, scoring
from ...common.rules import native_fp8
from ...common.schedule.operation import operation as scheduling
from ...fused_selection.operation import dense as fused_dense
from ...fused_selection.operation import paged as fused_paged
from ...key_cache import gather_keys, quantize_keys_to_cache
from ...key_cache.operation import gathering, writing
from ...key_cache.operation_mx import gathering as mx_gathering
from ...key_cache.operation_mx import writing as mx_writing
from ...key_selection import select_from_logits, select_keys, select_paged_keys
from ...key_selection.operation import operation as selecting
from ...mx_logits import mx_mqa_logits
from ...mx_logits.operation import operation as mx_dense
from ...mx_paged_logits import mx_paged_mqa_logits
from ...mx_paged_logits.operation import operation as mx_paged_operation
from ...mx_quantization import quantize_mx_keys
from ...mx_quantization.operation import operation as mx_quantizing
from ...paged_mqa_logits import paged_mqa_schedule
from ...sparse_logits import (
    mx_paged_sparse_mqa_logits,
    mx_sparse_mqa_logits,
    paged_sparse_mqa_logits,
    sparse_mqa_logits,
)
from ...sparse_logits.operation import dense as sparse
from ...sparse_logits.operation import mx_dense as mx_sparse
from ...sparse_logits.operation import mx_paged as mx_sparse_paged
from ...sparse_logits.operation import paged as sparse_paged
from ..workloads.catalogue import WORKLOADS
from ..workloads.decode import Decode, given
from ..workloads.paging import scattered_table
from ..workloads.prefill import Prefill, causal, full
from . import mx_logits, mx_paged

TOP_K = 512
LISTED = 512


class Made(NamedTuple):
    """A call, and what it means.

    flops : of its matrix products; 0 where it has none to speak of
    bytes : the fewest that it moves; 0 where that says nothing of it
    moves : which ceiling bytes are held against, "copy" or "read"
    """

    call: Callable[[], object]
    flops: int
    bytes: int
    moves: str


@dataclass(frozen=True)
class Timed:
    """A call by the name that tables have for it.

    make : makes it on a device, of the operation's variant by name
    quick : whether a short run has it, too
    mode : of the operation's examples, for what can be tuned
    where : fields of the problems that its tuning is for; without them it cannot be tuned
    """

    operation: compat.Operation[Any]
    name: str
    make: Callable[[torch.device, str], Made]
    quick: bool = False
    mode: str = "unclean"
    where: dict[str, int] = field(default_factory=dict)


def timed(quick: bool = False) -> list[Timed]:
    """All calls that are timed; of a short run those that are marked so."""
    every = [
        *(
            Timed(WORKLOADS[name].operation, words, partial(_logits, name), short, where=where)
            for name, words, short, where in LOGITS
        ),
        Timed(selecting, "2048 of 8192 logits, 4096 rows", _selection),
        Timed(fused_dense, f"{TOP_K} of 32768 keys, 4096 rows of 64 heads", _fused),
        Timed(fused_paged, f"{TOP_K} of 32768 keys, 64 requests of 64 heads", _fused_paged),
        Timed(mx_dense, "mxfp4, 4096 x 4096 causal, 64 heads", _mx_dense, mode="mxfp4-unclean", where=MANY),
        Timed(
            mx_paged_operation, "mxfp4, 64 requests of 8192 keys, 64 heads", _mx_paged, mode="mxfp4-unclean", where=MANY | ONE
        ),
        Timed(sparse, f"{LISTED} of 4096 blocks of 8 keys, 1024 rows of 32 heads", _sparse),
        Timed(sparse_paged, f"{LISTED} of 4096 blocks of 8 keys, 64 requests of 32 heads", _sparse_paged),
        Timed(mx_sparse, f"mxfp4, {LISTED} of 4096 blocks of 8 keys, 1024 rows of 32 heads", _mx_sparse),
        Timed(mx_sparse_paged, f"mxfp4, {LISTED} of 4096 blocks of 8 keys, 64 requests of 32 heads", _mx_sparse_paged),
        Timed(scoring, f"{LISTED} of 4096 blocks of 8 logits, 1024 rows", _choose_blocks),
        Timed(masking, f"all but {LISTED} of 4096 blocks of 8 logits, 1024 rows", _mask_blocks),
        Timed(scheduling, "256 requests", _schedule),
        Timed(writing, f"{KEYS} keys of 128 dims", partial(_write, "fp8")),
        Timed(gathering, f"{KEYS} keys of 128 dims", partial(_gather, "fp8")),
        Timed(mx_writing, f"mxfp4, {KEYS} keys of 128 dims", partial(_write, "mxfp4")),
        Timed(mx_gathering, f"mxfp4, {KEYS} keys of 128 dims", partial(_gather, "mxfp4")),
        Timed(mx_quantizing, f"mxfp4, {KEYS} keys of 128 dims", _quantize_mx),
    ]
    return [each for each in every if each.quick or not quick]


MANY, FEW, ONE = {"heads": 64, "dim": 128}, {"heads": 32, "dim": 128}, {"next_n": 1}
LOGITS: tuple[tuple[str, str, bool, dict[str, int]], ...] = (
    ("a", "4096 x 4096 causal, 64 heads", True, MANY),
    ("e-a", "4096 x 4096 causal, 32 heads", False, FEW),
    ("b", "2048 x 8192 causal, 64 heads", False, {}),
    ("decode-8k", "256 requests of about 8192 keys, 64 heads", True, MANY | ONE),
    ("decode-8k-h32", "256 requests of about 8192 keys, 32 heads", False, FEW | ONE),
)
KEYS = 2**18


def _fp8(device: torch.device) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, native_fp8(device))
    return dtype


def _logits(name: str, device: torch.device, variant: str) -> Made:
    workload = WORKLOADS[name]
    batch = workload.make(device, _fp8(device))
    call = batch.call(variant, False, batch.output())
    return Made(call, batch.flops, batch.least_bytes(False), workload.moves)


def _selection(device: torch.device, variant: str) -> Made:
    rows, columns = 4096, 8192
    logits = torch.randn(rows, columns, device=device)
    ends = torch.full((rows,), columns, dtype=torch.int32, device=device)
    return Made(partial(select_from_logits, logits, None, ends, top_k=2048, variant=variant), 0, logits.nbytes, "read")


def _fused(device: torch.device, variant: str) -> Made:
    batch = Prefill("", "", 4096, 32768, 64, 128, causal(4096, 32768)).make(device, _fp8(device))
    call = partial(select_keys, *batch.operands, top_k=TOP_K, fused=True, variant=variant)
    return Made(call, batch.flops, 0, "copy")


def _fused_paged(device: torch.device, variant: str) -> Made:
    batch = Decode("", "", 64, given([32768] * 64)).make(device, _fp8(device))
    options: dict[str, Any] = {"max_context_len": batch.max_context_len, "top_k": TOP_K, "fused": True, "variant": variant}
    read = 64 * 32768 * batch.kv_cache.shape[3]
    return Made(partial(select_paged_keys, *batch.operands, **options), batch.flops, read, "read")


def _mx_dense(device: torch.device, variant: str) -> Made:
    size, heads = 4096, 64
    call = mx_logits.make_call(size, size, heads, 128, windows="causal", device=str(device))
    out = torch.empty(size, size, device=device)
    cells = size * (size + 1) // 2
    moved = 4 * cells + sum(tensor.nbytes for tensor in call)
    run = partial(mx_mqa_logits, *call, clean_logits=False, out=out, variant=variant)
    return Made(run, 2 * heads * 128 * cells, moved, "copy")


def _mx_paged(device: torch.device, variant: str) -> Made:
    requests, keys, heads = 64, 8192, 64
    call = mx_paged.make_call([keys] * requests, 1, heads, 128, device=str(device))
    out = torch.empty(requests, keys, device=device)
    moved = requests * keys * (call.kv_cache.shape[3] + 4)
    run = partial(mx_paged_mqa_logits, *call, max_context_len=keys, out=out, variant=variant)
    return Made(run, 2 * heads * 128 * requests * keys, moved, "read")


def _sparse(device: torch.device, variant: str) -> Made:
    rows, keys = 1024, 32768
    batch = Prefill("", "", rows, keys, 32, 128, full(rows, keys)).make(device, _fp8(device))
    call = partial(sparse_mqa_logits, *batch.operands, _lists(rows, keys // 8, device), variant=variant)
    return Made(call, 2 * 32 * 128 * rows * 8 * LISTED, rows * 8 * LISTED * 4, "copy")


def _sparse_paged(device: torch.device, variant: str) -> Made:
    requests, keys = 64, 32768
    batch = Decode("", "", requests, given([keys] * requests), heads=32).make(device, _fp8(device))
    operands: Any = (*batch.operands, _lists(requests, keys // 8, device))
    call = partial(paged_sparse_mqa_logits, *operands, variant=variant)
    width = batch.kv_cache.shape[3]
    return Made(call, 2 * 32 * 128 * requests * 8 * LISTED, requests * 8 * LISTED * (width + 4), "read")


def _mx_sparse(device: torch.device, variant: str) -> Made:
    rows, keys = 1024, 32768
    dense = mx_logits.make_call(rows, keys, 32, 128, windows="full", device=str(device))
    operands: Any = (*dense, _lists(rows, keys // 8, device))
    call = partial(mx_sparse_mqa_logits, *operands, variant=variant)
    return Made(call, 2 * 32 * 128 * rows * 8 * LISTED, rows * 8 * LISTED * 4, "copy")


def _mx_sparse_paged(device: torch.device, variant: str) -> Made:
    requests, keys = 64, 32768
    dense = mx_paged.make_call([keys] * requests, 1, 32, 128, device=str(device))
    operands: Any = (*dense, _lists(requests, keys // 8, device))
    call = partial(mx_paged_sparse_mqa_logits, *operands, variant=variant)
    moved = requests * 8 * LISTED * (dense.kv_cache.shape[3] + 4)
    return Made(call, 2 * 32 * 128 * requests * 8 * LISTED, moved, "read")


def _lists(rows: int, blocks: int, device: torch.device) -> torch.Tensor:
    """LISTED blocks of each row, drawn at random, ascending."""
    drawn = torch.rand(rows, blocks, device=device).argsort(1)[:, :LISTED]
    return drawn.sort(1).values.int()


def _scored(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 4096 blocks of 8 keys, and the ends of windows of them all."""
    logits = torch.randn(1024, 32768, device=device)
    return logits, torch.full((1024,), 32768, dtype=torch.int32, device=device)


def _choose_blocks(device: torch.device, variant: str) -> Made:
    logits, ends = _scored(device)
    call = partial(select_candidate_blocks, logits, None, ends, top_blocks=LISTED, variant=variant)
    return Made(call, 0, logits.nbytes, "read")


def _mask_blocks(device: torch.device, variant: str) -> Made:
    logits, ends = _scored(device)
    call = partial(apply_candidate_mask, logits, None, ends, _lists(1024, 4096, device), variant=variant)
    return Made(call, 0, logits.nbytes - 1024 * LISTED * 8 * 4, "copy")


def _schedule(device: torch.device, variant: str) -> Made:
    lens = WORKLOADS["decode-8k"].lens().to(device)
    return Made(partial(paged_mqa_schedule, lens, 64, 264), 0, 0, "read")


def _cache(key_format: str, device: torch.device) -> tuple[torch.Tensor, dict[str, Any]]:
    width = 64 if key_format == "mxfp4" else 128
    cache = torch.zeros(KEYS // 64, 64, 1, width + 4, dtype=torch.uint8, device=device)
    return cache, {"key_format": key_format} if key_format != "fp8" else {"dtype": _fp8(device)}


def _write(key_format: str, device: torch.device, variant: str) -> Made:
    cache, options = _cache(key_format, device)
    k = torch.randn(KEYS, 128, device=device).bfloat16()
    slots = torch.randperm(KEYS, device=device)
    return Made(partial(quantize_keys_to_cache, k, cache, slots, **options), 0, k.nbytes + slots.nbytes + cache.nbytes, "copy")


def _gather(key_format: str, device: torch.device, variant: str) -> Made:
    cache, options = _cache(key_format, device)
    lens = torch.full((64,), KEYS // 64, dtype=torch.int32, device=device)
    table, _ = scattered_table(lens, 64, torch.Generator(device))
    return Made(partial(gather_keys, cache, table, lens, KEYS, **options), 0, 2 * cache.nbytes, "copy")


def _quantize_mx(device: torch.device, variant: str) -> Made:
    k = torch.randn(KEYS, 128, device=device).bfloat16()
    return Made(partial(quantize_mx_keys, k), 0, k.nbytes + KEYS * 68, "copy")
