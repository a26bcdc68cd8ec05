"""Classic Triton for rows that are longer than a block, one source for 3.5.1 to 3.9.0 on CUDA and HIP.

A quad of each of many parts of a row is a sample, which says what logit a few more than top_k should reach: the bar. The first
launch reads the row once, in sections where there are few rows, and appends what reaches the bar to lists of candidates
(:mod:`.device.filtering`); the second, which may start meanwhile and then waits, selects exactly top_k of them. How many they
are is counted, so a sample that misleads costs time, and never a key: where too few or too many reach the bar the threshold is
found by counting in the row itself.
Nothing is added up in an order that may change, so results repeat bit for bit.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from capgate import compat

from ..common.device.dependent import gdc_launch_dependents, gdc_wait
from ..common.tuning import Options
from .device.candidates import LEAST_BAR, SPARE_BITS, SPARE_MASK, end_list, sizes_of, write_by_counting, write_top
from .device.filtering import append_section, sample_bar
from .device.rows import list_all, pages_of, window_of
from .operands import Arguments
from .operation import Problem
from .scratch import lists_in, wanted_bytes
from .tunings import MOST_SECTIONS, LongRows, long_rows


@triton.jit(do_not_specialize=["columns", "num_keys", "sections", "num_requests", "num_pages"])
def select_long_rows_kernel(
    source,  # [S, columns] float32 or bfloat16
    starts,  # [S] int32, or None: 0
    ends,  # [S] int32
    offsets,  # [S] int32, or None: 0
    page_table,  # [num_requests, num_pages] int32, or None
    requests,  # [S] int32, or None: row // ROWS
    indices,  # [S, top_k] int32
    values,  # as indices, float32, or None
    lists,  # [S, sections, ROOM + 2] int64: candidates, how many they are, and the bar
    columns,
    num_keys,
    top_k,
    num_requests,
    num_pages,
    sections,
    stride_source,
    stride,
    stride_starts,
    stride_ends,
    stride_offsets,
    stride_table,
    stride_pages,
    stride_requests,
    stride_indices,
    stride_values,
    BLOCK: tl.constexpr,
    PLANES: tl.constexpr,
    SAMPLE: tl.constexpr,
    ROOM: tl.constexpr,
    CUT: tl.constexpr,  # in sections
    MOST: tl.constexpr,  # sections of a row, a power of two
    APPENDS: tl.constexpr,  # to the list of a section; otherwise it selects from those of a row
    EARLY: tl.constexpr,  # what selects is started while sections are still read, and waits for them
    COMPRESSED: tl.constexpr,
    RELATIVE: tl.constexpr,
    PAGE: tl.constexpr,  # positions of a page
    ROWS: tl.constexpr,  # that look into the same row of the page table
    ALIGNED: tl.constexpr,  # sections begin on 16-byte boundaries, and the first one skips what is no key
    INDEX: tl.constexpr,
    AHEAD: tl.constexpr,  # a block is loaded while the one before it is looked at
):
    if EARLY and APPENDS:
        gdc_launch_dependents()
    # Under a causal window the last rows see the most keys: longest work first.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    begin, aligned, skip, size = window_of(
        starts, ends, row, stride_starts, stride_ends, columns, num_keys, COMPRESSED, ALIGNED
    )
    count = size - skip
    first_index = (0 if RELATIVE else begin) - skip
    if offsets is not None:
        first_index += tl.load(offsets + row * stride_offsets)
    source += row * stride_source + aligned.to(tl.int64) * stride
    lists += row * (sections if CUT else 1) * (ROOM + 2)
    runs: tl.constexpr = BLOCK // PLANES
    if APPENDS:
        if count > top_k:
            bar = tl.full((), LEAST_BAR, tl.float32)
            if count > ROOM:
                bar = sample_bar(source, skip, size, stride, top_k, SAMPLE // PLANES, PLANES, ALIGNED, INDEX)
            if CUT:
                section = tl.program_id(1)
                share = tl.cdiv(tl.cdiv(size, sections), 4 * runs) * 4 * runs
                first = section * share
                skip -= first
                size = tl.minimum(size - first, share)
                first_index += first
                source += first.to(tl.int64) * stride
                lists += section * (ROOM + 2)
            fill = append_section(
                source, skip, size, stride, first_index, bar, lists, runs, PLANES, ROOM, ALIGNED, INDEX, AHEAD
            )
            end_list(lists, fill, ROOM)
            tl.store(lists + ROOM, fill.to(tl.int64))
            tl.store(lists + ROOM + 1, bar.to(tl.int32, bitcast=True).to(tl.int64))
    else:
        if page_table is not None:
            table_row, num_pages = pages_of(requests, row, num_requests, num_pages, stride_table, stride_requests, ROWS)
            page_table += table_row
        numbering = (None, first_index, page_table, num_pages, stride_pages, PAGE)
        indices += row * stride_indices
        if values is not None:
            values += row * stride_values
        list_runs: tl.constexpr = ROOM // PLANES
        if EARLY:
            gdc_wait()
        if count <= top_k:
            skipped = (None, first_index + skip, page_table, num_pages, stride_pages, PAGE)
            list_all(source + skip * stride, count, stride, skipped, indices, values, top_k, list_runs, INDEX)
        else:
            bar = tl.load(lists + ROOM + 1).to(tl.int32).to(tl.float32, bitcast=True)
            if CUT:
                sizes = sizes_of(lists, sections, ROOM, MOST)
                summed = tl.sum(sizes, 0)
                held = (summed >> SPARE_BITS) * 4  # in whole quads
                total = held - (summed & SPARE_MASK)
                filled = (lists, sizes, sections, held, total, bar)
            else:
                total = tl.load(lists + ROOM).to(tl.int32)
                held = tl.cdiv(total, 4) * 4
                filled = (lists, None, sections, held, total, bar)
            if (total < top_k) | (held > ROOM):
                write_by_counting(
                    source, skip, size, stride, bar, top_k, numbering, indices, values, runs, PLANES, ALIGNED, INDEX
                )
            elif held <= ROOM // 2:
                write_top(filled, top_k, numbering, indices, values, list_runs // 2, PLANES, ROOM, MOST, CUT)
            else:
                write_top(filled, top_k, numbering, indices, values, list_runs, PLANES, ROOM, MOST, CUT)


class Plan(NamedTuple):
    """How the rows of a call are cut, and where their candidates lie.

    lists : int64 [rows, sections, room + 2], as the kernels have them
    room : candidates that a list has room for
    early : what selects is started while sections are still read
    filtering, selecting : options of both launches
    """

    tune: LongRows
    lists: torch.Tensor
    room: int
    early: bool
    filtering: Options
    selecting: Options

    @property
    def sections(self) -> int:
        """In how many a row is cut."""
        return self.lists.shape[1]


def plan_of(problem: Problem, arguments: Arguments, scratch: torch.Tensor | None, tune: LongRows) -> Plan:
    """The plan of a call; ``scratch`` are bytes for the lists, allocated otherwise."""
    rows, columns = arguments.tensors[0].shape
    top_k = arguments.tensors[-2].shape[1]
    if scratch is None:
        size = wanted_bytes(problem.device, rows, columns, top_k)
        scratch = torch.empty(size, dtype=torch.uint8, device=arguments.tensors[0].device)
    lists = lists_in(problem.device, tune, rows, columns, top_k, scratch)
    sections = lists.shape[1]
    filtering, selecting = tune.options if sections == 1 else tune.cut_options
    early = sections > 1 and compat.capabilities(problem.device).dependent_launch
    return Plan(tune, lists, tune.room(top_k, columns), early, filtering, selecting)


def appending(arguments: Arguments, constants: dict[str, Any], plan: Plan) -> compat.Launch:
    """The launch that filters sections; ``constants`` are those that :mod:`.classic`'s kernel has, too."""
    step = {"APPENDS": True, "num_warps": plan.tune.num_warps, **dict(plan.filtering)}
    return _launch(arguments, constants, plan, plan.sections, step)


