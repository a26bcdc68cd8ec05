"""What instructions of LLVM IR mean, with numpy: operands and constants, arithmetic, and what gfx1250 has beyond it.

A value is [threads], of a vector [threads, elements]; integers are signed, pointers are numbers, and a bfloat is its bits.
"""

import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from emulator import formats

from .llvm_ir import split

WAVE = 32  # lanes of gfx1250's waves
DTYPES = {
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "half": np.float16, "bfloat": np.int16, "float": np.float32, "double": np.float64,
}  # fmt: skip
FLAGS = re.compile(r"^(?:(?:nuw|nsw|nusw|exact|disjoint|nneg|inbounds|samesign|fast|nnan|ninf|nsz|arcp|contract|afn) )+")

# --- operands -----------------------------------------------------------------------------------------------------------------


@cache
def operands(text: str) -> tuple[str, ...]:
    return tuple(split(text))


@cache
def parted(text: str) -> tuple[str, str]:
    """The type and the value of an operand."""
    kind = re.match(r"<[^<>]*>|\[[^\[\]]*\]|ptr addrspace\(\d+\)|\w+", text)[0]
    return kind, re.sub(r"^(?:(?:noundef|nonnull) )+", "", text[len(kind) :].strip())


def dtype_of(kind: str) -> Any:
    """Of one element of a type."""
    element = kind[1:-1].partition(" x ")[2] if kind[0] in "<[" else kind
    return np.int64 if element.startswith("ptr") else DTYPES[element]


def length_of(kind: str) -> int:
    """How many elements a vector has, or 0."""
    return int(re.match(r"<(\d+)", kind)[1]) if kind[0] == "<" else 0


@cache
def constant(kind: str, word: str) -> np.ndarray:
    """[1] or [1, elements]; poison is 0."""
    length, dtype = length_of(kind), dtype_of(kind)
    if word.startswith("splat"):
        return np.repeat(constant(*parted(word[len("splat (") : -1]))[:, None], length, axis=1)
    if word.startswith("<"):
        return np.stack([constant(*parted(part)) for part in split(word[1:-1])], axis=1)
    value: Any
    if word in ("zeroinitializer", "null", "false", "poison", "undef"):
        value = 0
    elif word == "true":
        value = 1
    elif word.startswith(("0xR", "0xH")):  # the bits of a bfloat, or of a half
        value = np.array(int(word[3:], 16), np.uint16).view(dtype)
    elif word.startswith("0x"):
        value = np.array(int(word, 16), np.uint64).view(np.float64)
    else:
        value = float(word) if np.issubdtype(dtype, np.floating) else int(word)
    return np.full((1, length) if length else 1, value).astype(dtype)


# --- arithmetic ---------------------------------------------------------------------------------------------------------------


def bits_of(x: np.ndarray) -> np.ndarray:
    """The same as unsigned numbers."""
    return x.view(np.dtype(f"u{x.dtype}"))


def _divided(x: Any, y: Any) -> Any:
    quotient = np.abs(x.astype(np.int64)) // np.maximum(np.abs(y.astype(np.int64)), 1)
    return (quotient * np.sign(x) * np.sign(y)).astype(x.dtype)


