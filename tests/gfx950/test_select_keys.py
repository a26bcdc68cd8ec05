"""The compiled gfx950 code of the selection, executed instruction by instruction, returns what sorting does, key for key."""

from typing import Any

import pytest
import torch

from capgate.compat import ExampleCall, Launch
from capgate.compat.offline.child import describe
from capgate.kernels.key_selection import classic
from capgate.kernels.key_selection.operands import Inputs
from capgate.kernels.key_selection.operation import Problem
from support.emulated_mqa import TARGET
from support.emulation import compile_launch, emulate
from support.judge import laid_out, sentinels
from support.selection import KINDS, expected, make_logits, placed, same

# Windows of rows of 500 or more: a whole block, a half and a quarter of it, and as few keys as are selected.
STARTS = torch.tensor([0, 3, 130, 7, 499], dtype=torch.int32)
ENDS = torch.tensor([500, 258, 250, 67, 10], dtype=torch.int32)


def agrees(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    top_k: int,
    *,
    scores: bool,
    num_keys: int | None = None,
    relative: bool = False,
    offsets: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    page_size: int = 1,
) -> tuple[Launch, ...]:
    """Run the launches of one call and hold what they leave against the expectation; returns them."""
    indices = torch.empty((len(logits), top_k), dtype=torch.int32)
    values = torch.empty((len(logits), top_k)) if scores else None
    options: dict[str, Any] = {"num_keys": num_keys, "relative": relative}
    inputs = Inputs(logits, starts, ends, offsets, page_table)
    launches = classic.prepare(Problem(TARGET, top_k), inputs, indices, values, page_size=page_size, **options)
    for launch in launches:
        names = launch.kernel.arg_names
        kept = [launch.arguments[names.index(name)] for name in ("indices", "values")]
        written = [tensor for tensor in kept if tensor is not None]
        for tensor in written:  # with candidates that would be selected first, should the next launch take them for its own
            tensor.fill_(float("nan") if tensor.is_floating_point() else -7)
        emulate(launch, written)
    right, right_values = expected(logits, starts, ends, top_k, **options)
    assert torch.equal(indices, placed(right, offsets, page_table, page_size))
    assert values is None or same(values, right_values)
    return launches


def fits(launch: Launch) -> None:
    """Known bug 3: Shared-memory overflow. A spill would hit every count of the search."""
    row = describe(compile_launch(launch), TARGET, ExampleCall((), {}, 1), "")
    assert row["unread"] == []
    assert 0 < row["lds_bytes"] <= 160 * 1024
    assert (row["spills"], row["scratch_bytes"]) == (0, 0)
    assert row["waves_per_simd"] >= 2, "not even one program of eight waves fits"


@pytest.mark.parametrize("kind", KINDS)
def test_equal_unordered_and_distant_logits(kind: str) -> None:
    agrees(make_logits(kind, 5, 512), STARTS, ENDS, 60, scores=True)


@pytest.mark.parametrize(("top_k", "scores"), [(2048, True), (512, False)])
def test_what_the_models_select(top_k: int, scores: bool) -> None:
    ends = torch.tensor([8192, 8191, 8192 // 3, 8192 // 5], dtype=torch.int32)
    (launch,) = agrees(make_logits("skewed", 4, 8192), None, ends, top_k, scores=scores)
    fits(launch)


@pytest.mark.dealt
@pytest.mark.parametrize("top_k", [1, 7, 61, 255])
def test_numbers_of_keys(top_k: int) -> None:
    """Rows of indices that end inside a quad, which Triton stores one by one, and a number that it makes a constant."""
    agrees(make_logits("normal", 5, 512), STARTS, ENDS, top_k, scores=True)


@pytest.mark.dealt
def test_rows_that_are_cut() -> None:
    """Windows that end at a cut, or begin or end a few keys away from it, and one of few keys. In one test, since compiling
    both launches takes what a hundred of them take in the emulator."""
    starts = torch.tensor([0, 3, 7, 16384], dtype=torch.int32)
    ends = torch.tensor([40000, 39999, 16390, 16500], dtype=torch.int32)
    for kind in ("normal", "few-values", "nans"):
        launches = agrees(laid_out(make_logits(kind, 4, 40000), gap=16), starts, ends, 2048, scores=True)
        assert len(launches) == 2
    for launch in launches:
        fits(launch)


@pytest.mark.dealt
def test_rows_with_gaps() -> None:
    """What lies between the rows is NaN: it would be selected first."""
    agrees(sentinels(5, 500, gap=7, offset=9).copy_(make_logits("normal", 5, 500)), STARTS, ENDS, 60, scores=False)


@pytest.mark.dealt
def test_compressed_logits_column_by_column() -> None:
    """A compile of this kernel takes seconds: of two things that do not meet in it, one is tried with the other."""
    starts = torch.tensor([-4, 0, 30, 150, 90], dtype=torch.int32)
    ends = torch.tensor([60, 200, 110, 300, 90], dtype=torch.int32)
    logits = sentinels(5, 77, order=(1, 0), gap=3, offset=1).copy_(make_logits("normal", 5, 77))
    agrees(logits, starts, ends, 30, scores=False, num_keys=200, relative=True)


@pytest.mark.dealt
def test_long_rows_column_by_column() -> None:
    """Triton's pass over their pointers once took more than ten minutes."""
    starts, ends = torch.tensor([0, 16000], dtype=torch.int32), torch.tensor([20000, 16500], dtype=torch.int32)
    logits = sentinels(2, 20000, order=(1, 0), gap=1, offset=1).copy_(make_logits("few-values", 2, 20000))
    for launch in agrees(logits, starts, ends, 300, scores=True):
        fits(launch)


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["few-values", "nans"])
def test_slots_of_a_page_table_by_bfloat16_logits(kind: str) -> None:
    """Of rows that are selected from, of one where equal logits are told apart, and of one that is listed."""
    offsets = torch.tensor([0, 64, 7, -20, 5], dtype=torch.int32)
    table = torch.randperm(5 * 6, generator=torch.Generator().manual_seed(0)).view(5, 6).int()
    table[0, 2] = -1
    paged = {"offsets": offsets, "page_table": table, "page_size": 64}
    agrees(make_logits(kind, 5, 512).bfloat16(), STARTS, ENDS, 60, scores=True, **paged)
