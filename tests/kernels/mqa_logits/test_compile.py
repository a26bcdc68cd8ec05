"""Kernels compiled for GPUs that are not here, by this lane's Triton: they fit, and they use the matrix units."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate import compat
from capgate.compat.offline.jobs import Job, compile_jobs, compile_variants
from capgate.kernels.mqa_logits.operation import operation
from capgate.kernels.tools.compile_command import vector_per_32_keys
from support.wait_states import check_wait_states

SHARED_MEMORY = {"cuda:90": 227 * 1024, "hip:gfx950": 160 * 1024, "hip:gfx942": 64 * 1024}
MATRIX_INSTRUCTION = {"cuda:90": "QGMMA", "hip:gfx950": "f8f6f4", "hip:gfx942": "fp8_fp8"}
TARGETS = {
    "sm90": ("cuda:90", "float8_e4m3fn"),
    "gfx950": ("hip:gfx950", "float8_e4m3fn"),
    "gfx942": ("hip:gfx942", "float8_e4m3fnuz"),
    "gfx942-converting": ("hip:gfx942", "float8_e4m3fn"),
}
KINDS = {
    "64,128,clean": (64, 128, "clean"),
    "32,128,clean": (32, 128, "clean"),
    "64,128,unclean": (64, 128, "unclean"),
    "64,128,compressed": (64, 128, "compressed"),
    "100,64,clean": (100, 64, "clean"),
    "64,128,clean-bf16": (64, 128, "clean-bf16"),
}

# Vector instructions for 32 keys of a row of 64 heads: 32 for relu, 32 multiply-adds, and 80 to convert 32 keys of 128 bytes.
VECTOR_LIMITS = {"gfx942": 104, "gfx942-converting": 200}
KNOWS_GFX1250 = compat.capabilities("hip:gfx1250")["knows_gfx1250"]

# What converts differs from what does not in the loading of keys alone: two kinds will do.
CONVERTING = ("64,128,clean", "100,64,clean")
EVERYWHERE = ("64,128,clean", "64,128,unclean")  # in every lane; the lanes but 3.6.0 share out the others
each = pytest.mark.parametrize(
    ("target", "fp8", "kind"),
    [
        pytest.param(*TARGETS[name], kind, id=f"{kind}-{name}", marks=() if kind in EVERYWHERE else pytest.mark.dealt)
        for name in TARGETS
        for kind in (CONVERTING if name == "gfx942-converting" else KINDS)
    ],
)


@pytest.fixture
def row(compile_once: Callable[..., Any], target: str, fp8: str, kind: str) -> dict[str, Any]:
    (row,) = compile_once("fp8_mqa_logits", target, [Job("classic", *KINDS[kind], fp8)])
    assert (row["heads"], row["dim"], row["mode"], row["dtype"]) == (*KINDS[kind], fp8)
    assert row["compiled"], row["error"]
    return row


@each
def test_bug_3_shared_memory_fits_the_part(row: dict[str, Any], target: str) -> None:
    """Known bug 3: Shared-memory overflow at H = 64, D = 128 on parts with 64 KiB (gfx942)."""
    assert 0 < row["lds_bytes"] <= SHARED_MEMORY[target]
    assert row["waves_per_simd"] * 4 >= row["tuning"]["num_warps"], "not even one workgroup fits"


@each
def test_bug_12_every_architecture_gets_its_own_fp8_matrix_instruction(row: dict[str, Any], target: str) -> None:
    """Known bug 12: The matrix-instruction version was hard-coded for one architecture."""
    instructions = row["matrix_instructions"]
    assert instructions
    assert all(MATRIX_INSTRUCTION[target] in name for name in instructions), instructions


@each
def test_registers_suffice_without_spills(row: dict[str, Any]) -> None:
    assert (row["spills"], row["scratch_bytes"]) == (0, 0)


@pytest.mark.parametrize(
    ("target", "fp8", "kind"), [(*TARGETS[name], "64,128,clean") for name in VECTOR_LIMITS], ids=VECTOR_LIMITS
)
def test_relu_takes_one_instruction_without_a_maximum_and_converting_ten_for_four_bytes(row: dict[str, Any], fp8: str) -> None:
    limit = VECTOR_LIMITS["gfx942-converting" if fp8 == "float8_e4m3fn" else "gfx942"]
    assert vector_per_32_keys(row) <= limit


@each
def test_no_wait_state_is_missing(row: dict[str, Any], target: str) -> None:
    if target.startswith("hip:"):
        check_wait_states(row)
    else:
        assert "hazards" not in row


@pytest.mark.skipif(not KNOWS_GFX1250, reason=KNOWS_GFX1250.reason)
def test_gfx1250(compile_once: Callable[..., Any]) -> None:
    """By its fp8 matrix instruction, in registers. Nothing more is known of it."""
    (row,) = compile_once("fp8_mqa_logits", "hip:gfx1250", [Job("classic")])
    assert row["compiled"], row["error"]
    assert row["spills"] == row["scratch_bytes"] == 0
    assert set(row["matrix_instructions"]) == {"v_wmma_f32_16x16x128_fp8_fp8"}
    assert row["hot_loop"]["mfma"] * 16 * 16 == row["hot_loop"]["keys"] * row["heads"]


@each
def test_the_hot_loop_is_the_walk_over_the_key_tiles(row: dict[str, Any]) -> None:
    """A pass scores one tile for all rows of the program, shared out among its waves: no other loop has as many products."""
    tuning, loop = row["tuning"], row["hot_loop"]
    assert loop["keys"] == tuning["block_keys"] * tuning["rows"] / tuning["num_warps"]
    assert 0 < loop["mfma"] < sum(row["matrix_instructions"].values()) + 1
    assert sum(loop[kind] for kind in ("valu", "salu", "mfma", "lds", "vmem")) <= loop["total"]
    assert min(loop["valu"], loop["lds"], loop["vmem"]) > 0


@pytest.mark.one_lane
def test_a_variant_that_cannot_run_there_is_listed_with_its_reason() -> None:
    """sm80 has no fp8; a Triton that does not know an architecture, or hangs on it, is not even started."""
    rows = compile_variants("fp8_mqa_logits", "cuda:80", modes=["unclean"], timeout=1200)["variants"]
    assert {row["compiled"] for row in rows} == {row["accepted"] for row in rows} == {False}
    assert {row["variant"]: row["error"] for row in rows}["classic"] == compat.capabilities("cuda:80").why("fp8_e4m3fn")
    assert "reference" not in {row["variant"] for row in rows}, "there is nothing to compile in it"


@pytest.mark.one_lane
@pytest.mark.parametrize("variant", ["classic", "reference"])
def test_a_named_variant_that_cannot_run_there_is_an_error(variant: str) -> None:
    with pytest.raises(compat.CapabilityError, match=f"cannot compile variant '{variant}' for cuda:80: (needs|has no kernel)"):
        compile_variants("fp8_mqa_logits", "cuda:80", variant=variant, modes=["unclean"], timeout=1200)


@pytest.mark.one_lane
def test_switches_reach_the_compiler() -> None:
    with compat.override(disable=["fp8_e4m3fn"]):
        (row,) = compile_jobs("fp8_mqa_logits", "cuda:90", [Job("classic")], timeout=1200)
    assert row["accepted"] is False
    assert "disabled by" in row["error"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"operation": "fp8_mqa_logit"}, "operation: no operation 'fp8_mqa_logit'; the nearest are .*fp8_mqa_logits"),
        ({"target": "hip:gfx9500"}, "target: got 'gfx9500'.* the nearest are .*gfx950"),
        ({"target": "cpu"}, "target: got cpu, needs a GPU"),
        ({"variant": "clasic"}, "variant: fp8_mqa_logits has no variant 'clasic'; the nearest are classic"),
        ({"heads": 0}, "heads: got 0, needs 1 to 128"),
        ({"dim": 48}, "dim: got 48, needs one of 32, 64, 128"),
        ({"modes": ["dirty"]}, "mode: got 'dirty', needs one of unclean, clean, compressed"),
    ],
)
def test_what_does_not_exist_is_named_before_a_compiler_starts(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compile_variants(**{"operation": "fp8_mqa_logits", "target": "hip:gfx950", **arguments})


def test_explain_says_whether_gfx950_gets_gluon() -> None:
    """A Triton that lacks Gluon's interface of 3.6 takes classic there, and the trace names what is missing."""
    trace = operation.explain(operation.example("hip:gfx950"))
    gluon = next(step for step in trace.steps if step.variant == "gluon_cdna4")
    if compat.capabilities("hip:gfx950").gluon:
        assert (trace.variant, gluon.accepted) == ("gluon_cdna4", True)
    else:
        assert (trace.variant, gluon.accepted) == ("classic", False)
        assert gluon.reason.startswith("needs the Gluon API of Triton 3.6: found ")
