"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

from typing import Any, NamedTuple

import torch

from ..common.cache import check_address, check_blocks
from ..common.checks import check_apart, check_choice, check_integer, check_strided, pair_of
from ..common.key_formats import FORMATS, SCALE_BYTES
from ..common.torch_ops import register
from ..quantize import FP8_MAX, SCALE_FORMATS
from . import api_mx
from .api_mx import check_fp8_options, check_results
from .operands import BETWEEN, GATHERED, WRITTEN, Between, Gathered, Written
from .operands_mx import MxBetween, MxGathered, MxWritten
from .operation import Problem, gathering, writing


def quantize_keys_to_cache(
    k: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_format: str = "fp32",
    layout: str = "flat",
    largest: float | None = None,
    key_format: str = "fp8",
    rule: str | None = None,
    kv_scale: torch.Tensor | None = None,
) -> None:
    """Quantise keys as :func:`capgate.kernels.quantize.quantize_keys` does, straight into their slots of a paged cache.

    With ``key_format`` "mxfp8" or "mxfp4", as :func:`capgate.kernels.quantize_mx_keys` does.

    Parameters
    ----------
    k : torch.Tensor, shape (T, D), float32, bfloat16 or float16
        Keys; D is 32, 64 or 128.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        The cache, written in place. The bytes of a block are flat: block * D of keys, then block * 4 of float32 scales.
        ``stride(0)`` may be larger than that. block is 1 or a multiple of 16 up to 256. In mxfp4, keys of D / 2 bytes make it
        (num_blocks, block, 1, D / 2 + 4), with D 64 or 128; in layout "flydsl" it is (num_blocks, 1, 4, 64, 16).
    slot_mapping : torch.Tensor, shape (T,), int32 or int64
        Slot ``s`` is position ``s % block`` of block ``s // block``. A key whose slot is negative, or past the cache, is
        skipped. Where two keys have the same slot, either may win. Neither this nor ``k`` may share memory with the cache.
    dtype : torch.dtype
        Of the cache's keys: float8_e4m3fn or float8_e4m3fnuz.
    scale_format : str
        "fp32", or "ue8m0" to round each scale up to a power of two.
    layout : str
        Of the keys in a block, "flat" or "preshuffled", as in :func:`capgate.kernels.fp8_paged_mqa_logits`; in mxfp4 also
        "gluon-16", "gluon-32" or "flydsl", of D 128. ``docs/key-formats.md`` has each byte's place.
    largest : float, optional
        What the largest magnitude of a key becomes, in place of the dtype's own 448 or 240: vLLM's caches in e4m3fnuz have 224.
    key_format : str
        "fp8": a float32 scale for each key. "mxfp8" and "mxfp4": values in E4M3 and E2M1, a UE8M0 byte for each 32 of them;
        ``dtype``, ``scale_format`` and ``largest`` are then left out.
    rule : str, optional
        How a key in an MX format is rounded, as in :func:`capgate.kernels.quantize_mx_keys`, "vllm" if left out.
    kv_scale : torch.Tensor, optional
        The scales of layout "flydsl", shape (num_blocks, 1, 4, 64), uint8, written in place; other layouts have none.

    A key with a NaN or an infinity becomes NaN altogether, as there; in an MX format the 32 values that share its scale do.
    Nothing is read back from the device, so that the call can be captured in a GPU graph.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; nothing has been written.
    """
    check_choice("key_format", key_format, tuple(FORMATS))
    if key_format != "fp8":
        fn = torch.float8_e4m3fn
        check_fp8_options(key_format, dtype=(dtype, fn), scale_format=(scale_format, "fp32"), largest=(largest, None))
        api_mx.write(MxWritten(k, kv_cache, slot_mapping, kv_scale), key_format, rule, layout)
        return
    _check_mx_options(rule=rule, kv_scale=kv_scale)
    inputs = Written(k, kv_cache, slot_mapping)
    WRITTEN.check(inputs, "the cache")
    check_blocks(kv_cache, layout)
    check_choice("dtype", dtype, tuple(FP8_MAX))
    check_choice("scale_format", scale_format, SCALE_FORMATS)
    if largest is not None:
        largest = _check_largest(largest, dtype)
    torch.ops.capgate.quantize_keys_to_cache(*inputs, dtype, scale_format, layout, largest)


