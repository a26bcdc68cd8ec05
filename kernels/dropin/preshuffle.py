"""Reading the key caches of AMD's engines: wider rows than ours, and key bytes in tiles of 16 keys by 16 bytes.

A preshuffled block holds, for every 16 keys, first bytes 0 to 15 of each of them, then bytes 16 to 31 of each, and so on: byte
d of key t lies at ``t // 16 * 16 * D + d // 16 * 256 + t % 16 * 16 + d % 16``. The scales behind the keys are in order. (aiter:
``shuffle_weight`` with layout (16, 16); vLLM: the SHUFFLE layout of ``indexer_k_quant_and_cache_triton``.)
"""

from typing import Any

import torch

from ..common.cache import check_address, check_blocks, with_scale
from ..common.checks import check_strided
from ..common.operands import Operands
from ..key_cache.operands import UNSHUFFLED, Unshuffled
from ..key_cache.operation import Problem, unshuffling
from ..key_cache.reference import TILE


def block_flat(operands: Operands[Any], q: torch.Tensor, kv_cache: torch.Tensor) -> torch.Tensor:
    """An engine's cache [num_blocks, block, 1, W] of one-byte elements, as the uint8 cache that our functions take.

    operands : the queries and the cache of a paged call, by the engine's names
    q : [B, next_n, H, D], float8_e4m3fn or float8_e4m3fnuz

    W is D + 4 or more: what it has beyond that is room at the end of each block. Raises TypeError or ValueError for what is no
    such cache, or no such queries.
    """
    names = list(operands.rows)
    check_strided(names[0], q)
    check_strided(names[1], kv_cache)
    if kv_cache.element_size() != 1:
        raise TypeError(f"{names[1]}: got {kv_cache.dtype}, needs torch.uint8 or another type of one byte")
    octets = kv_cache.view(torch.uint8)
    width = with_scale(q.shape[-1]) if q.ndim == 4 else 0
    if octets.ndim == 4 and octets.shape[2] == 1 and octets.shape[3] > width > 0:
        blocks, block, _, room = octets.shape
        if octets.stride(3) != 1 or (block > 1 and octets.stride(1) != room):
            raise ValueError(f"{names[1]}: got strides {tuple(octets.stride())}, needs blocks of adjacent bytes")
        strides = (octets.stride(0), width, width, 1)
        octets = octets.as_strided((blocks, block, 1, width), strides, octets.storage_offset())
    operands.check((q, octets))
    check_blocks(octets)
    return octets


def unshuffle(
    kv_cache: torch.Tensor, block_table: torch.Tensor, context_lens: torch.Tensor, max_context_len: int
) -> torch.Tensor:
    """A block-flat copy of a preshuffled cache: our kernels read no other.

    kv_cache : as :func:`block_flat` returns it, with a multiple of 16 keys in a block
    block_table, context_lens, max_context_len : as in :func:`capgate.kernels.fp8_paged_mqa_logits`

    The copy has the memory of the whole cache, but on a GPU only the blocks that the requests use are read and written; the
    others hold anything. Nothing is read back from the device, so that the call can be captured in a GPU graph. Raises
    TypeError or ValueError for an argument that is not so.
    """
    block = kv_cache.shape[1]
    if block % TILE:
        raise ValueError(f"kv_cache: got blocks of {block} keys, needs a multiple of {TILE} in a preshuffled cache")
    check_address(kv_cache)
    inputs = Unshuffled(kv_cache, block_table, context_lens)
    UNSHUFFLED.check(inputs)
    flat = torch.empty(kv_cache.shape, dtype=torch.uint8, device=kv_cache.device)
    if flat.numel() == 0 or block_table.numel() == 0:
        return flat
    unshuffling(Problem(kv_cache.device), inputs, flat, max_context_len=max_context_len)
    return flat
