"""Operands as numpy arrays: readers and writers made once per instruction.

A reader gives [waves, 64], or [waves, 1] for what all lanes share, in the type that the operation computes in. Type codes:

    u i f   32-bit unsigned, signed, float
    q l d   64-bit unsigned, signed, float: two registers
    w n h   16-bit unsigned, signed, half: the low or (op_sel) the high half of a register
    b       bfloat16, computed in as float32
"""

from collections.abc import Callable

import numpy as np

from .assembly import Instruction, Operand, constant_bits
from .errors import UnknownInstruction
from .registers import Waves

Array = np.ndarray
Reader = Callable[[Waves], Array]
Writer = Callable[[Waves, Array], None]

DTYPES = {
    "u": np.uint32, "i": np.int32, "f": np.float32,
    "q": np.uint64, "l": np.int64, "d": np.float64,
    "w": np.uint16, "n": np.int16, "h": np.float16,
}  # fmt: skip
REAL_CODES = {"q": "d", "l": "d", "d": "d", "w": "e", "n": "e", "h": "e"}
WIDTHS = {"q": 64, "l": 64, "d": 64, "w": 16, "n": 16, "h": 16}
FLOATS = "fdhb"


def row(operand: Operand, accum_offset: int) -> int:
    """Of the unified vector register file."""
    if operand.kind == "v" and operand.index + operand.count > accum_offset:
        raise UnknownInstruction(f"v{operand.index + operand.count - 1} lies beyond the {accum_offset} registers declared")
    return operand.index + (accum_offset if operand.kind == "a" else 0)


def reader(operand: Operand, code: str, accum_offset: int, high: bool = False) -> Reader:
    """Without modifiers."""
    if code == "b":
        bits = reader(operand, "w", accum_offset, high)
        if operand.kind in ("integer", "real"):
            return constant(operand, "f")
        return lambda g: (bits(g).astype(np.uint32) << 16).view(np.float32)
    if operand.kind in ("integer", "real"):
        return constant(operand, code)
    if operand.kind == "scc":
        return lambda g: g.scc[:, None].astype(np.uint32)
    if operand.kind not in "vas":
        raise UnknownInstruction(f"unknown operand {operand}")
    if WIDTHS.get(code) == 64:
        return _reader64(operand, code, accum_offset)
    if WIDTHS.get(code) == 16:
        word = reader(operand, "u", accum_offset)
        dtype = DTYPES[code]
        shift = 16 if high else 0
        return lambda g: (word(g) >> shift).astype(np.uint16).view(dtype)
    if operand.kind == "s":
        index = operand.index
        if code == "u":
            return lambda g: g.s[:, index : index + 1]
        if code == "i":
            return lambda g: g.si[:, index : index + 1]
        return lambda g: g.sf[:, index : index + 1]
    index = row(operand, accum_offset)
    if code == "u":
        return lambda g: g.v[index]
    if code == "i":
        return lambda g: g.vi[index]
    return lambda g: g.vf[index]


def constant(operand: Operand, code: str) -> Reader:
    bits = constant_bits(operand, WIDTHS.get(code, 32), REAL_CODES.get(code, "f"), high_half=code == "d")
    unsigned = {16: np.uint16, 32: np.uint32, 64: np.uint64}[WIDTHS.get(code, 32)]
    value = np.array([[bits]], unsigned).view(DTYPES[code])
    value.flags.writeable = False
    return lambda g: value


def _reader64(operand: Operand, code: str, accum_offset: int) -> Reader:
    dtype = DTYPES[code]
    if operand.kind == "s":
        pair = operand.index // 2
        return lambda g: g.s64[:, pair : pair + 1].view(dtype)
    index = row(operand, accum_offset)
    return lambda g: (g.v[index] | (g.v[index + 1].astype(np.uint64) << np.uint64(32))).view(dtype)