def gather_keys(
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    lens: torch.Tensor,
    total: int,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    layout: str = "flat",
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    key_format: str = "fp8",
    kv_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the first keys of several requests side by side, as :func:`capgate.kernels.fp8_mqa_logits` takes them.

    Parameters
    ----------
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        The cache, laid out as :func:`quantize_keys_to_cache` writes it. block is 1 or a multiple of 16 up to 256, D is 32, 64
        or 128.
    block_table : torch.Tensor, shape (B, max_blocks), int32
        Each request's blocks in order. What lies past a request's keys is not looked at. A block that the cache does not have
        (below 0, or num_blocks and more) is never read: its keys are 0 with scale 0, and score 0 where a window has them.
    lens : torch.Tensor, shape (B,), int32
        How many keys to take of each request; one below 0 counts as 0, one past its row of the table is cut.
    total : int
        Keys of the result, which the caller knows: with it nothing is read back from the device. Where ``lens`` add up to
        less, the rest is keys of 0 with scale 0; where they add up to more, the last keys are left out.
    dtype : torch.dtype
        Of the cache's keys: float8_e4m3fn or float8_e4m3fnuz.
    layout : str
        Of the keys in a block, as in :func:`quantize_keys_to_cache`; the results are flat.
    out : (torch.Tensor, torch.Tensor), optional
        Where to write the results, of their shapes and dtypes: each key of adjacent bytes, no key or scale over another, and no
        memory of an operand's. New ones are allocated otherwise, and nothing else is.
    key_format, kv_scale : str; torch.Tensor, optional
        As in :func:`quantize_keys_to_cache`; ``dtype`` is of "fp8" alone.

    Returns
    -------
    (torch.Tensor, torch.Tensor)
        ``out``, or new ones: keys, shape (total, D), in ``dtype``, and their scales, shape (total,), float32. Request b begins
        at ``sum(lens[:b])``. In mxfp8 keys are in float8_e4m3fn, in mxfp4 of shape (total, D / 2) in uint8 (an ``out`` may be
        int8); scales are then int32, a word holding the bytes of a key's scales, the first lowest, as DeepGEMM takes them.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    """
    check_choice("key_format", key_format, tuple(FORMATS))
    if key_format != "fp8":
        check_fp8_options(key_format, dtype=(dtype, torch.float8_e4m3fn))
        total = check_integer("total", total, 0)
        pair = None if out is None else pair_of("out", out)
        return api_mx.gather(MxGathered(kv_cache, block_table, lens, kv_scale), total, key_format, layout, pair)
    _check_mx_options(kv_scale=kv_scale)
    inputs = Gathered(kv_cache, block_table, lens)
    GATHERED.check(inputs, "the keys")
    check_blocks(kv_cache, layout)
    total = check_integer("total", total, 0)
    check_choice("dtype", dtype, tuple(FP8_MAX))
    if out is None:
        keys, scales = torch.ops.capgate.gather_keys(*inputs, total, layout)
        return keys.view(dtype), scales
    keys, scales = pair_of("out", out)
    if keys.dtype != dtype:
        raise TypeError(f"out: got keys of {keys.dtype}, needs {dtype}")
    check_results(keys, scales, total, kv_cache.shape[3] - SCALE_BYTES, torch.float32, kv_cache)
    torch.ops.capgate.gather_keys_out(*inputs, keys.view(torch.uint8), scales, layout)
    return keys, scales


def gather_keys_between(
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_lens: torch.Tensor,
    keys: torch.Tensor,
    scales: torch.Tensor,
    *,
    layout: str = "flat",
    key_format: str = "fp8",
    kv_scale: torch.Tensor | None = None,
) -> None:
    """Gather as :func:`gather_keys` does, in the form that engines have: running sums, and what nobody asks for stays.

    kv_cache, block_table, layout, key_format, kv_scale : as there
    cu_lens : [B + 1], int32, in ascending order: request b's first keys go to ``[cu_lens[b], cu_lens[b + 1])``. Those past the
        request's row of the table, and those of blocks that the cache does not have, become 0 with scale 0.
    keys : [T, D] of one-byte elements, [T, D / 2] in mxfp4, written but for what lies before ``cu_lens[0]`` and from
        ``cu_lens[B]`` on
    scales : [T], float32, or int32 words of bytes in an MX format, written alike

    Nothing is allocated. Raises TypeError or ValueError for arguments that are not so.
    """
    check_choice("key_format", key_format, tuple(FORMATS))
    if key_format != "fp8":
        api_mx.gather_between(MxBetween(kv_cache, block_table, cu_lens, kv_scale), keys, scales, key_format, layout)
        return
    _check_mx_options(kv_scale=kv_scale)
    inputs = Between(kv_cache, block_table, cu_lens)
    BETWEEN.check(inputs, "the keys")
    check_blocks(kv_cache, layout)
    if check_strided("keys", keys).element_size() != 1:
        raise TypeError(f"keys: got {keys.dtype}, needs a type of one byte")
    total = len(keys) if keys.ndim else 0
    check_results(keys, check_strided("scales", scales), total, kv_cache.shape[3] - SCALE_BYTES, torch.float32, kv_cache)
    torch.ops.capgate.gather_keys_between(*inputs, keys.view(torch.uint8), scales, layout)


def _check_mx_options(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            words = repr(value) if isinstance(value, str) else type(value).__name__
            raise ValueError(f"{name}: got {words}, needs None with key_format 'fp8'")


def _check_largest(largest: float, dtype: torch.dtype) -> float:
    if isinstance(largest, bool) or not isinstance(largest, (int, float)):
        raise TypeError(f"largest: got {type(largest).__name__}, needs a float")
    if not 0 < largest <= FP8_MAX[dtype]:
        raise ValueError(f"largest: got {largest}, needs more than 0 and at most the {FP8_MAX[dtype]:g} of {dtype}")
    return float(largest)


def _write(inputs: Written, dtype: torch.dtype, scale_format: str, layout: str = "flat", largest: float | None = None) -> None:
    """Operator ``capgate::quantize_keys_to_cache``."""
    check_address(inputs.kv_cache)
    check_apart("kv_cache", inputs.kv_cache, inputs)
    if inputs.k.shape[0] and inputs.kv_cache.shape[0]:
        options: dict[str, Any] = {"dtype": dtype, "scale_format": scale_format, "layout": layout, "largest": largest}
        writing(Problem(inputs.k.device), inputs, **options)


def _gather(inputs: Gathered, total: int, layout: str = "flat") -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::gather_keys``; the keys as bytes."""
    keys, scales = _empty(inputs, total, layout)
    _launch_gather(inputs, keys, scales, layout)
    return keys, scales


def _gather_into(inputs: Gathered | Between, keys: torch.Tensor, scales: torch.Tensor, layout: str = "flat") -> None:
    """Operators ``capgate::gather_keys_out`` and ``capgate::gather_keys_between``: the results are the caller's."""
    check_apart("out", keys, inputs)
    check_apart("out", scales, inputs)
    check_apart("out", keys, _Scales(scales))
    _launch_gather(inputs, keys, scales, layout)


class _Scales(NamedTuple):
    scales: torch.Tensor


def _launch_gather(inputs: Gathered | Between, keys: torch.Tensor, scales: torch.Tensor, layout: str) -> None:
    check_address(inputs.kv_cache)
    if len(keys):
        gathering(Problem(inputs.kv_cache.device), inputs, keys, scales, layout=layout)


def _empty(inputs: Gathered, total: int, layout: str = "flat") -> tuple[torch.Tensor, torch.Tensor]:
    cache = inputs.kv_cache
    return cache.new_empty((total, cache.shape[3] - SCALE_BYTES)), cache.new_empty((total,), dtype=torch.float32)


_INTO = "Tensor(a!) keys, Tensor(b!) scales, str layout='flat'"
_HOW = "ScalarType dtype, str scale_format, str layout='flat', float? largest=None"
register("quantize_keys_to_cache", WRITTEN, _HOW, "()", _write)
register("gather_keys", GATHERED, "SymInt total, str layout='flat'", "(Tensor, Tensor)", _gather, _empty)
register("gather_keys_out", GATHERED, _INTO, "()", _gather_into)
register("gather_keys_between", BETWEEN, _INTO, "()", _gather_into)
