"""The operators that torch.compile and graphs understand: turns of rows within a memory budget, each scored and selected from.

Each comes twice: one makes its results, ``_out`` writes the caller's and works in the memory that he lends.
"""

from typing import Any

import torch

from capgate import compat

from ..common.logits import ROW_ALIGNMENT
from ..common.torch_ops import register
from ..fused_selection import calls as fusing
from ..mqa_logits import api as _dense_api  # noqa: F401 - it registers the operators that score
from ..mqa_logits import operands as dense
from ..paged_mqa_logits import api as _paged_api  # noqa: F401
from ..paged_mqa_logits import operands as paged
from .operands import DENSE, OPERANDS, PAGED, Dense, Inputs, Paged, in_quads
from .operation import Problem, operation
from .results import Results, bytes_of, check_results_apart, new_results
from .scratch import rows_within, scratch_bytes, sections_of, wanted_bytes


def problem_of(inputs: Inputs, out: torch.Tensor, device: Any = None) -> Problem:
    """The class of a call; ``device`` is what it would run on, where that is not the tensors'."""
    logits = inputs.logits
    device = logits.device if device is None else device
    cut = sections_of(device, *logits.shape) > 1 and in_quads(logits)
    return Problem(device, out.shape[1], dtype=str(logits.dtype).removeprefix("torch."), cut=cut)


def _select_into(
    inputs: Inputs,
    out: torch.Tensor,
    out_scores: torch.Tensor | None,
    scratch: torch.Tensor | None,
    variant: str | None,
    **options: Any,
) -> None:
    """Run the chosen variant, unless there is no row."""
    problem = problem_of(inputs, out)
    if len(out) == 0:
        operation.select(problem, variant)  # a variant that cannot run is an error for empty calls too
        return
    operation(problem, inputs, out, out_scores, variant=variant, scratch=scratch, **options)


def _from_logits(
    inputs: Inputs, results: Results, num_keys: int | None, relative: bool, page_size: int, variant: str | None
) -> None:
    scratch = bytes_of(results.workspace)
    if scratch is not None:
        rows, columns = inputs.logits.shape
        needed = rows * scratch_bytes(compat.capabilities(inputs.logits.device).target, columns, results.out.shape[1])
        if len(scratch) < needed:
            raise ValueError(f"workspace: got {len(scratch)} aligned bytes, needs {needed} for {rows} rows of {columns} logits")
    _select_into(
        inputs, results.out, results.out_scores, scratch, variant, num_keys=num_keys, relative=relative, page_size=page_size
    )


def dense_columns(inputs: Dense, max_window: int | None) -> int:
    return inputs.k.shape[0] if max_window is None else max_window


def dense_turn(inputs: Dense, turn: slice, logits: torch.Tensor) -> tuple[dense.Inputs, Inputs]:
    """What some rows' logits are made of, and what is selected from."""
    q, k, k_scale, weights, starts, ends, offsets, page_table, requests = inputs
    scored = dense.Inputs(q[turn], k, k_scale, weights[turn], starts[turn], ends[turn])
    return scored, Inputs(logits, scored.starts, scored.ends, *_of_rows(turn, offsets, page_table, requests, 1))


def dense_options(inputs: Dense, max_window: int | None, relative: bool, page_size: int) -> dict[str, Any]:
    num_keys = None if max_window is None else inputs.k.shape[0]
    return {"num_keys": num_keys, "relative": relative, "page_size": page_size}


def _keys(
    inputs: Dense,
    results: Results,
    logits_budget_bytes: int,
    max_window: int | None,
    relative: bool,
    page_size: int,
    variant: str | None,
    logits_variant: str | None,
    fused: bool | None = None,
) -> None:
    rows, columns, device = inputs.q.shape[0], dense_columns(inputs, max_window), inputs.q.device
    options = dense_options(inputs, max_window, relative, page_size)

    def score(scored: dense.Inputs, logits: torch.Tensor) -> None:
        torch.ops.capgate.fp8_mqa_logits_out(*scored, logits, False, max_window is not None, logits_variant)

    if is_listed(columns, results):
        if logits_variant is not None:
            none = no_logits(0, columns, device)
            score(dense_turn(inputs, slice(0), none)[0], none)  # one that cannot run is an error all the same
        _, selected = dense_turn(inputs, slice(None), no_logits(rows, columns, device))
        _select_into(selected, *results[:2], None, variant, **options)
        return
    if may_fuse(fused, variant, logits_variant) and fusing.select(
        inputs,
        results,
        logits_budget_bytes,
        fused,
        variant,
        max_window=max_window,
        relative=relative,
        page_size=page_size,
    ):
        return
    buffer, scratch = memory_of(results, rows, 1, columns, logits_budget_bytes, device)
    for first in range(0, max(rows, 1), max(len(buffer), 1)):
        turn = slice(first, first + len(buffer))
        logits = buffer[: len(inputs.q[turn]), :columns]
        scored, selected = dense_turn(inputs, turn, logits)
        score(scored, logits)
        _select_into(selected, *_turn_of(results, turn), scratch, variant, **options)


