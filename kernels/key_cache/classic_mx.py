"""The key cache's functions for keys in MX formats in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.cached_keys import SCALE_BYTES, first_byte, further_byte, scale_byte
from ..common.device.number_formats import mx_octets, widened
from ..common.mx_cache import pages_of
from ..common.mx_rules import RULES, constants_of
from .classic import find_keys, load_keys
from .operands_mx import MxBetween, MxGathered, MxWritten
from .operation_mx import Problem
from .tunings import classic_gather, classic_write


@triton.jit
def mx_write_kernel(
    k,  # [T, D] floating point
    values,  # [num_blocks, block * KEY_BYTES] uint8, in tiles of TILE keys
    scales,  # [num_blocks, block * 4] uint8, in tiles of SCALE_TILE keys
    slots,  # [T] int32 or int64
    num_keys,
    num_slots,
    stride_kt,
    stride_kd,
    stride_slots,
    stride_values,
    stride_scales,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SCALE_TILE: tl.constexpr,
    SCALE_LANES: tl.constexpr,
    BY_SIXTEENS: tl.constexpr,
    KEYS: tl.constexpr,
    FP4: tl.constexpr,
    GROUP: tl.constexpr,
    LARGEST: tl.constexpr,
    CARRY: tl.constexpr,
    EXPONENT: tl.constexpr,
    LEAST: tl.constexpr,
    EVEN: tl.constexpr,
    SIGNED_ZERO: tl.constexpr,
):
    value, slot, kept = load_keys(k, slots, num_keys, num_slots, stride_kt, stride_kd, stride_slots, DIM, KEYS)
    octet, byte = mx_octets(widened(value), FP4, GROUP, LARGEST, CARRY, EXPONENT, LEAST, EVEN, SIGNED_ZERO)

    key_bytes: tl.constexpr = octet.shape[1]
    block = slot // BLOCK
    inside = slot % BLOCK
    at = further_byte(tl.arange(0, key_bytes), TILE)
    target = values + (block * stride_values + first_byte(inside, key_bytes, TILE))[:, None] + at[None, :]
    tl.store(target, octet, mask=kept[:, None])
    scale = scales + (block * stride_scales)[:, None]
    group = tl.arange(0, DIM // 32)[None, :]
    at = scale_byte(inside[:, None], group, SCALE_TILE, SCALE_LANES, BY_SIXTEENS)
    tl.store(scale + at, byte.to(tl.uint8), mask=kept[:, None])
    if DIM // 32 < SCALE_BYTES:  # the bytes of a key's scales that no group has are 0
        group = tl.arange(0, SCALE_BYTES)[None, :]
        at = scale_byte(inside[:, None], group, SCALE_TILE, SCALE_LANES, BY_SIXTEENS)
        tl.store(scale + at, tl.zeros(at.shape, tl.uint8), mask=kept[:, None] & (group >= DIM // 32))


@triton.jit
def mx_gather_kernel(
    values,  # [num_blocks, block * KEY_BYTES] uint8, in tiles of TILE keys
    scales,  # [num_blocks, block * 4] uint8, in tiles of SCALE_TILE keys
    table,  # [B, max_blocks] int32
    lens,  # [B] int32; or if BETWEEN, [B + 1] int32: where each request's keys begin, and where the last one's end
    out_keys,  # [total, KEY_BYTES] uint8
    out_scales,  # [total, 4] uint8
    num_requests,
    num_blocks,
    limit,
    total,
    stride_values,
    stride_scales,
    stride_tb,
    stride_tk,
    stride_lens,
    KEY_BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SCALE_TILE: tl.constexpr,
    SCALE_LANES: tl.constexpr,
    BY_SIXTEENS: tl.constexpr,
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
    byte = tl.arange(0, KEY_BYTES)
    source = values + (page * stride_values + first_byte(inside, KEY_BYTES, TILE))[:, None] + further_byte(byte, TILE)[None, :]
    octet = tl.load(source, mask=held[:, None], other=0)
    tl.store(out_keys + (position * OUT_KEY)[:, None] + byte[None, :], octet, mask=wanted[:, None])
    group = tl.arange(0, SCALE_BYTES)[None, :]
    source = scales + (page * stride_scales)[:, None] + scale_byte(inside[:, None], group, SCALE_TILE, SCALE_LANES, BY_SIXTEENS)
    scale = tl.load(source, mask=held[:, None], other=0)
    tl.store(out_scales + (position * OUT_SCALE)[:, None] + group, scale, mask=wanted[:, None])


def prepare_write(problem: Problem, inputs: MxWritten, *, key_format: str, rule: str, layout: str) -> compat.Launch:
    """The launch that quantises the keys of one call into their slots."""
    k, kv_cache, slots, kv_scale = inputs
    values, scales, block, _, at = pages_of(kv_cache, kv_scale, layout)
    (num_keys, dim), tune = k.shape, classic_write(problem)
    strides = (*k.stride(), slots.stride(0), values.stride(0), scales.stride(0))
    keywords = {
        "DIM": dim,
        "BLOCK": block,
        "TILE": at.tile_of(block),
        "SCALE_TILE": at.scale_tile_of(block),
        "SCALE_LANES": at.scale_lanes,
        "BY_SIXTEENS": at.by_sixteens,
        "KEYS": tune.block_keys,
        **constants_of(key_format, RULES[key_format][rule], dim),
        "num_warps": tune.num_warps,
    }
    arguments = (k, values, scales, slots, num_keys, values.shape[0] * block, *strides)
    return compat.Launch(mx_write_kernel, (-(-num_keys // tune.block_keys),), arguments, keywords)


write = compat.Kernel(prepare_write, tuning=classic_write)


def prepare_gather(
    problem: Problem,
    inputs: MxGathered | MxBetween,
    keys: torch.Tensor,
    scales: torch.Tensor,
    *,
    key_format: str,
    layout: str,
) -> compat.Launch:
    """The launch that fills ``keys`` [total, D or D / 2] and ``scales`` [total]; each key's bytes are adjacent."""
    kv_cache, block_table, lens, kv_scale = inputs
    values, held_scales, block, key_bytes, at = pages_of(kv_cache, kv_scale, layout)
    (blocks, total), tune = (values.shape[0], keys.shape[0]), classic_gather(problem)
    scale_bytes = scales[:, None].view(torch.uint8)
    arguments = (
        values,
        held_scales,
        block_table,
        lens,
        keys.view(torch.uint8),
        scale_bytes,
        block_table.shape[0],
        blocks,
        block_table.shape[1] * block if blocks else 0,
        total,
        values.stride(0),
        held_scales.stride(0),
        *block_table.stride(),
        lens.stride(0),
    )
    keywords = {
        "KEY_BYTES": key_bytes,
        "BLOCK": block,
        "TILE": at.tile_of(block),
        "SCALE_TILE": at.scale_tile_of(block),
        "SCALE_LANES": at.scale_lanes,
        "BY_SIXTEENS": at.by_sixteens,
        "BETWEEN": isinstance(inputs, MxBetween),
        "OUT_KEY": keys.stride(0),
        "OUT_SCALE": scale_bytes.stride(0),
        "POSITIONS": tune.block_keys,
        "REQUESTS": tune.requests,
        "num_warps": tune.num_warps,
    }
    return compat.Launch(mx_gather_kernel, (-(-total // tune.block_keys),), arguments, keywords)


gather = compat.Kernel(prepare_gather, tuning=classic_gather)
