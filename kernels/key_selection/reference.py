"""The selection in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from .operands import Inputs

CELLS = 2**20  # logits of the rows that are looked at together; they need about 40 bytes each
NAN, OUTSIDE = 2**31 - 1, -(2**31)  # in the order of integers


def launch(
    inputs: Inputs,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    num_keys: int | None,
    relative: bool,
    page_size: int = 1,
    rows_per_request: int = 1,
    scratch: torch.Tensor | None = None,
) -> None:
    """Fill ``indices`` and ``scores`` as :func:`capgate.kernels.select_from_logits` says; the arguments have been checked.

    torch.topk does not say which of several equal logits it takes, so that only its smallest value is used: all that are
    larger are selected, and of those that equal it the first ones. It looks at integers in the order of the logits, because
    on an H100 with torch 2.11 its smallest of floats with NaN among them was too large. Nothing is read back from the device.

    rows_per_request : how many rows look into one row of the page table, where no ``requests`` are given
    scratch : not used
    """
    logits, starts, ends, offsets, page_table, requests = inputs
    rows, columns = logits.shape
    row_tile = max(1, CELLS // max(columns, 1))
    for row in range(0, rows, row_tile):
        block = slice(row, row + row_tile)
        first = torch.zeros_like(ends[block]) if starts is None else starts[block]
        found = indices[block]
        _select(
            logits[block],
            first[:, None].long(),
            ends[block, None].long(),
            None if offsets is None else offsets[block, None],
            found,
            None if scores is None else scores[block],
            num_keys,
            relative,
        )
        if page_table is not None:
            if requests is None:
                request = torch.arange(row, row + len(found), device=logits.device) // rows_per_request
            else:
                request = requests[block].long()
            found.copy_(slots_of(found, page_table, request, page_size))


def slots_of(positions: torch.Tensor, page_table: torch.Tensor, request: torch.Tensor, page_size: int) -> torch.Tensor:
    """``page_table[request, p // page_size] * page_size + p % page_size`` of every position p of a row; -1 for a position below
    0, and where the table has no such page or request.

    positions : [S, top_k], int32
    request : [S], int64
    """
    requests, pages = page_table.shape
    if page_table.numel() == 0:
        return torch.full_like(positions, -1)
    page = positions.long() // page_size
    known = (page >= 0) & (page < pages) & ((request >= 0) & (request < requests))[:, None]
    number = page_table[request.clamp(0, requests - 1)[:, None], page.clamp(0, pages - 1)]
    return torch.where(known & (number >= 0), number * page_size + positions % page_size, -1)


def _select(
    logits: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    offset: torch.Tensor | None,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    num_keys: int | None,
    relative: bool,
) -> None:
    (rows, columns), top_k = logits.shape, indices.shape[1]
    column = torch.arange(columns, device=logits.device)
    key = column if num_keys is None else column + start
    begin = start.clamp(min=0)
    inside = (key >= begin) & (key < end.clamp(max=columns if num_keys is None else num_keys))
    if columns <= top_k:
        selected = inside
    else:
        order = torch.where(inside, _order(logits), OUTSIDE)
        threshold = order.topk(top_k).values[:, -1:]
        larger = order > threshold
        equal = (order == threshold) & inside
        spare = top_k - larger.sum(1, keepdim=True)
        selected = larger | (equal & (equal.cumsum(1) <= spare))
    position = torch.where(selected, selected.cumsum(1) - 1, top_k)  # column top_k takes what is not selected
    wanted = torch.full((rows, top_k + 1), -1, dtype=torch.int64, device=logits.device)
    index = key - begin if relative else key
    if offset is not None:
        index = index + offset
    wanted.scatter_(1, position, index.expand(rows, columns))
    indices.copy_(wanted[:, :top_k])
    if scores is not None:
        found = torch.full((rows, top_k + 1), float("-inf"), device=logits.device)
        scores.copy_(found.scatter_(1, position, logits.float())[:, :top_k])


def _order(logits: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the logits, int32: 0 and -0 are equal, and NaN is larger than inf."""
    bits = logits.float().view(torch.int32)
    return torch.where(logits.isnan(), NAN, torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits))
