"""Inline assembly of NVIDIA kernels, executed with numpy for a warp: as much of PTX as the lists of gluon_hopper need."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

LANES = np.arange(32)


def reached(x: Any, y: Any) -> Any:
    return ~(x < y)  # geu: also where one is NaN


CALCULATIONS: dict[str, Callable[..., Any]] = {
    "mov": lambda x: x,
    "setp.gt": lambda x, y: x > y,
    "setp.geu": reached,
    "set.geu": lambda x, y: reached(x, y).astype(np.float32),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "shl": lambda x, y: x << y,
    "fma": lambda x, y, z: x * y + z,
    "mad": lambda x, y, z: x * y + z,
    "cvt": lambda x: x.astype(np.int64),
    "shfl.sync.idx": lambda x, lane, *_: x[lane],
    "shfl.sync.up": lambda x, steps, *_: np.where(steps <= LANES, x[LANES - np.minimum(steps, LANES)], x),
}


def calculation(name: str) -> Callable[..., Any]:
    (found,) = (each for start, each in CALCULATIONS.items() if name == start or name.startswith(start + "."))
    return found


def execute(code: str, constraints: str, operands: list[Any], memory: np.ndarray) -> list[np.ndarray]:
    """What the assembly makes of operands of 32 lanes, and of memory: int32, whose first word's address is 0."""
    outputs = sum(each.startswith("=") for each in constraints.split(","))
    registers: dict[str, Any] = {f"${outputs + place}": np.asarray(value) for place, value in enumerate(operands)}

    def read(word: str, floats: bool) -> Any:
        if word not in registers:
            return np.full(32, float(word), np.float32) if floats else np.full(32, int(word, 0), np.int64)
        value = registers[word]
        return value if value.dtype == bool or (value.dtype == np.float32) == floats else value.view(np.int32).astype(np.int64)

    text = re.sub(r"\.reg[^;]*;", "", code.strip().removeprefix("{").removesuffix("}")).replace("\n", " ")
    for statement in filter(None, map(str.strip, text.split(";"))):
        match = re.fullmatch(r"(?:@(\S+)\s+)?(\S+)\s+(.*)", statement)
        assert match is not None
        guard, name, rest = match.groups()
        active = registers[guard] if guard else np.ones(32, bool)
        words = re.findall(r"\[[^\]]*\]|\{[^}]*\}|[^\s,]+", rest)
        if name.startswith(("ld.", "st.")):
            transfer(name, words, active, registers, memory)
            continue
        target, _, there = words[0].partition("|")
        floats = re.search(r"\.f32$", name) is not None
        made = np.broadcast_to(calculation(name)(*(read(word, floats) for word in words[1:])), (32,))
        if made.dtype == np.int64 and "64" not in name:
            made = made.astype(np.uint32).view(np.int32)
        if there:
            registers[there] = int(words[2]) <= LANES
        registers[target] = np.where(active, made, registers[target]) if guard else made
    return [registers[f"${place}"] for place in range(outputs)]


def transfer(name: str, words: list[str], active: Any, registers: dict[str, Any], memory: np.ndarray) -> None:
    """A load, of adjacent words too, or a store."""
    first, second = words
    where = first if name.startswith("st.") else second
    base, _, offset = where.strip("[]").partition("+")
    cells = (registers[base].astype(np.int64) + int(offset or 0)) // 4
    if name.startswith("st."):
        memory[cells[active]] = registers[second].view(np.int32)[active]
        return
    targets = re.findall(r"[^\s,{}]+", first)
    assert (cells[active] % len(targets) == 0).all(), "an address is not aligned"
    for place, target in enumerate(targets):
        before = registers.get(target, np.zeros(32, np.int32)).view(np.int32)
        registers[target] = np.where(active, memory[np.where(active, cells + place, 0)], before)
