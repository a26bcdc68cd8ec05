"""Inline assembly of NVIDIA kernels, executed with numpy for a warp: as much of PTX as the kernels here write by hand."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

LANES = np.arange(32)
MOST_STEPS = 20_000


def words(bits: Any) -> Any:
    return np.asarray(bits).astype(np.uint32)


def reached(x: Any, y: Any) -> Any:
    return ~(x < y)  # geu: also where one is NaN


def looked_up(x: Any, y: Any, z: Any, table: Any) -> Any:
    """lop3: of each three bits the table's."""
    return sum(
        -(table >> row & 1) & (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z) for row in range(8)
    )


CALCULATIONS: dict[str, Callable[..., Any]] = {
    "mov": lambda x: x,
    "setp.gt": lambda x, y: x > y,
    "setp.eq": lambda x, y: x == y,
    "setp.ne": lambda x, y: x != y,
    "setp.geu": reached,
    "set.geu": lambda x, y: reached(x, y).astype(np.float32),
    "selp": lambda x, y, chosen: np.where(chosen != 0, x, y),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "fma": lambda x, y, z: x * y + z,
    "mad": lambda x, y, z: x * y + z,
    "cvt": lambda x: x.astype(np.int64),
    "shl": lambda x, y: x << y,
    "shr": lambda x, y: x >> y,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "popc": lambda x: np.array([int(each).bit_count() for each in x]),
    "brev": lambda x: np.array([int(f"{int(each):032b}"[::-1], 2) for each in x]),
    "clz": lambda x: np.array([32 - int(each).bit_length() for each in x]),
    "shf.l.wrap": lambda low, high, by: (high << 32 | low) << (by & 31) >> 32,
    "lop3": looked_up,
    "prmt": lambda x, y, chosen: sum(((y << 32 | x) >> 8 * (chosen >> 4 * byte & 7) & 255) << 8 * byte for byte in range(4)),
    "shfl.sync.idx": lambda x, lane, *_: x[lane & 31],
    "shfl.sync.bfly": lambda x, bits, *_: x[LANES ^ bits],
    "shfl.sync.up": lambda x, steps, *_: np.where(steps <= LANES, x[LANES - np.minimum(steps, LANES)], x),
}


def calculation(name: str) -> Callable[..., Any]:
    (found,) = (each for start, each in CALCULATIONS.items() if name == start or name.startswith(start + "."))
    return found


