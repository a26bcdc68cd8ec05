"""A launch: the grid's waves, their kernel arguments, and the loop that runs them.

"User Guide for AMDGPU Backend", sections "Kernel Descriptor", "Initial Kernel Execution State" and "Kernarg Segment".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .assembly import Argument, Program, parse
from .banks import cycles
from .counters import Counters
from .decoder import step_of
from .errors import Deadlock, EmulationError
from .memory import LINE, Buffer, Lds, Memory
from .registers import Waves, joined
from .step import Step

Action = Callable[[Waves], Any]
LDS_SIZE = {"gfx942": 64 * 1024, "gfx950": 160 * 1024}
USER_SCALARS = (  # in the order of the initial state, with the registers that they take
    ("private_segment_buffer", 4),
    ("dispatch_ptr", 2),
    ("queue_ptr", 2),
    ("kernarg_segment_ptr", 2),
    ("dispatch_id", 2),
    ("private_segment_size", 1),
)


class Pointer(NamedTuple):
    """A pointer argument other than an array's first byte, or to memory that holds nothing yet.

    array : any numpy array in one piece of memory; what the kernel stores appears in it
    offset : bytes from its start to where the pointer points
    initialised : whether reading what the kernel has not written is allowed
    """

    array: np.ndarray
    offset: int = 0
    initialised: bool = True

    @property
    def arrays(self) -> dict[int, np.ndarray]:
        return {0: self.array}


class Pieces(NamedTuple):
    """A pointer argument to memory too large to exist, of which the kernel may touch some pieces.

    arrays : byte offsets from the pointer, ascending from 0, and the memory there; what the kernel stores appears in it
    initialised : as in Pointer
    """

    arrays: dict[int, np.ndarray]
    initialised: bool = True
    offset = 0


@dataclass
class Result:
    """What a launch did.

    written : for each argument in order, a boolean per byte of its array (None for numbers; the first one of Pieces)
    executed : how many waves executed each instruction of the program
    """

    counters: Counters
    written: list[np.ndarray | None]
    executed: list[int]
    program: Program


class Machine:
    """What all waves of a launch share."""

    def __init__(self, program: Program, workgroups: int, lds_bytes: int, early: bool, measure: bool) -> None:
        self.program, self.early, self.measure = program, early, measure
        self.memory, self.counters = Memory(program.waves), Counters()
        self.lds = Lds(workgroups, program.waves, lds_bytes)

    def count_traffic(self, direction: str, addresses: np.ndarray, lanes: np.ndarray, size: int) -> None:
        if not self.measure:
            return
        wave = np.nonzero(lanes)[0].astype(np.uint64)
        first, last = addresses // np.uint64(LINE), (addresses + np.uint64(size - 1)) // np.uint64(LINE)
        keys = np.unique(np.concatenate([first, last]) + (np.concatenate([wave, wave]) << np.uint64(48)))
        counters = self.counters
        if direction == "loaded":
            counters.loaded_bytes += addresses.size * size
            counters.loaded_lines += keys.size
        else:
            counters.stored_bytes += addresses.size * size
            counters.stored_lines += keys.size

    def count_banks(self, g: Waves, addresses: np.ndarray, size: int, direction: str) -> None:
        """``addresses`` of the active lanes."""
        if not self.measure:
            return
        spread = np.zeros(g.active.shape, np.int64)
        spread[g.active] = addresses
        taken, ideal = cycles(spread, g.active, size, direction, self.program.arch)
        self.counters.lds_cycles += taken
        self.counters.lds_ideal_cycles += ideal


def run(
    kernel: Any,
    grid: Sequence[int],
    arguments: Sequence[Any],
    *,
    lds_bytes: int | None = None,
    landing: str = "late",
    preload: bool = True,
    measure: bool = True,
    limit: int = 20_000_000,
    observe: Callable[[int, Action], Action] | None = None,
) -> Result:
    """Execute a compiled kernel on numpy arrays.

    kernel : what triton.compile returns, or a Program, or assembly text (then with ``lds_bytes``)
    grid : workgroups in x, y, z
    arguments : in the order of the kernel's pointers and numbers that are no constants; arrays (or Pointer, or None) and
        numbers. What the kernel stores appears in the arrays.
    landing : when copies from global memory to LDS change it: "early", at once, or "late", when they are waited for
    preload : enter where firmware that preloads kernel arguments into scalars does, or where other firmware does
    measure : count bank conflicts and memory traffic
    limit : branches, summed over the waves, after which the launch counts as endless
    observe : what each instruction does instead, given its number and what it does
    """
    program, lds_bytes = _program_of(kernel, lds_bytes)
    if landing not in ("early", "late"):
        raise ValueError(f"landing: {landing!r} is neither 'early' nor 'late'")
    shape = (*grid, 1, 1)[:3]
    workgroups = int(np.prod(shape))
    machine = Machine(program, workgroups, lds_bytes, landing == "early", measure)
    kernarg, buffers = _kernarg_segment(program, machine.memory, shape, arguments)
    steps = [step_of(instruction.text, program.descriptor["accum_offset"]) for instruction in program.instructions]
    targets = [program.labels[step.target] if step.control == "branch" else 0 for step in steps]
    waves = _first_waves(machine, shape, kernarg, preload)
    with np.errstate(all="ignore"):
        executed = _execute(waves, steps, targets, limit, observe)
    for step, times in zip(steps, executed, strict=True):
        if times:
            machine.counters.instructions[step.category] += times
            machine.counters.mnemonics[step.instruction.mnemonic] += times
    written: list[np.ndarray | None] = []
    for argument, found in zip(arguments, buffers, strict=True):
        written.append(found[0].written[: found[0].size] if found else None)
        for buffer, array in zip(found, pointer(argument).arrays.values() if found else (), strict=True):
            if buffer.written.any():
                octets(array)[...] = buffer.bytes[: buffer.size]
    return Result(machine.counters, written, executed, program)


def _program_of(kernel: Any, lds_bytes: int | None) -> tuple[Program, int]:
    if isinstance(kernel, Program | str):
        program = parse(kernel) if isinstance(kernel, str) else kernel
        if lds_bytes is None:
            lds_bytes = int(program.metadata.get("lds_bytes", program.descriptor["group_segment_fixed_size"]))
    else:
        program, lds_bytes = parse(kernel.asm["amdgcn"]), kernel.metadata.shared if lds_bytes is None else lds_bytes
    most = LDS_SIZE.get(program.arch, LDS_SIZE["gfx950"])
    if lds_bytes > most:
        raise EmulationError(f"{lds_bytes} bytes of LDS: a workgroup has {most}")
    return program, lds_bytes


def octets(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, as a view."""
    if not array.flags.c_contiguous:
        raise ValueError("an array in pieces: pass its whole memory, with a Pointer to its first byte")
    return array.reshape(-1).view(np.uint8)


