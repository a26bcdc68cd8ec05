"""Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: tensor maps, mbarriers, fp8 wgmma, specialised warps.

    logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h, :] . k[j, :])    for max(starts[i], 0) <= j < min(ends[i], N)

A program has one warp that produces and two warpgroups that consume. It takes *groups* of query rows: each warpgroup owns
128 columns, rows x heads, of a group, and both share its *tiles* of 128 keys, which lie on the M side of the products.
Relu, weights and head sum happen in registers. No logit needs two programs, so results repeat bit for bit, and a group's
tiles may be shared out at any border: every program gets an equal part of the work, whatever the windows are.
"""

from typing import NamedTuple

import torch

from capgate import compat
from capgate.compat.gluon import (
    aggregate,
    barrier,
    gl,
    gluon,
    hopper,
    mbarrier,
    reinterpret,
    tma_load,
    tma_store,
    tma_store_wait,
)

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
from ..common.device.windows import clip
from ..common.hardware import multiprocessors
from ..common.rules import padded_heads
from .operands import Inputs
from .operation import Problem


class Tuning(NamedTuple):
    """How the work is cut, and what is asked of the compiler."""

    stages: int  # key tiles in flight
    samples: int  # groups whose windows are read to share out the work
    group_cost: int  # of another group, in eighths of a tile
    consumer_registers: int
    producer_registers: int


# Padded heads -> tuning; for every D and output mode alike. What was tried on an H100 80GB with Triton 3.6.0 and D = 128
# (medians, ms, clean off):
#
# * Predicted: with its own second product in flight, a warpgroup's first sums cost nothing. ptxas had moved the wait for it up
#   before those sums; a branch between them (the wait for the next key tile) stopped that. Measured: nothing, a .143 -> .145.
# * The warpgroups out of phase: one delayed at the start, or in turns by mbarriers. Nothing, or 1-5 % slower.
# * One product in flight at a time, sums always beside it: 3-4 % slower than two at once (455 instructions a tile, not 424).
# * A model that has predicted since: tile time = 1024 cycles of tensor cores + 1.3 cycles for every instruction beyond the 410
#   that both warpgroups issue beside them; "dispatch" stalls lead while tensor cores run. So: fewer instructions. Rows on
#   lanes, windows as a distance and one comparison, one branch a group: 424 -> 350. b .220 -> .199, c .489 -> .459.
# * x + |x| for relu, on the FMA units, in place of a maximum: for half of the heads 2.5-3 % faster, for all another 1-2 % (b
#   .1974, c .4481, d2 .7555).
# * Exact sums of all windows before the work begins: 7-14 us, since every SM asks for the same lines at once. 256 samples, all
#   of them in each of four warps: 4.3 us. 128, one a thread: 3.0, and 1.0 for up to 32 groups (a .1264 -> .1239, f .0151 ->
#   .0142). 64 would leave d1's shares 24 % apart. By the producer alone: f .0143 -> .0156.
# * Programs ended up to 10 % apart, those with many short groups last. A fit of their times: a group costs .85 of a tile with
#   32 heads, not half a tile. e-a .0757 -> .0670, e-c .2405 -> .2283; with 64 heads 5/8 and 7/8 are even, d1 .1506 -> .1447.
# * Skipping the second half of a group's last tile by a branch: b .1974 -> .2052, d1 .1513 -> .1550.
# * Five or six stages in place of four: even.
# * The first query and tile of keys copied before the windows are known, where a guess says that every row sees every key: f
#   .0143 -> .0137, f32 .0111 -> .0104. With clean on, f .0142 -> .0153; with wrong guesses, a .1249 -> .1258.
# * With clean on, the fill by two warps of its own, as fast as it can: c +.038. By the producer, line by line, paced by the key
#   tiles: +.012. By the copy engine from one tile in shared memory: c .4600 -> .4416, e-a .0835 -> .0699, d2 .8257 -> .8116.
# * d1 with clean on, 1.07 GB of fill: .353 without the arithmetic, .458 with it, at half the pace; at full pace .470, four
#   times that .520, hardly any before the end .452. Programs with equal shares end between 326 and 463 us there: memory serves
#   the SMs unequally, and classic (.436), whose many programs the hardware hands out, does not mind.
TUNINGS: dict[int, Tuning] = {
    # Of 208 registers Triton 3.9.0 would spill 6 with clean on.
    16: Tuning(stages=4, samples=128, group_cost=7, consumer_registers=224, producer_registers=56),
    32: Tuning(stages=4, samples=128, group_cost=7, consumer_registers=208, producer_registers=88),
    64: Tuning(stages=4, samples=128, group_cost=5, consumer_registers=208, producer_registers=88),
    128: Tuning(stages=4, samples=128, group_cost=5, consumer_registers=208, producer_registers=88),
}


