"""The CAPGATE_* variables and the override() context, with NumPy's strictness: a name that does not exist is an error.

========================  ==================================  ================================================
variable                  example                             effect
========================  ==================================  ================================================
``CAPGATE_DISABLE``       ``gluon,wgmma``                     these capabilities, and all that need them, do not hold
``CAPGATE_ENABLE``        ``packed_clamp``                    these hold where they may, though no hardware has shown them
``CAPGATE_VARIANT``       ``fp8_mqa_logits=classic``          this operation takes this variant, or raises
``CAPGATE_TARGET``        ``hip:gfx950``                      the target meant when no device is named
``CAPGATE_STRICT``        ``1``                               a variant that does not compile raises
``CAPGATE_TUNINGS``       ``h200.json``                       these tunings of this GPU, over those of the tables
``CAPGATE_MEASURE``       ``1``                               the fastest of the variants that can is taken, once timed
========================  ==================================  ================================================

``CAPGATE_DROPIN=aiter,vllm_rocm`` is another module's: see :mod:`capgate.kernels.dropin`.

The variables are read once, at first use. CAPGATE_TARGET never changes what runs on a tensor: its own device answers.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from . import _registry, targets
from .spelling import nearest
from .table import TABLE
from .targets import Target
from .tunings import Tunings

# CAPGATE_DROPIN is read by capgate.kernels.dropin, CAPGATE_TORCH by noxfile.py; listed here, they are no misspelling.
VARIABLES = (
    "CAPGATE_DISABLE",
    "CAPGATE_ENABLE",
    "CAPGATE_VARIANT",
    "CAPGATE_TARGET",
    "CAPGATE_STRICT",
    "CAPGATE_TUNINGS",
    "CAPGATE_MEASURE",
    "CAPGATE_DROPIN",
    "CAPGATE_TORCH",
    "CAPGATE_CACHE",
    "CAPGATE_RECORD",
)


UNPROVEN = tuple(name for name, row in TABLE.items() if row.unproven)  # what may be enabled


class SwitchError(ValueError):
    """A switch names something that does not exist, or asks for what cannot be; the message lists the nearest names."""


class Switches:
    """The switches in force. One instance stands for one setting, so what was worked out under it is remembered in it.

    disabled : capability name to the words that say which switch took it away
    enabled : capability name to the words that say which switch asks for it, though no hardware has shown it
    variants : operation name to the variant that it must take
    target : what a question without a device means, None for this machine's first GPU
    strict : whether a variant that does not compile raises instead of falling back
    tunings : those that are loaded over the tables', or None
    measure : whether the time decides between the variants that can take a problem
    memo : answers that hold under these switches, forgotten with them
    outer : those that these are added to, None for the environment's
    key : text that is the same for switches under which the same capabilities hold, in the same words
    work : text that is the same for switches under which each variant does the same work, and takes the same time
    """

    def __init__(
        self,
        disabled: Mapping[str, str] | None = None,
        variants: Mapping[str, str] | None = None,
        target: Target | None = None,
        strict: bool = False,
        enabled: Mapping[str, str] | None = None,
        tunings: Tunings | None = None,
        measure: bool = False,
        outer: "Switches | None" = None,
    ) -> None:
        self.disabled = dict(disabled or {})
        self.enabled = dict(enabled or {})
        self.variants = dict(variants or {})
        self.target = target
        self.strict = strict
        self.tunings = tunings
        self.measure = measure
        self.memo: dict[Any, Any] = {}
        self.outer = outer
        self.key = f"{target} {sorted(self.disabled.items())} {sorted(self.enabled.items())}"
        tuned = "" if tunings is None else f" {tunings.target} {tunings.device} {tunings.rows}"
        self.key += tuned  # kept launches are those of a tuning
        self.work = f"{sorted(self.disabled)} {sorted(self.enabled)}{tuned}"

    def forget(self) -> None:
        """Forget what was worked out under these switches, and under those around them."""
        self.memo.clear()
        if self.outer is not None:
            self.outer.forget()


_overriding: ContextVar[Switches | None] = ContextVar("capgate_switches")


class _Context:
    """The switches in force, as torch.compile can watch them: it cannot call a context variable, but it reads attributes.

    in_force : those of the innermost override(); where there is none, this object, in the place of the environment's
    key : as the environment's, which are read once and so never change
    """

    key = "environment"
    in_force = property(_overriding.get)  # get(default) with this object for the default


CONTEXT = _Context()
_from_environment: Switches | None = None


def current() -> Switches:
    """The switches in force here: those of the innermost override(), else the environment's."""
    global _from_environment
    switches = _overriding.get(None) or _from_environment
    if switches is None:
        switches = _from_environment = read(os.environ)
    return switches


