"""Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: tensor maps, mbarriers, fp8 wgmma, specialised warps.

    logits[i, j * C + o] = k_scale[n] * sum_h weights[i, h] * relu(q[i, h, :] . k[n, :])    of key n, the o-th of block j

C being the keys of a candidate block. For packed keys and rows that share lists. As in the dense kernel two warpgroups consume:
they take *groups* of rows that share a list, each warpgroup as many of a group as make 128 products with a key, and both share
tiles of 128 listed keys, which lie on the M side. Two warps produce, half of a tile each: the copy engine gathers it block by
block, wherever each begins, and to start a copy takes a warp some 20 instructions. What a key's scale is, and which of its
row's keys it is, the producers load a tile ahead and store beside the keys. Relu, weights and head sum happen in registers. No
logit needs two programs, so results repeat bit for bit.

A schedule shares the keys of all lists out among workers. Pairs of a group's number and a worker, in the order of groups, are
the programs' work: each has as many, one behind the other, and of one group they are one stretch of lists.
"""

import torch

from capgate import compat
from capgate.compat.gluon import aggregate, barrier, gl, gluon, hopper, mbarrier, reinterpret, tma_load

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
    Output,
    Plan,
    Ring,
    consumers_turn,
    field,
    new_ring,
    producers_turn,
    stride,
)
from ..common.device.windows import keys_of_share, load_share, row_keys
from ..common.rules import padded_heads
from ..common.schedule.classic import workers_that_fit
from ..common.schedule.operation import CHUNK_KEYS
from .operands import Dense
from .operation import Problem
from .plan import persistent_plan
from .tunings import gluon_hopper as tuning

CONSUMERS = gl.constexpr(2)  # warpgroups that multiply, each for half of a group's rows
PRODUCERS = gl.constexpr(2)  # warps that copy, each half of a tile's keys
COUNT, WRITTEN = gl.constexpr(0), gl.constexpr(1)  # of the record of a slot's rows
NOWHERE = gl.constexpr(2**31 - 1)  # behind any key that a row begins at


@aggregate
class Windows:
    """Which keys each row sees."""

    starts: gl.tensor
    ends: gl.tensor
    num_rows: gl.tensor
    num_keys: gl.tensor
    stride_starts: gl.tensor
    stride_ends: gl.tensor

    @gluon.constexpr_function
    def __init__(self, starts, ends, num_rows, num_keys, stride_starts, stride_ends):
        self.starts = starts
        self.ends = ends
        self.num_rows = num_rows
        self.num_keys = num_keys
        self.stride_starts = stride_starts
        self.stride_ends = stride_ends

    @gluon.jit
    def seen(self, row):
        """(first, how many) of the keys that rows see."""
        return row_keys(
            row, self.starts, self.ends, self.num_rows, self.num_keys, self.stride_starts, self.stride_ends, 0, 1, False, True
        )


