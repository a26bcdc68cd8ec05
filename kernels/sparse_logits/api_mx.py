"""The public functions of queries and keys in MX formats. What becomes of a call: :mod:`.calls`."""

import torch

from ..common.schedule.operation import CHUNK_KEYS
from .calls import Calls, call
from .operands import MX_DENSE, MX_PAGED, MxDense, MxPaged
from .operation import mx_dense, mx_paged

DENSE_CALLS, PAGED_CALLS = Calls(mx_dense, MX_DENSE), Calls(mx_paged, MX_PAGED)


def mx_sparse_mqa_logits(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    candidates: torch.Tensor,
    *,
    candidate_block: int = 8,
    relative: bool = False,
    clean_logits: bool = False,
    schedule: torch.Tensor | None = None,
    schedule_chunk_keys: int = CHUNK_KEYS,
    logits_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """Score every query against the keys of some blocks of its window alone, both in MX formats.

    ``logits[i, j * c + o] = sum_h weights[i, h] * relu(dot(q[i, h], k[n]))``, q and k being values times their scales, for the
    keys ``n`` that :func:`sparse_mqa_logits` says, c being ``candidate_block``.

    Parameters
    ----------
    q : torch.Tensor, shape (S, H, Dq), float8_e4m3fn or uint8
        Queries, in mxfp8 or mxfp4, as in :func:`mx_mqa_logits`. H is 1 to 128, Dq is 32, 64 or 128.
    q_scale : torch.Tensor, shape (S, H), int32
        Four UE8M0 bytes, the first lowest.
    k : torch.Tensor, shape (N, Dk), float8_e4m3fn or uint8
        Keys of the same D, in either format, as q. Dk is 32, 64 or 128.
    k_scale : torch.Tensor, shape (N,), int32
        The scales of each key, as q's.
    weights : torch.Tensor, shape (S, H), float32 or bfloat16
        Weight of each head; may be negative.
    starts, ends : torch.Tensor, shape (S,), int32
        Each row's window of keys, as in :func:`sparse_mqa_logits`.
    candidates : torch.Tensor, shape (L, C), int32
        Each row's blocks, as in :func:`sparse_mqa_logits`.
    candidate_block, relative, clean_logits, schedule_chunk_keys, logits_dtype
        As in :func:`sparse_mqa_logits`.
    schedule : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        As in :func:`sparse_mqa_logits`, of :func:`mx_sparse_mqa_workers`: num_workers + 1 is 2 or more.
    out : torch.Tensor, shape (S, C * candidate_block), float32 or bfloat16, optional
        Where to write. A new one is allocated otherwise, with rows padded to 1024 bytes.
    variant : str, optional
        Take this variant ("gluon_cdna4", "classic", "reference") or raise.

    Which cells are written, strides, memory, gradients and graphs are as in :func:`sparse_mqa_logits`; NaN and very small or
    large values are as in :func:`mx_mqa_logits`.

    Returns
    -------
    torch.Tensor
        ``out``, or the new tensor of its shape.

    Raises
    ------
    TypeError, ValueError, capgate.compat.CapabilityError
        As :func:`sparse_mqa_logits`.
    """
    inputs = MxDense(q, q_scale, k, k_scale, weights, starts, ends, candidates, schedule)
    return call(DENSE_CALLS, inputs, out, relative, candidate_block, clean_logits, schedule_chunk_keys, logits_dtype, variant)


def mx_paged_sparse_mqa_logits(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    candidates: torch.Tensor,
    *,
    candidate_block: int = 8,
    clean_logits: bool = False,
    layout: str = "flat",
    schedule: torch.Tensor | None = None,
    schedule_chunk_keys: int = CHUNK_KEYS,
    logits_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """As :func:`mx_sparse_mqa_logits` for the last queries of requests, whose keys are in a paged cache.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, Dq), float8_e4m3fn or uint8
        Queries, in mxfp8 or mxfp4, as in :func:`mx_mqa_logits`. next_n is 1 to 65535, H is 1 to 128, Dq is 32, 64 or 128.
    q_scale : torch.Tensor, shape (B, next_n, H), int32
        Four UE8M0 bytes, the first lowest.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, W), uint8
        Keys of q's D, in either format, and their scales, as in :func:`mx_paged_mqa_logits`: W is 36, 68 or 132. block is 1 or
        a multiple of 16 up to 256, whatever ``candidate_block`` is.
    weights : torch.Tensor, shape (B * next_n, H), float32 or bfloat16
        Weight of each head; may be negative.
    context_lens : torch.Tensor, shape (B,) or (B, next_n), int32
        How many keys a row sees, as in :func:`fp8_paged_mqa_logits`; more than the table has room for is cut.
    block_table : torch.Tensor, shape (B, max_blocks), int32
        Each request's blocks of the cache, as in :func:`paged_sparse_mqa_logits`.
    candidates : torch.Tensor, shape (L, C), int32
        Each row's candidate blocks, as in :func:`paged_sparse_mqa_logits`.
    candidate_block, clean_logits, schedule_chunk_keys, logits_dtype
        As in :func:`paged_sparse_mqa_logits`.
    layout : str
        Where a block holds its bytes, as in :func:`mx_paged_mqa_logits`.
    schedule : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        As in :func:`paged_sparse_mqa_logits`: num_workers + 1 is 2 or more.
    out : torch.Tensor, shape (B * next_n, C * candidate_block), float32 or bfloat16, optional
        Where to write. A new one is allocated otherwise, with rows padded to 1024 bytes.
    variant : str, optional
        Take this variant ("gluon_cdna4", "classic", "reference") or raise.

    All else is as in :func:`mx_sparse_mqa_logits` and :func:`paged_sparse_mqa_logits`.

    Returns
    -------
    torch.Tensor
        ``out``, or the new tensor of its shape.

    Raises
    ------
    TypeError, ValueError, capgate.compat.CapabilityError
        As :func:`sparse_mqa_logits`.
    """
    inputs = MxPaged(q, q_scale, kv_cache, weights, context_lens, block_table, candidates, schedule)
    return call(PAGED_CALLS, inputs, out, layout, candidate_block, clean_logits, schedule_chunk_keys, logits_dtype, variant)
