"""Memory instructions: scalar loads, global and flat, raw buffers, LDS, and copies from global memory directly to LDS.

ISA guides: "Scalar Memory Operations", "Vector Memory Operations", "Flat Memory Instructions", "Data Share Operations".
Registers receive their data at once and count as in flight until the s_waitcnt that covers them. A direct-to-LDS copy reads
memory at once and changes LDS at once or at that wait, as the launch asks.
"""

import re
from collections.abc import Callable

import numpy as np

from .assembly import M0, Instruction, Operand
from .errors import MissingWait
from .memory import Touch
from .operands import Array, reader, row
from .registers import LANES, Pending, Waves, register_bits
from .step import Step, bits_of

u32, u64 = np.uint32, np.uint64
WIDTHS = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}
VECTOR = re.compile(
    r"(global|flat|buffer)_(load|store)_(lds_)?(ubyte|sbyte|byte|ushort|sshort|short|dword)(?:x([234]))?(_d16)?(_hi)?"
)
ATOMIC = re.compile(r"(global|flat|buffer)_atomic_(\w+)")
LDS_ACCESS = re.compile(r"ds_(read|write)(2)?(st64)?_([biu])(8|16|32|64|96|128)(_d16)?(_hi)?(_tr_b(?:4|8|16|6))?")
LDS_ATOMIC = re.compile(r"ds_(add|sub|min|max|and|or|xor|inc)(_rtn)?_([uibf])(32)")


def signed(bits: int) -> Callable[[Array], Array]:
    """Extends the sign of narrow values."""
    shift = 32 - bits
    return lambda values: ((values << u32(shift)).view(np.int32) >> shift).view(u32)


def decode(instruction: Instruction, accum_offset: int) -> Step | None:
    name = instruction.mnemonic
    if name.startswith("s_load_dword"):
        return _scalar_load(instruction, accum_offset)
    match = VECTOR.fullmatch(name)
    if match:
        return _vector_access(instruction, match, accum_offset)
    match = ATOMIC.fullmatch(name)
    if match:
        return _vector_atomic(instruction, match, accum_offset)
    if name in ("buffer_inv", "buffer_wbl2"):  # caches are not modelled; a write-back counts as a store
        if name == "buffer_inv":
            return Step(instruction, lambda g: None, 0, 0, "vmem")
        return Step(instruction, lambda g: g.issue(Pending("vmcnt", "vmem", 0, instruction.text)), 0, 0, "vmem", "vmem")
    if name.startswith("ds_"):
        return _data_share(instruction, accum_offset)
    return None


# Scalar