@aggregate
class Lists:
    """The blocks that rows list.

    list_rows : that share a list
    listed : blocks of a list
    """

    pointer: gl.tensor
    stride_list: gl.base_value
    stride_block: gl.base_value
    num_lists: gl.tensor
    list_rows: gl.tensor
    listed: gl.tensor
    CANDIDATE: gl.constexpr
    RELATIVE: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, pointer, stride_list, stride_block, num_lists, list_rows, listed, CANDIDATE, RELATIVE):
        self.pointer = pointer
        self.stride_list = stride(stride_list)
        self.stride_block = stride(stride_block)
        self.num_lists = num_lists
        self.list_rows = list_rows
        self.listed = listed
        self.CANDIDATE = gl.constexpr(CANDIDATE)
        self.RELATIVE = gl.constexpr(RELATIVE)

    @gluon.jit
    def entries(self, count):
        """How many entries are looked at of rows that see so many keys."""
        return gl.minimum(gl.cdiv(count, self.CANDIDATE), self.listed)

    @gluon.jit
    def blocks(self, which, part, entries, KEYS: gl.constexpr):
        """[32]: for each lane the block of its keys, of the list's part of KEYS; past its ``entries`` the last one's."""
        LANE: gl.constexpr = gl.SliceLayout(1, key_layout(KEYS))
        entry = part * (KEYS // self.CANDIDATE) + gl.arange(0, 32, LANE) // (32 * self.CANDIDATE // KEYS)
        line = self.pointer + gl.to_tensor(which).to(gl.int64) * self.stride_list
        return gl.load(line + gl.minimum(entry, entries - 1).to(gl.int64) * self.stride_block)

    @gluon.jit
    def skipped(self, block, first, count):
        """How many keys of a row's window, from ``first`` on, lie in front of blocks; ``count`` or more: there is no key."""
        # Below the first block is a large number, and whatever lies past the last block stands for the one behind it.
        block = block.to(gl.uint32)
        if not self.RELATIVE:
            block -= (first // self.CANDIDATE).to(gl.uint32)
        return (gl.minimum(block, gl.cdiv(count, self.CANDIDATE).to(gl.uint32)) * self.CANDIDATE).to(gl.int32)


@aggregate
class Share:
    """A program's pairs of a group and a worker of the schedule: those from ``first`` up to, and without, ``past``."""

    schedule: gl.tensor
    workers: gl.tensor
    first: gl.tensor
    past: gl.tensor
    CHUNK: gl.constexpr
    EARLY: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, schedule, workers, first, past, CHUNK, EARLY):
        self.schedule = schedule
        self.workers = workers
        self.first = first
        self.past = past
        self.CHUNK = gl.constexpr(CHUNK)
        self.EARLY = gl.constexpr(EARLY)

    @gluon.jit
    def stretch(self, pair, num_lists):
        """(pairs of the same group from one on, and of them first list, chunk of it, last list, chunk of it)."""
        worker = pair % self.workers
        pairs = gl.minimum(self.past - pair, self.workers - worker)
        first_list, first_chunk, _, _ = load_share(self.schedule, worker, num_lists, True, self.EARLY)
        _, _, last_list, last_chunk = load_share(self.schedule, worker + pairs - 1, num_lists, True, self.EARLY)
        return pairs, first_list, first_chunk, last_list, last_chunk


@aggregate
class Maps:
    """The tensor maps of what a producer copies, and where it finds the keys' scales."""

    queries: hopper.tma.tensor_descriptor
    keys: hopper.tma.tensor_descriptor
    weights: hopper.tma.tensor_descriptor
    scales: gl.tensor
    stride_scale: gl.base_value

    @gluon.constexpr_function
    def __init__(self, queries, keys, weights, scales, stride_scale):
        self.queries = queries
        self.keys = keys
        self.weights = weights
        self.scales = scales
        self.stride_scale = stride(stride_scale)


@aggregate
class Queries:
    """By slot, the rows of one group, ROWS for each consumer, and what they are scored against.

    query, weight : [SLOTS * CONSUMERS, ROWS * HEADS, DIM] fp8, [SLOTS, CONSUMERS * ROWS, HEADS] float32 or bfloat16
    bounds : [SLOTS * FIELDS, CONSUMERS * max(ROWS, 2)] int32: keys that each row sees, and cells of it that are written
    """

    query: gl.shared_memory_descriptor
    weight: gl.shared_memory_descriptor
    bounds: gl.shared_memory_descriptor
    plan: Plan
    ring: Ring
    ROWS: gl.constexpr
    HEADS: gl.constexpr
    DIM: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, query, weight, bounds, plan, ring):
        self.query = query
        self.weight = weight
        self.bounds = bounds
        self.plan = plan
        self.ring = ring
        self.ROWS = gl.constexpr(weight.shape[1] // CONSUMERS.value)
        self.HEADS = gl.constexpr(weight.shape[2])
        self.DIM = gl.constexpr(query.shape[2])

    @gluon.jit
    def counts(self, slot):
        return field(self.bounds, slot, COUNT)

    @gluon.jit
    def written(self, slot):
        return field(self.bounds, slot, WRITTEN)


@aggregate
class Keys:
    """By stage, a tile of keys: [STAGES, KEYS, DIM] fp8.

    scale : [STAGES, KEYS] float32
    place : [STAGES, KEYS] int32, which of its row's keys a key is; of what is no key, one behind the last
    """

    key: gl.shared_memory_descriptor
    scale: gl.shared_memory_descriptor
    place: gl.shared_memory_descriptor
    ring: Ring
    KEYS: gl.constexpr
    DIM: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, key, scale, place, ring):
        self.key = key
        self.scale = scale
        self.place = place
        self.ring = ring
        self.KEYS = gl.constexpr(key.shape[1])
        self.DIM = gl.constexpr(key.shape[2])


