"""A model of the issue slots of one gfx950 compute unit, and what it makes of a kernel's hot loop: to rank with, never a claim.

    python tests/support/slot_model.py          # the tables of docs/design/gfx950_model.md, by the Triton at hand

Waves of a SIMD run the loop in order, side by side, in slots of 4 clocks. In one slot a SIMD issues at most one instruction of
each kind, each of another wave: one vector or matrix instruction, one of the scalar unit, of LDS and of memory. What is counted
and what is assumed stands in ``Machine``; what nobody has published is tried both ways (``SCENARIOS``). Left out: reads of LDS
and of memory that meet in a bank or a channel, the writing of logits beyond its issue, and -inf outside the windows.
"""

import heapq
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, as pytest has it there
from capgate.compat.markdown import table
from capgate.compat.offline.disassembly import Listing, hot_loop, hot_loop_body, read_amdgcn
from emulator.assembly import parse_instruction
from emulator.hazards import passes_of

SLOT = 4  # clocks
SIMDS = 4  # of a compute unit
COMPUTE_UNITS = 256  # MI350 and MI355: "AMD CDNA 4 Architecture" white paper
CLOCK = 2.4e9  # peak, the same


class Op(NamedTuple):
    """One instruction as the model sees it.

    kind : vector, packed (float32 pairs), matrix, scalar, lds, memory, wait, idle, barrier
    clocks : of the matrix core, of LDS (without conflicts), or of standing still; of memory the bytes
    left : of a wait: LDS and memory operations that may be in flight, -1 for any number
    """

    kind: str
    clocks: int = 0
    left: tuple[int, int] = (-1, -1)


class Machine(NamedTuple):
    """What is known, and what is assumed, of a compute unit.

    latency : clocks of a load that L2 has; lds_latency : of a read of LDS. Both assumed.
    l2_bytes : a clock into one compute unit, as on CDNA 3
    hold : slots for which a matrix instruction on eight registers an operand keeps vector instructions off: LLVM pull request
        233721, from thread traces of an MI350X
    overlap : whether vector instructions run beside the matrix core at all
    packed_waits : whether those on pairs of float32 wait until it is free, as in those traces: "never", behind the matrix
        instructions of their own wave ("wave"), or behind those of any ("simd")
    conflicts : LDS cycles over ideal ones
    """

    latency: int = 300
    lds_latency: int = 128
    l2_bytes: int = 64
    hold: int = 3
    overlap: bool = True
    packed_waits: str = "never"
    conflicts: float = 1.0


SCENARIOS = {
    "all overlap": Machine(),
    "packed wait for their wave": Machine(packed_waits="wave"),
    "packed wait for any wave": Machine(packed_waits="simd"),
    "nothing overlaps": Machine(overlap=False),
    "half the path from L2": Machine(l2_bytes=32),
}
LDS_BYTES = 128  # a clock: "AMD CDNA 4 Architecture" white paper


def ops_of(listing: Listing) -> list[Op]:
    """The hot loop, each instruction once."""
    steps = [listing.instructions[index] for index in hot_loop_body(listing)]
    return [op_of(f"{step.mnemonic} {step.operands}".strip()) for step in steps]


