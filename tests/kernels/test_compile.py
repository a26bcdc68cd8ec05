"""Kernels that have no tests of their compiled code beside their others."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat.offline.jobs import Job

JOBS = {
    "gather_keys": Job("classic", mode="gather"),
    "paged_mqa_schedule": Job("classic", mode="schedule"),
    "quantize_keys_to_cache": Job("classic", mode="write"),
}


@pytest.mark.dealt
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942", "hip:gfx950"])
@pytest.mark.parametrize("operation", JOBS)
def test_classic_fits_without_spills(compile_once: Callable[..., Any], operation: str, target: str) -> None:
    (row,) = compile_once(operation, target, [JOBS[operation]])
    assert row["compiled"], row["error"]
    assert (row["spills"], row["scratch_bytes"]) == (0, 0)
