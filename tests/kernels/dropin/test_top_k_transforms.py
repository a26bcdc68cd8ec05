"""FlashInfer's and SGLang's selections, which return shifted keys or slots of a page table."""

from typing import Any

import pytest
import torch

from capgate.kernels.dropin import NotServed, flashinfer, sglang
from support import selection

pytestmark = pytest.mark.any_triton

INT = torch.int32
ROWS, COLUMNS, TOP_K = 5, 90, 11
LOGITS = selection.make_logits("few-values", ROWS, COLUMNS)
LENGTHS = torch.tensor([90, 40, 3, 0, 17], dtype=INT)
STARTS = torch.tensor([0, 30, 85, 60, 70], dtype=INT)
WINDOWED = torch.tensor([90, 40, 5, 0, 17], dtype=INT)  # lengths of windows that begin at STARTS


def local(lengths: torch.Tensor, starts: torch.Tensor | None = None, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """The selected keys, counted from the window's first."""
    ends = lengths if starts is None else starts + lengths
    return selection.expected(logits, starts, ends, TOP_K, relative=True)[0]


def table(rows: int, pages: int) -> torch.Tensor:
    return torch.randperm(rows * pages, generator=torch.Generator().manual_seed(1)).view(rows, pages).int()


@pytest.mark.parametrize("starts", [None, STARTS], ids=["whole", "windows"])
def test_ragged(starts: torch.Tensor | None) -> None:
    lengths, offsets = LENGTHS if starts is None else WINDOWED, torch.tensor([100, 0, 7, 50, -3], dtype=INT)
    plain = local(lengths, starts)
    right = selection.placed(plain, offsets, None)
    assert torch.equal(flashinfer.top_k_ragged_transform(LOGITS, offsets, lengths, TOP_K, row_starts=starts), right)
    out = torch.zeros(ROWS, TOP_K, dtype=INT)
    before = LOGITS.clone()
    sglang.topk_transform_ragged_v2(LOGITS, lengths, out_offsets=offsets, out_indices=out, row_starts=starts)
    assert torch.equal(LOGITS, before), "no cell in front of a window is overwritten"
    assert torch.equal(out, right)
    assert torch.equal(sglang.fast_topk_v2(LOGITS, lengths, TOP_K, row_starts=starts), plain)
    assert torch.equal(sglang.fast_topk_transform_ragged_fused(LOGITS, lengths, offsets, TOP_K, starts), right)


@pytest.mark.parametrize("raw", [False, True], ids=["slots", "with-positions"])
@pytest.mark.parametrize("page_size", [1, 4, 64])
def test_paged(page_size: int, raw: bool) -> None:
    pages = table(ROWS, -(-COLUMNS // page_size))
    plain = local(LENGTHS)
    right = selection.placed(plain, None, pages, page_size)
    positions = torch.zeros(ROWS, TOP_K, dtype=INT) if raw else None
    found = flashinfer.top_k_page_table_transform(
        LOGITS, pages, LENGTHS, TOP_K, deterministic=True, tie_break=1, page_size=page_size, out_raw_indices=positions
    )
    assert torch.equal(found, right)
    plan = torch.zeros(ROWS + 1, 2, dtype=INT)
    for transform, others in ((sglang.topk_transform_paged_v2, (plan,)), (sglang.topk_transform_paged, ())):
        out = torch.zeros(ROWS, TOP_K, dtype=INT)
        transform(LOGITS, LENGTHS, pages, out, page_size, *others, positions)
        assert torch.equal(out, right)
        assert positions is None or torch.equal(positions, plain)


def test_without_a_page_table_positions_are_written() -> None:
    out, raw = torch.zeros(ROWS, TOP_K, dtype=INT), torch.zeros(ROWS, TOP_K, dtype=INT)
    sglang.topk_transform_paged_v2(LOGITS, LENGTHS, None, out, 1, torch.zeros(ROWS + 1, 2, dtype=INT), raw)
    assert torch.equal(out, local(LENGTHS))
    assert torch.equal(raw, out)


@pytest.mark.parametrize("raw", [False, True], ids=["slots", "with-positions"])
@pytest.mark.parametrize(("page_size", "table_starts"), [(1, False), (1, True), (4, True)])
def test_windows_and_rows_of_a_page_table(page_size: int, table_starts: bool, raw: bool) -> None:
    """Entries begin where a row's own say, and otherwise where its columns do."""
    requests, pages = torch.tensor([1, 0, 1, 1, 0], dtype=INT), table(2, 120)
    first = torch.tensor([3, 0, 9, 2, 1], dtype=INT) if table_starts else None
    plain = local(WINDOWED, STARTS)
    right = selection.placed(plain, STARTS if first is None else first * page_size, pages, page_size, requests)
    out = torch.zeros(ROWS, TOP_K, dtype=INT)
    positions = torch.zeros_like(out) if raw else None
    options: dict[str, Any] = {"row_to_batch": requests, "row_starts": STARTS, "page_table_row_starts": first}
    found = flashinfer.top_k_page_table_transform(
        LOGITS, pages, WINDOWED, TOP_K, **options, page_size=page_size, out=out, out_raw_indices=positions
    )
    assert found is out
    assert torch.equal(out, right)
    assert positions is None or torch.equal(positions, plain)
    with pytest.raises(ValueError, match=r"^page_table_row_starts: got None, needs entries"):
        flashinfer.top_k_page_table_transform(LOGITS, pages, WINDOWED, TOP_K, row_starts=STARTS, page_size=4)


def test_rows_of_requests_share_a_table_of_slots() -> None:
    """As cumulative lengths of queries say, and one each in decode."""
    slots = table(2, 100)
    cumulative, requests = torch.tensor([0, 3, 5], dtype=INT), torch.tensor([0, 0, 0, 1, 1], dtype=INT)
    for lengths, starts in ((LENGTHS, None), (WINDOWED, STARTS)):
        found = sglang.fast_topk_transform_fused(LOGITS, lengths, slots, cumulative, TOP_K, row_starts=starts)
        assert torch.equal(found, selection.placed(local(lengths, starts), None, slots, 1, requests))
    slots = table(ROWS, 100)
    found = sglang.fast_topk_transform_fused(LOGITS, LENGTHS, slots, torch.arange(ROWS + 1, dtype=INT), TOP_K)
    assert torch.equal(found, selection.placed(local(LENGTHS), None, slots))


def test_lengths_below_nothing_and_past_the_end() -> None:
    lengths = torch.tensor([-5, 1000, -(2**31), 2**31 - 1, 0], dtype=INT)
    right = local(lengths.clamp(0, COLUMNS))
    assert torch.equal(sglang.fast_topk_v2(LOGITS, lengths, TOP_K), right)
    assert torch.equal(flashinfer.top_k_ragged_transform(LOGITS, torch.zeros_like(lengths), lengths, TOP_K), right)


def test_bfloat16_logits() -> None:
    logits, zero = LOGITS.bfloat16(), torch.zeros(ROWS, dtype=INT)
    right = local(LENGTHS, logits=logits)
    assert torch.equal(flashinfer.top_k_ragged_transform(logits, zero, LENGTHS, TOP_K), right)
    assert torch.equal(sglang.fast_topk_v2(logits, LENGTHS, TOP_K), right)


def test_more_keys_than_columns() -> None:
    offsets = torch.arange(ROWS, dtype=INT)
    found = flashinfer.top_k_ragged_transform(LOGITS[:, :20], offsets, LENGTHS, 30)
    for row, length in enumerate(LENGTHS.clamp(max=20).tolist()):
        assert found[row].tolist() == [*range(row, row + length), *[-1] * (30 - length)]


@pytest.mark.parametrize(
    ("logits", "tie_break", "reason"),
    [(LOGITS.half(), 0, "logits in float16"), (LOGITS, 2, "tie_break=2")],
    ids=["float16", "larger-index"],
)
def test_what_is_not_served(logits: torch.Tensor, tie_break: int, reason: str) -> None:
    """Nothing has been written."""
    out, pages = torch.full((ROWS, TOP_K), -7, dtype=INT), table(ROWS, COLUMNS)
    with pytest.raises(NotServed, match=f"^{reason}"):
        flashinfer.top_k_page_table_transform(logits, pages, LENGTHS, TOP_K, tie_break=tie_break, out=out)
    assert (out == -7).all()
    with pytest.raises(NotServed, match=f"^{reason}"):
        flashinfer.top_k_ragged_transform(logits, LENGTHS, LENGTHS, TOP_K, tie_break=tie_break)
