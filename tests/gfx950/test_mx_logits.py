"""The compiled gfx950 and gfx942 code of MQA logits in MX formats, executed instruction by instruction, agrees with float64."""

import pytest

from support.emulated_mqa import WINDOWS, execute, prepare
from support.emulated_mx import (
    APART,
    GFX942_VARIANTS,
    PAGED,
    PAGED_VARIANTS,
    VARIANTS,
    MxCase,
    MxPagedCase,
    paged_case,
    windowed,
)
from support.mx_logits import PAIRS
from support.mx_paged import make_call

SWITCHES = [{"landing": "late", "preload": True}, {"landing": "early", "preload": False}]


def agrees(variant, case: MxCase | MxPagedCase) -> None:
    prepared = prepare(variant, case)
    for switches in SWITCHES:
        execute(prepared, measure=False, **switches)


@pytest.mark.dealt
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("windows", "heads", "dim", "clean_logits"), [("past the ends", 64, 128, True), ("start > 0", 32, 64, False)]
)
def test_windows(variant, windows, heads, dim, clean_logits):
    agrees(VARIANTS[variant], MxCase(windowed(WINDOWS[windows], heads, dim), clean_logits))


@pytest.mark.dealt
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pair", PAIRS[1:], ids=str)
def test_pairs_of_formats_and_compressed_output(variant, pair):
    agrees(VARIANTS[variant], MxCase(windowed(WINDOWS["neighbours"], 20, 128, pair), False, max_window=130))


@pytest.mark.dealt
@pytest.mark.parametrize("variant", PAGED_VARIANTS)
@pytest.mark.parametrize("kind", PAGED, ids=str)
def test_paged(variant, kind):
    agrees(PAGED_VARIANTS[variant], paged_case(*kind))


@pytest.mark.dealt
def test_scales_that_lie_apart():
    """FlyDSL's cache, where it lies; no variant but classic's copies from one."""
    agrees(PAGED_VARIANTS["classic"], paged_case(*APART))


@pytest.mark.dealt
@pytest.mark.parametrize("pair", PAIRS[::2], ids=str)
def test_gfx942_multiplies_in_bfloat16(pair):
    agrees(GFX942_VARIANTS["dense"], MxCase(windowed(WINDOWS["start > 0"], 32, 64, pair), clean_logits=True))


@pytest.mark.dealt
def test_paged_on_gfx942():
    agrees(GFX942_VARIANTS["paged"], MxPagedCase(make_call([1, 65, 0, 200], 1, 64, 128), 200, True))
