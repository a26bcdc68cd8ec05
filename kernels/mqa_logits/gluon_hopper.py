"""Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: tensor maps, mbarriers, fp8 wgmma, specialised warps.

    logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

A program has one warp that produces and two warpgroups that consume. It takes *groups* of query rows: each warpgroup owns as
many of a group as make 128 products with a key, rows x heads, and both share its *tiles* of 128 keys, which lie on the M side.
Relu, weights and head sum happen in registers. No logit needs two programs, so results repeat bit for bit, and a group's
tiles may be shared out at any border: every program gets an equal share of the work, whatever the windows are.
"""

import torch

from capgate import compat
from capgate.compat.gluon import aggregate, barrier, gl, gluon, hopper, mbarrier, reinterpret, tma_load, tma_store_wait

from ..common.device.hopper import (
    bytes_layout,
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
    field,
    new_ring,
    producers_turn,
)
from ..common.hardware import multiprocessors
from ..common.rules import padded_heads
from .gluon_hopper_fill import Filling, fill, nothing_unfilled
from .gluon_hopper_share import Guess, Windows, cover, find_share, first_needs
from .operands import Inputs
from .operation import Problem
from .tunings import gluon_hopper as tuning

FEW_GROUPS = 32  # whose windows one load of a warp reads; what programs need first may then be guessed
CONSUMERS = gl.constexpr(2)  # warpgroups that multiply, each for half of a group's rows
BEGIN, END, START = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)  # of the record of a slot's windows
EVERY_TILE = gl.constexpr(1 << 30)  # a budget for all that is left to fill


