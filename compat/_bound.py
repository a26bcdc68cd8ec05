"""Calls that repeat: of one that came before with operands of the same shapes, strides and alignments only addresses are new.

Preparing a launch and finding its compiled kernel takes Python and Triton longer than many a kernel runs. So the compiled
kernel, its launcher and its arguments are kept, with the places where addresses go, and tensor maps once they are encoded.
Which calls can be kept so is found out by :mod:`._binding`.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from types import CellType, FunctionType
from typing import Any, NamedTuple

MOST = 1024  # calls that a kernel or a function remembers, more than a deployment has that repeat; each takes some KiB
MOST_ADDRESSES = 256  # of a call: layers of a model, and their buffers


class Look(NamedTuple):
    """A call's operands: what they are but for their addresses, and these. Calls of equal facts differ in addresses alone."""

    facts: tuple[Any, ...]
    addresses: list[int]


class Slot(NamedTuple):
    """A place among a kernel's arguments where an address goes: so many bytes behind the beginning of an operand.

    descriptor : the tensor descriptor whose address it is; None where the argument is the address itself
    """

    place: int
    operand: int
    offset: int
    descriptor: Any


class Launcher(NamedTuple):
    """A compiled kernel with its grid and its arguments in order.

    catch : Triton's launcher for the kernel, with a function in the place of what starts the kernel that returns its arguments
    start : what starts the kernel
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    slots: tuple[Slot, ...]
    catch: Callable[..., tuple[Any, ...]]
    start: Callable[..., Any]

    def encode(self, stream: int, addresses: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What starts the kernel, and what it is to be given: tensor maps are encoded here."""
        arguments = list(self.arguments)
        for place, operand, offset, descriptor in self.slots:
            address = addresses[operand] + offset
            arguments[place] = address if descriptor is None else _with_base(descriptor, address)
        kernel, runtime = self.kernel, sys.modules["triton"].knobs.runtime
        metadata = kernel.launch_metadata(self.grid, stream, *arguments)
        hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
        given = self.catch(*self.grid, stream, kernel.function, kernel.packed_metadata, metadata, *hooks, *arguments)
        return self.start, given


def launcher_of(run: Any) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., Any]] | None:
    """``catch`` and ``start`` of a launcher of Triton's; None for one of another build than is known here.

    It calls ``launch``, which starts the kernel, or for tensor descriptors a function around that, which encodes them.
    """
    around = getattr(run, "launch", None)
    memory = [value for name, value in getattr(run, "__dict__", {}).items() if name.endswith("scratch_size")]
    if around is None or any(memory) or getattr(run, "gsan_enabled", False):
        return None
    if not isinstance(around, FunctionType):
        start = around
    elif "launcher" in around.__code__.co_freevars:
        start = inspect.getclosurevars(around).nonlocals["launcher"]
    else:
        return None

    def catch(*arguments: Any) -> tuple[Any, ...]:
        caught: list[tuple[Any, ...]] = []
        twin = copy.copy(run)
        twin.launch = _around(around, lambda *given: caught.append(given))
        twin(*arguments)
        return caught.pop()

    return catch, start


def _around(around: Any, start: Callable[..., Any]) -> Callable[..., Any]:
    """Triton's function around what starts a kernel, around ``start`` instead; ``start`` itself where there is none."""
    if not isinstance(around, FunctionType):
        return start
    cells = dict(zip(around.__code__.co_freevars, around.__closure__ or (), strict=True))
    cells["launcher"] = CellType(start)
    return FunctionType(around.__code__, around.__globals__, closure=tuple(cells.values()))


class _Address:
    """What a tensor descriptor asks of its tensor."""

    __slots__ = ("_address", "dtype")

    def __init__(self, address: int, dtype: Any) -> None:
        self._address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        return self._address


def look(operands: Iterable[Any]) -> Look | None:
    """Look at a call's operands, and into tuples among them; None where one could mean anything, as a subclass of tensors."""
    addresses: list[int] = []
    facts = look_into(operands, addresses)
    return None if facts is None else Look(facts, addresses)


