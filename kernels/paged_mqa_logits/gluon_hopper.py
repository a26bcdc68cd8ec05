"""Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: tensor maps, mbarriers, fp8 wgmma, specialised warps.

    logits[b, t, j] = scale[b, j] * sum_h weights[b, t, h] * relu(q[b, t, h, :] . key[b, j, :])    for 0 <= j < seen[b, t]

A program is one worker of the schedule, or one of several where a request has more rows than one scores, or where the schedule
has few workers: then they take turns at its tiles. It walks its chunks of keys from one request to the next. One warp produces:
it reads the block table and keeps STAGES tiles of 64 keys on their way from the cache, which is what this kernel lives on:
bytes in flight. One warpgroup consumes: the keys of a tile on the M side of the product, rows x heads on the N side. With CLEAN
two more warps write -inf into the cells that their row does not see. Relu, weights and head sum happen in registers. No sum
crosses programs, so results repeat bit for bit.
"""

from functools import partial
from math import gcd

import torch

from capgate import compat
from capgate.compat.gluon import aggregate, barrier, gl, gluon, hopper, mbarrier, reinterpret, tma_load

from ..common.cache import keys_of, scales_of
from ..common.device.hopper import (
    bytes_layout,
    floats_layout,
    head_sums,
    load_query,
    logit_layout,
    product_weights,
    query_box,
    query_map,
    scalar,
    store_scalar,
    tensor_map,
)
from ..common.device.hopper_pipeline import (
    FIELDS,
    SLOTS,
    Maps,
    Output,
    Plan,
    Ring,
    consumers_turn,
    new_ring,
    producers_turn,
    stride,
)
from ..common.device.pieces import piece_keys
from ..common.device.windows import load_length, load_share, next_turn, seen_of
from ..common.rules import padded_heads
from ..common.schedule.operation import CHUNK_KEYS
from ..common.schedule.plan import plan_of, workers
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_hopper as tuning

SECTION = gl.constexpr(4096)  # cells of a row that a program fills at a time


@aggregate
class Lengths:
    """How many keys each row sees."""

    lens: gl.tensor
    most: gl.tensor
    stride_lb: gl.tensor
    stride_ln: gl.tensor
    NEXT_N: gl.constexpr
    ROW_LENS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, lens, most, stride_lb, stride_ln, NEXT_N, ROW_LENS):
        self.lens = lens
        self.most = most
        self.stride_lb = stride_lb
        self.stride_ln = stride_ln
        self.NEXT_N = gl.constexpr(NEXT_N)
        self.ROW_LENS = gl.constexpr(ROW_LENS)

    @gluon.jit
    def load(self, request, row):
        """What :meth:`seen` makes a row's length of: a load alone, for what needs it later."""
        return load_length(self.lens, request, row, self.stride_lb, self.stride_ln, self.NEXT_N, self.ROW_LENS)

    @gluon.jit
    def seen(self, length, row):
        """How many keys a row sees by what was loaded; none if its request has no such row."""
        return seen_of(length, row, self.most, self.NEXT_N, self.ROW_LENS)


