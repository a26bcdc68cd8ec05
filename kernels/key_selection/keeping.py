"""What is kept of selections that repeat: the launches that the operators make of a call whose rows all fit the budget.

A call that is fused goes the long way, whose launches its kernel keeps.
"""

from typing import Any

import torch

from capgate import compat

from ..fused_selection import calls as fusing
from ..mqa_logits import api as dense_api
from ..paged_mqa_logits import api as paged_api
from .operands import Dense, Inputs, Paged
from .operation import operation
from .operators import (
    dense_columns,
    dense_options,
    dense_turn,
    is_listed,
    may_fuse,
    memory_of,
    no_logits,
    paged_columns,
    paged_options,
    paged_turn,
    problem_of,
    row_ends,
)
from .repeats import Kept, Memory, Step, given_of
from .results import Results, bytes_of

_ONE_CELL = Memory(4)  # of no_logits


def kept_from_logits(
    inputs: Inputs, given: Results, results: Results, num_keys: int | None, relative: bool, page_size: int, variant: str | None
) -> Kept | None:
    """What is kept of calls of select_from_logits; ``given`` are those of the ``results`` that are the caller's."""
    options = {"num_keys": num_keys, "relative": relative, "page_size": page_size}
    step = _select_kept(inputs, results, bytes_of(results.workspace), variant, options)
    return step and Kept(*given_of(inputs, given), [step], Memory(None, None if results.workspace is None else 0))


def kept_keys(
    inputs: Dense,
    given: Results,
    results: Results,
    logits_budget_bytes: int,
    max_window: int | None,
    relative: bool,
    page_size: int,
    variant: str | None,
    logits_variant: str | None,
    fused: bool | None,
) -> Kept | None:
    """What is kept of calls of select_keys; ``given`` are those of the ``results`` that are the caller's."""
    rows, columns, device = inputs.q.shape[0], dense_columns(inputs, max_window), inputs.q.device
    options = dense_options(inputs, max_window, relative, page_size)
    steps: list[Step | None] = []
    if is_listed(columns, results):
        logits, scratch, memory = no_logits(rows, columns, device), None, _ONE_CELL
    else:
        if may_fuse(fused, variant, logits_variant) and fusing.takes(
            inputs, results, logits_budget_bytes, fused, max_window=max_window
        ):
            return None
        buffer, scratch = memory_of(results, rows, 1, columns, logits_budget_bytes, device)
        if len(buffer) < rows:  # more than one turn
            return None
        logits, memory = buffer[:, :columns], _kept_memory(results, buffer)
        scored, _ = dense_turn(inputs, slice(None), logits)
        steps.append(_scored(dense_api.kept(scored, logits, False, max_window is not None, logits_variant), scored))
    _, selected = dense_turn(inputs, slice(None), logits)
    steps.append(_select_kept(selected, results, scratch, variant, options, logits="buffer"))
    return _all_kept(inputs, given, steps, memory)


def kept_paged_keys(
    inputs: Paged,
    given: Results,
    results: Results,
    max_context_len: int,
    logits_budget_bytes: int,
    page_size: int,
    variant: str | None,
    logits_variant: str | None,
    layout: str,
    fused: bool | None,
) -> Kept | None:
    """What is kept of calls of select_paged_keys; ``given`` are those of the ``results`` that are the caller's."""
    (batch, next_n), device = inputs.q.shape[:2], inputs.q.device
    columns, options = paged_columns(inputs, max_context_len), paged_options(inputs, page_size)
    ends, whole = row_ends(inputs.context_lens, next_n), slice(0, batch)
    steps: list[Step | None] = []
    if is_listed(columns, results):
        logits, scratch, memory = no_logits(len(ends), columns, device), None, _ONE_CELL
    else:
        if may_fuse(fused, variant, logits_variant) and fusing.takes_paged(
            inputs, results, logits_budget_bytes, fused, max_context_len=max_context_len, layout=layout
        ):
            return None
        buffer, scratch = memory_of(results, batch, next_n, columns, logits_budget_bytes, device)
        if len(buffer) < len(ends):
            return None
        logits, memory = buffer[:, :columns], _kept_memory(results, buffer)
        scored, _ = paged_turn(inputs, whole, logits, ends)
        steps.append(_scored(paged_api.kept(scored, logits, False, logits_variant, layout=layout), scored))
    _, selected = paged_turn(inputs, whole, logits, ends)
    steps.append(_select_kept(selected, results, scratch, variant, options, logits="buffer", ends="row_ends"))
    return _all_kept(inputs, given, steps, memory)


def _select_kept(
    inputs: Inputs, results: Results, scratch: torch.Tensor | None, variant: str | None, options: dict[str, Any], **names: str
) -> Step | None:
    """The kept launches of :func:`_select_into`; ``names`` are of operands that are called otherwise here."""
    given = {**inputs._asdict(), "out": results.out, "out_scores": results.out_scores, "scratch": scratch}
    bound = operation.kept(problem_of(inputs, results.out), inputs, *results[:2], variant=variant, scratch=scratch, **options)
    named = [names.get(name, name) for name, tensor in given.items() if tensor is not None]
    return None if bound is None else Step(bound, named)


def _scored(bound: compat.Bound | None, inputs: Any) -> Step | None:
    names = [name for name, tensor in inputs._asdict().items() if tensor is not None]
    return None if bound is None else Step(bound, [*names, "buffer"])


def _kept_memory(results: Results, buffer: torch.Tensor) -> Memory:
    return Memory(buffer.untyped_storage().nbytes() if results.workspace is None else None, buffer.nbytes)


def _all_kept(inputs: Any, given: Results, steps: list[Step | None], memory: Memory) -> Kept | None:
    kept = [step for step in steps if step is not None]
    return Kept(*given_of(inputs, given), kept, memory) if len(kept) == len(steps) else None
