"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

    logits[b, t, j] = sum_h weights[b, t, h] * relu(q[b, t, h, :] . key[b, j, :])    for 0 <= j < seen[b, t]

q and keys being values times their scales. Programs walk their chunks of keys as in fp8_paged_mqa_logits, and products are made
as in mx_mqa_logits: keys in their format where the target has block-scaled matrix instructions, in bfloat16 elsewhere.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.cached_keys import first_byte, further_byte, scale_byte
from ..common.device.classic import fill, head_sums, load_blocks, operands, rounded
from ..common.device.mx import mx_products, mx_query, scale_octets
from ..common.device.windows import keys_of_share, load_share, longest_seen, next_turn, seen
from ..common.key_formats import LAYOUTS
from ..common.rules import mx_product_options
from ..common.schedule.operation import CHUNK_KEYS
from ..common.schedule.plan import plan_of, workers
from .launches import launches_of
from .operands import Inputs
from .operation import Problem
from .tunings import classic as tuning


@triton.jit
def load_tile(
    values,
    scales,
    entries,
    base,
    longest,
    num_blocks,
    stride_values,
    stride_scales,
    stride_tk,
    DIM: tl.constexpr,
    KEY_BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SCALE_TILE: tl.constexpr,
    SCALE_LANES: tl.constexpr,
    BY_SIXTEENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """(bytes, scales' bytes, whether the cache has them) of the keys of one tile of a request.

    entries : the request's row of the block table
    longest : keys of the request; those of a tile past the last are the last key's where the tile lies in several blocks
    """
    base64 = base.to(tl.int64)
    place = tl.arange(0, BLOCK_KEYS)
    byte = tl.arange(0, KEY_BYTES)
    group = tl.arange(0, DIM // 32)
    if BLOCK % BLOCK_KEYS == 0:  # in one block, whose end lies past the tile's: nothing to clamp
        block, held = load_blocks(entries + base64 // BLOCK * stride_tk, num_blocks)
        inside = base % BLOCK + place
        lines = values + block * stride_values + first_byte(inside, KEY_BYTES, TILE)[:, None]
        key = tl.load(lines + further_byte(byte, TILE)[None, :])
        at = scale_byte(inside[:, None], group[None, :], SCALE_TILE, SCALE_LANES, BY_SIXTEENS)
        scale = tl.load(scales + block * stride_scales + at)
    else:
        position = tl.minimum(base + place, longest - 1)
        block, key_held = load_blocks(entries + (position // BLOCK).to(tl.int64) * stride_tk, num_blocks)
        held = key_held[:, None]
        inside = position % BLOCK
        lines = values + (block * stride_values + first_byte(inside, KEY_BYTES, TILE))[:, None]
        key = tl.load(lines + further_byte(byte, TILE)[None, :])
        at = scale_byte(inside[:, None], group[None, :], SCALE_TILE, SCALE_LANES, BY_SIXTEENS)
        scale = tl.load(scales + (block * stride_scales)[:, None] + at)
    return key, scale, held


@triton.jit
def mx_paged_mqa_logits_kernel(
    q,  # [B, NEXT_N, H, Q_BYTES] uint8
    q_scale,  # [B, NEXT_N, H] int32
    values,  # [num_blocks, BLOCK * KEY_BYTES] uint8
    scales,  # [num_blocks, BLOCK * 4] uint8
    weights,  # [B * NEXT_N, H] float32 or bfloat16
    lens,  # [B] int32, or [B, NEXT_N] if ROW_LENS
    table,  # [B, max_blocks] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [B * NEXT_N, width] float32 or bfloat16
    num_requests,
    num_blocks,  # of the cache; keys of others score as -inf
    limit,  # keys that a row can see: as many as it has cells, and its row of the table has room for
    width,
    strips,  # to fill: those of a row times the rows
    splits,  # programs that share a worker's tiles, taking turns
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_sb,
    stride_sn,
    stride_sh,
    stride_values,
    stride_scales,
    stride_ws,
    stride_wh,
    stride_lb,
    stride_ln,
    stride_tb,
    stride_tk,
    stride_os,
    stride_on,
    NEXT_N: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    Q_BYTES: tl.constexpr,
    KEY_BYTES: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SCALE_TILE: tl.constexpr,
    SCALE_LANES: tl.constexpr,
    BY_SIXTEENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    STRIP: tl.constexpr,
    CLEAN: tl.constexpr,
    ROW_LENS: tl.constexpr,
    SCALED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    CUTS: tl.constexpr,
    INDEX: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    worker = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    first_row = tl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, worker, num_requests, ROW_LENS, EARLY)

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        near_strip = tl.arange(0, 1)
        row_strips = tl.cdiv(width, STRIP)
        step = tl.num_programs(0) * tl.num_programs(1)
        for strip in range(tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), strips, step):
            row = (strip // row_strips).to(tl.int32)
            base = (strip % row_strips).to(tl.int32) * STRIP
            end = seen(lens, row // NEXT_N, row % NEXT_N, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
            first = tl.maximum(base, end)
            last = tl.minimum(base + STRIP, width)
            if first < last:
                row_offset = row.to(tl.int64) * stride_os + near_strip
                fill(out, first, last - first, row_offset, near_strip == 0, stride_on, STRIP, INDEX)

    # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
    column = tl.arange(0, ROWS * PADDED_HEADS)
    column_row = tl.minimum(first_row + column // PADDED_HEADS, NEXT_N - 1).to(INDEX)
    head = column % PADDED_HEADS
    near_head = tl.minimum(head, HEADS - 1).to(INDEX)
    query_byte = tl.arange(0, Q_BYTES)
    place = tl.arange(0, BLOCK_KEYS)
    num_blocks = tl.full((), num_blocks, tl.uint32)
    row = first_row + tl.arange(0, ROWS)

    turn = split  # of this program, counted from a request's first tile
    past_request = tl.minimum(tl.where(last_chunk > 0, last_request + 1, last_request), num_requests)
    for number in range(past_request - first_request):
        request = first_request + number
        request64 = request.to(tl.int64)
        longest = longest_seen(lens, request, first_row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS, ROWS)
        begin, end = keys_of_share(request, longest, first_request, first_chunk, last_request, last_chunk, CHUNK)
        my_first, past_tile = begin // BLOCK_KEYS + turn, tl.cdiv(end, BLOCK_KEYS)
        if my_first < past_tile:
            # What one request reads in shared memory the next one overwrites. Triton leaves out the barrier in between: 3.5.1
            # where a request has operands there and no tile, 3.8.0 before the copy of its first tile.
            tl.debug_barrier()
            query_rows = q + request64 * stride_qb + column_row * stride_qn + near_head * stride_qh
            octet = tl.load(query_rows[:, None] + (query_byte.to(INDEX) * stride_qd)[None, :])  # [ROWS * PADDED_HEADS, Q_BYTES]
            words = tl.load(q_scale + request64 * stride_sb + column_row * stride_sn + near_head * stride_sh)
            weight_rows = weights + request64 * NEXT_N * stride_ws + column_row * stride_ws + near_head * stride_wh
            weight = tl.load(weight_rows, mask=head < HEADS, other=0.0).to(tl.float32)
            query, more = mx_query(octet, scale_octets(words, DIM), DIM, KEY_BYTES < DIM, SCALED, CUTS)
            query, weight = operands(query, weight, False, MAXIMUM)

            length = seen(lens, request, row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
            row_offset = (request64 * NEXT_N + row) * stride_os
            entries = table + request64 * stride_tb

            for tile in range(my_first, past_tile, splits):
                base = tile * BLOCK_KEYS
                key, scale, held = load_tile(
                    values, scales, entries, base, longest, num_blocks, stride_values, stride_scales, stride_tk, DIM, KEY_BYTES,
                    BLOCK, TILE, SCALE_TILE, SCALE_LANES, BY_SIXTEENS, BLOCK_KEYS,
                )  # fmt: skip
                products = mx_products(key, scale, query, more, DIM, SCALED, CUTS)
                logit = head_sums(products, weight, ROWS, PADDED_HEADS, MAXIMUM)
                logit = tl.where(held, logit, float("-inf"))
                cell = out + base.to(tl.int64) * stride_on + row_offset[None, :] + (place.to(INDEX) * stride_on)[:, None]
                tl.store(cell, rounded(logit, out, CUTS), mask=(base + place)[:, None] < length[None, :])
        turn = next_turn(turn, past_tile - begin // BLOCK_KEYS, splits)


def prepare(
    problem: Problem,
    inputs: Inputs,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    layout: str = "flat",
    chunk_keys: int = CHUNK_KEYS,
) -> tuple[compat.Launch, ...]:
    """The launches of one call: what makes the schedule where none is given, and what writes the logits that each row sees.

    With ``clean_logits`` every other cell becomes -inf.
    """
    q, q_scale, weights = inputs.q, inputs.q_scale, inputs.weights
    _, next_n, heads, q_bytes = q.shape
    plan, caps = plan_of(tuning, problem, inputs, out, chunk_keys), compat.capabilities(problem.device)
    tune = plan.tune
    lanes = max(32, caps.target.warp_size)  # the interpreter has one lane, and no use for short strips
    strip = 16 * lanes * tune.num_warps  # four 16-byte stores a lane, or two of bfloat16
    farthest = max(  # element that a program reaches from its base pointers
        next_n * q.stride(1) + heads * q.stride(2) + q_bytes * q.stride(3),
        next_n * max(q_scale.stride(1), weights.stride(0)) + heads * max(q_scale.stride(2), weights.stride(1)),
        max(strip, tune.block_keys) * out.stride(1),
    )
    constants = {
        "BY_SIXTEENS": LAYOUTS[layout].by_sixteens,
        "CUTS": caps.interpreter,
        "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
        "num_stages": tune.num_stages,
        **mx_product_options(problem.device, problem.dim),
        **dict(tune.options),
    }
    return launches_of(
        mx_paged_mqa_logits_kernel, problem, plan, inputs._replace(q=q.view(torch.uint8)), out, constants,
        strip=strip, clean_logits=clean_logits, layout=layout, chunk_keys=chunk_keys,
    )  # fmt: skip


kernel = compat.Kernel(prepare, tuning=tuning, workers=partial(workers, tuning))
