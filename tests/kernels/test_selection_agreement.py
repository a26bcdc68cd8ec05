"""Every branch of the selection against sorted integers: windows, equal and unordered logits, layouts, rows that are cut."""

from types import ModuleType
from typing import Any

import pytest
import torch

from capgate.kernels import select_from_logits
from capgate.kernels.key_selection import plan
from capgate.kernels.key_selection.plan import Tuning

# Triton's interpreter computes with numpy, which warns of what a GPU does not: infinities that meet, and overflow to them.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

WINDOWS = ["full", "causal", "suffix", "packed", "ragged", "extreme", "empty"]
KINDS = ["normal", "skewed", "equal", "few-values", "zeros", "nans", "all-nan", "infinities", "wide", "tiny", "outlier"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "whole-vectors": {"gap": 13},
    "padded-rows": {"gap": 7, "offset": 9},
    "columns-first": {"order": (1, 0), "gap": 3, "offset": 1},
    "every-third-column": {"step": 3, "offset": 2},
}


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program selects from 512 logits at most, so that short rows are cut as well."""
    monkeypatch.setitem(plan.TUNINGS, "", Tuning(512, 2048, 16))


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize(("columns", "top_k"), [(1, 1), (1, 3), (37, 1), (37, 8), (500, 64), (1100, 300), (700, 900)], ids=str)
def test_windows(selection: ModuleType, branch: str, kind: str, columns: int, top_k: int) -> None:
    starts, ends = selection.judge.make_windows(kind, 5, columns)
    logits = selection.make_logits("normal", 5, columns)
    selection.check(logits, starts, ends, top_k, branch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 20, 130, 299])
def test_equal_unordered_and_distant_logits(selection: ModuleType, branch: str, kind: str, top_k: int) -> None:
    """Of equal ones those with the lower index; NaN above inf, whatever its sign; -0 and 0 are equal."""
    assert set(KINDS) == set(selection.KINDS)
    logits = selection.make_logits(kind, 3, 300)
    starts, ends = torch.tensor([0, 3, 150], dtype=torch.int32), torch.tensor([300, 299, 290], dtype=torch.int32)
    selection.check(logits, starts, ends, top_k, branch)


@pytest.mark.parametrize("kind", ["normal", "few-values", "nans"])
@pytest.mark.parametrize("top_k", [1, 256])
@pytest.mark.parametrize("layout", [{"gap": 8}, {"gap": 7, "offset": 16}], ids=["whole-vectors", "single-cells"])
@pytest.mark.usefixtures("short_blocks")
def test_rows_that_are_cut(selection: ModuleType, branch: str, kind: str, top_k: int, layout: dict[str, Any]) -> None:
    """Up to three launches; windows that end at a cut, or begin or end a few keys away from it, and one of few keys."""
    logits = selection.judge.laid_out(selection.make_logits(kind, 6, 1800), **layout)
    starts = torch.tensor([0, 3, 7, 1000, 4, 1003], dtype=torch.int32)
    ends = torch.tensor([1800, 1799, 1031, 1512, 515, 1040], dtype=torch.int32)
    selection.check(logits, starts, ends, top_k, branch)


@pytest.mark.parametrize("columns", [511, 512, 513, 515, 516, 1024, 1027])
@pytest.mark.usefixtures("short_blocks")
def test_rows_about_as_long_as_a_block(selection: ModuleType, branch: str, columns: int) -> None:
    logits = selection.make_logits("normal", 5, columns)
    starts = torch.arange(5, dtype=torch.int32)
    for ends in (torch.full_like(starts, columns), starts + 512, starts + 128):
        selection.check(logits, starts, ends, 120, branch)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_layouts(selection: ModuleType, branch: str, layout: dict[str, Any], relative: bool) -> None:
    """What lies between the rows is NaN: it would be selected first."""
    starts, ends = selection.judge.make_windows("ragged", 7, 403)
    logits = selection.judge.sentinels(7, 403, **layout).copy_(selection.make_logits("normal", 7, 403))
    selection.check(logits, starts, ends, 50, branch, relative=relative)
    wide = torch.full((14, 3), 5, dtype=torch.int32)
    wide[::2, 1], wide[::2, 2] = starts, ends
    selection.check(logits, wide[::2, 1], wide[::2, 2], 50, branch, relative=relative)


def test_cells_outside_the_windows_are_not_looked_at(selection: ModuleType, branch: str) -> None:
    """What clean_logits=False leaves there may be anything."""
    starts, ends = selection.judge.make_windows("ragged", 7, 300)
    logits = selection.make_logits("normal", 7, 300)
    column = torch.arange(300)
    outside = (column < starts[:, None]) | (column >= ends[:, None])
    expected = select_from_logits(logits, starts, ends, top_k=20, variant=branch)
    for value in (float("nan"), float("inf"), 3e38):
        polluted = torch.where(outside, value, logits)
        assert torch.equal(select_from_logits(polluted, starts, ends, top_k=20, variant=branch), expected)


def test_without_starts_every_row_begins_at_its_first_key(selection: ModuleType, branch: str) -> None:
    logits, ends = selection.make_logits("normal", 4, 90), torch.tensor([90, 3, -1, 200], dtype=torch.int32)
    indices = selection.check(logits, None, ends, 10, branch)
    assert torch.equal(indices, selection.check(logits, torch.zeros_like(ends), ends, 10, branch))


@pytest.mark.parametrize("kind", ["full", "packed", "ragged", "extreme"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_compressed_logits(selection: ModuleType, branch: str, kind: str, relative: bool) -> None:
    """Column j means key starts[i] + j, of as many keys as num_keys says and as there are columns for."""
    starts, ends = selection.judge.make_windows(kind, 9, 200)
    logits = selection.make_logits("normal", 9, 77)
    selection.check(logits, starts, ends, 30, branch, num_keys=200, relative=relative)


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (0, 0), (3, 0)], ids=str)
def test_bug_7_nothing_to_select_from(branch: str, rows: int, columns: int) -> None:
    """7: S == 0 and N == 0: a grid of no size is a launch error."""
    window = torch.zeros(rows, dtype=torch.int32), torch.full((rows,), 9, dtype=torch.int32)
    logits = torch.zeros(rows, columns)
    indices, scores = select_from_logits(logits, *window, top_k=3, return_scores=True, variant=branch)
    assert torch.equal(indices, torch.full((rows, 3), -1, dtype=torch.int32))
    assert torch.equal(scores, torch.full((rows, 3), float("-inf")))


def test_twenty_repeats_are_bitwise_equal(selection: ModuleType, branch: str) -> None:
    logits, ends = selection.make_logits("few-values", 2, 400), torch.tensor([400, 311], dtype=torch.int32)
    first, *others = (select_from_logits(logits, None, ends, top_k=77, variant=branch) for _ in range(20))
    assert all(torch.equal(first, other) for other in others)
