"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    logits[i, j * C + o] = scale * sum_h weights[i, h] * relu(q[i, h, :] . key)    of key o in the block candidates[i, j]

C being the keys of a candidate block. The listed keys of all rows, cut into chunks, are shared out evenly among a fixed number of
programs by a schedule, and each walks its chunks from one row to the next, as in the paged kernel. A tile gathers its keys block
by block: only the listed ones are read. Packed keys are a cache whose blocks hold one key and whose table need not be read.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.cache import LAYOUTS, keys_of, readable, scales_of
from ..common.device.classic import fill, fn_to_fnuz, load_blocks, load_keys, operands, rounded, score
from ..common.device.windows import keys_of_share, load_share, next_turn, row_keys
from ..common.rules import padded_heads, product_options
from ..common.schedule.classic import new_schedule, programs_of_a_worker, workers_that_fit
from ..common.schedule.operation import CHUNK_KEYS
from .operands import Dense, Inputs, Paged
from .operation import Problem
from .tunings import classic as tuning

MAX_KEYS = 2**30  # that a row of a request can see, so that a position is 32 bits wide


@triton.jit
def load_tile(
    keys,
    scales,
    entries,
    lines,
    base,
    window,
    num_blocks,
    stride_keys,
    stride_scales,
    stride_kd,
    stride_tk,
    stride_cc,
    CANDIDATE: tl.constexpr,
    RELATIVE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    TO_FNUZ: tl.constexpr,
    WORD: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(keys, scales, whether the row sees them) of one tile of a row's cells, the first two as :func:`score` takes them.

    keys : in elements of WORD bytes
    entries : the request's row of the block table
    lines : the row's candidates
    window : (first, how many, cells) of the keys that the row sees; of cells past the last the last block is read
    """
    first, count, written = window
    cell = tl.minimum(base + tl.arange(0, BLOCK_KEYS), written - 1)
    block = tl.load(lines + (cell // CANDIDATE).to(INDEX) * stride_cc)
    if not RELATIVE:
        block -= first // CANDIDATE
    listed = block.to(tl.uint32) < tl.cdiv(count, CANDIDATE).to(tl.uint32)  # below 0 is a large number
    place = tl.where(listed, block, 0) * CANDIDATE + cell % CANDIDATE
    held = listed & (place < count)
    near = tl.minimum(place, count - 1)
    if BLOCK == 0:
        key, scale = load_keys(
            keys, scales, (first + near).to(tl.int64), tl.zeros_like(near), stride_keys, stride_scales, stride_kd, DIM, 1, WORD,
            INDEX,
        )  # fmt: skip
    else:
        page, exists = load_blocks(entries + (near // BLOCK).to(tl.int64) * stride_tk, num_blocks)
        held = held & exists
        key, scale = load_keys(
            keys, scales, page, near % BLOCK, stride_keys, stride_scales, stride_kd, DIM, TILE, WORD, INDEX
        )
    if TO_FNUZ:
        key = fn_to_fnuz(key)
        scale *= 4.0  # both operands were halved
    return key, scale, held


@triton.jit
def sparse_mqa_logits_kernel(
    q,  # [num_rows / NEXT_N, NEXT_N, H, D] fp8
    keys,  # [num_keys, D] fp8, or a cache's as the paged kernel takes them
    scales,  # [num_keys] float32, or [num_blocks, BLOCK]
    weights,  # [num_rows, H] float32 or bfloat16
    starts,  # [num_rows] int32, of packed keys
    ends,  # [num_rows] int32, or a cache's lengths as windows.seen takes them
    table,  # [num_rows / NEXT_N, max_blocks] int32, of a cache
    candidates,  # [num_rows, listed] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [num_rows, width] float32 or bfloat16
    num_rows,
    num_blocks,  # of the cache; keys of others score as -inf
    most,  # keys that there are, or that the table has room for
    listed,  # candidates of a row
    strips,  # to fill: those of a row times the rows
    splits,  # programs that share a worker's tiles, taking turns
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_keys,
    stride_kd,
    stride_scales,
    stride_ws,
    stride_wh,
    stride_starts,
    stride_ends,
    stride_next,
    stride_tb,
    stride_tk,
    stride_cs,
    stride_cc,
    stride_os,
    stride_on,
    NEXT_N: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    CANDIDATE: tl.constexpr,
    RELATIVE: tl.constexpr,
    BLOCK: tl.constexpr,  # 0 for packed keys
    TILE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    STRIP: tl.constexpr,
    CLEAN: tl.constexpr,
    ROW_LENS: tl.constexpr,
    TO_FNUZ: tl.constexpr,
    WORD: tl.constexpr,
    MAXIMUM: tl.constexpr,
    CUTS: tl.constexpr,
    INDEX: tl.constexpr,
):
    words = keys.to(tl.pointer_type(tl.uint32)) if WORD == 4 else keys

    worker = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    first_row, first_chunk, last_row, last_chunk = load_share(schedule, worker, num_rows, False)

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        near_strip = tl.arange(0, 1)
        width = listed * CANDIDATE
        row_strips = tl.cdiv(width, STRIP)
        for strip in range(tl.program_id(0), strips, tl.num_programs(0)):
            row = (strip // row_strips).to(tl.int32)
            base = (strip % row_strips).to(tl.int32) * STRIP
            _, count = row_keys(
                row, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, NEXT_N, ROW_LENS, BLOCK == 0
            )
            first = tl.maximum(base, tl.minimum(tl.cdiv(count, CANDIDATE), listed) * CANDIDATE)
            last = tl.minimum(base + STRIP, width)
            if first < last:
                row_offset = row.to(tl.int64) * stride_os + near_strip
                fill(out, first, last - first, row_offset, near_strip == 0, stride_on, STRIP, INDEX)

    # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
    head = tl.arange(0, PADDED_HEADS)
    near_head = tl.minimum(head, HEADS - 1).to(INDEX)
    dim = tl.arange(0, DIM)
    place = tl.arange(0, BLOCK_KEYS)
    num_blocks = tl.full((), num_blocks, tl.uint32)

    turn = split  # of this program, counted from a row's first tile
    past_row = tl.minimum(tl.where(last_chunk > 0, last_row + 1, last_row), num_rows)
    for number in range(past_row - first_row):
        row = first_row + number
        row64 = row.to(tl.int64)
        first, count = row_keys(
            row, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, NEXT_N, ROW_LENS, BLOCK == 0
        )
        written = tl.minimum(tl.cdiv(count, CANDIDATE), listed) * CANDIDATE
        begin, end = keys_of_share(row, written, first_row, first_chunk, last_row, last_chunk, CHUNK)
        my_first, past_tile = begin // BLOCK_KEYS + turn, tl.cdiv(end, BLOCK_KEYS)
        if my_first < past_tile:
            # What one row reads in shared memory the next one overwrites: see the paged kernel.
            tl.debug_barrier()
            request64 = row64 // NEXT_N
            query_rows = q + request64 * stride_qb + row64 % NEXT_N * stride_qn + near_head * stride_qh
            query = tl.load(query_rows[None, :] + (dim.to(INDEX) * stride_qd)[:, None])  # [DIM, PADDED_HEADS]
            weight = tl.load(weights + row64 * stride_ws + near_head * stride_wh, mask=head < HEADS, other=0.0).to(tl.float32)
            query, weight = operands(query, weight, TO_FNUZ, MAXIMUM)

            entries, lines = table + request64 * stride_tb, candidates + row64 * stride_cs
            for tile in range(my_first, past_tile, splits):
                base = tile * BLOCK_KEYS
                key, scale, held = load_tile(
                    words, scales, entries, lines, base, (first, count, written), num_blocks, stride_keys, stride_scales,
                    stride_kd, stride_tk, stride_cc, CANDIDATE, RELATIVE, DIM, BLOCK, TILE, BLOCK_KEYS, TO_FNUZ, WORD, INDEX,
                )  # fmt: skip
                logit = score(query, weight, key, 1, PADDED_HEADS, MAXIMUM) * scale[:, None]
                logit = tl.where(held[:, None], logit, float("-inf"))
                cell = out + row64 * stride_os + base.to(tl.int64) * stride_on + (place.to(INDEX) * stride_on)[:, None]
                tl.store(cell, rounded(logit, out, CUTS), mask=(base + place < written)[:, None])
        turn = next_turn(turn, past_tile - begin // BLOCK_KEYS, splits)


def prepare(
    problem: Problem,
    inputs: Inputs,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    candidate_block: int,
    relative: bool = True,
    layout: str = "flat",
    chunk_keys: int = CHUNK_KEYS,
) -> tuple[compat.Launch, ...]:
    """The launches of one call: what makes the schedule where none is given, and what writes the cells of listed blocks.

    With ``clean_logits`` every other cell becomes -inf.
    """
    q, weights, candidates = inputs.q, inputs.weights, inputs.candidates
    heads, dim = q.shape[-2:]
    tune, caps = tuning(problem), compat.capabilities(problem.device)
    products = product_options(problem.device, problem.dtype)
    lanes = max(32, caps.target.warp_size)  # the interpreter has one lane, and no use for short strips
    strip = 16 * lanes * tune.num_warps  # four 16-byte stores a lane, or two of bfloat16

    sources, sizes, where = _cached(inputs, layout) if isinstance(inputs, Paged) else _packed(inputs)
    keys, scales, starts, ends, table = sources
    rows, (listed, width) = len(weights), (candidates.shape[1], out.shape[1])
    lens_strides = ends.stride() if ends.ndim == 2 else (ends.stride(0), 0)
    q_strides = q.stride() if q.ndim == 4 else (q.stride(0), 0, *q.stride()[1:])
    packed_words = problem.next_n is not None or problem.packed_words
    before: tuple[compat.Launch, ...] = ()
    schedule = inputs.schedule
    if schedule is None:
        options = {"starts": None if isinstance(inputs, Paged) else starts, "rows": problem.next_n or 1, "most": width}
        schedule, before = new_schedule(ends, workers(problem), chunk_keys, **options)
    splits = programs_of_a_worker(problem.device, tune.resident, 1, schedule)
    farthest = max(  # element that a program reaches from its base pointers
        heads * q_strides[2] + dim * q_strides[3],
        heads * weights.stride(1),
        dim * keys.stride(-1),
        listed * candidates.stride(1),
        max(strip, tune.block_keys) * out.stride(1),
    )
    arguments = (
        *(q, keys, scales, weights, starts, ends, table, candidates, schedule, out),
        *(rows, *sizes, listed, rows * -(-width // strip), splits),
        *(*q_strides, keys.stride(0), keys.stride(-1), scales.stride(0), *weights.stride()),
        *(starts.stride(0), *lens_strides, *table.stride(), *candidates.stride(), *out.stride()),
    )
    keywords = {
        "NEXT_N": problem.next_n or 1,
        "HEADS": heads,
        "DIM": dim,
        "PADDED_HEADS": padded_heads(heads),
        "CANDIDATE": candidate_block,
        "RELATIVE": relative,
        "TILE": LAYOUTS[layout],
        "BLOCK_KEYS": tune.block_keys,
        "CHUNK": chunk_keys,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "ROW_LENS": ends.ndim == 2,
        "WORD": 4 if products["TO_FNUZ"] and packed_words else 1,  # bytes of a key that are loaded at a time
        "CUTS": caps.interpreter,
        "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
        "num_warps": tune.num_warps,
        "num_stages": tune.num_stages,
        "enable_fp_fusion": True,  # relu's result times weight plus sum is one FMA; Triton 3.10 turns this off by default
        **where,
        **products,
        **dict(tune.options),
    }
    grid = ((schedule.shape[0] - 1) * splits,)
    return (*before, compat.Launch(sparse_mqa_logits_kernel, grid, arguments, keywords))


Place = tuple[tuple[torch.Tensor, ...], tuple[int, int], dict[str, Any]]


def _packed(inputs: Dense) -> Place:
    """Where keys lie side by side: (keys, scales, starts, ends, table), (blocks, keys that there are), constants."""
    _, k, k_scale, _, starts, ends, candidates, _ = inputs
    return (k, k_scale, starts, ends, candidates), (1, k.shape[0]), {"BLOCK": 0}


def _cached(inputs: Paged, layout: str) -> Place:
    """As :func:`_packed` of a cache."""
    _, kv_cache, _, lens, table, _, _ = inputs
    blocks, block = kv_cache.shape[:2]
    readable_cache = readable(kv_cache)
    keys, scales = keys_of(readable_cache).view(inputs.q.dtype), scales_of(readable_cache)
    most = min(table.shape[1] * block, MAX_KEYS)
    return (keys, scales, lens, lens, table), (blocks, most), {"BLOCK": block}


def workers(problem: Problem) -> int:
    """How many workers a schedule should have."""
    return workers_that_fit(problem.device, tuning(problem).resident, 1)


kernel = compat.Kernel(prepare, tuning=tuning, workers=workers)
