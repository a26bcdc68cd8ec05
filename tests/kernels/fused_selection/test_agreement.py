"""The fused selection of packed keys, with lists of 64 entries: the keys that sorting finds, whatever the order of the logits,
and as many slow paths as a model of the design says."""

from typing import Any

import pytest
import torch

from support import fused_selection as fused
from support import judge, selection

pytestmark = [
    pytest.mark.one_lane,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning"),
]
TOP_K = 12
ONES = torch.ones(fused.MOST_ROWS)


def orders(keys: int) -> torch.Tensor:
    """[8, keys] integers: random, ascending, descending, a saw of a tile, all equal, two values, fewer than top_k above a
    plateau of zeros, and the winners in the last tile."""
    key = torch.arange(keys)
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [
            torch.randint(0, 256, (keys,), generator=generator),
            key,
            keys - 1 - key,
            key % 16,
            torch.full((keys,), 7),
            torch.randint(0, 2, (keys,), generator=generator),
            (key % (keys // (TOP_K - 1)) == 3).int(),
            torch.where(key >= keys - 16, key, key % 7),
        ]
    )


def agrees(
    call: judge.Call, logits: torch.Tensor, top_k: int, expected_options: dict[str, Any] | None = None, **options: Any
) -> list[int]:
    """Hold a call against sorted integers; returns its counts."""
    indices, scores, counts = fused.run(call, top_k, **options)
    right, right_scores = selection.expected(logits, call.starts, call.ends, top_k, **(expected_options or {}))
    assert torch.equal(indices, right)
    assert selection.same(scores, right_scores)
    return counts


def modelled(logits: torch.Tensor, call: judge.Call, top_k: int, tune: Any) -> list[int]:
    """What the model counts where no row is shared; it must select what sorting does, too."""
    right, _ = selection.expected(logits, call.starts, call.ends, top_k)
    total = torch.zeros(3, dtype=torch.int64)
    for row, (start, end) in enumerate(zip(call.starts.tolist(), call.ends.tolist(), strict=True)):
        entries, counts = fused.scan(logits[row], max(start, 0), min(end, logits.shape[1]), top_k, tune)
        assert [key for _, key in entries] == [key for key in right[row].tolist() if key >= 0]
        total += torch.tensor(counts)
    return total.tolist()


def test_orders_of_logits(interpreter: None) -> None:
    """Rising logits all pass; equal ones pass until the first selection, after which none does."""
    numbers, tune = orders(160), fused.tuned()
    call = fused.make_call(numbers, ONES[:8], torch.ones(160))
    logits = fused.logits_of(numbers, ONES[:8], torch.ones(160))
    with fused.tables(tune):
        counts = agrees(call, logits, TOP_K)
    refreshed, tied, closed = counts
    assert counts == modelled(logits, call, TOP_K, tune)
    assert (refreshed, closed) == (10, 0)
    assert tied > 4


@pytest.mark.parametrize("kind", ["zeros", "nans", "all-nan", "infinities", "wide", "tiny", "outlier"])
def test_values(interpreter: None, kind: str) -> None:
    """Of both signs, and with a threshold that is NaN, infinite, denormal or a zero of the other sign."""
    scales = selection.make_logits(kind, 1, 130, seed=1)[0]
    weights, numbers, tune = torch.tensor([1.0, -1.0]), torch.ones(2, 130), fused.tuned(rows=2)
    call, logits = fused.make_call(numbers, weights, scales), fused.logits_of(numbers, weights, scales)
    with fused.tables(tune):
        counts = agrees(call, logits, TOP_K)
    assert counts == modelled(logits, call, TOP_K, tune)
    assert counts[0] > 1
    assert (counts[2] > 0) == (kind in ("all-nan", "nans"))


def test_nan_after_a_selection(interpreter: None) -> None:
    """One fewer than are selected, as many, and one more; and NaN that comes late is selected before all others."""
    scales = torch.full((100,), 5.0)
    for late in (60, 70, 99):
        scales[late] = float("nan")
    first = torch.full((100,), 5.0)
    tune = fused.tuned(rows=1)
    for count, closed in ((TOP_K - 1, 0), (TOP_K, 1), (TOP_K + 1, 1)):
        first[:count] = float("nan")
        for values, closes in ((scales, 0), (first, closed)) if count == TOP_K else ((first, closed),):
            call = fused.make_call(torch.ones(1, 100), ONES[:1], values)
            with fused.tables(tune):
                assert agrees(call, values[None], TOP_K)[2] == closes


def test_windows(interpreter: None) -> None:
    """Rows of no key, of about as many as are selected, and of about as many as a list has room for; of one group in different
    places, inverted, overhanging, and in one tile."""
    sizes = [0, 1, TOP_K - 1, TOP_K, TOP_K + 1, 2 * TOP_K, 48, 49, 64, 65]
    starts = [5, 0, 33, 17, 1, 63, 40, 0, 30, 20, 90, -4, 90, 35, -(2**31)]
    ends = [start + size for start, size in zip(starts, sizes, strict=False)] + [10, 9, 2**31 - 1, 44, -5]
    windows = torch.tensor(starts, dtype=torch.int32), torch.tensor(ends, dtype=torch.int32)
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randint(0, 256, (15, 110), generator=generator)
    call = fused.make_call(numbers, ONES[:15], torch.ones(110), windows)
    with fused.tables(fused.tuned(rows=4)):
        agrees(call, fused.logits_of(numbers, ONES[:15], torch.ones(110)), TOP_K)


@pytest.mark.parametrize(("top_k", "tune"), [(1, fused.tuned(rows=1)), (16, fused.tuned(rows=1, block_entries=48, planes=12))])
def test_numbers_of_keys_and_lists(interpreter: None, top_k: int, tune: Any) -> None:
    """One key, and lists with as much room as selections leave; of 144 entries two tiles come before a look."""
    numbers = orders(150)[1:2]
    call, logits = fused.make_call(numbers, ONES[:1], torch.ones(150)), numbers.float()
    with fused.tables(tune):
        assert agrees(call, logits, top_k) == modelled(logits, call, top_k, tune)
    wide = tune._replace(block_entries=256 if tune.planes == 4 else 192)
    assert wide.segment_tiles == 2
    with fused.tables(wide):
        assert agrees(call, logits, top_k) == modelled(logits, call, top_k, wide)


@pytest.mark.parametrize(("programs", "rows", "keys"), [(3, 2, 100), (8, 1, 240), (2, 8, 60)], ids=str)
def test_rows_that_programs_share(interpreter: None, programs: int, rows: int, keys: int) -> None:
    """Groups that do not come out even: four of three programs; one of eight, whose entries are merged in two steps; one of two
    that have no share. Equal logits lie in every program's."""
    numbers = orders(keys)[[5, 4, 1, 0, 2, 3, 6, 7]] if rows < 8 else orders(keys)
    numbers = numbers[: 8 if programs == 3 else rows]
    call = fused.make_call(numbers, ONES[: len(numbers)], torch.ones(keys))
    logits = fused.logits_of(numbers, ONES[: len(numbers)], torch.ones(keys))
    with fused.tables(fused.tuned(programs, rows=rows)):
        refreshed, tied, _ = agrees(call, logits, TOP_K)
    assert tied > 0
    assert (refreshed > 0) == (keys > 60), (
        "three programs have long rows of their own, eight leave more than a list has room for"
    )


def test_what_indices_become(interpreter: None) -> None:
    """Relative ones, with offsets, as slots of a page table and of requests' rows of it; of rows that are shared, too."""
    numbers = orders(70)[[0, 4, 3]]
    windows = torch.tensor([3, 0, -5], dtype=torch.int32), torch.tensor([70, 66, 30], dtype=torch.int32)
    call = fused.make_call(numbers, ONES[:3], torch.ones(70), windows)
    logits = fused.logits_of(numbers, ONES[:3], torch.ones(70))
    offsets = torch.tensor([8, 0, 40], dtype=torch.int32)
    table = torch.randperm(30, generator=torch.Generator().manual_seed(0)).view(3, 10).int()
    table[0, 2] = -1
    requests = torch.tensor([1, 7, 0], dtype=torch.int32)
    relative, _ = selection.expected(logits, call.starts, call.ends, TOP_K, None, True)
    with fused.tables(fused.tuned(2, rows=2)):
        indices, _, _ = fused.run(call, TOP_K, relative=True, offsets=offsets)
        assert torch.equal(indices, selection.placed(relative, offsets, None))
        options = {"offsets": offsets, "page_table": table, "requests": requests}
        indices, _, _ = fused.run(call, TOP_K, relative=True, page_size=8, **options)
        assert torch.equal(indices, selection.placed(relative, offsets, table, 8, requests))
        narrow = fused.run(call, TOP_K, max_window=40)[0]
        ends = torch.minimum(call.ends, call.starts + 40)
        assert torch.equal(narrow, selection.expected(logits, call.starts, ends, TOP_K)[0])
