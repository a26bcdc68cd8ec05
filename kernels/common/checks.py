"""Checks of what the public functions are given: a TypeError or ValueError names the argument, what it got and what it needs.

The tensors of a function are declared as a table, :class:`Operands`. torch.compile can follow everything but
:func:`check_apart`, which looks at addresses and so belongs inside an operator. An integer is an ``int`` or another
``numbers.Integral`` such as NumPy's, never a bool; a flag is a ``bool`` and nothing else.
"""

from collections.abc import Callable, Sequence
from itertools import chain, product
from numbers import Integral
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn, TypeAlias

import torch
from torch.autograd import forward_ad

from capgate import compat
from capgate.compat.spelling import nearest

_functorch = torch._C._functorch  # of torch.func's transforms; torch has no public question for them

Dim: TypeAlias = str | int
Tensors: TypeAlias = Sequence[torch.Tensor]


class Limit(NamedTuple):
    """The sizes that a named dimension may have: those from ``low`` to ``high``, or only some of them."""

    name: str
    low: int
    high: int = 2**63 - 1
    among: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.among:
            return f"{self.name} in {self.among}"
        return f"{self.name} {self.low} or more" if self.high == 2**63 - 1 else f"{self.name} from {self.low} to {self.high}"

    def allows(self, size: int) -> bool:
        return bool(self.low <= size <= self.high and (not self.among or size in self.among))


def among(name: str, sizes: tuple[int, ...]) -> Limit:
    """The limit of a dimension that has only these sizes."""
    return Limit(name, min(sizes), max(sizes), sizes)


class Derived(NamedTuple):
    """A size that other dimensions' sizes make: ``name`` is ``size`` of those of ``names``."""

    name: str
    size: Callable[..., int]
    names: tuple[str, ...]


class Operand(NamedTuple):
    """A tensor that a function takes.

    shapes : those it may have, no two of one length. A dimension is 1, 2 or a name, which stands for one size in all operands
        of a call.
    dtypes : those it may have; none means that of the call's first operand
    limits : of named dimensions
    derived : more names, for the operands that follow
    """

    name: str
    shapes: tuple[tuple[Dim, ...], ...]
    dtypes: tuple[torch.dtype, ...] = ()
    limits: tuple[Limit, ...] = ()
    derived: tuple[Derived, ...] = ()


class _Line(NamedTuple):
    """What holds of the sizes of operands with certain ranks, put in one line and followed by 1, 2 and the derived ones."""

    same: Callable[[Sequence[int]], tuple[int, ...]]  # of a line: for each place what must stand there
    limits: tuple[tuple[int, Limit], ...]  # and the places they are for
    derived: tuple[tuple[Callable[..., int], tuple[int, ...]], ...]  # and the places they are made of


