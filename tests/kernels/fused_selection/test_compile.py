"""The fused selections compiled for GPUs that are not here, by this lane's Triton: they fit, and nothing goes to memory."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat import capabilities
from capgate.compat.offline.jobs import Job
from capgate.kernels.tools.compile_command import vector_per_32_keys

MEMORY = {"cuda:90": 227 * 1024, "hip:gfx950": 160 * 1024, "hip:gfx942": 64 * 1024}
CELLS = [
    ("fp8_select_keys", "cuda:90"),
    ("fp8_select_keys", "hip:gfx950"),
    pytest.param("fp8_select_keys", "hip:gfx942", marks=pytest.mark.one_lane),
    pytest.param("fp8_select_paged_keys", "cuda:90", marks=pytest.mark.one_lane),
]


@pytest.mark.parametrize(("operation", "target"), CELLS)
def test_classic_fits_and_spills_nothing_to_memory(compile_once: Callable[..., Any], operation: str, target: str) -> None:
    """On AMD scalar registers with kernel arguments go to lanes of a vector register: docs/design/fused_selection.md."""
    (row,) = compile_once(operation, target, [Job("classic", mode="indices")])
    assert row["compiled"], row["error"]
    assert row["lds_bytes"] <= MEMORY[target]
    assert row["scratch_bytes"] == 0
    assert row["spills"] == 0 or target.startswith("hip:")


@pytest.mark.skipif(not capabilities("hip:gfx950").gluon_cdna4, reason=capabilities("hip:gfx950").why("gluon_cdna4"))
def test_waves_append_at_little_cost(compile_once: Callable[..., Any]) -> None:
    """Vector instructions for 32 keys of a row of 64 heads: 53 to 54 are those of the logits. No vector register spills, which
    would take scratch memory or an accumulator; scalar ones are none of the loop's, where they would be vector instructions."""
    (row,) = compile_once("fp8_select_keys", "hip:gfx950", [Job("gluon_cdna4", mode="indices")])
    assert row["compiled"], row["error"]
    assert row["lds_bytes"] * row["tuning"]["resident"] <= MEMORY["hip:gfx950"]
    assert row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] == 3
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 50 < vector <= 57


@pytest.mark.one_lane
def test_a_launch_that_the_example_does_not_make_is_said(compile_once: Callable[..., Any]) -> None:
    """A gfx950 that is not here counts as one CU, which runs one program, and shares no row."""
    (row,) = compile_once("fp8_select_keys", "hip:gfx950", [Job("classic", mode="merge")])
    assert not row["compiled"]
    assert row["error"] == "mode: got 'merge', a launch that the example's call does not make there"
