"""Matrix instructions: D = A B + C on 64 lanes, whatever EXEC says.

CDNA3 and CDNA4 ISA guides, "Matrix Arithmetic Instructions". Lane l holds row (of A) or column (of B) l mod M; lanes l // M
divide the depth K. Accumulators: register r of lane l is column l mod N, row (256 / N) (r // 4) + 4 (l // N) + r mod 4.
Products are exact and added in float64, then rounded once: the order in which hardware rounds is not published.
"""

import re

import numpy as np

from . import formats
from .assembly import Instruction, Operand
from .operands import Array, reader, row
from .registers import LANES, Waves
from .step import Step, bits_of

NAME = re.compile(r"v_mfma_(scale_)?(f32|i32)_(\d+)x(\d+)x(\d+)_?(?:(\d+)b_)?(\w+)")
# Operand formats of the f8f6f4 instructions, as cbsz (A) and blgp (B) choose them, with the registers that they take.
SMALL_FORMATS = {
    0: (formats.E4M3, 8), 1: (formats.E5M2, 8), 2: (formats.E2M3, 6), 3: (formats.E3M2, 6), 4: (formats.E2M1, 4),
}  # fmt: skip
EIGHT_BITS = {"fp8": formats.E4M3, "bf8": formats.E5M2}
EIGHT_BITS_CDNA3 = {"fp8": formats.E4M3_FNUZ, "bf8": formats.E5M2_FNUZ}


def decode(instruction: Instruction, accum_offset: int) -> Step | None:
    match = NAME.fullmatch(instruction.mnemonic)
    if not match:
        return None
    scaled, result, m, n, depth, blocks, kind = match.groups()
    m, n, depth, blocks = int(m), int(n), int(depth), int(blocks or 1)
    operands, modifiers = instruction.operands, instruction.modifiers
    if set(modifiers) - {"cbsz", "blgp", "op_sel", "op_sel_hi"} or (kind != "f8f6f4" and modifiers):
        raise instruction.unknown("modifier")
    if kind == "f8f6f4":
        load_a = _small(instruction, operands[1], modifiers.get("cbsz", 0), m, depth, accum_offset)
        load_b = _small(instruction, operands[2], modifiers.get("blgp", 0), n, depth, accum_offset)
    else:
        kinds = kind.removesuffix("_1k").split("_")
        load_a = _wide(instruction, operands[1], kinds[0], m, depth, blocks, accum_offset)
        load_b = _wide(instruction, operands[2], kinds[-1], n, depth, blocks, accum_offset)
    scale_a = _scale(instruction, 0, m, accum_offset) if scaled else None
    scale_b = _scale(instruction, 1, n, accum_offset) if scaled else None

    registers = m * n * blocks // LANES
    if operands[0].count != registers:
        raise instruction.unknown("accumulator")
    accumulator_rows, lane_columns, lane_blocks = _accumulator_layout(m, n, blocks)
    index, addend = row(operands[0], accum_offset), operands[3]
    integer = result == "i32"
    if addend.kind in "va":
        start = row(addend, accum_offset)

        def initial(g: Waves) -> Array:
            return (g.vi if integer else g.vf)[start : start + registers]
    else:
        constant = reader(addend, "i" if integer else "f", accum_offset)

        def initial(g: Waves) -> Array:
            return constant(g)

    def execute(g: Waves) -> None:
        a, b = load_a(g), load_b(g)
        if scale_a is not None and scale_b is not None:
            a = (a.reshape(*a.shape[:-1], -1, 32) * scale_a(g)[..., None]).reshape(a.shape)
            b = (b.reshape(*b.shape[:-1], -1, 32) * scale_b(g)[..., None]).reshape(b.shape)
        product = np.matmul(a, b.swapaxes(-1, -2))  # [waves, blocks, m, n]
        total = product[:, lane_blocks, accumulator_rows, lane_columns].swapaxes(0, 1) + initial(g)
        (g.vi if integer else g.vf)[index : index + registers] = total

    return Step(instruction, execute, bits_of(operands[1:], accum_offset), bits_of(operands[:1], accum_offset), "mfma")


