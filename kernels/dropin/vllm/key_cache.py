"""vLLM's operators for the key cache on CUDA, ``torch.ops._C_cache_ops``: vLLM's wrappers look them up in each call."""

import torch

from ..cached_keys import VLLM_FNUZ_MAX, gather, write


def indexer_k_quant_and_cache(
    k: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor, quant_block_size: int, scale_fmt: str
) -> None:
    """Quantise keys into their slots of a paged cache, which is flat; see :func:`..cached_keys.write`.

    kv_cache : [num_blocks, block, W], uint8; blocks may lie further apart than they are long. The largest magnitude of a key in
        e4m3fnuz becomes 224, as in vLLM.
    """
    write(k, kv_cache, slot_mapping, quant_block_size, scale_fmt, "flat", VLLM_FNUZ_MAX)


def cp_gather_indexer_k_quant_cache(
    kv_cache: torch.Tensor,
    dst_k: torch.Tensor,
    dst_scale: torch.Tensor,
    block_table: torch.Tensor,
    cu_seq_lens: torch.Tensor,
) -> None:
    """Copy the first keys of several requests side by side, from a flat cache; see :func:`..cached_keys.gather`."""
    gather(kv_cache, dst_k, dst_scale, block_table, cu_seq_lens, "flat")
