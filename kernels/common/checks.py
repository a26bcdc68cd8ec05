"""Checks of what the public functions are given: a TypeError or ValueError names the argument, what it got and what it needs.

The tensors of a function are declared, and checked together: see :mod:`.operands`. torch.compile can follow everything but
:func:`check_apart`, which looks at addresses and so belongs inside an operator. An integer is an ``int`` or another
``numbers.Integral`` such as NumPy's, never a bool; a flag is a ``bool`` and nothing else.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch.autograd import forward_ad

from capgate import compat
from capgate.compat.spelling import nearest

Inputs: TypeAlias = Any  # a NamedTuple of tensors: no type says so

_functorch = torch._C._functorch  # of torch.func's transforms; torch has no public question for them


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


def either(values: Sequence[object]) -> str:
    """Values in words: "a, b or c"."""
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


# --- gradients ------------------------------------------------------------------------------------------------------------


def transformed() -> bool:
    """Whether forward AD or one of torch.func's transforms is under way, so that a look at each tensor is worth its time."""
    return forward_ad._current_level >= 0 or _functorch.maybe_current_level() is not None


def differentiated(tensor: torch.Tensor) -> bool:
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


def check_among(name: str, value: int, choices: tuple[int, ...]) -> int:
    """``value`` as an int; TypeError for what is no integer, ValueError for one that is not among the choices."""
    value = check_integer(name, value, 1)
    if value not in choices:
        raise ValueError(f"{name}: got {value}, needs {either(choices)}")
    return value


def check_shared(name: str, tensor: torch.Tensor, rows: int) -> None:
    """Raise ValueError unless ``rows`` rows are as many for each entry along the tensor's first dimension."""
    if rows != rows // max(1, len(tensor)) * len(tensor):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, needs a first size that divides the {rows} rows")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise TypeError for a value of another type than the choices', ValueError for one that is none of them."""
    if not isinstance(value, type(choices[0])):
        raise TypeError(f"{name}: got {type(value).__name__}, needs {either(list(map(repr, choices)))}")
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, needs {either(list(map(repr, choices)))}")


def check_variant(name: str, value: str | None, operation: compat.Operation[Any]) -> None:
    """Raise TypeError for what is neither None nor text, ValueError for text that names no variant of the operation."""
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, needs a str or None")
    if value not in operation.variants:
        raise ValueError(f"{name}: {operation.name} has no variant {value!r}; {nearest(value, operation.variants)}")


# --- memory that is written -----------------------------------------------------------------------------------------------


def check_output(
    out: torch.Tensor, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise TypeError or ValueError for an ``out`` that cannot take logits of this shape, made on q's ``device``.

    dtype : what was asked for; the first of ``dtypes``, which a function takes by default, leaves the choice to ``out``
    """
    check_strided("out", out)
    if out.shape != shape:
        raise ValueError(f"out: got shape {tuple(out.shape)}, needs {list(shape)}")
    check_memory("out", out, dtypes, device, "q's", "the logits do")
    if dtype not in (dtypes[0], out.dtype):
        raise TypeError(f"out: got {out.dtype} with logits_dtype {dtype}, needs the same; without logits_dtype out's is taken")
    if _overlaps(out):
        raise ValueError(f"out: got strides {tuple(out.stride())} for shape {list(shape)}, needs cells that do not overlap")


def check_memory(
    name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device, whose: str, what: str
) -> None:
    """Raise TypeError or ValueError for a tensor of another dtype or device, or one with gradients, that is to be written.

    whose, what : words for the operands that have the device, "q's", and for the result, "the logits do"
    """
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: got {tensor.dtype}, needs {either(dtypes)}")
    if tensor.device != device:
        raise ValueError(f"{name}: got device {tensor.device}, needs {whose} {device}")
    if (tensor.requires_grad and torch.is_grad_enabled()) or (transformed() and differentiated(tensor)):
        raise ValueError(f"{name}: requires grad, which {what} not have")


def _overlaps(out: torch.Tensor) -> bool:
    """Whether two cells of the 2-D ``out`` may share memory."""
    (rows, columns), (row_step, column_step) = out.shape, out.stride()
    if out.numel() == 0:
        return False
    if (rows > 1 and row_step == 0) or (columns > 1 and column_step == 0):
        return True
    return bool(row_step <= column_step * (columns - 1) and column_step <= row_step * (rows - 1))


def check_apart(name: str, written: torch.Tensor, inputs: Inputs) -> None:
    """Raise ValueError where an operand shares memory with what is written; all of them are read, but for one of that name.

    Views of one buffer that interleave and do not touch, such as neighbouring columns, are fine where strides show it.
    """
    if written.is_meta:  # it has no memory
        return
    start = written.data_ptr()
    end = start + _extent(written)
    for operand, tensor in zip(inputs._fields, inputs, strict=True):
        if tensor is None or operand == name:
            continue
        first = tensor.data_ptr()
        if first < end and (extent := _extent(tensor)) and start < first + extent and not _interleave(written, tensor):
            raise ValueError(f"{name}: shares memory with {operand}, needs memory that the call does not read")


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
