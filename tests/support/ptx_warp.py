"""What inline assembly for NVIDIA GPUs does to the 32 lanes of a warp, in numpy: of PTX what kernels here write by hand."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

LANES = 32
U32 = np.uint32
COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "geu.f32": lambda a, b: ~(floats(a) < floats(b)),
    "ne.u32": np.not_equal,
    "eq.u32": np.equal,
}
COMPUTED: dict[str, Callable[..., Any]] = {
    "mov.u32": lambda a: a,
    "mov.u16": lambda a: a,
    "or.b32": np.bitwise_or,
    "and.b32": np.bitwise_and,
    "add.u32": np.add,
    "sub.u32": np.subtract,
    "shl.b32": np.left_shift,
    "shr.u32": np.right_shift,
    "popc.b32": lambda a: np.array([int(x).bit_count() for x in a]),
    "brev.b32": lambda a: np.array([int(f"{int(x):032b}"[::-1], 2) for x in a]),
    "clz.b32": lambda a: np.array([32 - int(x).bit_length() for x in a]),
    "shf.l.wrap.b32": lambda low, high, by: ((high << 32 | low) << (by & 31)) >> 32,
    "lop3.b32": lambda a, b, c, table: sum(
        -(table >> row & 1) & (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c) for row in range(8)
    ),
    "prmt.b32": lambda a, b, chosen: sum(
        ((b << 32 | a) >> (8 * (chosen >> 4 * byte & 7)) & 255) << 8 * byte for byte in range(4)
    ),
}


def floats(bits: Any) -> Any:
    return np.asarray(bits).astype(U32).view(np.float32)


class Warp:
    """A warp that runs some assembly; lanes that went different ways go on from where they are, the hindmost first.

    memory : bytes, whose indices are addresses
    """

    def __init__(self, text: str, operands: list[Any], memory: np.ndarray) -> None:
        statements = [line.strip() for line in re.split(r"[;\n]", re.sub(r"^\s*{|}\s*$", "", text)) if line.strip()]
        self.code: list[str] = []
        self.labels: dict[str, int] = {}
        for statement in statements:
            if statement.startswith("."):
                continue
            if statement.endswith(":"):
                self.labels[statement[:-1]] = len(self.code)
            else:
                self.code.append(statement)
        self.values: dict[str, Any] = {
            f"${number}": np.asarray(value).astype(np.int64) for number, value in enumerate(operands)
        }
        self.memory = memory

    def run(self) -> None:
        at = np.zeros(LANES, np.int64)
        for _ in range(20_000):
            if (at == len(self.code)).all():
                return
            here = int(at.min())
            lanes = at == here
            self.step(self.code[here], lanes, at)
        raise AssertionError("it does not end")

    def step(self, statement: str, lanes: Any, at: Any) -> None:
        at[lanes] += 1
        if statement.startswith("@"):
            predicate, statement = statement[1:].split(None, 1)
            lanes = lanes & self.values[predicate].astype(bool)
        name, _, rest = statement.partition(" ")
        names = [word.strip() for word in re.findall(r"\[[^]]*\]|{[^}]*}|[^,\s][^,]*", rest)]
        if name == "bra":
            at[lanes] = self.labels[names[0]]
        elif name.startswith("setp."):
            self.put(names[0], COMPARED[name[5:]](*map(self.of, names[1:])), lanes)
        elif name.startswith("shfl."):
            self.shuffle(name.split(".")[2], names, lanes)
        elif name == "selp.b32":
            one, other, predicate = map(self.of, names[1:])
            self.put(names[0], np.where(predicate.astype(bool), one, other), lanes)
        elif name == "mad.wide.u32":
            one, other, more = map(self.of, names[1:])
            self.put(names[0], (one & 0xFFFFFFFF) * (other & 0xFFFFFFFF) + more, lanes, 64)
        elif name == "add.u64":
            self.put(names[0], self.of(names[1]) + self.of(names[2]), lanes, 64)
        elif name == "mov.b32":  # of two halves
            low, high = (self.of(word.strip()) for word in names[1].strip("{}").split(","))
            self.put(names[0], (high & 0xFFFF) << 16 | (low & 0xFFFF), lanes)
        elif name.startswith("ld.global."):
            size = {"b32": 4, "u16": 2}[name[10:]]
            self.put(names[0], [self.load(address, size) for address in self.of(names[1].strip("[]"))], lanes, only=lanes)
        elif name == "st.global.v2.b32":
            words = [self.of(word.strip()) for word in names[1].strip("{}").split(",")]
            for lane in np.flatnonzero(lanes):
                address = int(self.of(names[0].strip("[]"))[lane])
                assert address % 8 == 0
                self.memory[address : address + 8] = np.array([int(word[lane]) for word in words], U32).view(np.uint8)
        else:
            self.put(names[0], COMPUTED[name](*map(self.of, names[1:])), lanes)

    def of(self, name: str) -> Any:
        if name == "%lanemask_lt":
            return (1 << np.arange(LANES, dtype=np.int64)) - 1
        if re.fullmatch(r"-?\d+|0x[0-9a-f]+", name):
            return np.full(LANES, int(name, 0), np.int64)
        return self.values[name]

    def put(self, name: str, value: Any, lanes: Any, bits: int = 32, only: Any = None) -> None:
        value = np.asarray(value).astype(np.int64)
        if bits == 32:
            value = value & 0xFFFFFFFF
        self.values[name] = np.where(lanes, value, self.values.get(name, np.zeros(LANES, np.int64)))

    def load(self, address: int, size: int) -> int:
        if not 0 <= address <= len(self.memory) - size:
            return 0  # of a lane that is elsewhere
        return int(self.memory[address : address + size].view({4: U32, 2: np.uint16}[size])[0])

    def shuffle(self, kind: str, names: list[str], lanes: Any) -> None:
        assert lanes.all(), "a lane is elsewhere"
        lane = np.arange(LANES)
        other = {"bfly": lambda by: lane ^ by, "idx": lambda by: by & 31, "up": lambda by: lane - by}[kind](self.of(names[2]))
        inside = (other >= 0) & (other < LANES)
        target, _, predicate = names[0].partition("|")
        value = self.of(names[1])
        self.put(target, np.where(inside, value[np.where(inside, other, 0)], value), lanes)
        if predicate:
            self.put(predicate, inside, lanes)


def elementwise(text: str, constraints: str, operands: list[Any], memory: np.ndarray, pack: int, results: int) -> list[Any]:
    """The results of an inline assembly, each [threads] or [threads, pack], from operands of such a shape, warp by warp."""
    threads = operands[0].shape[0]
    outputs = results * pack
    made = [np.zeros((threads, pack), np.int64) for _ in range(results)]
    assert constraints.count("=") == outputs
    for first in range(0, threads, LANES):
        columns = [
            np.ascontiguousarray(np.asarray(operand).reshape(threads, -1)[first : first + LANES, number])
            for operand in operands
            for number in range(pack)
        ]
        columns = [column.view(U32) if column.dtype in (np.float32, np.int32) else column for column in columns]
        assert len(columns) + outputs == len(constraints.split(","))
        warp = Warp(text, [np.zeros(LANES), *[np.zeros(LANES)] * (outputs - 1), *columns], memory)
        warp.run()
        for output in range(outputs):
            made[output // pack][first : first + LANES, output % pack] = warp.values[f"${output}"]
    return [each if pack > 1 else each[:, 0] for each in made]
