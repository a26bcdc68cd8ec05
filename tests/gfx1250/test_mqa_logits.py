"""MQA logits compiled for gfx1250 by this lane's Triton: what they take, and that their LLVM IR, executed, agrees with float64.

Of the machine code that LLVM makes of it nothing is executed.
"""

import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from capgate.compat import capabilities, override
from capgate.compat.offline.child import describe
from capgate.kernels.common.rules import key_products, padded_heads
from capgate.kernels.mqa_logits.operation import operation
from capgate.kernels.mqa_logits.tunings import gluon_gfx1250 as tuning
from capgate.kernels.tools.compile_command import vector_per_32_keys
from support.emulated_mqa import (
    WINDOWS,
    Case,
    Disagreement,
    Prepared,
    Variant,
    execute_llvm_ir,
    on_gfx1250,
    prepare,
    turned,
    windowed,
    with_64_bit_offsets,
)
from support.llvm_execution import Race
from support.llvm_operations import depths, multiplied

CAPS = capabilities("hip:gfx1250")
TARGET = CAPS.target
E4M3FN_NAN = 0x7F
gluon = pytest.mark.skipif(not CAPS.gluon_gfx1250, reason=CAPS.why("gluon_gfx1250"))


class Kind(NamedTuple):
    """A kernel, and the most vector instructions for 32 keys of a row of 64 heads, padded ones among them.

    wide : whether offsets are 64-bit, and the dims of queries not adjacent
    """

    heads: int
    dim: int
    windows: str
    vector: float
    clean: bool = False
    max_window: int | None = None
    dtype: torch.dtype = torch.float32
    wide: bool = False


KINDS = {  # every row of the tuning table, and each size, mode and dtype
    "64 heads, clean": Kind(64, 128, "neighbours", 136, clean=True),
    "32 heads, compressed": Kind(32, 64, "past the ends", 146, max_window=130),
    "16 heads, bfloat16": Kind(16, 128, "extremes", 162, dtype=torch.bfloat16),
    "100 heads": Kind(100, 128, "inverted", 136),
    "20 heads of 32 dims, wide": Kind(20, 32, "neighbours", 150, clean=True, wide=True),
}


def prepared_for(kind: Kind) -> Prepared:
    from capgate.compat.gluon import GluonASTSource
    from capgate.kernels.mqa_logits import gluon_gfx1250

    variant = on_gfx1250(Variant(gluon_gfx1250.kernel, GluonASTSource))
    call = windowed(WINDOWS[kind.windows], kind.heads, kind.dim)
    if kind.wide:
        variant, call = with_64_bit_offsets(variant), turned(call)
    case = Case(call._replace(weights=call.weights.to(kind.dtype)), kind.clean, kind.max_window, kind.dtype, aligned=True)
    return prepare(variant, case)


@gluon
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=name, marks=() if (kind.heads, kind.dim) == (64, 128) else pytest.mark.dealt)
        for name, kind in KINDS.items()
    ],
)
def test_every_tuning_fits_and_its_llvm_ir_agrees(kind: Kind) -> None:
    """In registers, for as many waves as its row says, and by the one matrix instruction of its dims."""
    prepared = prepared_for(kind)
    products = key_products(TARGET, kind.heads, kind.dim)
    row: dict[str, Any] = describe(prepared.compiled, TARGET, SimpleNamespace(products=products), "")
    assert row["unread"] == []
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    waves = int(re.search(r"^; Occupancy: (\d+)", prepared.compiled.asm["amdgcn"], re.MULTILINE)[1])
    assert waves >= tuning(operation.example(TARGET)._replace(heads=kind.heads, dim=kind.dim)).resident
    assert vector_per_32_keys({**row, "heads": padded_heads(kind.heads)}) <= kind.vector
    dims = max(kind.dim, 64)
    assert set(row["matrix_instructions"]) == {f"v_wmma_f32_16x16x{dims}_fp8_fp8"}
    assert row["hot_loop"]["mfma"] * 16 * 16 == row["hot_loop"]["keys"] * padded_heads(kind.heads)
    execute_llvm_ir(prepared)


@pytest.mark.dealt
@gluon
def test_a_missing_barrier_is_found_out_and_nan_stays() -> None:
    """A barrier that is missing; and NaN, which stays one."""
    prepared = prepared_for(KINDS["64 heads, clean"])
    text = prepared.compiled.asm["llir"]
    barriers = [found.span() for found in re.finditer(r"^ .*@llvm.amdgcn.s.barrier(?:.wait)?\(.*$", text, re.MULTILINE)]
    assert len(barriers) == 2  # one for each of two tiles
    for begin, end in barriers:
        with pytest.raises(Race):
            execute_llvm_ir(prepared, text=text[:begin] + text[end:])
    keys = prepared.case.call.k.view(torch.uint8)
    keys[100, 3] = E4M3FN_NAN
    with pytest.raises(Disagreement, match="disagree with the formula"):
        execute_llvm_ir(prepared)
    inside = prepared.answer.inside
    assert torch.equal(prepared.out.isnan(), inside & (torch.arange(inside.shape[1]) == 100))


@pytest.mark.dealt
@gluon
def test_operands_only_have_to_be_dealt_out_alike() -> None:
    """What the kernel relies on of the WMMA's operands: which k a byte of a lane is, is the same for queries and keys."""
    prepared = prepared_for(KINDS["64 heads, clean"])
    for width in (4, 16, 64):

        def other(lane: Any, byte: Any, width: int = width) -> Any:
            return 2 * width * (byte // width) + width * (lane // 16) + byte % width

        execute_llvm_ir(prepared, product=lambda a, b, c, of=other: multiplied(a, b, c, of, of))
        with pytest.raises(Disagreement):
            execute_llvm_ir(prepared, product=lambda a, b, c, of=other: multiplied(a, b, c, depths, of))


def test_a_lane_has_every_k_once() -> None:
    for registers in (8, 16):
        lane, byte = np.arange(32)[:, None], np.arange(4 * registers)[None, :]
        found = depths(lane, byte)
        for row in range(16):
            assert sorted(found[[row, row + 16]].flat) == list(range(8 * registers))


def test_it_runs_only_where_it_is_named() -> None:
    """Nobody has run it: classic is chosen, and the trace says why."""
    problem = operation.example("hip:gfx1250")
    trace = operation.explain(problem)
    step = next(step for step in trace.steps if step.variant == "gluon_gfx1250")
    assert not step.accepted
    if not CAPS.gluon_gfx1250:
        assert step.reason.startswith(("needs the Gluon API of Triton 3.6: found 3.5.1", "needs gfx1250.wmma of [16, 16, 128]"))
        return
    assert trace.variant == "classic"
    assert step.reason == "has been compiled for gfx1250 and executed nowhere; name it to use it"
    with override(variant="fp8_mqa_logits=gluon_gfx1250"):
        assert operation.select(problem).name == "gluon_gfx1250"
    strided = operation.explain(problem._replace(direct_keys=False), "gluon_gfx1250")
    assert strided.variant is None
