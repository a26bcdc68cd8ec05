"""MQA logits compiled for gfx942 by this lane's Triton: what they take, and that their code, executed, agrees with float64."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from capgate.compat import capabilities
from capgate.compat.offline.jobs import Job
from capgate.kernels.common.rules import padded_heads
from capgate.kernels.mqa_logits.operation import operation
from capgate.kernels.tools.compile_command import vector_per_32_keys
from emulator import parse
from emulator.hazards import hazards
from support.emulated_mqa import (
    VARIANTS,
    WINDOWS,
    Case,
    Variant,
    execute,
    on_gfx942,
    prepare,
    spills_nothing,
    turned,
    windowed,
    with_64_bit_offsets,
)
from support.steady_loop import check_defects_are_found, steady_loop

TARGET = "hip:gfx942"
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
gluon = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna3, reason=capabilities(TARGET).why("gluon_cdna3"))

# Heads, dims, output mode, format, waves on a SIMD, and the most vector instructions for 32 keys of a row of 64 heads.
LIMITS = {
    (64, 128, "unclean", FNUZ): (3, 55),
    (64, 128, "compressed", FNUZ): (3, 55),
    (64, 128, "clean", FNUZ): (2, 55),
    (64, 128, "clean-bf16", FNUZ): (2, 57),
    (64, 128, "clean", FN): (2, 92),
    (32, 128, "unclean", FNUZ): (3, 58),
}
LIMITS_DEALT = {  # of other sizes than the models'
    (32, 32, "clean", FNUZ): (3, 61),
    (16, 128, "clean", FNUZ): (3, 73),
    (128, 128, "unclean", FNUZ): (2, 53),
}


def gluon_variant() -> Variant:
    from capgate.compat.gluon import GluonASTSource
    from capgate.kernels.mqa_logits import gluon_cdna3

    return on_gfx942(Variant(gluon_cdna3.kernel, GluonASTSource))


@gluon
@pytest.mark.parametrize(
    "kind",
    [*LIMITS, *(pytest.param(kind, marks=pytest.mark.dealt) for kind in LIMITS_DEALT)],
    ids=lambda kind: "-".join(map(str, kind)),
)
def test_every_tuning_compiles_within_its_limits(compile_once: Callable[..., Any], kind: tuple[Any, ...]) -> None:
    waves, vector = (LIMITS | LIMITS_DEALT)[kind]
    heads, dim, mode, dtype = kind
    (row,) = compile_once("fp8_mqa_logits", TARGET, [Job("gluon_cdna3", heads, dim, mode, str(dtype).removeprefix("torch."))])
    assert row["compiled"], row["error"]
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] >= waves
    assert vector_per_32_keys(row) <= vector
    assert set(row["matrix_instructions"]) == {"v_mfma_f32_32x32x16_fp8_fp8"}
    assert row["hot_loop"]["mfma"] * 32 * 32 * 16 == row["hot_loop"]["keys"] * padded_heads(heads) * dim


@gluon
@pytest.mark.parametrize(
    ("heads", "dim", "clean_logits", "dtype"),
    [
        (64, 128, False, FNUZ),
        (64, 128, True, FN),
        *(pytest.param(*kind, marks=pytest.mark.dealt) for kind in ((32, 64, False, FNUZ), (16, 32, True, FN))),
    ],
)
def test_steady_loop(heads: int, dim: int, clean_logits: bool, dtype: torch.dtype) -> None:
    """No bank conflict, one barrier for a tile, keys under way while others are scored, and no hazard."""
    call = windowed([(0, 640)] * 4, heads, dim, keys=640, dtype=dtype)
    prepared = prepare(gluon_variant(), Case(call, clean_logits))
    assert not hazards(parse(prepared.compiled.asm["amdgcn"]))
    texts, counters = steady_loop(prepared)
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    assert sum(text == "s_barrier" for text in texts) == 2  # of two tiles
    waits = [int(left) for text in texts for left in re.findall(r"vmcnt\((\d+)\)", text)]
    assert any(waits), "a wait leaves loads in flight"
    assert not [text for text in texts if text.startswith("scratch_")]


@pytest.mark.dealt
@gluon
@pytest.mark.parametrize(
    ("windows", "heads", "dim", "clean_logits", "max_window", "dtype"),
    [
        ("neighbours", 64, 128, True, None, FNUZ),
        ("past the ends", 64, 128, True, None, FNUZ),
        ("inverted", 64, 128, False, None, FNUZ),
        ("neighbours", 64, 128, False, 130, FN),
        ("past the ends", 100, 64, False, None, FN),
        ("neighbours", 20, 32, True, None, FNUZ),
    ],
)
def test_windows(windows: str, heads: int, dim: int, clean_logits: bool, max_window: int | None, dtype: torch.dtype) -> None:
    case = Case(windowed(WINDOWS[windows], heads, dim, dtype=dtype), clean_logits, max_window)
    execute(prepare(gluon_variant(), case), measure=False)


@pytest.mark.dealt
@gluon
@pytest.mark.parametrize(("rows", "keys", "heads"), [(1, 1, 64), (3, 113, 32), (9, 65, 16)])
def test_shapes(rows: int, keys: int, heads: int) -> None:
    windows = [(row % 3, keys - row % 5) for row in range(rows)]
    execute(prepare(gluon_variant(), Case(windowed(windows, heads, 128, keys, dtype=FNUZ), True)), measure=False)


@pytest.mark.dealt
@gluon
@pytest.mark.parametrize(("heads", "dtype"), [(128, FNUZ), (64, FN)], ids=str)
def test_queries_whose_dims_are_not_adjacent(heads: int, dtype: torch.dtype) -> None:
    """They take a register for each byte while they are loaded: in parts, so that none spills."""
    case = Case(turned(windowed([(0, 70)] * 3, heads, 128, keys=70, dtype=dtype)), True, aligned=True)
    prepared = prepare(gluon_variant(), case)
    assert spills_nothing(prepared)
    execute(prepared, measure=False)


@gluon
def test_bfloat16_and_64_bit_offsets() -> None:
    call = windowed(WINDOWS["neighbours"], 64, 64, dtype=FNUZ)
    call = call._replace(weights=call.weights.to(torch.bfloat16))
    case = Case(call, False, dtype=torch.bfloat16)
    execute(prepare(with_64_bit_offsets(gluon_variant()), case), measure=False)


@pytest.mark.one_lane
@gluon
@pytest.mark.parametrize("kind", ["barrier dropped", "wait dropped"])
def test_the_loop_without_one_of_its_barriers_or_waits_is_found_out(kind: str) -> None:
    """The loads' waits: of LDS reads the compiler waits in twos, so that one of the two orders nothing."""
    prepared = prepare(gluon_variant(), Case(windowed([(0, 700)] * 4, 64, 64, keys=700, dtype=FNUZ), clean_logits=False))
    check_defects_are_found(prepared, kind)


@pytest.mark.dealt
@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=str)
def test_classic(dtype: torch.dtype) -> None:
    case = Case(windowed(WINDOWS["neighbours"], 64, 64, dtype=dtype), clean_logits=True)
    execute(prepare(on_gfx942(VARIANTS["classic"]), case), measure=False)


def test_chosen_on_gfx942() -> None:
    """From Triton 3.6 on; before, the trace says what is missing."""
    problem, caps = operation.example(TARGET), capabilities(TARGET)
    trace = operation.explain(problem)
    step = next(step for step in trace.steps if step.variant == "gluon_cdna3")
    if caps.gluon_cdna3:
        assert (trace.variant, step.accepted) == ("gluon_cdna3", True)
        assert operation.select(problem._replace(direct_keys=False)).name == "classic"
    else:
        assert (trace.variant, step.accepted) == ("classic", False)
        assert step.reason.startswith("needs the Gluon API of Triton 3.6: found 3.5.1")
