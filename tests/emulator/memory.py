"""What the waves share: global memory as buffers that know their bounds, and the LDS of every workgroup.

Addresses are 64 bits wide, data moves as rows of dwords (narrower data as one zero-extended value per lane).
"""

from typing import NamedTuple

import numpy as np

from .errors import MissingWait, OutOfBounds, Race, Uninitialised

FIRST_ADDRESS = 0x7F12_0000_0000
GUARD = 1 << 33  # between buffers, so that a 32-bit offset too many leaves every buffer
LINE = 128  # bytes of a line of the L2 cache


class Buffer:
    """One allocation: its bytes (padded to whole dwords), which of them hold something, which the kernel wrote, and for each
    dword the wave that has stored it since the last barrier, plus 1 (0: none)."""

    def __init__(self, name: str, address: int, content: np.ndarray, initialised: bool) -> None:
        self.name, self.address, self.size = name, address, content.size
        self.bytes = np.zeros((content.size + 7) // 8 * 8, np.uint8)
        self.bytes[: content.size] = content
        self.valid = None if initialised else np.zeros(self.bytes.size, bool)
        self.written = np.zeros(self.bytes.size, bool)
        self.storer = np.zeros(self.bytes.size // 4, np.int32)


class Memory:
    """All buffers of a launch.

    waves : of a workgroup. Only a barrier orders what one of them stores before what another one loads. No s_waitcnt is needed:
        they share an L1 cache, which serves them in order (LLVM's memory model of AMDGPU, GFX940).
    """

    def __init__(self, waves: int) -> None:
        self.waves = waves
        self.stored: list[tuple[Buffer, np.ndarray]] = []  # dwords, since the last barrier
        self.buffers: list[Buffer] = []
        self.bases = np.zeros(0, np.uint64)

    def add(self, name: str, content: np.ndarray, initialised: bool = True, address: int | None = None) -> Buffer:
        """Put a buffer at an address behind all others: by default far away from them."""
        last = self.buffers[-1].address if self.buffers else FIRST_ADDRESS - GUARD
        address = (-(-last // GUARD) + 1) * GUARD if address is None else address
        if address <= last:
            raise ValueError(f"{name}: address {address:#x} is not behind {last:#x}")
        self.buffers.append(Buffer(name, address, content, initialised))
        self.bases = np.array([buffer.address for buffer in self.buffers], np.uint64)
        return self.buffers[-1]

    def _each_buffer(self, addresses: np.ndarray, size: int, text: str):  # type: ignore[no-untyped-def]
        """(buffer, the addresses' positions or a slice, offsets in it) for the buffers that the addresses lie in."""
        low, high = int(addresses.min()), int(addresses.max())
        home = int(np.searchsorted(self.bases, low, side="right")) - 1
        buffer = self.buffers[max(home, 0)]
        if buffer.address <= low and high + size <= buffer.address + buffer.size:
            yield buffer, slice(None), (addresses - np.uint64(buffer.address)).view(np.int64)
            return
        homes = np.searchsorted(self.bases, addresses, side="right").astype(np.int64) - 1
        for home in np.unique(homes):
            positions = np.nonzero(homes == home)[0]
            offsets = (addresses[positions] - self.bases[max(home, 0)]).view(np.int64)
            buffer = self.buffers[max(home, 0)]
            outside = (offsets < 0) | (offsets + size > buffer.size)
            if outside.any():
                address = int(addresses[positions][outside][0])
                raise OutOfBounds(
                    f"{text}: {int(outside.sum())} lanes outside every buffer, the first at {address:#x}, "
                    f"{address - buffer.address} bytes from the start of {buffer.name} ({buffer.size} bytes)"
                )
            yield buffer, positions, offsets

    def load(self, addresses: np.ndarray, size: int, text: str, owners: np.ndarray | None = None) -> np.ndarray:
        """uint32 [dwords, addresses]; a byte or a half as a zero-extended dword.

        owners : the wave of each address, as Waves.owner numbers them; None for an atomic operation
        """
        result = np.zeros((max(1, size // 4), addresses.size), np.uint32)
        for buffer, positions, offsets in self._each_buffer(addresses, size, text):
            if buffer.valid is not None and not buffer.valid[offsets[:, None] + np.arange(size)].all():
                raise Uninitialised(f"{text}: reads cells of {buffer.name} that nothing has written")
            if owners is not None and self.stored:
                storer = buffer.storer[_dwords_of(offsets, size)] - 1
                mine = owners[positions]
                foreign = (storer >= 0) & (storer != mine) & (storer // self.waves == mine // self.waves)
                if foreign.any():
                    wave = int(storer[foreign][0]) % self.waves
                    raise Race(f"{text}: reads what wave {wave} stored in {buffer.name}, with no barrier between")
            result[:, positions] = gather(buffer.bytes, offsets, size)
        return result

    def store(self, addresses: np.ndarray, values: np.ndarray, size: int, text: str, owners: np.ndarray | None = None) -> None:
        for buffer, positions, offsets in self._each_buffer(addresses, size, text):
            if owners is not None and size >= 4:  # of narrower ones a dword would have several owners
                dwords = _dwords_of(offsets, size)
                buffer.storer[dwords] = owners[positions] + 1
                self.stored.append((buffer, dwords))
            scatter(buffer.bytes, offsets, values[:, positions], size)
            for flags in (buffer.written, buffer.valid):
                if flags is not None:
                    flags[offsets[:, None] + np.arange(size)] = True

    def barrier(self) -> None:
        """All waves have arrived: what was stored before may be loaded."""
        for buffer, dwords in self.stored:
            buffer.storer[dwords] = 0
        self.stored.clear()


def _dwords_of(offsets: np.ndarray, size: int) -> np.ndarray:
    """Indices [dwords, offsets] of the dwords that accesses at byte offsets begin in and go on to."""
    return (offsets >> 2) + np.arange(max(1, size // 4))[:, None]


def gather(content: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """Values of ``size`` bytes at byte offsets, as uint32 [dwords, offsets]."""
    if size >= 4 and not (np.bitwise_or.reduce(offsets) & 3):
        return content.view(np.uint32)[_dwords_of(offsets, size)]
    octets = content[offsets[:, None] + np.arange(size)]
    if size < 4:
        octets = np.concatenate([octets, np.zeros((len(offsets), 4 - size), np.uint8)], axis=1)
    return np.ascontiguousarray(octets).view(np.uint32).T


def scatter(content: np.ndarray, offsets: np.ndarray, values: np.ndarray, size: int) -> None:
    """The inverse of ``gather``."""
    if size >= 4 and not (np.bitwise_or.reduce(offsets) & 3):
        content.view(np.uint32)[_dwords_of(offsets, size)] = values
    else:
        octets = np.ascontiguousarray(values.T).view(np.uint8).reshape(len(offsets), -1)[:, :size]
        content[offsets[:, None] + np.arange(size)] = octets


class Touch(NamedTuple):
    """LDS bytes that an operation in flight still reads or writes."""

    lds: "Lds"
    units: np.ndarray  # indices into the shadows, [n, lanes]
    owner: np.ndarray  # workgroup * waves + wave, of each lane
    dwords: bool  # whether a unit is a dword or a byte
    writes: bool
    copy: np.ndarray | None = None  # values of a direct-to-LDS copy, which land when it is waited for

    def part(self, owner: np.ndarray) -> "Touch":
        mine = np.isin(self.owner, owner)
        copy = None if self.copy is None else self.copy[:, mine]
        return self._replace(units=self.units[:, mine], owner=self.owner[mine], copy=copy)

    def overlaps(self, other: "Touch") -> bool:
        """Whether both touch one dword."""
        mine, theirs = (touch.units if touch.dwords else touch.units >> 2 for touch in (self, other))
        return bool(np.isin(mine, theirs).any())

    def finish(self) -> None:
        """The wait that covers the operation."""
        if self.copy is not None:
            self.lds.land(self)

    def again(self) -> None:
        """A barrier passed while the operation is in flight: it may happen after the barrier as well."""
        self.lds.mark(self)


NOBODY, SEVERAL, ATOMIC = 0, 254, 255


class Lds:
    """The LDS of all workgroups, with what each wave did to each byte since the last barrier.

    Only a barrier orders waves. Between two barriers a byte is raced for if a wave changes it and another one reads or
    changes it; writing the value that is there already is harmless, as replicated layouts do it.

    reads, writes : [workgroups, waves, bytes]; found in conflict at the next barrier
    own : bytes that the wave wrote itself, also without changing them: its reads see nothing else
    changer : who wrote a byte: wave + 1, SEVERAL (one value), ATOMIC
    flying : direct-to-LDS copies that the byte waits for
    """

    def __init__(self, workgroups: int, waves: int, size: int) -> None:
        self.size, self.waves, self.workgroups = size, waves, workgroups
        self.stride = (size + 15) // 16 * 16
        total = workgroups * self.stride
        self.bytes = np.full(total, 0xA5, np.uint8)
        self.valid, self.flying, self.changer = (np.zeros(total, np.uint8) for _ in range(3))
        self.reads, self.writes, self.own = (np.zeros(total * waves, np.uint8) for _ in range(3))

    def locate(self, addresses: np.ndarray, workgroup: np.ndarray, size: int, text: str) -> tuple[np.ndarray, bool]:
        """Units [n, lanes] of the accesses, and whether they are dwords. Addresses wrap modulo 2**32."""
        addresses = addresses.astype(np.uint32).astype(np.int64)
        if addresses.size and int(addresses.max()) + size > self.size:
            raise OutOfBounds(f"{text}: LDS address {int(addresses.max()):#x}, of {self.size} bytes")
        places = addresses + workgroup * self.stride
        if size % 4 == 0 and not (np.bitwise_or.reduce(places) & 3):
            return (places >> 2) + np.arange(size // 4)[:, None], True
        return places + np.arange(size)[:, None], False

    def _view(self, flags: np.ndarray, dwords: bool) -> np.ndarray:
        return flags.view(np.uint32) if dwords else flags

    def _per_wave(self, touch: Touch) -> np.ndarray:
        """The touch's units in the shadows that exist per wave."""
        stride = self.stride >> 2 if touch.dwords else self.stride
        workgroup, wave = touch.owner // self.waves, touch.owner % self.waves
        return touch.units + (workgroup * (self.waves - 1) + wave) * stride

    def _check_flying(self, touch: Touch, text: str) -> None:
        if self._view(self.flying, touch.dwords)[touch.units].any():
            raise MissingWait(f"{text}: LDS bytes whose direct-to-LDS copy has not been waited for")

    def load(self, touch: Touch, text: str) -> np.ndarray:
        """uint32 [dwords, lanes], or zero-extended narrower values."""
        self._check_flying(touch, text)
        ones = np.uint32(0x0101_0101) if touch.dwords else np.uint8(1)
        if not (self._view(self.valid, touch.dwords)[touch.units] == ones).all():
            raise Uninitialised(f"{text}: reads LDS bytes that nothing has written")
        self.mark(touch)
        values = self._view(self.bytes, touch.dwords)[touch.units]
        return values if touch.dwords else _dwords(values)

    def store(self, touch: Touch, values: np.ndarray, text: str) -> None:
        """``values`` [dwords, lanes]; narrower ones in the low bits."""
        self._check_flying(touch, text)
        self._write(touch, values, text)

    def _write(self, touch: Touch, values: np.ndarray, text: str) -> None:
        units, dwords = touch.units, touch.dwords
        content, changer = self._view(self.bytes, dwords), self._view(self.changer, dwords)
        ones = 0x0101_0101 if dwords else 1
        values = values if dwords else _octets(values, len(units))
        mine = np.broadcast_to(((touch.owner % self.waves + 1) * ones).astype(changer.dtype), units.shape)
        before, earlier = content[units], changer[units]
        changed = (before != values) | (self._view(self.valid, dwords)[units] == 0)
        foreign = (earlier != NOBODY) & (earlier != mine)
        if (changed & foreign).any():
            self._race(touch, changed & foreign, text, "changes LDS bytes that another wave changed")
        content[units] = values
        changer[units] = mine
        together = changer[units] != mine  # several waves, one instruction
        if together.any():
            if (together & (content[units] != values)).any():
                self._race(touch, together, text, "writes different values than another wave to LDS bytes")
            changer[units[together]] = SEVERAL * ones
        if foreign.any():
            changer[units[foreign]] = SEVERAL * ones
        self._view(self.valid, dwords)[units] = ones
        per_wave = self._per_wave(touch)
        self._view(self.own, dwords)[per_wave] = ones
        self._view(self.writes, dwords)[per_wave[changed]] = ones

    def atomic(self, touch: Touch, update, text: str) -> np.ndarray:  # type: ignore[no-untyped-def]
        """Lane by lane, in lane order; atomics of several waves do not race with each other."""
        self._check_flying(touch, text)
        content, changer = self._view(self.bytes, True), self._view(self.changer, True)
        earlier = changer[touch.units]
        mine = ((touch.owner % self.waves + 1) * 0x0101_0101).astype(np.uint32)
        foreign = (earlier != NOBODY) & (earlier != mine) & (earlier != ATOMIC * 0x0101_0101)
        if foreign.any():
            self._race(touch, foreign, text, "updates LDS bytes that another wave changed")
        if not self._view(self.valid, True)[touch.units].all():
            raise Uninitialised(f"{text}: updates LDS bytes that nothing has written")
        changer[touch.units] = ATOMIC * 0x0101_0101
        self._view(self.writes, True)[self._per_wave(touch)] = 0x0101_0101
        old = np.empty(touch.units.shape, np.uint32)
        for lane in range(touch.units.shape[1]):
            units = touch.units[:, lane]
            old[:, lane] = content[units]
            content[units] = update(old[:, lane], lane)
        return old

    def copy(self, touch: Touch, values: np.ndarray, early: bool, text: str) -> Touch:
        """A direct-to-LDS copy: its bytes belong to nobody until the wait. What stays in flight is returned."""
        self._check_flying(touch, text)
        flying = self._view(self.flying, touch.dwords)
        if early:
            self._write(touch, values, text)
        self.mark(touch)
        flying[touch.units] = 0x0101_0101 if touch.dwords else 1
        return touch._replace(copy=values)

    def land(self, touch: Touch) -> None:
        assert touch.copy is not None
        self._view(self.flying, touch.dwords)[touch.units] = 0
        self._write(touch, touch.copy, "direct-to-LDS copy")

    def mark(self, touch: Touch) -> None:
        """Note in the shadows that the wave reads or changes the bytes before the next barrier."""
        ones = 0x0101_0101 if touch.dwords else 1
        per_wave = self._per_wave(touch)
        if touch.writes:
            self._view(self.writes, touch.dwords)[per_wave] = ones
        else:
            own = self._view(self.own, touch.dwords)[per_wave]
            self._view(self.reads, touch.dwords)[per_wave] |= own ^ own.dtype.type(ones)

    def barrier(self) -> None:
        """All waves have arrived: nothing of before conflicts with what follows."""
        shape = (self.workgroups, self.waves, self.stride // 8)
        reads, writes = self.reads.view(np.uint64).reshape(shape), self.writes.view(np.uint64).reshape(shape)
        # Bytes that one wave reads and another one changes: at least one each, and not the same single one.
        somebody_reads, somebody_writes = np.bitwise_or.reduce(reads, axis=1), np.bitwise_or.reduce(writes, axis=1)
        workgroup, word = np.nonzero(somebody_reads & somebody_writes)
        read, written = (flags[workgroup, :, word].view(np.uint8).reshape(-1, self.waves, 8) != 0 for flags in (reads, writes))
        readers, writers = read.sum(axis=1), written.sum(axis=1)
        by_one_wave = (readers == 1) & (writers == 1) & (read & written).any(axis=1)
        races = np.argwhere((readers > 0) & (writers > 0) & ~by_one_wave)
        if len(races):
            place, byte = races[0]
            raise Race(
                f"workgroup {workgroup[place]}, LDS byte {int(word[place]) * 8 + byte:#x}: read by waves "
                f"{np.nonzero(read[place, :, byte])[0].tolist()} and changed by waves "
                f"{np.nonzero(written[place, :, byte])[0].tolist()} with no barrier between"
            )
        for flags in (self.reads, self.writes, self.own, self.changer):
            flags.fill(0)

    def _race(self, touch: Touch, where: np.ndarray, text: str, what: str) -> None:
        row, lane = (int(position[0]) for position in np.nonzero(where))
        place = int(touch.units[row, lane]) * (4 if touch.dwords else 1) % self.stride
        raise Race(f"{text}: wave {int(touch.owner[lane]) % self.waves} {what}, with no barrier between: {place:#x}")


def _dwords(octets: np.ndarray) -> np.ndarray:
    """[bytes, lanes] as little-endian uint32 [dwords, lanes]."""
    missing = -len(octets) % 4
    padded = np.concatenate([octets, np.zeros((missing, octets.shape[1]), np.uint8)])
    return np.ascontiguousarray(padded.T).view(np.uint32).T


def _octets(values: np.ndarray, count: int) -> np.ndarray:
    """The inverse of ``_dwords``."""
    return np.ascontiguousarray(values.T).view(np.uint8).reshape(values.shape[1], -1)[:, :count].T
