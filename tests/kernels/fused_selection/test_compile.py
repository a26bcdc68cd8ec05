"""The fused selections compiled for GPUs that are not here, by this lane's Triton: they fit, and nothing goes to memory."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat.offline.jobs import Job

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
