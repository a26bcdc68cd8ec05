"""Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: tensor maps, mbarriers, fp8 wgmma, specialised warps.

    logits[b, t, j] = scale[b, j] * sum_h weights[b, t, h] * relu(q[b, t, h, :] . key[b, j, :])    for 0 <= j < seen[b, t]

A program is one worker of the schedule: it walks its chunks of keys from one request to the next. One warp produces: it reads
the block table and keeps STAGES tiles of 128 keys on their way from the cache, which is what this kernel lives on: bytes in
flight. Two warpgroups consume, each 64 keys of every tile: keys on the M side of the products, rows x heads on the N side.
Relu, weights and head sum happen in registers. No sum crosses programs, so results repeat bit for bit.
"""

from functools import cache
from typing import NamedTuple

import torch

from capgate import compat
from capgate.compat.gluon import aggregate, barrier, gl, gluon, hopper, mbarrier, reinterpret, tma_load

from ..common.cache import keys_of, scales_of
from ..common.device.hopper import (
    bytes_layout,
    column_weights,
    floats_layout,
    head_sums,
    load_query,
    logit_layout,
    query_box,
    query_map,
    scalar,
    tensor_map,
)
from ..common.device.windows import load_share, seen
from ..common.rules import padded_heads
from ..common.schedule.classic import new_schedule, workers_that_fit
from ..common.schedule.operation import CHUNK_KEYS
from .operands import Inputs
from .operation import Problem


class Tuning(NamedTuple):
    """How the work is cut, and what is asked of the compiler."""

    block_keys: int  # keys in a tile, the M side of the products
    rows: int  # of a request in a program; rows x padded heads is the N side
    stages: int  # key tiles in flight
    resident: int  # programs that one SM holds
    thread_registers: int  # what a thread has before the warps specialise
    producer_registers: int


# block_keys, columns on the N side at most, stages, resident, thread_registers, producer_registers; for every H, D, next_n and
# output mode alike. Tried on an H100 80GB with Triton 3.6.0 (us, 256 requests of about 8192 keys, 64 heads, D = 128; "cold": a
# 256 MB read before the call has written back what the flush left dirty in L2):
#
# * Tiles of 128 keys, two consumers, one program on an SM, 4 / 6 / 8 stages: 117.4 / 116.8 / 119.4, cold 108.1 with 6. More
#   bytes in flight do not help. As in the table: 116.4, cold 107.1; with next_n of 2 122.1 -> 119.5. 8 stages, not 5: +2.5 %.
# * SMs end 10 % apart with equal work. More workers than fit, for the hardware to hand out: 64k contexts cold 799 -> 792 with
#   32 for each SM, but 8k contexts 107.1 -> 113.3 and one of 64k alone 8.8 -> 28.8, since each begins with 4 us of latency.
# * Prefetching the first lengths and table entries, or all tensor maps by a copy that is not needed: within 1 %.
TUNING = (64, 128, 5, 2, 128, 72)


@cache
def tuning(problem: Problem) -> Tuning:
    """The one row of the table, cut to the heads and rows of a problem's request."""
    block_keys, columns, *rest = TUNING
    rows = min(1 << (problem.next_n - 1).bit_length(), columns // padded_heads(problem.heads))
    return Tuning(block_keys, rows, *rest)


@aggregate
class Shared:
    """A program's shared memory, and its constants.

    query, weight : two slots, each with the ROWS rows of one request
    lengths, plan : by slot: keys that each row sees; first tile, count of tiles (0: no request follows) and first row
    key, scale : STAGES key tiles
    missing : by key tile, a bit for each of its pieces: whether its block lies outside the cache
    """

    query: gl.shared_memory_descriptor
    weight: gl.shared_memory_descriptor
    lengths: gl.shared_memory_descriptor
    plan: gl.shared_memory_descriptor
    key: gl.shared_memory_descriptor
    scale: gl.shared_memory_descriptor
    missing: gl.shared_memory_descriptor
    query_full: gl.shared_memory_descriptor
    query_empty: gl.shared_memory_descriptor
    key_full: gl.shared_memory_descriptor
    key_empty: gl.shared_memory_descriptor
    ROWS: gl.constexpr
    HEADS: gl.constexpr
    DIM: gl.constexpr
    KEYS: gl.constexpr
    STAGES: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self, query, weight, lengths, plan, key, scale, missing, query_full, query_empty, key_full, key_empty,
        ROWS, HEADS, DIM, KEYS, STAGES,
    ):  # fmt: skip
        self.query = query
        self.weight = weight
        self.lengths = lengths
        self.plan = plan
        self.key = key
        self.scale = scale
        self.missing = missing
        self.query_full = query_full
        self.query_empty = query_empty
        self.key_full = key_full
        self.key_empty = key_empty
        self.ROWS = gl.constexpr(ROWS)
        self.HEADS = gl.constexpr(HEADS)
        self.DIM = gl.constexpr(DIM)
        self.KEYS = gl.constexpr(KEYS)
        self.STAGES = gl.constexpr(STAGES)


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
def seen_by(lengths, request, row):
    """How many keys a row of a request sees; none if the request has no such row."""
    return seen(
        lengths.lens, request, row, lengths.most, lengths.stride_lb, lengths.stride_ln, lengths.NEXT_N, lengths.ROW_LENS
    )


