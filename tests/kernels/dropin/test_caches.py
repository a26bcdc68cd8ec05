"""Cells of draft rows that engines find at -inf."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capgate.kernels.dropin.caches import MASKED, mask_drafts

pytestmark = pytest.mark.any_triton


@pytest.mark.parametrize("columns", [1, 7, 40, 90])
@pytest.mark.parametrize("next_n", [1, 2, 9, 12, 33, 80])
def test_cells_that_later_rows_see(next_n: int, columns: int) -> None:
    """Fewer keys than rows, none, more than there are columns; more cells than are masked at a time; padded rows."""
    lens = torch.tensor([0, 1, 6, 39, 40, 41, 90, 200], dtype=torch.int32)
    out = torch.ones(len(lens) * next_n, 96)[:, :columns]
    mask_drafts(out, lens, next_n)
    for request, length in enumerate(lens.tolist()):
        for draft in range(next_n):
            seen, row = max(0, length - next_n + draft + 1), out[request * next_n + draft]
            assert (row[:seen] == 1).all()
            assert row[seen:length].isneginf().all()
            assert (row[length:] == 1).all()


class Largest(TorchDispatchMode):
    """The largest tensor, in elements, that operations return beside those in some memory."""

    def __init__(self, known: torch.Tensor) -> None:
        super().__init__()
        self.elements, self._known = 0, known.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        if isinstance(found, torch.Tensor) and found.untyped_storage().data_ptr() != self._known:
            self.elements = max(self.elements, found.numel())
        return found


@pytest.mark.parametrize("next_n", [5, 9, 40, 100])
def test_what_is_allocated_does_not_grow_with_the_square(next_n: int) -> None:
    out, lens = torch.zeros(3 * next_n, 150), torch.full((3,), 140, dtype=torch.int32)
    with Largest(out) as largest:
        mask_drafts(out, lens, next_n)
    assert 0 < largest.elements <= 3 * max(MASKED, next_n - 1)


def test_requests_of_one_row_cost_no_operation() -> None:
    out, lens = torch.zeros(3, 150), torch.full((3,), 140, dtype=torch.int32)
    with Largest(out) as largest:
        mask_drafts(out, lens, 1)
    assert largest.elements == 0
