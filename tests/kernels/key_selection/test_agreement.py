"""Every variant of the selection against sorted integers: windows, equal and unordered logits, layouts, rows that are cut."""

import mmap
from typing import Any

import pytest
import torch

from capgate.kernels import select_from_logits
from support import selection

# Triton's interpreter computes with numpy, which warns of what a GPU does not: infinities that meet, and overflow to them.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

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
    selection.shorten_blocks(monkeypatch)


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("kind", "columns", "top_k"),
    [
        *((kind, 37, 8) for kind in ("full", "causal", "suffix", "packed", "ragged", "extreme", "empty")),
        *(("full", 1, 1), ("ragged", 1, 3), ("packed", 37, 1), ("causal", 500, 64), ("ragged", 500, 64)),
        *(("full", 1100, 300), ("ragged", 1100, 300), ("causal", 700, 900), ("extreme", 700, 900)),
    ],
)
def test_windows(variant: str, kind: str, columns: int, top_k: int) -> None:
    starts, ends = selection.judge.make_windows(kind, 5, columns)
    logits = selection.make_logits("normal", 5, columns)
    selection.check(logits, starts, ends, top_k, variant)


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("kind", "top_k"),
    [
        *((kind, 130) for kind in KINDS),
        *((kind, 20) for kind in ("normal", "few-values", "nans", "infinities", "wide", "outlier")),
        *(("equal", 1), ("nans", 1), ("tiny", 1), ("zeros", 299), ("skewed", 299), ("all-nan", 299)),
    ],
)
def test_equal_unordered_and_distant_logits(variant: str, kind: str, top_k: int) -> None:
    """Of equal ones those with the lower index; NaN above inf, whatever its sign; -0 and 0 are equal."""
    assert set(KINDS) == set(selection.KINDS)
    logits = selection.make_logits(kind, 3, 300)
    starts, ends = torch.tensor([0, 3, 150], dtype=torch.int32), torch.tensor([300, 299, 290], dtype=torch.int32)
    selection.check(logits, starts, ends, top_k, variant, alone=False)


@pytest.mark.dealt("layout")
@pytest.mark.parametrize(
    ("kind", "top_k", "layout"),
    [
        ("normal", 256, {"gap": 8}),
        ("normal", 1, {"gap": 7, "offset": 16}),
        ("few-values", 256, {"gap": 7, "offset": 16}),
        ("nans", 256, {"gap": 8}),
    ],
    ids=["normal-whole-vectors", "first-single-cells", "few-values-single-cells", "nans-whole-vectors"],
)
@pytest.mark.usefixtures("short_blocks")
def test_rows_that_are_cut(variant: str, kind: str, top_k: int, layout: dict[str, Any]) -> None:
    """In two launches; windows that end at a cut, or begin or end a few keys away from it, and one of few keys."""
    logits = selection.judge.laid_out(selection.make_logits(kind, 6, 1800), **layout)
    starts = torch.tensor([0, 3, 7, 1000, 4, 1003], dtype=torch.int32)
    ends = torch.tensor([1800, 1799, 1031, 1512, 515, 1040], dtype=torch.int32)
    selection.check(logits, starts, ends, top_k, variant, alone=False)


@pytest.mark.dealt
@pytest.mark.parametrize("columns", [511, 512, 513, 516, 1027])
@pytest.mark.usefixtures("short_blocks")
def test_rows_about_as_long_as_a_block(variant: str, columns: int) -> None:
    logits = selection.make_logits("normal", 5, columns)
    starts = torch.arange(5, dtype=torch.int32)
    for ends in (torch.full_like(starts, columns), starts + 512):
        selection.check(logits, starts, ends, 120, variant, alone=False)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(variant: str, name: str) -> None:
    """What lies between the rows is NaN: it would be selected first."""
    layout, relative = LAYOUTS[name], name in ("whole-vectors", "columns-first")
    starts, ends = selection.judge.make_windows("ragged", 7, 403)
    logits = selection.judge.sentinels(7, 403, **layout).copy_(selection.make_logits("normal", 7, 403))
    selection.check(logits, starts, ends, 50, variant, alone=False, relative=relative)
    wide = torch.full((14, 3), 5, dtype=torch.int32)
    wide[::2, 1], wide[::2, 2] = starts, ends
    selection.check(logits, wide[::2, 1], wide[::2, 2], 50, variant, alone=False, relative=relative)