def op_of(text: str) -> Op:
    name = text.partition(" ")[0]
    if name.startswith("v_mfma"):
        return Op("matrix", passes_of(parse_instruction(text))[0] * SLOT)
    if re.match(r"v_pk_(fma|mul|add)_f32|v_pk_mov_b32", name):
        return Op("packed")
    if name.startswith("v_"):
        return Op("vector")
    if name == "s_waitcnt":
        counts = {counter: int(left) for counter, left in re.findall(r"(vm|lgkm)cnt\((\d+)\)", text)}
        return Op("wait", 0, (counts.get("lgkm", -1), counts.get("vm", -1)))
    if name == "s_nop":
        return Op("idle", (int(text.split()[1]) + 1) * SLOT)
    if name == "s_barrier":
        return Op("barrier")
    if name.startswith("ds_"):
        width = int((re.search(r"[bu](\d+)$", name) or [0, 32])[1]) // 8 * (2 if re.match(r"ds_(read|write)2", name) else 1)
        return Op("lds", 64 * width // LDS_BYTES)
    if name.startswith(("buffer_", "global_", "flat_", "scratch_")):
        dwords = re.search(r"dwordx(\d)", name)
        return Op("memory", 64 * 4 * int(dwords[1] if dwords else 1))  # bytes; clocks depend on the path
    return Op("scalar")


TOKENS = {"vector": "v", "packed": "p", "scalar": "s", "barrier": "b", "matrix": "m", "lds": "l", "memory": "g", "idle": "i"}


def read_ops(text: str) -> tuple[Op, ...]:
    """A loop as public_kernel.json has it: ``3*v m64 w0,-1``."""
    ops: list[Op] = []
    for word in text.split():
        count, _, token = word.rpartition("*")
        kind = next((kind for kind, letter in TOKENS.items() if letter == token[0]), "wait")
        if kind == "wait":
            lds, memory = map(int, token[1:].split(","))
            op = Op(kind, 0, (lds, memory))
        else:
            op = Op(kind, int(token[1:] or 0))
        ops += [op] * int(count or 1)
    return tuple(ops)


class _Wave:
    def __init__(self, start: int) -> None:
        self.place, self.ready, self.passes = 0, start, 0
        self.lds: list[int] = []  # when what is in flight comes back
        self.memory: list[int] = []
        self.matrix_until = 0


@lru_cache(maxsize=1000)
def clocks_of_pass(ops: tuple[Op, ...], waves: int, machine: Machine) -> float:
    """Clocks of a SIMD for one pass of one wave, with ``waves`` side by side, when all have been running for a while."""
    warm, measured = 3, 6  # passes of each wave
    group = [_Wave(number * SLOT) for number in range(waves)]
    matrix_free = vector_free = matrix_last = lds_free = path_free = now = 0
    began, turn = 0, 0
    # A wave may starve where another always comes back in time: then what the others do is counted.
    enough = 4 * waves * (warm + measured)
    while any(wave.passes < warm + measured for wave in group) and sum(wave.passes for wave in group) < enough:
        used: set[str] = set()
        for number in range(waves):
            wave = group[(turn + number) % waves]
            while wave.ready <= now:
                op = ops[wave.place]
                unit = "vector" if op.kind in ("packed", "matrix") else op.kind
                if op.kind == "wait":
                    lds, memory = op.left
                    due = [wave.lds[-lds - 1]] if 0 <= lds < len(wave.lds) else []
                    due += [wave.memory[-memory - 1]] if 0 <= memory < len(wave.memory) else []
                    if due and max(due) > now:
                        wave.ready = max(due)
                        break
                elif op.kind == "idle":
                    wave.ready = now + op.clocks
                elif op.kind != "barrier":
                    if unit in used:
                        break
                    if unit == "vector":
                        free = vector_free
                        if op.kind == "matrix" or not machine.overlap:
                            free = max(free, matrix_free)
                        elif op.kind == "packed" and machine.packed_waits == "wave":
                            free = max(free, wave.matrix_until)
                        elif op.kind == "packed" and machine.packed_waits == "simd":
                            free = max(free, matrix_last)
                        if free > now:
                            break
                    used.add(unit)
                    if op.kind == "matrix":
                        matrix_free = now + op.clocks
                        matrix_last = wave.matrix_until = now + op.clocks + 3 * SLOT
                        vector_free = now + machine.hold * SLOT
                    elif op.kind == "lds":
                        lds_free = max(lds_free, now) + round(op.clocks * machine.conflicts) * SIMDS
                        wave.lds.append(max(lds_free, now + machine.lds_latency))
                    elif op.kind == "memory":
                        path_free = max(path_free, now) + op.clocks // machine.l2_bytes * SIMDS
                        wave.memory.append(max(path_free, now + machine.latency))
                    wave.ready = now + SLOT
                wave.place += 1
                if wave.place == len(ops):
                    wave.place = 0
                    wave.passes += 1
                    wave.lds, wave.memory = wave.lds[-64:], wave.memory[-64:]
                    total = sum(each.passes for each in group)
                    if began == 0 and (all(each.passes >= warm for each in group) or total >= enough // 2):
                        began, counted = now, total
        now += SLOT
        turn += 1
    done = sum(each.passes for each in group)
    return (now - began) / max(1, done - counted)


class Loop(NamedTuple):
    """A kernel's hot loop.

    units : of 32 keys of a row of 64 heads and 128 dims, in one pass of one wave
    waves : of a SIMD, when a compute unit is full; workgroup : of a workgroup
    conflicts : LDS cycles over ideal ones
    """

    units: float
    waves: float
    workgroup: int
    conflicts: float
    ops: tuple[Op, ...]

    def clocks(self, waves: int, machine: Machine) -> float:
        """Of a SIMD, for one unit."""
        return clocks_of_pass(self.ops, waves, machine._replace(conflicts=self.conflicts)) / self.units


class Grid(NamedTuple):
    """What a launch gives the machine.

    passes : of the hot loop, by a wave of each workgroup, in the order in which workgroups start
    """

    passes: tuple[float, ...]


def causal(rows: int, keys: int, rows_each: int, tile: int, tiles: int = 1) -> Grid:
    """Rows of which the last one sees all keys and each one before it one less; longest first, one workgroup for some rows.

    tiles : of a pass, which takes as long as it has tiles to score
    """
    seen = [keys - row for row in range(0, rows, rows_each)]  # by the last row of each workgroup
    return Grid(tuple(-(-each // tile) / tiles for each in seen))


def clocks_of_grid(loop: Loop, grid: Grid, machine: Machine) -> float:
    """Until the last workgroup has ended. Places that are free take the next one; waves of a compute unit share it evenly."""
    machine = machine._replace(conflicts=loop.conflicts)
    places = max(1, int(loop.waves * SIMDS) // loop.workgroup)

    def a_pass(resident: int) -> float:
        """Clocks of a wave with so many workgroups on its compute unit."""
        waves = -(-resident * loop.workgroup // SIMDS)
        return clocks_of_pass(loop.ops, waves, machine) * waves

    todo = iter(grid.passes)
    units: list[list[float]] = [[] for _ in range(COMPUTE_UNITS)]
    for _ in range(places):
        for unit in units:
            unit.extend(float(passes) for passes in (next(todo, None),) if passes is not None)
    since = [0.0] * COMPUTE_UNITS
    starts = 2 * machine.latency / max(1.0, a_pass(places))  # passes' worth of finding the window and of the first copies
    units = [[passes + starts for passes in unit] for unit in units]
    ends = [(min(unit) * a_pass(len(unit)), number) for number, unit in enumerate(units) if unit]
    heapq.heapify(ends)
    now = 0.0
    while ends:
        now, number = heapq.heappop(ends)
        unit = units[number]
        done = (now - since[number]) / a_pass(len(unit))
        left = [passes - done for passes in unit]
        left.remove(min(left))
        passes = next(todo, None)
        units[number] = left if passes is None else [*left, passes + starts]
        since[number] = now
        if units[number]:
            heapq.heappush(ends, (now + min(units[number]) * a_pass(len(units[number])), number))
    return now


def loop_of(assembly: str, workgroup: int, waves: float, conflicts: float = 1.0) -> Loop:
    listing = read_amdgcn(assembly)
    found = hot_loop(listing, workgroup)
    assert found is not None
    assert found.products is not None
    return Loop(found.products / (32 * 64 * 128), waves, workgroup, conflicts, tuple(ops_of(listing)))


# --- the public kernel ----------------------------------------------------------------------------------------------------

PUBLIC = json.loads((Path(__file__).parent / "public_kernel.json").read_text())
PEERS = ("3.8.0", "3.9.0")  # Tritons that compile it as the vendor's does


class Published(NamedTuple):
    """A time that somebody measured, and what the model starts from for it."""

    heads: int
    rows: int
    keys: int
    us: float
    commit: str
    loop: Loop
    grid: Grid


def published(triton: str) -> list[Published]:
    found = []
    for time in PUBLIC["times"]:
        kernel = next(
            each
            for each in PUBLIC["kernels"]
            if (each["triton"], each["commit"], each["heads"]) == (triton, time["commit"], time["heads"])
            and each["rows"] >= time["rows"]
        )
        loop = Loop(*(kernel[key] for key in ("units", "waves", "workgroup", "conflicts")), ops=read_ops(kernel["loop"]))
        grid = causal(time["rows"], time["keys"], kernel["rows_each"], kernel["tile"])
        found.append(Published(time["heads"], time["rows"], time["keys"], time["us"], time["commit"], loop, grid))
    return found


def microseconds(loop: Loop, grid: Grid, machine: Machine) -> float:
    """At the peak clock, which no long run keeps."""
    return clocks_of_grid(loop, grid, machine) / CLOCK * 1e6


@cache
def factors(triton: str, scenario: str) -> tuple[float, ...]:
    """Published over modelled, of each published time: what the model leaves out, and its error."""
    return tuple(each.us / microseconds(each.loop, each.grid, SCENARIOS[scenario]) for each in published(triton))


def possible(triton: str) -> dict[str, tuple[float, float]]:
    """The scenarios that no published time contradicts by more than a twentieth, with their smallest and largest factor."""
    found = {name: (min(factors(triton, name)), max(factors(triton, name))) for name in SCENARIOS}
    return {name: pair for name, pair in found.items() if pair[0] >= 0.95}


def interval(loop: Loop, grid: Grid, triton: str) -> tuple[float, float]:
    """Microseconds between which a call's time lies, if it deviates from the model as the published ones do: modelled."""
    spans = [
        (microseconds(loop, grid, SCENARIOS[name]) * least, microseconds(loop, grid, SCENARIOS[name]) * most)
        for name, (least, most) in possible(triton).items()
    ]
    return min(low for low, _ in spans), max(high for _, high in spans)


# --- this project's kernel, by the Triton at hand -------------------------------------------------------------------------

SHAPES = ((4096, 4096), (8192, 8192), (8192, 32768))
KERNELS = (
    ("fp8_mqa_logits", 64, "unclean"),
    ("fp8_mqa_logits", 32, "unclean"),
    ("mx_mqa_logits", 64, "mxfp4-unclean"),
    ("mx_mqa_logits", 64, "mxfp8-unclean"),
)


def rows_of_table() -> Iterator[list[str]]:
    """capgate's variants, on as many waves as they reach and on three, then the public kernel."""
    from capgate.compat import versions
    from capgate.compat.offline.jobs import Job, compile_jobs

    triton = versions.find("triton").text or ""
    peers = triton if triton in PEERS else PEERS[-1]
    with TemporaryDirectory() as folder:
        for operation, heads, mode in KERNELS:
            (row,) = compile_jobs(operation, "hip:gfx950", [Job("gluon_cdna4", heads, mode=mode)], save=folder)
            tuning = row["tuning"]
            formats = mode.partition("-")[0] if operation == "mx_mqa_logits" else "fp8"
            text = Path(next(file for file in row["files"] if file.endswith(".amdgcn"))).read_text()
            loop = loop_of(text, tuning["num_warps"], row["waves_per_simd"])
            keys_of_pass = row["hot_loop"]["keys"] * tuning["num_warps"] / tuning["rows"]
            tiles = round(keys_of_pass / tuning["block_keys"])
            for waves in sorted({loop.waves, 3.0}):
                loop = loop._replace(waves=waves)
                times = []
                for rows, keys in SHAPES:
                    low, high = interval(loop, causal(rows, keys, tuning["rows"], tuning["block_keys"], tiles), peers)
                    times.append(f"{low:.0f} to {high:.0f}")
                yield [f"capgate, {formats}, {heads} heads", triton, f"{waves:g}", *counts(loop), *times]
    for each in published(peers):
        if (each.rows, each.keys) == SHAPES[0]:
            same = [one for one in published(peers) if (one.commit, one.heads) == (each.commit, each.heads)]
            times = {(one.rows, one.keys): f"{one.us:g} published" for one in same}
            cells = [times.get(shape, "") for shape in SHAPES]
            yield [f"aiter {each.commit}, {each.heads} heads", peers, f"{each.loop.waves:g}", *counts(each.loop), *cells]


def counts(loop: Loop) -> list[str]:
    """Vector, packed among them, and scalar instructions and clocks of the matrix core for a unit; then clocks by scenario."""
    kinds = Counter(op.kind for op in loop.ops)
    figures = [(kinds["vector"] + kinds["packed"]) / loop.units, kinds["packed"] / loop.units, kinds["scalar"] / loop.units]
    figures.append(sum(op.clocks for op in loop.ops if op.kind == "matrix") / loop.units)
    return [f"{figure:.4g}" for figure in figures] + [
        f"{loop.clocks(max(1, round(loop.waves)), SCENARIOS[name]):.0f}" for name in ("all overlap", "packed wait for any wave")
    ]


HEADER = ["kernel", "Triton", "waves", "vector", "packed", "scalar", "matrix clocks", "clocks", "packed wait"]


def main() -> None:
    header = [*HEADER, *(f"{rows} x {keys}, us" for rows, keys in SHAPES)]
    print(table(header, ["---"] * len(header), rows_of_table()))
    for triton in PEERS:
        for name in SCENARIOS:
            print(f"{triton}, {name}: published / modelled {', '.join(f'{factor:.2f}' for factor in factors(triton, name))}")


if __name__ == "__main__":
    main()
