"""The public functions: checks, turns of rows within a memory budget, operators that torch.compile and graphs understand."""

from typing import TypeAlias

import torch

from capgate import compat

from ..common.cache import check_blocks
from ..common.checks import check_flag, check_integer, check_variant
from ..common.logits import ROW_ALIGNMENT
from ..common.torch_ops import register
from ..mqa_logits import operands as dense
from ..mqa_logits.operation import operation as dense_operation
from ..paged_mqa_logits import operands as paged
from ..paged_mqa_logits.operation import operation as paged_operation
from .operands import OPERANDS, Inputs
from .operation import Problem, operation
from .scratch import rows_within, scratch_bytes

MAX_COLUMNS = 2**29  # so that the end of a block is 32 bits wide, and a grid's second dimension 16
LOGITS_BUDGET = 2**31  # bytes, as in ROCm's ATOM

Selected: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def select_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    *,
    top_k: int,
    logits_budget_bytes: int = LOGITS_BUDGET,
    max_window: int | None = None,
    relative: bool = False,
    return_scores: bool = False,
    variant: str | None = None,
    logits_variant: str | None = None,
) -> Selected:
    """Score every query against the keys in its window, as :func:`fp8_mqa_logits`, and return the keys of the largest logits.

    Parameters
    ----------
    q : torch.Tensor, shape (S, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries, as in :func:`fp8_mqa_logits`. H is 1 to 128, D is 32, 64 or 128.
    k : torch.Tensor, shape (N, D), q's dtype
        Keys.
    k_scale : torch.Tensor, shape (N,) or (N, 1), float32
        One scale for each key.
    weights : torch.Tensor, shape (S, H), float32
        Weight of each head.
    starts, ends : torch.Tensor, shape (S,), int32
        Row i sees the keys from ``max(starts[i], 0)`` to ``min(ends[i], N)``.
    top_k : int
        How many keys to select for each row, 1 or more.
    logits_budget_bytes : int
        The most memory to hold at a time for logits, and for candidates between the launches of a selection from long rows.
        Query rows that do not fit are taken in turn, a multiple of 128 at a time or a power of two below it, into the same
        buffer. The operands, the result and what the logits' variant needs for itself (``classic`` and the Gluon variants:
        nothing) come on top.
    max_window : int, optional
        No window is wider than this. Then a row of the buffer needs no more columns; keys past that many are left out.
    relative : bool
        Count indices from the first key of the row's window, ``max(starts[i], 0)``, and not from the first of ``k``.
    return_scores : bool
        Return the selected keys' logits too.
    variant : str, optional
        Take this variant of the selection ("classic", "reference") or raise.
    logits_variant : str, optional
        Take this variant of ``fp8_mqa_logits`` or raise.

    Nothing is read back from the device, so that the call can be captured in a GPU graph.

    Returns
    -------
    torch.Tensor, or a tuple of two
        Indices, shape (S, top_k), int32: each row's in ascending order, followed by -1 where the window has fewer keys. With
        ``return_scores`` also the logits, float32 of the same shape, -inf beside a -1.

        Selected are the keys of the largest logits, and of equal ones those with the lower index. NaN is larger than inf, and
        0 and -0 are equal. Results of repeated calls are bitwise equal.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or the budget has no room for one row.
    capgate.compat.CapabilityError
        The variant that ``variant``, ``logits_variant`` or CAPGATE_VARIANT names cannot run here.
    """
    inputs = dense.Inputs(q, k, k_scale, weights, starts, ends)
    dense.OPERANDS.check(inputs, "the selection")
    top_k, logits_budget_bytes = _check_sizes(top_k, logits_budget_bytes)
    if max_window is None:
        _check_columns("k", k.shape[0])
    else:
        max_window = check_integer("max_window", max_window, 0)
        _check_columns("max_window", max_window)
    check_flag("relative", relative)
    check_flag("return_scores", return_scores)
    check_variant("variant", variant, operation)
    check_variant("logits_variant", logits_variant, dense_operation)
    if k_scale.ndim == 2:
        inputs = inputs._replace(k_scale=k_scale[:, 0])
    indices, scores = torch.ops.capgate.select_keys(
        *inputs, top_k, logits_budget_bytes, max_window, relative, return_scores, variant, logits_variant
    )
    return (indices, scores) if return_scores else indices


