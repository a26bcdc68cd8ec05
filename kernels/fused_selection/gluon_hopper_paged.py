"""fp8_select_paged_keys in Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: scan, filter, refresh.

The keys of all requests are shared out among workers by a schedule, and scored, as in fp8_paged_mqa_logits: one warp produces,
one warpgroup consumes, and two programs are on an SM. What is done with the logits is :mod:`.gluon_hopper`'s, in the lists of
:mod:`.device.warpgroup_lists`. For that a worker's keys of a request lie in four quarters, and a tile of 64 keys has a piece of
16 from each, so that a warp's keys are ascending, and in front of the next warp's: four copies, and four of scales, where the
logits' kernel has one for each block.

A request that lies in one worker's share becomes its results there; what the shares have of others :mod:`.classic_paged`'s
second launch merges.
"""

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
from ..common.device.hopper_pipeline import SLOTS, Maps, Ring, consumers_turn, new_ring, producers_turn
from ..common.device.windows import load_share
from ..common.rules import padded_heads
from ..common.schedule.operation import CHUNK_KEYS
from ..key_selection.operands import Paged
from ..paged_mqa_logits.gluon_hopper import Keys, Lengths, Share, Table, nth, spread
from .classic_paged import UNSPECIALISED, merge_of
from .device.held_lists import floor_of, select
from .device.lists import COUNTS, REFRESHED
from .device.shares import first_worker, kept_between
from .device.warpgroup_lists import SPARE, append, lanes_of, write_runs
from .device.warpgroup_threads import RUNS, by_key, by_thread, lane_and_run, longest_of, tell, thread_layout
from .launches import shape_of, strides_of
from .operation import Problem
from .paged_launches import plan_of
from .tunings import gluon_hopper_paged as tuning

PIECE = gl.constexpr(16)  # keys that a warp has of a tile
MERGE_WARPS = 16  # of a program that merges: the entries of as long a list are 32 of each thread


