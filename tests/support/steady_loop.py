"""The steady loop of a compiled kernel, found by executing it, and the rules that its instructions keep."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from emulator import EmulationError, Program, parse
from emulator.hazards import successors
from emulator.mutation import mutants_of

from .emulated_mqa import Disagreement, Prepared, execute

# Of a lane that a constant names: a scalar that was spilled. What a scalar names is a paged kernel's entry of the table.
READS_A_LANE = r"v_readlane_b32 [^,]+, [^,]+, \d"
MOVES_BETWEEN_LANES = re.compile(rf"ds_b?permute|ds_swizzle|_dpp|v_permlane(?!32_swap)|{READS_A_LANE}|v_writelane")


def steady_loop(prepared: Prepared) -> tuple[list[str], Any]:
    """The instructions of the loop that was executed most often, in the order of the code, and the emulator's counters."""
    program = parse(prepared.compiled.asm["amdgcn"])
    result = execute(prepared, program)
    return [program.instructions[index].text for index in busiest_loop(program, result.executed)], result.counters


def busiest_loop(program: Program, executed: Sequence[int], entered: int = 0) -> list[int]:
    """What is executed as often as the busiest matrix instruction, in a loop with it: one before it may take as many passes.

    The way back to the loop's head is taken once less each time, and may be a block of its own.

    entered : how often, of a loop that ends in its middle: what comes behind that is executed as many times less
    """
    matrix = [index for index, step in enumerate(program.instructions) if step.mnemonic.startswith("v_mfma")]
    busiest = max(matrix, key=executed.__getitem__)
    often = {index for index, times in enumerate(executed) if 2 * times >= executed[busiest]}
    after = successors(program)
    steps = [(index, place) for index in often for place in after[index] if place in often]
    loop = reached(busiest, steps) & reached(busiest, [(place, index) for index, place in steps])
    return sorted(index for index in loop if executed[index] >= executed[busiest] - entered)


def reached(start: int, steps: Iterable[tuple[int, int]]) -> set[int]:
    """The instructions to which steps (from, to) lead from one, and itself."""
    following = defaultdict(list)
    for index, place in steps:
        following[index].append(place)
    found, pending = {start}, [start]
    while pending:
        new = set(following[pending.pop()]) - found
        found |= new
        pending += new
    return found


def check_defects_are_found(prepared: Prepared, kind: str) -> None:
    """Without one of the barriers of its loops ("barrier dropped"), or waits for memory ("wait dropped"), it is found out."""
    program = parse(prepared.compiled.asm["amdgcn"])
    executed = execute(prepared, measure=False).executed
    once = min(times for step, times in zip(program.instructions, executed, strict=True) if step.mnemonic == "s_endpgm")
    mutants = [
        mutant
        for mutant in mutants_of(program, executed)[kind]
        if executed[mutant.index] > once and (kind == "barrier dropped" or "vmcnt" in program.instructions[mutant.index].text)
    ]
    assert len(mutants) >= 2
    for mutant in mutants:
        with pytest.raises((EmulationError, Disagreement)):
            execute(prepared, mutant.applied(program), measure=False)


def check_steady_loop(texts: Sequence[str]) -> None:
    """Keys go straight to LDS, and nothing waits for all memory, moves between lanes but for the head sum, or spills."""
    assert [text for text in texts if is_copy(text) and "dwordx4" in text]
    assert not [text for text in texts if re.match(r"s_waitcnt.*vmcnt\(0\)", text)]
    assert not [text for text in texts if MOVES_BETWEEN_LANES.search(text)]
    assert not [text for text in texts if text.startswith("scratch_")]
    check_inline_assembly(texts)


def is_copy(text: str) -> bool:
    """Whether an instruction copies from memory to LDS."""
    return text.startswith("buffer_load") and text.endswith(" lds")


def check_copies_stay_in_flight(texts: Sequence[str], passes: int = 1) -> None:
    """A wait covers no copy of the pass before it: memory operations return in order, stores among them.

    passes : of a round of the loop
    """
    waits = [index for index, text in enumerate(texts) if re.match(r"s_waitcnt.*vmcnt", text)]
    assert len(waits) == passes, "there is one wait for memory in a pass"
    for before, wait in zip([waits[-1], *waits], waits, strict=False):
        (left,) = map(int, re.findall(r"vmcnt\((\d+)\)", texts[wait]))
        steps = texts[before:wait] if before < wait else [*texts[before:], *texts[:wait]]
        a_pass = [text for text in steps if text.startswith(("buffer_", "global_"))]
        first_copy = next(index for index, text in enumerate(a_pass) if is_copy(text))
        assert len(a_pass) - first_copy <= left, f"vmcnt({left}) leaves too few of {a_pass}"


def check_inline_assembly(texts: Sequence[str]) -> None:
    """The compiler puts no wait states between other instructions and inline assembly, so that none may be needed there.

    CDNA3 ISA guide, "Manually inserted wait states". v_pk_fma_f32: a vector instruction must wait before it reads what an MFMA
    writes, before it writes what an MFMA still reads as C, and before it writes what an MFMA will write. v_readfirstlane_b32
    and v_readlane_b32 must wait before they read what a vector instruction wrote, and a memory instruction before it reads
    what they wrote.
    """
    of_mfma: set[int] = set()  # vector registers that an MFMA wrote and no vector instruction has read since
    of_vector: set[int] = set()  # those that another vector instruction wrote last
    of_lane: set[int] = set()  # scalar registers that v_readfirstlane_b32 or v_readlane_b32 wrote last
    for text in [*texts, *texts]:  # twice round the loop
        mnemonic, _, rest = text.partition(" ")
        operands = re.split(r",\s*", rest)
        written, *sources = (registers(operand) for operand in operands)
        read = set().union(*sources)
        scalars = registers(operands[0], "s")
        if mnemonic.startswith("v_mfma"):
            assert not sources[2] or sources[2] == written, f"C is neither D nor a constant: {text}"
            of_mfma |= written
        elif mnemonic in ("v_pk_fma_f32", "v_pk_mul_f32"):
            assert not of_mfma & (read | written), f"needs a wait for an MFMA: {text}"
        elif mnemonic.startswith("v_"):
            of_mfma -= read | written
        if mnemonic.startswith(("v_readfirstlane", "v_readlane")):
            assert not of_vector & read, f"needs a wait for a vector instruction: {text}"
            of_lane |= scalars
        elif mnemonic.startswith("v_"):
            of_vector |= written
            of_lane -= scalars
        elif mnemonic.startswith("ds_read"):
            of_vector -= written
        elif mnemonic.startswith(("buffer_", "global_")):
            used = set().union(*(registers(operand, "s") for operand in operands))
            assert not of_lane & used, f"needs a wait for a lane's value: {text}"
        elif mnemonic.startswith("s_") and not mnemonic.startswith(("s_cmp", "s_bitcmp")):
            of_lane -= scalars


def registers(operand: str, kind: str = "v") -> set[int]:
    """The numbers of the vector or scalar registers that an operand names."""
    match = re.match(rf"{kind}(?:\[(\d+):(\d+)\]|(\d+))(?!\w)", operand)
    if not match:
        return set()
    first, last, alone = match.groups()
    return {int(alone)} if alone else set(range(int(first), int(last) + 1))