def strict() -> bool:
    """Whether what falls short raises rather than being a warning: CAPGATE_STRICT=1, or override(strict=True), is in force."""
    return current().strict


def read(environment: Mapping[str, str]) -> Switches:
    """The switches that the CAPGATE_* variables of ``environment`` set; SwitchError names the variable that is wrong."""
    unknown = [name for name in environment if name.startswith("CAPGATE_") and name not in VARIABLES]
    if unknown:
        raise SwitchError(f"{unknown[0]}: no such variable; known are {', '.join(VARIABLES)}")
    disable, enable = (_split(environment.get(name, "")) for name in ("CAPGATE_DISABLE", "CAPGATE_ENABLE"))
    return Switches(
        _disabled(disable, "CAPGATE_DISABLE", f"CAPGATE_DISABLE={','.join(disable)}"),
        _variants(environment.get("CAPGATE_VARIANT", ""), "CAPGATE_VARIANT"),
        _target(environment.get("CAPGATE_TARGET", ""), "CAPGATE_TARGET"),
        _zero_or_one("CAPGATE_STRICT", environment),
        _enabled(enable, "CAPGATE_ENABLE", f"CAPGATE_ENABLE={','.join(enable)}"),
        _tunings(environment.get("CAPGATE_TUNINGS", ""), "CAPGATE_TUNINGS"),
        _zero_or_one("CAPGATE_MEASURE", environment),
    )


def override(
    *,
    disable: Iterable[str] | str = (),
    variant: Mapping[str, str] | str = "",
    target: Target | str | None = None,
    strict: bool | None = None,
    enable: Iterable[str] | str = (),
    tunings: Tunings | str | None = None,
    measure: bool | None = None,
) -> AbstractContextManager[None]:
    """Add switches for a block of code, or for a function when used as a decorator.

    disable : capability names, or one text with commas between them; added to those that are disabled already
    variant : ``{"fp8_mqa_logits": "classic"}`` or ``"fp8_mqa_logits=classic"``, of operations that are defined by now
    target : a Target or its text (``"hip:gfx950"``); the meaning of :func:`capgate.compat.capabilities` without a device
    strict : True raises where a variant does not compile
    measure : True takes the fastest of the variants that can, once they are timed
    enable : as disable, capabilities that no hardware has shown: where they may hold, they do. What is disabled does not
    tunings : a file of tunings, or :class:`.tunings.Tunings`, in the place of any that are loaded already

    It holds for the current thread or task, from entry to exit, for functions that torch.compile has compiled before, too: they
    are compiled anew for it. Raises TypeError for values of other types, SwitchError for names that do not exist.
    """
    names = _names("disable", disable)
    disabled = _disabled(names, "disable", f"override(disable={names})")
    names = _names("enable", enable)
    enabled = _enabled(names, "enable", f"override(enable={names})")
    _typed("variant", variant, (str, Mapping), "a mapping of operation to variant, or text")
    variants = _variants(variant, "variant") if isinstance(variant, str) else dict(variant)
    _check_variants(variants, "variant")
    _typed("target", target, (str, Target, type(None)), "a Target, its text or None")
    for argument, value in {"strict": strict, "measure": measure}.items():
        _typed(argument, value, (bool, type(None)), "a bool or None")
    _typed("tunings", tunings, (str, Tunings, type(None)), "a file's name, Tunings or None")
    aim = _target(target, "target") if isinstance(target, str) else target
    loaded = _tunings(tunings, "tunings") if isinstance(tunings, str) else tunings
    return _overridden(disabled, enabled, variants, aim, strict, loaded, measure)


