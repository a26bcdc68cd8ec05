"""Logits of listed blocks in plain torch: the variant for machines without a GPU, and the judge of the others."""

from collections.abc import Callable

import torch

from ..common.cache import LAYOUTS, packets_of, readable, scale_bytes_of
from ..common.reference import KEY_TILE, SCORE_BYTES, row_lengths, score
from ..common.schedule.operation import CHUNK_KEYS
from .operands import Dense, Inputs, Paged

Keys = Callable[[slice, torch.Tensor], tuple[torch.Tensor, ...]]  # of some rows, by places [rows, n] among the keys they see


def launch(
    inputs: Inputs,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    candidate_block: int,
    relative: bool = True,
    layout: str = "flat",
    chunk_keys: int = CHUNK_KEYS,
    accumulate: torch.dtype = torch.float32,
) -> None:
    """Fill ``out`` as :func:`capgate.kernels.sparse_mqa_logits` or :func:`capgate.kernels.paged_sparse_mqa_logits` says; the
    arguments have been checked.

    inputs : but for the schedule, which is not needed here
    chunk_keys : of the schedule, and so not needed either
    accumulate : the type of products and sums, ``torch.float64`` to judge the other variants

    Nothing is read back from the device, so that the call can be captured in a GPU graph. Memory beyond the operands is
    bounded by a few times SCORE_BYTES.
    """
    heads, dim = inputs.q.shape[-2:]
    query, weights = inputs.q.view(torch.uint8).reshape(-1, heads, dim).view(inputs.q.dtype), inputs.weights
    if isinstance(inputs, Paged):
        lengths, keys_of = _seen(inputs), _cached_keys(inputs, layout)
        first_block = torch.zeros_like(lengths)
    else:
        begin = inputs.starts.long().clamp(min=0)
        lengths = (inputs.ends.long().clamp(max=inputs.k.shape[0]) - begin).clamp(min=0)
        first_block = torch.zeros_like(begin) if relative else begin // candidate_block
        keys_of = _packed_keys(inputs, begin)

    (rows, columns), (lists, listed) = out.shape, inputs.candidates.shape
    blocks, list_rows = -(-lengths // candidate_block), rows // lists
    key_tile = min(KEY_TILE, columns)
    row_tile = max(1, SCORE_BYTES // (max(heads, dim) * key_tile * accumulate.itemsize))
    for row in range(0, rows, row_tile):
        some = slice(row, row + row_tile)
        written = (blocks[some, None].clamp(max=listed)) * candidate_block
        for column in range(0, columns, key_tile):
            cells = out[some, column : column + key_tile]
            cell = torch.arange(column, column + cells.shape[1], device=out.device)
            block = inputs.candidates[:, column // candidate_block : (column + key_tile) // candidate_block].long()
            block = block[torch.arange(row, row + len(cells), device=out.device) // list_rows]
            block = block.repeat_interleave(candidate_block, 1) - first_block[some, None]
            place = block * candidate_block + cell % candidate_block
            held = (block >= 0) & (place < lengths[some, None])
            key, scale, exists = keys_of(some, place.where(held, 0))
            logits = score(query[some].to(accumulate)[:, None], weights[some].to(accumulate)[:, None], key.to(accumulate))
            logits = (logits[:, 0] * scale).masked_fill_(~(held & exists), float("-inf"))
            outside = torch.full_like(cells, float("-inf")) if clean_logits else cells
            cells.copy_(torch.where(cell < written, logits.to(out.dtype), outside))


def _seen(inputs: Paged) -> torch.Tensor:
    """How many keys each row sees, of those that the table has room for."""
    room = inputs.block_table.shape[1] * inputs.kv_cache.shape[1]
    return row_lengths(inputs.context_lens, inputs.q.shape[1]).flatten().clamp(0, room)


def _packed_keys(inputs: Dense, begin: torch.Tensor) -> Keys:
    """(keys, scales, whether they are there) of rows whose first keys are these."""
    _, k, k_scale, *_ = inputs
    if k.shape[0] == 0:  # something to read in place of keys that no row sees
        k, k_scale = k.new_zeros((1, k.shape[1])), k_scale.new_zeros(1)

    def keys(rows: slice, place: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = (begin[rows, None] + place).clamp(max=k.shape[0] - 1)
        octets = k.view(torch.uint8)[key]  # indexing bytes works for every fp8 type
        return octets.view(k.dtype), k_scale[key], torch.ones_like(key, dtype=torch.bool)

    return keys


def _cached_keys(inputs: Paged, layout: str) -> Keys:
    """(keys, scales, whether the cache has them) of rows of requests."""
    kv_cache, next_n, tile = readable(inputs.kv_cache), inputs.q.shape[1], LAYOUTS[layout]
    packets, scales, block = packets_of(kv_cache, layout), scale_bytes_of(kv_cache), kv_cache.shape[1]
    table = inputs.block_table if inputs.block_table.shape[1] else inputs.block_table.new_full((len(inputs.q), 1), -1)

    def keys(rows: slice, place: torch.Tensor) -> tuple[torch.Tensor, ...]:
        request = torch.arange(rows.start, rows.start + len(place), device=place.device) // next_n
        page = table[request[:, None], place // block].long()
        exists = (page >= 0) & (page < inputs.kv_cache.shape[0])
        page, inside = page.where(exists, 0), place % block
        octets = packets[page, inside // tile, inside % tile].flatten(-2)
        return octets.view(inputs.q.dtype), scales[page, inside].view(torch.float32)[..., 0], exists

    return keys
