"""How select_keys and select_paged_keys take the fused way: each function says whether it has done the call, or would; and what
a fused call counts."""

import math
from typing import Any, NamedTuple

import torch

from capgate import compat

from ..common import cache
from ..common.logits import FLOATS, FP8, mappable
from ..common.rules import in_packets
from ..key_selection.operands import Dense, Paged
from ..key_selection.results import Results, bytes_of
from ..mqa_logits.api import copies_directly
from .operation import Problem, dense, paged, size_class


class Counts(NamedTuple):
    """What the programs of one call did beside scoring and appending.

    refreshed : selections from a row's list that made room for more of its keys
    tied : selections, the last one of a row too, in which equal logits were told apart by their indices
    closed : rows that took no more keys because all of their top_k are NaN
    reread : selections of gluon_hopper, the last one of a row too, from lists that were read in passes: long ones, and those
        where registers found no logit that tells the selected keys from the others
    """

    refreshed: int
    tied: int
    closed: int
    reread: int


def select(
    inputs: Dense,
    results: Results,
    budget: int,
    fused: bool | None,
    variant: str | None,
    *,
    max_window: int | None,
    relative: bool,
    page_size: int,
) -> bool:
    """Select in the fused way where the call asks for it, or says nothing and the operation takes it.

    budget : bytes that the lists may take
    fused : whether the call asks for it; None for what the operation chooses
    variant : of the operation, by name, if ``fused`` is True
    """
    problem = _dense_problem(inputs, results, budget, fused, max_window)
    options = {"max_window": max_window, "relative": relative, "page_size": page_size}
    return _select(dense, problem, inputs, results, variant, options)


def select_paged(
    inputs: Paged,
    results: Results,
    budget: int,
    fused: bool | None,
    variant: str | None,
    *,
    max_context_len: int,
    page_size: int,
    layout: str,
) -> bool:
    """As :func:`select` for a paged cache."""
    problem = _paged_problem(inputs, results, budget, fused, max_context_len, layout)
    options = {"max_context_len": max_context_len, "page_size": page_size, "layout": layout}
    return _select(paged, problem, inputs, results, variant, options)


def takes(inputs: Dense, results: Results, budget: int, fused: bool | None, *, max_window: int | None) -> bool:
    """Whether :func:`select` does the call."""
    return _taken(dense, _dense_problem(inputs, results, budget, fused, max_window))


def takes_paged(inputs: Paged, results: Results, budget: int, fused: bool | None, *, max_context_len: int, layout: str) -> bool:
    """Whether :func:`select_paged` does the call."""
    return _taken(paged, _paged_problem(inputs, results, budget, fused, max_context_len, layout))


def explain(inputs: Dense, results: Results, budget: int, fused: bool | None, *, max_window: int | None) -> "compat.Trace":
    """Which variant a call would take, and why not the others; the reference stands for two steps."""
    return dense.explain(_dense_problem(inputs, results, budget, fused, max_window))


def explain_paged(
    inputs: Paged, results: Results, budget: int, fused: bool | None, *, max_context_len: int, layout: str
) -> "compat.Trace":
    """As :func:`explain` for a paged cache."""
    return paged.explain(_paged_problem(inputs, results, budget, fused, max_context_len, layout))


def count(inputs: Dense, results: Results, budget: int, fused: bool | None, *, max_window: int | None) -> Counts | None:
    """What the call counts that :func:`select` would do, which is done for it by kernels that are compiled to count; None where
    two steps are taken, and of the reference, which has no lists."""
    problem = _dense_problem(inputs, results, budget, fused, max_window)
    return _count(dense, problem, inputs, results, {"max_window": max_window, "relative": False})


def count_paged(
    inputs: Paged, results: Results, budget: int, fused: bool | None, *, max_context_len: int, layout: str
) -> Counts | None:
    """As :func:`count` for a paged cache."""
    problem = _paged_problem(inputs, results, budget, fused, max_context_len, layout)
    return _count(paged, problem, inputs, results, {"max_context_len": max_context_len, "layout": layout})


