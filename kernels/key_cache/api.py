"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

import torch

from ..common.cache import SCALE_BYTES, check_address, check_blocks
from ..common.checks import check_apart, check_choice, check_integer
from ..common.torch_ops import register
from ..quantize import FP8_MAX, SCALE_FORMATS
from .operands import GATHERED, WRITTEN, Gathered, Written
from .operation import Problem, gathering, writing


def quantize_keys_to_cache(
    k: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_format: str = "fp32",
) -> None:
    """Quantise keys as :func:`capgate.kernels.quantize.quantize_keys` does, straight into their slots of a paged cache.

    Parameters
    ----------
    k : torch.Tensor, shape (T, D), float32, bfloat16 or float16
        Keys; D is 32, 64 or 128.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        The cache, written in place. The bytes of a block are flat: block * D of keys, then block * 4 of float32 scales.
        ``stride(0)`` may be larger than that. block is 1, 16, 32, 64 or 128.
    slot_mapping : torch.Tensor, shape (T,), int32 or int64
        Slot ``s`` is position ``s % block`` of block ``s // block``. A key whose slot is negative, or past the cache, is
        skipped. Where two keys have the same slot, either may win. Neither this nor ``k`` may share memory with the cache.
    dtype : torch.dtype
        Of the cache's keys: float8_e4m3fn or float8_e4m3fnuz.
    scale_format : str
        "fp32", or "ue8m0" to round each scale up to a power of two.

    A key with a NaN or an infinity becomes NaN altogether, as there. Nothing is read back from the device, so that the call
    can be captured in a GPU graph.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; nothing has been written.
    """
    inputs = Written(k, kv_cache, slot_mapping)
    WRITTEN.check(inputs, "the cache")
    check_blocks(kv_cache)
    check_choice("dtype", dtype, tuple(FP8_MAX))
    check_choice("scale_format", scale_format, SCALE_FORMATS)
    torch.ops.capgate.quantize_keys_to_cache(*inputs, dtype, scale_format)


def gather_keys(
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    lens: torch.Tensor,
    total: int,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the first keys of several requests side by side, as :func:`capgate.kernels.fp8_mqa_logits` takes them.

    Parameters
    ----------
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        The cache, laid out as :func:`quantize_keys_to_cache` writes it. block is 1, 16, 32, 64 or 128, D is 32, 64 or 128.
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

    Returns
    -------
    (torch.Tensor, torch.Tensor)
        Keys, shape (total, D), in ``dtype``, and their scales, shape (total,), float32. Request b begins at
        ``sum(lens[:b])``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    """
    inputs = Gathered(kv_cache, block_table, lens)
    GATHERED.check(inputs, "the keys")
    check_blocks(kv_cache)
    total = check_integer("total", total, 0)
    check_choice("dtype", dtype, tuple(FP8_MAX))
    keys, scales = torch.ops.capgate.gather_keys(*inputs, total)
    return keys.view(dtype), scales


def _write(inputs: Written, dtype: torch.dtype, scale_format: str) -> None:
    """Operator ``capgate::quantize_keys_to_cache``."""
    check_address(inputs.kv_cache)
    check_apart("kv_cache", inputs.kv_cache, inputs)
    if inputs.k.shape[0] and inputs.kv_cache.shape[0]:
        writing(Problem(inputs.k.device), inputs, dtype=dtype, scale_format=scale_format)


def _gather(inputs: Gathered, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::gather_keys``; the keys as bytes."""
    check_address(inputs.kv_cache)
    keys, scales = _empty(inputs, total)
    if total:
        gathering(Problem(inputs.kv_cache.device), inputs, keys, scales)
    return keys, scales


def _empty(inputs: Gathered, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    cache = inputs.kv_cache
    return cache.new_empty((total, cache.shape[3] - SCALE_BYTES)), cache.new_empty((total,), dtype=torch.float32)


register("quantize_keys_to_cache", WRITTEN, "ScalarType dtype, str scale_format", "()", _write)
register("gather_keys", GATHERED, "SymInt total", "(Tensor, Tensor)", _gather, _empty)