def _unsigned(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def of_bits(x: Any, y: Any) -> Any:
        result = function(bits_of(x), bits_of(y))
        return result if result.dtype == bool else result.view(x.dtype)

    return of_bits


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "and": operator.and_, "or": operator.or_,
    "xor": operator.xor, "shl": np.left_shift, "ashr": np.right_shift, "lshr": _unsigned(np.right_shift), "sdiv": _divided,
    "srem": lambda x, y: x - _divided(x, y) * y, "udiv": _unsigned(np.floor_divide), "urem": _unsigned(np.remainder),
    "fadd": operator.add, "fsub": operator.sub, "fmul": operator.mul,
}  # fmt: skip
COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "slt": operator.lt, "sle": operator.le, "sgt": operator.gt, "sge": operator.ge,
    "ult": _unsigned(operator.lt), "ule": _unsigned(operator.le), "ugt": _unsigned(operator.gt), "uge": _unsigned(operator.ge),
    "uno": lambda x, y: np.isnan(x) | np.isnan(y),
}  # fmt: skip
CALLED: dict[str, Callable[..., Any]] = {
    "llvm.smin": np.minimum,
    "llvm.smax": np.maximum,
    "llvm.umin": _unsigned(np.minimum),
    "llvm.umax": _unsigned(np.maximum),
    "llvm.maximum": np.maximum,  # which keeps NaN
    "llvm.fma": lambda x, y, z: (x.astype(np.float64) * y + z).astype(x.dtype),
}
CASTS = ("sext", "zext", "trunc", "bitcast", "freeze", "fptrunc", "fpext", "ptrtoint", "inttoptr", "addrspacecast")


def converted(name: str, value: np.ndarray, kind: str) -> np.ndarray:
    """What a cast makes of a value; of bfloat alone its bits."""
    if name == "bitcast":
        cells = np.ascontiguousarray(value).view(np.uint8).reshape(len(value), -1).view(dtype_of(kind))
        return cells if length_of(kind) else cells[:, 0]
    if name == "fptrunc" and "bfloat" in kind:
        bits = value.view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(value), np.uint16(0x7FC0), rounded).view(np.int16)
    if name == "fpext" and value.dtype == np.int16:
        return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if name == "zext" and value.dtype != bool:
        value = bits_of(value)
    return value if name in ("freeze", "ptrtoint", "inttoptr", "addrspacecast") else value.astype(dtype_of(kind))


# --- gfx1250 ------------------------------------------------------------------------------------------------------------------


def permuted(high: np.ndarray, low: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """v_perm_b32: each byte of the last operand says which of eight bytes goes there; 12 is 0."""
    eight = bits_of(high).astype(np.uint64) << np.uint64(32) | bits_of(low)
    made = np.zeros(len(high), np.uint32)
    for place in range(4):
        which = bits_of(chosen).astype(np.uint64) >> np.uint64(8 * place) & np.uint64(255)
        assert (which < 8).all() or (which == 12).all()
        byte = np.where(which < 8, eight >> 8 * np.minimum(which, 7) & np.uint64(255), 0)
        made |= byte.astype(np.uint32) << np.uint32(8 * place)
    return made.view(np.int32)


def depths(lane: Any, byte: Any) -> Any:
    """Which k the byte of a lane's operand is, of A's row or of B's column lane % 16.

    AMD Instinct CDNA5 ISA, 7.12.2, "8-bit A-Matrix 16x64", as emulation/rocjitsu of github.com/ROCm/rocm-systems cites it,
    for A and B alike; 16x128 is two of them (comgr-hotswap-patch-wmma-split.cpp of amd/comgr makes two instructions of one).
    """
    return 16 * (byte // 8) + 8 * (lane // 16) + byte % 8


def multiplied(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, of_a: Callable[..., Any] = depths, of_b: Callable[..., Any] = depths
) -> np.ndarray:
    """v_wmma_f32_16x16x{64,128}_fp8_fp8 of one wave: [32, registers] of A and B, [32, 8] float32.

    Register r of lane l is row 8 * (l // 16) + r, column l % 16 (the same section). Products are exact, and rounded once.
    """
    lane, byte = np.arange(WAVE)[:, None], np.arange(4 * a.shape[1])[None, :]
    rows, columns = np.zeros((2, 16, 8 * a.shape[1]))
    values = formats.table(formats.E4M3)
    for operand, matrix, depth in ((a, rows, of_a), (b, columns, of_b)):
        matrix[np.broadcast_to(lane % 16, (WAVE, byte.size)), depth(lane, byte)] = values[operand.view(np.uint8)]
    register = np.arange(8)[None, :]
    return (c + (rows @ columns.T)[8 * (lane // 16) + register, lane % 16]).astype(np.float32)
