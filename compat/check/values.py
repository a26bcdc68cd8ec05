"""Arguments of a launch as JSON, and what stands for them where it is compiled again.

Kept is what Triton compiles for: dtypes, alignments, integers, constants. Contents and addresses are not.
"""

import dataclasses
import enum
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

Described = dict[str, Any]

ALIGNMENT = 16  # bytes; what Triton specialises on
FAR = 2**31 - 1  # bytes of a storage up to which Triton takes an AMD pointer's offsets for 32 bits wide

# Triton's names of dtypes where they are not torch's.
_TORCH_NAMES = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "fp64": "float64",
    "fp8e4nv": "float8_e4m3fn",
    "fp8e5": "float8_e5m2",
    "fp8e4b8": "float8_e4m3fnuz",
    "fp8e5b16": "float8_e5m2fnuz",
    "int1": "bool",
}


class UnrecordableError(Exception):
    """Why an argument cannot be written down, in words."""


class Reference(NamedTuple):
    """Something that a module defines: a function, a class or a kernel."""

    module: str
    name: str


def describe(value: Any, refer: Callable[[Any], Described]) -> Described:
    """An argument as JSON types, with its ``kind``.

    refer : describes a function, or raises UnrecordableError

    Raises UnrecordableError for what another process could not be given.
    """
    if value is None or isinstance(value, bool | str):
        return {"kind": "constant", "value": value}
    if isinstance(value, enum.Enum):
        return {"kind": "enum", "type": _type(value), "name": value.name}
    if isinstance(value, int):
        return {"kind": "int", "value": int(value)}
    if isinstance(value, float):
        return {"kind": "float", "value": value if math.isfinite(value) else str(value)}
    if hasattr(value, "data_ptr") and hasattr(value, "dtype"):
        return _tensor(value)
    module, name = type(value).__module__, type(value).__name__
    if name == "constexpr" and module.startswith("triton."):
        return describe(value.value, refer)
    if name == "dtype" and module.partition(".")[0] in ("torch", "triton"):
        return {"kind": "dtype", "name": _dtype(value), "of": module.partition(".")[0]}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        named = {"type": _type(value)} if hasattr(value, "_fields") else {}
        return {"kind": kind, **named, "items": [describe(item, refer) for item in value]}
    if dataclasses.is_dataclass(value):
        # What has its default is left to the class: a field that another Triton does not have is no obstacle then.
        given = [
            field for field in dataclasses.fields(value) if field.init and not _is_default(field, getattr(value, field.name))
        ]
        fields = {field.name: getattr(value, field.name) for field in given}
        return {
            "kind": "object",
            "type": _type(value),
            "fields": {key: describe(field, refer) for key, field in fields.items()},
        }
    if callable(value) or hasattr(value, "fn"):
        return refer(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # numpy's numbers
        return describe(value.item(), refer)
    raise UnrecordableError(f"a {module}.{name}, which no file can hold")


def specialisation(described: Described, constant: bool) -> Any:
    """What of an argument Triton's choice of code depends on.

    constant : whether the kernel declares it tl.constexpr
    """
    if constant:
        return repr(described)
    kind = described["kind"]
    if kind == "int":
        value = described["value"]
        return kind, value == 1, value % ALIGNMENT == 0, -(2**31) <= value < 2**31, value < 2**63
    if kind == "float" or (kind == "constant" and isinstance(described["value"], bool)):
        return kind
    if kind in ("tuple", "list"):
        return kind, *(specialisation(item, False) for item in described["items"])
    if kind == "object":
        return (
            described["type"],
            *((name, specialisation(field, name not in ("shape", "strides"))) for name, field in described["fields"].items()),
        )
    return repr(described)


def words(described: Described) -> str:
    """An argument for people: ``*float32``, ``4096``, ``'none'``; a pointer that is not aligned has a question mark."""
    kind = described["kind"]
    if kind == "tensor":
        return f"*{described['dtype']}{'' if described['aligned'] else '?'}"
    if kind in ("int", "float"):
        return str(described["value"])
    if kind == "constant":
        return repr(described["value"])
    if kind in ("tuple", "list"):
        return f"({', '.join(map(words, described['items']))})"
    if kind == "object":
        return f"{described['type'].rpartition(':')[2]}({', '.join(map(words, described['fields'].values()))})"
    return str(described["name"])


# --- back again -----------------------------------------------------------------------------------------------------------


class Pointer:
    """A tensor as far as Triton's binder looks at one."""

    def __init__(self, dtype: Any, aligned: bool, small: bool) -> None:
        self.dtype = dtype
        self._address = 0 if aligned else 1
        self._bytes = 0 if small else FAR + 1

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return self._bytes


def rebuild(described: Described, find: Callable[[Described], Any]) -> Any:
    """What an argument was described from, tensors as :class:`Pointer`.

    find : the function that a description refers to

    Raises whatever this Triton's classes do where they take other fields than those of the recording's.
    """
    kind = described["kind"]
    if kind == "tensor":
        return Pointer(_dtype_of(described["dtype"]), described["aligned"], described["small"])
    if kind == "constant":
        return described["value"]
    if kind == "int":
        return described["value"]
    if kind == "float":
        return float(described["value"])
    if kind == "dtype":
        return _dtype_of(described["name"], described["of"])
    if kind == "enum":
        return getattr(_class(described["type"]), described["name"])
    if kind in ("tuple", "list"):
        items = [rebuild(item, find) for item in described["items"]]
        if "type" in described:
            return _class(described["type"])(*items)
        return tuple(items) if kind == "tuple" else items
    if kind == "object":
        return _class(described["type"])(**{name: rebuild(field, find) for name, field in described["fields"].items()})
    return find(described)


def _tensor(value: Any) -> Described:
    size = getattr(value.dtype, "itemsize", 1)
    if type(value).__name__ in ("FakeTensor", "FunctionalTensor") or str(getattr(value, "device", "")) == "meta":
        aligned = value.storage_offset() * size % ALIGNMENT == 0  # without an address, as one that torch has allocated
    else:
        aligned = value.data_ptr() % ALIGNMENT == 0
    storage = getattr(value, "untyped_storage", None)
    small = storage is not None and storage().size() <= FAR
    return {"kind": "tensor", "dtype": _dtype(value.dtype), "aligned": aligned, "small": small}


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return default is not dataclasses.MISSING and type(default) is type(value) and bool(default == value)


def _dtype(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return _TORCH_NAMES.get(name, name)


def _dtype_of(name: str, of: str = "torch") -> Any:
    """torch's dtype, or Triton's where torch has none of this name or Triton's is asked for."""
    if of == "torch":
        with suppress(ModuleNotFoundError, AttributeError):
            return getattr(import_module("torch"), name)
    import triton.language as tl

    return tl.dtype(next((theirs for theirs, ours in _TORCH_NAMES.items() if ours == name), name))


def _type(value: Any) -> str:
    kind = type(value)
    if "<locals>" in kind.__qualname__:
        raise UnrecordableError(f"a {kind.__module__}.{kind.__qualname__}, which is defined inside a function")
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(text: str) -> Any:
    module, _, name = text.partition(":")
    found = sys.modules.get(module) or import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