def tuning(problem: Problem) -> Tuning:
    """The table's row for a problem's head count."""
    return TUNINGS[padded_heads(problem.heads)]


FEW_GROUPS = 32  # whose windows one load of a warp reads; what programs need first may then be guessed
BLOCK_KEYS = 128
COLUMNS = 128  # of a consumer's products: rows x padded heads
THREADS_REGISTERS = 168  # 384 threads share 65,536: what a thread has before the warps specialise


@aggregate
class Shared:
    """A program's shared memory, and its constants.

    query, weight : two slots, each with one group of 2 * ROWS rows
    bounds, plan : by slot: the rows' windows; first tile, count of tiles (0: no group follows) and first row
    key, scale : STAGES key tiles
    """

    query: gl.shared_memory_descriptor
    weight: gl.shared_memory_descriptor
    bounds: gl.shared_memory_descriptor
    plan: gl.shared_memory_descriptor
    key: gl.shared_memory_descriptor
    scale: gl.shared_memory_descriptor
    query_full: gl.shared_memory_descriptor
    key_full: gl.shared_memory_descriptor
    key_empty: gl.shared_memory_descriptor
    ROWS: gl.constexpr
    HEADS: gl.constexpr
    DIM: gl.constexpr
    KEYS: gl.constexpr
    STAGES: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self, query, weight, bounds, plan, key, scale, query_full, key_full, key_empty, ROWS, HEADS, DIM, KEYS, STAGES
    ):  # fmt: skip
        self.query = query
        self.weight = weight
        self.bounds = bounds
        self.plan = plan
        self.key = key
        self.scale = scale
        self.query_full = query_full
        self.key_full = key_full
        self.key_empty = key_empty
        self.ROWS = gl.constexpr(ROWS)
        self.HEADS = gl.constexpr(HEADS)
        self.DIM = gl.constexpr(DIM)
        self.KEYS = gl.constexpr(KEYS)
        self.STAGES = gl.constexpr(STAGES)


@aggregate
class Windows:
    """Which keys each query row sees."""

    starts: gl.tensor
    ends: gl.tensor
    stride_starts: gl.tensor
    stride_ends: gl.tensor
    num_queries: gl.tensor
    num_keys: gl.tensor
    width: gl.tensor
    COMPRESSED: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, starts, ends, stride_starts, stride_ends, num_queries, num_keys, width, COMPRESSED):
        self.starts = starts
        self.ends = ends
        self.stride_starts = stride_starts
        self.stride_ends = stride_ends
        self.num_queries = num_queries
        self.num_keys = num_keys
        self.width = width
        self.COMPRESSED = gl.constexpr(COMPRESSED)


@gluon.jit
def cover(begin, end, KEYS: gl.constexpr):
    """[first, last) tiles: what the windows touch together; the first is far behind the last where all are empty."""
    first = gl.min(gl.where(begin < end, begin, 2147483647), axis=0)
    last = gl.max(gl.where(begin < end, end, 0), axis=0)
    return first // KEYS, (last + (KEYS - 1)) // KEYS


@gluon.jit
def read(row, windows, LAYOUT: gl.constexpr):
    """[rows, 2] starts and ends, with one load."""
    which = gl.arange(0, 2, gl.SliceLayout(0, LAYOUT))[None, :]
    near = gl.minimum(row, windows.num_queries - 1)[:, None].to(gl.int64)
    starts = windows.starts + near * windows.stride_starts
    return gl.load(gl.where(which == 0, starts, windows.ends + near * windows.stride_ends))


