"""The Gluon variant for gfx950, as this lane's Triton compiles it: what it takes, and what its steady loop holds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from capgate.compat import capabilities
from capgate.compat.offline.jobs import Job
from capgate.kernels.common.rules import padded_heads
from capgate.kernels.mqa_logits.api import copies_directly
from capgate.kernels.mqa_logits.operation import operation
from capgate.kernels.tools.compile_command import vector_per_32_keys
from support.emulated_mqa import (
    TARGET,
    VARIANTS,
    WINDOWS,
    Case,
    execute,
    prepare,
    spills_nothing,
    turned,
    windowed,
    with_64_bit_offsets,
)
from support.steady_loop import check_steady_loop, steady_loop
from support.wait_states import check_wait_states

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))

HEADS, DIMS, MODES = (16, 32, 64, 128), (32, 64, 128), ("unclean", "clean", "compressed")
# Of the models' sizes every output of 64 heads, and of 32 what takes most registers. The lanes but 3.6.0 share out the rest.
KINDS = [
    *((64, 128, mode) for mode in (*MODES, "clean-bf16")),
    (32, 128, "clean"),
    *(
        pytest.param(heads, 128, mode, marks=pytest.mark.dealt)
        for heads in HEADS
        for mode in (*MODES, "clean-bf16")
        if heads != 64 and (heads, mode) != (32, "clean")
    ),
    *(pytest.param(heads, dim, "clean", marks=pytest.mark.dealt) for heads in HEADS for dim in DIMS if dim < 128),
]


@pytest.fixture
def row(compile_once: Callable[..., Any], heads: int, dim: int, mode: str) -> dict[str, Any]:
    (row,) = compile_once("fp8_mqa_logits", str(TARGET), [Job("gluon_cdna4", heads, dim, mode)])
    return row


@pytest.mark.parametrize(("heads", "dim", "mode"), KINDS)
def test_every_tuning_compiles_within_its_limits(row: dict[str, Any], heads: int, dim: int) -> None:
    assert row["compiled"], row["error"]
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] == (2 if heads == 128 else 4 if dim <= 64 else 3)
    assert row["tuning"]["resident"] * row["tuning"]["num_warps"] == row["waves_per_simd"] * 4, "a CU holds another number"
    assert row["hot_loop"]["keys"] >= 32
    # Multiply-adds of the loop, in the f8f6f4 form wherever its 64 dims fit.
    assert row["hot_loop"]["mfma"] * 32 * 32 * (64 if dim >= 64 else 16) == row["hot_loop"]["keys"] * padded_heads(heads) * dim
    assert set(row["matrix_instructions"]) == {
        "v_mfma_scale_f32_32x32x64_f8f6f4" if dim >= 64 else "v_mfma_f32_32x32x16_fp8_fp8"
    }
    check_wait_states(row)


@pytest.mark.dealt
@pytest.mark.parametrize("heads", [64, 128])
def test_queries_whose_dims_are_not_adjacent(heads: int) -> None:
    """They take a register for each byte while they are loaded: in parts, so that none spills."""
    prepared = prepare(VARIANTS["gluon_cdna4"], Case(turned(windowed([(0, 70)] * 3, heads, 128, keys=70)), False))
    assert spills_nothing(prepared)
    for landing in ("late", "early"):
        execute(prepared, landing=landing)


@pytest.mark.parametrize(("heads", "dim"), [(64, 128)])
@pytest.mark.parametrize("mode", [*MODES, "clean-bf16"])
def test_vector_instructions_of_64_heads(row: dict[str, Any]) -> None:
    """32 keys of a row: 32 relu and 16 packed fma are the floor."""
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 48 < vector <= 54


@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "dim", "most"), [(16, 128, 62), (32, 128, 57)])
@pytest.mark.parametrize("mode", MODES)
def test_vector_instructions_of_fewer_heads(row: dict[str, Any], most: float) -> None:
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 48 < vector <= most


@pytest.mark.dealt("clean_logits")
@pytest.mark.parametrize(
    ("heads", "dim", "clean_logits"),
    [(64, 128, True), (64, 128, False), (32, 128, True), (16, 64, False), (128, 128, True), (64, 32, False)],
)
def test_steady_loop(heads: int, dim: int, clean_logits: bool) -> None:
    """No bank conflict, and what :func:`check_steady_loop` asks for."""
    case = Case(windowed([(0, 1920)] * 4, heads, dim, keys=1920), clean_logits)
    texts, counters = steady_loop(prepare(VARIANTS["gluon_cdna4"], case))
    check_steady_loop(texts)
    assert sum(text.startswith("v_mfma") for text in texts) >= 4
    assert sum(text == "s_barrier" for text in texts) == 3  # one for each tile of a round
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    assert any(text.startswith("v_pk_fma_f32") for text in texts)


@pytest.mark.dealt(together=["max_window"])
@pytest.mark.parametrize("windows", ["neighbours", "past the ends"])
@pytest.mark.parametrize("max_window", [None, 130])
def test_64_bit_offsets(windows: str, max_window: int | None) -> None:
    """The kernel of calls beyond 2 GiB, executed on a small one."""
    case = Case(windowed(WINDOWS[windows], 64, 128), clean_logits=max_window is None, max_window=max_window)
    execute(prepare(with_64_bit_offsets(VARIANTS["gluon_cdna4"]), case))


def test_chosen_on_gfx950() -> None:
    problem = operation.example(TARGET)
    assert operation.select(problem).name == "gluon_cdna4"
    assert operation.select(problem._replace(direct_keys=False)).name == "classic"
    assert "less than 8 MiB apart" in str(operation.explain(problem._replace(direct_keys=False)))


@pytest.mark.parametrize(
    ("rows", "strides", "offset", "direct"),
    [
        (40, (128, 1), 0, True),
        (40, (144, 1), 0, True),
        (40, (132, 1), 0, False),
        (40, (144, 1), 4, False),
        (40, (1, 48), 0, False),
        (1, (2**23, 1), 0, False),
    ],
    ids=["dense", "rows with gaps", "rows of 132 bytes", "not aligned", "transposed", "rows 8 MiB apart"],
)
def test_keys_that_can_be_copied_directly(rows: int, strides: tuple[int, int], offset: int, direct: bool) -> None:
    storage = torch.empty(8192, dtype=torch.float8_e4m3fn)
    assert copies_directly(storage.as_strided((rows, 128), strides, offset), torch.empty(rows)) == direct
    assert not copies_directly(storage.as_strided((rows, 128), strides, offset), torch.empty(1).as_strided((1,), (2**21,)))
