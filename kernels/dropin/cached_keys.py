"""What the engines' writers and gathers of cached keys have in common, over this package's: aiter's, and vLLM's two.

Their caches are [num_blocks, block, W] or [num_blocks, block, 1, W] of one-byte elements, W at least D + 4, with one scale to a
key: see :func:`.caches.cache_of`. Nothing is allocated on the device.
"""

import torch

from ..common.checks import check_integer, check_strided
from ..common.rules import DIMS, native_fp8
from ..key_cache.api import gather_keys_between, quantize_keys_to_cache
from ..quantize import FP8_MAX
from .caches import cache_of
from .families import NotServed

ONE_SCALE = "keys with several scales"
VLLM_FNUZ_MAX = 224.0  # of its writers on gfx942: kFp8ScaleDivisor of csrc/cache_kernels.cu, and rocm_aiter_mla_sparse.py


def write(
    k: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    quant_block_size: int,
    scale_fmt: str,
    layout: str,
    fnuz_max: float | None = None,
) -> None:
    """Quantise keys into their slots: the first of ``k`` and ``slot_mapping``, as many as both have.

    k : [T, D], float32, bfloat16 or float16
    kv_cache : in its own fp8 dtype, or of bytes in that which the device's matrix instructions read
    slot_mapping : [T], int64 or int32; a key whose slot is negative, or past the cache, is skipped
    quant_block_size : D
    scale_fmt : "ue8m0" rounds scales up to powers of two; others, but for "mxfp8", do not
    layout : of :func:`capgate.kernels.quantize_keys_to_cache`
    fnuz_max : its ``largest`` where the keys are float8_e4m3fnuz

    Raises NotServed for keys of other sizes, with several scales, or with a byte for a scale, and TypeError or ValueError as
    that function.
    """
    dim = _served("k", k)
    check_strided("slot_mapping", slot_mapping)
    if check_integer("quant_block_size", quant_block_size, 1) < dim:
        raise NotServed(ONE_SCALE)
    if scale_fmt == "mxfp8":
        raise NotServed("scales of the format mxfp8")
    cache = cache_of("kv_cache", kv_cache, dim)
    count = min(len(k), len(slot_mapping)) if slot_mapping.ndim == 1 else len(k)
    dtype = kv_cache.dtype if kv_cache.dtype in FP8_MAX else getattr(torch, native_fp8(cache.device))
    quantize_keys_to_cache(
        k[:count],
        cache,
        slot_mapping[:count],
        dtype=dtype,
        scale_format="ue8m0" if scale_fmt == "ue8m0" else "fp32",
        layout=layout,
        largest=fnuz_max if dtype == torch.float8_e4m3fnuz else None,
    )


def gather(
    kv_cache: torch.Tensor,
    dst_k: torch.Tensor,
    dst_scale: torch.Tensor,
    block_table: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    layout: str,
) -> None:
    """Copy each request's first keys to rows [cu_seq_lens[b], cu_seq_lens[b + 1]); other rows stay as they are.

    dst_k : [T, D] of one-byte elements
    dst_scale : [T, n] of a dtype of which n elements have 4 bytes, or [T] of 4 bytes
    block_table : [B, max_blocks], int32. The keys of a block that the cache does not have are 0 with scale 0.
    cu_seq_lens : [B + 1], int32
    layout : of :func:`capgate.kernels.gather_keys`

    Raises NotServed for keys of other sizes, with several scales, or of 4-bit values, and TypeError or ValueError for other
    arguments that are not so.
    """
    dim = _served("dst_k", dst_k)
    if dim < 128 and dst_k.dtype not in FP8_MAX:
        raise NotServed("keys of 4-bit values")  # two to a byte, as fp8 keys of half their dims would be
    scales = scales_of("dst_scale", dst_scale)
    cache = cache_of("kv_cache", kv_cache, dim)
    gather_keys_between(cache, block_table, cu_seq_lens, dst_k, scales, layout=layout)


def scales_of(name: str, scales: torch.Tensor) -> torch.Tensor:
    """Scales that an engine declares in any dtype, 4 bytes to a row, as [T] float32. NotServed for more bytes to a row."""
    check_strided(name, scales)
    size, step = scales.element_size(), scales.stride()
    rows = scales[:, None] if scales.ndim == 1 else scales
    if rows.ndim != 2 or rows.shape[1] * size < 4:
        raise ValueError(f"{name}: got shape {tuple(scales.shape)} of {scales.dtype}, needs 4 bytes to a row")
    if rows.shape[1] * size > 4:
        raise NotServed(ONE_SCALE)
    adjacent = rows.shape[1] == 1 or rows.stride(1) == 1
    if not adjacent or rows.stride(0) * size % 4 or rows.storage_offset() * size % 4:
        raise ValueError(f"{name}: got strides {tuple(step)}, needs 4 adjacent bytes to a row, a multiple of 4 apart")
    if size == 4:
        return rows[:, 0].view(torch.float32)
    return rows.view(torch.float32)[:, 0]


def _served(name: str, keys: torch.Tensor) -> int:
    """Bytes of a key. NotServed for sizes that no kernel here has."""
    check_strided(name, keys)
    if keys.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(keys.shape)}, needs [T, D]")
    if keys.shape[1] not in DIMS:
        raise NotServed("keys of other than 32, 64 or 128 dims")
    return int(keys.shape[1])
