"""The public functions where keys are in an MX format: checks, allocation, and dispatch through operators of their own."""

from typing import Any, NamedTuple

import torch

from ..common.cache import check_address
from ..common.checks import check_apart, check_strided
from ..common.key_formats import LAYOUTS
from ..common.mx_cache import check_layout, check_pages, pages_of
from ..common.mx_rules import DEFAULT_RULE, check_rule
from ..common.torch_ops import register
from .operands import Between, Gathered, Written
from .operands_mx import MX_BETWEEN, MX_GATHERED, MX_WRITTEN, TABLES, MxBetween, MxGathered, MxWritten
from .operation_mx import Problem, gathering, writing

KEY_DTYPES = {"mxfp8": (torch.float8_e4m3fn,), "mxfp4": (torch.uint8, torch.int8)}  # of gathered keys, and first of new ones


def check_fp8_options(key_format: str, **given: tuple[Any, Any]) -> None:
    """Raise ValueError for an option of fp8 keys, of which its value and its default are given, with another key format."""
    for name, (value, default) in given.items():
        if value != default:
            raise ValueError(f"{name}: got {value!r}, which fp8 keys have; with key_format {key_format!r} leave it out")


def write(inputs: MxWritten, key_format: str, rule: str | None, layout: str) -> None:
    """As :func:`.api.quantize_keys_to_cache`, whose key_format has been checked."""
    _check(Written, inputs, key_format, layout, "the cache")
    rule = DEFAULT_RULE if rule is None else rule
    check_rule(key_format, rule, inputs.k.shape[1])
    torch.ops.capgate.quantize_mx_keys_to_cache(*inputs, key_format, rule, layout)


def gather(
    inputs: MxGathered, total: int, key_format: str, layout: str, out: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`.api.gather_keys`, whose key_format, total and pair have been checked."""
    _check(Gathered, inputs, key_format, layout, "the keys")
    if out is None:
        keys, scales = torch.ops.capgate.gather_mx_keys(*inputs, total, key_format, layout)
        return keys.view(KEY_DTYPES[key_format][0]), scales
    keys, scales = out
    if keys.dtype not in KEY_DTYPES[key_format]:
        raise TypeError(f"out: got keys of {keys.dtype}, needs {KEY_DTYPES[key_format][0]}")
    check_results(
        keys, scales, total, pages_of(inputs.kv_cache, inputs.kv_scale, layout).key_bytes, torch.int32, inputs.kv_cache
    )
    torch.ops.capgate.gather_mx_keys_out(*inputs, keys.view(torch.uint8), scales, key_format, layout)
    return keys, scales


def gather_between(inputs: MxBetween, keys: torch.Tensor, scales: torch.Tensor, key_format: str, layout: str) -> None:
    """As :func:`.api.gather_keys_between`, whose key_format has been checked."""
    _check(Between, inputs, key_format, layout, "the keys")
    if check_strided("keys", keys).element_size() != 1:
        raise TypeError(f"keys: got {keys.dtype}, needs a type of one byte")
    total, key_bytes = len(keys) if keys.ndim else 0, pages_of(inputs.kv_cache, inputs.kv_scale, layout).key_bytes
    check_results(keys, check_strided("scales", scales), total, key_bytes, torch.int32, inputs.kv_cache)
    torch.ops.capgate.gather_mx_keys_between(*inputs, keys.view(torch.uint8), scales, key_format, layout)


def check_results(
    keys: torch.Tensor, scales: torch.Tensor, total: int, key_bytes: int, dtype: torch.dtype, kv_cache: torch.Tensor
) -> None:
    """Raise TypeError or ValueError for what cannot take ``total`` keys of the cache, and their scales of a dtype."""
    if keys.shape != (total, key_bytes) or scales.shape != (total,):
        raise ValueError(
            f"out: got shapes {tuple(keys.shape)} and {tuple(scales.shape)}, needs {[total, key_bytes]} and {[total]}"
        )
    if scales.dtype != dtype:
        raise TypeError(f"out: got scales of {scales.dtype}, needs {dtype}")
    for tensor in (keys, scales):
        if tensor.device != kv_cache.device:
            raise ValueError(f"out: got device {tensor.device}, needs kv_cache's {kv_cache.device}")
    if keys.stride(1) != 1 or (total > 1 and (keys.stride(0) < key_bytes or scales.stride(0) < 1)):
        raise ValueError(
            f"out: got strides {tuple(keys.stride())} and {tuple(scales.stride())}, needs keys of {key_bytes} adjacent bytes "
            "that do not overlap, and scales that do not"
        )


def _check(function: Any, inputs: Any, key_format: str, layout: str, result: str) -> None:
    kv_scale = inputs.kv_scale
    check_layout(key_format, layout, kv_scale)
    TABLES[function, key_format, layout].check(inputs if LAYOUTS[layout].apart else inputs[:-1], result)
    check_pages(inputs.kv_cache, kv_scale, layout)


def _write(inputs: MxWritten, key_format: str, rule: str, layout: str) -> None:
    """Operator ``capgate::quantize_mx_keys_to_cache``."""
    check_address(inputs.kv_cache)
    check_apart("kv_cache", inputs.kv_cache, inputs)
    if inputs.kv_scale is not None:
        check_apart("kv_scale", inputs.kv_scale, inputs)
    if inputs.k.shape[0] and inputs.kv_cache.shape[0]:
        writing(Problem(inputs.k.device), inputs, key_format=key_format, rule=rule, layout=layout)


def _gather(inputs: MxGathered, total: int, key_format: str, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::gather_mx_keys``; the keys as bytes."""
    keys, scales = _empty(inputs, total, key_format, layout)
    _launch_gather(inputs, keys, scales, key_format, layout)
    return keys, scales


def _gather_into(
    inputs: MxGathered | MxBetween, keys: torch.Tensor, scales: torch.Tensor, key_format: str, layout: str
) -> None:
    """Operators ``capgate::gather_mx_keys_out`` and ``capgate::gather_mx_keys_between``: the results are the caller's."""
    check_apart("out", keys, inputs)
    check_apart("out", scales, inputs)
    check_apart("out", keys, _Scales(scales))
    _launch_gather(inputs, keys, scales, key_format, layout)


class _Scales(NamedTuple):
    scales: torch.Tensor


def _launch_gather(
    inputs: MxGathered | MxBetween, keys: torch.Tensor, scales: torch.Tensor, key_format: str, layout: str
) -> None:
    check_address(inputs.kv_cache)
    if len(keys):
        gathering(Problem(inputs.kv_cache.device), inputs, keys, scales, key_format=key_format, layout=layout)


def _empty(inputs: MxGathered, total: int, key_format: str, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    cache = inputs.kv_cache
    key_bytes = pages_of(cache, inputs.kv_scale, layout).key_bytes
    return cache.new_empty((total, key_bytes)), cache.new_empty((total,), dtype=torch.int32)


_INTO = "Tensor(a!) keys, Tensor(b!) scales, str key_format, str layout"
register("quantize_mx_keys_to_cache", MX_WRITTEN, "str key_format, str rule, str layout", "()", _write)
register("gather_mx_keys", MX_GATHERED, "SymInt total, str key_format, str layout", "(Tensor, Tensor)", _gather, _empty)
register("gather_mx_keys_out", MX_GATHERED, _INTO, "()", _gather_into)
register("gather_mx_keys_between", MX_BETWEEN, _INTO, "()", _gather_into)
