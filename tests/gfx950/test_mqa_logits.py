"""The compiled gfx950 code of the MQA-logits kernels, executed instruction by instruction, agrees with float64."""

import pytest

from support.emulated_mqa import VARIANTS, WINDOWS, Case, execute, prepare, windowed

# Landing of direct-to-LDS copies, and where the kernel is entered.
SWITCHES = [{"landing": "late", "preload": True}, {"landing": "early", "preload": False}]


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def agrees(variant, case: Case) -> None:
    prepared = prepare(variant, case)
    for switches in SWITCHES:
        execute(prepared, measure=False, **switches)


@pytest.mark.dealt(together=("variant", "heads", "dim", "clean_logits"))
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("heads", "dim", "clean_logits"), [(64, 128, True), (64, 128, False), (32, 64, True)])
def test_windows(variant, windows, heads, dim, clean_logits):
    agrees(variant, Case(windowed(WINDOWS[windows], heads, dim), clean_logits))


@pytest.mark.dealt(together=["variant"])
@pytest.mark.parametrize("windows", WINDOWS)
def test_compressed_output(variant, windows):
    agrees(variant, Case(windowed(WINDOWS[windows], 64, 128), clean_logits=False, max_window=130))


@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "dim"), [(16, 32), (20, 128), (64, 32), (128, 64)])
def test_sizes(variant, heads, dim):
    agrees(variant, Case(windowed(WINDOWS["neighbours"], heads, dim), clean_logits=True))


@pytest.mark.dealt
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 113), (17, 76), (6, 1000)])
def test_shapes(variant, rows, keys):
    windows = [(row % 3, keys - row % 5) for row in range(rows)]
    agrees(variant, Case(windowed(windows, 64, 128, keys), clean_logits=True))


def test_classic_has_few_bank_conflicts():
    """Key tiles are written and read almost without conflicts; what is left comes from the query's transposition."""
    prepared = prepare(VARIANTS["classic"], Case(windowed(WINDOWS["full"], 64, 128), clean_logits=False))
    counters = execute(prepared).counters
    assert counters.lds_ideal_cycles <= counters.lds_cycles <= 1.5 * counters.lds_ideal_cycles
    print(f"LDS cycles {counters.lds_cycles}, ideal {counters.lds_ideal_cycles}; {dict(counters.instructions)}")
