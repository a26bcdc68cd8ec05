"""The key cache's functions in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.cache import SCALE_BYTES, keys_of, scales_of
from ..common.device.classic import locate
from ..common.hardware import multiprocessors
from ..quantize import AMAX_FLOOR, FP8_MAX
from .operands import Gathered, Unshuffled, Written
from .operation import Problem
from .tunings import classic_gather, classic_unshuffle, classic_write

POWER_OF_TWO = {"fp32": False, "ue8m0": True}


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
    KEYS: tl.constexpr,
    BIAS: tl.constexpr,
    FNUZ: tl.constexpr,
    LARGEST: tl.constexpr,
    FLOOR: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
):
    key = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM)
    slot = tl.load(slots + key * stride_slots, mask=key < num_keys, other=-1).to(tl.int64)
    kept = (slot >= 0) & (slot < num_slots)
    cell = k + key[:, None] * stride_kt + (dim.to(tl.int64) * stride_kd)[None, :]
    value = tl.load(cell, mask=kept[:, None], other=0.0).to(tl.float32)

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
    request, offset = locate(position, lens, num_requests, limit, stride_lens, 1, REQUESTS)
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


@triton.jit
def unshuffle_kernel(
    shuffled,  # [num_blocks, BLOCK_PACKETS * 4] int32
    flat,  # the same, contiguous
    table,  # [B, max_blocks] int32
    lens,  # [B, ROWS] int32
    num_blocks,
    limit,  # keys that a request can have
    stride_shuffled,
    stride_tb,
    stride_tk,
    stride_lb,
    stride_ln,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_PACKETS: tl.constexpr,
    BLOCK_PACKETS: tl.constexpr,
    PACKETS: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    longest = 0
    for row in tl.static_range(ROWS):
        longest = tl.maximum(longest, tl.load(lens + request * stride_lb + row * stride_ln))
    entries = tl.cdiv(tl.minimum(longest, limit), BLOCK)
    first = tl.program_id(1)
    word = tl.arange(0, 4)[None, :]  # of a packet
    for number in range(tl.cdiv(entries - first, tl.num_programs(1))):
        entry = (first + number * tl.num_programs(1)).to(tl.int64)
        block = tl.load(table + request * stride_tb + entry * stride_tk).to(tl.int64)
        packets = tl.where((block >= 0) & (block < num_blocks), BLOCK_PACKETS, 0)  # none of a block that the cache lacks
        for base in range(0, BLOCK_PACKETS, PACKETS):
            packet = base + tl.arange(0, PACKETS)
            key = packet // KEY_PACKETS
            source = key // 16 * (16 * KEY_PACKETS) + packet % KEY_PACKETS * 16 + key % 16
            source = tl.where(key < BLOCK, source, packet)  # the scales stay where they are
            inside = (packet < packets)[:, None]
            value = tl.load(shuffled + block * stride_shuffled + source[:, None] * 4 + word, mask=inside)
            tl.store(flat + block * (BLOCK_PACKETS * 4) + packet[:, None] * 4 + word, value, mask=inside)


def prepare_write(problem: Problem, inputs: Written, *, dtype: torch.dtype, scale_format: str) -> compat.Launch:
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
        "KEYS": tune.block_keys,
        "BIAS": 8 if fnuz else 7,
        "FNUZ": fnuz,
        "LARGEST": FP8_MAX[dtype],
        "FLOOR": AMAX_FLOOR,
        "POWER_OF_TWO": POWER_OF_TWO[scale_format],
        "num_warps": tune.num_warps,
    }
    arguments = (k, keys, scales, slots, num_keys, blocks * block, *strides)
    return compat.Launch(write_kernel, (-(-num_keys // tune.block_keys),), arguments, keywords)


write = compat.Kernel(prepare_write, tuning=classic_write)


def prepare_gather(problem: Problem, inputs: Gathered, keys: torch.Tensor, scales: torch.Tensor) -> compat.Launch:
    """The launch that fills ``keys`` [total, D] and ``scales`` [total], both contiguous."""
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
        len(lens),
        blocks,
        limit,
        total,
        *strides,
    )
    keywords = {
        "DIM": dim,
        "BLOCK": block,
        "POSITIONS": tune.block_keys,
        "REQUESTS": tune.requests,
        "num_warps": tune.num_warps,
    }
    return compat.Launch(gather_kernel, (-(-total // tune.block_keys),), arguments, keywords)


gather = compat.Kernel(prepare_gather, tuning=classic_gather)


def prepare_unshuffle(problem: Problem, inputs: Unshuffled, flat: torch.Tensor, *, max_context_len: int) -> compat.Launch:
    """The launch that fills the blocks of ``flat`` that the requests use, none of the shapes being empty."""
    kv_cache, block_table, context_lens = inputs
    blocks, block, _, width = kv_cache.shape
    requests, entries = block_table.shape
    tune = classic_unshuffle(problem)
    octets = kv_cache.as_strided((blocks, block * width), (kv_cache.stride(0), 1), kv_cache.storage_offset())
    shuffled = octets.view(torch.int32)
    limit = min(max_context_len, entries * block)
    lens = context_lens if context_lens.ndim == 2 else context_lens[:, None]
    programs = min(entries, max(1, -(-tune.resident * multiprocessors(flat.device) // requests)))
    strides = (shuffled.stride(0), *block_table.stride(), *lens.stride())
    arguments = (shuffled, flat.view(-1).view(torch.int32), block_table, lens, blocks, limit, *strides)
    keywords = {
        "ROWS": lens.shape[1],
        "BLOCK": block,
        "KEY_PACKETS": (width - SCALE_BYTES) // 16,
        "BLOCK_PACKETS": block * width // 16,
        "PACKETS": tune.block_packets,
        "num_warps": tune.num_warps,
    }
    return compat.Launch(unshuffle_kernel, (requests, programs), arguments, keywords)


unshuffle = compat.Kernel(prepare_unshuffle, tuning=classic_unshuffle)