@contextmanager
def _overridden(
    disabled: dict[str, str],
    enabled: dict[str, str],
    variants: dict[str, str],
    target: Target | None,
    strict: bool | None,
    tunings: Tunings | None,
    measure: bool | None,
) -> Iterator[None]:
    outer = current()
    inner = Switches(
        {**outer.disabled, **disabled},
        {**outer.variants, **variants},
        target or outer.target,
        outer.strict if strict is None else strict,
        {**outer.enabled, **enabled},
        tunings or outer.tunings,
        outer.measure if measure is None else measure,
        outer,
    )
    token = _overriding.set(inner)
    try:
        yield
    finally:
        _overriding.reset(token)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _names(argument: str, given: Iterable[str] | str) -> list[str]:
    _typed(argument, given, Iterable, "capability names")
    return _split(given) if isinstance(given, str) else list(given)


def _typed(argument: str, value: object, kinds: Any, words: str) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{argument}: got {type(value).__name__}, needs {words}")


def _disabled(names: Iterable[str], argument: str, words: str) -> dict[str, str]:
    for name in names:
        _typed(argument, name, str, "capability names")
        if name not in TABLE:
            raise SwitchError(f"{argument}: no capability {name!r}; {nearest(name, TABLE)}")
    return dict.fromkeys(names, words)


def _enabled(names: Iterable[str], argument: str, words: str) -> dict[str, str]:
    enabled = _disabled(names, argument, words)
    for name in enabled:
        if not TABLE[name].unproven:
            raise SwitchError(f"{argument}: {name} is found, and not enabled; {nearest(name, UNPROVEN)}")
    return enabled


def _variants(text: str, argument: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in _split(text)]
    for operation, equals, variant in pairs:
        if not (operation and equals and variant):
            raise SwitchError(f"{argument}: got {text!r}, needs operation=variant pairs separated by commas")
    return {operation.strip(): variant.strip() for operation, _, variant in pairs}


def _check_variants(variants: Mapping[str, str], argument: str) -> None:
    for name, variant in variants.items():
        _typed(argument, name, str, "names of operations")
        _typed(argument, variant, str, "names of variants")
        known = _registry.REGISTERED if name in _registry.REGISTERED else _registry.operations()
        if name not in known:
            raise SwitchError(f"{argument}: no operation {name!r}; {nearest(name, known)}")
        variants_of_it = known[name].variants  # none, where they are added later
        if variants_of_it and variant not in variants_of_it:
            raise SwitchError(f"{argument}: {name} has no variant {variant!r}; {nearest(variant, variants_of_it)}")


def _target(text: str, argument: str) -> Target | None:
    try:
        return targets.parse(text) if text.strip() else None
    except ValueError as error:
        raise SwitchError(f"{argument}: {error}") from None


def _zero_or_one(variable: str, environment: Mapping[str, str]) -> bool:
    text = environment.get(variable, "")
    meanings = {"": False, "0": False, "1": True}
    if text.strip() not in meanings:
        raise SwitchError(f"{variable}: got {text!r}, needs 0 or 1")
    return meanings[text.strip()]


def _tunings(file: str, argument: str) -> Tunings | None:
    try:
        return Tunings.read(file) if file.strip() else None
    except (ValueError, OSError) as error:
        raise SwitchError(f"{argument}: {error}") from error
