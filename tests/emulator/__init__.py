"""gfx950 (CDNA4) assembly, as Triton's compiler writes it, executed instruction by instruction with numpy.

    compiled = triton.compile(source, target=GPUTarget("hip", "gfx950", 64))
    result = run(compiled, grid=(4, 2), arguments=[array, array, 17])

It finds what hardware hides: a register or LDS bytes used before the s_waitcnt that covers them, races on LDS, loads of what
another wave stored with no barrier between, reads of memory that nothing has written, accesses outside every buffer. It counts
instructions, LDS cycles and memory lines. It does not model hazards between matrix and vector instructions, the order in which
matrix instructions round, denormal modes, caches, or the order of workgroups; and it says nothing about time.

    assembly     text -> program
    registers    waves, their registers and operations in flight
    operands     operands as arrays
    scalar, vector, packed, lanes, matrix, transfers    what instructions mean
    formats      fp8, fp6, fp4 and their scales
    memory       buffers and LDS
    banks        LDS bank conflicts
    launch       grid, arguments, the loop
"""

from .assembly import Program, parse
from .counters import Counters
from .errors import (
    Deadlock,
    EmulationError,
    MissingWait,
    OutOfBounds,
    Race,
    Uninitialised,
    UnknownInstruction,
)
from .launch import Pieces, Pointer, Result, run

__all__ = [
    "Counters",
    "Deadlock",
    "EmulationError",
    "MissingWait",
    "OutOfBounds",
    "Pieces",
    "Pointer",
    "Program",
    "Race",
    "Result",
    "Uninitialised",
    "UnknownInstruction",
    "parse",
    "run",
]
