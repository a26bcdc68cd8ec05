"""Logits of listed blocks in plain torch: the variant for machines without a GPU, and the judge of the others."""

from collections.abc import Callable

import torch

from ..common.cache import LAYOUTS, packets_of, readable, scale_bytes_of
from ..common.mx_cache import format_of, pages_of, values_at
from ..common.mx_operands import dim_of, values_of
from ..common.reference import KEY_TILE, SCORE_BYTES, row_lengths, score, score_in_bfloat16
from ..common.schedule.operation import CHUNK_KEYS
from .operands import Cached, Inputs, Mx, MxDense, MxPaged, Packed

Keys = Callable[[slice, torch.Tensor], tuple[torch.Tensor, ...]]  # of some rows, by places [rows, n] among the keys they see
Queries = Callable[[slice], torch.Tensor]  # of some rows


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
    bfloat16_sums: bool = False,
) -> None:
    """Fill ``out`` as :func:`capgate.kernels.sparse_mqa_logits` says, or its like for a cache or MX formats; the arguments
    have been checked.

    inputs : but for the schedule, which is not needed here
    chunk_keys : of the schedule, and so not needed either
    accumulate : the type of products and sums, ``torch.float64`` to judge the other variants
    bfloat16_sums : sum over the heads as DeepGEMM's kernels for sm100 do: see :func:`..common.reference.score_in_bfloat16`

    Nothing is read back from the device, so that the call can be captured in a GPU graph. Memory beyond the operands is
    bounded by a few times SCORE_BYTES.
    """
    weights, of_heads = inputs.weights, score_in_bfloat16 if bfloat16_sums else score
    (query_of, dim), heads = _queries(inputs), weights.shape[1]
    if isinstance(inputs, Cached):
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
            query, weight = query_of(some).to(accumulate), weights[some].to(accumulate)
            logits = of_heads(query[:, None], weight[:, None], key.to(accumulate))
            logits = (logits[:, 0] * scale).masked_fill_(~(held & exists), float("-inf"))
            outside = torch.full_like(cells, float("-inf")) if clean_logits else cells
            cells.copy_(torch.where(cell < written, logits.to(out.dtype), outside))


def _queries(inputs: Inputs) -> tuple[Queries, int]:
    """(the queries of rows, D)."""
    octets = inputs.q.view(torch.uint8)
    octets = octets.reshape(-1, *octets.shape[-2:])  # indexing bytes works for every type
    if not isinstance(inputs, Mx):
        return lambda rows: octets[rows].view(inputs.q.dtype), octets.shape[-1]
    words = inputs.q_scale.reshape(-1, octets.shape[-2])
    return lambda rows: values_of(octets[rows].view(inputs.q.dtype), words[rows]), dim_of(inputs.q)


def _seen(inputs: Cached) -> torch.Tensor:
    """How many keys each row sees, of those that the table has room for."""
    room = inputs.block_table.shape[1] * inputs.kv_cache.shape[1]
    return row_lengths(inputs.context_lens, inputs.q.shape[1]).flatten().clamp(0, room)


def _packed_keys(inputs: Packed, begin: torch.Tensor) -> Keys:
    """(keys, scales, whether they are there) of rows whose first keys are these; in MX formats scales are in the keys."""
    k, k_scale = inputs.k, inputs.k_scale
    if k.shape[0] == 0:  # something to read in place of keys that no row sees
        k, k_scale = k.new_zeros((1, k.shape[1])), k_scale.new_zeros(1)

    def keys(rows: slice, place: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = (begin[rows, None] + place).clamp(max=k.shape[0] - 1)
        values, scale = k.view(torch.uint8)[key].view(k.dtype), k_scale[key]
        if isinstance(inputs, MxDense):
            values, scale = values_of(values, scale), torch.ones_like(key)
        return values, scale, torch.ones_like(key, dtype=torch.bool)

    return keys


def _cached_keys(inputs: Cached, layout: str) -> Keys:
    """(keys, scales, whether the cache has them) of rows of requests; in MX formats scales are in the keys."""
    kv_cache, next_n = readable(inputs.kv_cache), inputs.q.shape[1]
    block, values_of_places = kv_cache.shape[1], _cached_values(inputs, kv_cache, layout)
    table = inputs.block_table if inputs.block_table.shape[1] else inputs.block_table.new_full((len(inputs.q), 1), -1)

    def keys(rows: slice, place: torch.Tensor) -> tuple[torch.Tensor, ...]:
        request = torch.arange(rows.start, rows.start + len(place), device=place.device) // next_n
        page = table[request[:, None], place // block].long()
        exists = (page >= 0) & (page < inputs.kv_cache.shape[0])
        return *values_of_places(page.where(exists, 0), place % block), exists

    return keys


def _cached_values(
    inputs: Cached, kv_cache: torch.Tensor, layout: str
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(keys, scales) of places in blocks of a cache that has some."""
    if isinstance(inputs, MxPaged):
        key_format, pages = format_of(kv_cache, dim_of(inputs.q)), pages_of(kv_cache, None, layout)
        return lambda page, inside: (values_at(pages, page, inside, key_format), torch.ones_like(page))
    tile, dtype = LAYOUTS[layout], inputs.q.dtype
    packets, scales = packets_of(kv_cache, layout), scale_bytes_of(kv_cache)

    def values(page: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        octets = packets[page, inside // tile, inside % tile].flatten(-2)
        return octets.view(dtype), scales[page, inside].view(torch.float32)[..., 0]

    return values