class Operands:
    """The tensors of a function in order, and the check of a call.

    A call is first held against what was worked out of the table, in the time that asking each tensor for its attributes takes.
    Only when that says no, and under torch.compile, the tensors are gone through one by one for the words.
    """

    def __init__(self, *operands: Operand) -> None:
        self.operands = operands
        choices = product(*(operand.dtypes or operands[0].dtypes for operand in operands))
        same = [place for place, operand in enumerate(operands) if not operand.dtypes]
        self._dtypes = {dtypes for dtypes in choices if all(dtypes[place] == dtypes[0] for place in same)}
        ranks = product(*([len(dims) for dims in operand.shapes] for operand in operands))
        self._lines = {lengths: _line(operands, lengths) for lengths in ranks}

    def check(self, tensors: Tensors, result: str | None = None) -> None:
        """Raise TypeError or ValueError for tensors that are not as declared, or not on one device.

        result : what the function makes and has no gradients, as in ``"the logits"``; with None it has them
        """
        if torch.compiler.is_dynamo_compiling() or not self._fit(tensors, result is not None):
            self._go_through(tensors, result)

    def _fit(self, tensors: Tensors, constant: bool) -> bool:
        """Whether all is well, which :meth:`_go_through` would find too."""
        try:
            shapes = [tensor.shape for tensor in tensors]
            if (line := self._lines.get(tuple(map(len, shapes)))) is None:
                return False
            if tuple([tensor.dtype for tensor in tensors]) not in self._dtypes:
                return False
        except (AttributeError, RuntimeError):  # of what is no tensor, or a nested one
            return False
        device, grad = tensors[0].device, constant and torch.is_grad_enabled()
        for tensor in tensors:
            if tensor.layout is not torch.strided or tensor.device != device or (grad and tensor.requires_grad):
                return False
        sizes = (*chain.from_iterable(shapes), 1, 2)
        if line.derived:
            sizes += tuple([size(*[sizes[place] for place in places]) for size, places in line.derived])
        for place, (_, low, high, some) in line.limits:  # Limit.allows, without a call
            if not low <= sizes[place] <= high or (some and sizes[place] not in some):
                return False
        return line.same(sizes) == sizes and not (constant and _transformed())

    def _go_through(self, tensors: Tensors, result: str | None) -> None:
        sizes: dict[Dim, int] = {1: 1, 2: 2}
        first = self.operands[0].name
        device = dtype = None
        grad, transformed = (False, False) if result is None else (torch.is_grad_enabled(), _transformed())
        for operand, tensor in zip(self.operands, tensors, strict=True):
            name = operand.name
            shape = check_strided(name, tensor).shape
            for dims in operand.shapes:
                if len(dims) == len(shape):
                    break
            else:
                self._refuse_shape(operand, shape, sizes)
            for dim, size in zip(dims, shape, strict=True):
                if dim not in sizes:
                    sizes[dim] = size
                elif sizes[dim] != size:
                    self._refuse_shape(operand, shape, sizes)
            for limit in operand.limits:
                if limit.name in sizes and not limit.allows(sizes[limit.name]):
                    self._refuse_shape(operand, shape, sizes)
            for more in operand.derived:
                sizes[more.name] = more.size(*[sizes[of] for of in more.names])
            if device is None:
                device, dtype = tensor.device, tensor.dtype
            if tensor.dtype not in operand.dtypes and (operand.dtypes or tensor.dtype != dtype):
                needed = _either(operand.dtypes) if operand.dtypes else f"{dtype}, as {first}"
                raise TypeError(f"{name}: got {tensor.dtype}, needs {needed}")
            if tensor.device != device:
                raise ValueError(f"{name}: got device {tensor.device}, needs {first}'s {device}")
            if grad and tensor.requires_grad:
                raise ValueError(f"{name}: requires grad, which does not reach {result}; detach it or use torch.no_grad()")
            if transformed and _differentiated(tensor):
                raise ValueError(f"{name}: torch.func or forward AD differentiates by it, but not {result}; detach it")

    def _refuse_shape(self, operand: Operand, shape: torch.Size, sizes: dict[Dim, int]) -> NoReturn:
        before = self.operands[: self.operands.index(operand)]
        origin = {dim: one.name for one in reversed(before) for dim in (*chain.from_iterable(one.shapes),)}
        origin |= {more.name: one.name for one in before for more in one.derived}
        named = [dim for dim in chain.from_iterable(operand.shapes) if isinstance(dim, str) and dim in origin and dim in sizes]
        wanted = [f"[{', '.join(str(sizes[dim] if dim in named else dim) for dim in dims)}]" for dims in operand.shapes]
        match = f" to match {origin[named[0]]}" if named else ""
        limits = f" with {' and '.join(map(str, operand.limits))}" if operand.limits else ""
        raise ValueError(f"{operand.name}: got shape {tuple(shape)}, needs {' or '.join(wanted)}{match}{limits}")


def _line(operands: tuple[Operand, ...], ranks: tuple[int, ...]) -> _Line:
    shapes = [next(dims for dims in operand.shapes if len(dims) == rank) for operand, rank in zip(operands, ranks, strict=True)]
    derived = [more for operand in operands for more in operand.derived]
    line: list[Dim] = [*chain.from_iterable(shapes), 1, 2, *(more.name for more in derived)]
    place = {name: line.index(name) for name in line}
    place |= {more.name: len(line) - len(derived) + number for number, more in enumerate(derived)}
    place |= {1: len(line) - len(derived) - 2, 2: len(line) - len(derived) - 1}
    limits = [(place[limit.name], limit) for operand in operands for limit in operand.limits if limit.name in place]
    made = [(more.size, tuple(place[name] for name in more.names)) for more in derived]
    return _Line(itemgetter(*(place[name] for name in line)), tuple(limits), tuple(made))


def check_strided(name: str, tensor: Any) -> torch.Tensor:
    """The same tensor; TypeError for what is none of ordinary memory: sparse, mkldnn's, nested, or no tensor at all."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, needs a torch.Tensor")
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else f"a tensor of layout {tensor.layout}"
        raise TypeError(f"{name}: got {kind}, needs one of layout torch.strided")
    return tensor


def pair_of(name: str, value: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and their scales, as DeepGEMM and vLLM pass them; TypeError for what is no pair of tensors."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(isinstance(part, torch.Tensor) for part in value):
        raise TypeError(f"{name}: got {type(value).__name__}, needs a pair of tensors: keys and their scales")
    return check_strided(name, value[0]), check_strided(name, value[1])


def _either(values: Sequence[object]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


# --- gradients ------------------------------------------------------------------------------------------------------------


def _transformed() -> bool:
    """Whether forward AD or one of torch.func's transforms is under way, so that a look at each tensor is worth its time."""
    return forward_ad._current_level >= 0 or _functorch.maybe_current_level() is not None


