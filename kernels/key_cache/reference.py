"""The key cache's functions in plain torch: for machines without a GPU. Nothing is read back from a device."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from ..common.cache import LAYOUTS, packets_of, scale_bytes_of
from ..common.key_formats import PACKET
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
    row, slot, any_kept = first_kept(slots.long(), blocks * block)
    page, inside, tile = slot // block, slot % block, LAYOUTS[layout]
    packets = quantized.view(torch.uint8).unflatten(1, (-1, PACKET))
    for target, at, values in (
        (packets_of(kv_cache, layout), (page, inside // tile, inside % tile), packets),
        (scale_bytes_of(kv_cache), (page, inside), scales[:, None].view(torch.uint8)),
    ):
        target[at] = torch.where(any_kept, values[row], target[at])


def first_kept(slots: torch.Tensor, num_slots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which key each of the keys writes, into which slot, and whether any is kept at all.

    A skipped key writes what the first kept one writes, where that writes it: no shape depends on the slots. With none kept,
    all are to write back what slot 0 holds.
    """
    kept = (slots >= 0) & (slots < num_slots)
    any_kept = kept.any()
    row = torch.where(kept, torch.arange(len(slots), device=slots.device), kept.int().argmax())
    return row, torch.where(any_kept, slots[row], 0), any_kept


class Located(NamedTuple):
    """Where the keys to gather lie.

    of_request : whether some request has this key
    held : whether the cache has it
    page, inside : its block, and its place there; a page of None if there is no block at all
    """

    of_request: torch.Tensor
    held: torch.Tensor
    page: torch.Tensor | None
    inside: torch.Tensor


def located(lens: torch.Tensor, block_table: torch.Tensor, blocks: int, block: int, total: int, *, between: bool) -> Located:
    """The first ``total`` keys of all requests, by their lengths or, if ``between``, by where they begin and end."""
    requests, entries = block_table.shape
    limit = entries * block if blocks else 0
    # Where each request begins, and the last one ends.
    begins = lens.long() if between else F.pad(lens.long().clamp(0, limit).cumsum(0), (1, 0))
    position = torch.arange(total, device=lens.device)
    request = torch.searchsorted(begins, position, right=True) - 1
    of_request = (request >= 0) & (request < requests)
    if not (limit and requests):
        return Located(of_request, torch.zeros_like(of_request), None, position)
    request = request.clamp(0, requests - 1)
    offset = position - begins[request]
    held = of_request & (offset < limit)
    offset = torch.where(held, offset, 0)
    page = block_table[request, offset // block].long()
    held &= (page >= 0) & (page < blocks)
    return Located(of_request, held, torch.where(held, page, 0), offset % block)


def gather(inputs: Gathered | Between, keys: torch.Tensor, scales: torch.Tensor, *, layout: str = "flat") -> None:
    """Fill ``keys`` [total, D] and ``scales`` [total] as :func:`capgate.kernels.gather_keys` says, or gather_keys_between."""
    kv_cache, block_table, lens = inputs
    (blocks, block), between, tile = kv_cache.shape[:2], isinstance(inputs, Between), LAYOUTS[layout]
    at = located(lens, block_table, blocks, block, keys.shape[0], between=between)
    octets, scale_bytes = keys.view(torch.uint8), scales[:, None].view(torch.uint8)
    found = [torch.zeros_like(octets), torch.zeros_like(scale_bytes)]
    if at.page is not None:
        packets = packets_of(kv_cache, layout)[at.page, at.inside // tile, at.inside % tile]
        for values, held in zip(found, (packets.flatten(1), scale_bytes_of(kv_cache)[at.page, at.inside]), strict=True):
            values.copy_(torch.where(at.held[:, None], held, 0))
    for target, values in zip((octets, scale_bytes), found, strict=True):
        target.copy_(torch.where(at.of_request[:, None], values, target) if between else values)
