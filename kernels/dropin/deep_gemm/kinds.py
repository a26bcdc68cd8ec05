"""Which kinds of operands and of schedules ours serves, of those that DeepGEMM has."""

from typing import Any

import torch

from capgate import compat

from ...common.checks import check_strided, pair_of
from ..families import NotServed

KEY_TILE = 256  # keys: what DeepGEMM's rows are rounded up to, and its unit of work on sm90
WITH_OWN_FORMAT = ("cpu", "cuda:90")  # where schedules are in that unit; the CPU has none of its own


def queries_of(q: Any) -> torch.Tensor:
    """The queries of a tensor, or of a pair of them and their scales, None for fp8."""
    if isinstance(q, (tuple, list)):
        if len(q) != 2:
            raise TypeError(f"q: got {len(q)} values, needs a pair: queries, and their scales or None")
        q, scales = q
        if scales is not None:
            raise NotServed("queries with scales of their own, in an MX format")
    queries = check_strided("q", q)
    if queries.dtype is torch.int8:
        raise NotServed("queries in FP4")
    return queries


def keys_of(kv: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and their float32 scales."""
    k, scale = pair_of("kv", kv)
    if k.dtype is torch.int8:
        raise NotServed("keys in FP4")
    if scale.dtype is torch.int32:
        raise NotServed("keys with UE8M0 scales, in an MX format")
    return k, scale


_own: dict[torch.device, bool] = {}


def has_own_format(device: torch.device) -> bool:
    """Whether the schedules of DeepGEMM's paged kernels are in units of :data:`KEY_TILE` keys on this device, as ours are."""
    if device not in _own:
        _own[device] = str(compat.capabilities(device).target) in WITH_OWN_FORMAT
    return _own[device]


# What torch.compiler.assume_constant_result sets, without importing the compiler.
has_own_format._dynamo_marked_constant = True  # type: ignore[attr-defined]
