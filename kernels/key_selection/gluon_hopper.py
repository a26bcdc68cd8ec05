"""Gluon for Hopper for few rows that are longer than a block, one source for Triton 3.6.0 to 3.9.0.

The first of :mod:`.classic_long`'s two launches is another one, in which a program's warps count bits and no prefix sum is made
(:mod:`.device.warp_filter`). What selects from the lists is the same. Where rows are so many that they are not cut, this filter
gained nothing, and they are classic's.
"""

import torch

from capgate import compat
from capgate.compat.gluon import gl, gluon

from ..common.device.dependent import gdc_launch_dependents
from ..common.hardware import multiprocessors
from . import classic_long
from .device.candidates import LEAST_BAR
from .device.rows import window_of
from .device.warp_filter import CHUNK, append_section, end_list, sample_bar
from .operands import Arguments, Inputs
from .operation import Problem
from .tunings import gluon_hopper as tuning


@gluon.jit(do_not_specialize=["columns", "num_keys", "sections"])
def filter_sections_kernel(
    source,  # [S, columns] float32 or bfloat16
    starts,  # [S] int32, or None: 0
    ends,  # [S] int32
    offsets,  # [S] int32, or None: 0
    lists,  # [S, sections, ROOM + 2] int64: candidates, how many they are, and the bar
    columns,
    num_keys,
    top_k,
    sections,
    stride_source,
    stride_starts,
    stride_ends,
    stride_offsets,
    SAMPLE: gl.constexpr,
    ROOM: gl.constexpr,
    EARLY: gl.constexpr,  # what selects is started while sections are still read, and waits for them
    COMPRESSED: gl.constexpr,
    RELATIVE: gl.constexpr,
    AHEAD: gl.constexpr,  # a block is loaded while the one before it is looked at
):
    if EARLY:
        gdc_launch_dependents()
    WARPS: gl.constexpr = gl.num_warps()
    # Under a causal window the last rows see the most keys: longest work first.
    row = (gl.num_programs(0) - 1 - gl.program_id(0)).to(gl.int64)
    begin, aligned, skip, size = window_of(starts, ends, row, stride_starts, stride_ends, columns, num_keys, COMPRESSED, True)
    count = size - skip
    first_index = (begin * 0 if RELATIVE else begin) - skip
    if offsets is not None:
        first_index += gl.load(offsets + row * stride_offsets)
    source += row * stride_source + aligned.to(gl.int64)
    section = gl.program_id(1)
    lists += (row * sections + section) * (ROOM + 2)
    if count > top_k:
        bar = gl.to_tensor(LEAST_BAR)
        if count > ROOM:
            bar = sample_bar(source, skip, size, top_k, SAMPLE, WARPS)
        share = gl.cdiv(gl.cdiv(size, sections), CHUNK) * CHUNK
        first = section * share
        source += first.to(gl.int64)
        size = gl.minimum(size - first, share)
        fill = append_section(source, skip - first, size, first_index + first, bar, lists, WARPS, ROOM, AHEAD)
        end_list(lists, fill, WARPS, ROOM)
        gl.store(lists + ROOM, fill.to(gl.int64))
        gl.store(lists + ROOM + 1, bar.to(gl.int32, bitcast=True).to(gl.int64))


def prepare(
    problem: Problem,
    inputs: Inputs,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    num_keys: int | None,
    relative: bool,
    page_size: int = 1,
    rows_per_request: int = 1,
    scratch: torch.Tensor | None = None,
) -> list[compat.Launch]:
    """As :func:`.classic.prepare`."""
    arguments = Arguments(inputs, indices, scores, num_keys)
    constants = {
        "COMPRESSED": num_keys is not None,
        "RELATIVE": relative,
        "PAGE": page_size,
        "ROWS": rows_per_request,
        "ALIGNED": True,
    }
    tune = tuning(problem)
    if len(inputs.logits) > multiprocessors(problem.device):
        tune = tune.for_more_programs()
    plan = classic_long.plan_of(problem, arguments, scratch, tune)
    (columns, keys, top_k, *_), tensors, strides = arguments.counts, arguments.tensors, arguments.strides
    filtering = compat.Launch(
        filter_sections_kernel,
        (len(plan.lists), plan.sections),
        (*tensors[:4], plan.lists, columns, keys, top_k, plan.sections, strides[0], *strides[2:5]),
        {
            "SAMPLE": plan.tune.sample,
            "ROOM": plan.room,
            "EARLY": plan.early,
            "COMPRESSED": num_keys is not None,
            "RELATIVE": relative,
            "AHEAD": plan.tune.ahead,
            "num_warps": plan.tune.num_warps,
            **dict(plan.tune.gluon_options),
        },
    )
    return [filtering, classic_long.selecting(arguments, constants, plan)]


kernel = compat.Kernel(prepare, tuning=tuning)
