"""Gluon for CDNA3 (gfx942), one source for Triton 3.6.0 to 3.9.0. Compiled and emulated; it has not run on a GPU.

    logits[b, t, j] = scale[b, j] * sum_h weights[b, t, h] * relu(q[b, t, h, :] . key[b, j, :])    for 0 <= j < seen[b, t]

The keys of all requests are shared out among programs by the classic variant's schedule, and rows among waves as in the variant
for CDNA4: a program whose rows one wave holds is that wave alone. Programs that share a worker's tiles fill the GPU when a
schedule has few workers.

CDNA3 copies no 16 bytes a lane straight to LDS. A tile of 64 keys is loaded into registers while the one before is scored, and
goes through LDS in two parts, which turns keys as memory has them into keys as products take them. A wave alone has room for
one part, and reads it before it writes the other; waves that share tiles have two, in two allocations, so that one barrier
orders each. Scales are loaded by the lanes that need them, while their tile is scored, and entries of the table two tiles
ahead. What of a tile lies in one block is loaded from a base of 64 bits. Where blocks have one key, and for scales of tiles of
several blocks, offsets are of 32 bits, so that such blocks have to lie within 2 GiB.

The matrix unit reads e4m3fnuz; e4m3fn is converted as in the dense kernel. LDS is without bank conflicts by the same order of
packets. Of a preshuffled cache each lane loads its packet from another place: LDS holds the same.
"""

from functools import partial

import torch

from capgate import compat
from capgate.compat.gluon import VGPRS_ONLY, cdna3, gl, gluon, reinterpret

from ..common.device.cached_keys import first_byte, further_byte
from ..common.device.cdna3 import head_sums, logit_layout, of_both_halves, of_quads, quads, write_tile
from ..common.device.cdna4 import fill, load, load_queries, store
from ..common.device.formats import quad_to_fnuz
from ..common.device.pieces import piece_keys
from ..common.device.windows import keys_of_share, load_share, longest_seen, near_block, next_turn, seen
from ..common.rules import in_packets
from ..common.schedule.operation import CHUNK_KEYS
from ..common.schedule.plan import plan_of, workers
from .launches import launches_of
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_cdna3 as tuning


@gluon.jit
def of_wave(blocks):
    """A tile's blocks, those that all lanes have as scalars.

    Inline assembly, because the compiler would make them scalars, and begin with their addresses, in the pass that loads them.
    """
    scalars = ()
    for number in gl.static_range(len(blocks)):
        block = blocks[number]
        if block.shape[0] == 1:
            block = gl.inline_asm_elementwise(
                "v_readfirstlane_b32 $0, $1", "=s,v", [gl.max(block, 0)], dtype=gl.int32, is_pure=True, pack=1
            )
        else:
            block = gl.inline_asm_elementwise("v_mov_b32 $0, $1", "=v,v", [block], dtype=gl.int32, is_pure=True, pack=1)
        scalars += (block,)
    return scalars