@aggregate
class Queries:
    """By slot, the rows of one request that a program scores, and what they are scored against.

    query : [SLOTS, ROWS * HEADS, DIM] fp8
    weight : [SLOTS * SPREAD, ROWS, HEADS] float32 or bfloat16; the copy engine writes to multiples of 128 bytes
    """

    query: gl.shared_memory_descriptor
    weight: gl.shared_memory_descriptor
    ring: Ring
    ROWS: gl.constexpr
    HEADS: gl.constexpr
    DIM: gl.constexpr
    SPREAD: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, query, weight, ring):
        self.query = query
        self.weight = weight
        self.ring = ring
        self.ROWS = gl.constexpr(weight.shape[1])
        self.HEADS = gl.constexpr(weight.shape[2])
        self.DIM = gl.constexpr(query.shape[2])
        self.SPREAD = gl.constexpr(weight.shape[0] // query.shape[0])

    @gluon.jit
    def weights(self, slot):
        """The place of a slot's weights, [ROWS, HEADS]."""
        return self.weight.index(slot.index * self.SPREAD)


@gluon.jit
def blocks_of(table, request, first, tiles, number, end):
    """[32]: the blocks of the next pieces of a program's ``tiles``, whose first key is ``first``; in front those of tile
    ``number``, and -1 from the key ``end`` on."""
    each = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
    position = first + (each % RUNS * tiles + number + each // RUNS) * PIECE
    entry = table.pointer + request.to(gl.int64) * table.stride_request
    return gl.load(entry + (position // table.BLOCK).to(gl.int64) * table.stride_block, mask=position < end, other=-1)


@gluon.jit
def load_queries(queries, maps, row, slot):
    """Start the copies of a request's queries and weights, from ``row`` on, into a slot."""
    ROWS: gl.constexpr = queries.ROWS
    BOX: gl.constexpr = query_box(ROWS, queries.HEADS, queries.DIM)
    full = queries.ring.full.index(slot.index)
    mbarrier.expect(full, ROWS * queries.HEADS * (queries.DIM + queries.weight.dtype.primitive_bitwidth // 8))
    box = reinterpret(queries.query.index(slot.index), gl.float8e4nv, BOX, bytes_layout(queries.DIM, len(BOX)))
    load_query(maps.queries, row, full, box, ROWS)
    tma_load(maps.weights, [row, 0], full, queries.weights(slot))


@gluon.jit
def load_keys(keys, maps, blocks, index, num_blocks, position, quarter, stage, BLOCK: gl.constexpr):
    """Start the copy of a tile: of four quarters, ``quarter`` keys apart, a piece each, the first one from ``position`` on.

    Blocks, and those outside the cache, as in fp8_paged_mqa_logits. A piece's scales are half of 128 bytes, to whose multiples
    the copy engine writes.
    """
    KEYS: gl.constexpr = keys.KEYS
    full = keys.ring.full.index(stage.index)
    key = reinterpret(keys.key.index(stage.index), gl.float8e4nv, [RUNS, PIECE, keys.DIM], bytes_layout(keys.DIM, 3))
    scale = reinterpret(keys.scale.index(stage.index), gl.float32, [2 * RUNS, 1, PIECE], floats_layout(2))
    piece_blocks = ()
    missing = 0
    for run in gl.static_range(RUNS):
        block = nth(blocks, index + run)
        missing |= (block.to(gl.uint32) >= num_blocks.to(gl.uint32)).to(gl.int32) << run
        piece_blocks += (block,)
    keys.ring.acquire(stage)
    store_scalar(keys.missing.index(stage.index), missing)
    barrier()
    mbarrier.expect(full, KEYS * (keys.DIM + 4))
    for run in gl.static_range(RUNS):
        inside = (position + run * quarter) % BLOCK
        tma_load(maps.keys, [piece_blocks[run], inside, 0], full, key.slice(run, 1))
        tma_load(maps.scales, [piece_blocks[run], inside], full, scale.index(2 * run))


@gluon.constexpr_function
def scale_layout(rows):
    """[RUNS, 2, PIECE]: a lane has the scale of its key, as :func:`...common.device.hopper.logit_layout` has keys, and in its
    second register what lies behind the piece's scales."""
    lanes = [[0, 0, 8], [0, 0, 0]] if rows == 1 else [[0, 0, 0], [0, 0, 8]]
    lanes += [[0, 0, 1], [0, 0, 2], [0, 0, 4]]
    return gl.DistributedLinearLayout([[0, 1, 0]], lanes, [[1, 0, 0], [2, 0, 0]], [], [4, 2, 16])


@gluon.jit
def load_scales(keys, stage, ROWS: gl.constexpr):
    """The scales of a tile's keys, [64, 1]."""
    KEY: gl.constexpr = gl.SliceLayout(1, logit_layout(ROWS))
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    scale = reinterpret(keys.scale.index(stage.index), gl.float32, [RUNS, 2, PIECE], PLAIN).load(scale_layout(ROWS))
    scale, _unused = gl.split(scale.permute([0, 2, 1]))
    return gl.convert_layout(scale.reshape([64]), KEY, assert_trivial=True)[:, None]


@gluon.jit
def produce(queries, keys, maps, lengths, share, table, first_row):
    """The producer warp: keeps the consumer in keys. Entries of the table come 32 at a time, and before they are needed."""
    ROWS: gl.constexpr = queries.ROWS
    KEYS: gl.constexpr = keys.KEYS
    NEXT_N: gl.constexpr = lengths.NEXT_N
    AHEAD: gl.constexpr = 32 // RUNS  # tiles whose blocks come at a time
    each = gl.arange(0, 2, gl.BlockedLayout([1], [32], [1], [0]))
    row = gl.where(each < ROWS, first_row + each, NEXT_N)
    stage = producers_turn(keys.ring.STAGES)
    slot = producers_turn(SLOTS)
    stop = share.stop()
    if share.first_request < stop:
        ahead = lengths.load(share.first_request, row)
        for request in range(share.first_request, stop):
            longest = gl.max(lengths.seen(ahead, row), axis=0)
            first, last = share.cut(request, gl.cdiv(longest, KEYS), KEYS)
            tiles = last - first
            position = first * KEYS
            blocks = blocks_of(table, request, position, tiles, 0, longest)
            further = blocks_of(table, request, position, tiles, AHEAD, longest)
            ahead = lengths.load(gl.minimum(request + 1, share.num_requests - 1), row)
            if tiles > 0:
                queries.ring.acquire(slot)
                load_queries(queries, maps, request * NEXT_N + first_row, slot)
                slot = slot.next()
            number = tiles * 0
            index = 0
            while number < tiles:
                load_keys(
                    keys, maps, blocks, index, table.num_blocks, position + number * PIECE, tiles * PIECE, stage, table.BLOCK
                )
                stage = stage.next()
                number += 1
                index += RUNS
                if index == 32:
                    index = 0
                    blocks = further
                    further = blocks_of(table, request, position, tiles, number + AHEAD, longest)


@gluon.jit
def consume(
    queries,
    keys,
    memory,
    lengths,
    share,
    first_row,
    schedule,
    lists,
    shown,
    pages,
    slots,
    top_k,
    ROOM: gl.constexpr,
    HELD: gl.constexpr,
):
    """The consumer warpgroup: the results of its rows of every request of the share, or what the share leaves of them.

    memory : [ROWS, RUNS] int32, shared, in which the warps tell each other numbers
    lists : (logits, indices, counters or None), of all lists, one behind the other
    shown : (results, scores or None, their row strides, offsets or None, their stride)
    pages : (page table or None, its rows, its columns, their strides, requests or None, their stride, positions of a page)
    slots : (logits, indices, entries from one slot to the next)
    """
    values = lists[0]
    indices = lists[1]
    counters = lists[2]
    ROWS: gl.constexpr = queries.ROWS
    HEADS: gl.constexpr = queries.HEADS
    KEYS: gl.constexpr = keys.KEYS
    NEXT_N: gl.constexpr = lengths.NEXT_N
    PRODUCTS: gl.constexpr = ROWS * HEADS
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, PRODUCTS, 32])
    PRODUCT: gl.constexpr = gl.SliceLayout(0, MMA)
    LOGIT: gl.constexpr = logit_layout(ROWS)
    ROW: gl.constexpr = gl.SliceLayout(0, LOGIT)
    LISTED: gl.constexpr = gl.SliceLayout(1, thread_layout(ROWS))
    zeros = gl.full([KEYS, PRODUCTS], 0.0, gl.float32, MMA)
    nothing = gl.full([KEYS, 2], 0, gl.int32, LOGIT)
    local = gl.arange(0, KEYS, gl.SliceLayout(1, LOGIT))[:, None] + nothing
    each = gl.arange(0, 2, ROW)
    warp = local // PIECE
    local = local % PIECE
    mine, earlier = lanes_of(local, each[None, :] + nothing, ROWS)
    worker = gl.program_id(0)
    first_list = (gl.program_id(1) * gl.num_programs(0) + worker) * ROWS
    run = (values + ((first_list + gl.where(each < ROWS, each, 0))[None, :] * RUNS + warp) * (2 * ROOM)).to(gl.int64)
    listed = gl.arange(0, ROWS, LISTED)
    _lane, thread_run = lane_and_run(ROWS)
    place = ((first_list + listed)[:, None] * RUNS + thread_run) * (2 * ROOM)

    stage = consumers_turn(keys.ring.STAGES)
    slot = consumers_turn(SLOTS)
    request = share.first_request
    stop = share.stop()
    while request < stop:
        row = gl.where(each < ROWS, first_row + each, NEXT_N)  # of a single row, the lanes of a second one see no key
        length = lengths.seen(lengths.load(request, row), row)
        longest = gl.max(length, axis=0)
        first, last = share.cut(request, gl.cdiv(longest, KEYS), KEYS)
        tiles = last - first
        added = each * 0
        if shown[4] is not None:
            near_row = request.to(gl.int64) * NEXT_N + gl.minimum(row, NEXT_N - 1)
            added += gl.load(shown[4] + near_row * shown[5])
        key = first * KEYS + local + warp * (tiles * PIECE)
        length = length[None, :] + nothing
        past = nothing
        threshold = gl.full([KEYS, 2], float("nan"), gl.float32, LOGIT)  # nothing compares with it: everything passes

        queries.ring.wait(slot, tiles > 0)
        weights = product_weights(queries.weights(slot), ROWS, HEADS, PRODUCT)
        number = tiles * 0
        fresh = tiles * 0 + 1
        limit = tiles * 0 + HELD
        room = limit // PIECE
        while number < tiles:
            until = gl.minimum(tiles, number + room)
            barrier()  # once here: otherwise Triton places two inside the loop
            while number < until:
                query = queries.query.index(slot.index).permute([1, 0])
                keys.ring.wait(stage)
                products = hopper.warpgroup_mma(keys.key.index(stage.index), query, zeros, use_acc=False, is_async=True)
                scale = load_scales(keys, stage, ROWS)
                missing = scalar(keys.missing.index(stage.index)) >> warp & 1
                products = hopper.warpgroup_mma_wait(0, [products])
                hopper.fence_async_shared()  # as in fp8_paged_mqa_logits
                barrier()  # of the warpgroup: one thread arrives for all
                keys.ring.release(stage)
                stage = stage.next()
                number += 1
                logits = gl.where(missing == 0, head_sums(products, weights, ROWS) * scale, float("-inf"))
                past = append(logits, threshold, key, length, mine, earlier, past, run, key + added[None, :], ROOM)
                key += PIECE
            size = by_thread(past, ROWS)
            runs = tell(size, memory)
            longest = longest_of(runs)
            full = longest > gl.minimum(limit - limit // 8, ROOM - SPARE - PIECE)
            total = runs[0] + runs[1] + (runs[2] + runs[3])
            if (full | (number == tiles)) & (gl.max(total, 0) > top_k):
                if counters is not None:
                    gl.atomic_add(counters + REFRESHED, gl.where(full, gl.sum((total > top_k).to(gl.int32), 0), 0))
                most = gl.where(number < tiles, top_k + top_k // 8, top_k)  # one of many pivots is found with fewer counts
                floor = floor_of(threshold, memory, ROWS)
                size, bar, long, over = select(
                    values, indices, place, size, total, floor, fresh, top_k, most, longest, memory, counters, HELD, ROOM
                )
                past = by_key(size)
                threshold = gl.where(by_key(long.to(gl.int32)) != 0, by_key(bar), threshold)
                length = gl.where(by_key(over.to(gl.int32)) != 0, 0, length)
                # They are read again, so that a selection may have their registers.
                weights = product_weights(queries.weights(slot), ROWS, HEADS, PRODUCT)
                longest = longest_of(tell(size, memory))
                fresh = longest * 0
            if full:
                limit = gl.where(longest > HELD - HELD // 4, gl.minimum(longest + HELD, ROOM - SPARE), HELD)
            room = (limit - longest) // PIECE
            if fresh == 0:
                # A run has all keys so far that pass now: so many more tiles bring it near its limit, if they are like those.
                left = (limit - limit // 16 - longest).to(gl.float32) / gl.maximum(longest, 1)
                room = (gl.minimum(number.to(gl.float32) * left, 1e9)).to(gl.int32)
            room = gl.maximum(gl.minimum(room, (ROOM - SPARE - longest) // PIECE), 1)

        barrier()
        queries.ring.release(slot, tiles > 0)
        if tiles > 0:
            slot = slot.next()
        size = by_thread(past, ROWS)
        runs = tell(size, memory)
        wanted = (first_row + listed < NEXT_N)[:, None]
        row64 = (request.to(gl.int64) * NEXT_N + first_row + listed)[:, None]
        begun = (request == share.first_request) & (share.first_chunk > 0)  # by the workers before
        if begun | ((request == share.last_request) & (share.last_chunk > 0)):
            owner = first_worker(schedule, worker, request)
            seen = lengths.seen(lengths.load(request, first_row + listed), first_row + listed)
            before = kept_between(schedule, owner, worker, request, seen, top_k, share.CHUNK)
            number_of_slot = (first_row + listed).to(gl.int64) * (2 * gl.num_programs(0)) + 2 * owner + 1
            kept = (number_of_slot * slots[2] + before)[:, None]
            write_runs(values, indices, place, size, runs, 0, wanted, slots[1], slots[0], (kept, kept), (None, None, None, 1))
        else:
            looked_up = (None, None, None, pages[7])
            if pages[0] is not None:
                paged = row64 * 0 + request
                if pages[5] is not None:
                    paged = gl.load(pages[5] + row64 * pages[6], mask=wanted, other=0).to(gl.int64)
                known = (paged >= 0) & (paged < pages[1])
                entries = pages[0] + gl.where(known, paged, 0) * pages[3]
                looked_up = (entries, gl.where(known, pages[2], 0), pages[4], pages[7])
            offset = (row64 * shown[2], None if shown[1] is None else row64 * shown[3])
            write_runs(values, indices, place, size, runs, top_k, wanted, shown[0], shown[1], offset, looked_up)
        barrier()  # before other keys are appended
        request += 1


@gluon.jit(do_not_specialize=UNSPECIALISED)
def select_cached_kernel(
    queries,  # tensor map of q, [B * NEXT_N, H, D] fp8, with the axes of query_box
    keys,  # tensor map of the cache's keys, [num_blocks, BLOCK, D] fp8
    scales,  # tensor map of its scales, [num_blocks, BLOCK] float32
    weights,  # tensor map of [B * NEXT_N, H] float32 or bfloat16
    lens,  # [B] int32, or [B, NEXT_N] if ROW_LENS
    table,  # [B, max_blocks] int32
    schedule,  # [num_workers + 1, 2] int32
    offsets,  # [B * NEXT_N] int32, or None: 0
    page_table,  # [num_rows, num_pages] int32, or None
    requests,  # [B * NEXT_N] int32, or None: the request
    results,  # [B * NEXT_N, top_k] int32
    scores,  # as results, float32, or None
    list_values,  # [groups, workers, ROWS, RUNS, 2, ROOM] float32
    list_indices,  # the same memory, int32
    slot_values,  # [groups * ROWS, 2 * workers * stride_slots] float32
    slot_indices,  # as slot_values, int32
    counters,  # [groups * workers, COUNTS] int32, or None
    num_requests,
    num_blocks,  # of the cache; keys of others score as -inf
    limit,  # keys that a row can see
    top_k,
    num_rows,  # of the page table
    num_pages,
    stride_lb,
    stride_ln,
    stride_tb,
    stride_tk,
    stride_offsets,
    stride_table,
    stride_pages,
    stride_requests,
    stride_results,
    stride_scores,
    stride_slots,
    NEXT_N: gl.constexpr,
    ROWS: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    BLOCK: gl.constexpr,
    CHUNK: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    ROOM: gl.constexpr,  # places of a run
    HELD: gl.constexpr,  # entries of a run that registers hold
    ROW_LENS: gl.constexpr,
    PAGE: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    first_row = gl.program_id(1) * ROWS  # of each request, where a program does not score all of its rows
    num_requests = gl.to_tensor(num_requests)
    # The first worker begins at the first request, keys or no keys: every row has a result.
    first_request, first_chunk, last_request, last_chunk = load_share(schedule, gl.program_id(0), num_requests, True)
    share = Share(first_request, first_chunk, last_request, last_chunk, num_requests, 1, CHUNK)
    maps = Maps(queries, keys, scales, weights)
    table = Table(table, stride_tb, stride_tk, gl.to_tensor(num_blocks), BLOCK)
    queries = Queries(
        gl.allocate_shared_memory(gl.float8e4nv, [SLOTS, ROWS * HEADS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(
            maps.weights.dtype,
            [SLOTS * spread(ROWS, HEADS, maps.weights.dtype.primitive_bitwidth), ROWS, HEADS],
            maps.weights.layout,
        ),
        new_ring(SLOTS, 1),
    )
    keys = Keys(
        gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], bytes_layout(DIM, 2)),
        gl.allocate_shared_memory(gl.float32, [STAGES, 2 * KEYS], floats_layout(1)),
        gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0])),
        new_ring(STAGES, 1),
    )
    memory = gl.allocate_shared_memory(gl.int32, [ROWS, RUNS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    hopper.fence_async_shared()
    lengths = Lengths(lens, gl.to_tensor(limit), gl.to_tensor(stride_lb), gl.to_tensor(stride_ln), NEXT_N, ROW_LENS)
    if counters is not None:
        counters += (gl.program_id(1) * gl.num_programs(0) + gl.program_id(0)) * COUNTS
    shown = (results, scores, stride_results, stride_scores, offsets, stride_offsets)
    pages = (page_table, num_rows, num_pages, stride_table, stride_pages, requests, stride_requests, PAGE)
    slots = (slot_values, slot_indices, stride_slots)
    lists = (list_values, list_indices + ROOM, counters)
    gl.warp_specialize(
        [
            (
                consume,
                (queries, keys, memory, lengths, share, first_row, schedule, lists, shown, pages, slots, top_k, ROOM, HELD),
            ),
            (produce, (queries, keys, maps, lengths, share, table, first_row)),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip


def prepare(
    problem: Problem,
    inputs: Paged,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    max_context_len: int,
    page_size: int = 1,
    layout: str = "flat",
    memory: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> tuple[compat.Launch, ...]:
    """As :func:`.classic_paged.prepare`. The layout is "flat": the rule accepts no other."""
    q, kv_cache, weights, context_lens, block_table, offsets, page_table, requests = inputs
    (batch, next_n, heads, dim), top_k = q.shape, indices.shape[1]
    tune, padded = tuning(problem), padded_heads(heads)
    plan = plan_of(problem, inputs, top_k, max_context_len, tune, memory)
    keys, scales = keys_of(kv_cache).view(q.dtype), scales_of(kv_cache)
    blocks, block = keys.shape[:2]
    values, _, *slots = plan.held
    scan = compat.Launch(
        select_cached_kernel,
        (plan.workers, plan.groups),
        (
            query_map(q.flatten(0, 1), tune.rows, padded),
            tensor_map(keys, keys.shape, keys.stride(), [1, PIECE.value, dim]),
            tensor_map(scales, scales.shape, scales.stride(), [1, PIECE.value]),
            tensor_map(weights, weights.shape, weights.stride(), [tune.rows, padded]),
            *(context_lens, block_table, plan.schedule, offsets, page_table, requests, indices, scores),
            *(values, values.view(torch.int32), *slots, counters),
            *(batch, blocks, plan.limit, top_k, *shape_of(page_table)),
            *(*plan.lens_strides, *block_table.stride(), *strides_of(offsets), *strides_of(page_table, axes=2)),
            *(*strides_of(requests), indices.stride(0), None if scores is None else scores.stride(0), plan.room),
        ),
        {
            "NEXT_N": next_n,
            "ROWS": tune.rows,
            "HEADS": padded,
            "DIM": dim,
            "BLOCK": block,
            "CHUNK": CHUNK_KEYS,
            "KEYS": tune.block_keys,
            "STAGES": tune.num_stages,
            "ROOM": tune.block_entries // RUNS.value,
            "HELD": tune.held_entries,
            "ROW_LENS": plan.row_lens,
            "PAGE": page_size,
            "PRODUCER_REGISTERS": tune.registers_producer,
            "num_warps": tune.num_warps,
            "maxnreg": tune.registers_thread,
            "enable_fp_fusion": True,  # as in the other variants; Triton 3.10 turns this off by default
        },
    )
    merge = merge_of(inputs, indices, scores, plan, tune._replace(num_warps=MERGE_WARPS), page_size, counters)
    return (*plan.before, scan, merge)


kernel = compat.Kernel(prepare, tuning=tuning)
