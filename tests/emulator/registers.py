"""The state of waves that run in step.

Waves that have taken the same path through the program share a program counter, a history, and therefore the order of their
memory operations: they are executed together, one numpy operation for all lanes of all of them. A branch on which they
disagree splits them.

vgpr rows are the unified file of CDNA3: v0 ... first, then a0 ... from the descriptor's accum_offset on.
"""

from typing import Any

import numpy as np

from .assembly import EXEC, Operand
from .errors import MissingWait

LANES = 64
SCALARS = 128
POISON = np.uint32(0xFFA5_5A5A)  # a NaN, a huge unsigned, an address outside every buffer


class Pending:
    """A memory operation that an s_waitcnt has not covered yet."""

    __slots__ = ("counter", "kind", "lds", "registers", "text")

    def __init__(self, counter: str, kind: str, registers: int, text: str, *lds: Any) -> None:
        self.counter = counter
        self.kind = kind  # what returns in order with its like: vmem, lds; scalar returns in any order
        self.registers = registers  # a bit per destination register
        self.text = text
        self.lds = lds  # Touches of LDS bytes that no barrier orders before the wait


class Waves:
    """Waves that have taken the same path so far."""

    def __init__(self, machine: Any, workgroup: np.ndarray, wave: np.ndarray, vgpr_rows: int) -> None:
        count = len(wave)
        self.machine = machine
        self.workgroup, self.wave = workgroup, wave
        self.pc = 0
        self.pending: list[Pending] = []
        self.pending_registers = 0
        self._adopt(
            np.full((count, SCALARS), POISON, np.uint32),
            np.full((vgpr_rows, count, LANES), POISON, np.uint32),
            np.zeros(count, bool),
        )
        self.saturate_fp8 = False  # MODE.FP16_OVFL
        self.clamp_drops_nan = bool(machine.program.descriptor.get("dx10_clamp", 1))  # MODE.DX10_CLAMP
        self.s64[:, EXEC // 2] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        self.exec_changed()

    def _adopt(self, s: np.ndarray, v: np.ndarray, scc: np.ndarray) -> None:
        self.s, self.si, self.sf, self.s64 = s, s.view(np.int32), s.view(np.float32), s.view(np.uint64)
        self.v, self.vi, self.vf = v, v.view(np.int32), v.view(np.float32)
        self.scc = scc

    @property
    def count(self) -> int:
        return len(self.wave)

    @property
    def owner(self) -> np.ndarray:
        """A number for each wave of the launch: workgroup * waves + wave."""
        return self.workgroup * self.machine.program.waves + self.wave

    @property
    def mode(self) -> tuple[bool, bool]:
        """Of MODE, what an instruction may change."""
        return self.saturate_fp8, self.clamp_drops_nan

    @mode.setter
    def mode(self, bits: tuple[bool, bool]) -> None:
        self.saturate_fp8, self.clamp_drops_nan = bits

    def exec_changed(self) -> None:
        """Keep exec as lanes: ``active`` [waves, 64], and whether all of them are."""
        self.active = lanes_of(self.s64[:, EXEC // 2])
        self.all_active = bool(self.active.all())

    def select(self, chosen: np.ndarray) -> "Waves":
        """Some of the waves, as waves of their own."""
        part = object.__new__(Waves)
        part.machine = self.machine
        part.workgroup, part.wave, part.pc = self.workgroup[chosen], self.wave[chosen], self.pc
        part.mode = self.mode
        part._adopt(self.s[chosen], np.ascontiguousarray(self.v[:, chosen]), self.scc[chosen])
        part.pending = [_part_of(operation, part) for operation in self.pending]
        part.pending_registers = self.pending_registers
        part.exec_changed()
        return part

    def issue(self, operation: Pending) -> None:
        self.pending.append(operation)
        self.pending_registers |= operation.registers

    def wait(self, counter: str, left: int) -> None:
        """s_waitcnt: complete all but the youngest ``left`` operations of a counter.

        LDS and vector memory operations return in order. Scalar loads return in any order, so that only a wait for 0 covers
        them, and the operations left may as well all be LDS ones.
        """
        of_counter = [operation for operation in self.pending if counter in operation.counter]
        in_order = [operation for operation in of_counter if operation.kind != "scalar"]
        done = in_order[: max(0, len(in_order) - left)]
        if left == 0:
            done = of_counter
        if not done:
            return
        finished = set(map(id, done))
        # A flat access counts in both counters and is known to be complete when either is covered.
        self.pending = [operation for operation in self.pending if id(operation) not in finished]
        self.pending_registers = 0
        for operation in self.pending:
            self.pending_registers |= operation.registers
        for operation in done:
            for touch in operation.lds:
                touch.finish()

    def check_registers(self, reads: int, writes: int, text: str, kind: str) -> None:
        """A use of a register that a memory operation is still to write.

        A load may overwrite the destination of an earlier one of its kind: they return in order.
        """
        for operation in self.pending:
            conflict = operation.registers & reads
            if not conflict and not (kind == operation.kind != "scalar"):
                conflict = operation.registers & writes
            if conflict:
                raise MissingWait(f"{text}: a register is still in flight of {operation.text}")


def _part_of(operation: Pending, part: Waves) -> Pending:
    lds = (touch.part(part.owner) for touch in operation.lds)
    return Pending(operation.counter, operation.kind, operation.registers, operation.text, *lds)


def joined(groups: list[Waves]) -> Waves:
    """Groups at one place whose operations in flight are the same, as one group."""
    first = groups[0]
    whole = object.__new__(Waves)
    whole.machine = first.machine
    whole.workgroup = np.concatenate([group.workgroup for group in groups])
    whole.wave = np.concatenate([group.wave for group in groups])
    whole.pc, whole.pending, whole.pending_registers = first.pc, first.pending, first.pending_registers
    whole.mode = first.mode
    whole._adopt(
        np.concatenate([group.s for group in groups]),
        np.concatenate([group.v for group in groups], axis=1),
        np.concatenate([group.scc for group in groups]),
    )
    whole.exec_changed()
    return whole


def lanes_of(masks: np.ndarray) -> np.ndarray:
    """64-bit masks [waves] as booleans [waves, 64]."""
    octets = np.ascontiguousarray(masks).view(np.uint8).reshape(-1, 8)
    return np.unpackbits(octets, axis=1, bitorder="little").view(bool)


def mask_of(lanes: np.ndarray) -> np.ndarray:
    """Booleans [waves, 64] as 64-bit masks [waves]."""
    return np.packbits(lanes, axis=1, bitorder="little").view(np.uint64)[:, 0]


def register_bits(operand: Operand, accum_offset: int, count: int | None = None) -> int:
    """A bit per register that an operand names: vector rows from bit 128 on, scalars below."""
    count = operand.count if count is None else count
    if operand.kind == "s":
        return ((1 << count) - 1) << operand.index
    if operand.kind in "va":
        return ((1 << count) - 1) << (SCALARS + operand.index + (accum_offset if operand.kind == "a" else 0))
    return 0
