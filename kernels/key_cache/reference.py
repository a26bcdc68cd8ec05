"""The key cache's functions in plain torch: for machines without a GPU. Nothing is read back from a device."""

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from ..common.cache import LAYOUTS, PACKET, packets_of, scale_bytes_of
from ..quantize import quantize_rows
from .operands import Between, Gathered, Written


def write(
    inputs: Written, *, dtype: torch.dtype, scale_format: str, layout: str = "flat", largest: float | None = None
) -> None:
    """Quantise the keys of :func:`capgate.kernels.quantize_keys_to_cache` into their slots; arguments have been checked."""
    k, kv_cache, slots = inputs
    blocks, block = kv_cache.shape[:2]
    if k.shape[0] == 0 or blocks == 0:
        return
    quantized, scales = quantize_rows(k, dtype, power_of_two=scale_format == "ue8m0", largest=largest)
    slots = slots.long()
    kept = (slots >= 0) & (slots < blocks * block)
    # A skipped row writes what the first kept row writes, where that writes it: no shape depends on the slots. With none
    # kept, all rows write back what slot 0 holds.
    any_kept = kept.any()
    row = torch.where(kept, torch.arange(len(slots), device=slots.device), kept.int().argmax())
    slot = torch.where(any_kept, slots[row], 0)
    page, inside, tile = slot // block, slot % block, LAYOUTS[layout]
    packets = quantized.view(torch.uint8).unflatten(1, (-1, PACKET))
    for target, at, values in (
        (packets_of(kv_cache, layout), (page, inside // tile, inside % tile), packets),
        (scale_bytes_of(kv_cache), (page, inside), scales[:, None].view(torch.uint8)),
    ):
        target[at] = torch.where(any_kept, values[row], target[at])


def gather(inputs: Gathered | Between, keys: torch.Tensor, scales: torch.Tensor, *, layout: str = "flat") -> None:
    """Fill ``keys`` [total, D] and ``scales`` [total] as :func:`capgate.kernels.gather_keys` says, or gather_keys_between."""
    kv_cache, block_table, lens = inputs
    (blocks, block), (requests, entries), total = kv_cache.shape[:2], block_table.shape, keys.shape[0]
    limit = entries * block if blocks else 0
    # Where each request begins, and the last one ends.
    begins = lens.long() if isinstance(inputs, Between) else F.pad(lens.long().clamp(0, limit).cumsum(0), (1, 0))
    position = torch.arange(total, device=lens.device)
    request = torch.searchsorted(begins, position, right=True) - 1
    of_request = (request >= 0) & (request < requests)
    octets, scale_bytes = keys.view(torch.uint8), scales[:, None].view(torch.uint8)
    found = [torch.zeros_like(octets), torch.zeros_like(scale_bytes)]
    if limit and requests:
        request = request.clamp(0, requests - 1)
        offset = position - begins[request]
        held = of_request & (offset < limit)
        offset = torch.where(held, offset, 0)
        page, inside, tile = block_table[request, offset // block].long(), offset % block, LAYOUTS[layout]
        held &= (page >= 0) & (page < blocks)
        page = torch.where(held, page, 0)
        packets = packets_of(kv_cache, layout)[page, inside // tile, inside % tile]
        for values, at in zip(found, (packets.flatten(1), scale_bytes_of(kv_cache)[page, inside]), strict=True):
            values.copy_(torch.where(held[:, None], at, 0))
    for target, values in zip((octets, scale_bytes), found, strict=True):
        target.copy_(torch.where(of_request[:, None], values, target) if isinstance(inputs, Between) else values)