class Warp:
    """A warp that executes some assembly. Lanes that went different ways go on from where they are, the hindmost first.

    registers : bits, int64, of each lane
    memory : bytes, whose places are addresses
    """

    def __init__(self, operands: dict[str, Any], memory: np.ndarray) -> None:
        self.registers, self.memory = {name: bits_of(value) for name, value in operands.items()}, memory

    def run(self, code: str) -> None:
        text = re.sub(r"\.reg[^;]*;", "", code.strip().removeprefix("{").removesuffix("}"))
        statements = [each for each in map(str.strip, re.sub(r"(\w+:)", r"\1;", text).replace("\n", " ").split(";")) if each]
        labels = {statement[:-1]: place for place, statement in enumerate(statements) if statement.endswith(":")}
        at = np.zeros(32, np.int64)
        for _ in range(MOST_STEPS):
            here = int(at.min())
            if here == len(statements):
                return
            active = at == here
            at[active] += 1
            match = re.fullmatch(r"(?:@(\S+)\s+)?(\S+)(?:\s+(.*))?", statements[here])
            assert match is not None
            guard, name, rest = match.groups()
            if guard:
                active &= self.registers[guard] != 0
            if name == "bra":
                at[active] = labels[rest]
            elif not name.endswith(":"):
                self.step(name, re.findall(r"\[[^\]]*\]|\{[^}]*\}|[^\s,]+", rest), active, at)
        raise AssertionError("it does not end")

    def step(self, name: str, names: list[str], active: Any, at: Any) -> None:
        if name.startswith(("ld.", "st.")):
            self.transfer(name, names, active)
            return
        target, _, there = names[0].partition("|")
        if name.startswith("shfl."):
            assert (at == at[0]).all(), "a lane is elsewhere"
        if names[1].startswith("{"):  # of two halves
            low, high = (self.read(each, "u32") for each in re.findall(r"[^\s,{}]+", names[1]))
            made: Any = (high & 0xFFFF) << 16 | (low & 0xFFFF)
        else:
            kind = name.rsplit(".", 1)[-1]
            kinds = [kind, kind, "u64"] if name.startswith("mad.wide") else [kind] * (len(names) - 1)
            made = calculation(name)(*(self.read(each, of) for each, of in zip(names[1:], kinds, strict=True)))
        made = bits_of(np.broadcast_to(made, (32,)))
        self.put(target, made if re.search("64|wide", name) else made & 0xFFFFFFFF, active)
        if there:
            self.put(there, bits_of(self.read(names[2], "u32") <= LANES), active)

    def read(self, name: str, kind: str) -> Any:
        if name == "%lanemask_lt":
            return (1 << LANES.astype(np.int64)) - 1
        if name not in self.registers:
            return np.full(32, float(name), np.float32) if kind == "f32" else np.full(32, int(name, 0), np.int64)
        bits = self.registers[name]
        if kind == "f32":
            return words(bits).view(np.float32)
        return words(bits).view(np.int32).astype(np.int64) if kind == "s32" else bits

    def put(self, name: str, bits: Any, active: Any) -> None:
        self.registers[name] = np.where(active, bits, self.registers.get(name, np.zeros(32, np.int64)))

    def transfer(self, name: str, names: list[str], active: Any) -> None:
        """A load, of adjacent words too, or a store."""
        stores, size = name.startswith("st."), 2 if name.endswith("16") else 4
        held, where = (names[1], names[0]) if stores else names
        base, _, offset = where.strip("[]").partition("+")
        addresses = self.registers[base] + int(offset or 0)
        each_held = re.findall(r"[^\s,{}]+", held)
        assert (addresses[active] % (size * len(each_held)) == 0).all(), "an address is not aligned"
        for place, register in enumerate(each_held):
            cells = (addresses[:, None] + size * place + np.arange(size))[active]
            if stores:
                self.memory[cells] = words(self.registers[register]).view(np.uint8).reshape(32, 4)[active]
                continue
            octets = np.zeros((32, 4), np.uint8)
            octets[active, :size] = self.memory[cells]
            self.put(register, octets.view(np.uint32)[:, 0], active)


def bits_of(value: Any) -> Any:
    """Of 32 lanes' values; those of 64 bits stay as they are."""
    value = np.ascontiguousarray(value)
    if value.dtype.itemsize == 4:
        value = value.view(np.uint32)
    return value.astype(np.int64)


def execute(code: str, constraints: str, operands: list[Any], memory: np.ndarray) -> list[np.ndarray]:
    """What the assembly makes of operands of 32 lanes, as uint32, and of memory: bytes, whose places are addresses."""
    outputs = sum(each.startswith("=") for each in constraints.split(","))
    assert outputs + len(operands) == len(constraints.split(","))
    warp = Warp({f"${outputs + place}": value for place, value in enumerate(operands)}, memory)
    warp.run(code)
    return [words(warp.registers[f"${place}"]) for place in range(outputs)]


def elementwise(
    code: str, constraints: str, operands: list[Any], memory: np.ndarray, pack: int, results: int
) -> list[np.ndarray]:
    """The results of gl.inline_asm_elementwise, uint32, each of the operands' shape: [threads], or [threads, pack]."""
    made = [np.zeros(operands[0].shape, np.uint32) for _ in range(results)]
    for first in range(0, len(operands[0]), 32):
        lanes = [np.asarray(each)[first : first + 32].reshape(32, pack) for each in operands]
        cells = [each[:, place] for each in lanes for place in range(pack)]
        for place, result in enumerate(execute(code, constraints, cells, memory)):
            made[place // pack].reshape(-1, pack)[first : first + 32, place % pack] = result
    return made
