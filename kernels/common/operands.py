"""The tensors that a function takes, declared once: names, shapes, dtypes and limits, and the check of a call.

An operation declares them as a NamedTuple, which is what its operators and variants get::

    class Inputs(NamedTuple):
        x: Annotated[torch.Tensor, Operand((("rows", "columns"),), (torch.float32,))]
        factor: Annotated[torch.Tensor | None, Operand((("rows",),), (torch.float32,))] = None  # it may be left out

    OPERANDS = Operands(Inputs)
    OPERANDS.check(Inputs(x, factor), "the result")

torch.compile can follow the check.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import chain, combinations, product
from operator import attrgetter, itemgetter
from typing import Any, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar, get_args, get_type_hints

import torch

from .checks import check_strided, differentiated, either, transformed

Dim: TypeAlias = str | int
Tensors: TypeAlias = Sequence[torch.Tensor]
I = TypeVar("I", bound=tuple[Any, ...])  # noqa: E741 - the inputs of an operation, a NamedTuple

MOST = 1024  # looks of calls that are remembered for a function, of some hundred bytes each
_LOOK = attrgetter("shape", "dtype", "device", "layout", "requires_grad")


class Limit(NamedTuple):
    """The sizes that a named dimension may have: those from ``low`` to ``high``, or only some, which ``words`` may describe."""

    name: str
    low: int
    high: int = 2**63 - 1
    among: tuple[int, ...] = ()
    words: str = ""

    def __str__(self) -> str:
        if self.among:
            return f"{self.name} {self.words or f'in {self.among}'}"
        return f"{self.name} {self.low} or more" if self.high == 2**63 - 1 else f"{self.name} from {self.low} to {self.high}"

    def allows(self, size: int) -> bool:
        return bool(self.low <= size <= self.high and (not self.among or size in self.among))


def among(name: str, sizes: tuple[int, ...], words: str = "") -> Limit:
    """The limit of a dimension that has only these sizes, which ``words`` may describe."""
    return Limit(name, min(sizes), max(sizes), sizes, words)


class Derived(NamedTuple):
    """A size that other dimensions' sizes make: ``name`` is ``size`` of those of ``names``."""

    name: str
    size: Callable[..., int]
    names: tuple[str, ...]


class Operand(NamedTuple):
    """A tensor that a function takes.

    shapes : those it may have, no two of one length. A dimension is 1, 2 or a name, which stands for one size in all operands
        of a call.
    dtypes : those it may have; none means that of the operand that is checked first
    limits : of named dimensions
    derived : more names, for the operands that are checked later
    written : whether the call writes it, too
    """

    shapes: tuple[tuple[Dim, ...], ...]
    dtypes: tuple[torch.dtype, ...] = ()
    limits: tuple[Limit, ...] = ()
    derived: tuple[Derived, ...] = ()
    written: bool = False


class _Line(NamedTuple):
    """What holds of the sizes of operands with certain ranks, put in one line and followed by 1, 2 and the derived ones."""

    same: Callable[[Sequence[int]], tuple[int, ...]]  # of a line: for each place what must stand there
    limits: tuple[tuple[int, Limit], ...]  # and the places they are for
    derived: tuple[tuple[Callable[..., int], tuple[int, ...]], ...]  # and the places they are made of


class _Given(NamedTuple):
    """What holds of a call in which certain operands are given."""

    dtypes: frozenset[tuple[torch.dtype, ...]]
    lines: dict[tuple[int, ...], _Line]  # by ranks