def _scalar_load(instruction: Instruction, accum_offset: int) -> Step:
    operands = instruction.operands
    destination, base, offset = operands[:3]
    count = int(instruction.mnemonic.rpartition("dword")[2].removeprefix("x") or 1)
    if destination.count != count or base.count != 2 or set(instruction.modifiers) - {"offset"}:
        raise instruction.unknown("scalar load")
    registers = register_bits(destination, accum_offset)
    added = instruction.modifiers.get("offset", 0) + (offset.value if offset.kind == "integer" else 0)

    def execute(g: Waves) -> None:
        addresses = g.s64[:, base.index // 2] + u64(added & (2**64 - 1))
        if offset.kind == "s":
            addresses = addresses + g.s[:, offset.index]
        addresses = addresses & ~u64(3)
        values = g.machine.memory.load(addresses, 4 * count, instruction.text, g.owner)
        g.s[:, destination.index : destination.index + count] = values.T
        g.issue(Pending("lgkmcnt", "scalar", registers, instruction.text))

    return Step(instruction, execute, bits_of(operands[1:], accum_offset), registers, "smem", "scalar")


# Vector memory


def _owners(g: Waves, lanes: Array) -> Array:
    """The wave of each of the lanes [waves, 64] that are set, as :attr:`Waves.owner` numbers them."""
    return g.owner[np.nonzero(lanes)[0]]


def _address(instruction: Instruction, operands: tuple[Operand, ...], space: str, accum_offset: int):  # type: ignore[no-untyped-def]
    """(operands of the address, a function that gives 64-bit addresses [waves, 64] and the lanes that are in range)."""
    modifiers = instruction.modifiers
    immediate = modifiers.get("offset", 0)
    if space == "buffer":
        vector_offset, descriptor, scalar_offset = operands
        if descriptor.count != 4 or "idxen" in modifiers:
            raise instruction.unknown("buffer form")
        offen = "offen" in modifiers
        voffset = reader(vector_offset, "u", accum_offset) if offen else None
        soffset = reader(scalar_offset, "u", accum_offset)

        def in_buffer(g: Waves, size: int) -> tuple[Array, Array]:
            words = g.s[:, descriptor.index : descriptor.index + 4]
            if ((words[:, 1] >> u32(16)) & u32(0x3FFF)).any():
                raise instruction.unknown("descriptor with a stride")
            base = words[:, :1].astype(u64) | ((words[:, 1:2] & u32(0xFFFF)).astype(u64) << u64(32))
            offset = np.full(g.active.shape, immediate, u64) + (voffset(g) if voffset is not None else u64(0)) + soffset(g)
            in_range = offset + u64(size) <= words[:, 2:3].astype(u64)
            return base + offset, in_range

        return in_buffer
    address, scalar = operands
    immediate_bits = u64(immediate & (2**64 - 1))
    if scalar.kind == "off":
        lanes64 = reader(address, "q", accum_offset)
        return lambda g, size: (lanes64(g) + immediate_bits, None)
    offset32 = reader(address, "u", accum_offset)
    base64 = reader(scalar, "q", accum_offset)
    return lambda g, size: (base64(g) + offset32(g).astype(u64) + immediate_bits, None)


def _vector_access(instruction: Instruction, match: re.Match[str], accum_offset: int) -> Step:
    space, direction, to_lds, unit, dwords, half, high = match.groups()
    operands, modifiers = instruction.operands, instruction.modifiers
    if set(modifiers) - {"offset", "offen", "lds", "sc0", "sc1", "nt"}:
        raise instruction.unknown("modifier")
    size = WIDTHS[unit] * int(dwords or 1)
    to_lds = bool(to_lds) or "lds" in modifiers
    if to_lds:
        places = operands
        data = None
    elif direction == "load" or space == "buffer":
        data, places = operands[0], operands[1:]
    else:
        data, places = operands[1], (operands[0], *operands[2:])
    if space == "flat":
        places = (*places, Operand("off"))
    locate = _address(instruction, places, space, accum_offset)
    counter = "vmcnt lgkmcnt" if space == "flat" else "vmcnt"
    if to_lds:
        return _copy_to_lds(instruction, locate, places, size, accum_offset)
    assert data is not None
    count = max(1, size // 4)
    if data.count != count:
        raise instruction.unknown("data registers")
    index = row(data, accum_offset)
    registers = register_bits(data, accum_offset)
    text = instruction.text

    def lanes_and_addresses(g: Waves) -> tuple[Array, Array, Array]:
        addresses, in_range = locate(g, size)
        addresses = np.broadcast_to(addresses, g.active.shape)
        lanes = g.active if in_range is None else g.active & in_range
        return addresses[lanes], lanes, addresses

    if direction == "store":
        shift = u32(16 if high else 0)

        def store(g: Waves) -> None:
            addresses, lanes, _ = lanes_and_addresses(g)
            if addresses.size:
                values = g.v[index : index + count][:, lanes] >> shift
                g.machine.memory.store(addresses, values, size, text, _owners(g, lanes))
                g.machine.count_traffic("stored", addresses, lanes, size)
            g.issue(Pending(counter, "vmem", 0, text))

        return Step(instruction, store, bits_of(operands, accum_offset), 0, "vmem", "vmem")
    extend = signed(size * 8) if unit in ("sbyte", "sshort") else None

    def load(g: Waves) -> None:
        addresses, lanes, _ = lanes_and_addresses(g)
        values = np.zeros((count, *lanes.shape), u32)  # buffers give 0 out of range
        if addresses.size:
            values[:, lanes] = g.machine.memory.load(addresses, size, text, _owners(g, lanes))
            g.machine.count_traffic("loaded", addresses, lanes, size)
        if extend is not None:
            values = extend(values)
        target = g.v[index : index + count]
        if half:
            values = (
                (target & u32(0xFFFF)) | (values << u32(16)) if high else (target & u32(0xFFFF_0000)) | (values & u32(0xFFFF))
            )
        if g.all_active:
            target[...] = values
        else:
            np.copyto(target, values, where=g.active)
        g.issue(Pending(counter, "vmem", registers, text))

    return Step(instruction, load, bits_of(places, accum_offset), registers, "vmem", "vmem")


def _copy_to_lds(instruction: Instruction, locate, places: tuple[Operand, ...], size: int, accum_offset: int) -> Step:  # type: ignore[no-untyped-def]
    """Lane l's data goes to M0 + the immediate offset + l times the size of an element (at least a dword)."""
    if size not in (1, 2, 4, 12, 16):
        raise instruction.unknown("size of a copy")
    immediate = instruction.modifiers.get("offset", 0)
    width = max(size, 4)
    text = instruction.text

    def execute(g: Waves) -> None:
        addresses, in_range = locate(g, size)
        addresses = np.broadcast_to(addresses, g.active.shape)
        lanes = g.active if in_range is None else g.active & in_range
        values = np.zeros((width // 4, *lanes.shape), u32)
        if lanes.any():
            values[:, lanes] = g.machine.memory.load(addresses[lanes], size, text, _owners(g, lanes))
            g.machine.count_traffic("loaded", addresses[lanes], lanes, size)
        places_in_lds = g.s[:, M0 : M0 + 1] + u32(immediate) + np.arange(LANES, dtype=u32) * u32(width)
        touch = _touch(g, places_in_lds[g.active], g.active, width, True, text)
        for operation in g.pending:  # LDS instructions of the same wave, which nothing else orders before the copy
            if any(earlier.copy is None and earlier.overlaps(touch) for earlier in operation.lds):
                raise MissingWait(f"{text}: LDS bytes that {operation.text} in flight still needs")
        in_flight = g.machine.lds.copy(touch, values[:, g.active], g.machine.early, text)
        g.machine.counters.lds_copied_bytes += touch.owner.size * width
        g.issue(Pending("vmcnt", "vmem", 0, text, in_flight))

    m0 = Operand("s", M0, 1)
    return Step(instruction, execute, bits_of((*places, m0), accum_offset), 0, "vmem", "vmem")


def _combine(operation: str, instruction: Instruction) -> Callable[[Array, Array], Array]:
    """Old value, operand -> new value, on dwords."""
    as_signed = lambda a: a.view(np.int32)  # noqa: E731
    as_float = lambda a: a.view(np.float32)  # noqa: E731
    table: dict[str, Callable[[Array, Array], Array]] = {
        "add": lambda old, value: old + value,
        "sub": lambda old, value: old - value,
        "and": lambda old, value: old & value,
        "or": lambda old, value: old | value,
        "xor": lambda old, value: old ^ value,
        "swap": lambda old, value: value,
        "smin": lambda old, value: np.minimum(as_signed(old), as_signed(value)).view(u32),
        "smax": lambda old, value: np.maximum(as_signed(old), as_signed(value)).view(u32),
        "umin": np.minimum,
        "umax": np.maximum,
        "add_f32": lambda old, value: (as_float(old) + as_float(value)).view(u32),
    }
    if operation not in table:
        raise instruction.unknown()
    return table[operation]


def _vector_atomic(instruction: Instruction, match: re.Match[str], accum_offset: int) -> Step:
    """Lanes one after the other, in lane order."""
    space, operation = match.groups()
    operands, modifiers = instruction.operands, instruction.modifiers
    if set(modifiers) - {"offset", "offen", "sc0", "sc1", "nt"}:
        raise instruction.unknown("modifier")
    returns = "sc0" in modifiers
    compare = operation == "cmpswap"
    combine = None if compare else _combine(operation, instruction)
    if space == "buffer":
        data, places, result = operands[0], operands[1:], operands[0]
    elif returns:
        result, data, places = operands[0], operands[2], (operands[1], *operands[3:])
    else:
        result, data, places = operands[1], operands[1], (operands[0], *operands[2:])
    if space == "flat":
        places = (*places, Operand("off"))
    if data.count != (2 if compare else 1):
        raise instruction.unknown("data registers")
    locate, index, into = _address(instruction, places, space, accum_offset), row(data, accum_offset), row(result, accum_offset)
    text = instruction.text

    def execute(g: Waves) -> None:
        addresses, in_range = locate(g, 4)
        addresses = np.broadcast_to(addresses, g.active.shape)
        lanes = g.active if in_range is None else g.active & in_range
        memory, old = g.machine.memory, np.zeros(lanes.shape, u32)
        for wave, lane in np.argwhere(lanes):
            at = addresses[wave, lane : lane + 1]
            before = memory.load(at, 4, text)
            if combine is not None:
                after = combine(before, g.v[index, wave : wave + 1, lane : lane + 1])
            else:
                after = np.where(before == g.v[index + 1, wave, lane], g.v[index, wave, lane], before)
            memory.store(at, after, 4, text)
            old[wave, lane] = before[0, 0]
        if lanes.any():
            g.machine.count_traffic("stored", addresses[lanes], lanes, 4)
        if returns:
            np.copyto(g.v[into], old, where=g.active)
        g.issue(Pending("vmcnt", "vmem", register_bits(result, accum_offset, 1) if returns else 0, text))

    writes = register_bits(result, accum_offset, 1) if returns else 0
    return Step(instruction, execute, bits_of((data, *places), accum_offset), writes, "vmem", "vmem")


# LDS


def _touch(g: Waves, addresses: Array, lanes: Array, size: int, writes: bool, text: str) -> Touch:
    lds = g.machine.lds
    owner = _owners(g, lanes)
    units, dwords = lds.locate(addresses, owner // lds.waves, size, text)
    return Touch(lds, units, owner, dwords, writes)


def _data_share(instruction: Instruction, accum_offset: int) -> Step:
    name = instruction.mnemonic
    if name in ("ds_bpermute_b32", "ds_permute_b32", "ds_swizzle_b32"):
        return _between_lanes(instruction, accum_offset)
    match = LDS_ACCESS.fullmatch(name)
    if match:
        return _lds_access(instruction, match, accum_offset)
    match = LDS_ATOMIC.fullmatch(name)
    if match:
        return _lds_atomic(instruction, match, accum_offset)
    raise instruction.unknown()


def _lds_access(instruction: Instruction, match: re.Match[str], accum_offset: int) -> Step:
    direction, two, stride64, sign, bits, half, high, transposed = match.groups()
    operands, modifiers = instruction.operands, instruction.modifiers
    size, text = int(bits) // 8, instruction.text
    if two:
        unit = size * (64 if stride64 else 1)
        offsets = [modifiers.get("offset0", 0) * unit, modifiers.get("offset1", 0) * unit]
    else:
        offsets = [modifiers.get("offset", 0)]
    count = max(1, size // 4)
    address = reader(operands[0 if direction == "write" else 1], "u", accum_offset)

    if direction == "write":
        indices = [row(operand, accum_offset) for operand in operands[1 : 1 + len(offsets)]]
        shift = u32(16 if high else 0)

        def write(g: Waves) -> None:
            touches = []
            if g.active.any():
                base = np.broadcast_to(address(g), g.active.shape)[g.active]
                for offset, index in zip(offsets, indices, strict=True):
                    touch = _touch(g, base + u32(offset), g.active, size, True, text)
                    values = g.v[index : index + count][:, g.active] >> shift
                    g.machine.lds.store(touch, values, text)
                    g.machine.count_banks(g, base + u32(offset), size, "write")
                    touches.append(touch)
            g.issue(Pending("lgkmcnt", "lds", 0, text, *touches))

        return Step(instruction, write, bits_of(operands, accum_offset), 0, "lds", "lds")

    destination = operands[0]
    if destination.count != count * len(offsets):
        raise instruction.unknown("data registers")
    index, registers = row(destination, accum_offset), register_bits(destination, accum_offset)
    extend = signed(size * 8) if sign == "i" else None

    def read(g: Waves) -> None:
        touches = []
        if g.active.any():
            base = np.broadcast_to(address(g), g.active.shape)[g.active]
            for number, offset in enumerate(offsets):
                touch = _touch(g, base + u32(offset), g.active, size, False, text)
                values = g.machine.lds.load(touch, text)
                g.machine.count_banks(g, base + u32(offset), size, "read")
                touches.append(touch)
                if transposed:
                    values = _transposed(values, int(transposed.removeprefix("_tr_b")), g, instruction)
                if extend is not None:
                    values = extend(values)
                first = index + number * count
                target = g.v[first : first + count]
                if half:
                    old = target[:, g.active]
                    values = (
                        (old & u32(0xFFFF)) | (values << u32(16)) if high else (old & u32(0xFFFF_0000)) | (values & u32(0xFFFF))
                    )
                if g.all_active:
                    target[...] = values.reshape(target.shape)
                else:
                    target[:, g.active] = values
        g.issue(Pending("lgkmcnt", "lds", registers, text, *touches))

    return Step(instruction, read, bits_of(operands[1:], accum_offset), registers, "lds", "lds")


def _transposed(values: Array, bits: int, g: Waves, instruction: Instruction) -> Array:
    """ds_read_b64_tr: the 16 lanes of a row exchange elements.

    Their 16 x 8 bytes, in lane order, are a matrix of rows as long as 16 elements; each lane receives a column of it.
    """
    if not g.all_active:
        raise instruction.unknown("meaning with inactive lanes")
    if bits not in (8, 16):
        raise instruction.unknown()
    octets = np.ascontiguousarray(values.T).view(np.uint8).reshape(-1, 16 * 8)
    elements = octets.view({8: np.uint8, 16: np.uint16}[bits]).reshape(len(octets), -1, 16)
    columns = np.ascontiguousarray(elements.swapaxes(1, 2))
    return columns.view(u32).reshape(-1, 2).T


def _lds_atomic(instruction: Instruction, match: re.Match[str], accum_offset: int) -> Step:
    operation, returns, kind, _ = match.groups()
    operands, text = instruction.operands, instruction.text
    name = {"min": "smin" if kind == "i" else "umin", "max": "smax" if kind == "i" else "umax"}.get(operation, operation)
    combine = _combine(f"{name}_f32" if kind == "f" else name, instruction)
    address, data = (reader(operand, "u", accum_offset) for operand in operands[-2:])
    offset = u32(instruction.modifiers.get("offset", 0))
    registers = register_bits(operands[0], accum_offset) if returns else 0

    def execute(g: Waves) -> None:
        touches = []
        if g.active.any():
            base = np.broadcast_to(address(g), g.active.shape)[g.active] + offset
            values = np.broadcast_to(data(g), g.active.shape)[g.active]
            touch = _touch(g, base, g.active, 4, True, text)
            if not touch.dwords:
                raise instruction.unknown("alignment")
            old = g.machine.lds.atomic(touch, lambda before, lane: combine(before, values[lane : lane + 1]), text)
            if returns:
                g.v[row(operands[0], accum_offset)][g.active] = old[0]
            touches.append(touch)
        g.issue(Pending("lgkmcnt", "lds", registers, text, *touches))

    return Step(instruction, execute, bits_of(operands[1 if returns else 0 :], accum_offset), registers, "lds", "lds")


SWIZZLE = re.compile(r"swizzle\((\w+),(.*)\)")


def swizzle_lanes(pattern: str | int, instruction: Instruction) -> Array:
    """The lane that each lane reads."""
    lane = np.arange(LANES)
    if isinstance(pattern, int):
        if pattern & 0x8000:
            return lane // 4 * 4 + (pattern >> 2 * (lane % 4) & 3)
        kept, ored, xored = pattern & 31, pattern >> 5 & 31, pattern >> 10 & 31
        return lane // 32 * 32 + (((lane % 32) & kept | ored) ^ xored)
    match = SWIZZLE.fullmatch(pattern.replace(" ", ""))
    if not match:
        raise instruction.unknown("swizzle")
    kind, rest = match.groups()
    if kind == "SWAP":
        return lane ^ int(rest)
    if kind == "REVERSE":
        return lane ^ (int(rest) - 1)
    if kind == "BROADCAST":
        size, chosen = map(int, rest.split(","))
        return lane // size * size + chosen
    if kind == "QUAD_PERM":
        return lane // 4 * 4 + np.array(list(map(int, rest.split(","))))[lane % 4]
    if kind == "BITMASK_PERM":
        kept = ored = xored = 0
        for bit, character in zip((16, 8, 4, 2, 1), rest.strip('"'), strict=True):
            kept |= bit * (character in "pi")
            ored |= bit * (character == "1")
            xored |= bit * (character == "i")
        return lane // 32 * 32 + (((lane % 32) & kept | ored) ^ xored)
    raise instruction.unknown("swizzle")


def _between_lanes(instruction: Instruction, accum_offset: int) -> Step:
    """Lane moves through the LDS crossbar; they touch no LDS. An inactive source lane gives 0."""
    name, operands, text = instruction.mnemonic, instruction.operands, instruction.text
    index, registers = row(operands[0], accum_offset), register_bits(operands[0], accum_offset)
    offset = instruction.modifiers.get("offset", 0)
    data = reader(operands[-1], "u", accum_offset)
    if name == "ds_swizzle_b32":
        fixed = swizzle_lanes(offset, instruction)[None, :]
        chosen = None
    else:
        chosen = reader(operands[1], "u", accum_offset)

    def execute(g: Waves) -> None:
        shape = g.active.shape
        values = np.broadcast_to(data(g), shape)
        lane = np.broadcast_to(fixed if chosen is None else ((chosen(g) + u32(offset)) >> u32(2)) & u32(63), shape)
        if name == "ds_permute_b32":  # lanes send; of two to one place the higher lane wins
            result = np.zeros(shape, u32)
            wave, sender = np.nonzero(g.active)
            result[wave, lane[wave, sender]] = values[wave, sender]
        else:
            sources = np.where(g.active, values, u32(0))
            result = np.take_along_axis(sources, lane.astype(np.int64), axis=1)
        np.copyto(g.v[index], result, where=g.active)
        g.issue(Pending("lgkmcnt", "lds", registers, text))

    return Step(instruction, execute, bits_of(operands[1:], accum_offset), registers, "lds", "lds")
