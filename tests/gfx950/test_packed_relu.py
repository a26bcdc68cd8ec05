"""Packed relu in compiled gfx950 code: what it saves, that it changes no bit of a logit, and that defects of it are found.

No hardware has shown the clamp that it needs: these kernels run only where CAPGATE_ENABLE=packed_clamp says so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.compat.offline.jobs import Job
from capgate.kernels.common.rules import packs_relu
from capgate.kernels.tools.compile_command import vector_per_32_keys
from emulator import Program, parse
from emulator.assembly import Instruction, parse_instruction
from emulator.hazards import hazards
from support import emulated_paged_mqa as paged
from support.emulated_mqa import TARGET, VARIANTS, WINDOWS, Case, Disagreement, Prepared, execute, prepare, windowed
from support.paged import make_call
from support.wait_states import check_wait_states

pytestmark = pytest.mark.skipif(
    not compat.capabilities(TARGET).gluon_cdna4, reason=compat.capabilities(TARGET).why("gluon_cdna4")
)
PACKED = {"enable": ["packed_clamp"]}
# Of 32 keys of a row of 64 heads: 16 relu and 16 packed fma are the floor; the waves are those of relu by itself.
KINDS = {
    ("fp8_mqa_logits", 64, "unclean"): (37, 3),
    ("fp8_mqa_logits", 32, "clean"): (42, 3),
    ("fp8_mqa_logits", 128, "clean"): (38, 2),
    ("fp8_paged_mqa_logits", 64, "unclean"): (37, 1.5),
    ("fp8_paged_mqa_logits", 32, "unclean"): (47.5, 1.5),
}
LARGE, SMALL = 0x7E, 0x01  # bytes of e4m3fn: 448 and 2**-9
NAN = 0x7F


@pytest.mark.dealt
@pytest.mark.parametrize(("operation", "heads", "mode"), KINDS)
def test_counts(operation: str, heads: int, mode: str, compile_once: Callable[..., Any]) -> None:
    with compat.override(**PACKED):
        (row,) = compile_once(operation, str(TARGET), [Job("gluon_cdna4", heads, 128, mode)])
    most, waves = KINDS[operation, heads, mode]
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 32 < vector <= most
    assert row["waves_per_simd"] == waves
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    check_wait_states(row)


def both(variant: Any, case: Any) -> tuple[Prepared, Prepared]:
    """A case with relu by itself, and with packed relu."""
    plain = prepare(variant, case)
    with compat.override(**PACKED):
        packed = prepare(variant, case)
    assert [any(map(clamps, program_of(prepared).instructions)) for prepared in (plain, packed)] == [False, True]
    return plain, packed


def program_of(prepared: Prepared) -> Program:
    return parse(prepared.compiled.asm["amdgcn"])


def clamps(instruction: Instruction) -> bool:
    """Floats; the clamp of integers saturates them."""
    return "clamp" in instruction.modifiers and "_f32" in instruction.mnemonic


def same_bits(plain: Prepared, packed: Prepared) -> None:
    """Both agree with the formula, whether copies land late or early, in every bit of every cell, and of what lies between."""
    results = []
    for prepared in (plain, packed):
        for landing in ("late", "early"):
            execute(prepared, landing=landing, measure=False)
            results.append(prepared.out.clone().view(torch.int32))
    assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "dim", "clean_logits"), [(64, 128, False), (32, 64, True), (20, 32, False), (128, 128, True)]
)
def test_dense_logits(heads: int, dim: int, clean_logits: bool) -> None:
    windows = "neighbours" if clean_logits else "past the ends"
    same_bits(*both(VARIANTS["gluon_cdna4"], Case(windowed(WINDOWS[windows], heads, dim), clean_logits)))


@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "next_n", "clean_logits"), [(64, 2, False), (32, 2, True), (16, 8, False), (128, 1, True)])
def test_paged_logits(heads: int, next_n: int, clean_logits: bool) -> None:
    case = paged.PagedCase(make_call([130, 0, 70], next_n, heads, 128), 131, clean_logits)
    same_bits(*both(paged.VARIANTS["gluon_cdna4"], case))


def extreme() -> Case:
    """The largest and the smallest products that there are, with weights of which 2**26 times as much is just still finite."""
    call = windowed([(0, 128)] * 4, 64, 128, keys=128)
    q, k = call.q.view(torch.uint8), call.k.view(torch.uint8)
    k[:64], k[64:] = LARGE, 0
    k[64:, 5] = SMALL
    q[0], q[1], q[2:] = LARGE, LARGE | 0x80, SMALL
    weights = torch.zeros_like(call.weights)
    weights[:2, 0], weights[2] = 2.0**101, 2.0**-131  # a denormal
    weights[3, ::2], weights[3, 1::2] = -0.25, 1
    return Case(call._replace(weights=weights, k_scale=torch.ones_like(call.k_scale)), clean_logits=False)


@pytest.mark.dealt
def test_the_largest_and_the_smallest_products_and_weights() -> None:
    plain, packed = both(VARIANTS["gluon_cdna4"], extreme())
    same_bits(plain, packed)
    assert packed.out[0, :64].eq(2.0**101 * 128 * 448**2).all(), "a product was cut off"
    assert packed.out[1].eq(0).all()
    assert packed.out[2, 64:].eq(64 * 2.0**-149).all(), "a weight was lost"
    assert packed.out[3, 64:].eq(24 * 2.0**-18).all()


def test_products_that_could_reach_the_range_are_not_packed() -> None:
    with compat.override(**PACKED):
        assert packs_relu(TARGET, "float8_e4m3fn", 128)
        assert packs_relu(TARGET, "float8_e4m3fn", 334)
        assert not packs_relu(TARGET, "float8_e4m3fn", 335)
        assert not packs_relu("hip:gfx942", "float8_e4m3fnuz", 128)
    assert not packs_relu(TARGET, "float8_e4m3fn", 128)


def with_nan() -> Case:
    """A NaN in a query, and one in a key."""
    call = windowed([(0, 100)] * 4, 64, 128, keys=100)
    call.q.view(torch.uint8)[1, 7, 3], call.k.view(torch.uint8)[40, 90] = NAN, NAN
    return Case(call, clean_logits=False)


def logits_of(prepared: Prepared, program: Program | None = None) -> torch.Tensor:
    """What the kernel, or another version of its code, writes where the formula has NaN, which agrees with nothing."""
    with pytest.raises(Disagreement, match=r"cells of 400 disagree"):
        execute(prepared, program, measure=False)
    return prepared.out


def changed(program: Program, before: str, after: str) -> Program:
    """The program with a part of the text of its instructions replaced, wherever it stands."""
    texts = [instruction.text.replace(before, after) for instruction in program.instructions]
    assert texts != [instruction.text for instruction in program.instructions]
    return replace(program, instructions=[parse_instruction(text) for text in texts])


@pytest.mark.dealt
def test_nan_goes_where_it_goes_without() -> None:
    plain, packed = both(VARIANTS["gluon_cdna4"], with_nan())
    expected = torch.zeros(4, 100, dtype=torch.bool)
    expected[1], expected[:, 40] = True, True
    assert torch.equal(logits_of(plain).isnan(), expected)
    assert torch.equal(logits_of(packed).isnan(), expected)
    assert torch.equal(packed.out[~expected], plain.out[~expected])
    # Without the change of mode, clamp makes 0 of it.
    kept = changed(program_of(packed), "hwreg(HW_REG_MODE, 8, 1), 0", "hwreg(HW_REG_MODE, 8, 1), 1")
    assert not logits_of(packed, kept).isnan().any()


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("before", "after"),
    [(" clamp", ""), ("0x32800000", "0x33000000"), ("0x32800000", "0x36000000")],
    ids=["no clamp", "twice the scale", "products cut off"],
)
def test_a_defect_is_found(before: str, after: str) -> None:
    _, packed = both(VARIANTS["gluon_cdna4"], extreme())
    program = program_of(packed)
    with pytest.raises(Disagreement):
        execute(packed, changed(program, before, after), measure=False)


@pytest.mark.one_lane
def test_a_wait_left_out_is_found() -> None:
    """The compiler puts in none. Before every other product enough other instructions stand by chance."""
    _, packed = both(VARIANTS["gluon_cdna4"], extreme())
    program = program_of(packed)
    texts = [instruction.text for instruction in program.instructions]
    waits = [place for place in program.inline if texts[place : place + 2] == ["s_nop 15", "s_nop 3"]]
    found = 0
    for place in waits:
        without = [*texts[:place], "s_nop 0", "s_nop 0", *texts[place + 2 :]]
        short = replace(program, instructions=[parse_instruction(text) for text in without])
        found += any(dependence.inline for dependence in hazards(short))
    assert len(waits) >= 4
    assert found >= 2
