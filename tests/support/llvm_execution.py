"""LLVM IR of a kernel for gfx1250, executed with numpy: what Triton made of a kernel, before LLVM makes machine code of it.

What moves values between lanes, and the matrix instruction, mean what AMD's documents say; the rest means what LLVM's language
reference says. All threads of a workgroup take turns; bytes of LDS that two waves touch with no barrier between, one of them
changing them, are an error, and so are reads of what nobody has written, and accesses outside the arguments' memory.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emulator.launch import Pointer

from .llvm_ir import size_of, split
from .llvm_operations import (
    BINARY,
    CALLED,
    CASTS,
    COMPARED,
    FLAGS,
    WAVE,
    constant,
    converted,
    dtype_of,
    length_of,
    multiplied,
    operands,
    parted,
    permuted,
)

SPACE = 44  # bits of an address within an argument's memory, which begins in the middle of them
NOTHING = ("llvm.assume", "llvm.lifetime", "llvm.amdgcn.sched", "llvm.amdgcn.s.barrier.signal", "llvm.amdgcn.s.wait")


class ExecutionError(Exception):
    """The code did what no correct kernel does."""


class Race(ExecutionError):  # noqa: N818
    """Two waves touch a byte of LDS with no barrier between, one of them changing it."""


class Resource(NamedTuple):
    """What buffer instructions know of memory: an address, and how many bytes behind it they reach."""

    base: Any
    size: Any


class Block(NamedTuple):
    """(result, words) of the instructions; phis are apart, since all of them read before any of them writes."""

    phis: list[tuple[str, str]]
    others: list[tuple[str, str]]


def read(text: str) -> tuple[list[str], dict[str, Block]]:
    """The names of the one kernel's parameters, and its blocks by label, the first one first."""
    head, body = re.search(r"^define [^\n]*? @\w+\((.*?)\) [^\n()]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL).groups()
    parameters = [part.rpartition(" ")[2] for part in split(head)]
    block = Block([], [])
    blocks = {f"%{len(parameters)}": block}  # the entry has no label, and the number behind those of the parameters
    for line in body.splitlines():
        line = re.sub(r", ![a-z].*", "", line.partition(" ;")[0]).rstrip()
        if found := re.fullmatch(r'"?([-\w.$]+)"?:', line):
            block = blocks[f"%{found[1]}"] = Block([], [])
        elif line.strip():
            result, words = re.fullmatch(r"\s*(?:(%[-\w.$]+) = )?(?:(?:tail|musttail|notail) )?(.*)", line).groups()
            (block.phis if words.startswith("phi ") else block.others).append((result or "", words))
    return parameters, blocks


class Workgroup:
    """The threads of one workgroup, and what they have computed, by name.

    number : of the workgroup in the grid
    written : for each argument a boolean per byte, or None for numbers
    product : the matrix instruction
    """

    def __init__(
        self,
        text: str,
        number: int,
        arguments: Sequence[Any],
        written: list[np.ndarray | None],
        warps: int,
        lds_bytes: int,
        product: Callable[..., np.ndarray],
    ) -> None:
        parameters, self.blocks = read(text)
        self.threads, self.number, self.product = WAVE * warps, number, product
        self.arguments, self.written = arguments, written
        self.wave = np.arange(self.threads) // WAVE
        self.lds = np.zeros(lds_bytes, np.uint8)
        self.epoch = 1  # one more with each barrier
        self.stored = np.zeros(lds_bytes, np.int64), np.zeros(lds_bytes, np.int64)  # in which epoch, 0 for never, by which wave
        self.loaded = np.zeros((warps, lds_bytes), np.int64)  # in which epoch
        self.values: dict[str, Any] = {}
        for place, (name, argument) in enumerate(zip(parameters, arguments, strict=False)):
            pointer = isinstance(argument, Pointer)
            number = (place + 1 << SPACE) + (1 << SPACE - 1) + argument.offset if pointer else argument
            self.values[name] = np.full(self.threads, number, np.int32 if -(2**31) <= number < 2**31 else np.int64)

    def run(self) -> None:
        labels = list(self.blocks)
        at, before = np.zeros(self.threads, np.int64), np.full(self.threads, -1)
        while (here := int(at.min())) < len(labels):  # threads that went different ways: the hindmost first
            active, block = at == here, self.blocks[labels[here]]
            coming = {name: self.arrived(words, labels, before) for name, words in block.phis}
            for name, value in coming.items():
                self.put(name, value, active)
            for name, words in block.others:
                kind, _, rest = words.partition(" ")
                if kind == "br":
                    targets = [labels.index(target) for target in re.findall(r"label (%[-\w.$]+)", rest)]
                    taken = self.of(operands(rest)[0]) if len(targets) == 2 else True
                    before[active] = here
                    at = np.where(active, np.where(taken, targets[0], targets[-1]), at)
                elif kind == "ret":
                    at[active] = len(labels)
                else:
                    self.put(name, self.result(kind, FLAGS.sub("", rest), active), active)

    # --- values ---

    def put(self, name: str, value: Any, active: np.ndarray) -> None:
        if isinstance(value, np.ndarray) and not active.all() and name in self.values:
            value = np.where(active[:, None] if value.ndim == 2 else active, value, self.values[name])
        if name:
            self.values[name] = value

    def of(self, text: str) -> Any:
        return self.value(*parted(text))

    def value(self, kind: str, word: str) -> Any:
        if word in self.values:
            return self.values[word]
        if word == "@global_smem":
            return np.zeros(self.threads, np.int64)
        if found := re.fullmatch(r"getelementptr (?:\w+ )*\((.*)\)", word):
            return self.moved(found[1])
        value = constant(kind, word)
        return np.broadcast_to(value, (self.threads, *value.shape[1:]))

    def arrived(self, words: str, labels: list[str], before: np.ndarray) -> Any:
        kind = re.match(r"phi (<[^>]*>|ptr addrspace\(\d+\)|\w+) ", words)[1]
        result = None
        for word, label in re.findall(r"\[ (.+?), (%[-\w.$]+) \]", words):
            came = before == labels.index(label)
            if came.any():
                value = self.value(kind, word)
                result = value if result is None else np.where(came[:, None] if value.ndim == 2 else came, value, result)
        return result

    def moved(self, text: str) -> Any:
        kind, base, index = operands(text)
        return self.of(base) + self.of(index).astype(np.int64) * size_of(kind)

    # --- instructions ---

    def result(self, name: str, rest: str, active: np.ndarray) -> Any:
        if name in BINARY or name in ("icmp", "fcmp"):
            function = BINARY.get(name)
            if function is None:
                asked, _, rest = rest.partition(" ")
                function, rest = COMPARED[asked], FLAGS.sub("", rest)
            first, second = operands(rest)
            with np.errstate(over="ignore"):
                return function(self.of(first), self.value(parted(first)[0], second))
        if name in CASTS:
            source, _, kind = rest.rpartition(" to ")
            return converted(name, self.of(source or rest), kind)
        if name == "getelementptr":
            return self.moved(rest)
        if name == "call":
            return self.called(rest, active)
        if name == "load":
            kind, pointer, *_ = operands(rest)
            load = self.load_lds if "addrspace(3)" in pointer else self.load_memory
            return self.typed(load(self.of(pointer), size_of(kind), active), kind)
        if name == "store":
            value, pointer, *_ = operands(rest)
            store = self.store_lds if "addrspace(3)" in pointer else self.store_memory
            return store(self.of(pointer), self.octets(self.of(value)), active)
        if name == "extractvalue":
            made, place = operands(rest)
            return self.values[made.rpartition(" ")[2]][int(place)]
        if name == "fence":  # between threads that take turns
            return None
        return getattr(self, f"_{name}")(*map(self.of, operands(rest)))

    def _select(self, condition: Any, yes: Any, no: Any) -> Any:
        return np.where(condition[:, None] if yes.ndim > condition.ndim else condition, yes, no)

    def _extractelement(self, vector: Any, place: Any) -> Any:
        return vector[:, int(place[0])]

    def _insertelement(self, vector: Any, element: Any, place: Any) -> Any:
        vector = vector.copy()
        vector[:, int(place[0])] = element
        return vector

    def _shufflevector(self, one: Any, other: Any, places: Any) -> Any:
        return np.concatenate([one, other], axis=1)[:, places[0]]

    def called(self, rest: str, active: np.ndarray) -> Any:
        if found := re.match(r'\w+ asm sideeffect "", "=s,0"\((.*)\)', rest):  # hides a number from the compiler
            return self.of(found[1])
        kind, name, words = re.match(r"(?:\w+ )*?([^@]+?) @([\w.]+)\((.*?)\)(?: #\d+)?$", rest).groups()
        if name.startswith(NOTHING):
            return None
        if known := next((function for start, function in CALLED.items() if name.startswith(f"{start}.")), None):
            return known(*map(self.of, operands(words)))
        if "buffer.load" in name or "buffer.store" in name:
            return self.buffer(kind, operands(words), active)
        if name.startswith("llvm.amdgcn.s.barrier"):
            if not active.all():
                raise ExecutionError("a thread does not reach a barrier")
            self.epoch += 1
            return None
        method = name.removeprefix("llvm.amdgcn.").replace(".", "_")
        method = "wmma" if method.startswith("wmma_f32_16x16x") else re.sub(r"(_[ip]\d+)+$", "", method)
        return getattr(self, f"call_{method}")(*map(self.of, operands(words)))

    def call_workitem_id_x(self) -> Any:
        return np.arange(self.threads, dtype=np.int32)

    def call_workgroup_id_x(self) -> Any:
        return np.full(self.threads, self.number, np.int32)

    def call_wave_id(self) -> Any:
        return self.wave.astype(np.int32)

    def call_readfirstlane(self, x: Any) -> Any:
        return np.repeat(x[::WAVE], WAVE, axis=0)

    def call_perm(self, high: Any, low: Any, chosen: Any) -> Any:
        return permuted(high, low, chosen)

    def call_permlanex16(self, old: Any, x: Any, low: Any, high: Any, *_: Any) -> Any:
        """Each lane of 16 gets the one of the other 16 that its four bits of two numbers choose."""
        lane = np.arange(self.threads)
        chosen = np.where(lane % 16 < 8, low.view(np.uint32), high.view(np.uint32)) >> 4 * (lane % 8) & 15
        return x[lane // 16 * 16 + chosen - np.where(lane % WAVE < 16, -16, 16)]

    def call_permlane16_swap(self, one: Any, other: Any, *_: Any) -> Any:
        """The odd 16 lanes of the first operand and the even ones of the second change places."""
        lane = np.arange(self.threads)
        odd = lane % WAVE >= 16
        return np.where(odd, other[lane ^ 16], one), np.where(odd, other, one[lane ^ 16])

    def call_make_buffer_rsrc(self, base: Any, stride: Any, size: Any, flags: Any) -> Resource:
        return Resource(base, size.astype(np.int64))

    def call_wmma(self, a: Any, b: Any, modifier: Any, c: Any, *_: Any) -> Any:
        waves = np.split(np.arange(self.threads), self.threads // WAVE)
        return np.concatenate([self.product(a[wave], b[wave], c[wave]) for wave in waves])

    # --- memory ---

    def octets(self, value: Any) -> Any:
        return np.ascontiguousarray(value).view(np.uint8).reshape(self.threads, -1)

    def typed(self, octets: Any, kind: str) -> Any:
        value = octets.view(dtype_of(kind))
        return value if length_of(kind) else value[:, 0]

    def buffer(self, kind: str, words: Sequence[str], active: np.ndarray) -> Any:
        """What lies beyond a resource's size is read as 0, and not written."""
        octets = self.octets(self.of(words[0])) if kind == "void" else None
        resource, offset, uniform = (self.of(word) for word in words[len(words) - 4 : -1])
        offset = offset.view(np.uint32).astype(np.int64)
        size = size_of(kind) if octets is None else octets.shape[1]
        active = active & (offset + size <= resource.size)
        if octets is None:
            return self.typed(self.load_memory(resource.base + offset + uniform, size, active), kind)
        return self.store_memory(resource.base + offset + uniform, octets, active)

    def load_lds(self, addresses: Any, size: int, active: np.ndarray) -> Any:
        cells, wave = addresses[active][:, None] + np.arange(size), self.wave[active][:, None]
        epochs, waves = (part[cells] for part in self.stored)
        if (epochs == 0).any():
            raise ExecutionError("a byte of LDS is read that nobody has written")
        if ((epochs == self.epoch) & (waves != wave)).any():
            raise Race("a byte of LDS is read that another wave has just written")
        self.loaded[wave, cells] = self.epoch
        octets = np.zeros((self.threads, size), np.uint8)
        octets[active] = self.lds[cells]
        return octets

    def store_lds(self, addresses: Any, octets: Any, active: np.ndarray) -> None:
        for wave in np.unique(self.wave[active]):
            mine, others = active & (self.wave == wave), np.arange(len(self.loaded)) != wave
            cells = addresses[mine][:, None] + np.arange(octets.shape[1])
            epochs, waves = (part[cells] for part in self.stored)
            if (self.loaded[others][:, cells] == self.epoch).any() or ((epochs == self.epoch) & (waves != wave)).any():
                raise Race("a byte of LDS is written that another wave has just read or written")
            self.lds[cells], self.stored[0][cells], self.stored[1][cells] = octets[mine], self.epoch, wave

    def reached(self, addresses: Any, size: int, active: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(argument's number, the threads that reach its memory, their bytes there)."""
        places = np.where(active, (addresses >> SPACE) - 1, -1)
        for place in np.unique(places[active]):
            if not 0 <= place < len(self.arguments) or not isinstance(self.arguments[place], Pointer):
                raise ExecutionError("an access outside the memory of every argument")
            mine = places == place
            cells = ((addresses[mine] & (1 << SPACE) - 1) - (1 << SPACE - 1))[:, None] + np.arange(size)
            if cells.min() < 0 or cells.max() >= self.arguments[place].array.size:
                raise ExecutionError(f"an access outside the memory of argument {place}")
            yield int(place), mine, cells

    def load_memory(self, addresses: Any, size: int, active: np.ndarray) -> Any:
        octets = np.zeros((self.threads, size), np.uint8)
        for place, mine, cells in self.reached(addresses, size, active):
            if not self.arguments[place].initialised:
                raise ExecutionError(f"argument {place} is read, and holds nothing yet")
            octets[mine] = self.arguments[place].array[cells]
        return octets

    def store_memory(self, addresses: Any, octets: Any, active: np.ndarray) -> None:
        for place, mine, cells in self.reached(addresses, octets.shape[1], active):
            written = self.written[place]
            assert written is not None
            self.arguments[place].array[cells], written[cells] = octets[mine], True


def run(
    compiled: Any,
    grid: Sequence[int],
    arguments: Sequence[Any],
    product: Callable[..., np.ndarray] = multiplied,
    text: str = "",
) -> list[np.ndarray | None]:
    """Execute a compiled kernel's LLVM IR, or ``text``; what it stores appears in the arguments, which are the emulator's.

    For each argument a boolean per byte, whether it was written, or None for numbers.
    """
    written = [np.zeros(one.array.size, bool) if isinstance(one, Pointer) else None for one in arguments]
    warps, lds_bytes = compiled.metadata.num_warps, compiled.metadata.shared
    for number in range(grid[0]):
        Workgroup(text or compiled.asm["llir"], number, arguments, written, warps, lds_bytes, product).run()
    return written