def _accumulator_layout(m: int, n: int, blocks: int) -> tuple[Array, Array, Array]:
    """(row, column, block) of each [register, lane]."""
    register, lane = np.arange(m * n * blocks // LANES)[:, None], np.arange(LANES)[None, :]
    column = lane % n
    if m == 4:  # sixteen blocks, one for each four lanes
        return register + 0 * lane, column + 0 * register, lane // 4 + 0 * register
    per_block = m * n // LANES
    block, register = register // per_block, register % per_block
    line = (256 // n) * (register // 4) + 4 * (lane // n) + register % 4
    return line, column + 0 * register, block + 0 * lane


def _registers(g: Waves, start: int, count: int) -> Array:
    """[waves, lanes, registers]"""
    return np.ascontiguousarray(g.v[start : start + count].transpose(1, 2, 0))


def _wide(instruction: Instruction, operand: Operand, kind: str, m: int, depth: int, blocks: int, accum_offset: int):  # type: ignore[no-untyped-def]
    """A reader of A or B as float64 [waves, blocks, m, depth]; both order the depth alike, so that any order will do."""
    groups = LANES // (m * blocks)
    each = depth // groups
    bits = {"f16": 16, "bf16": 16, "f32": 32, "xf32": 32, "fp8": 8, "bf8": 8, "i8": 8}.get(kind)
    if bits is None or operand.kind not in "va" or operand.count * 32 != each * bits:
        raise instruction.unknown("matrix operand")
    start = row(operand, accum_offset)

    def load(g: Waves) -> Array:
        dwords = _registers(g, start, operand.count)
        if kind in EIGHT_BITS:
            cdna3 = g.machine.program.arch == "gfx942"
            values = formats.decode_dwords(dwords, (EIGHT_BITS_CDNA3 if cdna3 else EIGHT_BITS)[kind], each)
        elif kind == "i8":
            values = dwords.view(np.int8).astype(np.float64)
        elif kind == "f16":
            values = dwords.view(np.float16).astype(np.float64)
        elif kind == "bf16":
            values = (dwords.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        elif kind == "f32":
            values = dwords.view(np.float32).astype(np.float64)
        else:  # xf32: the ten leading bits of the mantissa
            values = (dwords & np.uint32(0xFFFF_E000)).view(np.float32).astype(np.float64)
        split = values.reshape(g.count, groups, blocks, m, each)
        return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4)).reshape(g.count, blocks, m, depth)

    return load


def _small(instruction: Instruction, operand: Operand, code: int, m: int, depth: int, accum_offset: int):  # type: ignore[no-untyped-def]
    """A or B of an f8f6f4 instruction: 32 values in each lane.

    fp6 and fp4 values follow each other along the depth; fp8 ones come in two runs of 16, half of the depth apart.
    """
    if code not in SMALL_FORMATS or operand.kind not in "va":
        raise instruction.unknown("matrix operand")
    number_format, count = SMALL_FORMATS[code]
    if operand.count != count:
        raise instruction.unknown("matrix operand")
    start, groups = row(operand, accum_offset), LANES // m

    def load(g: Waves) -> Array:
        values = formats.decode_dwords(_registers(g, start, count), number_format, 32)
        if number_format.bits == 8:
            split = values.reshape(g.count, groups, m, 2, 16).transpose(0, 2, 3, 1, 4)
        else:
            split = values.reshape(g.count, groups, m, 32).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(split).reshape(g.count, 1, m, depth)

    return load


def _scale(instruction: Instruction, number: int, m: int, accum_offset: int):  # type: ignore[no-untyped-def]
    """[waves, 1, m, blocks of 32 along the depth]: lane l has the scale of row l mod m and block l // m, in the chosen byte."""
    modifiers = instruction.modifiers
    low, high = modifiers.get("op_sel", (0, 0, 0))[number], modifiers.get("op_sel_hi", (0, 0, 0))[number]
    read, shift = reader(instruction.operands[4 + number], "u", accum_offset), np.uint32(8 * (low + 2 * high))

    def load(g: Waves) -> Array:
        codes = np.broadcast_to((read(g) >> shift) & np.uint32(0xFF), (g.count, LANES))
        return formats.scale_of(codes).reshape(g.count, 1, LANES // m, m).swapaxes(-1, -2)

    return load
