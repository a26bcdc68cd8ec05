"""Wait states that gfx942 and gfx950 need between instructions, looked for on every path through a program.

Hardware does not hold back every instruction whose operand is still on its way: the compiler puts others, or s_nop, in between.
It does not look into inline assembly. A wait state is an instruction, s_nop N is N + 1 of them.

Sources, read in November 2026:

    [H]  LLVM, llvm/lib/Target/AMDGPU/GCNHazardRecognizer.cpp, in triton-lang/llvm-project at 2449c0e3; the name of the function
         that checks it stands with each rule below
    [S]  LLVM, llvm/lib/Target/AMDGPU/SISchedule.td, SIDPGFX942FullSpeedModel and SIDPGFX950FullSpeedModel: passes of matrix
         instructions

The tables of AMD's CDNA3 and CDNA4 ISA guides ("Manually Inserted Wait States"), which LLVM follows, were not at hand. LLVM
looks for matrix instructions up to 19 wait states back, where one of 16 passes needs 20 on gfx950: compiled code may have
exactly 19 in between (``Dependence.overlooked_by_llvm``).

Left out, because no source for them was at hand: a matrix instruction that writes what an earlier one is still to write without
reading it, branches on VCCZ and EXECZ, and changes of MODE by s_setreg. Refused as unknown: matrix instructions on float64,
sparse ones, and dot products.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .assembly import EXEC, VCC, Instruction, Program
from .decoder import step_of
from .registers import SCALARS, register_bits

SCALAR_BITS = (1 << SCALARS) - 1
EXEC_BITS, VCC_BITS, M0_BIT = 3 << EXEC, 3 << VCC, 1 << 124
LOOK_AHEAD = 20  # the most wait states that a rule asks for: 16 passes on gfx950
ARCHITECTURES = ("gfx942", "gfx950")


class Dependence(NamedTuple):
    """Two instructions that must lie apart.

    needed, found : wait states; found is that of the shortest path
    inline : whether one of the two is inline assembly
    """

    rule: str
    first: int
    second: int
    needed: int
    found: int
    inline: bool

    @property
    def margin(self) -> int:
        return self.found - self.needed

    @property
    def overlooked_by_llvm(self) -> bool:
        """Whether it is a hazard that LLVM makes itself: MaxWaitStates of checkMAIVALUHazards and checkMAIHazards90A."""
        return (self.needed, self.found, self.inline) == (20, 19, False)


@dataclass(frozen=True)
class Facts:
    """What the rules ask of one instruction. Registers are a bit each, as in :class:`.step.Step`."""

    instruction: Instruction
    category: str
    reads: int
    writes: int
    passes: int  # of a matrix instruction, otherwise 0
    simple: bool  # a matrix instruction on float32, which does not run on the matrix core ("SGEMM")
    addend: int  # registers of C
    result: int  # and of D
    accum_offset: int  # where AGPRs begin in the bits
    transcendental: bool
    partial: str  # why the result is put into a part of a register: "" if it is not, "gfx950" where only that one minds

    @property
    def name(self) -> str:
        return self.instruction.mnemonic

    @property
    def vector(self) -> bool:
        """Vector ALU, other than a matrix instruction."""
        return self.category == "valu"

    @property
    def memory(self) -> bool:
        return self.category in ("vmem", "lds")


Rule = Callable[[Facts, Facts, bool], int]  # wait states that two instructions need; the last argument: on gfx950


def dependences(program: Program) -> list[Dependence]:
    """Every pair of instructions, at most 20 wait states apart on some path, for which a rule holds."""
    if program.arch not in ARCHITECTURES:
        raise ValueError(f"arch: got {program.arch!r}, needs one of {', '.join(ARCHITECTURES)}")
    facts = [facts_of(instruction.text, program.descriptor["accum_offset"]) for instruction in program.instructions]
    after = successors(program)
    found = []
    for first, fact in enumerate(facts):
        for second, states in reached(facts, after, first, LOOK_AHEAD if fact.passes else OTHERS_LOOK_AHEAD):
            other = facts[second]
            if not (fact.writes & (other.reads | other.writes) or fact.reads & other.writes):
                continue
            for name, rule in RULES.items():
                if needed := rule(fact, other, program.arch == "gfx950"):
                    inline = bool(program.inline & {first, second})
                    found.append(Dependence(name, first, second, needed, states, inline))
    return found


def hazards(program: Program) -> list[Dependence]:
    """Those that lie too close together on some path."""
    return [dependence for dependence in dependences(program) if dependence.margin < 0]


def described(program: Program, dependence: Dependence) -> str:
    one, other = (program.instructions[index].text for index in (dependence.first, dependence.second))
    return f"{dependence.rule}: {dependence.needed} wait states, found {dependence.found}: {one} -> {other}"


def successors(program: Program) -> list[list[int]]:
    """The instructions that may follow each."""
    after = []
    for index, instruction in enumerate(program.instructions):
        name = instruction.mnemonic
        following = [index + 1] if not name.startswith(("s_endpgm", "s_branch")) else []
        if name.startswith(("s_branch", "s_cbranch")):
            following.append(program.labels[instruction.operands[0].value])
        elif name.startswith(("s_setpc", "s_swappc", "s_call", "s_rfe")):
            raise instruction.unknown("jump")
        after.append([place for place in following if place < len(program.instructions)])
    return after


def reached(facts: list[Facts], after: list[list[int]], first: int, limit: int) -> Iterator[tuple[int, int]]:
    """(instruction, fewest wait states between it and ``first``) of all that lie less than ``limit`` apart on some path."""
    nearest: dict[int, int] = {}
    pending = deque((place, 0) for place in after[first])
    while pending:
        place, states = pending.popleft()
        if states >= nearest.get(place, limit):
            continue
        nearest[place] = states
        states += wait_states(facts[place].instruction)
        pending.extend((following, states) for following in after[place])
    yield from nearest.items()


def wait_states(instruction: Instruction) -> int:
    return instruction.operands[0].value + 1 if instruction.mnemonic == "s_nop" else 1


@lru_cache(maxsize=50_000)
def facts_of(text: str, accum_offset: int) -> Facts:
    step = step_of(text, accum_offset)
    instruction, reads, writes = step.instruction, step.reads, step.writes
    name = instruction.mnemonic
    passes = addend = result = 0
    simple = False
    if step.category == "mfma":
        passes, simple = passes_of(instruction)
        addend = register_bits(instruction.operands[3], accum_offset)
        result = register_bits(instruction.operands[0], accum_offset)
    if name.startswith("v_dot"):
        raise instruction.unknown("dot product")
    if name.startswith("v_cmpx"):
        writes |= EXEC_BITS
    if name.startswith("v_div_fmas"):
        reads |= VCC_BITS
    if step.category in ("valu", "mfma", "vmem", "lds"):
        reads |= EXEC_BITS
    transcendental = TRANSCENDENTAL.fullmatch(name) is not None
    partial = partial_result(instruction) if step.category == "valu" else ""
    return Facts(
        instruction, step.category, reads, writes, passes, simple, addend, result, accum_offset, transcendental, partial
    )


# --- matrix instructions --------------------------------------------------------------------------------------------------

MATRIX = re.compile(r"v_mfma_(?:scale_)?[fi]32_(\d+)x\d+x(\d+)_?(?:\d+b_)?(\w+)")
PASSES = {(16, 4): 8, (16, 1): 8, (32, 1): 16, (32, 2): 16, (32, 4): 16, (32, 8): 8, (32, 16): 8, (32, 32): 8}


def passes_of(instruction: Instruction) -> tuple[int, bool]:
    """(passes of four cycles, whether it is one on float32) [S]."""
    shape = MATRIX.fullmatch(instruction.mnemonic)
    if not shape:
        raise instruction.unknown("matrix instruction")
    size, depth, kind = int(shape[1]), int(shape[2]), shape[3]
    if kind == "f8f6f4":  # eight-bit operands take twice as long
        formats = (instruction.modifiers.get("cbsz", 0), instruction.modifiers.get("blgp", 0))
        return (8 if size == 16 else 16) // (1 if min(formats) <= 1 else 2), False
    if size == 4:
        return 2, kind == "f32"
    if kind == "xf32":
        return (4 if size == 16 else 8), False
    if size == 16 and depth >= 8:
        return 4, False
    if (size, depth) not in PASSES:
        raise instruction.unknown("matrix instruction")
    return PASSES[size, depth], kind == "f32"


def after_matrix(one: Facts, gfx950: bool) -> int:
    """Until a vector or memory instruction may touch what a matrix instruction writes."""
    if one.simple:
        return one.passes + 2
    return one.passes + 3 + (gfx950 and one.passes != 2)


def matrix_then_use(one: Facts, other: Facts, gfx950: bool) -> int:
    """GFX940_XDL_N_PassWriteVgprVALUMemExpReadWaitStates, and ...VALUWaw... [H: checkMAIVALUHazards]."""
    if one.passes and (other.vector or other.memory) and one.result & (other.reads | other.writes):
        return after_matrix(one, gfx950)
    return 0


def matrix_addend_overwritten(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkMAIVALUHazards, ReadVgprVALUWar]"""
    if one.passes and not one.simple and (other.vector or other.memory) and one.addend & other.writes:
        return {2: 1, 4: 3, 8: 7, 16: 15}[one.passes]
    return 0


