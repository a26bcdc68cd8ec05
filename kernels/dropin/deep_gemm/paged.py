"""The paged functions, and the schedule that they share."""

from typing import Annotated, Any, NamedTuple

import torch

from ...common.cache import LENGTHS
from ...common.checks import check_strided
from ...common.operands import Operand, Operands
from ...paged_mqa_logits import api
from ...paged_mqa_logits.operands import QUERIES
from ..families import NotServed
from .kinds import KEY_TILE, has_own_format, queries_of

_INDICES = Operand((("B",),), (torch.int32,))


class _Rows(NamedTuple):
    q: Annotated[torch.Tensor, QUERIES]
    indices: Annotated[torch.Tensor, _INDICES]


class _Lengths(NamedTuple):
    context_lens: Annotated[torch.Tensor, LENGTHS]
    indices: Annotated[torch.Tensor, _INDICES]


_ROWS, _LENGTHS = Operands(_Rows), Operands(_Lengths)


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

    q : a pair of [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz, and None; or the queries alone

    The others are as in :func:`fp8_paged_mqa_logits`. Returns float32 logits [B * next_n, max_context_len] in rows of a
    multiple of 256 elements, cells that a row does not see as the allocation gave them. Raises NotServed for operands in an MX
    format, and TypeError or ValueError as :func:`capgate.kernels.fp8_paged_mqa_logits`.
    """
    operands = (queries_of(q), kv_cache, weights, context_lens, block_table, schedule_meta)
    return score(*operands, max_context_len, False, indices)


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
    operands = (check_strided("q", q), kv_cache, weights, context_lens, block_table, schedule_meta)
    return score(*operands, max_context_len, clean_logits, indices)


def score(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor | None,
    max_context_len: int,
    clean_logits: bool,
    indices: torch.Tensor | None,
    logits_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The logits of queries that are served."""
    if indices is not None:
        _ROWS.check((q, indices))
        _check_single(q.shape[1])
    return api.fp8_paged_mqa_logits(
        q,
        kv_cache,
        weights,
        context_lens,
        block_table,
        max_context_len=max_context_len,
        clean_logits=clean_logits,
        schedule=schedule_meta if has_own_format(q.device) else None,
        schedule_chunk_keys=KEY_TILE,
        logits_dtype=logits_dtype,
    )


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