@gluon.jit
def add(x, y):
    return x + y


@gluon.jit
def add_six(a, b, c, d, e, f, u, v, w, x, y, z):
    return a + u, b + v, c + w, d + x, e + y, f + z


@gluon.jit
def quota(total):
    """Where this program's part of ``total`` begins, and where it ends."""
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    each = total // programs
    rest = total % programs
    return each * program + rest * program // programs, each * (program + 1) + rest * (program + 1) // programs


@gluon.jit
def place(sample, spent, cost, step):
    """(group, part): a border after ``spent`` of what a sampled group costs, which stands for ``step`` groups."""
    part = spent * 1024 // gl.maximum(cost, 1) * step
    return sample * step + part // 1024, part % 1024


@gluon.jit
def guess(windows, ROWS: gl.constexpr, KEYS: gl.constexpr, SAMPLES: gl.constexpr, GROUP_COST: gl.constexpr):
    """(row, tile) at which this program's share begins if every row sees every key."""
    groups = gl.cdiv(windows.num_queries, ROWS)
    step = gl.cdiv(groups, SAMPLES)
    tiles = gl.cdiv(windows.num_keys, KEYS)
    cost = gl.minimum(tiles, 65535) * 8 + GROUP_COST
    here, _ = quota(gl.cdiv(groups, step) * cost)
    group, part = place(here // cost, here % cost, cost, step)
    return group * ROWS, tiles * part // 1024


@gluon.jit
def share(windows, ROWS: gl.constexpr, KEYS: gl.constexpr, SAMPLES: gl.constexpr, GROUP_COST: gl.constexpr):
    """(group, part, last group, last part, tiles inside windows): this program's share of the groups of ROWS query rows.

    It begins after part / 1024 of the group's tiles, and ends after last part / 1024 of the last group's. What groups cost is
    estimated from a sample, by two rows of every sampled group. A wrong estimate costs time only: neighbours compute the border
    between them alike.
    """
    # One sample a thread, or as many in each warp as it has lanes: more would queue up for the same lines of every SM.
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    groups = gl.cdiv(windows.num_queries, ROWS)
    step = gl.cdiv(groups, SAMPLES)
    sample = gl.arange(0, SAMPLES, LAYOUT)
    exists = sample * step < groups
    row = gl.minimum(sample * step + step // 2, groups - 1) * ROWS
    start = gl.load(windows.starts + row.to(gl.int64) * windows.stride_starts, mask=exists, other=0)
    row = gl.minimum(row + (ROWS - 1), windows.num_queries - 1)
    end = gl.load(windows.ends + row.to(gl.int64) * windows.stride_ends, mask=exists, other=0)
    begin, end = clip(start, end, windows.num_keys, windows.width, windows.COMPRESSED)
    tiles = gl.where(begin < end, (end + (KEYS - 1)) // KEYS - begin // KEYS, 0)
    cost = gl.where(exists, gl.minimum(tiles, 65535) * 8 + GROUP_COST, 0)
    sums = gl.associative_scan(cost, 0, add)
    total = gl.max(sums, axis=0)
    here, there = quota(total)
    before = sums - cost
    at_here = (before <= here) & (here < sums)
    at_there = (before <= there) & (there < sums)
    a, b, c, d, e, f = gl.reduce(
        (
            gl.where(at_here, sample, 0),
            gl.where(at_here, here - before, 0),
            gl.where(at_here, cost, 0),
            gl.where(at_there, sample, 0),
            gl.where(at_there, there - before, 0),
            gl.where(at_there, cost, 0),
        ),
        0,
        add_six,
    )
    group, part = place(a, b, c, step)
    last_group, last_part = place(d, e, f, step)
    last_group = gl.where(f == 0, groups, last_group)  # nothing of the last group is left
    inside = (total - gl.cdiv(groups, step) * GROUP_COST) // 8 * step
    return group, part, last_group, last_part, inside


@gluon.jit
def find_unfilled(unit, parts, windows, out, stride_os, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """(at, left, right, high): of a unit's tiles, those from at to left and from right to high lie outside its group's tiles.

    A unit is one of ``parts`` parts of a group's columns. The last up to 3 keys, which the copy engine cannot tell from the
    padding behind them, are filled here and now.
    """
    CELLS: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [1, 1], [1, 0])
    WINDOW: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [1, 1], [1, 0])
    group = unit // parts
    part = unit % parts
    row = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, WINDOW))
    start, end = gl.split(read(row, windows, WINDOW))
    begin, end = clip(start, end, windows.num_keys, windows.width, windows.COMPRESSED)
    first, last = cover(begin, gl.where(row < windows.num_queries, end, 0), KEYS)
    tiles = gl.cdiv(windows.num_keys, KEYS).to(gl.int64)
    low = (tiles * part // parts).to(gl.int32)
    high = (tiles * (part + 1) // parts).to(gl.int32)
    left = gl.minimum(gl.maximum(first, low), high)
    right = gl.minimum(gl.maximum(last, left), high)
    whole = windows.num_keys // KEYS
    if (windows.num_keys % 4 > 0) & (high > whole) & ((whole < left) | (whole >= right)):
        line = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, CELLS))
        column = windows.num_keys // 4 * 4 + gl.arange(0, 4, gl.SliceLayout(0, CELLS))
        cells = out + (line.to(gl.int64) * stride_os)[:, None] + column[None, :]
        value = gl.full([ROWS, 4], float("-inf"), gl.float32, CELLS)
        gl.store(cells, value, mask=(line < windows.num_queries)[:, None] & (column < windows.num_keys)[None, :])
    return gl.where(low < left, low, right), left, right, high