def test_columns_far_apart(variant: str) -> None:
    """Three strides are no 32-bit number, though one is."""
    noreserve = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on
    memory = mmap.mmap(-1, 2**33, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
    logits = torch.frombuffer(memory, dtype=torch.bfloat16).as_strided((2, 4), (1, 2**30))
    logits.copy_(torch.tensor([[1.0, 4.0, 2.0, 3.0], [9.0, 1.0, 8.0, 0.0]]))
    found = select_from_logits(logits, None, torch.tensor([4, 3], dtype=torch.int32), top_k=2, variant=variant)
    assert found.tolist() == [[1, 3], [0, 2]]


def test_cells_outside_the_windows_are_not_looked_at(variant: str) -> None:
    """What clean_logits=False leaves there may be anything."""
    starts, ends = selection.judge.make_windows("ragged", 7, 300)
    logits = selection.make_logits("normal", 7, 300)
    column = torch.arange(300)
    outside = (column < starts[:, None]) | (column >= ends[:, None])
    expected = select_from_logits(logits, starts, ends, top_k=20, variant=variant)
    for value in (float("nan"), float("inf")):
        polluted = torch.where(outside, value, logits)
        assert torch.equal(select_from_logits(polluted, starts, ends, top_k=20, variant=variant), expected)


def test_without_starts_every_row_begins_at_its_first_key(variant: str) -> None:
    logits, ends = selection.make_logits("normal", 4, 90), torch.tensor([90, 3, -1, 200], dtype=torch.int32)
    indices = selection.check(logits, None, ends, 10, variant)
    assert torch.equal(indices, selection.check(logits, torch.zeros_like(ends), ends, 10, variant))


@pytest.mark.dealt("relative")
@pytest.mark.parametrize(
    ("kind", "relative"), [("full", False), ("packed", True), ("ragged", False), ("ragged", True), ("extreme", True)]
)
def test_compressed_logits(variant: str, kind: str, relative: bool) -> None:
    """Column j means key starts[i] + j, of as many keys as num_keys says and as there are columns for."""
    starts, ends = selection.judge.make_windows(kind, 9, 200)
    logits = selection.make_logits("normal", 9, 77)
    selection.check(logits, starts, ends, 30, variant, alone=False, num_keys=200, relative=relative)


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (0, 0), (3, 0)], ids=str)
def test_bug_7_nothing_to_select_from(variant: str, rows: int, columns: int) -> None:
    """Known bug 7: S == 0 and N == 0: a grid of no size is a launch error."""
    window = torch.zeros(rows, dtype=torch.int32), torch.full((rows,), 9, dtype=torch.int32)
    logits = torch.zeros(rows, columns)
    indices, scores = select_from_logits(logits, *window, top_k=3, return_scores=True, variant=variant)
    assert torch.equal(indices, torch.full((rows, 3), -1, dtype=torch.int32))
    assert torch.equal(scores, torch.full((rows, 3), float("-inf")))


def test_a_second_call_selects_the_same(variant: str) -> None:
    """Nothing is left behind by the first; what may change on a GPU from one call to the next is asked in tests/gpu."""
    logits, ends = selection.make_logits("few-values", 2, 400), torch.tensor([400, 311], dtype=torch.int32)
    first, second = (select_from_logits(logits, None, ends, top_k=77, variant=variant) for _ in range(2))
    assert torch.equal(first, second)
