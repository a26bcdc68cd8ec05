"""VOP3P: two operations in one instruction, on pairs of registers (float32) or on the halves of one (16 bits).

op_sel chooses each source's half for the low result, op_sel_hi the one for the high result (all high by default), neg_lo
and neg_hi negate them. clamp holds for both results (LLVM, SIDefines.h: ClampLo and ClampHi; its test gfx90a_asm_features.s
assembles v_pk_mul_f32 with it).
"""

from collections.abc import Callable

import numpy as np

from . import vector
from .assembly import Instruction, Operand
from .operands import DTYPES, Array, Reader, clamped, constant, modified, reader, row
from .registers import Waves
from .step import Step

PAIRS: dict[str, Callable[..., Array]] = {
    "v_pk_add_f32": lambda a, b: a + b,
    "v_pk_mul_f32": lambda a, b: a * b,
    "v_pk_fma_f32": vector.fma32,
    "v_pk_mov_b32": lambda a: a,
}
HALVES: dict[str, tuple[str, Callable[..., Array]]] = {
    "v_pk_add_f16": ("h", lambda a, b: a + b),
    "v_pk_mul_f16": ("h", lambda a, b: a * b),
    "v_pk_fma_f16": ("h", lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float16)),
    "v_pk_max_f16": ("h", vector.maximum_number),
    "v_pk_min_f16": ("h", vector.minimum_number),
    "v_pk_maximum3_f16": ("h", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_pk_minimum3_f16": ("h", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_pk_add_u16": ("w", lambda a, b: a + b),
    "v_pk_sub_i16": ("n", lambda a, b: a - b),
    "v_pk_mul_lo_u16": ("w", lambda a, b: a * b),
    "v_pk_mad_u16": ("w", lambda a, b, c: a * b + c),
    "v_pk_max_u16": ("w", np.maximum),
    "v_pk_min_u16": ("w", np.minimum),
    "v_pk_max_i16": ("n", np.maximum),
    "v_pk_min_i16": ("n", np.minimum),
    "v_pk_lshlrev_b16": ("w", lambda a, b: b << (a & 15)),
    "v_pk_lshrrev_b16": ("w", lambda a, b: b >> (a & 15)),
}


def decode(instruction: Instruction, accum_offset: int) -> Step | None:
    name = instruction.mnemonic
    if name in PAIRS:
        return _pairs(instruction, accum_offset)
    if name in HALVES:
        return _halves(instruction, accum_offset)
    if name in ("v_fma_mix_f32", "v_fma_mixlo_f16", "v_fma_mixhi_f16"):
        return _mixed(instruction, accum_offset)
    return None


def _flags(instruction: Instruction, key: str, default: int) -> tuple[int, ...]:
    given = instruction.modifiers.get(key, ())
    return tuple(given) + (default,) * (3 - len(given))


def _pairs(instruction: Instruction, accum_offset: int) -> Step:
    name, operands = instruction.mnemonic, instruction.operands
    compute, sources = PAIRS[name], operands[1:]
    move, clamps = name == "v_pk_mov_b32", "clamp" in instruction.modifiers
    if move and clamps:
        raise instruction.unknown("clamp")
    code = "u" if move else "f"

    def part(number: int, high: bool) -> Reader:
        operand = sources[number]
        chosen = _flags(instruction, "op_sel_hi", 1)[number] if high else _flags(instruction, "op_sel", 0)[number]
        negative = _flags(instruction, "neg_hi" if high else "neg_lo", 0)[number]
        read = _half_of_pair(instruction, operand, chosen, code, accum_offset)
        return (lambda g: -read(g)) if negative else read

    if move:  # the low result comes from the first source, the high one from the second, both by op_sel
        low_sources, high_sources = [part(0, False)], [part(1, False)]
    else:
        low_sources = [part(number, False) for number in range(len(sources))]
        high_sources = [part(number, True) for number in range(len(sources))]
    index = row(operands[0], accum_offset)

    def execute(g: Waves) -> None:
        low, high = compute(*(read(g) for read in low_sources)), compute(*(read(g) for read in high_sources))
        if clamps:
            low, high = clamped(g, low), clamped(g, high)
        if g.all_active:
            g.v[index], g.v[index + 1] = low.view(np.uint32), high.view(np.uint32)
        else:
            np.copyto(g.v[index], low.view(np.uint32), where=g.active)
            np.copyto(g.v[index + 1], high.view(np.uint32), where=g.active)

    return vector.valu(instruction, execute, operands[:1], sources, accum_offset)


