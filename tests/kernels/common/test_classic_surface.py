"""compat.tl in Triton's interpreter: block pointers mean what Triton's own mean, on builds that have none, too."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from capgate import compat
from capgate.compat import tl as surface
from capgate.compat.tl import advance, load_block, make_block_ptr, store_block

pytestmark = pytest.mark.usefixtures("interpreter")
ROWS, COLUMNS = 13, 41


@triton.jit
def ours_kernel(
    source, target, rows, columns, stride, row, column, STEP: tl.constexpr, CHECK: tl.constexpr, PADDING: tl.constexpr
):
    block = make_block_ptr(source, (rows, columns), (stride, 1), (row, column), (8, 16), (1, 0))
    copy = make_block_ptr(target, (rows, columns), (columns, 1), (row, column), (8, 16), (1, 0))
    for _ in range(2):
        store_block(copy, load_block(block, CHECK, PADDING), CHECK)
        block = advance(block, (0, STEP))
        copy = advance(copy, (0, STEP))


@triton.jit
def theirs_kernel(
    source, target, rows, columns, stride, row, column, STEP: tl.constexpr, CHECK: tl.constexpr, PADDING: tl.constexpr
):
    block = tl.make_block_ptr(source, (rows, columns), (stride, 1), (row, column), (8, 16), (1, 0))
    copy = tl.make_block_ptr(target, (rows, columns), (columns, 1), (row, column), (8, 16), (1, 0))
    for _ in range(2):
        tl.store(copy, tl.load(block, boundary_check=CHECK, padding_option=PADDING), boundary_check=CHECK)
        block = tl.advance(block, (0, STEP))
        copy = tl.advance(copy, (0, STEP))


@triton.jit
def sums_kernel(source, sums, count, BLOCK: tl.constexpr, PADDING: tl.constexpr):
    block = make_block_ptr(source, (count,), (1,), (0,), (BLOCK,), (0,))
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, count, BLOCK):
        total += load_block(block, (0,), PADDING)
        block = advance(block, (BLOCK,))
    store_block(make_block_ptr(sums, (BLOCK,), (1,), (0,), (BLOCK,), (0,)), total)


def copied(kernel: Any, *corner: int, check: tuple[int, ...] = (0, 1), padding: str = "zero") -> torch.Tensor:
    source = torch.arange(ROWS * 64, dtype=torch.float32).view(ROWS, 64)
    target = torch.full((ROWS, COLUMNS), -1.0)
    kernel[(1,)](source, target, ROWS, COLUMNS, 64, *corner, 16, check, padding)
    return target


CORNERS = [(0, 0), (8, 32), (5, 3), (-3, -5), (ROWS, 0)]


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize("corner", CORNERS)
def test_blocks_are_cut_at_the_borders_of_the_tensor(corner: tuple[int, int]) -> None:
    want = torch.full((ROWS, COLUMNS), -1.0)
    rows = slice(max(corner[0], 0), max(corner[0] + 8, 0))
    columns = slice(max(corner[1], 0), max(corner[1] + 32, 0))
    want[rows, columns] = torch.arange(ROWS * 64, dtype=torch.float32).view(ROWS, 64)[:, :COLUMNS][rows, columns]
    assert torch.equal(copied(ours_kernel, *corner), want)
    if compat.capabilities()["block_pointers"]:
        assert torch.equal(copied(theirs_kernel, *corner), want)


def test_only_axes_that_are_checked_are_cut() -> None:
    assert torch.equal(copied(ours_kernel, 0, 9, check=(0,)), copied(ours_kernel, 0, 9))
    assert torch.equal(copied(ours_kernel, 5, 0, check=(1,)), copied(ours_kernel, 5, 0))
    assert torch.equal(copied(ours_kernel, 5, 9, check=()), copied(ours_kernel, 5, 9))


@pytest.mark.parametrize("padding", ["zero", "nan"])
def test_one_axis_and_what_lies_outside(padding: str) -> None:
    source, sums = torch.arange(21, dtype=torch.float32), torch.empty(8)
    sums_kernel[(1,)](source, sums, 21, 8, padding)
    whole = source[:8] + source[8:16]
    assert torch.equal(sums[:5], whole[:5] + source[16:])
    assert torch.equal(sums[5:], whole[5:]) if padding == "zero" else bool(sums[5:].isnan().all())


def test_names_are_there() -> None:
    assert all(getattr(surface, name) is not None for name in surface.__all__)
    assert surface.KEEP_NAN.value == tl.PropagateNan.ALL
    assert issubclass(surface.OutOfResources, Exception)
    assert issubclass(surface.CompilationError, Exception)
