"""Defects put into a compiled kernel, one at a time, to see whether the emulator finds them.

A mutant replaces one executed instruction by another one at the same place. It is equivalent on the tested inputs if at every
execution it leaves the waves' registers, the operations in flight, LDS and memory as the original does: tried out, execution
by execution, while the unchanged kernel runs (``Equivalence``).
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from . import EmulationError, Program
from .assembly import parse_instruction
from .decoder import step_of
from .registers import Pending, Waves


class Mutant(NamedTuple):
    kind: str
    index: int  # of the instruction
    text: str  # of its replacement

    def applied(self, program: Program) -> Program:
        instructions = list(program.instructions)
        instructions[self.index] = parse_instruction(self.text)
        return replace(program, instructions=instructions)


def mutants_of(program: Program, executed: Sequence[int]) -> dict[str, list[Mutant]]:
    """All mutants of the instructions that were executed, by kind."""
    found: dict[str, list[Mutant]] = {}
    for index, instruction in enumerate(program.instructions):
        if executed[index]:
            for kind, text in _replacements(instruction.text):
                found.setdefault(kind, []).append(Mutant(kind, index, text))
    return found


def sample(mutants: dict[str, list[Mutant]], each: int, seed: int) -> list[Mutant]:
    """At most ``each`` mutants of every kind."""
    chooser = random.Random(seed)
    return [mutant for kind in sorted(mutants) for mutant in chooser.sample(mutants[kind], min(each, len(mutants[kind])))]


# Operations whose two sources do not commute; the positions of those.
ORDERED = {
    "v_sub_u32": (1, 2), "v_sub_f32": (1, 2), "v_subrev_u32": (1, 2), "v_lshlrev_b32": (1, 2), "v_lshrrev_b32": (1, 2),
    "v_ashrrev_i32": (1, 2), "v_cndmask_b32": (1, 2), "v_perm_b32": (1, 2), "v_add_lshl_u32": (2, 3), "v_lshl_or_b32": (1, 2),
    "v_lshl_add_u32": (1, 2), "s_sub_i32": (1, 2), "s_sub_u32": (1, 2), "s_lshl_b32": (1, 2), "s_cselect_b32": (1, 2),
    "s_cselect_b64": (1, 2), "s_andn2_b64": (1, 2),
    "v_mad_u64_u32": (3, 4), "v_fma_f32": (2, 3), "ds_write_b8": (0, 1), "ds_write_b32": (0, 1),
}  # fmt: skip
MEMORY = ("buffer_", "global_", "ds_read", "ds_write")
MATRIX = re.compile(r"(v_mfma_\S+ [va]\[\d+:\d+\], )(v\[[\d:]+\]), (v\[[\d:]+\])(.*)")


def _replacements(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text of a mutant)"""
    instruction = parse_instruction(text)
    name = instruction.mnemonic
    if name == "s_waitcnt":
        yield "wait dropped", "s_nop 0"
        for counter, left in instruction.modifiers.items():
            yield "wait loosened", text.replace(f"{counter}({left})", f"{counter}({left + 1})")
    elif name == "s_barrier":
        yield "barrier dropped", "s_nop 0"
    elif re.match(r"s_\w+ m0,", text):
        yield "M0 write dropped", "s_nop 0"
    elif instruction.encoding == "dpp" or name.startswith("v_permlane"):
        moves = r" (?:quad_perm|(?:row|bank)_mask|row_[a-z]+|wave_[a-z]+|bound_ctrl):(?:\[[\d,]+\]|\w+)| row_(?:half_)?mirror"
        yield (
            "lane move dropped",
            re.sub(moves, "", text).replace("_dpp", "_e32") if instruction.encoding == "dpp" else "s_nop 0",
        )
    elif name in ("ds_bpermute_b32", "ds_permute_b32", "ds_swizzle_b32"):
        words = re.split(r"[ ,]+", text)
        yield "lane move dropped", f"v_mov_b32_e32 {words[1]}, {words[2 if 'swizzle' in name else 3]}"
    if name.startswith(MEMORY) and "st64" not in name and "2_b" not in name:
        step = 16 if "128" in name or "x4" in name else 4
        offset = int(instruction.modifiers.get("offset", 0))
        plain = re.sub(r" offset:-?\d+", "", text)
        lds = plain.endswith(" lds")
        for moved in (offset + step, offset - step):
            if moved >= 0 or name.startswith("global"):
                shifted = f"{plain.removesuffix(' lds')} offset:{moved}" + (" lds" if lds else "")
                yield "offset shifted", shifted
    matrix = MATRIX.fullmatch(text)
    if matrix and "cbsz" not in text and "scale" not in text:
        yield "operands swapped", f"{matrix[1]}{matrix[3]}, {matrix[2]}{matrix[4]}"
    if name in ORDERED and instruction.encoding not in ("dpp", "sdwa"):
        head, _, rest = text.partition(" ")
        operands = [operand.strip() for operand in re.split(r",(?![^\[]*\])", rest)]
        tail = operands[-1].partition(" ")
        operands[-1] = tail[0]
        first, second = ORDERED[name]
        if operands[first] != operands[second]:
            operands[first], operands[second] = operands[second], operands[first]
            encoded = head.replace("_e32", "_e64") if name.startswith("v_") and "permlane" not in name else head
            yield "operands swapped", f"{encoded} {', '.join(operands)} {tail[2]}".strip()