def source(instruction: Instruction, position: int, number: int, code: str, accum_offset: int) -> Reader:
    """The reader of the operand at ``position``, which is source ``number``, with its modifiers."""
    operand = instruction.operands[position]
    select = instruction.modifiers.get("op_sel", ())
    high = number < len(select) and bool(select[number])
    if high and code not in "wnhb":
        raise instruction.unknown("op_sel")
    return modified(reader(operand, code, accum_offset, high), operand, code)


def modified(read: Reader, operand: Operand, code: str) -> Reader:
    """Absolute value, then negation; both work on the sign bit."""
    if not (operand.negate or operand.absolute):
        return read
    if code not in FLOATS:
        raise UnknownInstruction(f"sign modifiers on {operand} of an integer operation")
    if operand.absolute and operand.negate:
        return lambda g: -np.abs(read(g))
    if operand.absolute:
        return lambda g: np.abs(read(g))
    return lambda g: -read(g)


def writer(operand: Operand, code: str, accum_offset: int, high: bool = False) -> Writer:
    """Writes the active lanes of vector registers."""
    if operand.kind not in "va":
        raise UnknownInstruction(f"unknown vector destination {operand}")
    index = row(operand, accum_offset)
    if WIDTHS.get(code) == 64:
        return lambda g, value: write64(g, index, value)
    if WIDTHS.get(code) == 16 or code == "b":
        return _writer16(index, code, high)
    return {"u": _writer_u, "i": _writer_i, "f": _writer_f}[code](index)


def _writer_u(index: int) -> Writer:
    def write(g: Waves, value: Array) -> None:
        if g.all_active:
            g.v[index] = value
        else:
            np.copyto(g.v[index], value, casting="unsafe", where=g.active)

    return write


def _writer_i(index: int) -> Writer:
    def write(g: Waves, value: Array) -> None:
        if g.all_active:
            g.vi[index] = value
        else:
            np.copyto(g.vi[index], value, casting="unsafe", where=g.active)

    return write


def _writer_f(index: int) -> Writer:
    def write(g: Waves, value: Array) -> None:
        if g.all_active:
            g.vf[index] = value
        else:
            np.copyto(g.vf[index], value, casting="unsafe", where=g.active)

    return write


def _writer16(index: int, code: str, high: bool) -> Writer:
    """The other half is kept by op_sel forms, and cleared by those that write the low half."""

    def write(g: Waves, value: Array) -> None:
        if code == "b":
            bits = bfloat16(value)
        else:
            bits = np.ascontiguousarray(value.astype(DTYPES[code], copy=False)).view(np.uint16).astype(np.uint32)
        if high:
            bits = (bits << np.uint32(16)) | (g.v[index] & np.uint32(0xFFFF))
        np.copyto(g.v[index], bits, where=g.active)

    return write


def write64(g: Waves, index: int, value: Array) -> None:
    bits = np.ascontiguousarray(value).view(np.uint64)
    np.copyto(g.v[index], bits, casting="unsafe", where=g.active)
    np.copyto(g.v[index + 1], bits >> np.uint64(32), casting="unsafe", where=g.active)


def bfloat16(value: Array) -> Array:
    """float32 as bfloat16 bits in uint32, to nearest even; a NaN stays one."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint32)


def finished(instruction: Instruction, code: str, compute: Callable[..., Array]) -> Callable[..., Array]:
    """``compute`` with the first of the output modifiers: omod (mul:2, mul:4, div:2)."""
    modifiers = instruction.modifiers
    factor = {2: 0.5}.get(modifiers["div"]) if "div" in modifiers else modifiers.get("mul")
    if factor is None:
        return compute
    if code not in FLOATS:
        raise instruction.unknown("output modifier")

    def multiplied(*values: Array) -> Array:
        result = compute(*values)
        return result * result.dtype.type(factor)

    return multiplied


def clamped(g: Waves, result: Array) -> Array:
    """The last output modifier, clamp: to [0, 1]. A NaN becomes 0 where MODE.DX10_CLAMP is set, and is handed on elsewhere."""
    kept = (result > 0) if g.clamp_drops_nan else ~(result <= 0)
    return np.where(kept, np.minimum(result, result.dtype.type(1)), result.dtype.type(0))
