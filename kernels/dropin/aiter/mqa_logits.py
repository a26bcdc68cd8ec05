"""aiter's signatures for the MQA logits (``aiter.ops.triton.attention``)."""

from typing import Annotated, NamedTuple

import torch

from ... import mqa_logits, paged_mqa_logits
from ...common.cache import CACHE
from ...common.checks import check_integer, check_strided
from ...common.operands import Operands
from ...paged_mqa_logits.operands import QUERIES
from ..caches import mask_drafts, of_queries


class _Paged(NamedTuple):
    q_fp8: Annotated[torch.Tensor, QUERIES]
    kv_cache: Annotated[torch.Tensor, CACHE]


_PAGED = Operands(_Paged)


def fp8_mqa_logits(
    Q: torch.Tensor,
    KV: torch.Tensor,
    kv_scales: torch.Tensor,
    weights: torch.Tensor,
    cu_starts: torch.Tensor,
    cu_ends: torch.Tensor,
    clean_logits: bool = True,
) -> torch.Tensor:
    """Score every query against the keys in its window.

    Q : [S, H, D], KV : [N, D], float8_e4m3fn or float8_e4m3fnuz
    kv_scales : [N] or [N, 1], float32; for one key also the 0-d tensor that ``squeeze`` leaves
    weights : [S, H], float32
    cu_starts, cu_ends : [S], int32
    clean_logits : True sets the cells outside the window to -inf; False leaves them as the allocation gave them

    Returns float32 logits [S, N] in rows of a multiple of 256 elements. Raises TypeError or ValueError as
    :func:`capgate.kernels.fp8_mqa_logits`.
    """
    if isinstance(kv_scales, torch.Tensor) and kv_scales.ndim == 0:
        kv_scales = kv_scales[None]
    return mqa_logits.fp8_mqa_logits(Q, KV, kv_scales, weights, cu_starts, cu_ends, clean_logits=bool(clean_logits))


def deepgemm_fp8_paged_mqa_logits(
    q_fp8: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    out_logits: torch.Tensor,
    context_lens: torch.Tensor,
    kv_indices: torch.Tensor,
    max_model_len: int,
    Preshuffle: bool = False,
    KVBlockSize: int = 1,
    ChunkK: int = 256,
    TotalCuCount: int | None = None,
    WavePerEU: int = 2,
    VarCtxSchedule: torch.Tensor | None = None,
) -> None:
    """Score the last queries of every request against its keys in a paged cache, into ``out_logits``.

    q_fp8 : [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz, as the cache's keys
    kv_cache : [num_blocks, KVBlockSize, 1, W] of one-byte elements, W at least D + 4: KVBlockSize * D bytes of keys and then
        KVBlockSize float32 scales in each block
    weights : [B * next_n, H], float32
    out_logits : [at least B * next_n, at least max_model_len], float32
    context_lens : [B], int32, draft row t of next_n seeing ``context_lens[b] - next_n + t + 1`` keys; or [B, next_n]
    kv_indices : [B, max_blocks], int32, each request's blocks
    Preshuffle : the keys of a block are in tiles of 16 keys by 16 bytes: ``layout="preshuffled"`` of our functions
    ChunkK, TotalCuCount, WavePerEU, VarCtxSchedule : tuning of aiter's kernel, without meaning here

    Writes as aiter does: a row's logits, and -inf where only later rows of the request see a key; other cells are left as they
    are. Returns None; aiter's return value, the name of a compiled kernel in Triton's cache, has no counterpart. Raises
    TypeError or ValueError for other arguments.
    """
    cache = of_queries(_PAGED, q_fp8, kv_cache)
    next_n = q_fp8.shape[1]
    rows = q_fp8.shape[0] * next_n
    max_model_len = check_integer("max_model_len", max_model_len, 0)
    if check_integer("KVBlockSize", KVBlockSize, 1) != cache.shape[1]:
        raise ValueError(f"KVBlockSize: got {KVBlockSize}, needs kv_cache's {cache.shape[1]}")
    check_strided("out_logits", out_logits)
    if out_logits.ndim != 2 or out_logits.shape[0] < rows or out_logits.shape[1] < max_model_len:
        raise ValueError(f"out_logits: got shape {tuple(out_logits.shape)}, needs [{rows}, {max_model_len}] or more")
    out = out_logits[:rows, :max_model_len]
    paged_mqa_logits.fp8_paged_mqa_logits(
        q_fp8,
        cache,
        weights,
        context_lens,
        kv_indices,
        max_context_len=max_model_len,
        layout="preshuffled" if Preshuffle else "flat",
        out=out,
    )
    if context_lens.ndim == 1:
        mask_drafts(out, context_lens, next_n)
