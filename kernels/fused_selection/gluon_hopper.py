"""fp8_select_keys in Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: scan, filter, refresh.

Scored as in fp8_mqa_logits: two warpgroups consume, each for two rows of a group of four. What is done with the logits is
:mod:`.classic`'s, in the lists of :mod:`.device.warpgroup_lists`: no prefix sum through shared memory, and no more barriers in
the loop of tiles. For that a program's keys of a group lie in four quarters, each of which a warp of its own copies, and a tile
has 32 keys of each, so that a warp's keys are ascending, and in front of the next warp's. A list is looked at when one of its
runs should be as long as registers hold, or might be full; then both rows of a warpgroup are selected from at once, in place
(:mod:`.device.held_lists`), while the other goes on with what is there.

As many programs as the GPU has SMs take groups in turn, and share the last ones, as in :mod:`.classic`, whose second launch
merges what they leave.
"""

import torch

from capgate import compat
from capgate.compat.gluon import aggregate, barrier, gl, gluon, hopper, mbarrier, reinterpret, tma_load

from ..common.device.hopper import (
    bytes_layout,
    floats_layout,
    head_sums,
    logit_layout,
    product_weights,
    query_map,
    tensor_map,
)
from ..common.device.hopper_pipeline import SLOTS, Maps, consumers_turn, new_ring, producers_turn
from ..common.device.windows import cover, my_tiles, window
from ..common.rules import padded_heads
from ..key_selection.operands import Dense
from ..mqa_logits.gluon_hopper import CONSUMERS, Keys, first_slot, load_queries
from .classic import UNSPECIALISED, merge_of
from .device.held_lists import floor_of, select
from .device.lists import COUNTS, REFRESHED
from .device.shares import kept_before
from .device.warpgroup_lists import SPARE, append, lanes_of, write_runs
from .device.warpgroup_threads import ROWS, RUNS, by_key, by_thread, lane_and_run, longest_of, tell, thread_layout
from .launches import plan_of, shape_of, strides_of
from .operation import Problem
from .tunings import gluon_hopper as tuning

PIECE = gl.constexpr(16)  # keys that a warp has of half a tile


@aggregate
class Queries:
    """By slot, the rows of one group, ROWS for each consumer, and what they are scored against.

    query, weight : [SLOTS * CONSUMERS, ROWS * HEADS, DIM] fp8, [SLOTS, CONSUMERS * ROWS, HEADS] float32 or bfloat16
    full : [SLOTS, 1] mbarriers; that a slot is empty follows from the key tiles
    """

    query: gl.shared_memory_descriptor
    weight: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    ROWS: gl.constexpr
    HEADS: gl.constexpr
    DIM: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, query, weight, full):
        self.query = query
        self.weight = weight
        self.full = full
        self.ROWS = gl.constexpr(weight.shape[1] // CONSUMERS.value)
        self.HEADS = gl.constexpr(weight.shape[2])
        self.DIM = gl.constexpr(query.shape[2])


@aggregate
class Windows:
    """Which keys each query row sees."""

    starts: gl.tensor
    ends: gl.tensor
    num_queries: gl.tensor
    num_keys: gl.tensor
    width: gl.tensor
    stride_starts: gl.tensor
    stride_ends: gl.tensor
    COMPRESSED: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED):
        self.starts = starts
        self.ends = ends
        self.num_queries = num_queries
        self.num_keys = num_keys
        self.width = width
        self.stride_starts = stride_starts
        self.stride_ends = stride_ends
        self.COMPRESSED = gl.constexpr(COMPRESSED)

    @gluon.jit
    def of(self, row):
        """(begin, end) of rows, cut to the keys; a row past the last has none."""
        _, begin, end = window(
            row, self.starts, self.ends, self.num_queries, self.num_keys, self.width, self.stride_starts, self.stride_ends,
            self.COMPRESSED,
        )  # fmt: skip
        return begin, end

    @gluon.jit
    def cover(self, first_row):
        """[first, last): what the rows of a group see together."""
        first, last, _, _ = cover(
            (self.num_keys, 0, 0, self.num_keys), first_row, self.starts, self.ends, self.num_queries, self.num_keys,
            self.width, self.stride_starts, self.stride_ends, CONSUMERS * ROWS, self.COMPRESSED,
        )  # fmt: skip
        return first, last


