"""What a call must not write: cells outside the windows, padding, operands. Every word starts as a different NaN."""

import pytest
import torch

from capgate.kernels import fp8_mqa_logits
from support import judge

LAYOUTS = {
    "padded-rows": {"gap": 7, "offset": 9},
    "columns-first": {"order": (1, 0), "gap": 3, "offset": 1},
    "every-third-column": {"step": 3, "offset": 2},
}


@pytest.mark.dealt("max_window", "layout")
@pytest.mark.parametrize("windows", ["full", "causal", "packed", "ragged", "extreme", "empty"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("max_window", [None, 31], ids=["logits", "compressed"])
def test_unclean_logits_change_no_cell_outside_the_windows(
    variant: str, windows: str, layout: dict[str, object], max_window: int | None
) -> None:
    call = judge.make_call(9, 150, 64, 32, windows)
    out = judge.sentinels(9, 150 if max_window is None else max_window, **layout)
    judge.check(call, variant, clean_logits=False, max_window=max_window, out=out)


@pytest.mark.dealt("layout")
@pytest.mark.parametrize("windows", ["full", "causal", "packed", "ragged", "extreme", "empty"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_clean_logits_write_every_cell_and_no_padding(variant: str, windows: str, layout: dict[str, object]) -> None:
    out = judge.sentinels(9, 150, **layout)
    judge.check(judge.make_call(9, 150, 64, 32, windows), variant, out=out)


@pytest.mark.dealt
@pytest.mark.parametrize("keys", [1, 255, 256, 257, 1100])
def test_clean_logits_fill_both_sides_of_a_narrow_window(variant: str, keys: int) -> None:
    call = judge.make_call(5, keys, 16, 32)
    for start in sorted({0, keys // 2, keys - 1}):
        starts = torch.full((5,), start, dtype=torch.int32)
        judge.check(call._replace(starts=starts, ends=starts + 1), variant)


def test_cells_of_a_wider_buffer_belong_to_their_owner(variant: str) -> None:
    """An engine scores requests into slices of one buffer."""
    buffer = judge.sentinels(12, 200)
    before = buffer.clone()
    fp8_mqa_logits(*judge.make_call(5, 60, 16, 32), out=buffer[3:8, 70:130], variant=variant)
    buffer.view(torch.int32)[3:8, 70:130] = before.view(torch.int32)[3:8, 70:130]
    assert torch.equal(buffer.view(torch.int32), before.view(torch.int32))
