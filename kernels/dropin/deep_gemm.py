"""DeepGEMM's signatures for the MQA logits (its ``csrc/apis/attention.hpp``), over this package's functions.

SGLang, and vLLM on CUDA, call them so. Errors that this package's functions raise use their own argument names.
"""

from typing import Annotated, NamedTuple

import torch

from .. import mqa_logits, paged_mqa_logits
from ..common.cache import LENGTHS
from ..common.checks import check_integer, check_strided, pair_of
from ..common.hardware import multiprocessors
from ..common.logits import ROW_ALIGNMENT
from ..common.operands import Operand, Operands
from ..paged_mqa_logits.operands import QUERIES

KEY_TILE = 256  # DeepGEMM's, by which its rows are longer than the keys are many

_INDICES = Operand((("B",),), (torch.int32,))


class _Rows(NamedTuple):
    q: Annotated[torch.Tensor, QUERIES]
    indices: Annotated[torch.Tensor, _INDICES]


class _Lengths(NamedTuple):
    context_lens: Annotated[torch.Tensor, LENGTHS]
    indices: Annotated[torch.Tensor, _INDICES]


_ROWS, _LENGTHS = Operands(_Rows), Operands(_Lengths)

_num_sms: int | None = None


def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
) -> torch.Tensor:
    """Score every query against the keys in its window.

    q : [S, H, D], float8_e4m3fn or float8_e4m3fnuz
    kv : the keys [N, D] in q's dtype and their scales [N] (or [N, 1]), float32
    weights : [S, H], float32
    cu_seq_len_k_start, cu_seq_len_k_end : [S], int32
    clean_logits : True sets the cells outside the window to -inf; False leaves them as the allocation gave them
    max_seqlen_k : more than 0 for the compressed output of this many columns, where column j of row i means key
        ``cu_seq_len_k_start[i] + j``; needs ``clean_logits=False``

    Returns float32 logits [S, N] in rows of N + 256 elements, or [S, max_seqlen_k] in rows of max_seqlen_k, each rounded up to
    a multiple of 256. Raises TypeError or ValueError as :func:`capgate.kernels.fp8_mqa_logits`.
    """
    k, k_scale = pair_of("kv", kv)
    check_strided("q", q)
    max_seqlen_k = check_integer("max_seqlen_k", max_seqlen_k, 0)
    arguments = (q, k, k_scale, weights, cu_seq_len_k_start, cu_seq_len_k_end)
    if max_seqlen_k:
        return mqa_logits.fp8_mqa_logits(*arguments, clean_logits=clean_logits, max_window=max_seqlen_k)
    rows, keys = q.shape[:1].numel(), k.shape[:1].numel()  # of what has no dimensions 1, for the function to refuse
    width = (keys + KEY_TILE + ROW_ALIGNMENT - 1) // ROW_ALIGNMENT * ROW_ALIGNMENT
    out = torch.empty((rows, width), dtype=torch.float32, device=q.device)[:, :keys]
    return mqa_logits.fp8_mqa_logits(*arguments, clean_logits=clean_logits, out=out)


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
    """Score the last queries of every request against its keys in a paged cache.

    q : [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz
    kv_cache : [num_blocks, block, 1, D + 4], uint8, its blocks flat
    weights : [B * next_n, H], float32
    context_lens : [B] or [B, next_n], int32, as in :func:`capgate.kernels.fp8_paged_mqa_logits`
    block_table : [B, max_blocks], int32
    schedule_meta : what :func:`get_paged_mqa_logits_metadata` of this module returned for these ``context_lens``
    clean_logits : True sets the cells that a row does not see to -inf; False leaves them as the allocation gave them
    indices : [B], int32, with next_n of 1: the request that each row belongs to. In DeepGEMM it pairs neighbouring rows of one
        request; the rows' own lengths and blocks say what they see, so the logits are the same without it.

    Returns float32 logits [B * next_n, max_context_len] in rows of a multiple of 256 elements. Raises TypeError or ValueError
    as :func:`capgate.kernels.fp8_paged_mqa_logits`.
    """
    if indices is not None:
        _ROWS.check((q, indices))
        _check_single(q.shape[1])
    return paged_mqa_logits.fp8_paged_mqa_logits(
        q,
        kv_cache,
        weights,
        context_lens,
        block_table,
        max_context_len=max_context_len,
        clean_logits=clean_logits,
        schedule=schedule_meta,
    )


def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_sms: int, indices: torch.Tensor | None = None
) -> torch.Tensor:
    """The work schedule of :func:`fp8_paged_mqa_logits`: int32 [num_sms + 1, 2], not to be looked into.

    It is what :func:`capgate.kernels.paged_mqa_schedule` makes: DeepGEMM's kernels cannot read it, nor ours DeepGEMM's.
    """
    if indices is not None:
        _LENGTHS.check((context_lens, indices))
        _check_single(context_lens.shape[1] if context_lens.ndim == 2 else 1)
    return paged_mqa_logits.paged_mqa_schedule(context_lens, block_kv, num_sms)


def _check_single(next_n: int) -> None:
    if next_n != 1:
        raise ValueError(f"indices: got a tensor with {next_n} rows to a request, needs None or next_n of 1")


def get_num_sms() -> int:
    """How many SMs kernels are to use: what :func:`set_num_sms` set, else all of the current GPU; 1 without a GPU."""
    if _num_sms is not None:
        return _num_sms
    if not torch.cuda.is_available():
        return 1
    return multiprocessors(torch.device("cuda", torch.cuda.current_device()))


def set_num_sms(num_sms: int) -> None:
    """Set what :func:`get_num_sms` returns, for schedules with fewer workers.

    Raises TypeError for what is no integer, ValueError for less than 1.
    """
    global _num_sms
    _num_sms = check_integer("num_sms", num_sms, 1)
