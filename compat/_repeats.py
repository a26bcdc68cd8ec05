"""A function's calls that repeat: what has passed its checks, and been given a variant, needs neither again."""

import sys
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar, cast

from . import _probes, _switches
from ._bound import Bound, limit, look_into, tensors_of
from ._operation import Operation

P = TypeVar("P", bound=Hashable)
K = TypeVar("K")


class Call(NamedTuple):
    """A call that may repeat. Calls of equal keys differ in addresses alone."""

    key: tuple[Any, ...]
    addresses: list[int]


class _Kept(NamedTuple):
    """What is kept of calls that are alike, and the settings of Triton under which it was found.

    A device on which something was launched stays what it is, so that under equal switches the settings alone can change its
    capabilities.
    """

    what: Any
    settings: str


class Calls(Generic[K]):
    """The calls of a function that come again, and what the function keeps of each, from its second time on.

    It is found again under the same switches and settings of Triton, for operands that differ in addresses alone.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, None] = {}

    def call(self, operands: tuple[Any, ...], *options: Any) -> Call | None:
        """The call with these operands, of which tuples are gone through; None where it cannot be told from others, and while
        torch traces or transforms it."""
        torch = sys.modules.get("torch")
        if torch is None or torch.compiler.is_compiling() or not _alone(torch):
            return None
        addresses: list[int] = []
        facts = look_into(operands, addresses)
        if facts is None or not addresses:
            return None
        if _switches.current().measure and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return None  # what is captured before the variants are timed is not to be kept as the choice
        return Call((facts, options, *map(type, options)), addresses)

    def find(self, call: Call) -> K | None:
        """What is kept of calls like this one."""
        try:
            kept = self._kept().get(call.key)
        except TypeError:  # an option that cannot be a key: no valid one
            return None
        return cast(K, kept.what) if kept is not None and kept.settings == _probes.settings() else None

    def remember(self, call: Call, make: Callable[[], K | None]) -> None:
        """Note a call that went the long way; the second time, and under new settings, ``make`` says what to keep."""
        if call.key not in self._seen:
            limit(self._seen)
            self._seen[call.key] = None
            return
        kept, settings = self._kept(), _probes.settings()
        known = kept.get(call.key)
        if known is not None and known.settings == settings:  # it went the long way for another reason, or always does
            return
        made = _Kept(make(), settings)
        limit(kept)
        kept[call.key] = made

    def __len__(self) -> int:
        """How many calls are kept under the switches in force."""
        return len(self._kept())

    def _kept(self) -> dict[Any, _Kept]:
        """Of the switches in force: under others another variant may be chosen."""
        memo: dict[Any, dict[Any, _Kept]] = _switches.current().memo
        kept = memo.get(self)
        return memo.setdefault(self, {}) if kept is None else kept


class Repeats(Calls[Bound], Generic[P]):
    """The repeating calls of a function that checks its arguments itself and then runs an operation::

        REPEATS = compat.Repeats(operation)

        def scale_rows(x, factor, out):
            call = REPEATS.call((x, factor, out))
            if call and REPEATS.launched(call, out) is not None:   # others with operands that lie alike came before
                return out
            ...                                                    # check x, factor and out, and run the operation
            if call:
                REPEATS.keep(call, lambda: problem_of(x), (x, factor, out), None)
            return out

    A call is launched at once where two like it have gone the long way under the same switches and settings of Triton, and a
    :class:`.Kernel` took them. It goes the long way all the same while torch traces or transforms it, while a hook of Triton's
    is set, and where the last operand, which is the one that is written, may share memory with another.
    """

    def __init__(self, operation: Operation[P]) -> None:
        super().__init__()
        self._operation = operation

    def launched(self, call: Call, out: Any, make: Callable[[], Any] | None = None) -> Any:
        """What the call has written, where it was launched; None where it must go the long way.

        out : the last operand; None for a call that writes a new tensor, which ``make`` makes
        """
        bound = self.find(call)
        if bound is None:
            return None
        addresses = call.addresses
        if out is None and make is not None:
            out = make()
            addresses = [*addresses, out.data_ptr()]
        return out if bound(addresses) else None

    def keep(
        self, call: Call, problem: Callable[[], P], operands: tuple[Any, ...], variant: str | None, **options: Any
    ) -> None:
        """Remember a call that went the long way; its launches are kept when it comes a second time.

        operands, options : as the operation's variants got them
        """

        def bound() -> Bound | None:
            kept = self._operation.kept(problem(), *operands, variant=variant, **options)
            return kept and kept.apart([extent(tensor) for tensor in tensors_of(operands)])

        self.remember(call, bound)


def extent(tensor: Any) -> int:
    """Bytes from the first element to the end of the last one."""
    if 0 in tensor.shape:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.itemsize * (1 + sum((size - 1) * step for size, step in steps)))


def _alone(torch: Any) -> bool:
    """Whether no mode, transform or forward AD wants to see which operators are called; torch has no public question for it."""
    inside = torch._C
    return not (
        inside._len_torch_dispatch_stack()
        or inside._len_torch_function_stack()
        or inside._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
