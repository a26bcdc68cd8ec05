"""Vector instructions that move data between lanes or select parts of registers: DPP, SDWA, permlane, readlane.

ISA guides: "Data Parallel Processing", "Sub-Dword Addressing", and the opcode listings. Sources are gathered from all lanes
before anything is written.
"""

import numpy as np

from . import vector
from .assembly import Instruction
from .operands import DTYPES, Array, Reader, modified, reader, row
from .registers import LANES, Waves
from .step import Step

LANE = np.arange(LANES)
ROW, IN_ROW = LANE // 16, LANE % 16


def dpp_source(instruction: Instruction) -> tuple[Array, Array]:
    """(the lane that each lane reads, whether there is one)."""
    modifiers = instruction.modifiers
    everywhere = np.ones(LANES, bool)
    if "quad_perm" in modifiers:
        return LANE // 4 * 4 + np.array(modifiers["quad_perm"])[LANE % 4], everywhere
    if "row_shl" in modifiers:
        return LANE + modifiers["row_shl"], IN_ROW + modifiers["row_shl"] < 16
    if "row_shr" in modifiers:
        return LANE - modifiers["row_shr"], IN_ROW - modifiers["row_shr"] >= 0
    if "row_ror" in modifiers:
        return ROW * 16 + (IN_ROW - modifiers["row_ror"]) % 16, everywhere
    if "row_mirror" in modifiers:
        return ROW * 16 + 15 - IN_ROW, everywhere
    if "row_half_mirror" in modifiers:
        return LANE // 8 * 8 + 7 - LANE % 8, everywhere
    if modifiers.get("row_bcast") == 15:
        return ROW * 16 - 1, ROW > 0
    if modifiers.get("row_bcast") == 31:
        return np.full(LANES, 31), LANE >= 32
    if "row_newbcast" in modifiers:
        return ROW * 16 + modifiers["row_newbcast"], everywhere
    for key, shift in (("wave_shl", 1), ("wave_shr", -1)):
        if key in modifiers:
            return LANE + shift, (LANE + shift >= 0) & (LANE + shift < LANES)
    for key, shift in (("wave_rol", 1), ("wave_ror", -1)):
        if key in modifiers:
            return (LANE + shift) % LANES, everywhere
    raise instruction.unknown("lane move")


DPP_MODIFIERS = {"row_mask", "bank_mask", "bound_ctrl"}


