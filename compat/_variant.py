"""One implementation of an operation, imported when it is chosen, and what its author may have got wrong."""

import re
from collections.abc import Callable, Hashable, Iterable
from importlib import import_module
from typing import Any, Generic, TypeVar

from ._kernel import Kernel
from .spelling import nearest
from .table import TABLE

P = TypeVar("P", bound=Hashable)
Rule = Callable[[P], str | None]


class Variant(Generic[P]):
    """One implementation of an operation.

    implementation : a function, a :class:`.Kernel`, or ``"package.module:name"`` of one, imported only when it is chosen
    requires : capabilities that must hold on the problem's device
    accepts : a rule that returns None, or the reason why this variant cannot take the problem
    unless_named : a rule that returns None, or the reason why this variant takes the problem only when named
    last_resort : running it on a GPU is worth a warning, because a faster variant was expected there

    Raises TypeError for values of other kinds, ValueError for a required capability that does not exist.
    """

    def __init__(
        self,
        name: str,
        implementation: Callable[..., Any] | Kernel[P] | str,
        *,
        requires: Iterable[str] = (),
        accepts: Rule[P] | None = None,
        unless_named: Rule[P] | None = None,
        last_resort: bool = False,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: got {called(name)}, needs a str, as in @operation.variant('name')")
        if isinstance(implementation, str):
            if not re.fullmatch(r"\w+(\.\w+)*:\w+", implementation):
                raise ValueError(f"implementation: got {implementation!r}, needs 'package.module:name'")
        elif not isinstance(implementation, Kernel) and not callable(implementation):
            words = "a function, a Kernel, or 'package.module:name' of one"
            raise TypeError(f"implementation: got {called(implementation)}, needs {words}")
        for argument, rule in {"accepts": accepts, "unless_named": unless_named}.items():
            if rule is not None and not callable(rule):
                raise TypeError(f"{argument}: got {called(rule)}, needs a function of the problem, or None")
        self.name = name
        self.requires = checked_names("requires", requires, TABLE, "capability")
        self.accepts = accepts
        self.unless_named = unless_named
        self.last_resort = last_resort
        self.added_by: str | None = None  # the distribution, where that is not the operation's own
        self._implementation = implementation

    def load(self) -> Callable[..., Any] | Kernel[P]:
        """The implementation; given as ``"package.module:name"`` its module is imported now, and not before.

        Raises what the import raises, ValueError with the nearest names where the package lacks the module, or the module the
        name, TypeError for what cannot be called.
        """
        implementation = self._implementation
        if isinstance(implementation, str):
            implementation = _find(self.name, *implementation.split(":"))
        if not isinstance(implementation, Kernel) and not callable(implementation):
            raise TypeError(f"variant {self.name!r}: got {type(implementation).__name__}, needs a function or a Kernel")
        self._implementation = implementation
        return implementation

    def __repr__(self) -> str:
        return f"Variant({self.name!r})"


class MisspeltError(ValueError):
    """A variant's "package.module:name" is of nothing that exists: its author's mistake, on every machine."""


def _find(variant: str, module: str, name: str) -> Any:
    parent, _, last = module.rpartition(".")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module or not parent:  # it imports what is not installed here, or is not installed itself
            raise
        from pkgutil import iter_modules

        beside = [entry.name for entry in iter_modules(getattr(import_module(parent), "__path__", ()))]
        raise MisspeltError(f"variant {variant!r}: {parent} has no module {last!r}; {nearest(last, beside)}") from error
    if not hasattr(found, name):
        known = [known for known in vars(found) if not known.startswith("_")]
        raise MisspeltError(f"variant {variant!r}: {module} has no {name!r}; {nearest(name, known)}")
    return getattr(found, name)


def checked_names(argument: str, names: Iterable[str], known: Iterable[str], kind: str) -> tuple[str, ...]:
    """Names that exist, given as an iterable of them."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{argument}: got {called(names)}, needs several names, as in {argument}=[{names!r}]")
    given = tuple(names)
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"{argument}: got {called(name)}, needs names of type str")
        if name not in known:
            raise ValueError(f"{argument}: no {kind} {name!r}; {nearest(name, known)}")
    return given


def called(value: object) -> str:
    """What to call a value of the wrong kind."""
    name = value if isinstance(value, str) else getattr(value, "__name__", None)
    return f"{type(value).__name__} {name!r}" if isinstance(name, str) else type(value).__name__


def checked_reason(reason: object, rule: str) -> str | None:
    """What a rule returned; TypeError where that is neither None nor words."""
    if reason is None or (isinstance(reason, str) and reason):
        return reason
    raise TypeError(f"{rule}: returned {reason!r}, needs None where it takes the problem, or the reason why not, a str")
