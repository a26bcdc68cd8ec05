"""vLLM's signatures for the MQA logits on ROCm, over this package's functions.

vLLM has them in ``vllm.v1.attention.ops.rocm_aiter_mla_sparse``. Errors that this package's functions raise use their own
argument names.
"""

from typing import Annotated, NamedTuple

import torch

from capgate import compat

from .. import mqa_logits, paged_mqa_logits
from ..common.cache import CACHE
from ..common.checks import check_integer, pair_of
from ..common.operands import Operands
from ..paged_mqa_logits.operands import QUERIES
from .preshuffle import block_flat, unshuffle


class _Paged(NamedTuple):
    q_fp8: Annotated[torch.Tensor, QUERIES]
    kv_cache_fp8: Annotated[torch.Tensor, CACHE]


_PAGED = Operands(_Paged)


def rocm_fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seqlen_ks: torch.Tensor,
    cu_seqlen_ke: torch.Tensor,
) -> torch.Tensor:
    """Score every query against the keys in its window.

    q : [S, H, D], float8_e4m3fn or float8_e4m3fnuz
    kv : the keys [N, D] in q's dtype and their scales [N, 1] or [N], float32
    weights : [S, H], float32
    cu_seqlen_ks, cu_seqlen_ke : [S], int32

    Returns float32 logits [S, N], -inf outside the windows, in rows of a multiple of 256 elements. Raises TypeError or
    ValueError as :func:`capgate.kernels.fp8_mqa_logits`.
    """
    k, k_scale = pair_of("kv", kv)
    return mqa_logits.fp8_mqa_logits(q, k, k_scale, weights, cu_seqlen_ks, cu_seqlen_ke)


def rocm_fp8_paged_mqa_logits(
    q_fp8: torch.Tensor,
    kv_cache_fp8: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    schedule_metadata: torch.Tensor,
    max_model_len: int,
    *,
    compress_ratio: int = 1,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache.

    q_fp8 : [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz
    kv_cache_fp8 : [num_blocks, block, 1, D + 4], uint8
    weights : [B * next_n, H], float32
    context_lens : [B] or [B, next_n], int32, as in :func:`capgate.kernels.fp8_paged_mqa_logits`
    block_tables : [B, max_blocks], int32
    schedule_metadata : not looked at, as in vLLM on ROCm
    compress_ratio : tokens of a key. It says how vLLM laid out the cache: see :func:`holds_tiles`.

    Returns float32 logits [B * next_n, max_model_len], contiguous as vLLM's buffer is, and -inf where a row sees no key as in
    vLLM's torch version. Raises TypeError or ValueError as :func:`capgate.kernels.fp8_paged_mqa_logits`.
    """
    max_model_len = check_integer("max_model_len", max_model_len, 0)
    compress_ratio = check_integer("compress_ratio", compress_ratio, 1)
    cache = block_flat(_PAGED, q_fp8, kv_cache_fp8)
    if holds_tiles(compat.capabilities(q_fp8.device), cache.shape[1], compress_ratio):
        cache = unshuffle(cache, block_tables, context_lens, max_model_len)
    return paged_mqa_logits.fp8_paged_mqa_logits(
        q_fp8,
        cache,
        weights,
        context_lens,
        block_tables,
        max_context_len=max_model_len,
        clean_logits=True,
        out=torch.empty((q_fp8.shape[0] * q_fp8.shape[1], max_model_len), dtype=torch.float32, device=q_fp8.device),
    )


def holds_tiles(caps: compat.Capabilities, block: int, compress_ratio: int) -> bool:
    """Whether vLLM's cache is preshuffled: on gfx942 and gfx950, with more than one key in a block, but for a ratio of 4."""
    return (caps.gfx942 or caps.gfx950) and block > 1 and compress_ratio != 4
