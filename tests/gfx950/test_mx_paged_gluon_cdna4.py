"""mx_paged_mqa_logits' Gluon variant for gfx950, as this lane's Triton compiles it: what it takes, and what its loop holds."""

from typing import Any

import pytest

from capgate.compat import capabilities
from capgate.compat.offline.child import describe
from capgate.kernels.common.rules import padded_heads
from capgate.kernels.common.schedule.operation import CHUNK_KEYS
from capgate.kernels.mx_paged_logits.api import describe as describe_call
from capgate.kernels.mx_paged_logits.operands import Inputs
from capgate.kernels.mx_paged_logits.operation import Problem, example_call, operation
from capgate.kernels.mx_paged_logits.tunings import gluon_cdna4 as tuning
from capgate.kernels.tools.compile_command import vector_per_32_keys
from support import paged
from support.emulated_mqa import TARGET, Prepared, execute, prepare
from support.emulated_mx import PAGED, PAGED_VARIANTS, MxPagedCase, paged_case
from support.mx_logits import PAIRS
from support.mx_paged import make_call
from support.steady_loop import check_copies_stay_in_flight, check_steady_loop, steady_loop
from support.wait_states import check_wait_states, wait_states

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))

# Those that are executed with both landings, in waves of a SIMD and vector instructions for 32 keys of a row of 64 heads at
# most: as counted in docs/design/mx_logits.md on Triton 3.6.0, where there are most. Blocks of no whole tiles take addresses.
LIMITS = dict(zip(PAGED, [(2.75, 52), (2.75, 94.5), (2.75, 73.5), (4, 64), (2.75, 56)], strict=True))
LIMITS[("flat", PAIRS[1], 128, 64, 2, 128)] = (2, 52)
STEADY = 3 * 9 * 2 * 64  # keys of three rounds of each of the programs that share them


def prepared(case: MxPagedCase) -> Prepared:
    return prepare(PAGED_VARIANTS["gluon_cdna4"], case)


@pytest.mark.parametrize(
    "kind", [kind if kind[3:] == (64, 1, 64) else pytest.param(kind, marks=pytest.mark.dealt) for kind in LIMITS], ids=str
)
def test_every_kind_compiles_within_its_limits(kind: Any) -> None:
    """And no bank conflict in LDS; blocks that the cache lacks score as minus infinity."""
    layout, (q_format, k_format), dim, block, next_n, heads = kind
    case = paged_case(*kind)
    lost = paged.without_blocks(paged.PagedCall(case.call.q, *case.call[2:]), 3)
    found = prepared(case._replace(call=case.call._replace(block_table=lost.block_table)))
    problem = Problem(TARGET, heads, dim, q_format, k_format, case.clean_logits, block, next_n, layout=layout)
    row = {**describe(found.compiled, TARGET, example_call(problem), ""), "heads": heads}
    row |= wait_states(found.compiled.asm["amdgcn"])

    waves, most = LIMITS[kind]
    tune = tuning(problem)
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] == waves == tune.resident * tune.num_warps / 4
    assert CHUNK_KEYS % tune.block_keys == 0, "two workers would write one tile"
    assert set(row["matrix_instructions"]) == {"v_mfma_scale_f32_32x32x64_f8f6f4"}
    assert row["hot_loop"]["mfma"] * 32 * 32 * 64 == row["hot_loop"]["keys"] * padded_heads(heads) * dim
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 48 < vector <= most
    counters = execute(found).counters
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    check_wait_states(row)


@pytest.mark.parametrize("kind", [PAGED[0], pytest.param(PAGED[3], marks=pytest.mark.dealt)], ids=str)
def test_steady_loop(kind: Any) -> None:
    """No barrier but between the waves of a program, and two tiles in flight whenever one is scored."""
    waves = 2 if kind is PAGED[3] else 1
    found = prepared(paged_case(*kind, lens=(STEADY,)))
    texts, _ = steady_loop(found)
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    assert found.compiled.metadata.num_warps == waves
    assert sum(text == "s_barrier" for text in texts) == (3 if waves > 1 else 0)  # one for each tile of a round
    assert sum(text.startswith("v_mfma") for text in texts) >= 3 * 2


def test_chosen_on_gfx950() -> None:
    problem = operation.example(TARGET)
    assert operation.select(problem).name == "gluon_cdna4"
    declined = problem._replace(direct_keys=False)
    assert operation.select(declined).name == "classic"
    assert "a multiple of 16 bytes apart" in str(operation.explain(declined))
    few = problem._replace(dim=32, q_format="mxfp8", k_format="mxfp8")
    assert operation.select(few).name == "classic"
    assert "needs 64 dims or 128" in str(operation.explain(few))


def test_blocks_that_can_be_copied_directly() -> None:
    """16 bytes apart, as those of 68 bytes for each of 64 keys are; a block of one such key is none."""
    for block, gap, direct in ((64, 0, True), (64, 4, False), (1, 0, False), (1, 12, True)):
        call = make_call([70], 1, 16, 128, block, gap=gap)
        assert describe_call(Inputs(*call), False).direct_keys == direct