@gluon.jit
def load_entries(entries, tile, longest, stride_tk, key, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr):
    """The table's entries for some keys of one tile, numbered from its first."""
    first = tile * BLOCK_KEYS // BLOCK
    number = gl.minimum((tile * BLOCK_KEYS + key) // BLOCK, (longest - 1) // BLOCK)  # what lies behind may be garbage
    return load(entries + first.to(gl.int64) * stride_tk, (number - first) * stride_tk)


@gluon.jit
def load_blocks(
    entries, tile, longest, stride_tk, zero, key, place,
    PIECE_KEYS: gl.constexpr, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr,
):  # fmt: skip
    """One tile's entries of the table: where it lies in one block that alone, else for each of its pieces, and for each key.

    zero : [0], for entries that all lanes load
    """
    blocks = ()
    if BLOCK % BLOCK_KEYS == 0:
        blocks += (load(entries + (tile * BLOCK_KEYS // BLOCK).to(gl.int64) * stride_tk, zero),)
    else:
        if PIECE_KEYS == 1:
            for part in gl.static_range(0, BLOCK_KEYS, key.shape[0]):
                blocks += (load_entries(entries, tile, longest, stride_tk, part + key, BLOCK, BLOCK_KEYS),)
        else:
            for piece in gl.static_range(0, BLOCK_KEYS, PIECE_KEYS):
                number = gl.minimum(tile * BLOCK_KEYS + piece, longest - 1) // BLOCK
                blocks += (load(entries + number.to(gl.int64) * stride_tk, zero),)
        blocks += (load_entries(entries, tile, longest, stride_tk, place, BLOCK, BLOCK_KEYS),)
    return blocks


@gluon.jit
def load_part(
    keys, tile, blocks, num_blocks, key_at, stride_keys,
    FIRST: gl.constexpr, DIM: gl.constexpr, PIECE_KEYS: gl.constexpr, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr,
):  # fmt: skip
    """One of a tile's two parts, from key FIRST on, in words of four bytes, out of the blocks of its pieces."""
    if PIECE_KEYS == 1:
        words = keys.to(gl.pointer_type(gl.uint32))
        held = near_block(blocks[FIRST // key_at.shape[0]], num_blocks).to(gl.int32)
        part = (cdna3.buffer_load(words, key_at + (held * (stride_keys // 4))[:, None]),)
    else:
        part = ()
        for piece in gl.static_range(FIRST, FIRST + BLOCK_KEYS // 2, PIECE_KEYS):
            held = near_block(blocks[0 if BLOCK % BLOCK_KEYS == 0 else piece // PIECE_KEYS], num_blocks)
            if BLOCK % BLOCK_KEYS == 0:  # noqa: SIM108 - fewer instructions than of what lies below
                inside = tile * BLOCK_KEYS % BLOCK + piece
            else:
                inside = (tile * BLOCK_KEYS + piece) % BLOCK
            piece_keys = keys + (held.to(gl.int64) * stride_keys + inside * DIM)
            part += (cdna3.buffer_load(piece_keys.to(gl.pointer_type(gl.uint32)), key_at),)
    return part


@gluon.jit
def load_scale(scales, tile, block, num_blocks, place, stride_scales, BLOCK: gl.constexpr, BLOCK_KEYS: gl.constexpr):
    """One tile's scales, out of its block, or the blocks of its keys."""
    held = near_block(block, num_blocks)
    if BLOCK % BLOCK_KEYS == 0:
        return load(scales + (held.to(gl.int64) * stride_scales + tile * BLOCK_KEYS % BLOCK), place)
    else:
        return load(scales, held.to(gl.int32) * stride_scales + (tile * BLOCK_KEYS + place) % BLOCK)


@gluon.jit
def write_part(memory, part, TO_FNUZ: gl.constexpr):
    """A part of a tile to LDS: one tensor, or two pieces."""
    words = part[0]
    if len(part) == 2:
        words = gl.reshape(gl.permute(gl.join(words, part[1]), [2, 0, 1]), [memory.shape[0], memory.shape[1]])
    write_tile(memory, words, TO_FNUZ)


@gluon.jit
def paged_mqa_logits_kernel(
    q,  # [B, NEXT_N, H, D] fp8
    keys,  # [num_blocks, BLOCK, D] fp8, in tiles of TILE keys
    scales,  # [num_blocks, BLOCK] float32
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
    stride_keys,
    stride_scales,
    stride_ws,
    stride_wh,
    stride_lb,
    stride_ln,
    stride_tb,
    stride_tk,
    stride_os,
    stride_on,
    NEXT_N: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    PADDED_HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK: gl.constexpr,
    TILE: gl.constexpr,
    BLOCK_KEYS: gl.constexpr,
    PART_KEYS: gl.constexpr,
    CHUNK: gl.constexpr,
    STRIP: gl.constexpr,
    CLEAN: gl.constexpr,
    ROW_LENS: gl.constexpr,
    TO_FNUZ: gl.constexpr,
    INDEX: gl.constexpr,
    PACKETS: gl.constexpr,
):
    NUM_WARPS: gl.constexpr = gl.num_warps()
    SOME_HEADS: gl.constexpr = min(PADDED_HEADS, 64)  # whose products are in registers at a time
    COLUMNS: gl.constexpr = ROWS * SOME_HEADS
    PIECE_KEYS: gl.constexpr = piece_keys(BLOCK, PART_KEYS)  # of a part, in one block
    IN_ONE: gl.constexpr = BLOCK % BLOCK_KEYS == 0  # whether tiles lie in one block
    LOADED_KEYS: gl.constexpr = PART_KEYS if PIECE_KEYS == 1 else PIECE_KEYS  # at a time
    mfma: gl.constexpr = gl.amd.AMDMFMALayout(
        3, [32, 32, 16], False, [NUM_WARPS, 1], tiles_per_warp=[COLUMNS // 32 // NUM_WARPS, 1]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mfma, 16)
    key_operand: gl.constexpr = gl.DotOperandLayout(1, mfma, 16)
    logits: gl.constexpr = logit_layout(ROWS, NUM_WARPS)
    filled: gl.constexpr = gl.BlockedLayout([1, 4], [1, 64], [1, NUM_WARPS], [1, 0])
    loaded: gl.constexpr = gl.BlockedLayout([1, 4], [1024 // DIM, DIM // 16], [NUM_WARPS, 1], [1, 0])
    line_loaded: gl.constexpr = gl.BlockedLayout([1], [64], [NUM_WARPS], [0])
    written: gl.constexpr = gl.SwizzledSharedLayout(4, 128 // DIM, DIM // 16, [1, 0])  # in words of 4 bytes
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(16, 128 // DIM, DIM // 16, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    worker = gl.program_id(0) // splits
    split = gl.program_id(0) % splits
    first_row = gl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, worker, num_requests, ROW_LENS)
    num_blocks = gl.to_tensor(num_blocks).to(gl.uint32)

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        near_strip = gl.arange(0, 1, gl.SliceLayout(1, filled))
        strip_offset = near_strip.to(INDEX)
        row_strips = gl.cdiv(width, STRIP)
        step = gl.num_programs(0) * gl.num_programs(1)
        for strip in range(gl.program_id(0) * gl.num_programs(1) + gl.program_id(1), strips, step):
            row = (strip // row_strips).to(gl.int32)
            base = (strip % row_strips).to(gl.int32) * STRIP
            end = seen(lens, row // NEXT_N, row % NEXT_N, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
            rows = out + row.to(gl.int64) * stride_os
            first = gl.maximum(base, end)
            last = gl.minimum(base + STRIP, width)
            if last - first == STRIP:  # no column mask, so a store has 4 cells
                fill(rows, gl.multiple_of(base, 16), STRIP, strip_offset, near_strip == 0, stride_on, STRIP, INDEX, filled)
            elif first < last:
                fill(rows, first, last - first, strip_offset, near_strip == 0, stride_on, STRIP, INDEX, filled)

    # Addresses past an edge are clamped, not masked: what they load is never stored or has weight 0.
    weight_column = gl.arange(0, max(COLUMNS, 64 * NUM_WARPS), line_loaded) % COLUMNS
    weight_row = gl.minimum(first_row + weight_column // SOME_HEADS, NEXT_N - 1)
    weight_head = weight_column % SOME_HEADS

    place = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, logits))
    row = gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    cell = (row.to(INDEX) * stride_os)[:, None] + (place.to(INDEX) * stride_on)[None, :]

    key = gl.arange(0, LOADED_KEYS, gl.SliceLayout(1, loaded))
    word = gl.arange(0, DIM // 4, gl.SliceLayout(0, loaded))
    key_at = first_byte(key % BLOCK, DIM, TILE, 4)[:, None] + further_byte(word, TILE, 4)[None, :]
    zero = gl.arange(0, 1, line_loaded)

    near_part = gl.allocate_shared_memory(gl.uint32, [PART_KEYS, DIM // 4], written)
    far_part = near_part
    if NUM_WARPS > 1:
        far_part = gl.allocate_shared_memory(gl.uint32, [PART_KEYS, DIM // 4], written)
    near_keys = reinterpret(near_part, gl.float8e4b8, [PART_KEYS, DIM], swizzled)
    far_keys = reinterpret(far_part, gl.float8e4b8, [PART_KEYS, DIM], swizzled)
    columns_weights = gl.allocate_shared_memory(gl.float32, [max(COLUMNS, 64 * NUM_WARPS)], line)

    turn = split  # of this program, counted from a request's first tile
    past_request = gl.minimum(gl.where(last_chunk > 0, last_request + 1, last_request), num_requests)
    for request in range(first_request, past_request):
        request64 = request.to(gl.int64)
        longest = longest_seen(lens, request, first_row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS, ROWS)
        begin, end = keys_of_share(request, longest, first_request, first_chunk, last_request, last_chunk, CHUNK)
        past_tile = gl.cdiv(end, BLOCK_KEYS)
        my_first = begin // BLOCK_KEYS + turn
        my_last = past_tile - 1 - (past_tile - 1 - my_first) % splits
        if my_first < past_tile:
            entries = table + request64 * stride_tb
            blocks = load_blocks(entries, my_first, longest, stride_tk, zero, key, place, PIECE_KEYS, BLOCK, BLOCK_KEYS)
            ahead = gl.minimum(my_first + splits, my_last)
            next_blocks = load_blocks(entries, ahead, longest, stride_tk, zero, key, place, PIECE_KEYS, BLOCK, BLOCK_KEYS)
            queries = ()
            given_weights = ()
            for first_head in gl.static_range(0, PADDED_HEADS, SOME_HEADS):
                query = load_queries(
                    q + (request64 * stride_qb + first_row.to(gl.int64) * stride_qn), NEXT_N - 1 - first_row, first_head,
                    stride_qn, stride_qh, stride_qd, HEADS, DIM, SOME_HEADS, ROWS, INDEX, PACKETS, operand,
                )  # fmt: skip
                if TO_FNUZ:
                    query = of_quads(quad_to_fnuz(quads(query)), operand)
                queries += (query,)
                weight_at = weight_row * stride_ws + gl.minimum(first_head + weight_head, HEADS - 1) * stride_wh
                given_weights += (load(weights + request64 * NEXT_N * stride_ws, weight_at),)
            blocks = of_wave(blocks)
            block = blocks[len(blocks) - 1]  # of the tile's keys
            near_words = load_part(
                keys, my_first, blocks, num_blocks, key_at, stride_keys, 0, DIM, PIECE_KEYS, BLOCK, BLOCK_KEYS
            )
            far_words = load_part(
                keys, my_first, blocks, num_blocks, key_at, stride_keys, PART_KEYS, DIM, PIECE_KEYS, BLOCK, BLOCK_KEYS
            )
            factors = ()  # weights times what makes up for relu, which gives twice the value, and for two operands halved
            for first_head in gl.static_range(0, PADDED_HEADS, SOME_HEADS):
                weight = given_weights[first_head // SOME_HEADS].to(gl.float32) * (2.0 if TO_FNUZ else 0.5)
                columns_weights.store(gl.where(first_head + weight_head < HEADS, weight, 0.0))
                factors += (columns_weights.slice(0, COLUMNS, 0).load(gl.SliceLayout(1, mfma)),)

            length = seen(lens, request, first_row + row, limit, stride_lb, stride_ln, NEXT_N, ROW_LENS)
            length = length[:, None] - place[None, :]  # of each key of a tile, so that one scalar is compared with both
            rows = out + (request64 * NEXT_N + first_row) * stride_os

            for tile in range(my_first, past_tile, splits):
                blocks = of_wave(next_blocks)
                further = gl.minimum(tile + 2 * splits, my_last)
                next_blocks = load_blocks(entries, further, longest, stride_tk, zero, key, place, PIECE_KEYS, BLOCK, BLOCK_KEYS)
                scale = load_scale(scales, tile, block, num_blocks, place, stride_scales, BLOCK, BLOCK_KEYS)
                ahead = gl.minimum(tile + splits, my_last)
                write_part(near_part, near_words, TO_FNUZ)
                near_words = load_part(
                    keys, ahead, blocks, num_blocks, key_at, stride_keys, 0, DIM, PIECE_KEYS, BLOCK, BLOCK_KEYS
                )
                near_key = near_keys.permute([1, 0]).load(key_operand)
                write_part(far_part, far_words, TO_FNUZ)
                far_words = load_part(
                    keys, ahead, blocks, num_blocks, key_at, stride_keys, PART_KEYS, DIM, PIECE_KEYS, BLOCK, BLOCK_KEYS
                )
                near = head_sums(queries, factors, near_key, ROWS)
                far_key = far_keys.permute([1, 0]).load(key_operand)
                far = head_sums(queries, factors, far_key, ROWS)
                held = block.to(gl.uint32) < num_blocks
                if not IN_ONE:
                    held = held[None, :]
                logit = gl.where(held, of_both_halves(near, far, ROWS) * scale[None, :], float("-inf"))
                base = tile * BLOCK_KEYS
                store(rows + base.to(gl.int64) * stride_on, cell, logit, base < length)
                block = blocks[len(blocks) - 1]
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
    q = inputs.q
    _, next_n, heads, dim = q.shape
    plan = plan_of(tuning, problem, inputs, out, chunk_keys)
    tune = plan.tune
    strip = 16 * 64 * tune.num_warps  # four stores of 4 cells a lane
    farthest = max(  # byte that a program reaches from its base pointers; buffer instructions reach 2 GiB
        next_n * q.stride(1) + heads * q.stride(2) + dim * q.stride(3),
        out.itemsize * (tune.rows * out.stride(0) + max(strip, tune.block_keys) * out.stride(1)),
    )
    constants = {
        "PART_KEYS": tune.part_keys,
        "TO_FNUZ": q.dtype == torch.float8_e4m3fn,  # the matrix unit reads e4m3fnuz
        "INDEX": gl.int32 if farthest < 2**31 else gl.int64,
        "PACKETS": in_packets(q),
        **VGPRS_ONLY,
        **dict(tune.options),
    }
    return launches_of(
        paged_mqa_logits_kernel, plan, inputs, out, constants,
        strip=strip, clean_logits=clean_logits, layout=layout, chunk_keys=chunk_keys,
    )  # fmt: skip


kernel = compat.Kernel(prepare, tuning=tuning, workers=partial(workers, tuning))
