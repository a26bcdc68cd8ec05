"""The fused selections compiled for GPUs that are not here, by this lane's Triton: they fit, and no vector register spills."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat.offline.jobs import Job

MEMORY = {"cuda:90": 227 * 1024, "hip:gfx950": 160 * 1024, "hip:gfx942": 64 * 1024}
CELLS = [("fp8_select_keys", target) for target in MEMORY] + [("fp8_select_paged_keys", "cuda:90")]


@pytest.mark.parametrize(("operation", "target"), CELLS)
def test_classic_fits_without_spills(compile_once: Callable[..., Any], operation: str, target: str) -> None:
    """On AMD kernel arguments go to lanes of a vector register, outside the loops of tiles: see docs/design."""
    (row,) = compile_once(operation, target, [Job("classic", mode="indices")])
    assert row["compiled"], row["error"]
    assert row["lds_bytes"] <= MEMORY[target]
    assert row["scratch_bytes"] == 0
    assert row["spills"] == 0 or target.startswith("hip")
