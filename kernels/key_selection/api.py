"""The public functions: checks, and dispatch through operators that torch.compile and graphs understand."""

from functools import partial
from typing import Any

import torch

from capgate import compat

from ..common.cache import check_blocks
from ..common.checks import check_flag, check_integer, check_variant
from ..fused_selection import operation as fusing
from ..mqa_logits.operation import operation as dense_operation
from ..paged_mqa_logits.operation import operation as paged_operation
from . import keeping
from .operands import DENSE, OPERANDS, PAGED, Dense, Inputs, Paged
from .operation import operation
from .operators import row_ends
from .repeats import Kept
from .results import Results, Selected, check_results, results_or_new

MAX_COLUMNS = 2**29  # so that the end of a block is 32 bits wide, and a grid's second dimension 16
LOGITS_BUDGET = 2**31  # bytes, as in ROCm's ATOM

REPEATS, PAGED_REPEATS, LOGITS_REPEATS = compat.Calls[Kept](), compat.Calls[Kept](), compat.Calls[Kept]()


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
    offsets: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    page_size: int = 1,
    requests: torch.Tensor | None = None,
    return_scores: bool = False,
    out: torch.Tensor | None = None,
    out_scores: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    variant: str | None = None,
    logits_variant: str | None = None,
    fused: bool | None = None,
    candidates: torch.Tensor | None = None,
    candidate_block: int = 8,
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
    weights : torch.Tensor, shape (S, H), float32 or bfloat16
        Weight of each head.
    starts, ends : torch.Tensor, shape (S,), int32
        Row i sees the keys from ``max(starts[i], 0)`` to ``min(ends[i], N)``.
    top_k : int
        How many keys to select for each row, 1 or more.
    logits_budget_bytes : int
        The most memory to hold at a time for logits, and for candidates between the launches of a selection from long rows.
        Query rows that do not fit are taken in turn, a multiple of 128 at a time or a power of two below it, into the same
        buffer. The operands, the result and what the logits' variant needs for itself (``classic`` and the Gluon variants:
        nothing) come on top. Where there are no more than ``top_k`` keys no logits are computed, unless scores are returned.
    max_window : int, optional
        No window is wider than this. Then a row of the buffer needs no more columns; keys past that many are left out.
    relative : bool
        Count indices from the first key of the row's window, ``max(starts[i], 0)``, and not from the first of ``k``.
    offsets : torch.Tensor, shape (S,), int32, optional
        Added to each index of the row.
    page_table : torch.Tensor, shape (R, P), int32, optional
        Return slots in place of indices: index x of row i, so counted, becomes
        ``page_table[r, x // page_size] * page_size + x % page_size``, where r is ``requests[i]`` or i. It is -1 where x is
        negative, where the table has no such row or page, and where its entry is negative. A row whose pages begin at entry e
        of the table has ``offsets[i] = e * page_size``.
    page_size : int
        How many adjacent keys an entry of ``page_table`` is for.
    requests : torch.Tensor, shape (S,), int32, optional
        The row of ``page_table`` that a row looks into.
    return_scores : bool
        Return the selected keys' logits too.
    out : torch.Tensor, shape (S, top_k), int32, optional
        Where to write the indices; rows of adjacent elements, any distance apart. A new one is allocated otherwise.
    out_scores : torch.Tensor, shape (S, top_k), float32, optional
        Where to write the logits, likewise; needs ``return_scores``.
    workspace : torch.Tensor, uint8 or float32, contiguous, optional
        Memory to work in, of any shape: it takes the place of the buffer of logits and of the candidates, and the budget is its
        size if that is less. With it and ``out`` the call allocates nothing that grows with its operands (the reference
        variants do).
    variant : str, optional
        Take this variant of the selection ("gluon_hopper", "classic", "reference") or raise.
    logits_variant : str, optional
        Take this variant of ``fp8_mqa_logits`` or raise.
    fused : bool, optional
        True scores and selects in one kernel, without a buffer of logits: its lists take memory by programs and ``top_k``,
        whatever S and N, and must fit the budget. ``variant`` is then one of the operation ``fp8_select_keys``. False takes two
        steps. None leaves it to that operation, which is asked where neither ``variant`` nor ``logits_variant`` is given, and
        takes it where it was measured to be faster whatever the order of logits: nowhere yet. Packed short requests look long
        without ``max_window``. The result is the same, index for index.
    candidates : torch.Tensor, shape (L, C), int32, optional
        Score and select only the keys of these blocks of each row's window, numbered from its first key as
        :func:`select_candidate_blocks` does, each block once; L as in :func:`sparse_mqa_logits`. Indices are in the order of
        the lists, of equal logits the one listed first goes, and keys with a logit of -inf are not selected. It takes no
        ``max_window``, ``offsets``, ``page_table``, ``requests``, ``workspace`` or ``fused``; ``logits_variant`` is one of
        ``sparse_mqa_logits``, and beside the logits there is memory for scores.
    candidate_block : int
        Keys in a block of ``candidates``: 8, 16, 32 or 64.

    Nothing is read back from the device, so that the call can be captured in a GPU graph. What is written shares no memory with
    what is read.

    Returns
    -------
    torch.Tensor, or a tuple of two
        Indices, shape (S, top_k), int32: each row's in ascending order (of keys, where they are slots), followed by -1 where
        the window has fewer keys. With ``return_scores`` also the logits, float32 of the same shape, -inf beside those -1.

        Selected are the keys of the largest logits, and of equal ones those with the lower index. NaN is larger than inf, and
        0 and -0 are equal. Results of repeated calls are bitwise equal.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or the budget or the workspace has no room for one row.
    capgate.compat.CapabilityError
        The variant that ``variant``, ``logits_variant`` or CAPGATE_VARIANT names cannot run here.
    """
    if candidates is not None:
        from .listed import check_alone, select_packed

        check_alone(max_window, offsets, page_table, requests, workspace, fused)
        results = (*_check_sizes(top_k, logits_budget_bytes), return_scores, out, out_scores, variant)
        listed = (q, k, k_scale, weights, starts, ends, candidates)
        return select_packed(listed, candidate_block, relative, logits_variant, *results)
    inputs = Dense(q, k, k_scale, weights, starts, ends, offsets, page_table, requests)
    arguments = (top_k, logits_budget_bytes, max_window, relative, page_size, return_scores, variant, logits_variant, fused)
    call = REPEATS.call((*inputs, out, out_scores, workspace), *arguments)
    if call is not None and (kept := REPEATS.find(call)) is not None:
        wanted = (q.shape[0], top_k, return_scores, q.device, out, out_scores, workspace)
        if (done := kept.launch(call.addresses, wanted, None)) is not None:
            return done
    DENSE.check(inputs, "the selection")
    top_k, logits_budget_bytes = _check_sizes(top_k, logits_budget_bytes)
    if max_window is None:
        _check_columns("k", k.shape[0])
    else:
        max_window = check_integer("max_window", max_window, 0)
        _check_columns("max_window", max_window)
    check_flag("relative", relative)
    page_size = _check_pages(q.shape[0], page_table, page_size, requests)
    check_variant("logits_variant", logits_variant, dense_operation)
    _check_way(fused, variant, logits_variant, fusing.dense)
    if k_scale.ndim == 2:
        inputs = inputs._replace(k_scale=k_scale[:, 0])
    options = (logits_budget_bytes, max_window, relative, page_size, variant, logits_variant, fused)
    into = (q.shape[0], top_k, return_scores, q.device, out, out_scores, workspace)
    found = _run(torch.ops.capgate.select_keys, torch.ops.capgate.select_keys_out, inputs, into, options)
    if call is not None:
        REPEATS.remember(call, partial(keeping.kept_keys, inputs, Results(out, out_scores, workspace), found, *options))
    return found.selected


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
    layout: str = "flat",
    offsets: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    page_size: int = 1,
    requests: torch.Tensor | None = None,
    return_scores: bool = False,
    out: torch.Tensor | None = None,
    out_scores: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    variant: str | None = None,
    logits_variant: str | None = None,
    fused: bool | None = None,
    candidates: torch.Tensor | None = None,
    candidate_block: int = 8,
) -> Selected:
    """As :func:`select_keys` for queries and keys of :func:`fp8_paged_mqa_logits`.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries, as in :func:`fp8_paged_mqa_logits`. next_n is 1 to 65535, H is 1 to 128, D is 32, 64 or 128.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        Keys and their scales, laid out as there. block is 1 or a multiple of 16 up to 256.
    weights : torch.Tensor, shape (B * next_n, H), float32 or bfloat16
        Weight of each head.
    context_lens : torch.Tensor, shape (B,) or (B, next_n), int32
        How many keys the last row of a request sees, or each row.
    block_table : torch.Tensor, shape (B, max_blocks), int32
        Each request's blocks in order.
    max_context_len : int
        Row t of request b sees as many keys as ``context_lens`` says, and no more than this or than the table has room for.
    top_k, logits_budget_bytes, variant : as in :func:`select_keys`; requests are taken in turn, not rows
    layout : str
        Of the keys in a block, "flat" or "preshuffled", as in :func:`fp8_paged_mqa_logits`.
    offsets : torch.Tensor, shape (B * next_n,), int32, optional
        Added to each index of the row.
    page_table : torch.Tensor, shape (R, P), int32, optional
        As in :func:`select_keys`; without ``requests`` the rows of request b look into row b.
    page_size : int
        How many adjacent keys an entry of ``page_table`` is for.
    requests : torch.Tensor, shape (B * next_n,), int32, optional
        The row of ``page_table`` that a row looks into.
    return_scores, out, out_scores, workspace : as in :func:`select_keys`, of B * next_n rows. With a ``context_lens`` of [B]
        and ``next_n`` above 1, four bytes a row are allocated all the same.
    logits_variant : str, optional
        Take this variant of ``fp8_paged_mqa_logits`` or raise.
    fused : bool, optional
        As in :func:`select_keys`; the operation is ``fp8_select_paged_keys``.
    candidates, candidate_block
        As in :func:`select_keys`; lists as in :func:`paged_sparse_mqa_logits`, whose variant ``logits_variant`` then is.

    Returns
    -------
    torch.Tensor, or a tuple of two
        As :func:`select_keys`, of shape (B * next_n, top_k); indices are positions in the request, if not slots.

    Raises
    ------
    TypeError, ValueError, capgate.compat.CapabilityError
        As :func:`select_keys`.
    """
    if candidates is not None:
        from .listed import check_alone, select_cached

        check_alone(None, offsets, page_table, requests, workspace, fused)
        results = (*_check_sizes(top_k, logits_budget_bytes), return_scores, out, out_scores, variant)
        listed = (q, kv_cache, weights, context_lens, block_table, candidates)
        return select_cached(listed, candidate_block, max_context_len, layout, logits_variant, *results)
    inputs = Paged(q, kv_cache, weights, context_lens, block_table, offsets, page_table, requests)
    arguments = (max_context_len, top_k, logits_budget_bytes, page_size, return_scores, layout, variant, logits_variant, fused)
    call = PAGED_REPEATS.call((*inputs, out, out_scores, workspace), *arguments)
    if call is not None and (kept := PAGED_REPEATS.find(call)) is not None:
        wanted = (q.shape[0] * q.shape[1], top_k, return_scores, q.device, out, out_scores, workspace)
        if (done := kept.launch(call.addresses, wanted, row_ends(context_lens, q.shape[1]))) is not None:
            return done
    PAGED.check(inputs, "the selection")
    check_blocks(kv_cache, layout)
    top_k, logits_budget_bytes = _check_sizes(top_k, logits_budget_bytes)
    max_context_len = check_integer("max_context_len", max_context_len, 0)
    _check_columns("max_context_len", max_context_len)
    page_size = _check_pages(q.shape[0], page_table, page_size, requests)
    check_variant("logits_variant", logits_variant, paged_operation)
    _check_way(fused, variant, logits_variant, fusing.paged)
    options = (max_context_len, logits_budget_bytes, page_size, variant, logits_variant, layout, fused)
    into = (q.shape[0] * q.shape[1], top_k, return_scores, q.device, out, out_scores, workspace)
    found = _run(torch.ops.capgate.select_paged_keys, torch.ops.capgate.select_paged_keys_out, inputs, into, options)
    if call is not None:
        given = Results(out, out_scores, workspace)
        PAGED_REPEATS.remember(call, partial(keeping.kept_paged_keys, inputs, given, found, *options))
    return found.selected


def select_from_logits(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    *,
    top_k: int,
    num_keys: int | None = None,
    relative: bool = False,
    offsets: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    page_size: int = 1,
    requests: torch.Tensor | None = None,
    return_scores: bool = False,
    out: torch.Tensor | None = None,
    out_scores: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    variant: str | None = None,
) -> Selected:
    """Return the keys of each row's largest logits: the second half of :func:`select_keys`.

    Parameters
    ----------
    logits : torch.Tensor, shape (S, N), float32 or bfloat16
        Only cells inside the windows are looked at, and of a row with no more than ``top_k`` keys none that matters to its
        indices. Any strides; rows of adjacent elements that begin on 64-byte boundaries are read fastest.
    starts : torch.Tensor, shape (S,), int32, or None
        The first key that a row sees; None is 0 for every row.
    ends : torch.Tensor, shape (S,), int32
        One more than the last key that a row sees. Windows that are empty, inverted or reach past the keys are fine.
    top_k, relative, return_scores, out, out_scores, variant : as in :func:`select_keys`
    offsets : torch.Tensor, shape (S,), int32, optional
        Added to each index of the row.
    page_table : torch.Tensor, shape (R, P), int32, optional
        Return slots in place of indices, as in :func:`select_keys`.
    page_size : int
        How many adjacent keys an entry of ``page_table`` is for.
    requests : torch.Tensor, shape (S,), int32, optional
        The row of ``page_table`` that a row looks into.
    workspace : torch.Tensor, uint8 or float32, contiguous, optional
        Memory for the candidates of rows that are longer than what a program holds (16384 logits); the error for too little
        says how much that is.
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
    inputs = Inputs(logits, starts, ends, offsets, page_table, requests)
    arguments = (top_k, num_keys, relative, page_size, return_scores, variant)
    call = LOGITS_REPEATS.call((*inputs, out, out_scores, workspace), *arguments)
    if call is not None and (kept := LOGITS_REPEATS.find(call)) is not None:
        wanted = (logits.shape[0], top_k, return_scores, logits.device, out, out_scores, workspace)
        if (done := kept.launch(call.addresses, wanted, None)) is not None:
            return done
    OPERANDS.check(inputs, "the selection")
    _check_columns("logits", logits.shape[1])
    top_k = check_integer("top_k", top_k, 1)
    check_flag("relative", relative)
    page_size = _check_pages(logits.shape[0], page_table, page_size, requests)
    check_variant("variant", variant, operation)
    if num_keys is not None:
        num_keys = check_integer("num_keys", num_keys, 0, 2**31 - 1)
        if starts is None:
            raise ValueError("num_keys: needs starts, which say what key a row's first column means")
    into = (logits.shape[0], top_k, return_scores, logits.device, out, out_scores, workspace)
    options = (num_keys, relative, page_size, variant)
    found = _run(torch.ops.capgate.select_from_logits, torch.ops.capgate.select_from_logits_out, inputs, into, options)
    if call is not None:
        given = Results(out, out_scores, workspace)
        LOGITS_REPEATS.remember(call, partial(keeping.kept_from_logits, inputs, given, found, *options))
    return found.selected


def _run(new: Any, written: Any, inputs: Any, into: tuple[Any, ...], options: tuple[Any, ...]) -> Results:
    """Call the operator that makes its results, or the one that writes what the caller gives."""
    _, top_k, return_scores, _, *given = into
    check_flag("return_scores", return_scores)
    check_results(*into)
    if all(memory is None for memory in given):
        indices, scores = new(*inputs, top_k, return_scores, *options)
        return Results(indices, scores if return_scores else None)
    results = results_or_new(*into)
    written(*inputs, *results, *options)
    return results


# --- checks ---------------------------------------------------------------------------------------------------------------


def _check_sizes(top_k: int, logits_budget_bytes: int) -> tuple[int, int]:
    return check_integer("top_k", top_k, 1), check_integer("logits_budget_bytes", logits_budget_bytes, 0)


def _check_way(fused: bool | None, variant: str | None, logits_variant: str | None, fusing: compat.Operation[Any]) -> None:
    """Raise TypeError or ValueError for what is no way to go, and for variants of the other one."""
    if fused is not None:
        check_flag("fused", fused)
    check_variant("variant", variant, fusing if fused else operation)
    if fused and logits_variant is not None:
        raise ValueError(f"logits_variant: got {logits_variant!r} with fused=True, needs None: no logits are computed apart")


def _check_columns(name: str, columns: int) -> None:
    if columns > MAX_COLUMNS:
        raise ValueError(f"{name}: got {columns} columns, needs {MAX_COLUMNS} at most")


def _check_pages(rows: int, page_table: torch.Tensor | None, page_size: int, requests: torch.Tensor | None) -> int:
    """The page size; ``rows`` is how many of the table are looked into where no requests are given."""
    page_size = check_integer("page_size", page_size, 1, 2**30)
    if page_table is None:
        if requests is not None:
            raise ValueError("requests: needs a page_table, of which they are rows")
        if page_size != 1:
            raise ValueError(f"page_size: got {page_size}, needs a page_table")
    elif requests is None and page_table.shape[0] < rows:
        raise ValueError(f"page_table: got shape {tuple(page_table.shape)}, needs {rows} rows or requests")
    return page_size