def dpp(instruction: Instruction, accum_offset: int) -> Step:
    """A 32-bit operation whose first source comes from another lane.

    A lane whose source does not exist or is inactive reads 0 with bound_ctrl, and is not written without. Rows and banks
    (groups of four lanes in each row) outside the masks are not written.
    """
    operands, modifiers = instruction.operands, instruction.modifiers
    if instruction.mnemonic in vector.ACCUMULATING:
        codes, compute = "ffff", vector.fma32
        sources = (*operands[1:], operands[0])
    elif instruction.mnemonic in vector.OPERATIONS:
        codes, compute = vector.OPERATIONS[instruction.mnemonic]
        sources = operands[1:]
    else:
        raise instruction.unknown()
    if set(codes) - set("uif") or "clamp" in modifiers or len(sources) != len(codes) - 1:
        raise instruction.unknown("DPP form")
    lane, exists = dpp_source(instruction)
    lane = np.where(exists, lane, LANE)
    bound_control = modifiers.get("bound_ctrl", 0)
    enabled = (modifiers.get("row_mask", 15) >> ROW & 1) & (modifiers.get("bank_mask", 15) >> IN_ROW // 4 & 1) == 1
    readers = [modified(reader(o, code, accum_offset), o, code) for o, code in zip(sources, codes[1:], strict=True)]
    first, others = readers[0], readers[1:]
    index, dtype = row(operands[0], accum_offset), DTYPES[codes[0]]

    def execute(g: Waves) -> None:
        moved = np.broadcast_to(first(g), g.active.shape)[:, lane]
        readable = exists if g.all_active else exists & g.active[:, lane]
        if bound_control:
            moved = np.where(readable, moved, moved.dtype.type(0))
            written = enabled & g.active
        else:
            written = enabled & g.active & readable
        result = compute(moved, *(read(g) for read in others))
        np.copyto(g.v[index], np.broadcast_to(result, moved.shape).astype(dtype).view(np.uint32), where=written)

    # The destination keeps lanes, so it is read as well.
    return vector.valu(instruction, execute, operands[:1], operands, accum_offset)


def selected(read: Reader, selection: str, sign_extend: bool) -> Reader:
    """SDWA: a byte or a half of a register."""
    if selection == "DWORD":
        return read
    width = 8 if selection.startswith("BYTE") else 16
    shift, mask = np.uint32(int(selection[-1]) * width), np.uint32((1 << width) - 1)
    if sign_extend:
        left = 32 - width
        return lambda g: ((read(g) >> shift) << np.uint32(left)).view(np.int32).__rshift__(left).view(np.uint32)
    return lambda g: (read(g) >> shift) & mask


def as_code(read: Reader, code: str) -> Reader:
    """32 bits as a type."""
    if code in "wnh":
        return lambda g: read(g).astype(np.uint16).view(DTYPES[code])
    return lambda g: np.ascontiguousarray(read(g)).view(DTYPES[code])


def sdwa(instruction: Instruction, accum_offset: int) -> Step:
    name, operands, modifiers = instruction.mnemonic, instruction.operands, instruction.modifiers
    comparison = vector.comparison_of(name) if name.startswith("v_cmp") else None
    masks = []
    if comparison:
        codes = "u" + comparison[0] * 2
        compute = comparison[1]
    elif name == "v_cndmask_b32":
        *operands, choosing = operands
        masks = [lambda g: vector.read_mask(g, choosing)]
        codes, compute = "uuu", lambda one, other, chosen: np.where(chosen, other, one)
    elif name in vector.OPERATIONS:
        codes, compute = vector.OPERATIONS[name]
    else:
        raise instruction.unknown()
    if set(codes) & set("qldb") or "clamp" in modifiers or len(operands) != len(codes):
        raise instruction.unknown("SDWA form")
    readers = []
    for number, code in enumerate(codes[1:]):
        operand = operands[1 + number]
        part = selected(reader(operand, "u", accum_offset), modifiers.get(f"src{number}_sel", "DWORD"), operand.sign_extend)
        readers.append(modified(as_code(part, code), operand, code))
    readers += masks
    if comparison:

        def compare(g: Waves) -> None:
            vector.write_mask(g, operands[0], compute(*(read(g) for read in readers)))

        return vector.valu(instruction, compare, operands[:1], operands[1:], accum_offset)
    index, selection = row(operands[0], accum_offset), modifiers.get("dst_sel", "DWORD")
    unused = modifiers.get("dst_unused", "UNUSED_PAD")
    width = {"D": 32, "B": 8, "W": 16}[selection[0]]
    shift = 0 if width == 32 else int(selection[-1]) * width
    mask = np.uint32(((1 << width) - 1) << shift)
    dtype = DTYPES[codes[0]]

    def execute(g: Waves) -> None:
        result = np.ascontiguousarray(compute(*(read(g) for read in readers)).astype(dtype, copy=False))
        bits = result.view(np.uint16).astype(np.uint32) if result.itemsize == 2 else result.view(np.uint32)
        bits = (bits << np.uint32(shift)) & mask
        if unused == "UNUSED_PRESERVE":
            bits = bits | (g.v[index] & ~mask)
        elif unused == "UNUSED_SEXT" and width < 32:
            left = 32 - width - shift
            bits = ((bits << np.uint32(left)).view(np.int32) >> left).view(np.uint32)
        np.copyto(g.v[index], bits, where=g.active)

    return vector.valu(instruction, execute, operands[:1], instruction.operands, accum_offset)


def decode(instruction: Instruction, accum_offset: int) -> Step | None:
    """permlane, readlane and writelane."""
    name, operands = instruction.mnemonic, instruction.operands
    if name in ("v_permlane32_swap_b32", "v_permlane16_swap_b32"):
        return _permlane_swap(instruction, accum_offset)
    if name == "v_swap_b32":
        one, other = (row(operand, accum_offset) for operand in operands)

        def swap(g: Waves) -> None:
            kept = g.v[one].copy()
            np.copyto(g.v[one], g.v[other], where=g.active)
            np.copyto(g.v[other], kept, where=g.active)

        return vector.valu(instruction, swap, operands, operands, accum_offset)
    if name == "v_readfirstlane_b32":
        read, index = reader(operands[1], "u", accum_offset), operands[0].index

        def read_first(g: Waves) -> None:
            lane = g.active.argmax(axis=1)  # 0 if no lane is active
            g.s[:, index] = np.broadcast_to(read(g), g.active.shape)[np.arange(g.count), lane]

        return vector.valu(instruction, read_first, operands[:1], operands[1:], accum_offset)
    if name == "v_readlane_b32":
        read, index = reader(operands[1], "u", accum_offset), operands[0].index
        chosen = reader(operands[2], "u", accum_offset)

        def read_lane(g: Waves) -> None:
            lane = np.broadcast_to(chosen(g)[:, 0] & 63, g.count)
            g.s[:, index] = read(g)[np.arange(g.count), lane]

        return vector.valu(instruction, read_lane, operands[:1], operands[1:], accum_offset)
    if name == "v_writelane_b32":
        value, chosen = (reader(operand, "u", accum_offset) for operand in operands[1:3])
        index = row(operands[0], accum_offset)

        def write_lane(g: Waves) -> None:  # EXEC does not matter
            g.v[index][np.arange(g.count), np.broadcast_to(chosen(g)[:, 0] & 63, g.count)] = value(g)[:, 0]

        return vector.valu(instruction, write_lane, operands[:1], operands, accum_offset)
    return None


def _permlane_swap(instruction: Instruction, accum_offset: int) -> Step:
    """Odd groups of lanes of the first register change places with the even ones of the second."""
    group = 32 if "32" in instruction.mnemonic.split("_")[1] else 16
    one, other = (row(operand, accum_offset) for operand in instruction.operands)
    odd, even = LANE[LANE // group % 2 == 1], LANE[LANE // group % 2 == 0]

    def execute(g: Waves) -> None:
        if not g.all_active:
            raise instruction.unknown("meaning with inactive lanes")
        kept = g.v[one][:, odd]
        g.v[one][:, odd] = g.v[other][:, even]
        g.v[other][:, even] = kept

    return vector.valu(instruction, execute, instruction.operands, instruction.operands, accum_offset)
