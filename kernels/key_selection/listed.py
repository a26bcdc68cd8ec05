"""Selection among the keys of listed blocks, the second level of DeepSeek-V4.1's indexer: only those keys are scored.

The logits' columns are the listed blocks one behind the other, and the lists the page table that turns columns into keys.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..common.checks import check_among, check_flag, check_integer, check_shared, check_variant
from ..sparse_logits import operands as sparse
from ..sparse_logits.api import paged_sparse_mqa_logits, sparse_mqa_logits
from ..sparse_logits.operation import CANDIDATE_BLOCKS
from ..sparse_logits.operation import dense as dense_operation
from ..sparse_logits.operation import paged as paged_operation
from .api import select_from_logits
from .operators import row_ends
from .results import Selected, check_results

Score = Callable[[slice], torch.Tensor]  # clean logits of the rows of some lists, or of some requests


def check_alone(*options: Any) -> None:
    """Raise ValueError for what does not go with candidates, in the order of these names."""
    names = ("max_window", "offsets", "page_table", "requests", "workspace", "fused")
    for name, value in zip(names, options, strict=True):
        if value is not None:
            raise ValueError(f"{name}: got {type(value).__name__} with candidates, needs None")


def select_packed(
    operands: tuple[torch.Tensor, ...], candidate_block: int, relative: bool, logits_variant: str | None, *results: Any
) -> Selected:
    """:func:`.api.select_keys` with candidates.

    results : top_k and what follows it in :func:`_select`
    """
    inputs = sparse.Dense(*operands)
    sparse.DENSE.check(inputs, "the selection")
    check_flag("relative", relative)
    check_variant("logits_variant", logits_variant, dense_operation)
    rows, lists = len(inputs.q), len(inputs.candidates)
    check_shared("candidates", inputs.candidates, rows)
    each = rows // max(1, lists)

    def score(some: slice) -> torch.Tensor:
        mine = slice(some.start * each, some.stop * each)
        q, k, k_scale, weights, starts, ends, candidates, _ = inputs
        operands = (q[mine], k, k_scale, weights[mine], starts[mine], ends[mine], candidates[some])
        return sparse_mqa_logits(
            *operands, candidate_block=candidate_block, relative=True, clean_logits=True, variant=logits_variant
        )

    begins = None if relative else inputs.starts.clamp(min=0)
    return _select(score, lists, rows, inputs.candidates, candidate_block, begins, *results)


def select_cached(
    operands: tuple[torch.Tensor, ...],
    candidate_block: int,
    max_context_len: int,
    layout: str,
    logits_variant: str | None,
    *results: Any,
) -> Selected:
    """:func:`.api.select_paged_keys` with candidates."""
    inputs = sparse.Paged(*operands)
    sparse.PAGED.check(inputs, "the selection")
    check_variant("logits_variant", logits_variant, paged_operation)
    max_context_len = check_integer("max_context_len", max_context_len, 0)
    (requests, next_n), candidates = inputs.q.shape[:2], inputs.candidates
    if len(candidates) not in (requests, requests * next_n):
        raise ValueError(
            f"candidates: got {len(candidates)} lists, needs {requests * next_n}, one for each row, or {requests} of requests"
        )
    lens = row_ends(inputs.context_lens, next_n).view(requests, next_n).clamp(max=max_context_len)
    lists = len(candidates) // max(1, requests)

    def score(some: slice) -> torch.Tensor:
        q, kv_cache, weights, _, table, _, _ = inputs
        rows, listed = slice(some.start * next_n, some.stop * next_n), slice(some.start * lists, some.stop * lists)
        operands = (q[some], kv_cache, weights[rows], lens[some], table[some], candidates[listed])
        return paged_sparse_mqa_logits(
            *operands, candidate_block=candidate_block, layout=layout, clean_logits=True, variant=logits_variant
        )

    return _select(score, requests, requests * next_n, candidates, candidate_block, None, *results)


def _select(
    score: Score,
    units: int,
    rows: int,
    candidates: torch.Tensor,
    candidate_block: int,
    begins: torch.Tensor | None,
    top_k: int,
    logits_budget_bytes: int,
    return_scores: bool,
    out: torch.Tensor | None,
    out_scores: torch.Tensor | None,
    variant: str | None,
) -> Selected:
    """The keys of the largest logits; those of ``units`` are scored at a time, as many as the budget has room for.

    begins : what positions in a row's window are counted from, [rows]; None for 0
    """
    candidate_block = check_among("candidate_block", candidate_block, CANDIDATE_BLOCKS)
    check_results(rows, top_k, return_scores, candidates.device, out, out_scores, None)
    indices = candidates.new_empty((rows, top_k)) if out is None else out
    scores = candidates.new_empty((rows, top_k), dtype=torch.float32) if out_scores is None else out_scores
    each, lists, width = rows // max(1, units), len(candidates) // max(1, units), candidates.shape[1] * candidate_block
    if logits_budget_bytes < 4 * each * width:
        needed = f"the {4 * each * width} that rows with one list take, or those of a request"
        raise ValueError(f"logits_budget_bytes: got {logits_budget_bytes}, needs {needed}")
    turn = units if width == 0 else min(units, logits_budget_bytes // (4 * each * width)) if each else units
    ends = candidates.new_full((turn * each,), width)
    owners = torch.arange(turn * each, dtype=torch.int32, device=candidates.device) // max(1, each // max(1, lists))
    for first in range(0, units, max(1, turn)):
        last = min(first + turn, units)
        mine, count = slice(first * each, last * each), (last - first) * each
        select_from_logits(
            score(slice(first, last)),
            None,
            ends[:count],
            top_k=top_k,
            page_table=candidates[first * lists : last * lists],
            page_size=candidate_block,
            requests=owners[:count],
            return_scores=True,
            out=indices[mine],
            out_scores=scores[mine],
            variant=variant,
        )
    if begins is not None:
        indices += begins[:, None]
    indices.masked_fill_(scores == float("-inf"), -1)  # of blocks that a row has not, and of what lies past its last key
    return (indices, scores) if return_scores else indices
