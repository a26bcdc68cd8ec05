"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

import torch

from capgate import compat

from ..mqa_logits.operation import DIMS
from ..quantize import FP8_MAX
from . import reference
from .layout import check_address, check_cache, check_positions

SCALE_FORMATS = ("fp32", "ue8m0")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


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
        skipped. Where two keys have the same slot, either may win.
    dtype : torch.dtype
        Of the cache's keys: float8_e4m3fn or float8_e4m3fnuz.
    scale_format : str
        "fp32", or "ue8m0" to round each scale up to a power of two.

    Nothing is read back from the device, so that the call can be captured in a GPU graph.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; nothing has been written.
    """
    dim = check_cache(kv_cache, DIMS)
    if not isinstance(k, torch.Tensor):
        raise TypeError(f"k: got {type(k).__name__}, needs a torch.Tensor")
    if k.ndim != 2 or k.shape[1] != dim:
        raise ValueError(f"k: got shape {tuple(k.shape)}, needs [T, {dim}] to match kv_cache")
    if k.dtype not in FLOATS:
        raise TypeError(f"k: got {k.dtype}, needs float32, bfloat16 or float16")
    if k.device != kv_cache.device:
        raise ValueError(f"k: got device {k.device}, needs kv_cache's {kv_cache.device}")
    if k.requires_grad and torch.is_grad_enabled():
        raise ValueError("k: requires grad, which the cache does not have; detach it or use torch.no_grad()")
    if not isinstance(slot_mapping, torch.Tensor):
        raise TypeError(f"slot_mapping: got {type(slot_mapping).__name__}, needs a torch.Tensor")
    if slot_mapping.shape != k.shape[:1]:
        raise ValueError(f"slot_mapping: got shape {tuple(slot_mapping.shape)}, needs [{k.shape[0]}] to match k")
    if slot_mapping.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"slot_mapping: got {slot_mapping.dtype}, needs torch.int32 or torch.int64")
    if slot_mapping.device != k.device:
        raise ValueError(f"slot_mapping: got device {slot_mapping.device}, needs k's {k.device}")
    _check_dtype(dtype)
    if scale_format not in SCALE_FORMATS:
        raise ValueError(f"scale_format: got {scale_format!r}, needs 'fp32' or 'ue8m0'")
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
    check_cache(kv_cache, DIMS)
    if not isinstance(block_table, torch.Tensor) or block_table.ndim != 2:
        found = tuple(block_table.shape) if isinstance(block_table, torch.Tensor) else type(block_table).__name__
        kind = ValueError if isinstance(block_table, torch.Tensor) else TypeError
        raise kind(f"block_table: got {found}, needs a tensor [B, max_blocks]")
    check_positions("block_table", block_table, tuple(block_table.shape), kv_cache.device)
    check_positions("lens", lens, (block_table.shape[0],), kv_cache.device)
    if not isinstance(total, (int, torch.SymInt)) or isinstance(total, bool):
        raise TypeError(f"total: got {type(total).__name__}, needs an int")
    if total < 0:
        raise ValueError(f"total: got {total}, needs 0 or more")
    _check_dtype(dtype)
    keys, scales = torch.ops.capgate.gather_keys(kv_cache, block_table, lens, total)
    return keys.view(dtype), scales


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in FP8_MAX:
        raise ValueError(f"dtype: got {dtype}, needs float8_e4m3fn or float8_e4m3fnuz")


def takes_triton(device: torch.device) -> bool:
    """Whether a device runs Triton's kernels; torch's branch serves otherwise."""
    caps = compat.capabilities(device)
    return bool(device.type != "meta" and caps.gpu and caps.triton and (caps.knows_gfx1250 or not caps.gfx1250))


def _write(k: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor, dtype: torch.dtype, scale_format: str) -> None:
    """Operator ``capgate::quantize_keys_to_cache``."""
    check_address(kv_cache)
    if takes_triton(k.device):
        from . import classic

        classic.write(k, kv_cache, slot_mapping, dtype=dtype, scale_format=scale_format)
    else:
        reference.write(k, kv_cache, slot_mapping, dtype=dtype, scale_format=scale_format)


def _gather(
    kv_cache: torch.Tensor, block_table: torch.Tensor, lens: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::gather_keys``; the keys as bytes."""
    check_address(kv_cache)
    keys, scales = _empty(kv_cache, block_table, lens, total)
    if takes_triton(kv_cache.device):
        from . import classic

        classic.gather(kv_cache, block_table, lens, keys, scales)
    else:
        reference.gather(kv_cache, block_table, lens, keys, scales)
    return keys, scales


def _empty(
    kv_cache: torch.Tensor, block_table: torch.Tensor, lens: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    dim = kv_cache.shape[3] - 4
    return kv_cache.new_empty((total, dim)), kv_cache.new_empty((total,), dtype=torch.float32)


# Operators hide the choice of a branch from torch.compile, as fp8_mqa_logits' do.
_library = torch.library.Library("capgate", "FRAGMENT")
_library.define(
    "quantize_keys_to_cache(Tensor k, Tensor(a!) kv_cache, Tensor slot_mapping, ScalarType dtype, str scale_format) -> ()"
)
_library.define("gather_keys(Tensor kv_cache, Tensor block_table, Tensor lens, SymInt total) -> (Tensor, Tensor)")
_library.impl("quantize_keys_to_cache", _write, "CompositeExplicitAutograd")
_library.impl("gather_keys", _gather, "CompositeExplicitAutograd")
torch.library.register_fake("capgate::quantize_keys_to_cache", lambda *arguments: None, lib=_library)
torch.library.register_fake("capgate::gather_keys", _empty, lib=_library)
