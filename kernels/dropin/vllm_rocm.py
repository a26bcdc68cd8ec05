"""vLLM's signatures for the MQA logits and their key cache on ROCm, over this package's functions.

vLLM has them in ``vllm.v1.attention.ops.rocm_aiter_mla_sparse``. Errors that this package's functions raise use their own
argument names.
"""

import sys
from typing import Annotated, Any, NamedTuple

import torch

from capgate import compat

from .. import mqa_logits, paged_mqa_logits
from ..common.cache import CACHE
from ..common.checks import check_choice, check_integer, check_strided, pair_of
from ..common.operands import Operands
from ..paged_mqa_logits.operands import QUERIES
from .cached_keys import VLLM_FNUZ_MAX, gather, write
from .caches import mask_drafts, of_queries
from .families import NotServed

WORKSPACES = "vllm.v1.worker.workspace"
LAYOUTS = {"NORMAL": "flat", "SHUFFLE": "preshuffled"}  # vLLM's names, and ours


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

    Returns float32 logits [S, N] in rows of a multiple of 256 elements. As vLLM asks aiter, cells outside the windows are left
    as the allocation gave them. Raises TypeError or ValueError as :func:`capgate.kernels.fp8_mqa_logits`.
    """
    k, k_scale = pair_of("kv", kv)
    return mqa_logits.fp8_mqa_logits(q, k, k_scale, weights, cu_seqlen_ks, cu_seqlen_ke, clean_logits=False)


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
    kv_cache_fp8 : [num_blocks, block, 1, W], uint8, W at least D + 4
    weights : [B * next_n, H], float32
    context_lens : [B] or [B, next_n], int32, as in :func:`capgate.kernels.fp8_paged_mqa_logits`
    block_tables : [B, max_blocks], int32
    schedule_metadata : not looked at, as in vLLM on ROCm
    compress_ratio : tokens of a key. It says how vLLM laid out the cache: see :func:`holds_tiles`.

    Returns contiguous float32 logits [B * next_n, max_model_len]. With vLLM's workspaces that is one of them, as in vLLM, which
    the next call takes again: a row has its logits, and -inf where ``context_lens`` is 1-D and only later rows of the request
    see a key; other cells are left as they are. Without, it is new, and -inf where a row sees no key. Raises TypeError or
    ValueError as :func:`capgate.kernels.fp8_paged_mqa_logits`.
    """
    max_model_len = check_integer("max_model_len", max_model_len, 0)
    compress_ratio = check_integer("compress_ratio", compress_ratio, 1)
    cache = of_queries(_PAGED, q_fp8, kv_cache_fp8)
    next_n, shape = q_fp8.shape[1], (q_fp8.shape[0] * q_fp8.shape[1], max_model_len)
    workspaces = workspace_manager()
    if workspaces is None:
        out = torch.empty(shape, dtype=torch.float32, device=q_fp8.device)
    else:
        (out,) = workspaces.get_simultaneous((shape, torch.float32))
    logits = paged_mqa_logits.fp8_paged_mqa_logits(
        q_fp8,
        cache,
        weights,
        context_lens,
        block_tables,
        max_context_len=max_model_len,
        clean_logits=workspaces is None,
        layout="preshuffled" if holds_tiles(compat.capabilities(q_fp8.device), cache.shape[1], compress_ratio) else "flat",
        out=out,
    )
    if workspaces is not None and context_lens.ndim == 1:
        mask_drafts(logits, context_lens, next_n)
    return logits


def indexer_k_quant_and_cache_triton(
    k: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    quant_block_size: int,
    scale_fmt: str,
    block_tile_size: int = 16,
    head_tile_size: int = 16,
) -> None:
    """Quantise keys into their slots of a paged cache; see :func:`.cached_keys.write`.

    kv_cache : [num_blocks, block, W], uint8, in tiles where a block has more than one key. The largest magnitude of a key in
        e4m3fnuz becomes 224, as in vLLM.
    block_tile_size, head_tile_size : keys of a tile, and bytes of each in a packet. NotServed for other than 16.
    """
    _check_tiles(block_tile_size, head_tile_size)
    write(k, kv_cache, slot_mapping, quant_block_size, scale_fmt, _layout(kv_cache, None), VLLM_FNUZ_MAX)


def cp_gather_indexer_k_quant_cache_triton(
    k_cache: torch.Tensor,
    k_fp8: torch.Tensor,
    k_fp8_scale: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlen: torch.Tensor,
    token_to_seq: torch.Tensor,
    block_tile_size: int = 16,
    head_tile_size: int = 16,
    cache_layout: str | None = None,
) -> None:
    """Copy the first keys of several requests side by side; see :func:`.cached_keys.gather`.

    token_to_seq : not looked at: ``cu_seqlen`` says the same
    cache_layout : "NORMAL" for a flat cache, "SHUFFLE" for one in tiles; None for tiles where a block has more than one key
    """
    _check_tiles(block_tile_size, head_tile_size)
    gather(k_cache, k_fp8, k_fp8_scale, block_table, cu_seqlen, _layout(k_cache, cache_layout))


def _check_tiles(block_tile_size: int, head_tile_size: int) -> None:
    if (block_tile_size, head_tile_size) != (16, 16):
        raise NotServed("tiles of other than 16 keys by 16 bytes")


def _layout(kv_cache: torch.Tensor, named: str | None) -> str:
    if named is None:
        several = check_strided("kv_cache", kv_cache).ndim > 1 and kv_cache.shape[1] > 1
        return LAYOUTS["SHUFFLE" if several else "NORMAL"]
    check_choice("cache_layout", named, tuple(LAYOUTS))
    return LAYOUTS[named]


def holds_tiles(caps: compat.Capabilities, block: int, compress_ratio: int) -> bool:
    """Whether vLLM's cache is preshuffled: on gfx942 and gfx950, with more than one key in a block, but for a ratio of 4."""
    return (caps.gfx942 or caps.gfx950) and block > 1 and compress_ratio != 4


def workspace_manager() -> Any | None:
    """vLLM's manager of the buffers that layers share, where this vLLM has one and the process has made it; else None."""
    module = sys.modules.get(WORKSPACES)
    if module is None or not module.is_workspace_manager_initialized():
        return None
    return module.current_workspace_manager()
