"""The key cache's functions in plain torch: for machines without a GPU. Nothing is read back from a device."""

import torch

from ..common.cache import keys_of, scale_bytes_of
from ..quantize import quantize_keys
from .operands import Gathered, Unshuffled, Written

TILE = 16  # keys of a tile of a preshuffled cache, and bytes that it holds of each of them in a row


def write(inputs: Written, *, dtype: torch.dtype, scale_format: str) -> None:
    """Quantise the keys of :func:`capgate.kernels.quantize_keys_to_cache` into their slots; arguments have been checked."""
    k, kv_cache, slots = inputs
    blocks, block = kv_cache.shape[:2]
    if k.shape[0] == 0 or blocks == 0:
        return
    quantized, scales = quantize_keys(k, dtype, scale_format=scale_format)
    slots = slots.long()
    kept = (slots >= 0) & (slots < blocks * block)
    # A skipped row writes what the first kept row writes, where that writes it: no shape depends on the slots. With none
    # kept, all rows write back what slot 0 holds.
    any_kept = kept.any()
    row = torch.where(kept, torch.arange(len(slots), device=slots.device), kept.int().argmax())
    slot = torch.where(any_kept, slots[row], 0)
    at = (slot // block, slot % block)
    for target, values in ((keys_of(kv_cache), quantized), (scale_bytes_of(kv_cache), scales[:, None])):
        target[at] = torch.where(any_kept, values.view(torch.uint8)[row], target[at])


def gather(inputs: Gathered, keys: torch.Tensor, scales: torch.Tensor) -> None:
    """Fill ``keys`` [total, D] and ``scales`` [total] as :func:`capgate.kernels.gather_keys` says."""
    kv_cache, block_table, lens = inputs
    (blocks, block), total = kv_cache.shape[:2], keys.shape[0]
    octets = keys.view(torch.uint8)
    if not (blocks and block_table.numel() and total):
        octets.zero_()
        scales.zero_()
        return
    limit = block_table.shape[1] * block
    ends = lens.long().clamp(0, limit).cumsum(0)
    position = torch.arange(total, device=lens.device)
    request = torch.searchsorted(ends, position, right=True)
    held = request < len(lens)
    request = request.clamp(max=len(lens) - 1)
    offset = torch.where(held, position - torch.where(request > 0, ends[request - 1], 0), 0)
    page = block_table[request, offset // block].long()
    held &= (page >= 0) & (page < blocks)
    page = torch.where(held, page, 0)
    octets.copy_(torch.where(held[:, None], keys_of(kv_cache)[page, offset % block], 0))
    scales.copy_(torch.where(held[:, None], scale_bytes_of(kv_cache)[page, offset % block], 0).view(torch.float32)[:, 0])


def unshuffle(inputs: Unshuffled, flat: torch.Tensor, *, max_context_len: int) -> None:
    """Fill ``flat`` with every block of a preshuffled cache, in use or not."""
    keys = keys_of(inputs.kv_cache)
    blocks, block, dim = keys.shape
    tiles = keys.reshape(blocks, block // TILE, dim // TILE, TILE, TILE)  # tile, piece of the keys, key, byte
    keys_of(flat).copy_(tiles.transpose(2, 3).reshape(blocks, block, dim))
    scale_bytes_of(flat).copy_(scale_bytes_of(inputs.kv_cache))