@gluon.jit
def fill(
    budget, unit, at, left, right, high, parts, windows, filled, blank, out, stride_os, ROWS: gl.constexpr, KEYS: gl.constexpr
):
    """-inf into the next ``budget`` tiles outside the windows; returns where it stopped: (unit, at, left, right, high).

    The copy engine stores a tile of every row of a group at once, and leaves out what lies past the last row or key.
    """
    units = gl.cdiv(windows.num_queries, ROWS) * parts
    while (budget > 0) & (unit < units):
        stop = gl.minimum(gl.where(at < left, left, high), at + budget)
        row = unit // parts * ROWS
        for tile in range(at, stop):
            tma_store(filled, [row, tile * KEYS], blank)
        budget -= gl.maximum(stop - at, 0) + 1
        at = gl.maximum(stop, at)
        at = gl.where((at >= left) & (at < right), right, at)
        if at >= high:
            unit += gl.num_programs(0)
            if unit < units:
                at, left, right, high = find_unfilled(unit, parts, windows, out, stride_os, ROWS, KEYS)
    return unit, at, left, right, high


@gluon.jit
def load_queries(queries, weights, row, full, shared, slot, there):
    """Start the copies of a group's queries and weights into a slot, or let the barrier pass where they are ``there``."""
    ROWS: gl.constexpr = shared.ROWS
    BOX: gl.constexpr = query_box(ROWS, shared.HEADS, shared.DIM)
    BOX_LAYOUT: gl.constexpr = bytes_layout(shared.DIM, len(BOX))
    wanted = there == 0
    mbarrier.arrive(full, count=1, pred=there)
    mbarrier.expect(full, 2 * ROWS * shared.HEADS * (shared.DIM + 4), pred=wanted)
    for consumer in gl.static_range(2):
        box = reinterpret(shared.query.index(slot * 2 + consumer), gl.float8e4nv, BOX, BOX_LAYOUT)
        load_query(queries, row + consumer * ROWS, full, box, ROWS, wanted)
    tma_load(weights, [row, 0], full, shared.weight.index(slot), pred=wanted)


