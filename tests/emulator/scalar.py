"""Scalar ALU, branches and waits: SOP1, SOP2, SOPC, SOPK, SOPP.

One value per wave. ISA guides: "Scalar ALU Operations", "Program Flow Control". SCC is a carry, a comparison, or whether the
result is not zero, as each opcode says.
"""

from collections.abc import Callable

import numpy as np

from .assembly import EXEC, VCC, Instruction, Operand, constant_bits
from .operands import DTYPES, Array
from .registers import Waves
from .step import Step, bits_of

u32, u64, i32, i64 = np.uint32, np.uint64, np.int32, np.int64
Reader = Callable[[Waves], Array]


def reader(instruction: Instruction, operand: Operand, code: str) -> Reader:
    """One value per wave, or a single one."""
    wide = code in "ql"
    if operand.kind in ("integer", "real"):
        bits = constant_bits(operand, 64 if wide else 32, "d" if wide else "f")
        value = np.array([bits], u64 if wide else u32).view(DTYPES[code])
        return lambda g: value
    if operand.kind == "scc":
        return lambda g: g.scc.astype(DTYPES[code])
    if operand.kind != "s":
        raise instruction.unknown("scalar operand")
    index = operand.index
    if wide:
        if operand.count != 2 or index % 2:
            raise instruction.unknown("pair of scalars")
        return lambda g: g.s64[:, index // 2].view(DTYPES[code])
    if code == "u":
        return lambda g: g.s[:, index]
    return (lambda g: g.si[:, index]) if code == "i" else (lambda g: g.sf[:, index])


def writer(instruction: Instruction, operand: Operand, code: str) -> Callable[[Waves, Array], None]:
    if operand.kind != "s":
        raise instruction.unknown("scalar destination")
    index = operand.index
    if code in "ql":
        if index == EXEC:

            def write_exec(g: Waves, value: Array) -> None:
                g.s64[:, EXEC // 2] = value
                g.exec_changed()

            return write_exec

        def write_pair(g: Waves, value: Array) -> None:
            g.s64[:, index // 2] = value

        return write_pair

    def write(g: Waves, value: Array) -> None:
        {"u": g.s, "i": g.si, "f": g.sf}[code][:, index] = value
        if index in (EXEC, EXEC + 1):
            g.exec_changed()

    return write


def nonzero(result: Array, *sources: Array) -> Array:
    return result != 0


def carry(total: Array) -> Array:
    return total > 0xFFFF_FFFF


def field_unsigned(value: Array, field: Array, bits: int) -> Array:
    offset, width = field & (bits - 1), (field >> u32(16)) & u32(0x7F)
    dtype = value.dtype.type
    mask = np.where(width >= bits, dtype(-1 & ((1 << bits) - 1)), (dtype(1) << (width & (bits - 1)).astype(dtype)) - dtype(1))
    return (value >> offset.astype(dtype)) & mask


def field_signed(value: Array, field: Array) -> Array:
    width = np.minimum((field >> u32(16)) & u32(0x7F), 32).astype(i64)
    raw = field_unsigned(value.view(u32), field, 32).astype(i64)
    sign = np.where(width > 0, i64(1) << np.maximum(width - 1, 0), 0)
    return (raw ^ sign) - sign


def leading_zeros(value: Array) -> Array:
    return np.where(value == 0, -1, 31 - np.floor(np.log2(np.maximum(value, 1).astype(np.float64)))).astype(i32)


def trailing_zeros(value: Array) -> Array:
    lowest = value & (~value + value.dtype.type(1))
    return np.where(value == 0, -1, np.log2(np.maximum(lowest, 1).astype(np.float64))).astype(i32)


def population(value: Array) -> Array:
    octets = np.ascontiguousarray(value).view(np.uint8).reshape(len(value), -1)
    return np.unpackbits(octets, axis=1).sum(axis=1).astype(u32)


def reverse(value: Array) -> Array:
    return np.array([int(f"{int(item):032b}"[::-1], 2) for item in value], u32)


def shifted_sum(amount: int) -> tuple[str, Callable[..., Array], Callable[..., Array]]:
    return (
        "uuu",
        lambda a, b: (a << u32(amount)) + b,
        lambda result, a, b: carry((a.astype(u64) << u64(amount)) + b),
    )


def signed_overflow(result: Array, total: Array) -> Array:
    return result.astype(i64) != total


Scc = Callable[..., Array] | None
# Mnemonic: types of destination and sources, formula, SCC of (result, *sources).
OPERATIONS: dict[str, tuple[str, Callable[..., Array], Scc]] = {
    "s_mov_b32": ("uu", lambda a: a, None),
    "s_mov_b64": ("qq", lambda a: a, None),
    "s_not_b32": ("uu", lambda a: ~a, nonzero),
    "s_not_b64": ("qq", lambda a: ~a, nonzero),
    "s_brev_b32": ("uu", reverse, None),
    "s_bcnt1_i32_b32": ("uu", population, nonzero),
    "s_bcnt1_i32_b64": ("uq", population, nonzero),
    "s_bcnt0_i32_b64": ("uq", lambda a: u32(64) - population(a), nonzero),
    "s_ff1_i32_b32": ("iu", trailing_zeros, None),
    "s_ff1_i32_b64": ("iq", trailing_zeros, None),
    "s_flbit_i32_b32": ("iu", leading_zeros, None),
    "s_sext_i32_i8": ("ii", lambda a: (a << 24) >> 24, None),
    "s_sext_i32_i16": ("ii", lambda a: (a << 16) >> 16, None),
    "s_abs_i32": ("ii", np.abs, nonzero),
    "s_add_u32": ("uuu", lambda a, b: a + b, lambda r, a, b: carry(a.astype(u64) + b)),
    "s_sub_u32": ("uuu", lambda a, b: a - b, lambda r, a, b: b > a),
    "s_add_i32": ("iii", lambda a, b: a + b, lambda r, a, b: signed_overflow(r, a.astype(i64) + b)),
    "s_sub_i32": ("iii", lambda a, b: a - b, lambda r, a, b: signed_overflow(r, a.astype(i64) - b)),
    "s_absdiff_i32": ("iii", lambda a, b: np.abs(a - b), nonzero),
    "s_add_u64": ("qqq", lambda a, b: a + b, None),
    "s_mul_i32": ("iii", lambda a, b: a * b, None),
    "s_mul_hi_u32": ("uuu", lambda a, b: ((a.astype(u64) * b) >> u64(32)).astype(u32), None),
    "s_mul_hi_i32": ("iii", lambda a, b: ((a.astype(i64) * b) >> 32).astype(i32), None),
    "s_min_i32": ("iii", np.minimum, lambda r, a, b: a < b),
    "s_max_i32": ("iii", np.maximum, lambda r, a, b: a > b),
    "s_min_u32": ("uuu", np.minimum, lambda r, a, b: a < b),
    "s_max_u32": ("uuu", np.maximum, lambda r, a, b: a > b),
    "s_and_b32": ("uuu", lambda a, b: a & b, nonzero),
    "s_and_b64": ("qqq", lambda a, b: a & b, nonzero),
    "s_or_b32": ("uuu", lambda a, b: a | b, nonzero),
    "s_or_b64": ("qqq", lambda a, b: a | b, nonzero),
    "s_xor_b32": ("uuu", lambda a, b: a ^ b, nonzero),
    "s_xor_b64": ("qqq", lambda a, b: a ^ b, nonzero),
    "s_andn2_b32": ("uuu", lambda a, b: a & ~b, nonzero),
    "s_andn2_b64": ("qqq", lambda a, b: a & ~b, nonzero),
    "s_orn2_b32": ("uuu", lambda a, b: a | ~b, nonzero),
    "s_orn2_b64": ("qqq", lambda a, b: a | ~b, nonzero),
    "s_nand_b64": ("qqq", lambda a, b: ~(a & b), nonzero),
    "s_nor_b64": ("qqq", lambda a, b: ~(a | b), nonzero),
    "s_xnor_b32": ("uuu", lambda a, b: ~(a ^ b), nonzero),
    "s_xnor_b64": ("qqq", lambda a, b: ~(a ^ b), nonzero),
    "s_lshl_b32": ("uuu", lambda a, b: a << (b & 31), nonzero),
    "s_lshr_b32": ("uuu", lambda a, b: a >> (b & 31), nonzero),
    "s_ashr_i32": ("iiu", lambda a, b: a >> (b & 31).astype(i32), nonzero),
    "s_lshl_b64": ("qqu", lambda a, b: a << (b & 63).astype(u64), nonzero),
    "s_lshr_b64": ("qqu", lambda a, b: a >> (b & 63).astype(u64), nonzero),
    "s_ashr_i64": ("llu", lambda a, b: a >> (b & 63).astype(i64), nonzero),
    "s_bfe_u32": ("uuu", lambda a, b: field_unsigned(a, b, 32), nonzero),
    "s_bfe_u64": ("qqu", lambda a, b: field_unsigned(a, b, 64), nonzero),
    "s_bfe_i32": ("iiu", field_signed, nonzero),
    "s_bfm_b32": ("uuu", lambda a, b: ((u32(1) << (a & 31)) - u32(1)) << (b & 31), None),
    "s_bfm_b64": ("quu", lambda a, b: ((u64(1) << (a & 63).astype(u64)) - u64(1)) << (b & 63).astype(u64), None),
    "s_pack_ll_b32_b16": ("uuu", lambda a, b: (a & 0xFFFF) | (b << u32(16)), None),
    "s_pack_lh_b32_b16": ("uuu", lambda a, b: (a & 0xFFFF) | (b & u32(0xFFFF_0000)), None),
    "s_pack_hh_b32_b16": ("uuu", lambda a, b: (a >> u32(16)) | (b & u32(0xFFFF_0000)), None),
    "s_lshl1_add_u32": shifted_sum(1),
    "s_lshl2_add_u32": shifted_sum(2),
    "s_lshl3_add_u32": shifted_sum(3),
    "s_lshl4_add_u32": shifted_sum(4),
}

COMPARISONS = {
    "eq": np.equal, "lg": np.not_equal, "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal,
}  # fmt: skip
BRANCHES: dict[str, Callable[[Waves], Array]] = {
    "s_branch": lambda g: np.ones(g.count, bool),
    "s_cbranch_scc0": lambda g: ~g.scc,
    "s_cbranch_scc1": lambda g: g.scc,
    "s_cbranch_vccz": lambda g: g.s64[:, VCC // 2] == 0,
    "s_cbranch_vccnz": lambda g: g.s64[:, VCC // 2] != 0,
    "s_cbranch_execz": lambda g: g.s64[:, EXEC // 2] == 0,
    "s_cbranch_execnz": lambda g: g.s64[:, EXEC // 2] != 0,
}
# Attributes of Waves. Bits of MODE: LLVM, SIDefines.h, ModeRegisterMasks; FP16_OVFL by AMD's CDNA3 ISA guide.
MODE_BITS = {"hwreg(HW_REG_MODE,8,1)": "clamp_drops_nan", "hwreg(HW_REG_MODE,23,1)": "saturate_fp8"}
# No effect on values or on the order of memory operations as this emulator models them.
IDLE = {
    "s_nop",
    "s_sleep",
    "s_setprio",
    "s_sethalt",
    "s_icache_inv",
    "s_dcache_inv",
    "s_dcache_wb",
    "s_ttracedata",
    "s_code_end",
}
SAVED_EXEC: dict[str, Callable[[Array, Array], Array]] = {
    "and": lambda source, mask: source & mask,
    "or": lambda source, mask: source | mask,
    "xor": lambda source, mask: source ^ mask,
    "andn1": lambda source, mask: ~source & mask,
    "andn2": lambda source, mask: source & ~mask,
    "orn1": lambda source, mask: ~source | mask,
    "orn2": lambda source, mask: source | ~mask,
    "nand": lambda source, mask: ~(source & mask),
}
EXEC_PAIR, VCC_PAIR = Operand("s", EXEC, 2), Operand("s", VCC, 2)


def decode(instruction: Instruction, accum_offset: int) -> Step | None:
    name, operands = instruction.mnemonic, instruction.operands

    def step(execute: Callable[[Waves], object], destinations: int = 1, more_reads: tuple[Operand, ...] = ()) -> Step:
        reads = bits_of((*operands[destinations:], *more_reads), accum_offset)
        return Step(instruction, execute, reads, bits_of(operands[:destinations], accum_offset), "salu")

    if name in OPERATIONS:
        return step(_operation(instruction))
    if name in ("s_addc_u32", "s_subb_u32"):
        (a, b), write = (reader(instruction, o, "u") for o in operands[1:]), writer(instruction, operands[0], "u")
        sign = 1 if name == "s_addc_u32" else -1

        def with_carry(g: Waves) -> None:
            total = a(g).astype(i64) + sign * (b(g).astype(i64) + g.scc)
            write(g, (total & 0xFFFF_FFFF).astype(u32))
            g.scc[:] = (total < 0) | (total > 0xFFFF_FFFF)

        return step(with_carry)
    if name in ("s_cselect_b32", "s_cselect_b64"):
        code = "u" if name.endswith("32") else "q"
        (a, b), write = (reader(instruction, o, code) for o in operands[1:]), writer(instruction, operands[0], code)
        return step(lambda g: write(g, np.where(g.scc, a(g), b(g))))
    if name.startswith(("s_cmp_", "s_cmpk_")):
        predicate, kind = name.split("_")[2:]
        code = {"i32": "i", "u32": "u", "u64": "q"}[kind]
        a, b = (reader(instruction, o, code) for o in operands)
        compare = COMPARISONS[predicate]

        def set_scc(g: Waves) -> None:
            g.scc[:] = compare(a(g), b(g))

        return step(set_scc, 0)
    if name in ("s_bitcmp0_b32", "s_bitcmp1_b32"):
        a, b = (reader(instruction, o, "u") for o in operands)
        wanted = int(name[8])

        def test_bit(g: Waves) -> None:
            g.scc[:] = (a(g) >> (b(g) & u32(31)) & u32(1)) == wanted

        return step(test_bit, 0)
    if name in ("s_movk_i32", "s_addk_i32", "s_mulk_i32", "s_cmovk_i32"):
        return step(_with_immediate(instruction), 1, operands[:1] if name != "s_movk_i32" else ())
    if name in ("s_cmov_b32", "s_cmov_b64"):
        code = "u" if name.endswith("32") else "q"
        a, old, write = (
            reader(instruction, operands[1], code),
            reader(instruction, operands[0], code),
            writer(instruction, operands[0], code),
        )
        return step(lambda g: write(g, np.where(g.scc, a(g), old(g))), 1, operands[:1])
    if name in ("s_bitset0_b32", "s_bitset1_b32"):
        a, old, write = (
            reader(instruction, operands[1], "u"),
            reader(instruction, operands[0], "u"),
            writer(instruction, operands[0], "u"),
        )
        on = name[8] == "1"

        def set_bit(g: Waves) -> None:
            bit = u32(1) << (a(g) & u32(31))
            write(g, old(g) | bit if on else old(g) & ~bit)

        return step(set_bit, 1, operands[:1])
    if name.endswith("_saveexec_b64"):
        combine = SAVED_EXEC.get(name.split("_")[1])
        if combine is None:
            raise instruction.unknown()
        source, write, write_exec = (
            reader(instruction, operands[1], "q"),
            writer(instruction, operands[0], "q"),
            writer(instruction, EXEC_PAIR, "q"),
        )

        def save_exec(g: Waves) -> None:
            value, old = source(g).copy(), g.s64[:, EXEC // 2].copy()
            write(g, old)
            write_exec(g, combine(value, old))
            g.scc[:] = g.s64[:, EXEC // 2] != 0

        return step(save_exec)
    return _control(instruction, accum_offset)


def _operation(instruction: Instruction) -> Callable[[Waves], None]:
    codes, compute, condition = OPERATIONS[instruction.mnemonic]
    if len(instruction.operands) != len(codes):
        raise instruction.unknown("operands")
    write = writer(instruction, instruction.operands[0], codes[0])
    readers = [reader(instruction, o, code) for o, code in zip(instruction.operands[1:], codes[1:], strict=True)]
    if condition is None:
        if len(readers) == 1:
            (only,) = readers
            return lambda g: write(g, compute(only(g)))
        return lambda g: write(g, compute(*(read(g) for read in readers)))

    def execute(g: Waves) -> None:
        values = [read(g) for read in readers]
        result = compute(*values)
        flag = condition(result, *values)
        write(g, result)
        g.scc[:] = flag

    return execute


def _with_immediate(instruction: Instruction) -> Callable[[Waves], None]:
    """SOPK: a sign-extended 16-bit constant."""
    name, operands = instruction.mnemonic, instruction.operands
    value = operands[1].value
    constant = np.array([value - 0x1_0000 if value >= 0x8000 else value], i32)
    old, write = reader(instruction, operands[0], "i"), writer(instruction, operands[0], "i")
    if name == "s_movk_i32":
        return lambda g: write(g, constant)
    if name == "s_cmovk_i32":
        return lambda g: write(g, np.where(g.scc, constant, old(g)))
    if name == "s_mulk_i32":
        return lambda g: write(g, old(g) * constant)

    def add(g: Waves) -> None:
        total = old(g).astype(i64) + constant
        write(g, (total & 0xFFFF_FFFF).astype(u32).view(i32))
        g.scc[:] = g.si[:, operands[0].index].astype(i64) != total

    return add


def _control(instruction: Instruction, accum_offset: int) -> Step | None:
    name, operands = instruction.mnemonic, instruction.operands
    if name in BRANCHES:
        reads = bits_of((VCC_PAIR,), accum_offset) if "vcc" in name else 0
        return Step(instruction, BRANCHES[name], reads, 0, "branch", control="branch", target=operands[0].value)
    if name == "s_endpgm":
        return Step(instruction, lambda g: None, 0, 0, "branch", control="end")
    if name == "s_barrier":
        return Step(instruction, lambda g: None, 0, 0, "sync", control="barrier")
    if name in IDLE:
        return Step(instruction, lambda g: None, 0, 0, "sync")
    if name == "s_waitcnt":
        if set(instruction.modifiers) - {"vmcnt", "lgkmcnt", "expcnt"}:
            raise instruction.unknown("counter")
        # Nothing that this emulator knows counts in expcnt: stores read their data when they are issued.
        counts = [(key, value) for key, value in instruction.modifiers.items() if key != "expcnt"]

        def wait(g: Waves) -> None:
            for counter, left in counts:
                g.wait(counter, left)

        return Step(instruction, wait, 0, 0, "sync")
    if name == "s_setreg_imm32_b32" and operands[0].value.replace(" ", "") in MODE_BITS:
        bit = MODE_BITS[operands[0].value.replace(" ", "")]
        return Step(instruction, lambda g: setattr(g, bit, bool(operands[1].value & 1)), 0, 0, "salu")
    return None
