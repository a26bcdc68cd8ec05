"""The key cache's functions for keys in MX formats, in plain torch. Nothing is read back from a device."""

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from ..common import mx
from ..common.key_formats import SCALE_BYTES
from ..common.mx_cache import pages_of, places
from ..common.mx_rules import RULES
from .operands_mx import MxBetween, MxGathered, MxWritten
from .reference import first_kept, located


def write(inputs: MxWritten, *, key_format: str, rule: str, layout: str) -> None:
    """Quantise the keys of :func:`capgate.kernels.quantize_keys_to_cache` into their slots; arguments have been checked."""
    k, kv_cache, slots, kv_scale = inputs
    pages = pages_of(kv_cache, kv_scale, layout)
    if k.shape[0] == 0 or kv_cache.shape[0] == 0:
        return
    octets, scales = mx.quantize(k, key_format, RULES[key_format][rule])
    scales = F.pad(scales, (0, SCALE_BYTES - scales.shape[1]))
    row, slot, any_kept = first_kept(slots.long(), kv_cache.shape[0] * pages.block)
    page, (value_at, scale_at) = slot // pages.block, places(slot % pages.block, pages)
    for target, at, values in ((pages.values, value_at, octets), (pages.scales, scale_at, scales)):
        place = page[:, None], at
        target[place] = torch.where(any_kept, values[row], target[place])


def gather(inputs: MxGathered | MxBetween, keys: torch.Tensor, scales: torch.Tensor, *, key_format: str, layout: str) -> None:
    """Fill ``keys`` [total, D or D / 2] and ``scales`` [total] as :func:`capgate.kernels.gather_keys` says."""
    kv_cache, block_table, lens, kv_scale = inputs
    pages, between = pages_of(kv_cache, kv_scale, layout), isinstance(inputs, MxBetween)
    at = located(lens, block_table, kv_cache.shape[0], pages.block, keys.shape[0], between=between)
    for target, source, place in zip(
        (keys.view(torch.uint8), scales[:, None].view(torch.uint8)),
        (pages.values, pages.scales),
        places(at.inside, pages),
        strict=True,
    ):
        found = (
            torch.zeros_like(target) if at.page is None else torch.where(at.held[:, None], source[at.page[:, None], place], 0)
        )
        target.copy_(torch.where(at.of_request[:, None], found, target) if between else found)
