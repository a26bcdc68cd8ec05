"""The paged functions, and the schedule that they share."""

import math
from typing import Annotated, Any, NamedTuple

import torch

from ...common.cache import LENGTHS
from ...common.checks import check_integer, check_strided
from ...common.operands import Operand, Operands
from ...mx_paged_logits import api as mx_api
from ...mx_paged_logits.operands import QUERIES as MX_QUERIES
from ...paged_mqa_logits import api
from ...paged_mqa_logits.operands import QUERIES
from ..families import NotServed
from .kinds import KEY_TILE, MX_KEY_TILE, ROW_BYTES, Queries, current_dtype, has_own_format, queries_of, up

_INDICES = Operand((("B",),), (torch.int32,))


class _Rows(NamedTuple):
    q: Annotated[torch.Tensor, QUERIES]
    indices: Annotated[torch.Tensor, _INDICES]


class _MxRows(NamedTuple):
    q: Annotated[torch.Tensor, MX_QUERIES]
    indices: Annotated[torch.Tensor, _INDICES]


class _Lengths(NamedTuple):
    context_lens: Annotated[torch.Tensor, LENGTHS]
    indices: Annotated[torch.Tensor, _INDICES]


_ROWS, _MX_ROWS, _LENGTHS = Operands(_Rows), Operands(_MxRows), Operands(_Lengths)


def fp8_fp4_paged_mqa_logits(
    q: Any,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache, in DeepGEMM 2.8's signature.

    q : a pair of [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz, and None; or the queries alone. In MX formats a pair of
        [B, next_n, H, D], float8_e4m3fn, or [B, next_n, H, D / 2], int8, and of their scales [B, next_n, H], int32
    kv_cache : in MX formats [num_blocks, block, 1, D + 4] or [num_blocks, block, 1, D / 2 + 4], uint8, its blocks flat

    The others are as in :func:`fp8_paged_mqa_logits`. Returns float32 logits [B * next_n, max_context_len] in rows of a
    multiple of 256 elements, cells that a row does not see as the allocation gave them; in MX formats with bfloat16 weights
    bfloat16 ones, in rows of a multiple of 1536 elements. Raises TypeError or ValueError as
    :func:`capgate.kernels.fp8_paged_mqa_logits`, or :func:`capgate.kernels.mx_paged_mqa_logits`.
    """
    queries = queries_of(q)
    dtype = current_dtype(queries, weights)
    operands = (queries, kv_cache, weights, context_lens, block_table, schedule_meta)
    tile = MX_KEY_TILE if dtype is torch.bfloat16 else KEY_TILE
    return score(*operands, max_context_len, False, indices, dtype, tile)


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache, in the signature of DeepGEMM 2.1 to 2.6.

    q : [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz
    kv_cache : [num_blocks, block, 1, D + 4], uint8, its blocks flat
    weights : [B * next_n, H], float32 or bfloat16
    context_lens : [B] or [B, next_n], int32, as in :func:`capgate.kernels.fp8_paged_mqa_logits`
    block_table : [B, max_blocks], int32
    schedule_meta : what :func:`get_paged_mqa_logits_metadata` returned for these ``context_lens``, this module's, DeepGEMM's or
        another's in its format, for any number of workers. Not looked at where DeepGEMM has another format.
    clean_logits : True sets the cells that a row does not see to -inf; False leaves them as the allocation gave them
    indices : [B], int32, with next_n of 1: the request that each row belongs to. In DeepGEMM it pairs neighbouring rows of one
        request; the rows' own lengths and blocks say what they see, so the logits are the same without it.

    Returns float32 logits [B * next_n, max_context_len] in rows of a multiple of 256 elements. Raises TypeError or ValueError
    as :func:`capgate.kernels.fp8_paged_mqa_logits`.
    """
    operands = (Queries(check_strided("q", q), None), kv_cache, weights, context_lens, block_table, schedule_meta)
    return score(*operands, max_context_len, clean_logits, indices)


def score(
    queries: Queries,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor | None,
    max_context_len: int,
    clean_logits: bool,
    indices: torch.Tensor | None,
    logits_dtype: torch.dtype = torch.float32,
    tile: int = KEY_TILE,
) -> torch.Tensor:
    """The logits in memory as DeepGEMM allocates it.

    tile : keys of which rows are a multiple, as they are of ROW_BYTES
    """
    q, of_mx = queries.values, queries.scales is not None
    if indices is not None:
        (_MX_ROWS if of_mx else _ROWS).check((q, indices))
        _check_single(q.shape[1])
    operands = (kv_cache, weights, context_lens, block_table)
    options: dict[str, Any] = {
        "max_context_len": max_context_len,
        "clean_logits": clean_logits,
        "schedule": schedule_meta if has_own_format(q.device) else None,
        "schedule_chunk_keys": KEY_TILE,
        "logits_dtype": logits_dtype,
    }
    if tile != KEY_TILE and q.ndim == 4:  # a new output of ours has shorter rows
        columns = check_integer("max_context_len", max_context_len, 0)
        step = up(columns, math.lcm(tile, ROW_BYTES // logits_dtype.itemsize))
        room = torch.empty((q.shape[0] * q.shape[1], step), dtype=logits_dtype, device=q.device)
        options["out"] = room[:, :columns]
    if of_mx:
        return mx_api.mx_paged_mqa_logits(q, queries.scales, *operands, **options)
    return api.fp8_paged_mqa_logits(q, *operands, **options)


def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_sms: int, indices: torch.Tensor | None = None
) -> torch.Tensor:
    """The work schedule of the paged functions: int32 [num_sms + 1, 2], in DeepGEMM's format for sm90, so that its kernels can
    read it too.

    context_lens : [B] or [B, next_n], int32: the last length of a request counts
    block_kv : keys in a block of the cache; num_sms : workers that share the keys
    indices : as in :func:`fp8_paged_mqa_logits`

    Raises NotServed on devices where DeepGEMM has schedules of another kind: our functions look at none there.
    """
    if not has_own_format(check_strided("context_lens", context_lens).device):
        raise NotServed("a schedule of paged logits on this architecture, whose kernels have units of their own")
    if indices is not None:
        _LENGTHS.check((context_lens, indices))
        _check_single(context_lens.shape[1] if context_lens.ndim == 2 else 1)
    return api.paged_mqa_schedule(context_lens, block_kv, num_sms, chunk_keys=KEY_TILE)


def _check_single(next_n: int) -> None:
    if next_n != 1:
        raise ValueError(f"indices: got a tensor with {next_n} rows to a request, needs None or next_n of 1")
