"""Scores and selection together: the selected keys are those of the logits, whatever the budget makes of the rows."""

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from capgate import compat
from capgate.kernels import fp8_mqa_logits, fp8_paged_mqa_logits, select_keys, select_paged_keys
from capgate.kernels.key_selection import tunings
from capgate.kernels.key_selection.scratch import rows_within, scratch_bytes
from support import judge, paged, selection

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
CPU = compat.capabilities(torch.device("cpu")).target


class Buffers:
    """Records the bytes of every tensor that torch.empty makes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes: list[int] = []
        empty = torch.empty

        def record(*arguments: Any, **keywords: Any) -> torch.Tensor:
            tensor = empty(*arguments, **keywords)
            self.bytes.append(tensor.numel() * tensor.itemsize)
            return tensor

        patch.setattr(torch, "empty", record)


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("windows", "budget"),
    [("ragged", 1024), ("packed", 5 * 1024), ("extreme", 5 * 1024), ("full", 2**31), ("causal", 2**31), ("empty", 2**31)],
)
def test_dense(variant: str, windows: str, budget: int) -> None:
    """One row, four rows and all of them at a time."""
    call = selection.judge.make_call(7, 100, 16, 32, windows)
    logits = fp8_mqa_logits(*call, clean_logits=False, variant=variant)
    keywords = {"top_k": 20, "logits_budget_bytes": budget, "variant": variant, "logits_variant": variant}
    right, right_scores = selection.expected(logits, call.starts, call.ends, 20)
    indices, scores = select_keys(*call, **keywords, return_scores=True)
    assert torch.equal(indices, right)
    assert selection.same(scores, right_scores)
    relative, _ = selection.expected(logits, call.starts, call.ends, 20, None, True)
    assert torch.equal(select_keys(*call, **keywords, relative=True), relative)


@pytest.mark.parametrize("max_window", [0, 1, 33])
def test_a_known_width_of_the_windows_saves_memory(variant: str, max_window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call = selection.judge.make_call(5, 600, 16, 32, "packed")
    call = call._replace(ends=torch.minimum(call.ends, call.starts + max_window))
    expected = select_keys(*call, top_k=20, variant=variant, logits_variant=variant)
    buffers = Buffers(monkeypatch)
    narrow = select_keys(*call, top_k=20, max_window=max_window, variant=variant, logits_variant=variant)
    assert torch.equal(narrow, expected)
    assert max(buffers.bytes) <= 5 * 1024  # rows of 256 columns


def test_a_scale_may_be_a_column(variant: str) -> None:
    call = judge.make_call(5, 90, 16, 32)
    column = call._replace(k_scale=call.k_scale[:, None])
    assert torch.equal(*(select_keys(*one, top_k=9, variant=variant, logits_variant=variant) for one in (call, column)))


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("lens", "next_n", "budget"),
    [
        ([70, 0, 5, 130], 1, 2**31),
        ([70, 0, 5, 130], 3, 8 * 1024),
        ([[70, 3], [0, 9], [130, 131]], 2, 8 * 1024),
        ([-(2**31), 90], 8, 2**31),
    ],
    ids=["one-row", "drafts", "row-lengths", "extreme"],
)
def test_paged(variant: str, lens: Any, next_n: int, budget: int) -> None:
    call = paged.make_call(lens, next_n)
    columns = 100  # fewer than the longest request has
    logits = fp8_paged_mqa_logits(*call, max_context_len=columns, variant=variant)
    ends = call.seen.clamp(-9, columns).flatten().int()
    right, right_scores = selection.expected(logits, None, ends, 30)
    keywords = {"max_context_len": columns, "top_k": 30, "logits_budget_bytes": budget}
    keywords |= {"variant": variant, "logits_variant": variant}
    indices, scores = select_paged_keys(*call, **keywords, return_scores=True)
    assert torch.equal(indices, right)
    assert selection.same(scores, right_scores)
    assert torch.equal(select_paged_keys(*call, **keywords), right)


def test_paged_rows_see_no_more_than_their_table_has_room_for(variant: str) -> None:
    call = paged.make_call([64, 30], spare_entries=0)
    call = call._replace(context_lens=torch.tensor([500, 30], dtype=torch.int32))
    keywords = {"top_k": 70, "variant": variant, "logits_variant": variant}
    wide, exact = (select_paged_keys(*call, max_context_len=columns, **keywords) for columns in (1000, 64))
    assert torch.equal(wide, exact)
    assert wide.max() == 63


@pytest.mark.parametrize(("rows", "keys"), [(0, 5), (0, 0), (3, 0)], ids=str)
def test_bug_7_nothing_to_score(variant: str, rows: int, keys: int) -> None:
    call = judge.make_call(rows, keys, 16, 32)
    indices, scores = select_keys(*call, top_k=4, return_scores=True, variant=variant, logits_variant=variant)
    assert torch.equal(indices, torch.full((rows, 4), -1, dtype=torch.int32))
    assert torch.equal(scores, torch.full((rows, 4), float("-inf")))


def test_nothing_in_the_cache(variant: str) -> None:
    for lens in ([], [0, 0]):
        call = paged.make_call(lens)
        indices = select_paged_keys(*call, max_context_len=9, top_k=4, variant=variant, logits_variant=variant)
        assert torch.equal(indices, torch.full((len(lens), 4), -1, dtype=torch.int32))


# --- the budget -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [3 * 4096, 10**6])
def test_buffers_stay_within_the_budget_and_are_reused(variant: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 600 columns are padded to 768; a list has room for 512 candidates of 8 bytes, and 16 bytes behind it."""
    selection.shorten_blocks(monkeypatch)
    call = judge.make_call(5, 600, 16, 32, "full")
    keywords = {"top_k": 80, "variant": variant, "logits_variant": "reference"}
    expected = select_keys(*call, **keywords | {"variant": "reference"})
    row_bytes = 4 * 768 + 8 * 514
    assert scratch_bytes(CPU, 600, 80) == 8 * 514
    rows = rows_within(budget, row_bytes, 5)
    buffers = Buffers(monkeypatch)
    assert torch.equal(select_keys(*call, **keywords, logits_budget_bytes=budget), expected)
    assert rows * row_bytes <= budget
    logits = [size for size in buffers.bytes if size == rows * row_bytes]
    assert len(logits) == 1, "one buffer serves all chunks"
    assert max(buffers.bytes) <= rows * row_bytes