@aggregate
class Share:
    """A worker's share: from the first chunk of the first request up to, and without, the last chunk of the last request.

    splits : programs that share its tiles, taking turns
    """

    first_request: gl.tensor
    first_chunk: gl.tensor
    last_request: gl.tensor
    last_chunk: gl.tensor
    num_requests: gl.tensor
    splits: gl.base_value
    CHUNK: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, first_request, first_chunk, last_request, last_chunk, num_requests, splits, CHUNK):
        self.first_request = first_request
        self.first_chunk = first_chunk
        self.last_request = last_request
        self.last_chunk = last_chunk
        self.num_requests = num_requests
        self.splits = stride(splits)
        self.CHUNK = gl.constexpr(CHUNK)

    @gluon.jit
    def stop(self):
        """The first request behind the share."""
        last = gl.where(self.last_chunk > 0, self.last_request + 1, self.last_request)
        return gl.minimum(last, self.num_requests)

    @gluon.jit
    def cut(self, request, tiles, KEYS: gl.constexpr):
        """[first, last) of a request's tiles: those in the share."""
        # A chunk may be any number: cut before it is multiplied.
        begin = gl.minimum(gl.minimum(self.first_chunk, tiles) * (self.CHUNK // KEYS), tiles)
        end = gl.minimum(gl.minimum(self.last_chunk, tiles) * (self.CHUNK // KEYS), tiles)
        return gl.where(request == self.first_request, begin, 0), gl.where(request == self.last_request, end, tiles)


@aggregate
class Table:
    """Which block of the cache holds which keys of a request."""

    pointer: gl.tensor
    stride_request: gl.base_value
    stride_block: gl.base_value
    num_blocks: gl.tensor
    BLOCK: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, pointer, stride_request, stride_block, num_blocks, BLOCK):
        self.pointer = pointer
        self.stride_request = stride(stride_request)
        self.stride_block = stride(stride_block)
        self.num_blocks = num_blocks
        self.BLOCK = gl.constexpr(BLOCK)

    @gluon.jit
    def blocks(self, request, tile, splits, end, KEYS: gl.constexpr):
        """[32]: the blocks of the next pieces of a program's tiles, a tile behind the other; -1 from the key ``end`` on."""
        PIECE: gl.constexpr = piece_keys(self.BLOCK, KEYS)
        PIECES: gl.constexpr = KEYS // PIECE
        each = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
        position = (tile + each // PIECES * splits) * KEYS + each % PIECES * PIECE
        entry = self.pointer + request.to(gl.int64) * self.stride_request
        return gl.load(entry + (position // self.BLOCK).to(gl.int64) * self.stride_block, mask=position < end, other=-1)


@gluon.jit
def nth(values, index):
    """One of the 32 values that each warp has."""
    each = gl.arange(0, 32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    return gl.max(gl.where(each == index, values, -(2**31)), axis=0)


@aggregate
class Queries:
    """By slot, the rows of one request that a program scores, ROWS in each of PASSES, and what they are scored against.

    query : [SLOTS * PASSES, ROWS * HEADS, DIM] fp8
    weight : [SLOTS * PASSES * SPREAD, ROWS, HEADS] float32 or bfloat16; the copy engine writes to multiples of 128 bytes
    lengths : [SLOTS, PASSES * max(ROWS, 2)] int32, the keys that each row sees
    """

    query: gl.shared_memory_descriptor
    weight: gl.shared_memory_descriptor
    lengths: gl.shared_memory_descriptor
    plan: Plan
    ring: Ring
    PASSES: gl.constexpr
    ROWS: gl.constexpr
    HEADS: gl.constexpr
    DIM: gl.constexpr
    SPREAD: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, query, weight, lengths, plan, ring):
        self.query = query
        self.weight = weight
        self.lengths = lengths
        self.plan = plan
        self.ring = ring
        self.PASSES = gl.constexpr(query.shape[0] // SLOTS.value)
        self.ROWS = gl.constexpr(weight.shape[1])
        self.HEADS = gl.constexpr(weight.shape[2])
        self.DIM = gl.constexpr(query.shape[2])
        self.SPREAD = gl.constexpr(weight.shape[0] // query.shape[0])

    @gluon.jit
    def queries(self, slot, PASS: gl.constexpr):
        """The place of a pass's queries in a slot, [ROWS * HEADS, DIM]."""
        return self.query.index(slot.index * self.PASSES + PASS)

    @gluon.jit
    def weights(self, slot, PASS: gl.constexpr):
        """The place of its weights, [ROWS, HEADS]."""
        return self.weight.index((slot.index * self.PASSES + PASS) * self.SPREAD)

    @gluon.jit
    def seen(self, slot, PASS: gl.constexpr):
        """The place of its rows' lengths, [max(ROWS, 2)]."""
        PADDED: gl.constexpr = max(self.ROWS, 2)
        return self.lengths.index(slot.index).slice(PASS * PADDED, PADDED)


@gluon.constexpr_function
def spread(rows, heads, bits):
    """How many places of rows x heads weights fill 128 bytes; 1 where one does."""
    return max(1, 1024 // (rows * heads * bits))


@aggregate
class Keys:
    """By stage, a tile of keys.

    key, scale : [STAGES, KEYS, DIM] fp8, [STAGES, KEYS] float32
    missing : [STAGES, 1] int32, a bit for each piece of the tile: whether its block lies outside the cache
    """

    key: gl.shared_memory_descriptor
    scale: gl.shared_memory_descriptor
    missing: gl.shared_memory_descriptor
    ring: Ring
    KEYS: gl.constexpr
    DIM: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, key, scale, missing, ring):
        self.key = key
        self.scale = scale
        self.missing = missing
        self.ring = ring
        self.KEYS = gl.constexpr(key.shape[1])
        self.DIM = gl.constexpr(key.shape[2])


@gluon.jit
def load_queries(queries, maps, row, slot):
    """Start the copies of a request's queries and weights, from ``row`` on, into a slot."""
    ROWS: gl.constexpr = queries.ROWS
    BOX: gl.constexpr = query_box(ROWS, queries.HEADS, queries.DIM)
    full = queries.ring.full.index(slot.index)
    WEIGHT_BYTES: gl.constexpr = queries.weight.dtype.primitive_bitwidth // 8
    mbarrier.expect(full, queries.PASSES * ROWS * queries.HEADS * (queries.DIM + WEIGHT_BYTES))
    for one in gl.static_range(queries.PASSES):
        box = reinterpret(queries.queries(slot, one), gl.float8e4nv, BOX, bytes_layout(queries.DIM, len(BOX)))
        load_query(maps.queries, row + one * ROWS, full, box, ROWS)
        tma_load(maps.weights, [row + one * ROWS, 0], full, queries.weights(slot, one))


@gluon.jit
def load_keys(keys, maps, blocks, index, num_blocks, position, stage, BLOCK: gl.constexpr):
    """Start the copy of the tile that begins at key ``position``, piece by piece: a piece lies in one block.

    Its blocks are those from ``index`` on. A block outside the cache lies outside the tensor map, which fills the piece with
    zeros and reads nothing; a bit says so to the consumer.
    """
    KEYS: gl.constexpr = keys.KEYS
    PIECE: gl.constexpr = piece_keys(BLOCK, KEYS)
    full = keys.ring.full.index(stage.index)
    key = reinterpret(keys.key.index(stage.index), gl.float8e4nv, [KEYS // PIECE, PIECE, keys.DIM], bytes_layout(keys.DIM, 3))
    scale = reinterpret(keys.scale.index(stage.index), gl.float32, [KEYS // PIECE, PIECE], floats_layout(2))
    piece_blocks = ()
    missing = 0
    for piece in gl.static_range(KEYS // PIECE):
        block = nth(blocks, index + piece)
        missing |= (block.to(gl.uint32) >= num_blocks.to(gl.uint32)).to(gl.int32) << piece
        piece_blocks += (block,)
    keys.ring.acquire(stage)
    store_scalar(keys.missing.index(stage.index), missing)
    barrier()
    mbarrier.expect(full, KEYS * (keys.DIM + 4))
    for piece in gl.static_range(KEYS // PIECE):
        inside = (position + piece * PIECE) % BLOCK
        tma_load(maps.keys, [piece_blocks[piece], inside, 0], full, key.slice(piece, 1))
        tma_load(maps.scales, [piece_blocks[piece], inside], full, scale.slice(piece, 1))


@gluon.jit
def produce(queries, keys, maps, lengths, share, table, first_row):
    """The producer warp: keeps the consumer in keys.

    Entries of the table come 32 at a time, and before they are needed: those of a request's first tiles with its lengths, while
    the request before is copied, and others while the 32 before are used.
    """
    ROWS: gl.constexpr = queries.ROWS
    KEYS: gl.constexpr = keys.KEYS
    NEXT_N: gl.constexpr = lengths.NEXT_N
    PIECES: gl.constexpr = KEYS // piece_keys(table.BLOCK, KEYS)
    splits = share.splits
    PADDED: gl.constexpr = max(ROWS, 2)
    each = gl.arange(0, queries.PASSES * PADDED, gl.BlockedLayout([1], [32], [1], [0]))
    row = gl.where(each % PADDED < ROWS, first_row + each // PADDED * ROWS + each % PADDED, NEXT_N)
    stage = producers_turn(keys.ring.STAGES)
    slot = producers_turn(SLOTS)
    turn = gl.program_id(0) % splits  # of this program, counted from a request's first tile
    stop = share.stop()
    if share.first_request < stop:
        begin, _ = share.cut(share.first_request, gl.cdiv(lengths.most, KEYS), KEYS)
        blocks = table.blocks(share.first_request, begin + turn, splits, lengths.most, KEYS)
        ahead = lengths.load(share.first_request, row)
        for request in range(share.first_request, stop):
            length = lengths.seen(ahead, row)
            longest = gl.max(length, axis=0)
            first, last = share.cut(request, gl.cdiv(longest, KEYS), KEYS)
            tile = first + turn
            if tile < last:
                queries.ring.acquire(slot)
                queries.lengths.index(slot.index).store(length)
                store_scalar(queries.plan.first_tile(slot), tile)
                store_scalar(queries.plan.tile_count(slot), gl.cdiv(last - tile, splits))
                store_scalar(queries.plan.first_row(slot), request * NEXT_N + first_row)
                barrier()
                load_queries(queries, maps, request * NEXT_N + first_row, slot)
                slot = slot.next()
            turn = next_turn(turn, last - first, splits)
            following = gl.minimum(request + 1, share.num_requests - 1)
            first_blocks = table.blocks(following, turn, splits, lengths.most, KEYS)
            ahead = lengths.load(following, row)
            further = table.blocks(request, tile + 32 // PIECES * splits, splits, longest, KEYS)
            index = 0
            while tile < last:
                load_keys(keys, maps, blocks, index, table.num_blocks, tile * KEYS, stage, table.BLOCK)
                stage = stage.next()
                tile += splits
                index += PIECES
                if index == 32:
                    index = 0
                    blocks = further
                    further = table.blocks(request, tile + 32 // PIECES * splits, splits, longest, KEYS)
            blocks = first_blocks
    queries.ring.acquire(slot)
    store_scalar(queries.plan.tile_count(slot), 0)
    barrier()
    mbarrier.arrive(queries.ring.full.index(slot.index), count=1)


@gluon.jit
def consume(queries, keys, out, splits, BLOCK: gl.constexpr):
    """The consumer warpgroup: the logits of every tile of this program, one of so many splits."""
    PASSES: gl.constexpr = queries.PASSES
    ROWS: gl.constexpr = queries.ROWS
    HEADS: gl.constexpr = queries.HEADS
    KEYS: gl.constexpr = keys.KEYS
    PIECE: gl.constexpr = piece_keys(BLOCK, KEYS)
    PADDED: gl.constexpr = max(ROWS, 2)
    PRODUCTS: gl.constexpr = ROWS * HEADS
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, PRODUCTS, 32])
    LOGIT: gl.constexpr = logit_layout(ROWS)
    KEY: gl.constexpr = gl.SliceLayout(1, LOGIT)
    ROW: gl.constexpr = gl.SliceLayout(0, LOGIT)
    local = gl.arange(0, KEYS, KEY)
    each = gl.arange(0, PADDED, ROW)
    zeros = gl.full([KEYS, PRODUCTS], 0.0, gl.float32, MMA)
    weights = ()
    left = ()  # of a lane's cell: how many keys its row sees from it on
    cells = ()
    for _ in gl.static_range(PASSES):
        weights += (gl.full([PRODUCTS], 0.0, gl.float32, gl.SliceLayout(0, MMA)),)
        left += (gl.full([KEYS, PADDED], 0, gl.int32, LOGIT),)
        cells += (out.pointer + gl.full([KEYS, PADDED], 0, gl.int64, LOGIT),)
    stage = consumers_turn(keys.ring.STAGES)
    slot = consumers_turn(SLOTS)
    fresh = True
    queries.ring.wait(slot)
    tiles = scalar(queries.plan.tile_count(slot))
    while tiles > 0:
        next_left = ()
        next_cells = ()
        for one in gl.static_range(PASSES):
            query = queries.queries(slot, one).permute([1, 0])
            if one == 0:
                keys.ring.wait(stage)
            scores = hopper.warpgroup_mma(keys.key.index(stage.index), query, zeros, use_acc=False, is_async=True)
            if one == 0:
                if fresh:
                    position = scalar(queries.plan.first_tile(slot)) * KEYS + local
                    weights = ()
                    left = ()
                    cells = ()
                    for other in gl.static_range(PASSES):
                        row = scalar(queries.plan.first_row(slot)) + other * ROWS + each
                        weights += (product_weights(queries.weights(slot, other), ROWS, HEADS, gl.SliceLayout(0, MMA)),)
                        left += (queries.seen(slot, other).load(ROW)[None, :] - position[:, None],)
                        offset = row.to(gl.int64) * out.stride_row
                        offset = offset[None, :] + (position.to(gl.int64) * out.stride_cell)[:, None]
                        cells += (out.pointer + offset,)
                scale = keys.scale.index(stage.index).load(KEY)[:, None]
                missing = (scalar(keys.missing.index(stage.index)) >> local // PIECE & 1)[:, None]
            scores = hopper.warpgroup_mma_wait(0, [scores])
            if one == PASSES - 1:
                hopper.fence_async_shared()  # a scale is loaded before the copy engine writes the next one there
                barrier()  # of the warpgroup: one thread arrives for all
                keys.ring.release(stage)
                tiles -= 1
                fresh = tiles == 0
                queries.ring.release(slot, fresh)
            logits = gl.where(missing == 0, head_sums(scores, weights[one], ROWS) * scale, float("-inf"))
            gl.store(cells[one], logits, mask=left[one] > 0)  # rounded to what cells hold
            next_left += (left[one] - KEYS * splits,)
            next_cells += (cells[one] + gl.to_tensor(KEYS * splits).to(gl.int64) * out.stride_cell,)
        left = next_left
        cells = next_cells
        stage = stage.next()
        if fresh:
            slot = slot.next()
            queries.ring.wait(slot)
            tiles = scalar(queries.plan.tile_count(slot))


@gluon.jit
def fill(lengths, out, width, rows):
    """-inf into the cells of every row that it does not see: this program's sections of the rows.

    Programs take turns, each time at another section of a row, so that all have as much to fill where rows see alike. A lane
    each finds out about one of the next 32 turns, so that stores wait for nothing.
    """
    CELLS: gl.constexpr = 128 // out.pointer.dtype.element_ty.primitive_bitwidth  # of 16 bytes
    LINE: gl.constexpr = gl.BlockedLayout([CELLS], [32], [gl.num_warps()], [0])
    STRIP: gl.constexpr = 512 * gl.num_warps()
    column = gl.arange(0, STRIP, LINE)
    value = gl.full([STRIP], float("-inf"), out.pointer.dtype.element_ty, LINE)
    sections = gl.maximum(gl.cdiv(width, SECTION), 1)
    units = rows * sections
    programs = gl.num_programs(0) * gl.num_programs(1)
    begin = gl.program_id(0) * gl.num_programs(1) + gl.program_id(1)
    while begin < units:
        unit = begin + gl.arange(0, 32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0])) * programs
        row = gl.minimum(unit // sections, rows - 1)
        length = lengths.seen(lengths.load(row // lengths.NEXT_N, row % lengths.NEXT_N), row % lengths.NEXT_N)
        base = (unit + row) % sections * SECTION
        firsts = gl.maximum(base, length)
        lasts = gl.where(unit < units, gl.minimum(base + SECTION, width), 0)
        for turn in range(32):
            first = nth(firsts, turn)
            last = nth(lasts, turn)
            cells = out.pointer + nth(row, turn).to(gl.int64) * out.stride_row + column.to(gl.int64) * out.stride_cell
            for strip in range(first // STRIP * STRIP, last, STRIP):
                start = cells + gl.to_tensor(strip).to(gl.int64) * out.stride_cell
                if (strip >= first) & (strip + STRIP <= last):
                    gl.store(start, value)
                else:
                    gl.store(start, value, mask=(strip + column >= first) & (strip + column < last))
        begin += 32 * programs


@gluon.jit
def paged_mqa_logits_kernel(
    queries,  # tensor map of q, [B * NEXT_N, H, D] fp8, with the axes of query_box
    keys,  # tensor map of the cache's keys, [num_blocks, BLOCK, D] fp8
    scales,  # tensor map of its scales, [num_blocks, BLOCK] float32
    weights,  # tensor map of [B * NEXT_N, H] float32 or bfloat16
    lens,  # [B] int32, or [B, NEXT_N] if ROW_LENS
    table,  # [B, max_blocks] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [B * NEXT_N, width] float32 or bfloat16
    num_requests,
    num_blocks,
    limit,  # keys that a row can see: as many as it has cells, and its row of the table has room for
    width,
    splits,  # programs that share a worker's tiles, taking turns
    stride_lb,
    stride_ln,
    stride_tb,
    stride_tk,
    stride_os,
    stride_on,
    NEXT_N: gl.constexpr,
    PASSES: gl.constexpr,
    ROWS: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    BLOCK: gl.constexpr,
    CHUNK: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    CLEAN: gl.constexpr,
    ROW_LENS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    EARLY: gl.constexpr = False,
):
    INTEGERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    first_row = gl.program_id(1) * (PASSES * ROWS)  # of each request, where a program does not score all of its rows
    num_requests = gl.to_tensor(num_requests)
    first_request, first_chunk, last_request, last_chunk = load_share(
        schedule, gl.program_id(0) // splits, num_requests, ROW_LENS, EARLY
    )
    share = Share(first_request, first_chunk, last_request, last_chunk, num_requests, splits, CHUNK)
    maps = Maps(queries, keys, scales, weights)
    table = Table(table, stride_tb, stride_tk, gl.to_tensor(num_blocks), BLOCK)
    queries = Queries(
        gl.allocate_shared_memory(gl.float8e4nv, [SLOTS * PASSES, ROWS * HEADS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(
            maps.weights.dtype,
            [SLOTS * PASSES * spread(ROWS, HEADS, maps.weights.dtype.primitive_bitwidth), ROWS, HEADS],
            maps.weights.layout,
        ),
        gl.allocate_shared_memory(gl.int32, [SLOTS, PASSES * max(ROWS, 2)], INTEGERS),
        Plan(gl.allocate_shared_memory(gl.int32, [SLOTS * FIELDS, 1], INTEGERS)),
        new_ring(SLOTS, 1),
    )
    keys = Keys(
        gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], floats_layout(1)),
        gl.allocate_shared_memory(gl.int32, [STAGES, 1], INTEGERS),
        new_ring(STAGES, 1),
    )
    hopper.fence_async_shared()
    lengths = Lengths(lens, gl.to_tensor(limit), gl.to_tensor(stride_lb), gl.to_tensor(stride_ln), NEXT_N, ROW_LENS)
    out = Output(out, stride_os, stride_on)
    if CLEAN:
        gl.warp_specialize(
            [
                (consume, (queries, keys, out, splits, BLOCK)),
                (produce, (queries, keys, maps, lengths, share, table, first_row)),
                (fill, (lengths, out, width, num_requests * NEXT_N)),
            ],
            [1, 2],  # Triton makes four: as many as these and one more
            [PRODUCER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (queries, keys, out, splits, BLOCK)),
                (produce, (queries, keys, maps, lengths, share, table, first_row)),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )


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

    With ``clean_logits`` every other cell becomes -inf. The layout is "flat": the rule accepts no other.
    """
    q, kv_cache, weights, context_lens, block_table, _ = inputs
    requests, next_n, heads, dim = q.shape
    plan, padded = plan_of(tuning, problem, inputs, out, chunk_keys), padded_heads(heads)
    tune, rows = plan.tune, plan.tune.rows
    keys, scales = keys_of(kv_cache).view(q.dtype), scales_of(kv_cache)
    (blocks, block), width = keys.shape[:2], out.shape[1]
    piece = gcd(block, tune.block_keys)
    arguments = (
        query_map(q.flatten(0, 1), rows, padded),
        tensor_map(keys, keys.shape, keys.stride(), [1, piece, dim]),
        tensor_map(scales, scales.shape, scales.stride(), [1, piece]),
        tensor_map(weights, weights.shape, weights.stride(), [rows, padded]),
        *(context_lens, block_table, plan.planned.schedule, out),
        *(requests, blocks, plan.limit, width, plan.splits),
        *(*plan.lens_strides, *block_table.stride(), *out.stride()),
    )
    keywords = {
        "NEXT_N": next_n,
        "PASSES": tune.passes,
        "ROWS": rows,
        "HEADS": padded,
        "DIM": dim,
        "BLOCK": block,
        "CHUNK": chunk_keys,
        "KEYS": tune.block_keys,
        "STAGES": tune.num_stages,
        "CLEAN": clean_logits,
        "ROW_LENS": plan.row_lens,
        "PRODUCER_REGISTERS": tune.registers_producer,
        "num_warps": tune.num_warps,
        "maxnreg": tune.registers_thread,
        "enable_fp_fusion": True,  # as in the other variants; Triton 3.10 turns this off by default
    }
    return plan.planned.launches(paged_mqa_logits_kernel, plan.grid, arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning, workers=partial(workers, tuning))