@gluon.jit
def load_keys(keys, scales, tile, full, shared, stage, there):
    """Start the copies of a tile of keys and their scales, or let the barrier pass where they are ``there``."""
    KEYS: gl.constexpr = shared.KEYS
    wanted = there == 0
    mbarrier.arrive(full, count=1, pred=there)
    mbarrier.expect(full, KEYS * (shared.DIM + 4), pred=wanted)
    tma_load(keys, [tile * KEYS, 0], full, shared.key.index(stage), pred=wanted)
    tma_load(scales, [tile * KEYS], full, shared.scale.index(stage), pred=wanted)


@gluon.jit
def wait_for_slot(shared, ended, sent):
    """Until a query slot is free: with the key tile at which its query ended (0: it had none); of the last STAGES sent tiles
    the producer does not know yet that they are done with.
    """
    STAGES: gl.constexpr = shared.STAGES
    last = ended - 1
    busy = (ended > 0) & (ended + STAGES > sent)
    mbarrier.wait(shared.key_empty.index(last % STAGES), last // STAGES & 1, pred=busy)


@gluon.jit
def produce(
    shared, queries, keys, scales, weights, windows, group, part, last_group, last_part, inside,
    guessed, guessed_row, guessed_tile, filled, blank, out, stride_os, parts, CLEAN: gl.constexpr, GUESS: gl.constexpr,
):  # fmt: skip
    """The producer warp: keeps the consumers in keys, and fills what lies outside of their tiles."""
    ROWS: gl.constexpr = shared.ROWS
    GROUP: gl.constexpr = 2 * shared.ROWS
    KEYS: gl.constexpr = shared.KEYS
    PADDED: gl.constexpr = max(ROWS, 2)
    WINDOW: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [1, 1], [1, 0])
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    groups = gl.cdiv(windows.num_queries, GROUP)
    stop = gl.minimum(groups, last_group + (last_part > 0).to(gl.int32))
    # With every key tile so many tiles outside the windows, half of its share: all at once would stall everything else, and
    # the whole share more than what is left for the end.
    outside = gl.maximum(groups * gl.cdiv(windows.num_keys, KEYS) - inside, 0)
    budget = outside // gl.maximum(inside * 2, 1) + 2

    index = gl.arange(0, 2 * PADDED, gl.SliceLayout(1, WINDOW))
    offset = index // PADDED * ROWS + index % PADDED
    real = index % PADDED < ROWS
    window = read(group * GROUP + offset, windows, WINDOW)
    if GUESS:
        mbarrier.wait(guessed, 0)
        mbarrier.invalidate(guessed)
    stage = 0
    phase = 1
    slot = 0
    sent = 0  # key tiles
    ended = 0  # sent, when the query in this slot ended
    other_ended = 0
    unit = gl.program_id(0) - gl.num_programs(0)  # nothing is left of it: the first fill looks for the next one
    at = 0
    left = 0
    right = 0
    high = 0
    while group < stop:
        first_row = group * GROUP
        start, end = gl.split(window)
        begin, end = clip(start, end, windows.num_keys, windows.width, windows.COMPRESSED)
        end = gl.where(real & (first_row + offset < windows.num_queries), end, 0)
        window = read(first_row + GROUP + offset, windows, WINDOW)
        first, last = cover(begin, end, KEYS)
        count = gl.maximum(last - first, 0)
        last = gl.where(group == last_group, first + count * last_part // 1024, last)
        first += count * part // 1024
        part = 0
        if first < last:
            wait_for_slot(shared, ended, sent)
            shared.bounds.index(slot * 4).store(gl.convert_layout(begin, ONE))
            shared.bounds.index(slot * 4 + 1).store(gl.convert_layout(end, ONE))
            shared.bounds.index(slot * 4 + 2).store(gl.convert_layout(start, ONE))
            shared.plan.index(slot * 4).store(gl.full([1], first, gl.int32, ONE))
            shared.plan.index(slot * 4 + 1).store(gl.full([1], last - first, gl.int32, ONE))
            shared.plan.index(slot * 4 + 2).store(gl.full([1], first_row, gl.int32, ONE))
            barrier()
            full = shared.query_full.index(slot)
            there = False
            if GUESS:
                there = (sent == 0) & (first_row == guessed_row)
            load_queries(queries, weights, first_row, full, shared, slot, there)
            for tile in range(first, last):
                mbarrier.wait(shared.key_empty.index(stage), phase)
                full = shared.key_full.index(stage)
                if GUESS:
                    there = (sent == 0) & (first_row == guessed_row) & (tile == first) & (tile == guessed_tile)
                load_keys(keys, scales, tile, full, shared, stage, there)
                if CLEAN:
                    unit, at, left, right, high = fill(
                        budget, unit, at, left, right, high, parts, windows, filled, blank, out, stride_os, GROUP, KEYS
                    )
                stage += 1
                if stage == shared.STAGES:
                    stage = 0
                    phase ^= 1
            sent += last - first
            ended = other_ended
            other_ended = sent
            slot ^= 1
        group += 1
    wait_for_slot(shared, ended, sent)
    shared.plan.index(slot * 4 + 1).store(gl.full([1], 0, gl.int32, ONE))
    barrier()
    mbarrier.arrive(shared.query_full.index(slot), count=1)
    if CLEAN:
        fill(gl.to_tensor(1 << 30), unit, at, left, right, high, parts, windows, filled, blank, out, stride_os, GROUP, KEYS)
        tma_store_wait(0)


@gluon.jit
def put(logits, distance, length, room, cells, CLEAN: gl.constexpr):
    """Store the logits of cells inside their window; with CLEAN, -inf into the other cells of their row."""
    inside = distance.to(gl.uint32) < length.to(gl.uint32)[None, :]
    if CLEAN:
        gl.store(cells, gl.where(inside, logits, float("-inf")), mask=room > 0)
    else:
        gl.store(cells, logits, mask=inside)


@gluon.jit
def consume(consumer, shared, out, stride_os, stride_on, num_queries, num_keys, CLEAN: gl.constexpr, COMPRESSED: gl.constexpr):
    """A consumer warpgroup: the logits of its ROWS rows of every group, tile by tile."""
    ROWS: gl.constexpr = shared.ROWS
    HEADS: gl.constexpr = shared.HEADS
    HALF: gl.constexpr = shared.KEYS // 2
    PADDED: gl.constexpr = max(ROWS, 2)
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 32])
    COLUMN: gl.constexpr = gl.SliceLayout(0, MMA)
    LOGIT: gl.constexpr = logit_layout(ROWS)
    KEY: gl.constexpr = gl.SliceLayout(1, LOGIT)
    ROW: gl.constexpr = gl.SliceLayout(0, LOGIT)
    lane = gl.arange(0, HALF, KEY)
    each = gl.arange(0, PADDED, ROW)
    zeros = gl.full([HALF, 128], 0.0, gl.float32, MMA)
    weights = gl.full([128], 0.0, gl.float32, COLUMN)
    # Of a lane's cell: how far it is from the window's begin, the window's length, and how many cells its row has from it on.
    distance = gl.full([HALF, PADDED], 0, gl.int32, LOGIT)
    length = gl.full([PADDED], 0, gl.int32, ROW)
    room = distance
    cells = out + gl.full([HALF, PADDED], 0, gl.int64, LOGIT)
    stage = 0
    phase = 0
    slot = 0
    slot_phase = 0
    fresh = True
    mbarrier.wait(shared.query_full.index(0), 0)
    left = scalar(shared.plan.index(1))
    mbarrier.wait(shared.key_full.index(0), 0, pred=left > 0)
    barrier()
    while left > 0:
        columns = shared.query.index(slot * 2 + consumer).permute([1, 0])
        key = shared.key.index(stage)
        one = hopper.warpgroup_mma(key.slice(0, HALF), columns, zeros, use_acc=False, is_async=True)
        two = hopper.warpgroup_mma(key.slice(HALF, HALF), columns, zeros, use_acc=False, is_async=True)
        if fresh:
            first = scalar(shared.plan.index(slot * 4)) * shared.KEYS + lane
            row = scalar(shared.plan.index(slot * 4 + 2)) + consumer * ROWS + each
            weights = column_weights(shared.weight.index(slot).slice(consumer * ROWS, ROWS), ROWS, HEADS, COLUMN)
            begin = shared.bounds.index(slot * 4).slice(consumer * PADDED, PADDED).load(ROW)
            end = shared.bounds.index(slot * 4 + 1).slice(consumer * PADDED, PADDED).load(ROW)
            length = gl.where(begin < end, end - begin, 0)
            distance = first[:, None] - begin[None, :]
            room = gl.where((row < num_queries) & (each < ROWS), num_keys, 0)[None, :] - first[:, None]
            offset = row.to(gl.int64) * stride_os
            if COMPRESSED:
                start = shared.bounds.index(slot * 4 + 2).slice(consumer * PADDED, PADDED).load(ROW)
                offset -= start.to(gl.int64) * stride_on
            cells = out + (offset[None, :] + (first.to(gl.int64) * stride_on)[:, None])
        scales = shared.scale.index(stage)
        scale_one = scales.slice(0, HALF).load(KEY)[:, None]
        scale_two = scales.slice(HALF, HALF).load(KEY)[:, None]

        one = hopper.warpgroup_mma_wait(1, [one])
        put(head_sums(one, weights, ROWS) * scale_one, distance, length, room, cells, CLEAN)

        # A wait here, and not at the top, keeps ptxas from moving the next product's up before these sums: it does not move
        # one across a branch.
        done = stage
        stage += 1
        if stage == shared.STAGES:
            stage = 0
            phase ^= 1
        left -= 1
        fresh = left == 0
        if fresh:
            slot ^= 1
            slot_phase ^= (slot == 0).to(gl.int32)
            mbarrier.wait(shared.query_full.index(slot), slot_phase)
            left = scalar(shared.plan.index(slot * 4 + 1))
        mbarrier.wait(shared.key_full.index(stage), phase, pred=left > 0)

        two = hopper.warpgroup_mma_wait(0, [two])
        barrier()  # of the warpgroup: one thread arrives for all
        mbarrier.arrive(shared.key_empty.index(done), count=1)
        logits = head_sums(two, weights, ROWS) * scale_two
        put(logits, distance + HALF, length, room - HALF, cells + HALF * stride_on, CLEAN)
        distance += shared.KEYS
        room -= shared.KEYS
        cells += shared.KEYS * stride_on