@aggregate
class Queries:
    """By slot, the rows of one group, ROWS for each consumer, and what they are scored against.

    query, weight : [SLOTS * CONSUMERS, ROWS * HEADS, DIM] fp8, [SLOTS, CONSUMERS * ROWS, HEADS] float32 or bfloat16
    bounds : [SLOTS * FIELDS, CONSUMERS * max(ROWS, 2)] int32, the rows' windows: a record of begins, ends and, uncut, starts
    full : [SLOTS, 1] mbarriers; that a slot is empty follows from the key tiles, see Slot
    """

    query: gl.shared_memory_descriptor
    weight: gl.shared_memory_descriptor
    bounds: gl.shared_memory_descriptor
    plan: Plan
    full: gl.shared_memory_descriptor
    ROWS: gl.constexpr
    HEADS: gl.constexpr
    DIM: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, query, weight, bounds, plan, full):
        self.query = query
        self.weight = weight
        self.bounds = bounds
        self.plan = plan
        self.full = full
        self.ROWS = gl.constexpr(weight.shape[1] // CONSUMERS.value)
        self.HEADS = gl.constexpr(weight.shape[2])
        self.DIM = gl.constexpr(query.shape[2])

    @gluon.jit
    def begins(self, slot):
        return field(self.bounds, slot, BEGIN)

    @gluon.jit
    def ends(self, slot):
        return field(self.bounds, slot, END)

    @gluon.jit
    def starts(self, slot):
        return field(self.bounds, slot, START)

    @gluon.jit
    def wait(self, slot):
        """Until a slot is full."""
        mbarrier.wait(self.full.index(slot.index), slot.phase)


@aggregate
class Slot:
    """The producer's next slot for queries.

    sent : key tiles so far
    ended, other_ended : of this slot and the other, ``sent`` when its queries ended; 0: it had none
    """

    index: gl.tensor
    sent: gl.tensor
    ended: gl.tensor
    other_ended: gl.tensor

    @gluon.constexpr_function
    def __init__(self, index, sent, ended, other_ended):
        self.index = index
        self.sent = sent
        self.ended = ended
        self.other_ended = other_ended

    @gluon.jit
    def acquire(self, ring):
        """Wait until the slot is empty: once the last key tile of its queries is done with.

        The producer does not know that yet of the last STAGES tiles that were sent.
        """
        STAGES: gl.constexpr = ring.STAGES
        last = self.ended - 1
        busy = (self.ended > 0) & (self.ended + STAGES > self.sent)
        mbarrier.wait(ring.empty.index(last % STAGES), last // STAGES & 1, pred=busy)

    @gluon.jit
    def next(self, tiles):
        """After the slot's queries have been sent ``tiles`` key tiles."""
        sent = self.sent + tiles
        return Slot(self.index ^ 1, sent, self.other_ended, sent)


@gluon.jit
def first_slot():
    """Before anything is sent."""
    zero = gl.to_tensor(0)
    return Slot(zero, zero, zero, zero)


@aggregate
class Keys:
    """By stage, a tile of keys: [STAGES, KEYS, DIM] fp8, and its scales [STAGES, KEYS] float32."""

    key: gl.shared_memory_descriptor
    scale: gl.shared_memory_descriptor
    ring: Ring
    KEYS: gl.constexpr
    DIM: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, key, scale, ring):
        self.key = key
        self.scale = scale
        self.ring = ring
        self.KEYS = gl.constexpr(key.shape[1])
        self.DIM = gl.constexpr(key.shape[2])


@gluon.jit
def load_queries(queries, maps, row, slot, full, there):
    """Start the copies of a group's queries and weights into a slot, or let the barrier pass where they are ``there``."""
    ROWS: gl.constexpr = queries.ROWS
    BOX: gl.constexpr = query_box(ROWS, queries.HEADS, queries.DIM)
    BOX_LAYOUT: gl.constexpr = bytes_layout(queries.DIM, len(BOX))
    WEIGHT_BYTES: gl.constexpr = queries.weight.dtype.primitive_bitwidth // 8
    wanted = there == 0
    mbarrier.arrive(full, count=1, pred=there)
    mbarrier.expect(full, CONSUMERS * ROWS * queries.HEADS * (queries.DIM + WEIGHT_BYTES), pred=wanted)
    for consumer in gl.static_range(CONSUMERS):
        box = reinterpret(queries.query.index(slot.index * CONSUMERS + consumer), gl.float8e4nv, BOX, BOX_LAYOUT)
        load_query(maps.queries, row + consumer * ROWS, full, box, ROWS, wanted)
    tma_load(maps.weights, [row, 0], full, queries.weight.index(slot.index), pred=wanted)


@gluon.jit
def load_keys(keys, maps, tile, stage, full, there):
    """Start the copies of a tile of keys and their scales, or let the barrier pass where they are ``there``."""
    KEYS: gl.constexpr = keys.KEYS
    wanted = there == 0
    mbarrier.arrive(full, count=1, pred=there)
    mbarrier.expect(full, KEYS * (keys.DIM + 4), pred=wanted)
    tma_load(maps.keys, [tile * KEYS, 0], full, keys.key.index(stage.index), pred=wanted)
    tma_load(maps.scales, [tile * KEYS], full, keys.scale.index(stage.index), pred=wanted)


@gluon.jit
def produce(queries, keys, maps, windows, share, guess, filling):
    """The producer warp: keeps the consumers in keys, and fills what lies outside of their tiles.

    guess, filling : None where nothing is guessed, or filled
    """
    GUESS: gl.constexpr = guess is not None
    CLEAN: gl.constexpr = filling is not None
    ROWS: gl.constexpr = queries.ROWS
    GROUP: gl.constexpr = CONSUMERS * queries.ROWS
    KEYS: gl.constexpr = keys.KEYS
    PADDED: gl.constexpr = max(ROWS, 2)
    WINDOW: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [1, 1], [1, 0])
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    border = share.first
    groups = gl.cdiv(windows.num_queries, GROUP)
    stop = share.stop(groups)
    budget = share.budget(groups * gl.cdiv(windows.num_keys, KEYS))

    index = gl.arange(0, CONSUMERS * PADDED, gl.SliceLayout(1, WINDOW))
    offset = index // PADDED * ROWS + index % PADDED
    real = index % PADDED < ROWS
    window = windows.read(border.group * GROUP + offset, WINDOW)
    if GUESS:
        guess.wait()
    stage = producers_turn(keys.ring.STAGES)
    slot = first_slot()
    if CLEAN:
        rest = nothing_unfilled()
    while border.group < stop:
        first_row = border.group * GROUP
        start, end = gl.split(window)
        begin, end = windows.clip(start, end)
        end = gl.where(real & (first_row + offset < windows.num_queries), end, 0)
        window = windows.read(first_row + GROUP + offset, WINDOW)
        first, last = cover(begin, end, KEYS)
        first, last = share.cut(border, first, last)
        if first < last:
            slot.acquire(keys.ring)
            queries.begins(slot).store(gl.convert_layout(begin, ONE))
            queries.ends(slot).store(gl.convert_layout(end, ONE))
            queries.starts(slot).store(gl.convert_layout(start, ONE))
            store_scalar(queries.plan.first_tile(slot), first)
            store_scalar(queries.plan.tile_count(slot), last - first)
            store_scalar(queries.plan.first_row(slot), first_row)
            barrier()
            full = queries.full.index(slot.index)
            there = False
            if GUESS:
                there = guess.is_row(slot.sent, first_row)
            load_queries(queries, maps, first_row, slot, full, there)
            for tile in range(first, last):
                keys.ring.acquire(stage)
                full = keys.ring.full.index(stage.index)
                if GUESS:
                    there = guess.is_tile(slot.sent, first_row, first, tile)
                load_keys(keys, maps, tile, stage, full, there)
                if CLEAN:
                    rest = fill(filling, windows, budget, rest)
                stage = stage.next()
            slot = slot.next(last - first)
        border = border.next()
    slot.acquire(keys.ring)
    store_scalar(queries.plan.tile_count(slot), 0)
    barrier()
    mbarrier.arrive(queries.full.index(slot.index), count=1)
    if CLEAN:
        fill(filling, windows, gl.to_tensor(EVERY_TILE), rest)
        tma_store_wait(0)


