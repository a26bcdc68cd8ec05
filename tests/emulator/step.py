"""What decoding an instruction gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .assembly import Instruction, Operand
from .registers import Waves, register_bits


@dataclass(slots=True)
class Step:
    """An instruction ready to execute, on any machine.

    reads, writes : a bit per register, to find uses before a wait
    category : valu, salu, mfma, lds, vmem, smem, branch, sync: what the counters call it
    kind : in which order its result returns (vmem, lds, scalar), or nothing
    control : branch, barrier or end; a branch's ``execute`` gives which waves take it
    """

    instruction: Instruction
    execute: Callable[[Waves], Any]
    reads: int
    writes: int
    category: str
    kind: str = ""
    control: str = ""
    target: str = ""

    @property
    def touches(self) -> int:
        return self.reads | self.writes


def bits_of(operands: tuple[Operand, ...], accum_offset: int) -> int:
    bits = 0
    for operand in operands:
        bits |= register_bits(operand, accum_offset)
    return bits