def _differentiated(tensor: torch.Tensor) -> bool:
    """Whether a transform around this call differentiates by ``tensor``; vmap alone does not, and torch maps over operators."""
    while True:
        if torch.is_grad_enabled() and tensor.requires_grad:
            return True
        wrapped = _functorch.is_functorch_wrapped_tensor(tensor)
        if forward_ad._current_level >= 0 and not (wrapped and _functorch.is_batchedtensor(tensor)):
            # A tangent of an outer level cannot be asked for here.
            if wrapped and _functorch.maybe_get_level(tensor) != _functorch.maybe_current_level():
                return True
            if forward_ad.unpack_dual(tensor).tangent is not None:
                return True
        if not wrapped:
            return False
        tensor = _functorch.get_unwrapped(tensor)


# --- numbers, flags and names ---------------------------------------------------------------------------------------------


def check_flag(name: str, value: bool) -> None:
    """Raise TypeError for what is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}, needs a bool")


def check_integer(name: str, value: int, least: int, most: int | None = None) -> int:
    """``value`` as an int; TypeError for what is no integer, a bool among it, ValueError for one out of bounds."""
    if type(value) is not int and not isinstance(value, torch.SymInt):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}: got {type(value).__name__}, needs an int")
        value = int(value)
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: got {value}, needs {f'{least} or more' if most is None else f'{least} to {most}'}")
    return value


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise TypeError for a value of another type than the choices', ValueError for one that is none of them."""
    if not isinstance(value, type(choices[0])):
        raise TypeError(f"{name}: got {type(value).__name__}, needs {_either(list(map(repr, choices)))}")
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, needs {_either(list(map(repr, choices)))}")


def check_variant(name: str, value: str | None, operation: compat.Operation[Any]) -> None:
    """Raise TypeError for what is neither None nor text, ValueError for text that names no variant of the operation."""
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, needs a str or None")
    if value not in operation.variants:
        raise ValueError(f"{name}: {operation.name} has no variant {value!r}; {nearest(value, operation.variants)}")


# --- memory that is written -----------------------------------------------------------------------------------------------


def check_output(out: torch.Tensor, shape: tuple[int, int], device: torch.device) -> None:
    """Raise TypeError or ValueError for an ``out`` that cannot take float32 logits of this shape, made on q's ``device``."""
    check_strided("out", out)
    if out.shape != shape:
        raise ValueError(f"out: got shape {tuple(out.shape)}, needs {list(shape)}")
    if out.dtype != torch.float32:
        raise TypeError(f"out: got {out.dtype}, needs torch.float32")
    if out.device != device:
        raise ValueError(f"out: got device {out.device}, needs q's {device}")
    if _overlaps(out):
        raise ValueError(f"out: got strides {tuple(out.stride())} for shape {list(shape)}, needs cells that do not overlap")
    if (out.requires_grad and torch.is_grad_enabled()) or (_transformed() and _differentiated(out)):
        raise ValueError("out: requires grad, which the logits do not have")


def _overlaps(out: torch.Tensor) -> bool:
    """Whether two cells of the 2-D ``out`` may share memory."""
    (rows, columns), (row_step, column_step) = out.shape, out.stride()
    if out.numel() == 0:
        return False
    if (rows > 1 and row_step == 0) or (columns > 1 and column_step == 0):
        return True
    return bool(row_step <= column_step * (columns - 1) and column_step <= row_step * (rows - 1))


def check_apart(name: str, written: torch.Tensor, operands: Sequence[Operand], tensors: Sequence[torch.Tensor | None]) -> None:
    """Raise ValueError where an operand, all of which are read, shares memory with what is written.

    Views of one buffer that interleave and do not touch, such as neighbouring columns, are fine where strides show it.
    """
    if written.is_meta:  # it has no memory
        return
    start = written.data_ptr()
    end = start + _extent(written)
    for operand, tensor in zip(operands, tensors, strict=True):
        if tensor is None:
            continue
        first = tensor.data_ptr()
        if first < end and (extent := _extent(tensor)) and start < first + extent and not _interleave(written, tensor):
            raise ValueError(f"{name}: shares memory with {operand.name}, needs memory that the call does not read")


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last one."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return int(tensor.nbytes)
    return int(tensor.itemsize * (1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))))


def _interleave(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether some stride shows that the two share no byte: counted round it, they lie in two arcs that do not touch."""
    gap = other.data_ptr() - one.data_ptr()
    for step in {step * tensor.itemsize for tensor in (one, other) for step in tensor.stride() if step}:
        if _arc(one, step) <= gap % step <= step - _arc(other, step):
            return True
    return False


def _arc(tensor: torch.Tensor, step: int) -> int:
    """Bytes that elements take up, their addresses being counted modulo ``step``."""
    lines = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.itemsize * (1 + sum((size - 1) * line for size, line in lines if line * tensor.itemsize % step)))
