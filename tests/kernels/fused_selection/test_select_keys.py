"""select_keys and select_paged_keys in the fused way: what two steps return, and when they take it."""

from typing import Any

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from capgate import compat
from capgate.kernels import fp8_mqa_logits, select_keys, select_paged_keys
from capgate.kernels.fused_selection import reference
from capgate.kernels.fused_selection.operation import dense
from support import fused_selection as fused
from support import judge, paged, selection

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
TUNE = fused.tuned(2, block_keys=64, rows=8, block_entries=128)  # tiles as the logits' kernels have them


def fused_and_two_steps(function: Any, call: Any, **options: Any) -> None:
    """Both return the same, bit for bit, and so does a second call and one in memory that is lent."""
    options = {"return_scores": True, "variant": "classic"} | options
    two, two_scores = function(*call, **options, logits_variant="classic")
    with fused.tables(TUNE):
        workspace = torch.full((2**19,), 0xFF, dtype=torch.uint8)
        one, one_scores = function(*call, **options, fused=True, workspace=workspace)
    assert torch.equal(one, two)
    assert selection.same(one_scores, two_scores)


def test_scores_of_all_heads(interpreter: None) -> None:
    fused_and_two_steps(select_keys, judge.make_call(5, 150, 5, 32, "ragged"), top_k=10)


def test_scores_of_cached_keys(interpreter: None) -> None:
    fused_and_two_steps(select_paged_keys, paged.make_call([150, 0, 9], 1, 5, 32), top_k=10, max_context_len=140)


@pytest.mark.one_lane
@settings(max_examples=4, phases=[Phase.explicit, Phase.generate], derandomize=True, database=None, deadline=None)
@example(kind="extreme", rows=6, keys=130, top_k=1, relative=False, narrow=False)
@given(
    kind=st.sampled_from(["ragged", "packed", "causal", "extreme"]),
    rows=st.integers(1, 6),
    keys=st.integers(1, 200),
    top_k=st.integers(1, 32),
    relative=st.booleans(),
    narrow=st.booleans(),
)
def test_any_windows(interpreter: None, kind: str, rows: int, keys: int, top_k: int, relative: bool, narrow: bool) -> None:
    call = judge.make_call(rows, keys, 3, 32, kind, seed=keys)
    window = keys // 2 + 1 if narrow else None
    logits = fp8_mqa_logits(*call, clean_logits=False, variant="classic")
    ends = call.ends if window is None else torch.minimum(call.ends.long(), call.starts.long() + window)
    right, right_scores = selection.expected(logits, call.starts, ends, top_k, None, relative)
    with fused.tables(TUNE):
        found, scores = select_keys(
            *call, top_k=top_k, relative=relative, max_window=window, return_scores=True, variant="classic", fused=True
        )
    assert torch.equal(found, right)
    assert selection.same(scores, right_scores)


def test_the_switch_takes_it(interpreter: None) -> None:
    """Named, it takes every problem that it can: also where the rule says two steps, and without a word in the call."""
    call, ran = judge.make_call(3, 70, 3, 32, "full"), []
    two = select_keys(*call, top_k=9, variant="classic", logits_variant="classic")
    with pytest.MonkeyPatch.context() as patch, compat.override(variant="fp8_select_keys=classic"), fused.tables(TUNE):
        kernel: Any = dense.load(dense.variants["classic"])
        prepare = kernel._prepare
        patch.setattr(kernel, "_prepare", lambda *given, **options: ran.append(1) or prepare(*given, **options))
        assert torch.equal(select_keys(*call, top_k=9), two)
    assert ran


@pytest.mark.one_lane
def test_the_reference_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows or requests at a time, whose page tables begin at theirs; the last turn has one."""
    generator = torch.Generator().manual_seed(3)
    packed, cached = judge.make_call(5, 60, 3, 32, "ragged"), paged.make_call([50, 0, 9, 64, 31], 2, 3, 32)
    pages = torch.randint(0, 99, (5, 8), generator=generator, dtype=torch.int32)
    calls = [
        (select_keys, packed, {"offsets": torch.arange(5, dtype=torch.int32)}),
        (select_keys, packed, {"page_table": pages, "page_size": 8, "max_window": 40}),
        (select_paged_keys, cached, {"page_table": pages, "page_size": 8, "max_context_len": 60}),
        (select_paged_keys, cached, {"max_context_len": 60}),
    ]
    for function, call, options in calls:
        options |= {"top_k": 10, "return_scores": True, "variant": "reference"}
        two, two_scores = function(*call, **options, logits_variant="reference")
        rows = 2 * len(two) // 5  # two rows, or those of two requests
        monkeypatch.setattr(reference, "LOGITS_BYTES", 4 * rows * options.get("max_window", 60))
        one, one_scores = function(*call, **options, fused=True)
        assert torch.equal(one, two)
        assert selection.same(one_scores, two_scores)
