"""Wait states in compiled kernels: the rules agree with the compiler's own, and defects put into a kernel are found.

That compiled kernels have no hazard is asserted where they are compiled.
"""

from collections.abc import Set
from dataclasses import replace
from typing import Any

import pytest

from capgate.compat import capabilities
from emulator import Program, parse
from emulator.assembly import parse_instruction
from emulator.hazards import facts_of, hazards, successors
from support.emulated_mqa import TARGET, VARIANTS, WINDOWS, Case, prepare, windowed

GLUON = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))
each_variant = pytest.mark.parametrize("variant", ["classic", pytest.param("gluon_cdna4", marks=GLUON)])


@pytest.fixture
def program(variant: str) -> Program:
    case = Case(windowed(WINDOWS["neighbours"], 64, 128), clean_logits=True)
    return parse(prepare(VARIANTS[variant], case).compiled.asm["amdgcn"])


def without(program: Program, dropped: Set[int]) -> Program:
    """The program with these instructions taken out of it."""
    left = [index for index in range(len(program.instructions)) if index not in dropped]
    place = {index: sum(one < index for one in left) for index in (*program.labels.values(), *program.inline)}
    return replace(
        program,
        instructions=[program.instructions[index] for index in left],
        labels={name: place[index] for name, index in program.labels.items()},
        inline={place[index] for index in program.inline - dropped},
    )


def facts(program: Program) -> list[Any]:
    return [facts_of(instruction.text, program.descriptor["accum_offset"]) for instruction in program.instructions]


@pytest.mark.parametrize("variant", ["classic"])
def test_every_wait_that_the_compiler_inserts_is_needed(program: Program) -> None:
    """One wait state less is a hazard: the rules know each that LLVM knows, with as many, but for two that are no hazards.

    LLVM from Triton 3.8 on takes op_sel_hi of packed instructions on float32 for a result in a register's high half. And it
    parts a load from the next one that overwrites its address, so that both could be replayed after a page fault.
    """
    steps = facts(program)
    waits = [index for index, step in enumerate(steps) if step.name == "s_nop"]
    assert waits
    for index in waits:
        left = program.instructions[index].operands[0].value
        if left:
            instructions = list(program.instructions)
            instructions[index] = parse_instruction(f"s_nop {left - 1}")
            shorter = replace(program, instructions=instructions)
        else:
            shorter = without(program, {index})
        one, other = steps[index - 1], steps[index + 1]
        packed = one.name.startswith("v_pk_") and one.writes & other.reads
        replayed = one.category == other.category == "vmem"
        assert hazards(shorter) or (left == 0 and (packed or replayed)), f"{program.instructions[index - 1].text}; s_nop {left}"


def dependent(steps: list[Any], first: int) -> int | None:
    """The next vector instruction that reads what a matrix instruction writes."""
    return next(
        (place for place in range(first + 1, len(steps)) if steps[place].vector and steps[first].result & steps[place].reads),
        None,
    )


@pytest.mark.one_lane
@each_variant
def test_a_dependent_instruction_moved_up(program: Program) -> None:
    steps = facts(program)
    targets = {place for places in successors(program) for place in places[1:]}
    moved = 0
    for first in (index for index, step in enumerate(steps) if step.passes):
        second = dependent(steps, first)
        if second is None or any(first < place <= second for place in targets):
            continue
        order = [*range(first + 1), second, *range(first + 1, second), *range(second + 1, len(steps))]
        early = replace(program, instructions=[program.instructions[index] for index in order], inline=set())
        assert any((found.first, found.second) == (first, first + 1) for found in hazards(early)), steps[second].name
        moved += 1
    assert moved >= 4


@pytest.mark.one_lane
@GLUON
@pytest.mark.parametrize("variant", ["gluon_cdna4"])
def test_packed_assembly_without_a_relu_before_it(program: Program) -> None:
    """Relu is what the compiler sees between an MFMA and inline assembly: without it, it would insert no wait either."""
    steps = facts(program)
    relu = {
        index for index, step in enumerate(steps) if step.name in ("v_max_f32", "v_maximum3_f32") and step.reads & step.writes
    }
    assert len(relu) >= 32
    waits = {index for index, step in enumerate(steps) if step.name == "s_nop"}
    found = hazards(without(program, relu | waits))
    assert sum(one.inline for one in found) >= 8, found


@pytest.mark.one_lane
@each_variant
def test_waits_dropped(program: Program) -> None:
    waits = [
        index for index, step in enumerate(facts(program)) if step.name == "s_nop" and step.instruction.operands[0].value >= 4
    ]
    assert waits
    for index in waits:
        # LLVM counts no wait state for inline assembly, and so more of them may be left than the hardware needs.
        uncounted = {step for step in program.inline if index - 32 < step < index}
        dropped = any(hazards(without(program, steps)) for steps in ({index}, {index, *uncounted}))
        assert dropped, program.instructions[index - 1].text
