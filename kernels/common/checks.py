"""Checks of what the public functions are given: a TypeError or ValueError names the argument, what it got and what it needs.

The tensors of a function are declared as a table of :class:`Operand`. These are plain comparisons, which torch.compile can
follow; only :func:`check_apart` looks at addresses and so belongs inside an operator. An integer is an ``int`` or another
``numbers.Integral`` such as NumPy's, never a bool; a flag is a ``bool`` and nothing else.
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple, NoReturn, TypeAlias

import torch
from torch.autograd import forward_ad

from capgate import compat
from capgate.compat.capabilities import nearest

_functorch = torch._C._functorch  # of torch.func's transforms; torch has no public question for them

Dim: TypeAlias = str | int
Sizes: TypeAlias = dict[Dim, int]


class Between(NamedTuple):
    """Sizes from ``low`` to ``high``; to any, if that is None."""

    low: int
    high: int | None = None

    def __str__(self) -> str:
        return f"{self.low} or more" if self.high is None else f"from {self.low} to {self.high}"


class Operand(NamedTuple):
    """A tensor that a function takes.

    shapes : those it may have, no two of one length. A dimension is 1, 2 or a name, which stands for one size in all operands
        of a call.
    dtypes : those it may have; none means that of the call's first operand
    limits : for names of dimensions, the sizes they may have
    derived : more names, and their sizes worked out of those before them
    optional : whether it may be None
    """

    name: str
    shapes: tuple[tuple[Dim, ...], ...]
    dtypes: tuple[torch.dtype, ...] = ()
    limits: tuple[tuple[str, Between | tuple[int, ...]], ...] = ()
    derived: tuple[tuple[str, Callable[[Sizes], int]], ...] = ()
    optional: bool = False


def check_operands(operands: tuple[Operand, ...], tensors: Sequence[torch.Tensor | None], result: str | None = None) -> Sizes:
    """Raise TypeError or ValueError for tensors that are not as declared, or not on one device; return the named sizes.

    result : what the function makes and has no gradients, as in ``"the logits"``; with None it has them
    """
    sizes: Sizes = {1: 1, 2: 2}
    device = dtype = None
    grad, transformed = (False, False) if result is None else (torch.is_grad_enabled(), _transformed())
    for operand, tensor in zip(operands, tensors, strict=True):
        name, shapes, dtypes, limits, derived, optional = operand
        if tensor is None and optional:
            continue
        tensor = check_strided(name, tensor)
        shape = tensor.shape
        for dims in shapes:
            if len(dims) == len(shape):
                break
        else:
            _refuse_shape(operands, operand, shape, sizes)
        for dim, size in zip(dims, shape, strict=True):
            if dim not in sizes:
                sizes[dim] = size
            elif sizes[dim] != size:
                _refuse_shape(operands, operand, shape, sizes)
        for limited, allowed in limits:
            if limited in sizes and not _within(sizes[limited], allowed):
                _refuse_shape(operands, operand, shape, sizes)
        for more, size_of in derived:
            sizes[more] = size_of(sizes)
        found, where = tensor.dtype, tensor.device
        if device is None:
            device, dtype = where, found
        if found not in dtypes and (dtypes or found != dtype):
            needed = _either(dtypes) if dtypes else f"{dtype}, as {operands[0].name}"
            raise TypeError(f"{name}: got {found}, needs {needed}")
        if where != device:
            raise ValueError(f"{name}: got device {where}, needs {operands[0].name}'s {device}")
        if grad and tensor.requires_grad:
            raise ValueError(f"{name}: requires grad, which does not reach {result}; detach it or use torch.no_grad()")
        if transformed and _differentiated(tensor):
            raise ValueError(f"{name}: is differentiated by torch.func or forward AD, which does not reach {result}; detach it")
    return sizes


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
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: got {type(value).__name__}, needs a pair of tensors: keys and their scales")
    return check_strided(f"{name}[0]", value[0]), check_strided(f"{name}[1]", value[1])


def _within(size: int, allowed: Between | tuple[int, ...]) -> bool:
    if not isinstance(allowed, Between):
        return size in allowed
    return bool(allowed.low <= size and (allowed.high is None or size <= allowed.high))


def _refuse_shape(operands: tuple[Operand, ...], operand: Operand, shape: torch.Size, sizes: Sizes) -> NoReturn:
    before = operands[: operands.index(operand)]
    origin = {dim: one.name for one in reversed(before) for dims in one.shapes for dim in dims if isinstance(dim, str)}
    origin |= {name: one.name for one in reversed(before) for name, _ in one.derived}
    named = [dim for dims in operand.shapes for dim in dims if dim in origin and dim in sizes]
    wanted = [f"[{', '.join(str(sizes[dim] if dim in named else dim) for dim in dims)}]" for dims in operand.shapes]
    limits = [f"{dim} {allowed if isinstance(allowed, Between) else f'in {allowed}'}" for dim, allowed in operand.limits]
    match = f" to match {origin[named[0]]}" if named else ""
    raise ValueError(
        f"{operand.name}: got shape {tuple(shape)}, needs {' or '.join(wanted)}{match}"
        f"{' with ' if limits else ''}{' and '.join(limits)}"
    )


def _either(values: Sequence[object]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


# --- gradients ------------------------------------------------------------------------------------------------------------


def _transformed() -> bool:
    """Whether forward AD or one of torch.func's transforms is under way, so that a look at each tensor is worth its time."""
    return forward_ad._current_level >= 0 or _functorch.peek_interpreter_stack() is not None


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
    if out.is_neg() or out._is_zerotensor():
        raise ValueError("out: got a view that torch negates or takes for zeros when it is read, needs plain memory")
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


def check_apart(
    name: str, written: torch.Tensor, operands: tuple[Operand, ...], tensors: Sequence[torch.Tensor | None]
) -> None:
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
        return tensor.nbytes
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


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
    return tensor.itemsize * (1 + sum((size - 1) * line for size, line in lines if line * tensor.itemsize % step))
