"""Classic Triton, one source for 3.5.1 to 3.9.0 on CUDA and HIP, and for keys in fp8 and in MX formats.

    logits[i, j * C + o] = scale * sum_h weights[i, h] * relu(q[i, h, :] . key)    of key o in the block candidates[i, j]

C being the keys of a candidate block. The keys of all lists, cut into chunks, are shared out evenly among a fixed number of
programs by a schedule, and each walks its chunks from one list to the next, as in the paged kernel. A tile gathers its keys
block by block: only the listed ones are read, once for the rows of a program that share a list and begin at the same key.
Packed keys are a cache whose blocks hold one key and whose table need not be read. In MX formats there is no ``scale``: q and
keys are values times their scales, and products are made as in mx_mqa_logits.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.classic import fill, fn_to_fnuz, head_sums, load_keys, operands, rounded, score
from ..common.device.mx import mx_products, mx_query, scale_octets
from ..common.device.windows import keys_of_share, load_share, next_turn, row_keys
from ..common.key_formats import LAYOUTS
from ..common.rules import mx_product_options, padded_heads, product_options
from ..common.schedule.classic import workers_that_fit
from ..common.schedule.operation import CHUNK_KEYS
from .device import load_candidates, load_entries, load_scales, locate_keys, longest_from, places_of
from .launches import SCALES_OF_ONE, cached_keys, queries_of
from .operands import Cached, Inputs, MxDense, Packed
from .operation import Problem
from .plan import MAX_KEYS, plan_of
from .tunings import classic as tuning


@triton.jit
def sparse_mqa_logits_kernel(
    q,  # [num_rows / NEXT_N, NEXT_N, H, Q_BYTES] fp8, or uint8 of an MX format
    q_scale,  # [num_rows / NEXT_N, NEXT_N, H] int32, of an MX format
    keys,  # [num_keys, KEY_BYTES] as q, or a cache's as the paged kernels take them
    scales,  # [num_keys] float32, or [num_blocks, BLOCK]; of an MX format [num_keys] int32, or [num_blocks, BLOCK * 4] uint8
    weights,  # [num_rows, H] float32 or bfloat16
    starts,  # [num_rows] int32, of packed keys
    ends,  # [num_rows] int32, or a cache's lengths as windows.seen takes them
    table,  # [num_rows / NEXT_N, max_blocks] int32, of a cache
    candidates,  # [num_lists, listed] int32
    schedule,  # [num_workers + 1, 2] int32
    out,  # [num_rows, width] float32 or bfloat16
    num_rows,
    list_rows,  # that share a list: as many for each
    num_blocks,  # of the cache; keys of others score as -inf
    most,  # keys that there are, or that the table has room for
    listed,  # candidates of a row
    strips,  # to fill: those of a row times the rows
    splits,  # programs that share a worker's tiles, taking turns
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_sb,
    stride_sn,
    stride_sh,
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
    Q_BYTES: tl.constexpr,
    KEY_BYTES: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    CANDIDATE: tl.constexpr,
    RELATIVE: tl.constexpr,
    SHARED: tl.constexpr,  # whether rows share lists, which the schedule counts by the last of them
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,  # 0 for packed keys
    TILE: tl.constexpr,
    SCALE_TILE: tl.constexpr,
    SCALE_LANES: tl.constexpr,
    BY_SIXTEENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    STRIP: tl.constexpr,
    CLEAN: tl.constexpr,
    ROW_LENS: tl.constexpr,
    MX: tl.constexpr,
    SCALED: tl.constexpr,
    TO_FNUZ: tl.constexpr,
    WORD: tl.constexpr,
    MAXIMUM: tl.constexpr,
    CUTS: tl.constexpr,
    INDEX: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    words = keys.to(tl.pointer_type(tl.uint32)) if WORD == 4 else keys

    worker = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    first_in_list = tl.program_id(1) * ROWS  # of the rows that share a list
    num_lists = num_rows // list_rows
    first_list, first_chunk, last_list, last_chunk = load_share(schedule, worker, num_lists, SHARED, EARLY)

    if CLEAN:  # first, so that the stores drain behind the arithmetic
        near_strip = tl.arange(0, 1)
        width = listed * CANDIDATE
        row_strips = tl.cdiv(width, STRIP)
        step = tl.num_programs(0) * tl.num_programs(1)
        for strip in range(tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), strips, step):
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
    column = tl.arange(0, ROWS * PADDED_HEADS)
    head = column % PADDED_HEADS
    near_head = tl.minimum(head, HEADS - 1).to(INDEX)
    query_byte = tl.arange(0, Q_BYTES)
    near_cell = tl.arange(0, BLOCK_KEYS)
    num_blocks = tl.full((), num_blocks, tl.uint32)
    rows_left = list_rows - first_in_list
    row_of_column = tl.minimum(column // PADDED_HEADS, rows_left - 1).to(tl.int64)
    member = tl.arange(0, ROWS)

    turn = split  # of this program, counted from a list's first tile
    past_list = tl.minimum(tl.where(last_chunk > 0, last_list + 1, last_list), num_lists)
    # Rows that begin at different keys have no key in common where blocks are counted from there: they take turns.
    passes = ROWS if BLOCK == 0 else 1
    for number in range((past_list - first_list) * passes):
        which = first_list + number // passes
        leader = number % passes
        base_row = which * list_rows + first_in_list
        first, _ = row_keys(
            base_row + tl.minimum(leader, rows_left - 1), starts, ends, num_rows, most, stride_starts, stride_ends, stride_next,
            NEXT_N, ROW_LENS, BLOCK == 0,
        )  # fmt: skip
        count = longest_from(
            first, base_row, rows_left, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, NEXT_N, ROW_LENS,
            BLOCK == 0, ROWS,
        )  # fmt: skip
        if ROWS > 1 and BLOCK == 0:  # those that begin where an earlier one did have been scored with it
            for r in tl.static_range(ROWS):
                earlier, _ = row_keys(
                    base_row + tl.minimum(r, rows_left - 1), starts, ends, num_rows, most, stride_starts, stride_ends,
                    stride_next, NEXT_N, ROW_LENS, True,
                )  # fmt: skip
                count = tl.where((r < leader) & (earlier == first), 0, count)
        entries = tl.minimum(tl.cdiv(count, CANDIDATE), listed)
        begin, end = keys_of_share(which, entries * CANDIDATE, first_list, first_chunk, last_list, last_chunk, CHUNK)
        my_first, past_tile = begin // BLOCK_KEYS + turn, tl.cdiv(end, BLOCK_KEYS)
        if my_first < past_tile:
            # What one list reads in shared memory the next one overwrites: see the paged kernel.
            tl.debug_barrier()
            row64 = base_row.to(tl.int64) + row_of_column
            query_rows = q + row64 // NEXT_N * stride_qb + row64 % NEXT_N * stride_qn + near_head * stride_qh
            if MX:
                octet = tl.load(query_rows[:, None] + (query_byte.to(INDEX) * stride_qd)[None, :])
                scale_rows = q_scale + row64 // NEXT_N * stride_sb + row64 % NEXT_N * stride_sn + near_head * stride_sh
                query, more = mx_query(octet, scale_octets(tl.load(scale_rows), DIM), DIM, KEY_BYTES < DIM, SCALED, CUTS)
            else:
                query = tl.load(query_rows[None, :] + (query_byte.to(INDEX) * stride_qd)[:, None])  # [DIM, ROWS * PADDED_HEADS]
            weight = tl.load(weights + row64 * stride_ws + near_head * stride_wh, mask=head < HEADS, other=0.0).to(tl.float32)
            query, weight = operands(query, weight, TO_FNUZ, MAXIMUM)

            near_member = base_row + tl.minimum(member, rows_left - 1)
            begins, counts = row_keys(
                near_member, starts, ends, num_rows, most, stride_starts, stride_ends, stride_next, NEXT_N, ROW_LENS, BLOCK == 0
            )
            counts = tl.where((member < rows_left) & (begins == first), counts, 0)
            written = tl.minimum(tl.cdiv(counts, CANDIDATE), listed) * CANDIDATE
            counts = counts.to(tl.uint32)
            row_offset = (base_row.to(tl.int64) + member) * stride_os

            lines, pages = candidates + which.to(tl.int64) * stride_cs, table + base_row.to(tl.int64) // NEXT_N * stride_tb
            first_block = tl.full((), 0, tl.int32) if RELATIVE else first // CANDIDATE
            # Of the next tiles what scales wait for is loaded ahead, so that no load waits for another: candidates three tiles
            # before their logits, the table's entries two, scales one. Of the keys it is left to the compiler's stages.
            block = load_candidates(lines, my_first, entries, stride_cc, CANDIDATE, BLOCK_KEYS, INDEX)
            place = places_of(block, first_block, count, CANDIDATE)
            entry = load_entries(pages, place, count, stride_tk, BLOCK)
            page, inside, seen = locate_keys(place, entry, first, count, num_blocks, BLOCK)
            scale = load_scales(
                scales, page, inside, stride_scales, DIM, MX, BLOCK, SCALE_TILE, SCALE_LANES, BY_SIXTEENS
            )  # fmt: skip
            block = load_candidates(lines, my_first + splits, entries, stride_cc, CANDIDATE, BLOCK_KEYS, INDEX)
            place = places_of(block, first_block, count, CANDIDATE)
            entry = load_entries(pages, place, count, stride_tk, BLOCK)
            block = load_candidates(lines, my_first + 2 * splits, entries, stride_cc, CANDIDATE, BLOCK_KEYS, INDEX)
            for tile in range(my_first, past_tile, splits):
                key_block = load_candidates(lines, tile, entries, stride_cc, CANDIDATE, BLOCK_KEYS, INDEX)
                key_place = places_of(key_block, first_block, count, CANDIDATE)
                key_entry = load_entries(pages, key_place, count, stride_tk, BLOCK)
                key_page, key_inside, key_place = locate_keys(key_place, key_entry, first, count, num_blocks, BLOCK)
                key = load_keys(words, key_page, key_inside, stride_keys, stride_kd, KEY_BYTES, TILE, WORD, INDEX)
                if MX:
                    products = mx_products(key, scale, query, more, DIM, SCALED, CUTS)
                    logit = head_sums(products, weight, ROWS, PADDED_HEADS, MAXIMUM)
                else:
                    if TO_FNUZ:
                        key = fn_to_fnuz(key)
                        scale *= 4.0  # both operands were halved
                    logit = score(query, weight, key, ROWS, PADDED_HEADS, MAXIMUM) * scale[:, None]
                base = tile * BLOCK_KEYS
                cell = out + base.to(tl.int64) * stride_on + row_offset[None, :] + (near_cell.to(INDEX) * stride_on)[:, None]
                mine = (base + near_cell)[:, None] < written[None, :]
                held = seen[:, None] < counts[None, :]
                tl.store(cell, rounded(logit, out, CUTS), mask=mine & held)
                # Apart, and hardly ever: chosen by what is loaded ahead, logits would change their layout once more.
                tl.store(cell, tl.full((BLOCK_KEYS, ROWS), float("-inf"), tl.float32), mask=mine & ~held)

                page, inside, seen = locate_keys(place, entry, first, count, num_blocks, BLOCK)
                scale = load_scales(
                    scales, page, inside, stride_scales, DIM, MX, BLOCK, SCALE_TILE, SCALE_LANES, BY_SIXTEENS
                )  # fmt: skip
                place = places_of(block, first_block, count, CANDIDATE)
                entry = load_entries(pages, place, count, stride_tk, BLOCK)
                block = load_candidates(lines, tile + 3 * splits, entries, stride_cc, CANDIDATE, BLOCK_KEYS, INDEX)
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
    weights, candidates, products = inputs.weights, inputs.candidates, _products(problem)
    q, q_scale, q_strides = queries_of(inputs)
    if products["MX"]:
        q = q.view(torch.uint8)
    heads, q_bytes = q.shape[-2:]
    tune, caps = tuning(problem), compat.capabilities(problem.device)
    lanes = max(32, caps.target.warp_size)  # the interpreter has one lane, and no use for short strips
    strip = 16 * lanes * tune.num_warps  # four 16-byte stores a lane, or two of bfloat16

    sources, sizes, where = _cached(inputs, layout) if isinstance(inputs, Cached) else _packed(inputs)
    keys, scales, starts, ends, table = sources
    rows, listed, width = len(weights), candidates.shape[1], out.shape[1]
    plan = plan_of(tune, problem, inputs, out, chunk_keys)
    packed_words = problem.next_n is not None or problem.packed_words
    farthest = max(  # element that a program reaches from its base pointers
        heads * q_strides[2] + q_bytes * q_strides[3],
        heads * max(q_strides[6], weights.stride(1)),
        where["KEY_BYTES"] * keys.stride(-1),
        listed * candidates.stride(1),
        max(strip, tune.block_keys) * out.stride(1),
    )
    arguments = (
        *(q, q_scale, keys, scales, weights, starts, ends, table, candidates, plan.planned.schedule, out),
        *(rows, plan.list_rows, *sizes, listed, rows * -(-width // strip), plan.splits),
        *(*q_strides, keys.stride(0), keys.stride(-1), scales.stride(0), *weights.stride()),
        *(starts.stride(0), *plan.lens_strides, *table.stride(), *candidates.stride(), *out.stride()),
    )
    keywords = {
        "NEXT_N": problem.next_n or 1,
        "HEADS": heads,
        "DIM": problem.dim,
        "Q_BYTES": q_bytes,
        "PADDED_HEADS": padded_heads(heads),
        "CANDIDATE": candidate_block,
        "RELATIVE": relative,
        "SHARED": plan.list_rows > 1,
        "ROWS": tune.rows,
        "BLOCK_KEYS": tune.block_keys,
        "CHUNK": chunk_keys,
        "STRIP": strip,
        "CLEAN": clean_logits,
        "ROW_LENS": plan.row_lens,
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
    return plan.planned.launches(sparse_mqa_logits_kernel, plan.grid, arguments, keywords)


Place = tuple[tuple[torch.Tensor, ...], tuple[int, int], dict[str, Any]]


def _packed(inputs: Packed) -> Place:
    """Where keys lie side by side: (keys, scales, starts, ends, table), (blocks, keys that there are), constants."""
    k = inputs.k.view(torch.uint8) if isinstance(inputs, MxDense) else inputs.k
    tensors = (k, inputs.k_scale, inputs.starts, inputs.ends, inputs.candidates)
    return tensors, (1, k.shape[0]), {"BLOCK": 0, "KEY_BYTES": k.shape[1], "TILE": 1, "BY_SIXTEENS": False, **SCALES_OF_ONE}


def _cached(inputs: Cached, layout: str) -> Place:
    """As :func:`_packed` of a cache."""
    lens, table = inputs.context_lens, inputs.block_table
    keys, scales, where = cached_keys(inputs, layout)
    where["BY_SIXTEENS"] = LAYOUTS[layout].by_sixteens
    most = min(table.shape[1] * where["BLOCK"], MAX_KEYS)
    return (keys, scales, lens, lens, table), (inputs.kv_cache.shape[0], most), where


def _products(problem: Problem) -> dict[str, bool]:
    """What the kernel is told of products."""
    if problem.k_format is None:
        return {"MX": False, "SCALED": False, **product_options(problem.device, problem.dtype)}
    return {"MX": True, "TO_FNUZ": False, **mx_product_options(problem.device, problem.dim)}


def workers(problem: Problem) -> int:
    """How many workers a schedule should have."""
    return workers_that_fit(problem.device, tuning(problem).resident, 1)


kernel = compat.Kernel(prepare, tuning=tuning, workers=workers)