class Operands(Generic[I]):
    """The tensors of a function in order, and the check of a call.

    inputs : a NamedTuple, with fields ``Annotated[torch.Tensor, Operand(...)]``, of ``torch.Tensor | None`` for an
        operand that may be left out
    first : the operand that the others are held against, and so checked before them; the first field otherwise

    A call is first looked up among those that were well, in the time that asking each tensor for its attributes takes, and then
    held against what was worked out of the table. Only when that says no, and under torch.compile, the tensors are gone through
    one by one for the words.
    """

    def __init__(self, inputs: type[I], *, first: str | None = None) -> None:
        self.inputs = inputs
        self.rows: dict[str, Operand] = {}
        self.optional: set[str] = set()
        for name, hint in get_type_hints(inputs, include_extras=True).items():
            kind, self.rows[name] = get_args(hint)
            if type(None) in get_args(kind):
                self.optional.add(name)
        names = list(self.rows)
        self.first = first or names[0]
        self._first = names.index(self.first)
        # In the order of the checks: name, place among the fields, and the row.
        checks = [(name, place, row) for place, (name, row) in enumerate(self.rows.items())]
        self._checks = tuple(sorted(checks, key=lambda check: check[1] != self._first))
        self._optional = tuple(place for place, name in enumerate(names) if name in self.optional)
        left_out = chain.from_iterable(combinations(self._optional, count) for count in range(len(self._optional) + 1))
        self._given = {missing: self._work_out(missing) for missing in left_out}
        self._well: dict[Any, bool] = {}  # looks of calls that were as declared: whether one requires grad

    def schema(self, left_out: Collection[str] = ()) -> str:
        """The operands as arguments of a torch operator, "Tensor q, Tensor? schedule"; without some that may be left out."""
        written = [name for name, row in self.rows.items() if row.written]
        alias = {name: f"({chr(ord('a') + place)}!)" for place, name in enumerate(written)}
        kinds = {name: f"Tensor{alias.get(name, '')}{'?' * (name in self.optional)}" for name in self.rows}
        return ", ".join(f"{kind} {name}" for name, kind in kinds.items() if name not in left_out)

    def check(self, tensors: Tensors, result: str | None = None) -> None:
        """Raise TypeError or ValueError for tensors that are not as declared, or not on one device.

        tensors : one for each field, None for what is left out
        result : what the function makes and has no gradients, as in ``"the logits"``; with None it has them
        """
        if torch.compiler.is_dynamo_compiling() or not self._fit(tensors, result is not None):
            self._go_through(tensors, result)

    def _fit(self, tensors: Tensors, constant: bool) -> bool:
        """Whether all is well, which :meth:`_go_through` would find too."""
        left_out: tuple[int, ...] = ()
        for place in self._optional:
            if tensors[place] is None:
                left_out += (place,)
        if left_out:
            tensors = [tensor for place, tensor in enumerate(tensors) if place not in left_out]
        try:
            looks = tuple(map(_LOOK, tensors))
            requires_grad = self._well.get((left_out, looks))
        except (AttributeError, RuntimeError, TypeError):  # of what is no tensor, or a nested one, or has symbolic sizes
            return False
        if requires_grad is None:
            if not self._declared(left_out, looks):
                return False
            if len(self._well) >= MOST:
                self._well.clear()
            requires_grad = self._well[left_out, looks] = any(look[-1] for look in looks)
        return not constant or not ((requires_grad and torch.is_grad_enabled()) or transformed())

    def _declared(self, left_out: tuple[int, ...], looks: Sequence[tuple[Any, ...]]) -> bool:
        """Whether tensors that look so are as declared, gradients aside."""
        dtypes, lines = self._given[left_out]
        shapes = [look[0] for look in looks]
        line = lines.get(tuple(map(len, shapes)))
        if line is None or tuple([look[1] for look in looks]) not in dtypes:
            return False
        device = looks[0][2]
        for _, _, other, layout, _ in looks:
            if layout is not torch.strided or other != device:
                return False
        sizes = (*chain.from_iterable(shapes), 1, 2)
        if line.derived:
            sizes += tuple([size(*[sizes[place] for place in places]) for size, places in line.derived])
        for place, (_, low, high, some, _) in line.limits:  # Limit.allows, without a call
            if not low <= sizes[place] <= high or (some and sizes[place] not in some):
                return False
        return line.same(sizes) == sizes

    def _work_out(self, left_out: tuple[int, ...]) -> _Given:
        given = [(row, place == self._first) for place, row in enumerate(self.rows.values()) if place not in left_out]
        rows = [row for row, _ in given]
        same = [number for number, (row, is_first) in enumerate(given) if is_first or not row.dtypes]
        choices = product(*(row.dtypes or self.rows[self.first].dtypes for row in rows))
        dtypes = frozenset(taken for taken in choices if len({taken[number] for number in same}) == 1)
        ranks = product(*([len(dims) for dims in row.shapes] for row in rows))
        return _Given(dtypes, {lengths: _line(rows, lengths) for lengths in ranks})

    def _go_through(self, tensors: Tensors, result: str | None) -> None:
        sizes: dict[Dim, int] = {1: 1, 2: 2}
        first = self.first
        device = dtype = None
        grad, changed = (False, False) if result is None else (torch.is_grad_enabled(), transformed())
        for name, place, row in self._checks:
            tensor = tensors[place]
            if tensor is None and place in self._optional:
                continue
            shape = check_strided(name, tensor).shape
            for dims in row.shapes:
                if len(dims) == len(shape):
                    break
            else:
                self._refuse_shape(name, shape, sizes)
            for dim, size in zip(dims, shape, strict=True):
                if dim not in sizes:
                    sizes[dim] = size
                elif sizes[dim] != size:
                    self._refuse_shape(name, shape, sizes)
            for limit in row.limits:
                if limit.name in sizes and not limit.allows(sizes[limit.name]):
                    self._refuse_shape(name, shape, sizes)
            for more in row.derived:
                sizes[more.name] = more.size(*[sizes[of] for of in more.names])
            if device is None:
                device, dtype = tensor.device, tensor.dtype
            if tensor.dtype not in row.dtypes and (row.dtypes or tensor.dtype != dtype):
                needed = either(row.dtypes) if row.dtypes else f"{dtype}, as {first}"
                raise TypeError(f"{name}: got {tensor.dtype}, needs {needed}")
            if tensor.device != device:
                raise ValueError(f"{name}: got device {tensor.device}, needs {first}'s {device}")
            if grad and tensor.requires_grad:
                raise ValueError(f"{name}: requires grad, which does not reach {result}; detach it or use torch.no_grad()")
            if changed and differentiated(tensor):
                raise ValueError(f"{name}: torch.func or forward AD differentiates by it, but not {result}; detach it")

    def _refuse_shape(self, name: str, shape: torch.Size, sizes: dict[Dim, int]) -> NoReturn:
        order = [other for other, _, _ in self._checks]
        row, before = self.rows[name], {other: self.rows[other] for other in order[: order.index(name)]}
        origin = {dim: other for other in reversed(before) for dim in (*chain.from_iterable(before[other].shapes),)}
        origin |= {more.name: other for other in before for more in before[other].derived}
        named = [dim for dim in chain.from_iterable(row.shapes) if isinstance(dim, str) and dim in origin and dim in sizes]
        wanted = [f"[{', '.join(str(sizes[dim] if dim in named else dim) for dim in dims)}]" for dims in row.shapes]
        match = f" to match {origin[named[0]]}" if named else ""
        limits = f" with {' and '.join(map(str, row.limits))}" if row.limits else ""
        raise ValueError(f"{name}: got shape {tuple(shape)}, needs {' or '.join(wanted)}{match}{limits}")


def _line(rows: Sequence[Operand], ranks: tuple[int, ...]) -> _Line:
    shapes = [next(dims for dims in row.shapes if len(dims) == rank) for row, rank in zip(rows, ranks, strict=True)]
    derived = [more for row in rows for more in row.derived]
    line: list[Dim] = [*chain.from_iterable(shapes), 1, 2, *(more.name for more in derived)]
    place = {name: line.index(name) for name in line}
    place |= {more.name: len(line) - len(derived) + number for number, more in enumerate(derived)}
    place |= {1: len(line) - len(derived) - 2, 2: len(line) - len(derived) - 1}
    limits = [(place[limit.name], limit) for row in rows for limit in row.limits if limit.name in place]
    made = [(more.size, tuple(place[name] for name in more.names)) for more in derived]
    return _Line(itemgetter(*(place[name] for name in line)), tuple(limits), tuple(made))