def _half_of_pair(instruction: Instruction, operand: Operand, chosen: int, code: str, accum_offset: int) -> Reader:
    if operand.kind in ("integer", "real"):
        if chosen:
            raise instruction.unknown("high half of a constant")
        return constant(operand, code)
    if operand.count != 2:
        raise instruction.unknown("packed operand")
    if operand.kind == "s":
        index = operand.index + chosen
        return lambda g: (g.s if code == "u" else g.sf)[:, index : index + 1]
    index = row(operand, accum_offset) + chosen
    return lambda g: (g.v if code == "u" else g.vf)[index]


def _word(operand: Operand, chosen: int, code: str, accum_offset: int) -> Reader:
    """A half of one register; the high half of a constant is 0."""
    if operand.kind in ("integer", "real") and chosen:
        return lambda g: np.zeros((1, 1), DTYPES[code])
    return reader(operand, code, accum_offset, bool(chosen))


def _halves(instruction: Instruction, accum_offset: int) -> Step:
    code, compute = HALVES[instruction.mnemonic]
    operands, sources = instruction.operands, instruction.operands[1:]

    def parts(key: str, default: int, negation: str) -> list[Reader]:
        readers = []
        for number, operand in enumerate(sources):
            read = _word(operand, _flags(instruction, key, default)[number], code, accum_offset)
            negative = _flags(instruction, negation, 0)[number]
            readers.append((lambda g, read=read: -read(g)) if negative else read)
        return readers

    low_sources, high_sources = parts("op_sel", 0, "neg_lo"), parts("op_sel_hi", 1, "neg_hi")
    index = row(operands[0], accum_offset)
    if "clamp" in instruction.modifiers:
        raise instruction.unknown("clamp")

    def bits(g: Waves, readers: list[Reader]) -> Array:
        result = compute(*(read(g) for read in readers)).astype(DTYPES[code], copy=False)
        return np.ascontiguousarray(result).view(np.uint16).astype(np.uint32)

    def execute(g: Waves) -> None:
        np.copyto(g.v[index], bits(g, low_sources) | (bits(g, high_sources) << np.uint32(16)), where=g.active)

    return vector.valu(instruction, execute, operands[:1], sources, accum_offset)


def _mixed(instruction: Instruction, accum_offset: int) -> Step:
    """v_fma_mix: each source a float32, or (op_sel_hi) a half chosen by op_sel."""
    name, operands = instruction.mnemonic, instruction.operands
    readers = []
    for number, operand in enumerate(operands[1:]):
        is_half = _flags(instruction, "op_sel_hi", 0)[number]
        code = "h" if is_half else "f"
        read = modified(reader(operand, code, accum_offset, bool(_flags(instruction, "op_sel", 0)[number])), operand, code)
        readers.append((lambda g, read=read: read(g).astype(np.float32)) if is_half else read)
    index = row(operands[0], accum_offset)

    def execute(g: Waves) -> None:
        result = vector.fma32(*(read(g) for read in readers))
        if name.endswith("f32"):
            bits = result.view(np.uint32)
        else:
            half = np.ascontiguousarray(result.astype(np.float16)).view(np.uint16).astype(np.uint32)
            low = name == "v_fma_mixlo_f16"
            kept = g.v[index] & np.uint32(0xFFFF_0000 if low else 0xFFFF)
            bits = kept | (half if low else half << np.uint32(16))
        np.copyto(g.v[index], bits, where=g.active)

    return vector.valu(instruction, execute, operands[:1], operands, accum_offset)
