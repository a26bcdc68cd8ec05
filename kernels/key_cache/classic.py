"""The key cache's functions in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.cache import LAYOUTS, keys_of, scales_of
from ..common.device.cached_keys import first_byte, further_byte
from ..common.device.classic import locate, locate_between
from ..common.device.number_formats import fp8_bytes
from ..quantize import AMAX_FLOOR, FP8_MAX
from .operands import Between, Gathered, Written
from .operation import Problem
from .tunings import classic_gather, classic_write

POWER_OF_TWO = {"fp32": False, "ue8m0": True}


@triton.jit
def load_keys(
    k, slots, num_keys, num_slots, stride_kt, stride_kd, stride_slots, DIM: tl.constexpr, KEYS: tl.constexpr
):  # fmt: skip
    """(keys [KEYS, DIM], their slots, whether the cache has those) of a program; keys of other slots are 0."""
    key = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM)
    slot = tl.load(slots + key * stride_slots, mask=key < num_keys, other=-1).to(tl.int64)
    kept = (slot >= 0) & (slot < num_slots)
    cell = k + key[:, None] * stride_kt + (dim.to(tl.int64) * stride_kd)[None, :]
    return tl.load(cell, mask=kept[:, None], other=0.0), slot, kept


@triton.jit
def find_keys(
    table, lens, num_requests, num_blocks, limit, total, stride_tb, stride_tk, stride_lens,
    BLOCK: tl.constexpr, BETWEEN: tl.constexpr, POSITIONS: tl.constexpr, REQUESTS: tl.constexpr,
):  # fmt: skip
    """(positions in the results, block, place in it, whether the cache has the key, whether it is asked for) of a program."""
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    if BETWEEN:
        request, offset = locate_between(position, lens, num_requests, stride_lens, REQUESTS)
        of_request = (request >= 0) & (request < num_requests)
        held = of_request & (offset < limit)
        wanted = of_request & (position < total)
    else:
        request, offset = locate(position, lens, num_requests, limit, stride_lens, 1, REQUESTS)
        held = request < num_requests
        wanted = position < total
    page = tl.load(table + request.to(tl.int64) * stride_tb + offset // BLOCK * stride_tk, mask=held & wanted, other=0)
    held &= (page >= 0) & (page < num_blocks)
    page = page.to(tl.int64)
    inside = offset % BLOCK
    return position, page, inside, held & wanted, wanted


@triton.jit
def write_kernel(
    k,  # [T, D] floating point
    keys,  # [num_blocks, block, D] uint8, in tiles of TILE keys
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
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    BIAS: tl.constexpr,
    FNUZ: tl.constexpr,
    LARGEST: tl.constexpr,
    FLOOR: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
):
    value, slot, kept = load_keys(k, slots, num_keys, num_slots, stride_kt, stride_kd, stride_slots, DIM, KEYS)
    dim = tl.arange(0, DIM)
    value = value.to(tl.float32)

    # Magnitudes order as their bits do, those that are not finite last.
    largest = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    amax = tl.maximum(largest.to(tl.float32, bitcast=True), FLOOR)
    scale = tl.div_rn(amax, tl.full([KEYS], LARGEST, tl.float32))
    if POWER_OF_TWO:  # round up: carry every fraction bit into the exponent
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & ~0x7FFFFF).to(tl.float32, bitcast=True)
    whole = largest < 0x7F800000
    scale = tl.where(whole, scale, float("nan"))
    value = tl.div_rn(value, tl.broadcast_to(scale[:, None], [KEYS, DIM]))
    value = tl.where(whole[:, None], value, float("nan"))
    value = tl.where(value > LARGEST, LARGEST, value)  # comparisons keep NaN
    value = tl.where(value < -LARGEST, -LARGEST, value)

    block = slot // BLOCK
    inside = slot % BLOCK
    target = keys + (block * stride_keys + first_byte(inside, DIM, TILE))[:, None] + further_byte(dim, TILE)[None, :]
    tl.store(target, fp8_bytes(value, BIAS, FNUZ), mask=kept[:, None])
    tl.store(scales + block * stride_scales + inside, scale, mask=kept)


@triton.jit
def gather_kernel(
    keys,  # [num_blocks, block, D] uint8, in tiles of TILE keys
    scales,  # [num_blocks, block] float32
    table,  # [B, max_blocks] int32
    lens,  # [B] int32; or if BETWEEN, [B + 1] int32: where each request's keys begin, and where the last one's end
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
    TILE: tl.constexpr,
    BETWEEN: tl.constexpr,
    OUT_KEY: tl.constexpr,  # how far apart the results lie: constants, because they are those of contiguous ones nearly always
    OUT_SCALE: tl.constexpr,
    POSITIONS: tl.constexpr,
    REQUESTS: tl.constexpr,
):
    position, page, inside, held, wanted = find_keys(
        table, lens, num_requests, num_blocks, limit, total, stride_tb, stride_tk, stride_lens,
        BLOCK, BETWEEN, POSITIONS, REQUESTS,
    )  # fmt: skip
    dim = tl.arange(0, DIM)
    source = keys + (page * stride_keys + first_byte(inside, DIM, TILE))[:, None] + further_byte(dim, TILE)[None, :]
    key = tl.load(source, mask=held[:, None], other=0)
    tl.store(out_keys + (position * OUT_KEY)[:, None] + dim[None, :], key, mask=wanted[:, None])
    scale = tl.load(scales + page * stride_scales + inside, mask=held, other=0.0)
    tl.store(out_scales + position * OUT_SCALE, scale, mask=wanted)


def prepare_write(
    problem: Problem,
    inputs: Written,
    *,
    dtype: torch.dtype,
    scale_format: str,
    layout: str = "flat",
    largest: float | None = None,
) -> compat.Launch:
    """The launch that quantises the keys of one call into their slots."""
    k, kv_cache, slots = inputs
    keys, scales = keys_of(kv_cache), scales_of(kv_cache)
    (blocks, block, dim), num_keys = keys.shape, k.shape[0]
    tune = classic_write(problem)
    fnuz = dtype == torch.float8_e4m3fnuz
    strides = (*k.stride(), slots.stride(0), keys.stride(0), scales.stride(0))
    keywords = {
        "DIM": dim,
        "BLOCK": block,
        "TILE": LAYOUTS[layout],
        "KEYS": tune.block_keys,
        "BIAS": 8 if fnuz else 7,
        "FNUZ": fnuz,
        "LARGEST": FP8_MAX[dtype] if largest is None else largest,
        "FLOOR": AMAX_FLOOR,
        "POWER_OF_TWO": POWER_OF_TWO[scale_format],
        "num_warps": tune.num_warps,
    }
    arguments = (k, keys, scales, slots, num_keys, blocks * block, *strides)
    return compat.Launch(write_kernel, (-(-num_keys // tune.block_keys),), arguments, keywords)


write = compat.Kernel(prepare_write, tuning=classic_write)


def prepare_gather(
    problem: Problem, inputs: Gathered | Between, keys: torch.Tensor, scales: torch.Tensor, *, layout: str = "flat"
) -> compat.Launch:
    """The launch that fills ``keys`` [total, D] and ``scales`` [total]; each key's bytes are adjacent."""
    kv_cache, block_table, lens = inputs
    held_keys, held_scales = keys_of(kv_cache), scales_of(kv_cache)
    (blocks, block, dim), total = held_keys.shape, keys.shape[0]
    tune = classic_gather(problem)
    limit = block_table.shape[1] * block if blocks else 0
    strides = (held_keys.stride(0), held_scales.stride(0), *block_table.stride(), lens.stride(0))
    arguments = (
        held_keys,
        held_scales,
        block_table,
        lens,
        keys.view(torch.uint8),
        scales,
        block_table.shape[0],
        blocks,
        limit,
        total,
        *strides,
    )
    keywords = {
        "DIM": dim,
        "BLOCK": block,
        "TILE": LAYOUTS[layout],
        "BETWEEN": isinstance(inputs, Between),
        "OUT_KEY": keys.stride(0),
        "OUT_SCALE": scales.stride(0),
        "POSITIONS": tune.block_keys,
        "REQUESTS": tune.requests,
        "num_warps": tune.num_warps,
    }
    return compat.Launch(gather_kernel, (-(-total // tune.block_keys),), arguments, keywords)


gather = compat.Kernel(prepare_gather, tuning=classic_gather)