class Equivalence:
    """Which mutants the tested inputs cannot tell from the original: decided while the unchanged kernel runs.

    Pass ``observe`` to the launches of the unchanged kernel, then ask ``same_effect``.
    """

    def __init__(self, program: Program, mutants: Sequence[Mutant]) -> None:
        self.program = program
        self.different: set[Mutant] = {mutant for mutant in mutants if mutant.kind == "barrier dropped"}
        self.by_index: dict[int, list[Mutant]] = {}
        for mutant in mutants:
            self.by_index.setdefault(mutant.index, []).append(mutant)

    def observe(self, index: int, action: Callable[[Waves], Any]) -> Callable[[Waves], Any]:
        """The action of an instruction, with its mutants tried first and undone."""
        mutants = self.by_index.get(index, [])
        if not mutants:
            return action

        def compare_and_act(g: Waves) -> Any:
            undecided = [mutant for mutant in mutants if mutant not in self.different]
            if undecided:
                before = State(g)
                action(g)
                original = State(g)
                for mutant in undecided:
                    before.restore(g)
                    if not self._leads_to(mutant, original, g):
                        self.different.add(mutant)
                before.restore(g)
            return action(g)

        return compare_and_act

    def _leads_to(self, mutant: Mutant, original: "State", g: Waves) -> bool:
        step = step_of(mutant.text, self.program.descriptor["accum_offset"])
        try:
            g.check_registers(step.reads, step.writes, mutant.text, step.kind)
            step.execute(g)
        except EmulationError:
            return False
        return State(g) == original

    def same_effect(self, mutant: Mutant) -> bool:
        return mutant not in self.different


class State:
    """Everything that an instruction can change."""

    def __init__(self, g: Waves) -> None:
        lds = g.machine.lds
        self.arrays = [g.s, g.v, g.scc, lds.bytes, lds.valid, lds.flying, lds.changer, lds.reads, lds.writes, lds.own]
        for buffer in g.machine.memory.buffers:
            self.arrays += [buffer.bytes, buffer.written, buffer.storer, *([] if buffer.valid is None else [buffer.valid])]
        self.copies = [array.copy() for array in self.arrays]
        self.pending, self.pending_registers, self.mode = list(g.pending), g.pending_registers, g.mode

    def restore(self, g: Waves) -> None:
        for array, copy in zip(self.arrays, self.copies, strict=True):
            array[...] = copy
        g.pending, g.pending_registers, g.mode = list(self.pending), self.pending_registers, self.mode
        g.exec_changed()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, State)
            and self.mode == other.mode
            and [_summary(operation) for operation in self.pending] == [_summary(operation) for operation in other.pending]
            and all(np.array_equal(one, two) for one, two in zip(self.copies, other.copies, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def _summary(operation: Pending) -> tuple[Any, ...]:
    touches = tuple((touch.units.tobytes(), touch.writes) for touch in operation.lds)
    return operation.counter, operation.kind, operation.registers, touches