def matrix_then_factor(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkMAIHazards90A, OverlappedSrcAB]"""
    if one.passes and other.passes and one.result & other.reads & ~other.addend:
        return after_matrix(one, gfx950)
    return 0


def matrix_then_addend(one: Facts, other: Facts, gfx950: bool) -> int:
    """In place there is a path from one to the next. [H: checkMAIHazards90A, OverlappedSrcC, FullSrcC]"""
    if not (one.passes and other.passes and one.result & other.addend):
        return 0
    if one.result == other.addend:
        return 2 if one.passes == 2 else 0
    if one.simple:
        return one.passes if other.simple else 0
    if other.simple:
        return one.passes + 1 + (gfx950 and one.passes != 2)
    return one.passes + 1 + gfx950


def vector_then_matrix(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkMAIHazards90A, LegacyVALUNotDotWritesVGPR, VALUWritesExec]"""
    if not (one.vector and other.passes):
        return 0
    return max(4 * bool(one.writes & EXEC_BITS), 2 * bool(one.writes & other.reads & ~SCALAR_BITS))


# --- vector instructions --------------------------------------------------------------------------------------------------


def scalar_to_memory(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkVMEMHazards]"""
    return 5 * bool(one.vector and other.category == "vmem" and one.writes & other.reads & SCALAR_BITS)


def scalar_to_vector(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkVALUHazards, VALUWriteSGPRVALURead]"""
    return 2 * bool(one.vector and other.vector and one.writes & other.reads & SCALAR_BITS & ~EXEC_BITS)


