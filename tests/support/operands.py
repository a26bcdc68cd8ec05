"""Calls made from an operation's table of operands: good ones, and every kind of bad one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from capgate.kernels.common.operands import Limit, Operand, Operands

# A size for each name of a dimension; those that are made of others agree.
SIZES: dict[str | int, int] = {1: 1, 2: 2, "S": 3, "N": 5, "H": 16, "D": 32, "T": 3, "B": 3, "next_n": 2, "max_blocks": 2}
SIZES |= {
    "num_blocks": 4,
    "block": 64,
    "D + 4": 36,
    "B * next_n": 6,
    "num_workers + 1": 5,
    "R": 4,
    "P": 6,
    "Dq": 32,
    "Dk": 32,
    "W": 36,
    "L": 3,
    "G": 3,
    "C": 2,
}
OTHER_DTYPES = (torch.float64, torch.float16, torch.int64, torch.int16, torch.uint8, torch.bool, torch.float8_e5m2)


class Bad(NamedTuple):
    """A value of one operand that must be refused: with this error, whose text begins so."""

    kind: str
    value: Any
    error: type[Exception]
    words: str


def zeros(shape: tuple[str | int, ...], dtype: torch.dtype, device: str = "cpu", **sizes: int) -> torch.Tensor:
    return torch.zeros([{**SIZES, **sizes}[dim] for dim in shape], dtype=dtype, device=device)


def dtypes_of(operands: Operands[Any], row: Operand) -> tuple[torch.dtype, ...]:
    """Those that go with a good call's first operand."""
    return row.dtypes or operands.rows[operands.first].dtypes[:1]


def good(operands: Operands[Any]) -> dict[str, torch.Tensor]:
    """Tensors as declared, of zeros; what may be left out is given."""
    return {name: zeros(row.shapes[0], dtypes_of(operands, row)[0]) for name, row in operands.rows.items()}


def outside(limit: Limit) -> Iterator[int]:
    """Sizes that a limit does not allow, next to those that it does."""
    near = {size + step for size in (limit.among or (limit.low, limit.high)) for step in (-1, 1)}
    yield from (size for size in sorted(near) if 0 <= size < 2**16 and not limit.allows(size))


def bad(operands: Operands[Any], name: str) -> Iterator[Bad]:
    """Every kind of bad value for an operand."""
    row, first = operands.rows[name], operands.first
    names = sorted(operands.rows, key=lambda other: other != first)
    before = [operands.rows[other] for other in names[: names.index(name)]]
    known = {dim for other in before for dims in other.shapes for dim in dims} | {1, 2}
    known |= {more.name for other in before for more in other.derived}
    dtypes, got = dtypes_of(operands, row), f"{name}: got "
    dims, dtype = row.shapes[0], dtypes[0]
    yield Bad("list", [1.0], TypeError, f"{got}list, needs a torch.Tensor")
    yield Bad("number", 1.0, TypeError, f"{got}float, needs a torch.Tensor")
    yield Bad("array", zeros(dims, torch.float32).numpy(), TypeError, f"{got}ndarray, needs a torch.Tensor")
    if name not in operands.optional:
        yield Bad("none", None, TypeError, f"{got}NoneType, needs a torch.Tensor")
    yield Bad("scalar", zeros((), dtype), ValueError, f"{got}shape (), needs [")
    for more in (1, 3):
        shape = (*max(row.shapes, key=len), *[1] * more)
        yield Bad(f"{more} dimensions more", zeros(shape, dtype), ValueError, f"{got}shape (")
    for shape in row.shapes:
        for place, dim in enumerate(shape):
            if dim in known:
                sizes = [SIZES[some] + (number == place) for number, some in enumerate(shape)]
                value = torch.zeros(sizes, dtype=dtype)
                yield Bad(f"{shape}: {dim} one more", value, ValueError, f"{got}shape {tuple(sizes)}, needs [")
    for limit in row.limits:
        shape = next(shape for shape in reversed(row.shapes) if limit.name in shape)
        for size in outside(limit):
            value = zeros(shape, dtype, **{limit.name: size})
            yield Bad(f"{limit.name} is {size}", value, ValueError, f"{got}shape {tuple(value.shape)}, needs [")
    others = [other for other in (*OTHER_DTYPES, *operands.rows[first].dtypes) if other not in dtypes]
    for other in others:
        yield Bad(str(other), zeros(dims, other), TypeError, f"{got}{other}, needs torch.")
    if name != first:
        yield Bad("meta", zeros(dims, dtype, "meta"), ValueError, f"{got}device meta, needs {first}'s cpu")
    indices = torch.zeros((len(dims), 0), dtype=torch.int64)
    sparse = torch.sparse_coo_tensor(indices, torch.zeros(0, dtype=dtype), [SIZES[dim] for dim in dims], check_invariants=False)
    yield Bad("sparse", sparse, TypeError, f"{got}a tensor of layout torch.sparse_coo, needs one of layout torch.strided")
    if dtype.is_floating_point:
        yield Bad("requires grad", zeros(dims, dtype).requires_grad_(), ValueError, f"{name}: requires grad, which ")


# --- in words -------------------------------------------------------------------------------------------------------------


def either(values: list[str]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last


def head(operands: Operands[Any], name: str) -> str:
    """What a docstring's parameter section says behind an operand's name."""
    row = operands.rows[name]
    shapes = either([f"({', '.join(map(str, dims))}{',' * (len(dims) == 1)})" for dims in row.shapes])
    dtypes = either([str(dtype).removeprefix("torch.") for dtype in row.dtypes]) if row.dtypes else f"{operands.first}'s dtype"
    defaults = operands.inputs._field_defaults
    left_out = "" if name not in operands.optional else ", optional" if name in defaults else ", or None"
    return f"torch.Tensor, shape {shapes}, {dtypes}{left_out}"


def limits(row: Operand) -> Iterator[str]:
    """What a docstring says of the sizes: "H is 1 to 128"; of the size that a limited one makes, where it is the only one."""
    made = {more.names[0]: more for more in row.derived if len(more.names) == 1}
    for limit in row.limits:
        name, sizes = limit.name, limit.among
        if name in made and sizes and not name.isidentifier():
            name, sizes = made[name].name, tuple(map(made[name].size, sizes))
        bounds = f"{limit.low} or more" if limit.high == 2**63 - 1 else f"{limit.low} to {limit.high}"
        yield f"{name} is {limit.words or (either(list(map(str, sizes))) if sizes else bounds)}"
