"""bfloat16 weights and logits on gfx950, as this lane's Triton compiles them: executed, and what their steady loops hold."""

import pytest
import torch

from capgate.compat import capabilities
from support import emulated_mqa, emulated_paged_mqa
from support.emulated_mqa import TARGET, WINDOWS, Case, execute, prepare, windowed
from support.emulated_paged_mqa import PagedCase
from support.paged import make_call, without_blocks
from support.steady_loop import check_copies_stay_in_flight, check_steady_loop, steady_loop

BF16 = torch.bfloat16
gluon = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))
variants = pytest.mark.parametrize("variant", ["classic", pytest.param("gluon_cdna4", marks=gluon)])


def check_rounding(variant: emulated_mqa.Variant, case: Case | PagedCase) -> None:
    """The case in bfloat16, with copies landing late and early, and that its logits are those of float32, rounded."""
    call = case.call._replace(weights=case.call.weights.to(BF16))
    rounded, whole = (prepare(variant, case._replace(call=call, dtype=dtype)) for dtype in (BF16, torch.float32))
    execute(whole, measure=False)
    written = whole.answer.inside | case.clean_logits
    for landing in ("late", "early"):
        execute(rounded, measure=False, landing=landing)
        assert torch.equal(rounded.out[written], whole.out.to(BF16)[written])


@pytest.mark.dealt
@variants
@pytest.mark.parametrize(
    ("windows", "heads", "clean_logits", "max_window"),
    [("neighbours", 64, True, None), ("past the ends", 100, False, None), ("start > 0", 16, False, 130)],
)
def test_dense_logits(variant: str, windows: str, heads: int, clean_logits: bool, max_window: int | None) -> None:
    case = Case(windowed(WINDOWS[windows], heads, 64), clean_logits, max_window)
    check_rounding(emulated_mqa.VARIANTS[variant], case)


@pytest.mark.dealt
@variants
@pytest.mark.parametrize(("heads", "next_n", "block", "clean_logits"), [(64, 1, 64, True), (64, 4, 64, False)])
def test_paged_logits(variant: str, heads: int, next_n: int, block: int, clean_logits: bool) -> None:
    check_paged(variant, heads, next_n, block, clean_logits)


@pytest.mark.dealt
@variants
def test_paged_logits_of_small_blocks(variant: str) -> None:
    """One wave alone, whose first copies lie behind reads of the same bytes and no barrier."""
    check_paged(variant, 100, 3, 16, True)


def check_paged(variant: str, heads: int, next_n: int, block: int, clean_logits: bool) -> None:
    case = PagedCase(without_blocks(make_call([70, 0, 131, 3], next_n, heads, 32, block), 3), 140, clean_logits)
    check_rounding(emulated_paged_mqa.VARIANTS[variant], case)


@pytest.mark.dealt
@variants
def test_rows_of_a_new_output_are_filled(variant: str) -> None:
    """By stores of 16 bytes, where they begin at multiples of them."""
    case = Case(windowed([(600, 601), (0, 3), (1290, 1300)], 16, 32, keys=1300), True, aligned=True)
    check_rounding(emulated_mqa.VARIANTS[variant], case)
    check_rounding(emulated_paged_mqa.VARIANTS[variant], PagedCase(make_call([5, 130]), 2100, True, aligned=True))


@pytest.mark.dealt
@gluon
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
def test_the_dense_steady_loop_is_that_of_float32_but_for_the_rounding(clean_logits: bool) -> None:
    call = windowed([(0, 2048)] * 4, 64, 128, keys=2048)
    texts, counters = steady_loop(prepare(emulated_mqa.VARIANTS["gluon_cdna4"], Case(call, clean_logits, dtype=BF16)))
    check_steady_loop(texts)
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    assert sum(text.startswith("v_cvt_pk_bf16_f32") for text in texts) == 2  # of 128 keys, in parts of 64


@pytest.mark.dealt
@gluon
@pytest.mark.parametrize("next_n", [1, 4])
def test_the_paged_steady_loop_is_that_of_float32_but_for_the_rounding(next_n: int) -> None:
    call = make_call([4608], next_n, 64, 128)
    call = call._replace(weights=call.weights.to(BF16))
    texts, counters = steady_loop(prepare(emulated_paged_mqa.VARIANTS["gluon_cdna4"], PagedCase(call, 4608, False, dtype=BF16)))
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    assert sum(text == "s_barrier" for text in texts) == (3 if next_n > 1 else 0)
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    assert sum(text.startswith("v_cvt_pk_bf16_f32") for text in texts) == 3