def pointer(argument: Any) -> "Pointer | Pieces":
    return argument if isinstance(argument, Pointer | Pieces) else Pointer(argument)


def _kernarg_segment(
    program: Program, memory: Memory, shape: tuple[int, int, int], arguments: Sequence[Any]
) -> tuple[Buffer, list[list[Buffer]]]:
    """The segment, and the buffers of the arguments. Pointers of the compiler's own behind the given ones are null."""
    segment = np.zeros(int(program.descriptor["kernarg_size"]), np.uint8)
    visible = [argument for argument in program.arguments if not argument.kind.startswith("hidden_")]
    if len(arguments) > len(visible) or any(argument.kind != "global_buffer" for argument in visible[len(arguments) :]):
        raise ValueError(f"{len(arguments)} arguments for a kernel with {[argument.kind for argument in visible]}")
    buffers: list[list[Buffer]] = []
    known: dict[int, Buffer] = {}
    for place, argument in zip(visible, arguments, strict=False):
        found: list[Buffer] = []
        if place.kind == "global_buffer":
            number = 0
            if argument is not None:
                to = pointer(argument)
                for distance, array in to.arrays.items():
                    start = array.__array_interface__["data"][0]
                    if start not in known:  # two arguments may share their memory
                        address = found[0].address + distance if found else None
                        known[start] = memory.add(f"argument {len(buffers)}", octets(array), to.initialised, address)
                    found.append(known[start])
                number = found[0].address + to.offset
        else:
            number = _number(argument, place)
        segment[place.offset : place.offset + place.size] = np.frombuffer(number.to_bytes(place.size, "little"), np.uint8)
        buffers.append(found)
    hidden = dict(zip(("hidden_block_count_x", "hidden_block_count_y", "hidden_block_count_z"), shape, strict=True))
    hidden |= {"hidden_group_size_x": program.waves * 64, "hidden_group_size_y": 1, "hidden_group_size_z": 1}
    hidden["hidden_grid_dims"] = max(dimension + 1 for dimension in range(3) if dimension == 0 or shape[dimension] > 1)
    for place in program.arguments:
        if place.kind in hidden:
            value = int(hidden[place.kind]).to_bytes(place.size, "little")
            segment[place.offset : place.offset + place.size] = np.frombuffer(value, np.uint8)
    return memory.add("the kernel's arguments", segment), buffers