@aggregate
class Items:
    """What programs take in turn: groups of rows, and shares of groups; names as in :class:`.launches.Plan`."""

    groups: gl.tensor
    whole: gl.tensor
    shared: gl.tensor
    splits: gl.tensor

    @gluon.constexpr_function
    def __init__(self, groups, whole, shared, splits):
        self.groups = groups
        self.whole = whole
        self.shared = shared
        self.splits = splits

    @gluon.jit
    def number(self):
        return self.whole + self.shared * self.splits

    @gluon.jit
    def at(self, item):
        """(first row, split, parts): under a causal window the last rows see the most keys: longest work first."""
        sharing = item - self.whole
        split = gl.where(sharing < 0, 0, sharing % self.splits)
        parts = gl.where(sharing < 0, 1, self.splits)
        group = gl.where(sharing < 0, self.groups - 1 - item, self.shared - 1 - sharing // self.splits)
        return group * (CONSUMERS * ROWS), split, parts


@gluon.jit
def load_keys(run, keys, maps, place, stage):
    """Start the copies of a quarter's 32 keys of a tile and of their scales, from ``place`` on. A half of the tile has 16 of
    them; those past the last key are zeros."""
    KEYS: gl.constexpr = keys.KEYS
    full = keys.ring.full.index(stage.index)
    key = reinterpret(keys.key.index(stage.index), gl.float8e4nv, [KEYS // PIECE, PIECE, keys.DIM], bytes_layout(keys.DIM, 2))
    scale = reinterpret(keys.scale.index(stage.index), gl.float32, [RUNS, 2 * PIECE], floats_layout(1))
    mbarrier.expect(full, KEYS // RUNS * (keys.DIM + 4))
    for half in gl.static_range(2):
        tma_load(maps.keys, [place + half * PIECE, 0], full, key.index(half * RUNS + run))
    tma_load(maps.scales, [place], full, scale.index(run))


@gluon.jit
def load_scales(keys, stage, LAYOUT: gl.constexpr):
    """The scales of both halves' keys, [64] each."""
    SCALES: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1, 0]], [[0, 0, 0], [0, 0, 8], [0, 0, 1], [0, 0, 2], [0, 0, 4]], [[1, 0, 0], [2, 0, 0]], [], [4, 2, 16]
    )
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    scale = reinterpret(keys.scale.index(stage.index), gl.float32, [RUNS, 2, PIECE], PLAIN).load(SCALES)
    one, two = gl.split(scale.permute([0, 2, 1]))
    one = gl.convert_layout(one.reshape([64]), LAYOUT, assert_trivial=True)
    two = gl.convert_layout(two.reshape([64]), LAYOUT, assert_trivial=True)
    return one[:, None], two[:, None]


@gluon.jit
def produce(run, queries, keys, maps, windows, items):
    """The producer warp of a quarter: keeps the consumers in keys; the first one in queries, too."""
    KEYS: gl.constexpr = keys.KEYS
    EACH: gl.constexpr = KEYS // RUNS
    stage = producers_turn(keys.ring.STAGES)
    slot = first_slot()
    item = gl.program_id(0)
    while item < items.number():
        first_row, split, parts = items.at(item)
        first, last = windows.cover(first_row)
        _, _, my_first, my_last = my_tiles(first, last, split, parts, KEYS)
        tiles = my_last - my_first
        if tiles > 0:
            if run == 0:
                slot.acquire(keys.ring)
                load_queries(queries, maps, first_row, slot, queries.full.index(slot.index), False)
                slot = slot.next(tiles)
            place = my_first * KEYS + run * (tiles * EACH)
            number = tiles * 0
            while number < tiles:
                keys.ring.acquire(stage)
                load_keys(run, keys, maps, place, stage)
                stage = stage.next()
                place += EACH
                number += 1
        item += gl.num_programs(0)


@gluon.jit
def consume(
    consumer,
    queries,
    keys,
    windows,
    items,
    lists,
    shown,
    pages,
    slots,
    top_k,
    RELATIVE: gl.constexpr,
    ROOM: gl.constexpr,
    HELD: gl.constexpr,
    LEAST_TILES: gl.constexpr,
):
    """A consumer warpgroup: the results of its ROWS rows of every group, or what a share leaves of them.

    lists : (logits, indices, counters or None), of all lists, one behind the other; and [CONSUMERS, ROWS, RUNS] int32, shared,
        in which the warps of a consumer tell each other numbers
    shown : (results, scores or None, their row strides, offsets or None, their stride)
    pages : (page table or None, its rows, its columns, their strides, requests or None, their stride, positions of a page)
    slots : (logits or None, indices, entries from one row's to the next one's)
    """
    values = lists[0]
    indices = lists[1]
    counters = lists[2]
    memory = lists[3].index(consumer)
    HEADS: gl.constexpr = queries.HEADS
    KEYS: gl.constexpr = keys.KEYS
    HALF: gl.constexpr = KEYS // 2
    EACH: gl.constexpr = KEYS // RUNS  # keys of a tile that a warp has
    PRODUCTS: gl.constexpr = ROWS * HEADS
    # Entries of a run near which it is selected from: fewer for one of the consumers, so that they take turns.
    SOON: gl.constexpr = HELD - consumer * (HELD // 16)
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, PRODUCTS, 32])
    PRODUCT: gl.constexpr = gl.SliceLayout(0, MMA)
    LOGIT: gl.constexpr = logit_layout(2)
    KEY: gl.constexpr = gl.SliceLayout(1, LOGIT)
    ROW: gl.constexpr = gl.SliceLayout(0, LOGIT)
    LISTED: gl.constexpr = gl.SliceLayout(1, thread_layout())
    zeros = gl.full([HALF, PRODUCTS], 0.0, gl.float32, MMA)
    nothing = gl.full([HALF, ROWS], 0, gl.int32, LOGIT)
    local = gl.arange(0, HALF, KEY)[:, None] + nothing
    each = gl.arange(0, ROWS, ROW)
    warp = local // PIECE
    local = local % PIECE
    mine, earlier = lanes_of(local, each[None, :] + nothing)
    first_list = (gl.program_id(0) * CONSUMERS + consumer) * ROWS
    run = (values + ((first_list + each)[None, :] * RUNS + warp) * (2 * ROOM)).to(gl.int64)
    listed = gl.arange(0, ROWS, LISTED)
    _lane, thread_run = lane_and_run()
    place = ((first_list + listed)[:, None] * RUNS + thread_run) * (2 * ROOM)

    stage = consumers_turn(keys.ring.STAGES)
    slot = consumers_turn(SLOTS)
    item = gl.program_id(0)
    while item < items.number():
        first_row, split, parts = items.at(item)
        first, last = windows.cover(first_row)
        _, _, my_first, my_last = my_tiles(first, last, split, parts, KEYS)
        tiles = my_last - my_first
        row = first_row + consumer * ROWS + each
        begin, end = windows.of(row)
        added = -begin if RELATIVE else begin * 0
        if shown[4] is not None:
            near_row = gl.minimum(row, windows.num_queries - 1).to(gl.int64)
            added += gl.load(shown[4] + near_row * shown[5])
        key = my_first * KEYS + local + warp * (tiles * EACH)
        distance = key - begin[None, :]
        length = gl.where(begin < end, end - begin, 0)[None, :] + nothing
        index = key + added[None, :]
        past = nothing
        threshold = gl.full([HALF, ROWS], float("nan"), gl.float32, LOGIT)  # nothing compares with it: everything passes

        mbarrier.wait(queries.full.index(slot.index), slot.phase, pred=tiles > 0)
        keys.ring.wait(stage, tiles > 0)
        weights = product_weights(queries.weight.index(slot.index).slice(consumer * ROWS, ROWS), 2, HEADS, PRODUCT)
        number = tiles * 0
        fresh = tiles * 0 + 1
        limit = tiles * 0 + SOON
        room = limit // EACH
        while number < tiles:
            stop = gl.minimum(tiles, number + room)
            barrier()  # once here: otherwise Triton places two inside the loop
            while number < stop:
                query = queries.query.index(slot.index * CONSUMERS + consumer).permute([1, 0])
                tile = keys.key.index(stage.index)
                one = hopper.warpgroup_mma(tile.slice(0, HALF), query, zeros, use_acc=False, is_async=True)
                two = hopper.warpgroup_mma(tile.slice(HALF, HALF), query, zeros, use_acc=False, is_async=True)
                scale_one, scale_two = load_scales(keys, stage, KEY)

                one = hopper.warpgroup_mma_wait(1, [one])
                logits = head_sums(one, weights, 2) * scale_one
                past = append(logits, threshold, distance, length, mine, earlier, past, run, index, ROOM)

                # Between the sums, as in fp8_mqa_logits.
                done = stage
                stage = stage.next()
                number += 1
                keys.ring.wait(stage, number < tiles)

                two = hopper.warpgroup_mma_wait(0, [two])
                barrier()  # of the warpgroup: one thread arrives for all
                keys.ring.release(done)
                logits = head_sums(two, weights, 2) * scale_two
                past = append(logits, threshold, distance + PIECE, length, mine, earlier, past, run, index + PIECE, ROOM)
                distance += EACH
                index += EACH
            size = by_thread(past)
            runs = tell(size, memory)
            longest = longest_of(runs)
            full = longest > gl.minimum(limit - limit // 8, ROOM - SPARE - LEAST_TILES * EACH)
            total = runs[0] + runs[1] + (runs[2] + runs[3])
            if (full | (number == tiles)) & (gl.max(total, 0) > top_k):
                if counters is not None:
                    gl.atomic_add(counters + REFRESHED, gl.where(full, gl.sum((total > top_k).to(gl.int32), 0), 0))
                most = gl.where(number < tiles, top_k + top_k // 8, top_k)  # one of many pivots is found with fewer counts
                floor = floor_of(threshold, memory)
                size, bar, long, over = select(
                    values, indices, place, size, total, floor, fresh, top_k, most, longest, memory, counters, HELD, ROOM
                )
                past = by_key(size)
                threshold = gl.where(by_key(long.to(gl.int32)) != 0, by_key(bar), threshold)
                length = gl.where(by_key(over.to(gl.int32)) != 0, 0, length)
                # They are read again, so that a selection may have their registers.
                weights = product_weights(queries.weight.index(slot.index).slice(consumer * ROWS, ROWS), 2, HEADS, PRODUCT)
                longest = longest_of(tell(size, memory))
                fresh = longest * 0
            if full:
                limit = gl.where(longest > HELD - HELD // 4, gl.minimum(longest + HELD, ROOM - SPARE), SOON)
            room = (limit - longest) // EACH
            if fresh == 0:
                # A run has all keys so far that pass now: so many more tiles bring it near its limit, if they are like those.
                left = (limit - limit // 16 - longest).to(gl.float32) / gl.maximum(longest, 1)
                room = (gl.minimum(number.to(gl.float32) * left, 1e9)).to(gl.int32)
            room = gl.maximum(gl.minimum(room, (ROOM - SPARE - longest) // EACH), 1)

        if tiles > 0:
            slot = slot.next()
        barrier()
        size = by_thread(past)
        runs = tell(size, memory)
        row = first_row + consumer * ROWS + listed
        wanted = (row < windows.num_queries)[:, None]
        row64 = row.to(gl.int64)[:, None]
        if parts == 1:
            looked_up = (None, None, None, pages[7])
            if pages[0] is not None:
                request = row64
                if pages[5] is not None:
                    near_result = gl.minimum(row64, windows.num_queries - 1)
                    request = gl.load(pages[5] + near_result * pages[6]).to(gl.int64)
                known = (request >= 0) & (request < pages[1])
                table = pages[0] + gl.where(known, request, 0) * pages[3]
                looked_up = (table, gl.where(known, pages[2], 0), pages[4], pages[7])
            offset = (row64 * shown[2], None if shown[1] is None else row64 * shown[3])
            write_runs(values, indices, place, size, runs, top_k, wanted, shown[0], shown[1], offset, looked_up)
        elif slots[0] is not None:
            first_seen, past_seen = windows.of(row)
            before = kept_before(first_seen, past_seen, first, last, split, parts, top_k, KEYS)
            kept = row64 * slots[2] + before[:, None]
            write_runs(values, indices, place, size, runs, 0, wanted, slots[1], slots[0], (kept, kept), (None, None, None, 1))
        barrier()  # before other keys are appended
        item += gl.num_programs(0)


@gluon.jit(do_not_specialize=UNSPECIALISED)
def select_scored_kernel(
    queries,  # tensor map of q, [S, H, D] fp8, with the axes of query_box
    keys,  # tensor map of k, [N, D] fp8
    scales,  # tensor map of k_scale, [N] float32
    weights,  # tensor map of [S, H] float32 or bfloat16
    starts,  # [S] int32
    ends,  # [S] int32
    offsets,  # [S] int32, or None: 0
    page_table,  # [num_requests, num_pages] int32, or None
    requests,  # [S] int32, or None: the row
    results,  # [S, top_k] int32
    scores,  # as results, float32, or None
    list_values,  # [programs, CONSUMERS, ROWS, RUNS, 2, ROOM] float32
    list_indices,  # the same memory, int32
    slot_values,  # [shared groups * rows, splits * top_k, padded] float32, or None where no group is shared
    slot_indices,  # as slot_values, int32
    counters,  # [programs, COUNTS] int32, or None
    num_queries,
    num_keys,
    width,
    top_k,
    groups,  # of rows
    whole,  # groups, the last ones, that a program takes alone: as many for each
    shared,  # groups, the first ones, that are left
    splits,  # programs that share each of them
    num_requests,
    num_pages,
    stride_starts,
    stride_ends,
    stride_offsets,
    stride_table,
    stride_pages,
    stride_requests,
    stride_results,
    stride_scores,
    stride_slots,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    ROOM: gl.constexpr,  # places of a run
    HELD: gl.constexpr,  # entries of a run that registers hold
    LEAST_TILES: gl.constexpr,  # for which lists and runs must have room
    COMPRESSED: gl.constexpr,
    RELATIVE: gl.constexpr,
    PAGE: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    BARRIERS: gl.constexpr = mbarrier.MBarrierLayout()
    maps = Maps(queries, keys, scales, weights)
    queries = Queries(
        gl.allocate_shared_memory(gl.float8e4nv, [SLOTS * CONSUMERS, ROWS * HEADS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(maps.weights.dtype, [SLOTS, CONSUMERS * ROWS, HEADS], maps.weights.layout),
        gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIERS),
    )
    for slot in gl.static_range(SLOTS):
        mbarrier.init(queries.full.index(slot), count=1)
    keys = Keys(
        gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], maps.keys.layout),
        gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], maps.scales.layout),
        new_ring(STAGES, CONSUMERS, RUNS),
    )
    TOLD: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    memory = gl.allocate_shared_memory(gl.int32, [CONSUMERS, ROWS, RUNS], TOLD)
    hopper.fence_async_shared()
    windows = Windows(
        starts, ends, gl.to_tensor(num_queries), gl.to_tensor(num_keys), gl.to_tensor(width), gl.to_tensor(stride_starts),
        gl.to_tensor(stride_ends), COMPRESSED,
    )  # fmt: skip
    items = Items(gl.to_tensor(groups), gl.to_tensor(whole), gl.to_tensor(shared), gl.to_tensor(splits))
    if counters is not None:
        counters += gl.program_id(0) * COUNTS
    shown = (results, scores, stride_results, stride_scores, offsets, stride_offsets)
    pages = (page_table, num_requests, num_pages, stride_table, stride_pages, requests, stride_requests, PAGE)
    slots = (slot_values, slot_indices, stride_slots)
    lists = (list_values, list_indices + ROOM, counters, memory)
    gl.warp_specialize(
        [
            (consume, (0, queries, keys, windows, items, lists, shown, pages, slots, top_k, RELATIVE, ROOM, HELD, LEAST_TILES)),
            (consume, (1, queries, keys, windows, items, lists, shown, pages, slots, top_k, RELATIVE, ROOM, HELD, LEAST_TILES)),
            (produce, (0, queries, keys, maps, windows, items)),
            (produce, (1, queries, keys, maps, windows, items)),
            (produce, (2, queries, keys, maps, windows, items)),
            (produce, (3, queries, keys, maps, windows, items)),
        ],
        [4, 1, 1, 1, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )


def prepare(
    problem: Problem,
    inputs: Dense,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    max_window: int | None,
    relative: bool,
    page_size: int = 1,
    memory: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> tuple[compat.Launch, ...]:
    """As :func:`.classic.prepare`."""
    q, k, k_scale, weights, starts, ends, offsets, page_table, requests = inputs
    (num_queries, heads, dim), num_keys, top_k = q.shape, k.shape[0], indices.shape[1]
    tune, compressed, padded = tuning(problem), max_window is not None, padded_heads(heads)
    plan = plan_of(problem, inputs, top_k, max_window, tune, memory)
    values, _, *slots = plan.held
    scan = compat.Launch(
        select_scored_kernel,
        (plan.running,),
        (
            query_map(q, tune.rows // 2, padded),
            tensor_map(k, k.shape, k.stride(), [PIECE.value, dim]),
            tensor_map(k_scale, k_scale.shape, k_scale.stride(), [2 * PIECE.value]),
            tensor_map(weights, weights.shape, weights.stride(), [tune.rows, padded]),
            *(starts, ends, offsets, page_table, requests, indices, scores, values, values.view(torch.int32), *slots, counters),
            *(num_queries, num_keys, plan.columns, top_k, plan.groups, plan.whole, plan.shared, plan.splits),
            *(*shape_of(page_table), *strides_of(starts, ends, offsets)),
            *(*strides_of(page_table, axes=2), *strides_of(requests)),
            *(indices.stride(0), None if scores is None else scores.stride(0), plan.slot_row),
        ),
        {
            "HEADS": padded,
            "DIM": dim,
            "KEYS": tune.block_keys,
            "STAGES": tune.num_stages,
            "ROOM": tune.block_entries // RUNS.value,
            "HELD": tune.held_entries,
            "LEAST_TILES": tune.segment_tiles,
            "COMPRESSED": compressed,
            "RELATIVE": relative,
            "PAGE": page_size,
            "CONSUMER_REGISTERS": tune.registers_consumer,
            "PRODUCER_REGISTERS": tune.registers_producer,
            "num_warps": tune.num_warps // 2,
            "maxnreg": tune.registers_thread,
            "enable_fp_fusion": True,  # as in the other variants; Triton 3.10 turns this off by default
        },
    )
    if plan.splits == 1:
        return (scan,)
    return scan, merge_of(inputs, indices, scores, plan, tune, compressed, page_size, counters)


kernel = compat.Kernel(prepare, tuning=tuning)
