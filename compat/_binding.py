"""Finding out whether a call's launches can be kept for calls like it, and keeping them: see :mod:`._bound`.

The launches are prepared once more from meta tensors, which have neither contents nor addresses. What comes out as it did is of
all calls like this one; a tensor among the arguments is said by which operand's memory it lies in, and how far inside.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ._bound import Bound, Launcher, Slot, launcher_of, tensors_of
from ._errors import of_the_machine
from ._probes import parameters_of


def bind(
    prepare: Callable[..., Sequence[Any]],
    operands: Sequence[Any],
    options: dict[str, Any],
    addresses: Sequence[int],
    launches: Sequence[Any],
    compiled: Sequence[Any],
) -> Bound | None:
    """Keep a call that has just been launched; None where that cannot be.

    prepare : makes the launches of the call from operands and options
    addresses : of the tensors among the operands and the options, in their order
    launches, compiled : those that were made, and what Triton says that it launched
    """
    import torch

    given = tensors_of((*operands, *options.values()))
    if not given or not _plain(launches, compiled):
        return None
    tensors: list[Any] = []
    again = [_meta(operand, tensors) for operand in operands]
    options = {name: _meta(option, tensors) for name, option in options.items()}
    watch = _watcher()
    try:
        with watch:
            twins = prepare(*again, **options)
    except Exception as error:  # of a kernel that prepares from real tensors alone
        if of_the_machine(error):
            raise
        return None
    if watch.other or len(twins) != len(launches):
        return None
    places = {tensor.untyped_storage()._cdata: number for number, tensor in enumerate(tensors)}
    scratch: list[Any] = []
    launchers = []
    for launch, twin, kernel in zip(launches, twins, compiled, strict=True):
        slots: list[Slot] = []
        names = launch.kernel.arg_names
        if twin.kernel is not launch.kernel or twin.grid != launch.grid or twin.keywords != launch.keywords:
            return None
        arguments = _defaults(launch.kernel) | dict(zip(names, launch.arguments, strict=False)) | launch.keywords
        if len(twin.arguments) != len(launch.arguments) or any(name not in arguments for name in names):
            return None
        for place, (real, meta) in enumerate(zip(launch.arguments, twin.arguments, strict=True)):
            slot = _slot(place, real, meta, places, addresses, scratch, watch.made)
            if slot is not None:
                slots.append(slot)
            elif type(real) is not type(meta) or isinstance(real, torch.Tensor) or real != meta:
                return None
        parts = launcher_of(kernel.run)
        if parts is None:
            return None
        grid = (*launch.grid, 1, 1)[:3]
        values = [arguments[name] for name in names]
        for place, *_ in slots:
            values[place] = None  # what it was is not kept alive
        launchers.append(Launcher(kernel, grid, tuple(values), tuple(slots), *parts))
    return Bound(launchers, [_maker(storage, given[0].device) for storage in scratch])


def _defaults(kernel: Any) -> dict[str, Any]:
    """The kernel's parameters that a launch need not name, with what they are then."""
    return {name: each.default for name, each in parameters_of(kernel.fn).items() if each.default is not each.empty}


def _plain(launches: Sequence[Any], compiled: Sequence[Any]) -> bool:
    """Whether ordinary kernels were launched: none of an autotuner, none in the interpreter, none with hooks of its own."""
    jit = sys.modules.get("triton.runtime.jit")
    kind = getattr(jit, "JITFunction", None)
    return kind is not None and all(
        isinstance(launch.kernel, kind)
        and type(launch.kernel).run is kind.run
        and not launch.kernel.pre_run_hooks
        and hasattr(kernel, "function")
        for launch, kernel in zip(launches, compiled, strict=True)
    )


def _meta(operand: Any, tensors: list[Any]) -> Any:
    """The operand with meta tensors in the place of its tensors, which are collected."""
    import torch

    if isinstance(operand, torch.Tensor):
        made = torch.empty_strided(operand.shape, operand.stride(), dtype=operand.dtype, device="meta")
        tensors.append(made)
        return made
    if isinstance(operand, tuple):
        parts = [_meta(part, tensors) for part in operand]
        return operand._make(parts) if hasattr(operand, "_make") else tuple(parts)
    return operand


def _slot(
    place: int,
    real: Any,
    meta: Any,
    places: dict[int, int],
    addresses: Sequence[int],
    scratch: list[Any],
    made: Sequence[Any],
) -> Slot | None:
    """Where the argument's address comes from; None for what has none, or one that cannot be said.

    places : which operand has a storage
    scratch : storages that are no operand's, and follow them; only those of tensors that were ``made`` meanwhile can be
    """
    import torch

    descriptor = None
    if hasattr(real, "base") and hasattr(meta, "base"):
        if not _alike(real, meta):
            return None
        descriptor, real, meta = meta, real.base, meta.base
    if not isinstance(real, torch.Tensor) or not isinstance(meta, torch.Tensor) or real.dtype != meta.dtype:
        return None
    storage = meta.untyped_storage()
    offset = meta.storage_offset() * meta.itemsize
    if storage._cdata not in places:
        if all(storage._cdata != tensor.untyped_storage()._cdata for tensor in made):
            return None
        places[storage._cdata] = len(addresses) + len(scratch)
        scratch.append(storage)
        return Slot(place, places[storage._cdata], offset, descriptor)
    operand = places[storage._cdata]
    if operand < len(addresses) and real.data_ptr() != addresses[operand] + offset:
        return None
    return Slot(place, operand, offset, descriptor)


def _alike(one: Any, other: Any) -> bool:
    """Whether two tensor descriptors differ in their tensors alone."""
    mine, yours = vars(one), vars(other)
    return type(one) is type(other) and all(
        name == "base" or (name in yours and _listed(value) == _listed(yours[name])) for name, value in mine.items()
    )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _maker(storage: Any, device: Any) -> Callable[[], Any]:
    import torch

    size = storage.nbytes()
    return lambda: torch.empty(size, dtype=torch.uint8, device=device)


def _watcher() -> Any:
    """A context that collects the empty tensors that are made in it, and notes whether anything but views is made besides."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed where types are checked
        other = False
        made: list[Any]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func._schema.name.partition("::")[2].startswith(("empty", "new_empty")):
                self.made.append(result)
            elif not func.is_view:
                self.other = True
            return result

    watch = Watch()
    watch.made = []
    return watch