def _number(argument: Any, place: Argument) -> int:
    """Its bits: a float in the width of its place."""
    if isinstance(argument, float | np.floating):
        code = {2: np.uint16, 4: np.uint32, 8: np.uint64}[place.size]
        return int(np.array(argument, {2: np.float16, 4: np.float32, 8: np.float64}[place.size]).view(code))
    return int(argument) & ((1 << 8 * place.size) - 1)


def _first_waves(machine: Machine, shape: tuple[int, int, int], kernarg: Buffer, preload: bool) -> Waves:
    """All waves at the kernel's entry, in their initial state."""
    program, descriptor = machine.program, machine.program.descriptor
    workgroups = int(np.prod(shape))
    workgroup = np.repeat(np.arange(workgroups), program.waves)
    wave = np.tile(np.arange(program.waves), workgroups)
    waves = Waves(machine, workgroup, wave, max(descriptor["next_free_vgpr"], descriptor["accum_offset"], 1))
    if descriptor.get("private_segment_fixed_size"):
        raise EmulationError("the kernel uses scratch memory")
    scalar = 0
    for name, count in USER_SCALARS:  # pointers to what a queue knows stay poison: an access through them stops the launch
        if descriptor.get(f"user_sgpr_{name}"):
            if name == "kernarg_segment_ptr":
                waves.s64[:, scalar // 2] = kernarg.address
            scalar += count
    length = descriptor.get("user_sgpr_kernarg_preload_length", 0)
    if preload and length:
        first = 4 * descriptor.get("user_sgpr_kernarg_preload_offset", 0)
        waves.s[:, scalar : scalar + length] = kernarg.bytes[first : first + 4 * length].view(np.uint32)
        waves.pc = program.alignments[0]  # 256 bytes behind the entry
    scalar = descriptor["user_sgpr_count"]
    indices = np.unravel_index(workgroup, shape[::-1])[::-1]
    for dimension, index in zip("xyz", indices, strict=True):
        if descriptor.get(f"system_sgpr_workgroup_id_{dimension}"):
            waves.s[:, scalar] = index
            scalar += 1
    # Work-items are numbered along x alone; the bits for y and z in v0 are 0.
    waves.v[0] = (wave[:, None] * 64 + np.arange(64)).astype(np.uint32)
    return waves


def _execute(
    waves: Waves, steps: list[Step], targets: list[int], limit: int, observe: Callable[[int, Action], Action] | None
) -> list[int]:
    """Run groups of waves until each stands at a barrier, let them pass, and so on until all have ended."""
    executed = [0] * len(steps)
    touches = [step.touches for step in steps]
    controls = [step.control for step in steps]
    actions = [step.execute for step in steps]
    if observe is not None:
        actions = [observe(number, action) for number, action in enumerate(actions)]
    lds = waves.machine.lds
    runnable, waiting, left = [waves], [], limit
    while runnable:
        g = runnable.pop()
        while True:
            pc = g.pc
            executed[pc] += g.count
            if g.pending_registers & touches[pc]:
                step = steps[pc]
                g.check_registers(step.reads, step.writes, step.instruction.text, step.kind)
            control = controls[pc]
            g.pc = pc + 1
            if not control:
                actions[pc](g)
                continue
            if control == "branch":
                left -= g.count
                if left < 0:
                    raise Deadlock(f"more than {limit} branches")
                taken = actions[pc](g)
                if taken.all():
                    g.pc = targets[pc]
                elif taken.any():
                    aside = g.select(taken)
                    aside.pc = targets[pc]
                    runnable.append(aside)
                    g = g.select(~taken)
                continue
            if control == "barrier":
                waiting.append(g)
            elif any(touch.copy is not None for operation in g.pending for touch in operation.lds):
                raise EmulationError("a wave ends while a direct-to-LDS copy of its is in flight")
            break
        if not runnable and waiting:
            lds.barrier()
            waves.machine.memory.barrier()
            runnable, waiting = _merged(waiting), []
            for g in runnable:
                for operation in g.pending:
                    for touch in operation.lds:
                        touch.again()
    lds.barrier()
    return executed


def _merged(groups: list[Waves]) -> list[Waves]:
    """Groups that stand at the same place with the same operations in flight, none of them to LDS, become one again."""
    by_place: dict[Any, list[Waves]] = {}
    for number, g in enumerate(groups):
        alone = any(operation.lds for operation in g.pending)
        history = tuple(id(operation.text) for operation in g.pending)
        by_place.setdefault((g.pc, g.mode, history, number if alone else None), []).append(g)
    return [members[0] if len(members) == 1 else joined(members) for members in by_place.values()]