@example(shorter=131071, longer=131072, top_k=1024)
@given(shorter=st.integers(1, 2**20), longer=st.integers(1, 2**20), top_k=st.integers(1, 8192))
def test_a_workspace_for_long_rows_does_for_shorter_ones(shorter: int, longer: int, top_k: int) -> None:
    shorter, longer = sorted((shorter, longer))
    for target in map(compat.targets.parse, ("cuda:90", "hip:gfx950")):
        assert scratch_bytes(target, shorter, top_k) <= scratch_bytes(target, longer, top_k)


@given(budget=st.integers(0, 2**40), row_bytes=st.integers(1, 2**24), rows=st.integers(0, 2**20))
def test_rows_are_cut_as_engines_cut_them(budget: int, row_bytes: int, rows: int) -> None:
    """All of them, a multiple of 128, or a power of two below it: as many as there is room for."""
    taken = rows_within(budget, row_bytes, rows)
    assert taken * row_bytes <= budget
    if taken < rows:
        larger = taken + 128 if taken >= 128 else 2 * taken if taken else 1
        assert larger * row_bytes > budget
        assert taken % 128 == 0 if taken > 128 else taken & (taken - 1) == 0


@given(top_k=st.integers(1, 8192), rows=st.integers(1, 9999), columns=st.integers(16385, 2**29), sms=st.integers(1, 400))
def test_a_list_has_room_for_the_selected_and_a_block(top_k: int, rows: int, columns: int, sms: int) -> None:
    """And for the sample; threads hold 32 candidates at most."""
    for tune in tunings.LONG.values():
        room = tune.room(top_k, columns)
        assert max(top_k, tune.sample, tune.block_logits) <= room <= 1024 * tune.list_warps(room) <= 1024 * 16
        assert room // tune.planes >= 128
        assert 1 <= tune.sections(rows, columns, sms) <= columns // tune.section
        assert tune.sections(rows, columns, sms) <= tunings.MOST_SECTIONS
    assert max(tunings.max_top_k(compat.capabilities(target).target) for target in ("cuda:90", "hip:gfx950")) == 8192


@pytest.mark.parametrize(("columns", "top_k"), [(65536, 2048), (2**18, 512), (2**19, 2048), (2**20, 512), (2**20, 2048)])
def test_a_list_has_room_for_what_reaches_a_bar(columns: int, top_k: int) -> None:
    """What does not fit is counted in the row itself, which takes a hundred times as long. Of a million logits that was one row
    in five: a bar here is as low as the kernel may leave it, by five deviations and an eighth of the sample."""
    generator = torch.Generator().manual_seed(columns + top_k)
    for tune in tunings.LONG.values():
        expected = top_k * tune.sample / columns
        least = int(expected + 5 * expected**0.5) + 2
        for _ in range(20):
            logits = torch.randn(columns, generator=generator)
            bar = logits.view(tune.sample, -1)[:, 0].topk(least + least // 8).values[-1]
            assert top_k <= int((logits >= bar).sum()) <= tune.room(top_k, columns)


def test_the_budget_must_have_room_for_one_row() -> None:
    call = judge.make_call(3, 300, 16, 32)
    with pytest.raises(ValueError, match=r"^logits_budget_bytes: got 2047, needs at least 2048 for a row of 300 keys"):
        select_keys(*call, top_k=4, logits_budget_bytes=2047)
    select_keys(*call, top_k=4, logits_budget_bytes=2048)
    request = paged.make_call([300], 3)
    with pytest.raises(ValueError, match=r"^logits_budget_bytes: got 6143, needs at least 6144 for a request of 300 keys"):
        select_paged_keys(*request, max_context_len=300, top_k=4, logits_budget_bytes=6143)
    select_paged_keys(*request, max_context_len=300, top_k=4, logits_budget_bytes=6144)