def paged_turn(inputs: Paged, turn: slice, logits: torch.Tensor, ends: torch.Tensor) -> tuple[paged.Inputs, Inputs]:
    """What some requests' logits are made of, and what is selected from; ``ends`` are of all rows."""
    q, cache, weights, lens, table, offsets, page_table, requests = inputs
    next_n = q.shape[1]
    rows = _drafts(turn, next_n)
    scored = paged.Inputs(q[turn], cache, weights[rows], lens[turn], table[turn])
    return scored, Inputs(logits, None, ends[rows], *_of_rows(rows, offsets, page_table, requests, next_n))


def paged_columns(inputs: Paged, max_context_len: int) -> int:
    cache, table = inputs.kv_cache, inputs.block_table
    return min(max_context_len, table.shape[1] * cache.shape[1] if len(cache) else 0)


def paged_options(inputs: Paged, page_size: int) -> dict[str, Any]:
    return {"num_keys": None, "relative": False, "page_size": page_size, "rows_per_request": inputs.q.shape[1]}


def _paged_keys(
    inputs: Paged,
    results: Results,
    max_context_len: int,
    logits_budget_bytes: int,
    page_size: int,
    variant: str | None,
    logits_variant: str | None,
    layout: str = "flat",
    fused: bool | None = None,
) -> None:
    (batch, next_n), device = inputs.q.shape[:2], inputs.q.device
    columns, options = paged_columns(inputs, max_context_len), paged_options(inputs, page_size)
    ends = row_ends(inputs.context_lens, next_n)

    def score(scored: paged.Inputs, logits: torch.Tensor) -> None:
        torch.ops.capgate.fp8_paged_mqa_logits_out(*scored, logits, False, logits_variant, layout=layout)

    if is_listed(columns, results):
        if logits_variant is not None:
            none = no_logits(0, columns, device)
            score(paged_turn(inputs, slice(0), none, ends)[0], none)
        _, selected = paged_turn(inputs, slice(0, batch), no_logits(len(ends), columns, device), ends)
        _select_into(selected, *results[:2], None, variant, **options)
        return
    if may_fuse(fused, variant, logits_variant) and fusing.select_paged(
        inputs,
        results,
        logits_budget_bytes,
        fused,
        variant,
        max_context_len=max_context_len,
        page_size=page_size,
        layout=layout,
    ):
        return
    buffer, scratch = memory_of(results, batch, next_n, columns, logits_budget_bytes, device)
    step = len(buffer) // next_n
    for first in range(0, max(batch, 1), max(step, 1)):
        turn = slice(first, first + step)
        rows = _drafts(turn, next_n)
        logits = buffer[: len(ends[rows]), :columns]
        scored, selected = paged_turn(inputs, turn, logits, ends)
        score(scored, logits)
        _select_into(selected, *_turn_of(results, rows), scratch, variant, **options)


def may_fuse(fused: bool | None, variant: str | None, logits_variant: str | None) -> bool:
    """Whether a call may be fused: who names a variant of one of two steps takes two."""
    return fused or (fused is None and variant is None and logits_variant is None)


# --- turns ------------------------------------------------------------------------------------------------------------------


def _drafts(requests: slice, next_n: int) -> slice:
    """The rows of some requests."""
    return slice(requests.start and requests.start * next_n, requests.stop * next_n)