@gluon.jit
def mqa_logits_kernel(
    queries,  # tensor map of q, [S, H, D] fp8, with the axes of query_box
    keys,  # tensor map of k, [N, D] fp8
    scales,  # tensor map of k_scale, [N] float32
    weights,  # tensor map of [S, H] float32
    starts,  # [S] int32
    ends,  # [S] int32
    filled,  # tensor map of out, if CLEAN
    out,  # [S, N] float32, or [S, width] if COMPRESSED
    num_queries,
    num_keys,
    width,
    stride_starts,
    stride_ends,
    stride_os,
    stride_on,
    parts,
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
    INTEGERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    BARRIERS: gl.constexpr = mbarrier.MBarrierLayout()
    shared = Shared(
        gl.allocate_shared_memory(gl.float8e4nv, [4, 128, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(gl.float32, [2, 2 * ROWS, HEADS], weights.layout),
        gl.allocate_shared_memory(gl.int32, [8, 2 * max(ROWS, 2)], INTEGERS),
        gl.allocate_shared_memory(gl.int32, [8, 1], INTEGERS),
        gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], keys.layout),
        gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], scales.layout),
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
    for stage in gl.static_range(STAGES):
        mbarrier.init(shared.key_full.index(stage), count=1)
        mbarrier.init(shared.key_empty.index(stage), count=2)
    guessed = shared.query_full.index(0)  # not used, as is blank
    blank = guessed
    # The barriers above live to the kernel's end, since specialised warps use them; this one ends before.
    if GUESS:
        guessed = gl.allocate_shared_memory(gl.int64, [1], BARRIERS)
        mbarrier.init(guessed, count=2)
    if CLEAN:
        LINES: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [4, 1], [1, 0])
        minus_infinity = gl.full([2 * ROWS, KEYS], float("-inf"), gl.float32, LINES)
        blank = gl.allocate_shared_memory(gl.float32, [2 * ROWS, KEYS], floats_layout(2), minus_infinity)
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
    GROUP: gl.constexpr = 2 * ROWS
    guessed_row = gl.to_tensor(0)
    guessed_tile = gl.to_tensor(0)
    if GUESS:  # while the windows come from memory, so does, with luck, what this program needs first
        guessed_row, guessed_tile = guess(windows, GROUP, KEYS, SAMPLES, GROUP_COST)
        load_queries(queries, weights, guessed_row, guessed, shared, 0, False)
        load_keys(keys, scales, guessed_tile, guessed, shared, 0, False)
    group, part, last_group, last_part, inside = share(windows, GROUP, KEYS, SAMPLES, GROUP_COST)
    gl.warp_specialize(
        [
            (consume, (0, shared, out, stride_os, stride_on, num_queries, num_keys, CLEAN, COMPRESSED)),
            (consume, (1, shared, out, stride_os, stride_on, num_queries, num_keys, CLEAN, COMPRESSED)),
            (
                produce,
                (
                    shared,
                    queries,
                    keys,
                    scales,
                    weights,
                    windows,
                    group,
                    part,
                    last_group,
                    last_part,
                    inside,
                    guessed,
                    guessed_row,
                    guessed_tile,
                    filled,
                    blank,
                    out,
                    stride_os,
                    parts,
                    CLEAN,
                    GUESS,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


def prepare(problem: Problem, inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool) -> compat.Launch:
    """The launch of one call, which writes the logits of every row's window, and with ``clean_logits`` -inf beside it."""
    q, k, k_scale, weights, starts, ends = inputs
    (num_queries, heads, dim), num_keys = q.shape, k.shape[0]
    tune, padded = tuning(problem), padded_heads(heads)
    rows = COLUMNS // padded
    groups, tiles = -(-num_queries // (2 * rows)), -(-num_keys // BLOCK_KEYS)
    programs = min(multiprocessors(out.device), groups * tiles)

    # A store of the copy engine ends with 16 bytes, not with 4: its map leaves out what else would write behind a row's end.
    stored = (num_queries, num_keys // 4 * 4)
    arguments = (
        query_map(q, rows, padded),
        tensor_map(k, k.shape, k.stride(), [BLOCK_KEYS, dim], bytes_layout(dim, 2)),
        tensor_map(k_scale, k_scale.shape, k_scale.stride(), [BLOCK_KEYS], floats_layout(1)),
        tensor_map(weights, weights.shape, weights.stride(), [2 * rows, padded], floats_layout(2)),
        starts,
        ends,
        tensor_map(out, stored, out.stride(), [2 * rows, BLOCK_KEYS], floats_layout(2)) if clean_logits else out,
        *(out, num_queries, num_keys, out.shape[1], starts.stride(0), ends.stride(0), *out.stride()),
        max(1, min(2 * programs // groups, num_keys // 1024)),
    )
    keywords = {
        "ROWS": rows,
        "HEADS": padded,
        "DIM": dim,
        "KEYS": BLOCK_KEYS,
        "STAGES": tune.stages,
        "SAMPLES": tune.samples if groups > FEW_GROUPS else FEW_GROUPS,
        "GROUP_COST": tune.group_cost,
        "GUESS": groups <= FEW_GROUPS and not clean_logits,
        "CLEAN": clean_logits,
        "COMPRESSED": compressed,
        "CONSUMER_REGISTERS": tune.consumer_registers,
        "PRODUCER_REGISTERS": tune.producer_registers,
        "num_warps": 4,
        "maxnreg": THREADS_REGISTERS,
        "enable_fp_fusion": True,  # as in the other branches; Triton 3.10 turns this off by default
    }
    return compat.Launch(mqa_logits_kernel, (programs,), arguments, keywords)


kernel = compat.Kernel(prepare, tuning=tuning)