@aggregate
class Cells:
    """A lane's cells of the output, for keys of a half tile x rows.

    distance : how far a cell is from its window's begin
    length : of the window
    room : how many cells the row has from this one on; 0 or less: it is not the lane's, or there is none
    pointers : where the logits are stored
    """

    distance: gl.tensor
    length: gl.tensor
    room: gl.tensor
    pointers: gl.tensor

    @gluon.constexpr_function
    def __init__(self, distance, length, room, pointers):
        self.distance = distance
        self.length = length
        self.room = room
        self.pointers = pointers

    @gluon.jit
    def past(self, KEYS: gl.constexpr, stride_cell):
        """The cells so many keys further on."""
        distance = self.distance + KEYS
        room = self.room - KEYS
        return Cells(distance, self.length, room, self.pointers + KEYS * stride_cell)

    @gluon.jit
    def put(self, logits, CLEAN: gl.constexpr):
        """Store the logits of cells inside their window, rounded to what cells hold; with CLEAN, -inf into the row's others."""
        inside = self.distance.to(gl.uint32) < self.length.to(gl.uint32)[None, :]
        if CLEAN:
            gl.store(self.pointers, gl.where(inside, logits, float("-inf")), mask=self.room > 0)
        else:
            gl.store(self.pointers, logits, mask=inside)


