"""The key cache's functions in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

import torch
import triton
import triton.language as tl

from ..launch import Launch
from ..quantize import AMAX_FLOOR, FP8_MAX
from .layout import keys_of, scales_of

ROWS = 8  # keys that a program quantises
POSITIONS = 32  # keys that a program gathers
REQUESTS = 256  # lengths that are summed at a time
POWER_OF_TWO = {"fp32": False, "ue8m0": True}


@triton.jit
def units_of(lens, request, num_requests, most, stride_request, stride_column, COLUMNS: tl.constexpr, UNIT: tl.constexpr):
    """How many units of UNIT keys the requests' longest rows have, as int64; requests past the last have none."""
    longest = tl.zeros(request.shape, tl.int32)
    for column in tl.static_range(COLUMNS):
        cell = lens + request.to(tl.int64) * stride_request + column * stride_column
        longest = tl.maximum(longest, tl.load(cell, mask=request < num_requests, other=0))
    return (tl.minimum(longest, most).to(tl.int64) + (UNIT - 1)) // UNIT


@triton.jit
def locate(
    target,
    lens,
    num_requests,
    most,
    stride_request,
    stride_column,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    REQUESTS: tl.constexpr,
):
    """(request, unit of it) of each of the ``target`` units [int64], counted through all requests; past the last unit,
    the number of requests and what is left."""
    request = tl.zeros(target.shape, tl.int32)
    passed_units = tl.zeros(target.shape, tl.int64)
    summed = tl.full((), 0, tl.int64)
    for base in range(0, num_requests, REQUESTS):
        candidate = base + tl.arange(0, REQUESTS)
        units = units_of(lens, candidate, num_requests, most, stride_request, stride_column, COLUMNS, UNIT)
        ends = summed + tl.cumsum(units, axis=0)
        passed = (ends[None, :] <= target[:, None]) & (candidate < num_requests)[None, :]
        request += tl.sum(passed.to(tl.int32), axis=1)
        passed_units += tl.sum(tl.where(passed, units[None, :], 0), axis=1)
        summed += tl.sum(units, axis=0)
    return request, target - passed_units