@gluon.jit
def load_keys(
    shared, keys, scales, entries, stride_tk, num_blocks, position, longest, stage, BLOCK: gl.constexpr, LAYOUT: gl.constexpr
):
    """Start the copy of the tile that begins at key ``position``, piece by piece: a piece lies in one block.

    A block outside the cache lies outside the tensor map, which fills the piece with zeros and reads nothing; a bit says so
    to the consumers. A piece past the longest row's last key, which has no entry in the table, is treated alike.
    """
    KEYS: gl.constexpr = shared.KEYS
    PIECE: gl.constexpr = min(BLOCK, KEYS)
    full = shared.key_full.index(stage)
    key = reinterpret(shared.key.index(stage), gl.float8e4nv, [KEYS // PIECE, PIECE, shared.DIM], bytes_layout(shared.DIM, 3))
    scale = reinterpret(shared.scale.index(stage), gl.float32, [KEYS // PIECE, PIECE], floats_layout(2))
    blocks = ()
    missing = 0
    for piece in gl.static_range(KEYS // PIECE):
        at = position + piece * PIECE
        block = gl.load(entries + (at // BLOCK).to(gl.int64) * stride_tk, mask=at < longest, other=-1)
        missing |= (block.to(gl.uint32) >= num_blocks.to(gl.uint32)).to(gl.int32) << piece
        blocks += (block,)
    shared.missing.index(stage).store(gl.full([1], missing, gl.int32, LAYOUT))
    barrier()
    mbarrier.expect(full, KEYS * (shared.DIM + 4))
    for piece in gl.static_range(KEYS // PIECE):
        inside = (position + piece * PIECE) % BLOCK
        tma_load(keys, [blocks[piece], inside, 0], full, key.slice(piece, 1))
        tma_load(scales, [blocks[piece], inside], full, scale.slice(piece, 1))


@gluon.jit
def produce(
    shared, queries, keys, scales, weights, lengths, table, stride_tb, stride_tk,
    first_row, first_request, first_chunk, last_request, last_chunk, num_requests, num_blocks,
    BLOCK: gl.constexpr, CHUNK: gl.constexpr,
):  # fmt: skip
    """The producer warp: keeps the consumers in keys."""
    ROWS: gl.constexpr = shared.ROWS
    KEYS: gl.constexpr = shared.KEYS
    NEXT_N: gl.constexpr = lengths.NEXT_N
    PADDED: gl.constexpr = max(ROWS, 2)
    BOX: gl.constexpr = query_box(ROWS, shared.HEADS, shared.DIM)
    BOX_LAYOUT: gl.constexpr = bytes_layout(shared.DIM, len(BOX))
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    each = gl.arange(0, PADDED, ONE)
    stage = 0
    phase = 1
    slot = 0
    slot_phase = 1
    past_request = gl.minimum(gl.where(last_chunk > 0, last_request + 1, last_request), num_requests)
    for request in range(first_request, past_request):
        row = gl.where(each < ROWS, first_row + each, NEXT_N)
        length = seen_by(lengths, request, row)
        longest = gl.max(length, axis=0)
        tiles = gl.cdiv(longest, KEYS)
        # A chunk may be any number: cut before it is multiplied.
        begin = gl.minimum(gl.minimum(first_chunk, tiles) * (CHUNK // KEYS), tiles)
        end = gl.minimum(gl.minimum(last_chunk, tiles) * (CHUNK // KEYS), tiles)
        first = gl.where(request == first_request, begin, 0)
        last = gl.where(request == last_request, end, tiles)
        if first < last:
            mbarrier.wait(shared.query_empty.index(slot), slot_phase)
            shared.lengths.index(slot).store(length)
            shared.plan.index(slot * 4).store(gl.full([1], first, gl.int32, ONE))
            shared.plan.index(slot * 4 + 1).store(gl.full([1], last - first, gl.int32, ONE))
            shared.plan.index(slot * 4 + 2).store(gl.full([1], request * NEXT_N + first_row, gl.int32, ONE))
            barrier()
            full = shared.query_full.index(slot)
            mbarrier.expect(full, ROWS * shared.HEADS * (shared.DIM + 4))
            box = reinterpret(shared.query.index(slot), gl.float8e4nv, BOX, BOX_LAYOUT)
            load_query(queries, request * NEXT_N + first_row, full, box, ROWS)
            tma_load(weights, [request * NEXT_N + first_row, 0], full, shared.weight.index(slot))
            slot ^= 1
            slot_phase ^= (slot == 0).to(gl.int32)
            entries = table + request.to(gl.int64) * stride_tb
            for tile in range(first, last):
                mbarrier.wait(shared.key_empty.index(stage), phase)
                load_keys(shared, keys, scales, entries, stride_tk, num_blocks, tile * KEYS, longest, stage, BLOCK, ONE)
                stage += 1
                if stage == shared.STAGES:
                    stage = 0
                    phase ^= 1
    mbarrier.wait(shared.query_empty.index(slot), slot_phase)
    shared.plan.index(slot * 4 + 1).store(gl.full([1], 0, gl.int32, ONE))
    barrier()
    mbarrier.arrive(shared.query_full.index(slot), count=1)


@gluon.jit
def consume(shared, out, stride_os, stride_on, BLOCK: gl.constexpr):
    """The consumer warpgroup: the logits of every tile."""
    ROWS: gl.constexpr = shared.ROWS
    HEADS: gl.constexpr = shared.HEADS
    KEYS: gl.constexpr = shared.KEYS
    PIECE: gl.constexpr = min(BLOCK, KEYS)
    PADDED: gl.constexpr = max(ROWS, 2)
    COLUMNS: gl.constexpr = ROWS * HEADS
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, COLUMNS, 32])
    LOGIT: gl.constexpr = logit_layout(ROWS)
    KEY: gl.constexpr = gl.SliceLayout(1, LOGIT)
    ROW: gl.constexpr = gl.SliceLayout(0, LOGIT)
    lane = gl.arange(0, KEYS, KEY)
    each = gl.arange(0, PADDED, ROW)
    zeros = gl.full([KEYS, COLUMNS], 0.0, gl.float32, MMA)
    weights = gl.full([COLUMNS], 0.0, gl.float32, gl.SliceLayout(0, MMA))
    # Of a lane's cell: how many keys its row sees from it on.
    left = gl.full([KEYS, PADDED], 0, gl.int32, LOGIT)
    cells = out + gl.full([KEYS, PADDED], 0, gl.int64, LOGIT)
    stage = 0
    phase = 0
    slot = 0
    slot_phase = 0
    fresh = True
    mbarrier.wait(shared.query_full.index(0), 0)
    tiles = scalar(shared.plan.index(1))
    while tiles > 0:
        columns = shared.query.index(slot).permute([1, 0])
        mbarrier.wait(shared.key_full.index(stage), phase)
        key = shared.key.index(stage)
        scores = hopper.warpgroup_mma(key, columns, zeros, use_acc=False, is_async=True)
        if fresh:
            position = scalar(shared.plan.index(slot * 4)) * KEYS + lane
            row = scalar(shared.plan.index(slot * 4 + 2)) + each
            weights = column_weights(shared.weight.index(slot), ROWS, HEADS, gl.SliceLayout(0, MMA))
            left = shared.lengths.index(slot).load(ROW)[None, :] - position[:, None]
            cells = out + ((row.to(gl.int64) * stride_os)[None, :] + (position.to(gl.int64) * stride_on)[:, None])
        scale = shared.scale.index(stage).load(KEY)[:, None]
        missing = (scalar(shared.missing.index(stage)) >> lane // PIECE & 1)[:, None]
        scores = hopper.warpgroup_mma_wait(0, [scores])
        barrier()  # of the warpgroup: one thread arrives for all
        mbarrier.arrive(shared.key_empty.index(stage), count=1)
        tiles -= 1
        fresh = tiles == 0
        mbarrier.arrive(shared.query_empty.index(slot), count=1, pred=fresh)
        logits = gl.where(missing == 0, head_sums(scores, weights, ROWS) * scale, float("-inf"))
        gl.store(cells, logits, mask=left > 0)
        left -= KEYS
        cells += KEYS * stride_on
        stage += 1
        if stage == shared.STAGES:
            stage = 0
            phase ^= 1
        if fresh:
            slot ^= 1
            slot_phase ^= (slot == 0).to(gl.int32)
            mbarrier.wait(shared.query_full.index(slot), slot_phase)
            tiles = scalar(shared.plan.index(slot * 4 + 1))


@gluon.jit
def fill(lengths, out, width, rows, stride_os, stride_on):
    """-inf into the cells of every row that it does not see; this program's part of the rows' lines."""
    LINE: gl.constexpr = gl.BlockedLayout([4], [32], [gl.num_warps()], [0])
    STRIP: gl.constexpr = 512 * gl.num_warps()
    column = gl.arange(0, STRIP, LINE)
    value = gl.full([STRIP], float("-inf"), gl.float32, LINE)
    strips = gl.cdiv(width, STRIP)
    program = gl.program_id(0) * gl.num_programs(1) + gl.program_id(1)
    step = gl.num_programs(0) * gl.num_programs(1)
    for unit in range(program.to(gl.int64), rows.to(gl.int64) * strips, step):
        row = (unit // strips).to(gl.int32)
        base = (unit % strips).to(gl.int32) * STRIP
        length = seen_by(lengths, row // lengths.NEXT_N, row % lengths.NEXT_N)
        if base + STRIP > length:
            cells = out + row.to(gl.int64) * stride_os + base.to(gl.int64) * stride_on + column.to(gl.int64) * stride_on
            if (base >= length) & (base + STRIP <= width):
                gl.store(cells, value)
            else:
                gl.store(cells, value, mask=(base + column >= length) & (base + column < width))


@gluon.jit
def paged_mqa_logits_kernel(
    queries,  # tensor map of q, [B * NEXT_N, H, D] fp8, with the axes of query_box
    keys,  # tensor map of the cache's keys, [num_blocks, BLOCK, D] fp8
    scales,  # tensor map of its scales, [num_blocks, BLOCK] float32
    weights,  # tensor map of [B * NEXT_N, H] float32
    lens,  # [B] int32, or [B, NEXT_N] if ROW_LENS
    table,  # [B, max_blocks] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [B * NEXT_N, width] float32
    num_requests,
    num_blocks,
    limit,  # keys that a row can see: as many as it has cells, and its row of the table has room for
    width,
    stride_lb,
    stride_ln,
    stride_tb,
    stride_tk,
    stride_os,
    stride_on,
    NEXT_N: gl.constexpr,
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
):
    INTEGERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    BARRIERS: gl.constexpr = mbarrier.MBarrierLayout()
    first_row = gl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, gl.program_id(0), num_requests)
    num_blocks = gl.to_tensor(num_blocks)
    shared = Shared(
        gl.allocate_shared_memory(gl.float8e4nv, [2, ROWS * HEADS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(gl.float32, [2, ROWS, HEADS], weights.layout),
        gl.allocate_shared_memory(gl.int32, [2, max(ROWS, 2)], INTEGERS),
        gl.allocate_shared_memory(gl.int32, [8, 1], INTEGERS),
        gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], floats_layout(1)),
        gl.allocate_shared_memory(gl.int32, [STAGES, 1], INTEGERS),
        gl.allocate_shared_memory(gl.int64, [2, 1], BARRIERS),
        gl.allocate_shared_memory(gl.int64, [2, 1], BARRIERS),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIERS),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIERS),
        ROWS,
        HEADS,
        DIM,
        KEYS,
        STAGES,
    )
    for slot in gl.static_range(2):
        mbarrier.init(shared.query_full.index(slot), count=1)
        mbarrier.init(shared.query_empty.index(slot), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(shared.key_full.index(stage), count=1)
        mbarrier.init(shared.key_empty.index(stage), count=1)
    hopper.fence_async_shared()
    lengths = Lengths(lens, gl.to_tensor(limit), gl.to_tensor(stride_lb), gl.to_tensor(stride_ln), NEXT_N, ROW_LENS)
    if CLEAN:
        gl.warp_specialize(
            [
                (consume, (shared, out, stride_os, stride_on, BLOCK)),
                (
                    produce,
                    (
                        shared, queries, keys, scales, weights, lengths, table, stride_tb, stride_tk,
                        first_row, first_request, first_chunk, last_request, last_chunk, num_requests, num_blocks,
                        BLOCK, CHUNK,
                    ),
                ),
                (fill, (lengths, out, width, gl.to_tensor(num_requests) * NEXT_N, stride_os, stride_on)),
            ],
            [1, 1],
            [PRODUCER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consume, (shared, out, stride_os, stride_on, BLOCK)),
                (
                    produce,
                    (
                        shared, queries, keys, scales, weights, lengths, table, stride_tb, stride_tk,
                        first_row, first_request, first_chunk, last_request, last_chunk, num_requests, num_blocks,
                        BLOCK, CHUNK,
                    ),
                ),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip


def workers(problem: Problem) -> int:
    """As :func:`capgate.kernels.paged_mqa_workers`."""
    tune = tuning(problem)
    return workers_that_fit(problem.device, tune.resident, -(-problem.next_n // tune.rows))


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool) -> tuple[compat.Launch, ...]:
    """The launches of one call: what makes the schedule where none is given, and what writes the logits that each row sees.

    With ``clean_logits`` every other cell becomes -inf.
    """
    q, kv_cache, weights, context_lens, block_table, schedule = inputs
    requests, next_n, heads, dim = q.shape
    schedule, before = (schedule, ()) if schedule is not None else new_schedule(context_lens, workers(problem))
    tune, padded = tuning(problem), padded_heads(heads)
    rows = tune.rows
    keys, scales = keys_of(kv_cache).view(q.dtype), scales_of(kv_cache)
    (blocks, block), width = keys.shape[:2], out.shape[1]
    piece = min(block, tune.block_keys)
    row_lens = context_lens.ndim == 2
    lens_strides = context_lens.stride() if row_lens else (context_lens.stride(0), 0)
    arguments = (
        query_map(q.flatten(0, 1), rows, padded),
        tensor_map(keys, keys.shape, keys.stride(), [1, piece, dim], bytes_layout(dim, 3)),
        tensor_map(scales, scales.shape, scales.stride(), [1, piece], floats_layout(2)),
        tensor_map(weights, weights.shape, weights.stride(), [rows, padded], floats_layout(2)),
        *(context_lens, block_table, schedule, out),
        *(requests, blocks, min(width, block_table.shape[1] * block), width),
        *(*lens_strides, *block_table.stride(), *out.stride()),
    )
    keywords = {
        "NEXT_N": next_n,
        "ROWS": rows,
        "HEADS": padded,
        "DIM": dim,
        "BLOCK": block,
        "CHUNK": CHUNK_KEYS,
        "KEYS": tune.block_keys,
        "STAGES": tune.stages,
        "CLEAN": clean_logits,
        "ROW_LENS": row_lens,
        "PRODUCER_REGISTERS": tune.producer_registers,
        "num_warps": 4,
        "maxnreg": tune.thread_registers,
        "enable_fp_fusion": True,  # as in the other branches; Triton 3.10 turns this off by default
    }
    grid = (schedule.shape[0] - 1, -(-next_n // rows))
    return (*before, compat.Launch(paged_mqa_logits_kernel, grid, arguments, keywords))


kernel = compat.Kernel(prepare, tuning=tuning, workers=workers)
