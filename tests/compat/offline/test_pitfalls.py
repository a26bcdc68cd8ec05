"""What this lane's Triton makes of the kernels of support.pitfalls, read in compiled code."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from capgate import compat
from support.processes import environment

for needed in ("torch", "triton"):
    pytest.importorskip(needed)


def compile_all() -> dict[str, Any]:
    command = [sys.executable, "-m", "support.compile_pitfalls"]
    child = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment())
    assert child.returncode == 0, child.stderr[-4000:]
    return json.loads(child.stdout)


@pytest.fixture
def compiled(once: Callable[..., Any]) -> dict[str, Any]:
    return once("pitfalls", compile_all)


@pytest.mark.parametrize("kernel", ["carried_bounds", "gluon_carried_bounds"])
def test_the_bounds_that_a_loop_carries_stay_in_it_where_the_capability_holds(compiled: dict[str, Any], kernel: str) -> None:
    caps = compat.capabilities("cuda:90")
    if kernel.startswith("gluon") and not caps.gluon:
        pytest.skip(caps.why("gluon"))
    # Both loads of the next row's bounds, or none: the inner loop then has the first row's in every row.
    assert compiled["loads"][kernel] == (2 if caps.carried_loop_bounds else 0), caps.why("carried_loop_bounds")


def test_a_wgmma_behind_a_loop_has_its_descriptor_on_every_way_where_the_capability_holds(compiled: dict[str, Any]) -> None:
    caps = compat.capabilities("cuda:90")
    if not caps.gluon:
        pytest.skip(caps.why("gluon"))
    assert (compiled["undefined"] == []) == caps.wgmma_after_zero_trip_loop, caps.why("wgmma_after_zero_trip_loop")


def test_a_wgmma_is_fenced_from_the_copies_that_it_reads_where_the_capability_holds(compiled: dict[str, Any]) -> None:
    caps = compat.capabilities("cuda:90")
    # Four of 64 x 64 x 16 in the loop, and all of them, or none.
    assert compiled["unfenced"] == (0 if caps.wgmma_after_async_copy else 4), caps.why("wgmma_after_async_copy")


def test_the_widest_attention_tiles_spill_on_gfx950_where_the_capability_does_not_hold(compiled: dict[str, Any]) -> None:
    caps = compat.capabilities("hip:gfx950")
    assert (compiled["spilled"] == 0) == caps.gfx950_wide_tiles, caps.why("gfx950_wide_tiles")


def test_stores_that_may_reach_past_2_gib_are_no_buffer_stores(compiled: dict[str, Any]) -> None:
    """Buffer stores reach 2 GiB, and what lies behind stays unwritten; of what surely lies within, they are made by default."""
    made = compiled["buffer_stores"]
    assert made["of 16 GiB"] == 0
    assert (made["of 256 bytes"] > 0) == compat.capabilities("hip:gfx950").amd_buffer_ops_default


def test_an_mbarrier_that_nobody_uses_shares_its_memory_and_is_found_out(compiled: dict[str, Any]) -> None:
    """Every Triton's allocator gives it to the tile behind it; what invalidates the barrier first is in order."""
    caps = compat.capabilities("cuda:90")
    if not caps.gluon:
        pytest.skip(caps.why("gluon"))
    unused, invalidated = compiled["faults"]
    assert len(unused) == 1
    assert re.fullmatch(r"the mbarrier at \d+ is valid while .* writes \d+ to \d+", unused[0])
    assert invalidated == []