@triton.jit
def fp8_bytes(value, BIAS: tl.constexpr, FNUZ: tl.constexpr):
    """The bytes of float32 values that the fp8 format (three fraction bits) can hold, rounded to nearest, ties to even.

    In integers, because some architectures, and Triton's interpreter, cannot convert or round otherwise.
    """
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - BIAS) << 3)
    units = tl.abs(value) * (2.0 ** (BIAS + 2))  # of a subnormal; adding 2**23 rounds them to integers
    subnormal = (units + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000
    code = tl.where(magnitude < ((128 - BIAS) << 23), subnormal, normal)
    signed = code | ((bits >> 24) & 0x80)
    if FNUZ:  # no -0: its byte is the NaN
        signed = tl.where(code == 0, 0, signed)
    return tl.where(value != value, 0x80 if FNUZ else 0x7F, signed).to(tl.uint8)


@triton.jit
def write_kernel(
    k,  # [T, D] floating point
    keys,  # [num_blocks, block, D] uint8
    scales,  # [num_blocks, block] float32
    slots,  # [T] int32 or int64
    num_keys,
    num_slots,
    stride_kt,
    stride_kd,
    stride_slots,
    stride_keys,
    stride_scales,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
    FNUZ: tl.constexpr,
    LARGEST: tl.constexpr,
    FLOOR: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    slot = tl.load(slots + row * stride_slots, mask=row < num_keys, other=-1).to(tl.int64)
    kept = (slot >= 0) & (slot < num_slots)
    cell = k + row[:, None] * stride_kt + (dim.to(tl.int64) * stride_kd)[None, :]
    value = tl.load(cell, mask=kept[:, None], other=0.0).to(tl.float32)

    # Magnitudes order as their bits do, those that are not finite last.
    largest = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    amax = tl.maximum(largest.to(tl.float32, bitcast=True), FLOOR)
    scale = tl.div_rn(amax, tl.full([ROWS], LARGEST, tl.float32))
    if POWER_OF_TWO:  # round up: carry every fraction bit into the exponent
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & ~0x7FFFFF).to(tl.float32, bitcast=True)
    whole = largest < 0x7F800000
    scale = tl.where(whole, scale, float("nan"))
    value = tl.div_rn(value, tl.broadcast_to(scale[:, None], [ROWS, DIM]))
    value = tl.where(whole[:, None], value, float("nan"))
    value = tl.where(value > LARGEST, LARGEST, value)  # comparisons keep NaN
    value = tl.where(value < -LARGEST, -LARGEST, value)

    block = slot // BLOCK
    inside = slot % BLOCK
    target = keys + (block * stride_keys + inside * DIM)[:, None] + dim[None, :]
    tl.store(target, fp8_bytes(value, BIAS, FNUZ), mask=kept[:, None])
    tl.store(scales + block * stride_scales + inside, scale, mask=kept)


@triton.jit
def gather_kernel(
    keys,  # [num_blocks, block, D] uint8
    scales,  # [num_blocks, block] float32
    table,  # [B, max_blocks] int32
    lens,  # [B] int32
    out_keys,  # [total, D] uint8
    out_scales,  # [total] float32
    num_requests,
    num_blocks,
    limit,
    total,
    stride_keys,
    stride_scales,
    stride_tb,
    stride_tk,
    stride_lens,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr,
    REQUESTS: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    request, offset = locate(position, lens, num_requests, limit, stride_lens, 0, 1, 1, REQUESTS)
    held = request < num_requests
    wanted = position < total
    page = tl.load(table + request.to(tl.int64) * stride_tb + offset // BLOCK * stride_tk, mask=held & wanted, other=0)
    held &= (page >= 0) & (page < num_blocks)
    page = page.to(tl.int64)
    inside = offset % BLOCK
    dim = tl.arange(0, DIM)
    source = keys + (page * stride_keys + inside * DIM)[:, None] + dim[None, :]
    key = tl.load(source, mask=(held & wanted)[:, None], other=0)
    tl.store(out_keys + (position * DIM)[:, None] + dim[None, :], key, mask=wanted[:, None])
    scale = tl.load(scales + page * stride_scales + inside, mask=held & wanted, other=0.0)
    tl.store(out_scales + position, scale, mask=wanted)


def prepare_write(
    k: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor, *, dtype: torch.dtype, scale_format: str
) -> Launch:
    """The launch that quantises the keys of one call into their slots."""
    keys, scales = keys_of(kv_cache), scales_of(kv_cache)
    (blocks, block, dim), num_keys = keys.shape, k.shape[0]
    fnuz = dtype == torch.float8_e4m3fnuz
    strides = (*k.stride(), slots.stride(0), keys.stride(0), scales.stride(0))
    keywords = {
        "DIM": dim,
        "BLOCK": block,
        "ROWS": ROWS,
        "BIAS": 8 if fnuz else 7,
        "FNUZ": fnuz,
        "LARGEST": FP8_MAX[dtype],
        "FLOOR": AMAX_FLOOR,
        "POWER_OF_TWO": POWER_OF_TWO[scale_format],
        "num_warps": 4,
    }
    arguments = (k, keys, scales, slots, num_keys, blocks * block, *strides)
    return Launch(write_kernel, (-(-num_keys // ROWS),), arguments, keywords)


def write(k: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor, *, dtype: torch.dtype, scale_format: str) -> None:
    """As :func:`.reference.write`."""
    if k.shape[0] and kv_cache.shape[0]:
        prepare_write(k, kv_cache, slots, dtype=dtype, scale_format=scale_format)()


def prepare_gather(
    kv_cache: torch.Tensor, block_table: torch.Tensor, lens: torch.Tensor, keys: torch.Tensor, scales: torch.Tensor
) -> Launch:
    """The launch that fills ``keys`` [total, D] and ``scales`` [total], both contiguous."""
    held_keys, held_scales = keys_of(kv_cache), scales_of(kv_cache)
    (blocks, block, dim), total = held_keys.shape, keys.shape[0]
    limit = block_table.shape[1] * block if blocks else 0
    strides = (held_keys.stride(0), held_scales.stride(0), *block_table.stride(), lens.stride(0))
    arguments = (
        held_keys,
        held_scales,
        block_table,
        lens,
        keys.view(torch.uint8),
        scales,
        len(lens),
        blocks,
        limit,
        total,
        *strides,
    )
    keywords = {"DIM": dim, "BLOCK": block, "POSITIONS": POSITIONS, "REQUESTS": REQUESTS, "num_warps": 4}
    return Launch(gather_kernel, (-(-total // POSITIONS),), arguments, keywords)


def gather(
    kv_cache: torch.Tensor, block_table: torch.Tensor, lens: torch.Tensor, keys: torch.Tensor, scales: torch.Tensor
) -> None:
    """As :func:`.reference.gather`."""
    if keys.shape[0]:
        prepare_gather(kv_cache, block_table, lens, keys, scales)()
