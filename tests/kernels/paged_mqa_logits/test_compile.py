"""The paged kernels compiled for GPUs that are not here, by this lane's Triton: they fit, and they use the matrix units."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate import compat
from capgate.compat.offline.jobs import Job, compile_variants
from capgate.kernels.common.schedule.operation import CHUNK_KEYS
from capgate.kernels.paged_mqa_logits.operation import operation

# Target: its shared memory, a part of its fp8 matrix instructions' names, and the format that they read.
TARGETS = {
    "cuda:90": (227 * 1024, "QGMMA", "float8_e4m3fn"),
    "hip:gfx950": (160 * 1024, "f8f6f4", "float8_e4m3fn"),
    "hip:gfx942": (64 * 1024, "fp8_fp8", "float8_e4m3fnuz"),
}
CONVERTING = ("hip:gfx942", "float8_e4m3fn")
OTHERS = [(32, 128, "clean"), (100, 64, "unclean"), (64, 128, "clean-bf16")]
KINDS = [(64, 128, "unclean"), *(pytest.param(kind, marks=pytest.mark.dealt) for kind in OTHERS)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: ",".join(map(str, kind)))
@pytest.mark.parametrize(("target", "fp8"), [*((target, own) for target, (*_, own) in TARGETS.items()), CONVERTING])
def test_classic_fits_without_spills_and_uses_the_matrix_units(
    compile_once: Callable[..., Any], target: str, fp8: str, kind: tuple[int, int, str]
) -> None:
    """Known bugs 3, shared memory that overflows 64 KiB, and 12, a matrix instruction hard-coded for one architecture."""
    shared_memory, instruction, own = TARGETS[target]
    (row,) = compile_once("fp8_paged_mqa_logits", target, [Job("classic", *kind, fp8)])
    assert row["compiled"], row["error"]
    assert 0 < row["lds_bytes"] <= shared_memory
    assert row["waves_per_simd"] * 4 >= row["tuning"]["num_warps"], "not even one workgroup fits"
    # The masks of e4m3fn's conversion for gfx942 may outgrow the scalar registers, into vector registers and not memory.
    assert row["scratch_bytes"] == 0
    assert row.get("hazards", []) == []
    assert row["spills"] == 0 or fp8 != own
    assert row["matrix_instructions"]
    assert all(instruction in name for name in row["matrix_instructions"])
    assert row["hot_loop"]["keys"] == row["tuning"]["block_keys"] * row["tuning"]["rows"] / row["tuning"]["num_warps"]
    assert CHUNK_KEYS % row["tuning"]["block_keys"] == 0, "two workers would write one tile"


@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx950"])
def test_the_report_knows_which_variant_a_target_takes(target: str) -> None:
    """The target's Gluon variant, where this Triton has what it needs; its step says why not otherwise."""
    trace, caps = operation.explain(operation.example(target)), compat.capabilities(target)
    gluon = {"cuda:90": "gluon_hopper", "hip:gfx950": "gluon_cdna4"}[target]
    assert trace.variant == (gluon if caps[gluon] else "classic"), str(trace)
    step = next(step for step in trace.steps if step.variant == gluon)
    assert step.accepted == bool(caps[gluon])
    assert caps[gluon] or step.reason == caps.why(gluon)


@pytest.mark.one_lane
def test_a_variant_that_cannot_run_there_is_listed_with_its_reason() -> None:
    rows = compile_variants("fp8_paged_mqa_logits", "cuda:80", modes=["unclean"], timeout=1200)["variants"]
    caps = compat.capabilities("cuda:80")
    assert {row["accepted"] for row in rows} == {False}
    assert {row["variant"]: row["error"] for row in rows} == {
        "gluon_cdna4": caps.why("gluon_cdna4"),
        "gluon_cdna3": caps.why("gluon_cdna3"),
        "gluon_hopper": caps.why("gluon_hopper"),
        "classic": caps.why("fp8_e4m3fn"),
    }


def test_there_is_no_compressed_output() -> None:
    with pytest.raises(ValueError, match="mode: got 'compressed', needs one of unclean, clean"):
        compile_variants("fp8_paged_mqa_logits", "hip:gfx950", modes=["compressed"])