def select_paged_keys(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    max_context_len: int,
    top_k: int,
    logits_budget_bytes: int = LOGITS_BUDGET,
    return_scores: bool = False,
    variant: str | None = None,
    logits_variant: str | None = None,
) -> Selected:
    """As :func:`select_keys` for queries and keys of :func:`fp8_paged_mqa_logits`.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries, as in :func:`fp8_paged_mqa_logits`. next_n is 1 to 65535, H is 1 to 128, D is 32, 64 or 128.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        Keys and their scales, laid out as there. block is 1, 16, 32, 64 or 128.
    weights : torch.Tensor, shape (B * next_n, H), float32
        Weight of each head.
    context_lens : torch.Tensor, shape (B,) or (B, next_n), int32
        How many keys the last row of a request sees, or each row.
    block_table : torch.Tensor, shape (B, max_blocks), int32
        Each request's blocks in order.
    max_context_len : int
        Row t of request b sees as many keys as ``context_lens`` says, and no more than this or than the table has room for.
    top_k, logits_budget_bytes, return_scores, variant : as in :func:`select_keys`; requests are taken in turn, not rows
    logits_variant : str, optional
        Take this variant of ``fp8_paged_mqa_logits`` or raise.

    Returns
    -------
    torch.Tensor, or a tuple of two
        As :func:`select_keys`, of shape (B * next_n, top_k); indices are positions in the request.

    Raises
    ------
    TypeError, ValueError, capgate.compat.CapabilityError
        As :func:`select_keys`.
    """
    tensors = (q, kv_cache, weights, context_lens, block_table)
    paged.OPERANDS.check(paged.Inputs(*tensors), "the selection")
    check_blocks(kv_cache)
    top_k, logits_budget_bytes = _check_sizes(top_k, logits_budget_bytes)
    max_context_len = check_integer("max_context_len", max_context_len, 0)
    _check_columns("max_context_len", max_context_len)
    check_flag("return_scores", return_scores)
    check_variant("variant", variant, operation)
    check_variant("logits_variant", logits_variant, paged_operation)
    indices, scores = torch.ops.capgate.select_paged_keys(
        *tensors, max_context_len, top_k, logits_budget_bytes, return_scores, variant, logits_variant
    )
    return (indices, scores) if return_scores else indices


def select_from_logits(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    *,
    top_k: int,
    num_keys: int | None = None,
    relative: bool = False,
    return_scores: bool = False,
    variant: str | None = None,
) -> Selected:
    """Return the keys of each row's largest logits: the second half of :func:`select_keys`.

    Parameters
    ----------
    logits : torch.Tensor, shape (S, N), float32
        Only cells inside the windows are looked at. Any strides; rows of adjacent elements that begin on 64-byte boundaries
        are read fastest.
    starts : torch.Tensor, shape (S,), int32, or None
        The first key that a row sees; None is 0 for every row.
    ends : torch.Tensor, shape (S,), int32
        One more than the last key that a row sees. Windows that are empty, inverted or reach past the keys are fine.
    top_k, relative, return_scores, variant : as in :func:`select_keys`
    num_keys : int, optional
        How many keys there are, where the logits are compressed: column j of row i means key ``starts[i] + j``. Otherwise
        column j means key j.

    Returns
    -------
    torch.Tensor, or a tuple of two
        As :func:`select_keys`.

    Raises
    ------
    TypeError, ValueError, capgate.compat.CapabilityError
        As :func:`select_keys`.
    """
    inputs = Inputs(logits, starts, ends)
    OPERANDS.check(inputs, "the selection")
    _check_columns("logits", logits.shape[1])
    top_k = check_integer("top_k", top_k, 1)
    check_flag("relative", relative)
    check_flag("return_scores", return_scores)
    check_variant("variant", variant, operation)
    if num_keys is not None:
        num_keys = check_integer("num_keys", num_keys, 0, 2**31 - 1)
        if starts is None:
            raise ValueError("num_keys: needs starts, which say what key a row's first column means")
    indices, scores = torch.ops.capgate.select_from_logits(*inputs, top_k, num_keys, relative, return_scores, variant)
    return (indices, scores) if return_scores else indices


# --- checks ---------------------------------------------------------------------------------------------------------------


def _check_sizes(top_k: int, logits_budget_bytes: int) -> tuple[int, int]:
    return check_integer("top_k", top_k, 1), check_integer("logits_budget_bytes", logits_budget_bytes, 0)


def _check_columns(name: str, columns: int) -> None:
    if columns > MAX_COLUMNS:
        raise ValueError(f"{name}: got {columns} columns, needs {MAX_COLUMNS} at most")


# --- operators ------------------------------------------------------------------------------------------------------------