@gluon.constexpr_function
def key_layout(keys):
    """[32, keys / 32]: a lane has adjacent keys of a tile."""
    return gl.BlockedLayout([1, keys // 32], [32, 1], [1, 1], [1, 0])


@gluon.jit
def lane(values, LANE: gl.constexpr):
    """The value of one of a warp's lanes, [32]."""
    return gl.max(gl.where(gl.arange(0, 32, values.type.layout) == LANE, values, -(2**31)), axis=0)


@gluon.jit
def load_queries(queries, maps, row, slot):
    """Start the copies of a group's queries and weights, from ``row`` on, into a slot."""
    ROWS: gl.constexpr = queries.ROWS
    BOX: gl.constexpr = query_box(ROWS, queries.HEADS, queries.DIM)
    BOX_LAYOUT: gl.constexpr = bytes_layout(queries.DIM, len(BOX))
    WEIGHT_BYTES: gl.constexpr = queries.weight.dtype.primitive_bitwidth // 8
    full = queries.ring.full.index(slot.index)
    mbarrier.expect(full, CONSUMERS * ROWS * queries.HEADS * (queries.DIM + WEIGHT_BYTES))
    for consumer in gl.static_range(CONSUMERS):
        box = reinterpret(queries.query.index(slot.index * CONSUMERS + consumer), gl.float8e4nv, BOX, BOX_LAYOUT)
        load_query(maps.queries, row + consumer * ROWS, full, box, ROWS)
    tma_load(maps.weights, [row, 0], full, queries.weight.index(slot.index))


@gluon.jit
def places_of(skipped, KEYS: gl.constexpr, CANDIDATE: gl.constexpr):
    """[32, KEYS / 32]: which of their row's keys a lane's are, whose blocks lie so far behind its first."""
    EACH: gl.constexpr = KEYS // 32
    LAYOUT: gl.constexpr = key_layout(KEYS)
    local = gl.arange(0, 32, gl.SliceLayout(1, LAYOUT))[:, None] * EACH + gl.arange(0, EACH, gl.SliceLayout(0, LAYOUT))[None, :]
    return skipped[:, None] + local % CANDIDATE


@gluon.jit
def load_scales(maps, place, first, count):
    """The scales of keys at these places of a row whose window begins at ``first``; of no key, of its last one."""
    key = first.to(gl.int64) + gl.minimum(place, count - 1).to(gl.int64)
    return gl.load(maps.scales + key * maps.stride_scale)


@gluon.jit
def load_keys(producer, keys, maps, skipped, first, place, scale, stage, CANDIDATE: gl.constexpr):
    """Start the copy of a producer's part of a tile of keys, block by block, and store their scales and places beside them.

    A block behind the last key lies outside the tensor map, which fills it with zeros and reads nothing.
    """
    PART: gl.constexpr = keys.KEYS // PRODUCERS
    BLOCKS: gl.constexpr = PART // CANDIDATE
    full = keys.ring.full.index(stage.index)
    tile = reinterpret(
        keys.key.index(stage.index), gl.float8e4nv, [PRODUCERS * BLOCKS, CANDIDATE, keys.DIM], bytes_layout(keys.DIM, 2)
    )  # fmt: skip
    rows = ()
    for block in gl.static_range(BLOCKS):
        rows += (first + lane(skipped, 32 // BLOCKS * block),)
    keys.ring.acquire(stage)
    keys.scale.index(stage.index).slice(producer * PART, PART).store(gl.reshape(scale, [PART]))
    keys.place.index(stage.index).slice(producer * PART, PART).store(gl.reshape(place, [PART]))
    barrier()
    mbarrier.expect(full, PART * keys.DIM)
    for block in gl.static_range(BLOCKS):
        tma_load(maps.keys, [rows[block], 0], full, tile.index(producer * BLOCKS + block))


@gluon.jit
def produce(producer, queries, keys, maps, windows, lists, share):
    """A producer warp: keeps the consumers in keys, the first one in queries, too.

    A tile's blocks come two tiles before they are needed, and its scales one. Rows of a group that begin at different keys have
    no key in common where blocks are counted from there: they take turns.
    """
    ROWS: gl.constexpr = queries.ROWS
    GROUP: gl.constexpr = CONSUMERS * queries.ROWS
    KEYS: gl.constexpr = keys.KEYS
    PART: gl.constexpr = keys.KEYS // PRODUCERS
    CANDIDATE: gl.constexpr = lists.CANDIDATE
    PADDED: gl.constexpr = max(ROWS, 2)
    each = gl.arange(0, CONSUMERS * PADDED, gl.BlockedLayout([1], [32], [1], [0]))
    stage = producers_turn(keys.ring.STAGES)
    slot = producers_turn(SLOTS)
    pair = share.first
    while pair < share.past:
        member = pair // share.workers * GROUP  # of the rows that share a list
        pairs, first_list, first_chunk, last_list, last_chunk = share.stretch(pair, lists.num_lists)
        past_list = gl.minimum(gl.where(last_chunk > 0, last_list + 1, last_list), lists.num_lists)
        which = first_list
        while which < past_list:
            first_row = which * lists.list_rows + member
            offset = each // PADDED * ROWS + each % PADDED
            real = (each % PADDED < ROWS) & (member + offset < lists.list_rows)
            begins, counts = windows.seen(first_row + offset)
            begins = gl.where(real & (counts > 0), begins, NOWHERE)
            first = gl.min(begins, axis=0)
            while first < NOWHERE:
                count = gl.where(begins == first, counts, 0)
                longest = gl.max(count, axis=0)
                entries = lists.entries(longest)
                begin, end = keys_of_share(
                    which, entries * CANDIDATE, first_list, first_chunk, last_list, last_chunk, share.CHUNK
                )  # fmt: skip
                tile = begin // KEYS
                past_tile = gl.cdiv(end, KEYS)
                if tile < past_tile:
                    if producer == 0:
                        queries.ring.acquire(slot)
                        queries.counts(slot).store(count)
                        queries.written(slot).store(lists.entries(count) * CANDIDATE)
                        store_scalar(queries.plan.first_tile(slot), tile)
                        store_scalar(queries.plan.tile_count(slot), past_tile - tile)
                        store_scalar(queries.plan.first_row(slot), first_row)
                        barrier()
                        load_queries(queries, maps, first_row, slot)
                        slot = slot.next()
                    part = PRODUCERS * tile + producer
                    skipped = lists.skipped(lists.blocks(which, part, entries, PART), first, longest)
                    place = places_of(skipped, PART, CANDIDATE)
                    scale = load_scales(maps, place, first, longest)
                    block = lists.blocks(which, part + PRODUCERS, entries, PART)
                    while tile < past_tile:
                        load_keys(producer, keys, maps, skipped, first, place, scale, stage, CANDIDATE)
                        stage = stage.next()
                        tile += 1
                        skipped = lists.skipped(block, first, longest)
                        place = places_of(skipped, PART, CANDIDATE)
                        scale = load_scales(maps, place, first, longest)
                        part += PRODUCERS
                        block = lists.blocks(which, part + PRODUCERS, entries, PART)
                begins = gl.where(begins == first, NOWHERE, begins)
                first = gl.min(begins, axis=0)
            which += 1
        pair += pairs
    if producer == 0:
        queries.ring.acquire(slot)
        store_scalar(queries.plan.tile_count(slot), 0)
        barrier()
        mbarrier.arrive(queries.ring.full.index(slot.index), count=1)


@aggregate
class Cells:
    """A lane's cells of the output, for keys of a half tile x rows.

    left : how many cells of the row are written from this one on; 0 or less: it is not
    counts : keys that each row sees
    pointers : where the logits are stored
    """

    left: gl.tensor
    counts: gl.tensor
    pointers: gl.tensor

    @gluon.constexpr_function
    def __init__(self, left, counts, pointers):
        self.left = left
        self.counts = counts
        self.pointers = pointers

    @gluon.jit
    def past(self, KEYS: gl.constexpr, stride_cell):
        """The cells so many keys further on."""
        left = self.left - KEYS
        return Cells(left, self.counts, self.pointers + KEYS * stride_cell)

    @gluon.jit
    def put(self, logits, place):
        """Store the logits of keys at these places of their row, rounded to what cells hold; -inf where it does not see one."""
        seen = place[:, None] < self.counts[None, :]
        gl.store(self.pointers, gl.where(seen, logits, float("-inf")), mask=self.left > 0)


@gluon.jit
def consume(consumer, queries, keys, out):
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
    counts = gl.full([PADDED], 0, gl.int32, ROW)
    cells = Cells(nowhere, counts, out.pointer + gl.full([HALF, PADDED], 0, gl.int64, LOGIT))
    stage = consumers_turn(keys.ring.STAGES)
    slot = consumers_turn(SLOTS)
    fresh = True
    queries.ring.wait(slot)
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
            counts = queries.counts(slot).slice(consumer * PADDED, PADDED).load(ROW)
            written = queries.written(slot).slice(consumer * PADDED, PADDED).load(ROW)
            offset = row.to(gl.int64) * out.stride_row
            pointers = out.pointer + (offset[None, :] + (first.to(gl.int64) * out.stride_cell)[:, None])
            cells = Cells(written[None, :] - first[:, None], counts, pointers)
        scales = keys.scale.index(stage.index)
        scale_one = scales.slice(0, HALF).load(KEY)[:, None]
        scale_two = scales.slice(HALF, HALF).load(KEY)[:, None]
        places = keys.place.index(stage.index)
        place_one = places.slice(0, HALF).load(KEY)
        place_two = places.slice(HALF, HALF).load(KEY)

        one = hopper.warpgroup_mma_wait(1, [one])
        cells.put(head_sums(one, weights, ROWS) * scale_one, place_one)

        # A wait here, and not at the top, keeps ptxas from moving the next product's up before these sums: it does not move
        # one across a branch.
        done = stage
        done_slot = slot
        stage = stage.next()
        left -= 1
        fresh = left == 0
        if fresh:
            slot = slot.next()
            queries.ring.wait(slot)
            left = scalar(queries.plan.tile_count(slot))
        keys.ring.wait(stage, left > 0)

        two = hopper.warpgroup_mma_wait(0, [two])
        barrier()  # of the warpgroup: one thread arrives for all
        keys.ring.release(done)
        queries.ring.release(done_slot, fresh)
        logits = head_sums(two, weights, ROWS) * scale_two
        cells.past(HALF, out.stride_cell).put(logits, place_two)
        cells = cells.past(KEYS, out.stride_cell)


@gluon.jit
def fill(windows, lists, out):
    """-inf into the cells of every row behind those of the entries that are looked at: this program's rows, in turn."""
    LINE: gl.constexpr = gl.BlockedLayout([4], [32], [gl.num_warps()], [0])
    STRIP: gl.constexpr = 512 * gl.num_warps()
    column = gl.arange(0, STRIP, LINE)
    value = gl.full([STRIP], float("-inf"), out.pointer.dtype.element_ty, LINE)
    width = lists.listed * lists.CANDIDATE
    for row in range(gl.program_id(0), windows.num_rows, gl.num_programs(0)):
        _, count = windows.seen(gl.to_tensor(row))
        written = lists.entries(count) * lists.CANDIDATE
        cells = out.pointer + gl.to_tensor(row).to(gl.int64) * out.stride_row
        for strip in range(written // STRIP * STRIP, width, STRIP):
            cell = strip + column
            gl.store(cells + cell.to(gl.int64) * out.stride_cell, value, mask=(cell >= written) & (cell < width))


@gluon.jit
def sparse_mqa_logits_kernel(
    queries,  # tensor map of q, [S, H, D] fp8, with the axes of query_box
    keys,  # tensor map of k, [N, D] fp8
    weights,  # tensor map of [S, H] float32 or bfloat16
    scales,  # [N] float32
    starts,  # [S] int32
    ends,  # [S] int32
    candidates,  # [num_lists, listed] int32
    schedule,  # [workers + 1, 2] int32
    out,  # [S, listed * CANDIDATE] float32 or bfloat16
    num_rows,
    num_keys,
    num_lists,
    list_rows,  # that share a list: as many for each
    listed,  # candidates of a row
    workers,  # of the schedule
    pairs,  # of a group of a list's rows and a worker
    stride_scale,
    stride_starts,
    stride_ends,
    stride_cs,
    stride_cc,
    stride_os,
    stride_on,
    ROWS: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    CANDIDATE: gl.constexpr,
    RELATIVE: gl.constexpr,
    CHUNK: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    CLEAN: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    EARLY: gl.constexpr = False,
):
    GROUP: gl.constexpr = CONSUMERS * ROWS
    INTEGERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    program = gl.program_id(0).to(gl.int64)
    first_pair = (program * pairs // gl.num_programs(0)).to(gl.int32)
    past_pair = ((program + 1) * pairs // gl.num_programs(0)).to(gl.int32)
    share = Share(schedule, gl.to_tensor(workers), first_pair, past_pair, CHUNK, EARLY)
    maps = Maps(queries, keys, weights, scales, stride_scale)
    queries = Queries(
        gl.allocate_shared_memory(gl.float8e4nv, [SLOTS * CONSUMERS, ROWS * HEADS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(maps.weights.dtype, [SLOTS, GROUP, HEADS], maps.weights.layout),
        gl.allocate_shared_memory(gl.int32, [SLOTS * FIELDS, CONSUMERS * max(ROWS, 2)], INTEGERS),
        Plan(gl.allocate_shared_memory(gl.int32, [SLOTS * FIELDS, 1], INTEGERS)),
        new_ring(SLOTS, CONSUMERS),
    )
    keys = Keys(
        gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], maps.keys.layout),
        gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], floats_layout(1)),
        gl.allocate_shared_memory(gl.int32, [STAGES, KEYS], floats_layout(1)),
        new_ring(STAGES, CONSUMERS, PRODUCERS),
    )
    hopper.fence_async_shared()
    windows = Windows(
        starts, ends, gl.to_tensor(num_rows), gl.to_tensor(num_keys), gl.to_tensor(stride_starts), gl.to_tensor(stride_ends)
    )
    lists = Lists(
        candidates, stride_cs, stride_cc, gl.to_tensor(num_lists), gl.to_tensor(list_rows), gl.to_tensor(listed), CANDIDATE,
        RELATIVE,
    )  # fmt: skip
    out = Output(out, stride_os, stride_on)
    if CLEAN:
        gl.warp_specialize(
            [
                (consume, (0, queries, keys, out)),
                (consume, (1, queries, keys, out)),
                (produce, (0, queries, keys, maps, windows, lists, share)),
                (produce, (1, queries, keys, maps, windows, lists, share)),
                (fill, (windows, lists, out)),
            ],
            [4, 1, 1, 2],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (0, queries, keys, out)),
                (consume, (1, queries, keys, out)),
                (produce, (0, queries, keys, maps, windows, lists, share)),
                (produce, (1, queries, keys, maps, windows, lists, share)),
            ],
            [4, 1, 1],  # Triton makes a multiple of four
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
        )


def prepare(
    problem: Problem,
    inputs: Dense,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    candidate_block: int,
    relative: bool = True,
    chunk_keys: int = CHUNK_KEYS,
) -> tuple[compat.Launch, ...]:
    """The launches of one call: what makes the schedule where none is given, and what writes the cells of listed blocks.

    With ``clean_logits`` every other cell becomes -inf.
    """
    q, k, k_scale, weights, starts, ends, candidates, _ = inputs
    (num_rows, heads, dim), num_keys = q.shape, k.shape[0]
    tune, padded = tuning(problem), padded_heads(heads)
    rows = tune.rows // 2  # of each consumer
    plan = persistent_plan(tune, problem, inputs, out, chunk_keys)
    arguments = (
        query_map(q, rows, padded),
        tensor_map(k, k.shape, k.stride(), [candidate_block, dim]),
        tensor_map(weights, weights.shape, weights.stride(), [tune.rows, padded]),
        *(k_scale, starts, ends, candidates, plan.planned.schedule, out),
        *(num_rows, num_keys, len(candidates), plan.list_rows, candidates.shape[1], plan.workers, plan.pairs),
        *(k_scale.stride(0), starts.stride(0), ends.stride(0), *candidates.stride(), *out.stride()),
    )
    keywords = {
        "ROWS": rows,
        "HEADS": padded,
        "DIM": dim,
        "CANDIDATE": candidate_block,
        "RELATIVE": relative,
        "CHUNK": chunk_keys,
        "KEYS": tune.block_keys,
        "STAGES": tune.num_stages,
        "CLEAN": clean_logits,
        "CONSUMER_REGISTERS": tune.registers_consumer,
        "PRODUCER_REGISTERS": tune.registers_producer,
        "num_warps": tune.num_warps // 2,
        "maxnreg": tune.registers_thread,
        "enable_fp_fusion": True,  # as in the other variants; Triton 3.10 turns this off by default
    }
    return plan.planned.launches(sparse_mqa_logits_kernel, (plan.programs,), arguments, keywords)


def workers(problem: Problem) -> int:
    """How many workers a schedule should have."""
    return workers_that_fit(problem.device, tuning(problem).resident, 1)


kernel = compat.Kernel(prepare, tuning=tuning, workers=workers)
