"""Rows with no more keys than are selected: listed, whatever their logits are, and where shapes say so without any."""

from typing import Any

import pytest
import torch

from capgate.kernels import select_from_logits, select_keys, select_paged_keys
from support import judge, paged, selection

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The logits operators that were called."""
    calls: list[str] = []
    for name in ("fp8_mqa_logits_out", "fp8_paged_mqa_logits_out"):
        operator = getattr(torch.ops.capgate, name)

        def call(*arguments: Any, name: str = name, operator: Any = operator, **keywords: Any) -> None:
            calls.append(name)
            operator(*arguments, **keywords)

        monkeypatch.setattr(torch.ops.capgate, name, call)
    return calls


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_of_short_rows_do_not_matter(variant: str, value: float) -> None:
    starts, ends = torch.tensor([5, 0, 60, 9], dtype=torch.int32), torch.tensor([14, 100, 200, 3], dtype=torch.int32)
    logits = selection.make_logits("normal", 4, 100)
    expected = select_from_logits(logits, starts, ends, top_k=40, variant=variant)
    logits[torch.tensor([0, 2, 3])] = value
    assert torch.equal(select_from_logits(logits, starts, ends, top_k=40, variant=variant), expected)
    assert expected[0].tolist() == [*range(5, 14), *[-1] * 31]
    assert expected[2].tolist() == [*range(60, 100)]
    assert expected[3].tolist() == [-1] * 40


@pytest.mark.parametrize("max_window", [None, 30], ids=["whole", "compressed"])
def test_no_logits_are_computed_where_all_keys_are_selected(variant: str, scored: list[str], max_window: int | None) -> None:
    call = judge.make_call(5, 40, 16, 32, "ragged")
    poisoned = call._replace(weights=torch.full_like(call.weights, float("nan")))
    limits = {"max_window": max_window, "logits_budget_bytes": 1}  # a budget for logits is none
    indices = select_keys(*poisoned, top_k=40, variant=variant, **limits)
    assert not scored
    first = call.starts.clamp(min=0).tolist()
    for row, (low, high, start) in enumerate(zip(first, call.ends.tolist(), call.starts.tolist(), strict=True)):
        keys = [*range(low, min(high, 40, start + max_window if max_window else 40))]
        assert indices[row].tolist() == [*keys, *[-1] * (40 - len(keys))]


def test_no_logits_of_cached_keys_are_computed_where_all_are_selected(variant: str, scored: list[str]) -> None:
    call = paged.make_call([20, 0, 5], 2)
    indices = select_paged_keys(*call, max_context_len=20, top_k=20, variant=variant)
    assert not scored
    for row, seen in enumerate(call.seen.clamp(0).flatten().tolist()):
        assert indices[row].tolist() == [*range(seen), *[-1] * (20 - seen)]


@pytest.mark.any_triton
def test_logits_are_computed_where_they_are_asked_for_or_keys_may_be_too_many(scored: list[str]) -> None:
    call, cached = judge.make_call(5, 40, 16, 32), paged.make_call([20, 0, 5], 2)
    _, scores = select_keys(*call, top_k=40, return_scores=True)
    assert scores.isfinite().any()
    select_keys(*call, top_k=39)
    select_paged_keys(*cached, max_context_len=20, top_k=20, return_scores=True)
    select_paged_keys(*cached, max_context_len=21, top_k=20)
    assert scored == ["fp8_mqa_logits_out"] * 2 + ["fp8_paged_mqa_logits_out"] * 2
