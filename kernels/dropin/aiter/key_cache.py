"""aiter's signatures for the key cache (``aiter.ops.cache``). ATOM and SGLang take them from there or from ``aiter``."""

import torch

from ..cached_keys import gather, write


def indexer_k_quant_and_cache(
    k: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    quant_block_size: int,
    scale_fmt: str,
    preshuffle: bool = False,
) -> None:
    """Quantise keys into their slots of a paged cache; see :func:`..cached_keys.write`.

    kv_cache : [num_blocks, block, W], its dtype the keys'. The largest magnitude of a key becomes the dtype's, as in aiter:
        240 in e4m3fnuz, where vLLM's writers have 224.
    preshuffle : whether the keys of a block are in tiles of 16 keys by 16 bytes
    """
    write(k, kv_cache, slot_mapping, quant_block_size, scale_fmt, _layout(preshuffle))


def cp_gather_indexer_k_quant_cache(
    kv_cache: torch.Tensor,
    dst_k: torch.Tensor,
    dst_scale: torch.Tensor,
    block_table: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    preshuffle: bool = False,
) -> None:
    """Copy the first keys of several requests side by side; see :func:`..cached_keys.gather`.

    preshuffle : whether the keys of a block are in tiles of 16 keys by 16 bytes; ``dst_k`` is flat
    """
    gather(kv_cache, dst_k, dst_scale, block_table, cu_seq_lens, _layout(preshuffle))


def _layout(preshuffle: bool) -> str:
    return "preshuffled" if preshuffle else "flat"
