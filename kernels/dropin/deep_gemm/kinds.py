"""Which kinds of operands and of schedules ours serves, of those that DeepGEMM has, and the rows of its outputs."""

from typing import Any, NamedTuple

import torch

from capgate import compat

from ...common.checks import check_strided, pair_of
from ..families import NotServed

KEY_TILE = 256  # keys: what DeepGEMM's rows are rounded up to, and its unit of work on sm90
MX_KEY_TILE = 384  # the same of its kernels with logits in bfloat16, of 2.8
ROW_BYTES = 1024  # that rows of the output are a multiple of
WITH_OWN_FORMAT = ("cpu", "cuda:90")  # where schedules are in that unit; the CPU has none of its own


class Queries(NamedTuple):
    """Queries as our functions take them.

    scales : words of UE8M0 bytes, of queries in an MX format; None for fp8
    """

    values: torch.Tensor
    scales: torch.Tensor | None


def queries_of(q: Any) -> Queries:
    """The queries of a tensor, or of a pair of them and their scales, None for fp8."""
    if not isinstance(q, (tuple, list)):
        q = q, None
    if len(q) != 2:
        raise TypeError(f"q: got {len(q)} values, needs a pair: queries, and their scales or None")
    values, scales = check_strided("q", q[0]), q[1]
    if scales is not None:
        return Queries(of_bytes(values), check_strided("q", scales))
    if values.dtype is torch.int8:
        raise NotServed("queries in FP4 without scales")
    return Queries(values, None)


def keys_of(kv: Any, queries: Queries) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and their scales, as they go with the queries: float32, or words of UE8M0 bytes."""
    k, scale = pair_of("kv", kv)
    if queries.scales is not None:
        return of_bytes(k), scale
    if k.dtype is torch.int8:
        raise NotServed("keys in FP4 with queries in FP8")
    if scale.dtype is torch.int32:
        raise NotServed("keys with UE8M0 scales for queries without")
    return k, scale


def of_bytes(values: torch.Tensor) -> torch.Tensor:
    """Values in an MX format, of which FP4 is int8 in DeepGEMM and uint8 here."""
    return values.view(torch.uint8) if values.dtype is torch.int8 else values


def current_dtype(queries: Queries, weights: Any) -> torch.dtype:
    """Of the logits in DeepGEMM 2.8: with scaled queries that of the weights, bfloat16 on sm100 and float32 elsewhere."""
    bfloat16 = queries.scales is not None and check_strided("weights", weights).dtype is torch.bfloat16
    return torch.bfloat16 if bfloat16 else torch.float32


def up(size: int, step: int) -> int:
    """``size``, or the next multiple of ``step``."""
    return -(-size // step) * step


_own: dict[torch.device, bool] = {}


def has_own_format(device: torch.device) -> bool:
    """Whether the schedules of DeepGEMM's paged kernels are in units of :data:`KEY_TILE` keys on this device, as ours are."""
    if device not in _own:
        _own[device] = str(compat.capabilities(device).target) in WITH_OWN_FORMAT
    return _own[device]


# What torch.compiler.assume_constant_result sets, without importing the compiler.
has_own_format._dynamo_marked_constant = True  # type: ignore[attr-defined]