def to_lane_access(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkVALUHazards, VALUWriteVGPRReadlaneRead, VALUWriteEXECRWLane; checkRWLaneHazards]"""
    if not (one.vector and other.name in ("v_readlane_b32", "v_readfirstlane_b32", "v_writelane_b32")):
        return 0
    needed = 0
    if other.name != "v_writelane_b32" and one.writes & other.reads & ~SCALAR_BITS:
        needed = 1
    chosen = other.instruction.operands[2:]
    if one.writes & EXEC_BITS or (chosen and one.writes & register_bits(chosen[0], 0) & SCALAR_BITS):
        needed = 4
    return needed


def to_lane_move(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkDPPHazards; checkPermlaneHazards]"""
    if other.instruction.encoding.endswith("dpp"):
        if one.vector and one.writes & EXEC_BITS:
            return 5
        return 2 * bool(one.writes & other.reads & ~SCALAR_BITS)
    if gfx950 and other.name.startswith("v_permlane"):
        if one.name.startswith("v_cmpx"):
            return 4
        return 2 * bool((one.vector or one.passes) and one.writes & other.reads & ~SCALAR_BITS)
    return 0


def to_division(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkDivFMasHazards]"""
    return 4 * bool(other.name.startswith("v_div_fmas") and one.vector and one.writes & VCC_BITS)


TRANSCENDENTAL = re.compile(r"v_(exp|log|rcp|rcp_iflag|rsq|sqrt|sin|cos)_(legacy_)?f(16|32|64)")


def after_transcendental(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkVALUHazards, TransDef]"""
    used = (other.vector or other.passes) and one.writes & other.reads & ~SCALAR_BITS
    return int(one.transcendental and not other.transcendental and bool(used))


