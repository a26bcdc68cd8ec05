"""mx_mqa_logits' Gluon variant for gfx950, as this lane's Triton compiles it: what it takes, and no bank conflict in LDS."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat import capabilities
from capgate.compat.offline.jobs import Job
from capgate.kernels.common.rules import padded_heads
from capgate.kernels.mx_logits.operation import operation
from capgate.kernels.tools.compile_command import vector_per_32_keys
from support.emulated_mqa import TARGET, WINDOWS, execute, prepare, spills_nothing, turned
from support.emulated_mx import VARIANTS, MxCase, windowed
from support.mx_logits import PAIRS
from support.wait_states import check_wait_states

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))

# Heads, dims, mode, waves of a SIMD, and the most vector instructions for 32 keys of a row: as counted in
# docs/design/mx_logits.md on Triton 3.6.0, where there are most.
KINDS = [
    (64, 128, "mxfp4-unclean", 4, 54.5),
    (64, 128, "mxfp4-clean", 4, 55),
    (32, 128, "mxfp4-clean", 4, 58.5),
    (64, 128, "mxfp8-clean", 3, 55),
]
DEALT = [(16, 128, "mxfp4-clean", 4, 65), (128, 128, "mxfp4-clean", 2, 53.5), (64, 64, "mxfp4-clean", 4, 52)]


@pytest.mark.parametrize(
    ("heads", "dim", "mode", "waves", "most"), [*KINDS, *(pytest.param(*kind, marks=pytest.mark.dealt) for kind in DEALT)]
)
def test_every_tuning_compiles_within_its_limits(
    compile_once: Callable[..., Any], heads: int, dim: int, mode: str, waves: int, most: float
) -> None:
    (row,) = compile_once("mx_mqa_logits", str(TARGET), [Job("gluon_cdna4", heads, dim, mode)])
    assert row["compiled"], row["error"]
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] == waves
    assert row["tuning"]["resident"] * row["tuning"]["num_warps"] == waves * 4, "a CU holds another number"
    assert set(row["matrix_instructions"]) == {"v_mfma_scale_f32_32x32x64_f8f6f4"}
    assert row["hot_loop"]["mfma"] * 32 * 32 * 64 == row["hot_loop"]["keys"] * padded_heads(heads) * dim
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 48 < vector <= most
    check_wait_states(row)


@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "dim", "pair"), [(64, 128, PAIRS[0]), (32, 64, PAIRS[0]), (64, 128, PAIRS[1])], ids=str)
def test_lds_cycles_are_ideal(heads: int, dim: int, pair: tuple[str, str]) -> None:
    prepared = prepare(VARIANTS["gluon_cdna4"], MxCase(windowed(WINDOWS["full"], heads, dim, pair), clean_logits=False))
    counters = execute(prepared).counters
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0


@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "dim", "pair"), [(128, 128, PAIRS[1]), (16, 64, PAIRS[0])], ids=str)
def test_queries_whose_dims_are_not_adjacent(heads: int, dim: int, pair: tuple[str, str]) -> None:
    """They take a register for each byte while they are loaded: in parts, so that none spills."""
    call = turned(windowed([(0, 70)] * 3, heads, dim, pair, keys=70))
    prepared = prepare(VARIANTS["gluon_cdna4"], MxCase(call, clean_logits=False))
    assert spills_nothing(prepared)
    for landing in ("late", "early"):
        execute(prepared, landing=landing, measure=False)


def test_keys_that_cannot_go_straight_to_lds_and_few_dims_go_to_classic() -> None:
    problem = operation.example(TARGET)
    assert operation.explain(problem).variant == "gluon_cdna4"
    for other in (problem._replace(direct_keys=False), problem._replace(dim=32, q_format="mxfp8", k_format="mxfp8")):
        assert operation.explain(other).variant == "classic"
