"""Writing and gathering cached keys as engines do, through whichever drop-in: the values and scales, byte by byte.

As aiter's own test of the two: write, compare the cache with the definition, gather, compare the results with what was written.
"""

from collections.abc import Callable

import torch

from capgate.kernels.quantize import quantize_keys

from .paged import byte_of

FN = torch.float8_e4m3fn
FILL = 0x5B


def empty_cache(blocks: int, block: int, dim: int, *, gap: int = 0, width: int = 0, dtype: torch.dtype = FN) -> torch.Tensor:
    """[blocks, block, width], as engines have it, in a pool whose blocks are ``gap`` bytes further apart than they are long."""
    width = width or dim + 4
    memory = torch.full((blocks * (block * width + gap),), FILL, dtype=torch.uint8)
    return memory.as_strided((blocks, block, width), (block * width + gap, width, 1)).view(dtype)


def expected_cache(
    empty: torch.Tensor, k: torch.Tensor, slots: torch.Tensor, layout: str, scale_format: str, dtype: torch.dtype = FN
) -> torch.Tensor:
    """The bytes of all of an empty cache's memory, once the keys are in their slots."""
    keys, scales = quantize_keys(k, dtype, scale_format=scale_format)
    block, dim = empty.shape[1], k.shape[1]
    memory = torch.empty(0, dtype=torch.uint8).set_(empty.untyped_storage()).clone()
    for key, scale, slot in zip(keys.view(torch.uint8), scales, slots.tolist(), strict=True):
        if slot >= 0:
            start = empty.storage_offset() + slot // block * empty.stride(0)
            memory[start + byte_of(torch.tensor(slot % block), torch.arange(dim), dim, layout)] = key
            place = start + block * dim + 4 * (slot % block)
            memory[place : place + 4] = scale[None].view(torch.uint8)
    return memory


def check_written(
    write: Callable[..., None],
    *,
    layout: str,
    scale_fmt: str,
    block: int,
    dim: int = 128,
    gap: int = 0,
    width: int = 0,
    dtype: torch.dtype = FN,
    tokens: int = 21,
) -> None:
    """``write(k, kv_cache, slot_mapping, quant_block_size, scale_fmt)`` writes these bytes and no others.

    There are more keys than slots, as where an engine pads them for a graph, and some slots are -1.
    """
    generator = torch.Generator().manual_seed(block)
    blocks = -(-tokens // block) + 1
    k = torch.randn(tokens + 3, dim, generator=generator).bfloat16()
    slots = torch.randperm(blocks * block, generator=generator)[:tokens]
    slots[::7] = -1
    cache = empty_cache(blocks, block, dim, gap=gap, width=width, dtype=dtype)
    kind = dtype if dtype != torch.uint8 else FN
    expected = expected_cache(cache, k[:tokens], slots, layout, "ue8m0" if scale_fmt == "ue8m0" else "fp32", kind)
    assert write(k, cache, slots, dim, scale_fmt) is None
    assert torch.equal(torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage()), expected)


def check_gathered(
    gather: Callable[..., None],
    *,
    layout: str,
    block: int,
    scale_dtype: torch.dtype,
    dim: int = 128,
    gap: int = 0,
    width: int = 0,
) -> None:
    """``gather(kv_cache, dst_k, dst_scale, block_table, cu_seq_lens)``: keys side by side, and rows behind them untouched."""
    generator, counts = torch.Generator().manual_seed(block), [17, 0, 40, 3]
    entries = -(-40 // block)
    table = torch.randperm(4 * entries, generator=generator).int().view(4, entries)
    k = torch.randn(sum(counts), dim, generator=generator).bfloat16()
    request = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    position = torch.cat([torch.arange(count) for count in counts])
    slots = table[request, position // block] * block + position % block
    cache = empty_cache(4 * entries, block, dim, gap=gap, width=width)
    memory = expected_cache(cache, k, slots, layout, "fp32")
    torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage()).copy_(memory)
    total = sum(counts) + 9
    keys, scales = torch.full((total, dim), FILL, dtype=torch.uint8).view(FN), torch.full((total, 4), FILL, dtype=torch.uint8)
    sums = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    assert gather(cache, keys, scales.view(scale_dtype), table, sums) is None
    for result, values in zip((keys, scales.view(torch.float32)[:, 0]), quantize_keys(k), strict=True):
        assert torch.equal(result[: len(k)].view(torch.uint8), values.view(torch.uint8))
        assert (result[len(k) :].view(torch.uint8) == FILL).all()