def partial_result(instruction: Instruction) -> str:
    """As :attr:`Facts.partial` [H: getDstSelForwardingOperand]."""
    name, chosen = instruction.mnemonic, instruction.modifiers.get("op_sel", ())
    if instruction.encoding == "sdwa" and instruction.modifiers.get("dst_sel", "DWORD") != "DWORD":
        return "SDWA"
    if len(chosen) >= len(instruction.operands) and chosen[-1] and not name.startswith("v_pk_"):
        return "op_sel"
    if re.match(r"v_cvt_\w*(fp8|bf8)", name) and any(chosen[2:]):
        return "op_sel"
    return "gfx950" if re.match(r"v_cvt_scalef32_\w*fp4_", name) else ""


def after_part_of_register(one: Facts, other: Facts, gfx950: bool) -> int:
    """[H: checkVALUHazards, Shift16Def]"""
    if not one.partial or (one.partial == "gfx950" and not gfx950):
        return 0
    return int((other.vector or bool(other.passes)) and bool(one.writes & (other.reads | other.writes) & ~SCALAR_BITS))


WIDE_STORE = re.compile(r"(global|flat|buffer)_store_dwordx[34]")


def store_then_overwritten(one: Facts, other: Facts, gfx950: bool) -> int:
    """Data of more than 64 bits. [H: checkSOFFSETWindowVALUHazardsHelper]"""
    store = WIDE_STORE.fullmatch(one.name) if other.vector or other.passes else None
    if not store:
        return 0
    operands, offset = one.instruction.operands, one.instruction.operands[-1]
    data = operands[0 if store[1] == "buffer" else 1]
    if not register_bits(data, other.accum_offset) & other.writes:
        return 0
    return 1 if store[1] == "buffer" and offset.kind == "s" else 2


# --- the scalar unit ------------------------------------------------------------------------------------------------------


def to_copy(one: Facts, other: Facts, gfx950: bool) -> int:
    """M0 of a copy to LDS. [H: checkReadM0Hazards]"""
    return int(one.category == "salu" and other.category == "vmem" and bool(one.writes & other.reads & M0_BIT))


RULES: dict[str, Rule] = {
    "a matrix instruction's result, used": matrix_then_use,
    "a matrix instruction's addend, overwritten": matrix_addend_overwritten,
    "a matrix instruction's result as a factor": matrix_then_factor,
    "a matrix instruction's result as a part of an addend": matrix_then_addend,
    "a vector result in a matrix instruction": vector_then_matrix,
    "a vector instruction's scalar in a memory instruction": scalar_to_memory,
    "a vector instruction's scalar in a vector instruction": scalar_to_vector,
    "a lane's value": to_lane_access,
    "a move between lanes": to_lane_move,
    "VCC in v_div_fmas": to_division,
    "a transcendental's result": after_transcendental,
    "a result that is a part of a register": after_part_of_register,
    "stored data, overwritten": store_then_overwritten,
    "M0 of a copy to LDS": to_copy,
}
OTHERS_LOOK_AHEAD = 5  # of the rules whose first instruction is no matrix instruction
