"""From an instruction to its step: the module that knows the mnemonic."""

from functools import lru_cache

from . import lanes, matrix, packed, scalar, transfers, vector
from .assembly import Instruction, parse_instruction
from .step import Step


def decode(instruction: Instruction, accum_offset: int) -> Step:
    if instruction.encoding.endswith("dpp"):
        return lanes.dpp(instruction, accum_offset)
    if instruction.encoding == "sdwa":
        return lanes.sdwa(instruction, accum_offset)
    families = (scalar, transfers) if instruction.mnemonic[0] != "v" else (vector, packed, matrix, lanes)
    for family in (*families, transfers):
        step = family.decode(instruction, accum_offset)
        if step is not None:
            return step
    raise instruction.unknown()


@lru_cache(maxsize=50_000)
def step_of(text: str, accum_offset: int) -> Step:
    """Steps hold nothing of a launch, so equal texts share one."""
    return decode(parse_instruction(text), accum_offset)
