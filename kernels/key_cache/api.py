"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

import torch

from ..common.cache import CACHE, SCALE_BYTES, check_address, check_blocks, with_scale
from ..common.checks import Derived, Operand, Operands, among, check_apart, check_choice, check_integer
from ..common.rules import DIMS
from ..common.torch_ops import register
from ..quantize import FP8_MAX, SCALE_FORMATS
from .operation import Problem, gathering, writing

_CACHE = CACHE._replace(
    limits=(*CACHE.limits, among("D + 4", tuple(map(with_scale, DIMS)))),
    derived=(Derived("D", lambda width: width - SCALE_BYTES, ("D + 4",)),),
)
WRITTEN = Operands(
    _CACHE,
    Operand("k", (("T", "D"),), (torch.float32, torch.bfloat16, torch.float16)),
    Operand("slot_mapping", (("T",),), (torch.int32, torch.int64)),
)
GATHERED = Operands(
    _CACHE,
    Operand("block_table", (("B", "max_blocks"),), (torch.int32,)),
    Operand("lens", (("B",),), (torch.int32,)),
)


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
    WRITTEN.check((kv_cache, k, slot_mapping), "the cache")
    check_blocks(kv_cache)
    check_choice("dtype", dtype, tuple(FP8_MAX))
    check_choice("scale_format", scale_format, SCALE_FORMATS)
    torch.ops.capgate.quantize_keys_to_cache(k, kv_cache, slot_mapping, dtype, scale_format)


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
        The cache, laid out as :func:`quantize_keys_to_cache` writes it.
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
    GATHERED.check((kv_cache, block_table, lens), "the keys")
    check_blocks(kv_cache)
    total = check_integer("total", total, 0)
    check_choice("dtype", dtype, tuple(FP8_MAX))
    keys, scales = torch.ops.capgate.gather_keys(kv_cache, block_table, lens, total)
    return keys.view(dtype), scales


def _write(k: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor, dtype: torch.dtype, scale_format: str) -> None:
    """Operator ``capgate::quantize_keys_to_cache``."""
    check_address(kv_cache)
    check_apart("kv_cache", kv_cache, WRITTEN.operands[1:], (k, slot_mapping))
    if k.shape[0] and kv_cache.shape[0]:
        writing(Problem(k.device), k, kv_cache, slot_mapping, dtype=dtype, scale_format=scale_format)


def _gather(
    kv_cache: torch.Tensor, block_table: torch.Tensor, lens: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::gather_keys``; the keys as bytes."""
    check_address(kv_cache)
    keys, scales = _empty(kv_cache, block_table, lens, total)
    if total:
        gathering(Problem(kv_cache.device), kv_cache, block_table, lens, keys, scales)
    return keys, scales


def _empty(
    kv_cache: torch.Tensor, block_table: torch.Tensor, lens: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    dim = kv_cache.shape[3] - 4
    return kv_cache.new_empty((total, dim)), kv_cache.new_empty((total,), dtype=torch.float32)


register(
    "quantize_keys_to_cache(Tensor k, Tensor(a!) kv_cache, Tensor slot_mapping, ScalarType dtype, str scale_format) -> ()",
    _write,
)
register("gather_keys(Tensor kv_cache, Tensor block_table, Tensor lens, SymInt total) -> (Tensor, Tensor)", _gather, _empty)