def look_into(operands: Iterable[Any], addresses: list[int]) -> tuple[Any, ...] | None:
    """The facts of :func:`look`; the addresses are added to ``addresses``."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    plain, dtype, hip = torch.Tensor, torch.dtype, torch.version.hip
    facts: list[Any] = []  # of a tensor five or six, of anything else its type and itself: no two calls give the same line
    try:
        for part in operands:
            kind = type(part)
            if kind is plain:
                if part.requires_grad:
                    return None
                address = part.data_ptr()
                addresses.append(address)
                # Triton makes its own of addresses that are multiples of 16, and on AMD of storages that 31 bits can count.
                facts += (part.shape, part.stride(), part.dtype, part.device, address % 16)
                if hip:
                    facts.append(part.untyped_storage().nbytes() < 2**31)
            elif part is None or kind in (bool, int, float, str, dtype):
                facts += (kind, part)
            elif isinstance(part, tuple) and (inside := look_into(part, addresses)) is not None:
                facts += inside
            else:
                return None
    except RuntimeError:  # a sparse or nested tensor, which has no strides, or no address
        return None
    return tuple(facts)


def limit(kept: dict[Any, Any], most: int = MOST) -> None:
    """Make room for one more in what remembers calls, of the oldest."""
    while len(kept) >= most:
        kept.pop(next(iter(kept), None), None)


def tensors_of(operands: Iterable[Any]) -> list[Any]:
    """The tensors among operands that could be looked at, in the order of their addresses."""
    found: list[Any] = []
    for operand in operands:
        if isinstance(operand, tuple):
            found += tensors_of(operand)
        elif hasattr(operand, "data_ptr"):
            found.append(operand)
    return found


class Bound:
    """A call whose launches are kept.

    extents : of each operand bytes from its first element to the end of its last one, where the last operand is written and
        may share memory with no other; none where that is nobody's question here
    """

    def __init__(
        self, launchers: Sequence[Launcher], scratch: Sequence[Callable[[], Any]], extents: Sequence[int] = ()
    ) -> None:
        driver = sys.modules["triton"].runtime.driver.active
        self._current_device, self._current_stream = driver.get_current_device, driver.get_current_stream
        self._index = self._current_device()
        self._launchers = launchers
        self._scratch = scratch
        self._extents = extents
        self._encoded: dict[Any, list[tuple[Callable[..., Any], tuple[Any, ...]]]] = {}

    def apart(self, extents: Sequence[int]) -> "Bound":
        """The same launches, for operands of which the last one is to be apart from the others."""
        twin = copy.copy(self)
        twin._extents, twin._encoded = extents, {}
        return twin

    def __call__(self, addresses: Sequence[int]) -> bool:
        """Launch with these addresses, on the current device's stream; False, and nothing is launched, where that cannot be.

        Hooks of Triton's, such as a profiler's, may look at arguments; and the kernel is loaded on one device.
        """
        index, runtime = self._index, sys.modules["triton"].knobs.runtime
        for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
            if hook is not None and getattr(hook, "calls", True):
                return False
        if self._current_device() != index:
            return False
        key = (self._current_stream(index), *addresses)
        if self._scratch:
            made = [make() for make in self._scratch]  # kept until all is launched
            key += tuple([tensor.data_ptr() for tensor in made])
        encoded = self._encoded.get(key)
        if encoded is None:
            if self._extents and _overlaps(addresses, self._extents):
                return False
            limit(self._encoded, MOST_ADDRESSES)
            encoded = self._encoded[key] = [launcher.encode(key[0], key[1:]) for launcher in self._launchers]
        for launch, arguments in encoded:
            launch(*arguments)
        return True


def _overlaps(addresses: Sequence[int], extents: Sequence[int]) -> bool:
    """Whether the last operand's bytes may be another one's, too."""
    *others, (start, size) = zip(addresses, extents, strict=True)
    return any(address < start + size and start < address + extent for address, extent in others)


def _with_base(descriptor: Any, address: int) -> Any:
    made = object.__new__(type(descriptor))
    made.__dict__.update(descriptor.__dict__)
    made.base = _Address(address, descriptor.base.dtype)
    return made