def _taken(operation: "compat.Operation[Problem]", problem: Problem) -> bool:
    """The reference is the same two steps in torch, for which select_keys has variants of its own."""
    return problem.asked or operation.select(problem).name != "reference"


def _dense_problem(inputs: Dense, results: Results, budget: int, fused: bool | None, max_window: int | None) -> Problem:
    rows, heads, dim = inputs.q.shape
    keys = inputs.k.shape[0] if max_window is None else max_window
    problem = _problem(inputs, results, (heads, dim), rows, keys, budget, fused)
    return problem._replace(
        packets=in_packets(inputs.q) and copies_directly(inputs.k, inputs.k_scale),
        tensor_maps=all(mappable(operand) for operand in (inputs.q, inputs.k, inputs.k_scale, inputs.weights)),
    )


def _paged_problem(
    inputs: Paged, results: Results, budget: int, fused: bool | None, max_context_len: int, layout: str
) -> Problem:
    batch, next_n, heads, dim = inputs.q.shape
    block = inputs.kv_cache.shape[1]
    keys = min(max_context_len, inputs.block_table.shape[1] * block)
    problem = _problem(inputs, results, (heads, dim), batch * next_n, keys, budget, fused)
    # As in fp8_paged_mqa_logits: rows of all requests are one axis of a tensor map, and scales lie as the keys do.
    even = batch == 1 or next_n == 1 or inputs.q.stride(0) == next_n * inputs.q.stride(1)
    tensor_maps = even and all(mappable(operand) for operand in (inputs.q, cache.keys_of(inputs.kv_cache), inputs.weights))
    packets = in_packets(inputs.q) and cache.copies_directly(inputs.kv_cache, inputs.weights, inputs.block_table)
    return problem._replace(next_n=next_n, block_size=block, layout=layout, packets=packets, tensor_maps=tensor_maps)


def _problem(
    inputs: Any, results: Results, sizes: tuple[int, int], rows: int, keys: int, budget: int, fused: bool | None
) -> Problem:
    memory = bytes_of(results.workspace)
    return Problem(
        inputs.q.device,
        *sizes,
        FP8[inputs.q.dtype],
        results.out.shape[1],
        size_class(rows),
        size_class(keys),
        weights_dtype=FLOATS[inputs.weights.dtype],
        budget=budget if memory is None else min(budget, len(memory)),
        asked=fused is True,
    )


def _select(
    operation: "compat.Operation[Problem]",
    problem: Problem,
    inputs: Any,
    results: Results,
    variant: str | None,
    options: dict[str, Any],
) -> bool:
    if not _taken(operation, problem):
        return False
    if len(results.out) == 0:
        # A variant that cannot run is an error for empty calls too.
        operation.select(problem._replace(packets=True, tensor_maps=True), variant)
        return True
    memory: torch.Tensor | None = bytes_of(results.workspace)
    operation(problem, inputs, results.out, results.out_scores, variant=variant, memory=memory, **options)
    return True


def _count(
    operation: "compat.Operation[Problem]", problem: Problem, inputs: Any, results: Results, options: dict[str, Any]
) -> Counts | None:
    if not _taken(operation, problem):
        return None
    kernel = operation.load(operation.select(problem))
    if not isinstance(kernel, compat.Kernel):
        return None
    operands = (problem, inputs, results.out, results.out_scores)
    # Each program has counts of its own; one that makes a schedule needs none.
    programs = sum(math.prod(launch.grid) for launch in kernel.prepare(*operands, **options))
    counters = torch.zeros((programs, len(Counts._fields)), dtype=torch.int32, device=inputs.q.device)
    for launch in kernel.prepare(*operands, **options, counters=counters):
        launch()
    return Counts(*counters.sum(0).tolist())
