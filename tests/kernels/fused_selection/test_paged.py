"""The fused selection from a paged cache: requests of a worker alone, and requests that workers share."""

from typing import Any

import pytest
import torch

from support import fused_selection as fused
from support import paged, selection

pytestmark = [
    pytest.mark.one_lane,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning"),
]
TOP_K = 12
WIDE = fused.tuned(block_keys=64, block_entries=128, rows=2)  # tiles of which a request has few


def random(keys: int, seed: int, highest: int = 256) -> torch.Tensor:
    return torch.randint(0, highest, (keys,), generator=torch.Generator().manual_seed(seed))


def agrees(call: paged.PagedCall, numbers: list[torch.Tensor], columns: int, top_k: int = TOP_K, **options: Any) -> list[int]:
    """Hold a call against sorted integers; returns its counts."""
    next_n = call.q.shape[1]
    indices, scores, counts = fused.run_paged(call, top_k, max_context_len=columns, **options)
    logits = torch.stack([torch.nn.functional.pad(number, (0, columns))[:columns] for number in numbers]).float()
    logits = logits.repeat_interleave(next_n, 0)
    block, blocks = call.kv_cache.shape[1], call.kv_cache.shape[0]
    entry = call.block_table[:, (torch.arange(columns) // block).clamp(max=call.block_table.shape[1] - 1)]
    absent = ((entry < 0) | (entry >= blocks)).repeat_interleave(next_n, 0)
    logits = torch.where(absent, float("-inf"), logits)
    ends = call.seen.clamp(-9, columns).flatten().int()
    right, right_scores = selection.expected(logits, None, ends, top_k)
    placed = {name: options.get(name) for name in ("offsets", "page_table")}
    requests = torch.arange(len(indices), dtype=torch.int32) // next_n
    assert torch.equal(indices, selection.placed(right, **placed, page_size=options.get("page_size", 1), requests=requests))
    assert selection.same(scores, right_scores)
    return counts


@pytest.mark.parametrize(
    ("lens", "next_n", "workers"),
    [
        ([300, 0, 5, 700], 1, 5),
        ([900], 1, 7),
        ([0, 1, 260, 3, 0], 2, 3),
        ([[0, 200], [130, 0], [140, 400]], 2, 4),
        ([-(2**31), 0], 2, 3),
    ],
    ids=["shared", "one-long", "drafts", "row-lengths", "empty"],
)
def test_requests_and_workers(interpreter: None, lens: Any, next_n: int, workers: int) -> None:
    """Of each row a result, whoever has its keys: a worker, several, or none; equal logits lie in every share."""
    numbers = [random(max(1, int(torch.tensor(each).max())), seed, 6) for seed, each in enumerate(lens)]
    call = fused.make_paged_call(numbers, lens, next_n)
    with fused.tables(WIDE._replace(resident=workers)):
        agrees(call, numbers, 800)


def test_what_workers_leave_is_merged_in_several_steps(interpreter: None) -> None:
    """Seven workers leave 168 entries, where a list has room for 128; some of their own lists are selected from, too."""
    numbers = [torch.arange(890) // 8 % 256]
    call = fused.make_paged_call(numbers, [890], 1)
    with fused.tables(fused.tuned(7, block_keys=64, rows=1, block_entries=128)):
        refreshed, _, _ = agrees(call, numbers, 1000, top_k=24)
    assert refreshed > 4


def test_drafts_that_fill_several_groups(interpreter: None) -> None:
    """Five rows of a request, two at a time, and a row that sees nothing."""
    numbers = [random(140, 0), random(20, 1)]
    call = fused.make_paged_call(numbers, [140, 3], 5)
    with fused.tables(WIDE._replace(resident=6)):
        agrees(call, numbers, 140)


def test_missing_blocks_and_a_page_table(interpreter: None) -> None:
    """Keys of blocks that the cache lacks score as -inf; indices become slots of the request's row of a table."""
    numbers = [random(200, 0), random(90, 1)]
    call = paged.without_blocks(fused.make_paged_call(numbers, [200, 90], 1, 16))
    table = torch.randperm(40, generator=torch.Generator().manual_seed(0)).view(2, 20).int()
    offsets = torch.tensor([0, 16], dtype=torch.int32)
    with fused.tables(WIDE._replace(resident=2)):
        agrees(call, numbers, 220, offsets=offsets, page_table=table, page_size=16)
