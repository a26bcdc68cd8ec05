"""The copy out of a preshuffled key cache in classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP."""

import torch
import triton
import triton.language as tl

from ..key_cache.layout import SCALE_BYTES
from ..launch import Launch, multiprocessors

PIECES = 256  # of 16 bytes, that a program moves at a time
PROGRAMS = 8  # on each SM or CU, shared by the requests


@triton.jit
def unshuffle_kernel(
    shuffled,  # [num_blocks, BLOCK_PIECES * 4] int32
    flat,  # the same, contiguous
    table,  # [B, max_blocks] int32
    lens,  # [B, COLUMNS] int32
    num_blocks,
    limit,  # keys that a request can have
    stride_shuffled,
    stride_tb,
    stride_tk,
    stride_lb,
    stride_ln,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_PIECES: tl.constexpr,
    BLOCK_PIECES: tl.constexpr,
    PIECES: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    longest = 0
    for column in tl.static_range(COLUMNS):
        longest = tl.maximum(longest, tl.load(lens + request * stride_lb + column * stride_ln))
    entries = tl.cdiv(tl.minimum(longest, limit), BLOCK)
    first = tl.program_id(1)
    word = tl.arange(0, 4)[None, :]  # of a piece
    for number in range(tl.cdiv(entries - first, tl.num_programs(1))):
        entry = (first + number * tl.num_programs(1)).to(tl.int64)
        block = tl.load(table + request * stride_tb + entry * stride_tk).to(tl.int64)
        held = (block >= 0) & (block < num_blocks)
        for base in range(0, BLOCK_PIECES, PIECES):
            piece = base + tl.arange(0, PIECES)
            key = piece // KEY_PIECES
            source = key // 16 * (16 * KEY_PIECES) + piece % KEY_PIECES * 16 + key % 16
            source = tl.where(key < BLOCK, source, piece)  # the scales stay where they are
            inside = (held & (piece < BLOCK_PIECES))[:, None]
            value = tl.load(shuffled + block * stride_shuffled + source[:, None] * 4 + word, mask=inside)
            tl.store(flat + block * (BLOCK_PIECES * 4) + piece[:, None] * 4 + word, value, mask=inside)


def prepare(
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    max_context_len: int,
    flat: torch.Tensor,
) -> Launch:
    """The launch that copies the blocks of one call; the tensors may be meta tensors."""
    blocks, block, _, width = kv_cache.shape
    requests, entries = block_table.shape
    octets = kv_cache.as_strided((blocks, block * width), (kv_cache.stride(0), 1), kv_cache.storage_offset())
    shuffled = octets.view(torch.int32)
    limit = min(max_context_len, entries * block)
    lens = context_lens if context_lens.ndim == 2 else context_lens[:, None]
    programs = min(entries, max(1, -(-PROGRAMS * multiprocessors(flat.device) // requests)))
    strides = (shuffled.stride(0), *block_table.stride(), *lens.stride())
    arguments = (shuffled, flat.view(-1).view(torch.int32), block_table, lens, blocks, limit, *strides)
    keywords = {
        "COLUMNS": lens.shape[1],
        "BLOCK": block,
        "KEY_PIECES": (width - SCALE_BYTES) // 16,
        "BLOCK_PIECES": block * width // 16,
        "PIECES": PIECES,
        "num_warps": 4,
    }
    return Launch(unshuffle_kernel, (requests, programs), arguments, keywords)


def unshuffle(
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    max_context_len: int,
    flat: torch.Tensor,
) -> None:
    """Fill the blocks of ``flat`` that the requests use, none of the shapes being empty."""
    prepare(kv_cache, block_table, context_lens, max_context_len, flat)()