@gluon.jit
def consume(consumer, queries, keys, windows, out, CLEAN: gl.constexpr):
    """A consumer warpgroup: the logits of its ROWS rows of every group, tile by tile."""
    ROWS: gl.constexpr = queries.ROWS
    HEADS: gl.constexpr = queries.HEADS
    KEYS: gl.constexpr = keys.KEYS
    HALF: gl.constexpr = KEYS // 2
    PADDED: gl.constexpr = max(ROWS, 2)
    PRODUCTS: gl.constexpr = ROWS * HEADS
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, PRODUCTS, 32])
    PRODUCT: gl.constexpr = gl.SliceLayout(0, MMA)
    LOGIT: gl.constexpr = logit_layout(ROWS)
    KEY: gl.constexpr = gl.SliceLayout(1, LOGIT)
    ROW: gl.constexpr = gl.SliceLayout(0, LOGIT)
    local = gl.arange(0, HALF, KEY)
    each = gl.arange(0, PADDED, ROW)
    zeros = gl.full([HALF, PRODUCTS], 0.0, gl.float32, MMA)
    weights = gl.full([PRODUCTS], 0.0, gl.float32, PRODUCT)
    nowhere = gl.full([HALF, PADDED], 0, gl.int32, LOGIT)
    length = gl.full([PADDED], 0, gl.int32, ROW)
    cells = Cells(nowhere, length, nowhere, out.pointer + gl.full([HALF, PADDED], 0, gl.int64, LOGIT))
    stage = consumers_turn(keys.ring.STAGES)
    slot = consumers_turn(SLOTS)
    fresh = True
    queries.wait(slot)
    left = scalar(queries.plan.tile_count(slot))
    keys.ring.wait(stage, left > 0)
    barrier()
    while left > 0:
        query = queries.query.index(slot.index * CONSUMERS + consumer).permute([1, 0])
        key = keys.key.index(stage.index)
        one = hopper.warpgroup_mma(key.slice(0, HALF), query, zeros, use_acc=False, is_async=True)
        two = hopper.warpgroup_mma(key.slice(HALF, HALF), query, zeros, use_acc=False, is_async=True)
        if fresh:
            first = scalar(queries.plan.first_tile(slot)) * KEYS + local
            row = scalar(queries.plan.first_row(slot)) + consumer * ROWS + each
            weights = product_weights(queries.weight.index(slot.index).slice(consumer * ROWS, ROWS), ROWS, HEADS, PRODUCT)
            begin = queries.begins(slot).slice(consumer * PADDED, PADDED).load(ROW)
            end = queries.ends(slot).slice(consumer * PADDED, PADDED).load(ROW)
            length = gl.where(begin < end, end - begin, 0)
            distance = first[:, None] - begin[None, :]
            exists = (row < windows.num_queries) & (each < ROWS)
            room = gl.where(exists, windows.num_keys, 0)[None, :] - first[:, None]
            offset = row.to(gl.int64) * out.stride_row
            if windows.COMPRESSED:
                start = queries.starts(slot).slice(consumer * PADDED, PADDED).load(ROW)
                offset -= start.to(gl.int64) * out.stride_cell
            pointers = out.pointer + (offset[None, :] + (first.to(gl.int64) * out.stride_cell)[:, None])
            cells = Cells(distance, length, room, pointers)
        scales = keys.scale.index(stage.index)
        scale_one = scales.slice(0, HALF).load(KEY)[:, None]
        scale_two = scales.slice(HALF, HALF).load(KEY)[:, None]

        one = hopper.warpgroup_mma_wait(1, [one])
        cells.put(head_sums(one, weights, ROWS) * scale_one, CLEAN)

        # A wait here, and not at the top, keeps ptxas from moving the next product's up before these sums: it does not move
        # one across a branch.
        done = stage
        stage = stage.next()
        left -= 1
        fresh = left == 0
        if fresh:
            slot = slot.next()
            queries.wait(slot)
            left = scalar(queries.plan.tile_count(slot))
        keys.ring.wait(stage, left > 0)

        two = hopper.warpgroup_mma_wait(0, [two])
        barrier()  # of the warpgroup: one thread arrives for all
        keys.ring.release(done)
        logits = head_sums(two, weights, ROWS) * scale_two
        cells.past(HALF, out.stride_cell).put(logits, CLEAN)
        cells = cells.past(KEYS, out.stride_cell)