def selecting(arguments: Arguments, constants: dict[str, Any], plan: Plan) -> compat.Launch:
    """The launch that selects from what is left; ``constants`` as for :func:`appending`."""
    step = {"APPENDS": False, "num_warps": plan.tune.list_warps(plan.room), **dict(plan.selecting)}
    if plan.early:
        step["launch_pdl"] = True
    return _launch(arguments, constants, plan, 1, step)


def _launch(arguments: Arguments, constants: dict[str, Any], plan: Plan, sections: int, step: dict[str, Any]) -> compat.Launch:
    (rows, columns), stride = arguments.tensors[0].shape, arguments.tensors[0].stride(1)
    shared = {
        "BLOCK": plan.tune.block_logits,
        "PLANES": plan.tune.planes,
        "SAMPLE": plan.tune.sample,
        "ROOM": plan.room,
        "CUT": plan.sections > 1,
        "MOST": MOST_SECTIONS,
        "EARLY": plan.early,
        **constants,
        "INDEX": tl.int32 if columns * stride < 2**31 else tl.int64,
        "AHEAD": plan.tune.ahead,
    }
    given = (*arguments.tensors, plan.lists, *arguments.counts, plan.sections, *arguments.strides)
    return compat.Launch(select_long_rows_kernel, (rows, sections), given, shared | step)


def launches(
    problem: Problem, arguments: Arguments, constants: dict[str, Any], scratch: torch.Tensor | None
) -> list[compat.Launch]:
    """As :func:`.classic.prepare`; ``constants`` are those that its kernel has, too."""
    plan = plan_of(problem, arguments, scratch, long_rows(compat.capabilities(problem.device).target))
    return [appending(arguments, constants, plan), selecting(arguments, constants, plan)]