def _empty(rows: int, top_k: int, return_scores: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """New results; scores that are not wanted have no columns."""
    indices = torch.empty((rows, top_k), dtype=torch.int32, device=device)
    return indices, torch.empty((rows, top_k if return_scores else 0), dtype=torch.float32, device=device)


def _select_into(
    inputs: Inputs, indices: torch.Tensor, scores: torch.Tensor, num_keys: int | None, relative: bool, variant: str | None
) -> None:
    """Run the chosen variant, unless there is no row."""
    problem = Problem(inputs.logits.device, indices.shape[1])
    if len(indices) == 0:
        operation.select(problem, variant)  # a variant that cannot run is an error for empty calls too
        return
    wanted = scores if scores.shape[1] else None
    operation(problem, inputs, indices, wanted, variant=variant, num_keys=num_keys, relative=relative)


def _select_from_logits(
    inputs: Inputs, top_k: int, num_keys: int | None, relative: bool, return_scores: bool, variant: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::select_from_logits``."""
    indices, scores = _empty(inputs.logits.shape[0], top_k, return_scores, inputs.logits.device)
    _select_into(inputs, indices, scores, num_keys, relative, variant)
    return indices, scores


def _select_keys(
    inputs: dense.Inputs,
    top_k: int,
    logits_budget_bytes: int,
    max_window: int | None,
    relative: bool,
    return_scores: bool,
    variant: str | None,
    logits_variant: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::select_keys``."""
    q, compressed = inputs.q, max_window is not None
    rows, keys = q.shape[0], inputs.k.shape[0]
    columns = keys if max_window is None else max_window
    indices, scores = _empty(rows, top_k, return_scores, q.device)
    buffer = _logits_buffer(rows, 1, columns, top_k, logits_budget_bytes, q.device)
    for first in range(0, max(rows, 1), max(len(buffer), 1)):
        turn = slice(first, first + len(buffer))
        logits = buffer[: len(q[turn]), :columns]
        of_rows = {"q": q, "weights": inputs.weights, "starts": inputs.starts, "ends": inputs.ends}
        scored = inputs._replace(**{name: tensor[turn] for name, tensor in of_rows.items()})
        torch.ops.capgate.fp8_mqa_logits_out(*scored, logits, False, compressed, logits_variant)
        selected = Inputs(logits, scored.starts, scored.ends)
        _select_into(selected, indices[turn], scores[turn], keys if compressed else None, relative, variant)
    return indices, scores


def _select_paged_keys(
    inputs: paged.Inputs,
    max_context_len: int,
    top_k: int,
    logits_budget_bytes: int,
    return_scores: bool,
    variant: str | None,
    logits_variant: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operator ``capgate::select_paged_keys``."""
    q, cache, weights, lens, table, _ = inputs
    requests, next_n = q.shape[:2]
    columns = min(max_context_len, table.shape[1] * cache.shape[1] if len(cache) else 0)
    indices, scores = _empty(requests * next_n, top_k, return_scores, q.device)
    ends = _row_ends(lens, next_n)
    buffer = _logits_buffer(requests, next_n, columns, top_k, logits_budget_bytes, q.device)
    step = len(buffer) // next_n
    for first in range(0, max(requests, 1), max(step, 1)):
        batch, turn = slice(first, first + step), slice(first * next_n, (first + step) * next_n)
        logits = buffer[: len(ends[turn]), :columns]
        scored = paged.Inputs(q[batch], cache, weights[turn], lens[batch], table[batch])
        torch.ops.capgate.fp8_paged_mqa_logits_out(*scored, logits, False, logits_variant)
        _select_into(Inputs(logits, None, ends[turn]), indices[turn], scores[turn], None, False, variant)
    return indices, scores


def _row_ends(context_lens: torch.Tensor, next_n: int) -> torch.Tensor:
    """How many keys each row sees, int32 [B * next_n]; 0 or less for none."""
    if context_lens.ndim == 2 or next_n == 1:
        return context_lens.reshape(-1)
    back = torch.arange(1 - next_n, 1, dtype=torch.int32, device=context_lens.device)
    return (context_lens.clamp(min=0)[:, None] + back).flatten()


def _logits_buffer(groups: int, rows: int, columns: int, top_k: int, budget: int, device: torch.device) -> torch.Tensor:
    """A buffer for the logits of as many groups of ``rows`` rows as the budget has room for, of ``groups``; rows are padded."""
    target = compat.capabilities(device).target
    padded = -(-columns // ROW_ALIGNMENT) * ROW_ALIGNMENT
    group_bytes = rows * (4 * padded + scratch_bytes(target, columns, top_k))
    taken = rows_within(budget, group_bytes, groups)
    if taken == 0 < groups:
        what = "row" if rows == 1 else "request"
        raise ValueError(f"logits_budget_bytes: got {budget}, needs at least {group_bytes} for a {what} of {columns} keys")
    return torch.empty((taken * rows, padded), dtype=torch.float32, device=device)


_CHUNKS = "SymInt top_k, SymInt logits_budget_bytes"
_VARIANTS = "str? variant, str? logits_variant"
_RESULTS = "(Tensor, Tensor)"
register(
    "select_keys",
    dense.OPERANDS,
    f"{_CHUNKS}, SymInt? max_window, bool relative, bool return_scores, {_VARIANTS}",
    _RESULTS,
    _select_keys,
    lambda inputs, top_k, budget, max_window, relative, return_scores, *variants: _empty(
        inputs.q.shape[0], top_k, return_scores, inputs.q.device
    ),
)
register(
    "select_paged_keys",
    paged.OPERANDS,
    f"SymInt max_context_len, {_CHUNKS}, bool return_scores, {_VARIANTS}",
    _RESULTS,
    _select_paged_keys,
    lambda inputs, max_context_len, top_k, budget, return_scores, *variants: _empty(
        inputs.q.shape[0] * inputs.q.shape[1], top_k, return_scores, inputs.q.device
    ),
    left_out=("schedule",),
)
register(
    "select_from_logits",
    OPERANDS,
    "SymInt top_k, SymInt? num_keys, bool relative, bool return_scores, str? variant",
    _RESULTS,
    _select_from_logits,
    lambda inputs, top_k, num_keys, relative, return_scores, variant: _empty(
        inputs.logits.shape[0], top_k, return_scores, inputs.logits.device
    ),
)
