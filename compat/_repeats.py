"""A function's calls that repeat: what has passed its checks, and been given a variant, needs neither again."""

import sys
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from . import _switches
from ._bound import Bound, is_tensors, limit, look
from ._kernel import Kernel
from ._lookup import capabilities
from ._operation import Operation

P = TypeVar("P", bound=Hashable)


class Call(NamedTuple):
    """A call that may repeat. Calls of equal keys differ in addresses alone."""

    key: tuple[Any, ...]
    addresses: list[int]


class _Kept(NamedTuple):
    """What holds of calls that are alike: the device's capabilities, under which the variant was chosen, and their launches.

    bound : None where the variant's launches cannot be kept
    extents : bytes of each operand, from its first element to the end of its last one
    """

    device: Any
    caps: Any
    bound: Bound | None
    extents: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Whether the capabilities are what they were."""
        return capabilities(self.device) is self.caps


class Repeats(Generic[P]):
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

    A call is launched at once where two like it have gone the long way under the same switches and capabilities, and a
    :class:`.Kernel` took them. It goes the long way all the same while torch traces or transforms it, while a hook of Triton's
    is set, and where the last operand, which is the one that is written, may share memory with another.
    """

    def __init__(self, operation: Operation[P]) -> None:
        self._operation = operation
        self._seen: dict[Any, None] = {}

    def call(self, operands: tuple[Any, ...], *options: Any) -> Call | None:
        """The call with these operands, of which tuples are gone through, on a GPU; None where it cannot repeat."""
        torch = sys.modules.get("torch")
        if torch is None or torch.compiler.is_compiling() or not _alone(torch):
            return None
        looked = look(operands)
        if looked is None or not looked.addresses:
            return None
        return Call((self._operation, looked.facts, options, *map(type, options)), looked.addresses)

    def launched(self, call: Call, out: Any, make: Callable[[], Any] | None = None) -> Any:
        """What the call has written, where it was launched; None where it must go the long way.

        out : the last operand; None for a call that writes a new tensor, which ``make`` makes
        """
        try:
            kept = self._kept().get(call.key)
        except TypeError:  # an option that cannot be a key: no valid one
            return None
        if kept is None or kept.bound is None or not kept.holds:
            return None
        addresses = call.addresses
        if out is None and make is not None:
            out = make()
            addresses = [*addresses, out.data_ptr()]
        target, extent = addresses[-1], kept.extents[-1]
        end = target + extent
        for address, size in zip(addresses[:-1], kept.extents, strict=False):
            if address < end and target < address + size:
                return None
        return out if kept.bound(addresses) else None

    def keep(
        self, call: Call, problem: Callable[[], P], operands: tuple[Any, ...], variant: str | None, **options: Any
    ) -> None:
        """Remember a call that went the long way; its launches are kept when it comes a second time.

        operands, options : as the operation's variants got them
        """
        if call.key not in self._seen:
            limit(self._seen)
            self._seen[call.key] = None
            return
        kept = self._kept()
        known = kept.get(call.key)
        if known is not None and known.holds:  # it went the long way for another reason, or always does
            return
        looked = look(operands)
        if looked is None:
            return
        asked = problem()
        kernel = self._operation.load(self._operation.select(asked, variant))
        bound = kernel.kept(asked, *operands, **options) if isinstance(kernel, Kernel) else None
        tensors = [facts for facts in looked.facts if is_tensors(facts)]
        device = tensors[0][3]
        limit(kept)
        kept[call.key] = _Kept(device, capabilities(device), bound, tuple(_extent(*facts[:3]) for facts in tensors))

    def _kept(self) -> dict[Any, _Kept]:
        """Of the switches in force: under others another variant may be chosen."""
        memo: dict[Any, dict[Any, _Kept]] = _switches.current().memo
        return memo.get(self) or memo.setdefault(self, {})


def _extent(shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> int:
    if 0 in shape:
        return 0
    return int(dtype.itemsize * (1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))))


def _alone(torch: Any) -> bool:
    """Whether no mode, transform or forward AD wants to see which operators are called; torch has no public question for it."""
    inside = torch._C
    return not (
        inside._len_torch_dispatch_stack()
        or inside._len_torch_function_stack()
        or inside._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