def _turn_of(results: Results, turn: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
    return results.out[turn], None if results.out_scores is None else results.out_scores[turn]


def _of_rows(
    turn: slice,
    offsets: torch.Tensor | None,
    page_table: torch.Tensor | None,
    requests: torch.Tensor | None,
    rows_per_request: int,
) -> tuple[torch.Tensor | None, ...]:
    """What places the indices of a turn's rows; row i of a turn looks into row i // rows_per_request of its page table."""
    if page_table is not None and requests is None and turn.start:
        page_table = page_table[turn.start // rows_per_request :]
    return None if offsets is None else offsets[turn], page_table, None if requests is None else requests[turn]


def row_ends(context_lens: torch.Tensor, next_n: int) -> torch.Tensor:
    """How many keys each row sees, int32 [B * next_n]; 0 or less for none."""
    if context_lens.ndim == 2 or next_n == 1:
        return context_lens.reshape(-1)
    back = torch.arange(1 - next_n, 1, dtype=torch.int32, device=context_lens.device)
    return (context_lens.clamp(min=0)[:, None] + back).flatten()


# --- memory -----------------------------------------------------------------------------------------------------------------


def is_listed(columns: int, results: Results) -> bool:
    """Whether shapes alone say that every key of every row is selected, so that nobody asks for a logit."""
    return columns <= results.out.shape[1] and results.out_scores is None


def no_logits(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Logits that are not looked at."""
    return torch.empty((1, 1), dtype=torch.float32, device=device).expand(rows, columns)


def memory_of(
    results: Results, groups: int, rows: int, columns: int, budget: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A buffer for the logits of as many groups of ``rows`` rows as the budget has room for, of ``groups``; rows are padded.
    With a workspace it lies there. The bytes behind it are for candidates."""
    top_k, memory = results.out.shape[1], bytes_of(results.workspace)
    padded = -(-columns // ROW_ALIGNMENT) * ROW_ALIGNMENT
    group_bytes = rows * (4 * padded + scratch_bytes(compat.capabilities(device).target, columns, top_k))
    short = "logits_budget_bytes"
    if memory is not None and len(memory) < budget:
        short, budget = "workspace", len(memory)
    taken = rows_within(budget, group_bytes, groups)
    if taken == 0 < groups:
        what = "row" if rows == 1 else "request"
        got = f"{budget} aligned bytes" if short == "workspace" else budget
        raise ValueError(f"{short}: got {got}, needs at least {group_bytes} for a {what} of {columns} keys")
    shape, size = (taken * rows, padded), 4 * taken * rows * padded
    if memory is None:
        candidates = min(wanted_bytes(device, taken * rows, columns, top_k), budget - size)
        memory = torch.empty(size + candidates, dtype=torch.uint8, device=device)
    return memory[:size].view(torch.float32).view(shape), memory[size:]


# --- registration -----------------------------------------------------------------------------------------------------------


def _register(name: str, operands: Any, rows: Any, implementation: Any, options: str) -> None:
    """Define ``capgate::name`` and ``capgate::name_out``.

    rows : how many rows the results have, by the operands
    implementation : gets the operands, where to write, and the options
    """

    def new(inputs: Any, top_k: int, return_scores: bool, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        results = new_results(rows(inputs), top_k, return_scores, inputs[0].device)
        implementation(inputs, results, *rest)
        return _pair(results)

    def fake(inputs: Any, top_k: int, return_scores: bool, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return _pair(new_results(rows(inputs), top_k, return_scores, inputs[0].device))

    def into(inputs: Any, out: torch.Tensor, scores: torch.Tensor | None, workspace: torch.Tensor | None, *rest: Any) -> None:
        results = Results(out, scores, workspace)
        check_results_apart(results, inputs)
        implementation(inputs, results, *rest)

    register(name, operands, f"SymInt top_k, bool return_scores, {options}", "(Tensor, Tensor)", new, fake)
    written = "Tensor(a!) out, Tensor(b!)? out_scores, Tensor(c!)? workspace"
    register(f"{name}_out", operands, f"{written}, {options}", "()", into)


def _pair(results: Results) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and scores; those that are not wanted have no columns, for an operator returns tensors."""
    out, scores, _ = results
    return out, out.new_empty((out.shape[0], 0), dtype=torch.float32) if scores is None else scores


_INDICES = "bool relative, SymInt page_size"
_VARIANTS = "str? variant, str? logits_variant"
_WAY = "bool? fused=None"
_register(
    "select_keys",
    DENSE,
    lambda inputs: inputs.q.shape[0],
    _keys,
    f"SymInt logits_budget_bytes, SymInt? max_window, {_INDICES}, {_VARIANTS}, {_WAY}",
)
_register(
    "select_paged_keys",
    PAGED,
    lambda inputs: inputs.q.shape[0] * inputs.q.shape[1],
    _paged_keys,
    f"SymInt max_context_len, SymInt logits_budget_bytes, SymInt page_size, {_VARIANTS}, str layout='flat', {_WAY}",
)
_register(
    "select_from_logits",
    OPERANDS,
    lambda inputs: inputs.logits.shape[0],
    _from_logits,
    f"SymInt? num_keys, {_INDICES}, str? variant",
)
