"""Selections among the keys of listed blocks are those of two steps, and read no other key."""

from typing import Any

import pytest
import torch

from capgate.kernels import (
    apply_candidate_mask,
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    select_candidate_blocks,
    select_from_logits,
    select_keys,
    select_paged_keys,
)
from support import sparse

pytestmark = pytest.mark.any_triton
TOP_K = 20


def by_masking(logits: torch.Tensor, starts: Any, ends: torch.Tensor, blocks: torch.Tensor, block: int) -> torch.Tensor:
    """Keys of the largest logits of all, with those of other blocks masked, from the window's first key on; -1 for those."""
    masked = apply_candidate_mask(logits.clone(), starts, ends, blocks, candidate_block=block)
    keys, scores = select_from_logits(masked, starts, ends, top_k=TOP_K, relative=True, return_scores=True)
    return keys.masked_fill(scores.isneginf(), -1).sort().values


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("budget", [2**20, 2 * 4 * 96], ids=["at once", "in turn"])
def test_packed_keys(block: int, budget: int) -> None:
    windows = [(0, 200), (17, 150), (40, 40), (-9, 30), (100, 900)]
    call = sparse.make_call(windows, 5, 200, 96 // block, block)
    whole = fp8_mqa_logits(*call[:6], clean_logits=True)
    blocks = select_candidate_blocks(whole, call.starts, call.ends, top_blocks=96 // block, candidate_block=block)
    expected = by_masking(whole, call.starts, call.ends, blocks, block)
    call = sparse.poisoned(call._replace(candidates=blocks), block)
    options: dict[str, Any] = {"candidates": blocks, "candidate_block": block, "logits_budget_bytes": budget}
    keys, scores = select_keys(*call[:6], top_k=TOP_K, relative=True, return_scores=True, **options)
    assert torch.equal(keys.sort().values, expected)
    assert (keys >= 0).any(1).tolist() == [True, True, False, True, True]
    assert torch.equal(scores.isneginf(), keys == -1)
    first = call.starts.clamp(min=0)[:, None]
    of_all = whole.gather(1, (keys.clamp(min=0) + first).long().clamp(max=199))  # whose products are summed in another order
    assert torch.allclose(scores[keys >= 0], of_all[keys >= 0], rtol=1e-5, atol=1e-5)
    out = torch.empty(5, TOP_K, dtype=torch.int32)
    assert select_keys(*call[:6], top_k=TOP_K, out=out, **options) is out
    assert torch.equal(out, torch.where(keys < 0, keys, keys + first))


@pytest.mark.parametrize("shared", [False, True], ids=["of rows", "of requests"])
def test_cached_keys(shared: bool) -> None:
    call = sparse.make_paged_call([[190, 200], [0, 77], [29, 30]], 6, 8, 2)
    lens = call.context_lens.flatten()
    whole = fp8_paged_mqa_logits(*call[:5], max_context_len=180, clean_logits=True)
    ends = lens.clamp(max=180)
    blocks = select_candidate_blocks(whole, None, ends, top_blocks=6)
    if shared:
        blocks = blocks[1::2].contiguous()
    expected = by_masking(whole, None, ends, blocks, 8)
    for budget in (2**20, 2 * 4 * 48):
        options: dict[str, Any] = {"candidates": blocks, "logits_budget_bytes": budget}
        keys = select_paged_keys(*call[:5], max_context_len=180, top_k=TOP_K, **options)
        assert torch.equal(keys.sort().values, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_window": 5}, "max_window: got int with candidates, needs None"),
        ({"offsets": torch.zeros(2, dtype=torch.int32)}, "offsets: got Tensor with candidates, needs None"),
        ({"fused": True}, "fused: got bool with candidates, needs None"),
        ({"candidate_block": 12}, "candidate_block: got 12, needs 8, 16, 32 or 64"),
        ({"candidates": torch.zeros(3, 4, dtype=torch.int32)}, r"candidates: got shape \(3, 4\), needs a first size that"),
        ({"logits_budget_bytes": 100}, "logits_budget_bytes: got 100, needs the 128 that rows with one list take"),
        ({"out": torch.zeros(2, 3, dtype=torch.int32)}, r"out: got shape \(2, 3\), needs \[2, 4\]"),
        ({"logits_variant": "gluon_cdna3"}, "logits_variant: sparse_mqa_logits has no variant"),
    ],
)
def test_what_does_not_go_with_candidates(options: dict[str, Any], words: str) -> None:
    call = sparse.make_call("full", 2, 50, 4)
    good: dict[str, Any] = {"top_k": 4, "candidates": call.candidates}
    assert select_keys(*call[:6], **good).shape == (2, 4)
    with pytest.raises(ValueError, match=words):
        select_keys(*call[:6], **good | options)


def test_nothing_to_select_from() -> None:
    call = sparse.make_call("full", 2, 50, 4)
    assert (select_keys(*call[:6], top_k=4, candidates=call.candidates[:, :0]) == -1).all()
    none = sparse.make_call("full", 0, 50, 4)
    assert select_keys(*none[:6], top_k=4, candidates=none.candidates).shape == (0, 4)