@gluon.jit
def mqa_logits_kernel(
    queries,  # tensor map of q, [S, H, D] fp8, with the axes of query_box
    keys,  # tensor map of k, [N, D] fp8
    scales,  # tensor map of k_scale, [N] float32
    weights,  # tensor map of [S, H] float32 or bfloat16
    starts,  # [S] int32
    ends,  # [S] int32
    filled,  # tensor map of out, if CLEAN
    out,  # [S, N] float32 or bfloat16, or [S, width] if COMPRESSED
    num_queries,
    num_keys,
    width,
    stride_starts,
    stride_ends,
    stride_os,
    stride_on,
    sections,  # of the cells of a group's rows, filled apart
    ROWS: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    SAMPLES: gl.constexpr,
    GROUP_COST: gl.constexpr,
    GUESS: gl.constexpr,
    CLEAN: gl.constexpr,
    COMPRESSED: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    GROUP: gl.constexpr = CONSUMERS * ROWS
    INTEGERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    BARRIERS: gl.constexpr = mbarrier.MBarrierLayout()
    maps = Maps(queries, keys, scales, weights)
    queries = Queries(
        gl.allocate_shared_memory(gl.float8e4nv, [SLOTS * CONSUMERS, ROWS * HEADS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(maps.weights.dtype, [SLOTS, GROUP, HEADS], maps.weights.layout),
        gl.allocate_shared_memory(gl.int32, [SLOTS * FIELDS, CONSUMERS * max(ROWS, 2)], INTEGERS),
        Plan(gl.allocate_shared_memory(gl.int32, [SLOTS * FIELDS, 1], INTEGERS)),
        gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIERS),
    )
    for slot in gl.static_range(SLOTS):
        mbarrier.init(queries.full.index(slot), count=1)
    keys = Keys(
        gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], maps.keys.layout),
        gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], maps.scales.layout),
        new_ring(STAGES, CONSUMERS),
    )
    out = Output(out, stride_os, stride_on)
    guess: gl.constexpr = None
    filling: gl.constexpr = None
    # The barriers above live to the kernel's end, since specialised warps use them; this one ends before.
    if GUESS:
        landed = gl.allocate_shared_memory(gl.int64, [1], BARRIERS)
        mbarrier.init(landed, count=2)
    if CLEAN:
        LINES: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [4, 1], [1, 0])
        minus_infinity = gl.full([GROUP, KEYS], float("-inf"), filled.dtype, LINES)
        blank = gl.allocate_shared_memory(filled.dtype, [GROUP, KEYS], filled.layout, minus_infinity)
        filling = Filling(filled, blank, out, gl.to_tensor(sections))
    hopper.fence_async_shared()
    windows = Windows(
        starts,
        ends,
        gl.to_tensor(stride_starts),
        gl.to_tensor(stride_ends),
        gl.to_tensor(num_queries),
        gl.to_tensor(num_keys),
        gl.to_tensor(width),
        COMPRESSED,
    )
    if GUESS:  # while the windows come from memory, so does, with luck, what this program needs first
        row, tile = first_needs(windows, GROUP, KEYS, SAMPLES, GROUP_COST)
        guess = Guess(landed, row, tile)
        load_queries(queries, maps, row, first_slot(), landed, False)
        load_keys(keys, maps, tile, producers_turn(STAGES), landed, False)
    share = find_share(windows, GROUP, KEYS, SAMPLES, GROUP_COST)
    gl.warp_specialize(
        [
            (consume, (0, queries, keys, windows, out, CLEAN)),
            (consume, (1, queries, keys, windows, out, CLEAN)),
            (produce, (queries, keys, maps, windows, share, guess, filling)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, dim), num_keys = q.shape, k.shape[0]
    tune, padded = tuning(problem), padded_heads(heads)
    rows = tune.rows // 2  # of each consumer
    groups, tiles = -(-num_queries // tune.rows), -(-num_keys // tune.block_keys)
    programs = min(multiprocessors(problem.device) * tune.resident, groups * tiles)

    # A store of the copy engine ends with 16 bytes, not with a cell; its map leaves out what would write behind a row's end.
    line = 16 // out.itemsize
    stored = (num_queries, num_keys // line * line)
    arguments = (
        query_map(q, rows, padded),
        tensor_map(k, k.shape, k.stride(), [tune.block_keys, dim]),
        tensor_map(k_scale, k_scale.shape, k_scale.stride(), [tune.block_keys]),
        tensor_map(weights, weights.shape, weights.stride(), [tune.rows, padded]),
        starts,
        ends,
        tensor_map(out, stored, out.stride(), [tune.rows, tune.block_keys]) if clean_logits else out,
        *(out, num_queries, num_keys, out.shape[1], starts.stride(0), ends.stride(0), *out.stride()),
        max(1, min(2 * programs // groups, num_keys // 1024)) if clean_logits else 1,  # the same everywhere: compiled once
    )
    keywords = {
        "ROWS": rows,
        "HEADS": padded,
        "DIM": dim,
        "KEYS": tune.block_keys,
        "STAGES": tune.num_stages,
        "SAMPLES": tune.samples if groups > FEW_GROUPS else FEW_GROUPS,
        "GROUP_COST": tune.group_cost,
        "GUESS": groups <= FEW_GROUPS and not clean_logits,
        "CLEAN": clean_logits,
        "COMPRESSED": compressed,
        "CONSUMER_REGISTERS": tune.registers_consumer,
        "PRODUCER_REGISTERS": tune.registers_producer,
        "num_warps": tune.num_warps // 2,
        "maxnreg": tune.registers_thread,
        "enable_fp_fusion": True,  # as in the other variants; Triton 3.10 turns this off by default
    }
    return compat.Launch(mqa_logits_kernel, (programs,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
