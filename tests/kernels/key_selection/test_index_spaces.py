"""What selected keys are written as: counted from elsewhere, shifted, and as slots of a page table."""

import pytest
import torch

from capgate.kernels import select_from_logits, select_keys, select_paged_keys
from support import judge, paged, selection

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

INT = torch.int32
STARTS, ENDS = torch.tensor([0, 3, 30, 7], dtype=INT), torch.tensor([90, 88, 34, 7], dtype=INT)
OFFSETS = torch.tensor([1000, 0, -2, 5], dtype=INT)
TOP_K = 9


def page_table(rows: int, pages: int, seed: int = 0) -> torch.Tensor:
    """Scattered pages, of which one in ten is not there."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randperm(rows * pages, generator=generator).view(rows, pages).int()
    return torch.where(torch.rand(rows, pages, generator=generator) < 0.1, -1, table)


@pytest.mark.dealt("relative", "shift")
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(
    ("page_size", "shift"), [(None, True), (1, False), (4, False), (16, True), (7, True)], ids=lambda value: str(value)
)
def test_indices_are_shifted_and_looked_up(variant: str, relative: bool, page_size: int | None, shift: bool) -> None:
    logits = selection.make_logits("normal", 4, 90)
    plain, _ = selection.expected(logits, STARTS, ENDS, TOP_K, relative=relative)
    offsets = OFFSETS if shift else None
    table = None if page_size is None else page_table(4, -(-70 // page_size))  # too few for the last keys
    options = {} if page_size is None else {"page_table": table, "page_size": page_size}
    found = select_from_logits(
        logits, STARTS, ENDS, top_k=TOP_K, relative=relative, offsets=offsets, variant=variant, **options
    )
    assert torch.equal(found, selection.placed(plain, offsets, table, page_size or 1))


def test_rows_look_where_requests_say(variant: str) -> None:
    """Also into none: what is no row of the table has no slots."""
    logits = selection.make_logits("few-values", 4, 90)
    plain, scores = selection.expected(logits, None, ENDS, TOP_K)
    table, requests = page_table(2, 40).t().contiguous().t(), torch.tensor([[1, 7], [0, 7], [2, 7], [-1, 7]], dtype=INT)[:, 0]
    options = {"page_table": table, "page_size": 3, "requests": requests}
    found, values = select_from_logits(logits, None, ENDS, top_k=TOP_K, return_scores=True, variant=variant, **options)
    assert torch.equal(found, selection.placed(plain, None, table, 3, requests))
    assert selection.same(values, scores)
    assert (found[:2] >= 0).any()
    assert (found[2:] == -1).all()


def test_a_page_table_without_pages_has_no_slots(variant: str) -> None:
    logits = selection.make_logits("normal", 4, 90)
    for table in (torch.zeros(4, 0, dtype=INT), torch.zeros(5, 0, dtype=INT)):
        found = select_from_logits(logits, None, ENDS, top_k=TOP_K, page_table=table, variant=variant)
        assert (found == -1).all()


@pytest.mark.parametrize("kind", ["normal", "few-values"])
def test_rows_that_are_cut(variant: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates between launches keep what was added, and are looked up once."""
    selection.shorten_blocks(monkeypatch)
    logits = selection.make_logits(kind, 1, 600)
    starts, ends = torch.tensor([5], dtype=INT), torch.tensor([599], dtype=INT)
    plain, _ = selection.expected(logits, starts, ends, 60, relative=True)
    offsets, table = torch.tensor([64], dtype=INT), page_table(1, 10)
    options = {"relative": True, "offsets": offsets, "page_table": table, "page_size": 64}
    found = select_from_logits(logits, starts, ends, top_k=60, variant=variant, **options)
    assert torch.equal(found, selection.placed(plain, offsets, table, 64))


@pytest.mark.any_triton
@pytest.mark.parametrize("top_k", [5, 200], ids=["selected", "listed"])
def test_keys_in_turns(top_k: int) -> None:
    """Each turn has its own rows of offsets, requests and the table."""
    call = judge.make_call(7, 120, 16, 32, "ragged")
    table, offsets = page_table(7, 60), torch.arange(7, dtype=INT)
    requests = torch.tensor([3, 3, 0, 6, 5, 5, 9], dtype=INT)
    plain = select_keys(*call, top_k=top_k, relative=True)
    for asked in (None, requests):
        for budget in (2048, 2**31):
            options = {"offsets": offsets, "page_table": table, "page_size": 2, "requests": asked}
            found = select_keys(*call, top_k=top_k, logits_budget_bytes=budget, relative=True, **options)
            assert torch.equal(found, selection.placed(plain, offsets, table, 2, asked))


@pytest.mark.any_triton
@pytest.mark.parametrize("top_k", [5, 200], ids=["selected", "listed"])
def test_cached_keys_in_turns(top_k: int) -> None:
    """Without requests the rows of a request share its row of the table, which may be the cache's own."""
    call = paged.make_call([70, 0, 65, 130], 2)
    plain = select_paged_keys(*call, max_context_len=130, top_k=top_k)
    rows = torch.arange(8, dtype=INT)
    options = {"page_table": call.block_table, "page_size": 64}
    right = selection.placed(plain, rows, call.block_table, 64, rows // 2)
    for requests in (None, rows // 2):
        for budget in (4096, 2**31):
            given = {**options, "offsets": rows, "requests": requests, "logits_budget_bytes": budget}
            assert torch.equal(select_paged_keys(*call, max_context_len=130, top_k=top_k, **given), right)


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"page_size": 4}, "page_size: got 4, needs a page_table"),
        ({"requests": torch.zeros(4, dtype=INT)}, "requests: needs a page_table"),
        ({"page_table": torch.zeros(3, 9, dtype=INT)}, r"page_table: got shape \(3, 9\), needs 4 rows or requests"),
        ({"page_table": torch.zeros(4, 9, dtype=INT), "page_size": 0}, "page_size: got 0, needs 1 to"),
        ({"offsets": torch.zeros(3, dtype=INT)}, r"offsets: got shape \(3,\), needs"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        select_from_logits(torch.zeros(4, 90), None, ENDS, top_k=3, **options)
