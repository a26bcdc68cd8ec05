"""Operations that exist in several variants, and the choice between them: visible, remembered, and never silent.

    from capgate import compat

    scale_rows = compat.Operation("scale_rows")

    @scale_rows.variant("gluon", requires=("gluon_cdna4",))
    def _gluon(x, factor): ...

    @scale_rows.variant("torch")
    def _torch(x, factor): ...

    y = scale_rows(Problem(device=x.device, columns=x.shape[1]), x, factor)

A *problem* describes one class of calls: any hashable value, compared by equality, whose ``device`` attribute is what
:func:`capgate.compat.capabilities` takes. The choice is remembered for each problem, so it should hold what the rules look
at (device, dtypes, head sizes) and not what changes from call to call.
"""

import logging
import sys
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

from . import _probes, _registry, _switches
from ._additions import Addition, additions_to
from ._bound import Bound
from ._capabilities import CapabilityError
from ._errors import of_the_machine, summary
from ._kernel import OFFERS, Examples, Kernel
from ._lookup import capabilities, target_of
from ._measuring import ONE_AT_A_TIME, Measurement, Measurements, capturing, needs_device, timed
from ._variant import MisspeltError, Variant, called, checked_names, checked_reason
from .spelling import nearest
from .tunings import Loaded

LOG = logging.getLogger("capgate")

P = TypeVar("P", bound=Hashable)
F = TypeVar("F", bound=Callable[..., Any])


class Step(NamedTuple):
    """What became of one variant: accepted or not, and the reason in words."""

    variant: str
    accepted: bool
    reason: str


class Trace(NamedTuple):
    """The whole choice: the variant that runs (None when none can), and a step for every variant in order."""

    variant: str | None
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "; ".join(f"{step.variant} {'accepted' if step.accepted else 'rejected'}: {step.reason}" for step in self.steps)


class Operation(_registry.Registered, Generic[P]):
    """An operation with ordered variants; the first one that can take a problem runs.

    name : what CAPGATE_VARIANT and the report call it
    example : makes a representative problem for a device, for the report; without it the report asks capabilities only
    examples : what an offline compile asks for; without it the operation cannot be compiled ahead of time
    offers : what every Kernel among its variants must offer besides ``prepare``: "tuning", "workers"
    repeatable : whether a call that runs again with the same arguments leaves what it left: only then CAPGATE_MEASURE times it

    Raises ValueError when another module has defined an operation of this name, TypeError for values of other kinds.
    """

    def __init__(
        self,
        name: str,
        *,
        example: Callable[[Any], P] | None = None,
        examples: Examples | None = None,
        offers: Iterable[str] = (),
        repeatable: bool = False,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: got {called(name)}, needs a str")
        if example is not None and not callable(example):
            raise TypeError(f"example: got {called(example)}, needs a function of the device, or None")
        self.name = name
        self.example = example
        self.examples = examples
        self.offers = checked_names("offers", offers, OFFERS, "part of a Kernel")
        self._variants: dict[str, Variant[P]] = {}
        self._to_add: list[tuple[str, Addition]] | None = None  # until they are first asked for
        self.not_added: list[str] = []  # why what a distribution adds is not there, in words
        self.repeatable = repeatable
        self._measurements: Measurements[P] = Measurements(name)
        self._set_aside: dict[tuple[str, P | None, str], str] = {}
        self.module: str | None = sys._getframe(1).f_globals.get("__name__")
        _registry.register(self)

    @property
    def variants(self) -> dict[str, Variant[P]]:
        """The variants by name, in the order in which they are asked, with those that other distributions add."""
        if self._to_add is None:
            self._to_add = list(additions_to(self.name, self.not_added))
            for words in self.not_added:
                LOG.warning("%s", words)
        if self._to_add:
            self._to_add = [(whose, addition) for whose, addition in self._to_add if not self._place(whose, addition)]
        return self._variants

    def add(self, variant: Variant[P]) -> None:
        """Add a variant after those added before it. Raises ValueError when its name is taken."""
        if variant.name in self._variants:
            raise ValueError(f"variant: {self.name} has a variant {variant.name!r} already")
        self._variants[variant.name] = variant

    def _place(self, whose: str, addition: Addition) -> bool:
        """Put an addition in its place; False where that is not there yet."""
        variant, anchor, names = addition.variant, addition.before or addition.after, list(self._variants)
        if not names or (anchor is not None and anchor not in names):
            return False
        if variant.name in names:
            self._refuse(f"variant {variant.name!r} of {whose} is not added: {self.name} has one of that name")
            return True
        place = 0 if anchor is None else names.index(anchor) + (addition.before is None)
        variant.added_by = whose
        ordered = list(self._variants.items())
        ordered.insert(place, (variant.name, variant))
        self._variants.clear()
        self._variants.update(ordered)
        return True

    def _settle(self) -> None:
        """Refuse what is to stand beside a variant that does not exist: once somebody asks, the operation is defined."""
        if self.variants and self._to_add:
            for whose, addition in self._to_add:
                anchor = str(addition.before or addition.after)
                where = f"{self.name} has no variant {anchor!r}; {nearest(anchor, self._variants)}"
                self._refuse(f"variant {addition.variant.name!r} of {whose} is not added: {where}")
            self._to_add = []

    def _refuse(self, words: str) -> None:
        self.not_added.append(words)
        LOG.warning("%s", words)

    def variant(self, name: str, **rules: Any) -> Callable[[F], F]:
        """Decorate a function to add it as a variant; ``rules`` are the other parameters of :class:`Variant`."""
        if not isinstance(name, str):
            raise TypeError(f"name: got {called(name)}, needs a str, as in @operation.variant('name')")

        def decorate(function: F) -> F:
            self.add(Variant(name, function, **rules))
            return function

        return decorate

    def __call__(self, problem: P, *arguments: Any, variant: str | None = None, **keywords: Any) -> Any:
        """Run the chosen variant with ``arguments``.

        A variant that cannot be loaded or compiled is set aside for this problem, with one warning, and the next one runs;
        under CAPGATE_STRICT=1, or where the variant was named, the error is raised, and always for a misspelt
        "package.module:name". Errors of a launched kernel always are, and so are those of the machine (memory, disk, files, a
        killed compiler), which say nothing of the variant: the next call tries it again.
        """
        handled = sys.exc_info()[1]  # by the caller: no part of what may fail here

        def run(implementation: Callable[..., Any] | Kernel[P]) -> Any:
            if isinstance(implementation, Kernel):
                return implementation.launch(problem, *arguments, **keywords)
            return implementation(*arguments, **keywords)

        if self.repeatable and variant is None and _switches.current().measure:
            self._measure_once(problem, run, handled)
        while True:
            done, result = self._try(self.select(problem, variant), problem, variant, run, handled)
            if done:
                return result

    def _try(
        self,
        chosen: Variant[P],
        problem: P,
        variant: str | None,
        run: Callable[[Callable[..., Any] | Kernel[P]], Any],
        handled: BaseException | None,
    ) -> tuple[bool, Any]:
        """Whether a variant ran, and what it returned; False where it was set aside. ``variant`` is the one that is named."""
        try:
            implementation = self.load(chosen)
        except (KeyboardInterrupt, MisspeltError):
            raise
        except BaseException as error:  # a module may fail to import in any way on a build it was not written for
            if of_the_machine(error, handled):
                raise
            self._fall_back(chosen, problem, variant, "does not load", error)
            return False, None
        try:
            return True, run(implementation)
        except Exception as error:
            # A compiler does not speak of kernels through OSError, whatever it says.
            if not _in_compiler(error) or isinstance(error, OSError) or of_the_machine(error, handled):
                raise
            self._fall_back(chosen, problem, variant, "does not compile", error)
            return False, None

    def measure(self, problem: P, call: Callable[[str], Any]) -> Measurement | None:
        """Time the variants that take ``problem``, and choose the fastest from now on; None where there is no choice.

        call : runs the operation with the variant of that name: ``lambda name: scale_rows(x, factor, variant=name)``. It is run
            many times, so it must leave what it leaves when it runs once

        What was measured is written to the cache, for processes with CAPGATE_MEASURE=1 on the same stack. A variant that does
        not load or compile is set aside, with a warning; other errors are raised. Raises ValueError where the problem's device
        is no torch.device of a CPU or a GPU, and RuntimeError while a graph is captured.
        """
        handled = sys.exc_info()[1]
        device = needs_device(problem)
        if capturing(device):
            raise RuntimeError(f"{self.name}: nothing can be measured while a graph is captured")
        return self._measure(problem, lambda name, _: call(name), handled)

    def _measure_once(self, problem: P, run: Callable[[Any], Any], handled: BaseException | None) -> None:
        """Measure for CAPGATE_MEASURE, where that was not done before, in another process either, and can be done now."""
        memo, key = _switches.current().memo, (self, problem, _probes.settings(), Measurement)
        device = getattr(problem, "device", None)
        if key in memo or getattr(device, "type", None) not in ("cuda", "cpu") or capturing(device):
            return
        if self._named_by_switch() is None:
            with ONE_AT_A_TIME:
                trace = self.explain(problem)
                if len(self._contenders(trace)) > 1 and self._measured(problem, trace) is None:
                    self._measure(problem, lambda _, implementation: run(implementation), handled)
        _switches.current().memo[key] = None

    def _measure(self, problem: P, run: Callable[[str, Any], Any], handled: BaseException | None) -> Measurement | None:
        ready: dict[str, Callable[[], Any]] = {}
        for name in self._contenders(self.explain(problem)):
            variant = self.variants[name]
            if self._try(variant, problem, None, partial(run, name), handled)[0]:
                ready[name] = partial(run, name, self.load(variant))
        if len(ready) < 2:
            return None
        with ONE_AT_A_TIME:
            measured = Measurement(timed(getattr(problem, "device", None), ready))
        self._measurements.keep(problem, measured)
        _switches.current().forget()  # choices, and the launches that are kept of calls
        return measured

    def _contenders(self, trace: Trace) -> list[str]:
        """The variants between which the time decides: those that are accepted, last resorts only where there is no other."""
        accepted = [step.variant for step in trace.steps if step.accepted]
        return [name for name in accepted if not self.variants[name].last_resort] or accepted

    def _measured(self, problem: P, trace: Trace) -> Measurement | None:
        """What is known of the times of all that may run, as long as nothing came to them since."""
        found = self._measurements.find(problem)
        return found if found is not None and found.times.keys() >= set(self._contenders(trace)) else None

    def load(self, variant: Variant[P]) -> Callable[..., Any] | Kernel[P]:
        """The variant's implementation; TypeError names what a Kernel lacks of what this operation's must offer."""
        implementation = variant.load()
        if isinstance(implementation, Kernel):
            lacking = [name for name in self.offers if getattr(implementation, name) is None]
            if lacking:
                raise TypeError(f"{self.name}: the kernel of variant {variant.name!r} offers no {' and no '.join(lacking)}")
        return implementation

    def loaded(self, variant: str, problem: P) -> Loaded | None:
        """What CAPGATE_TUNINGS or override(tunings=...) says of a problem's tuning; None where it says nothing.

        Raises ValueError for tunings of another GPU than the problem's device, or of what does not exist.
        """
        tunings = _switches.current().tunings
        if tunings is None:
            return None
        return tunings.loaded(self, variant, problem, target_of(getattr(problem, "device", None)))

    def kept(self, problem: P, *arguments: Any, variant: str | None = None, **keywords: Any) -> Bound | None:
        """The kept launches of calls like this one, which has run; None where there are none."""
        kernel = self.load(self.select(problem, variant))
        return kernel.kept(problem, *arguments, **keywords) if isinstance(kernel, Kernel) else None

    def select(self, problem: P, variant: str | None = None) -> Variant[P]:
        """The variant that a call with ``problem`` runs.

        variant : take this one; else the one that a switch names; else the first that accepts. Raises ValueError for a name
            that the operation does not have, CapabilityError with the reasons when the named variant, or every one, cannot.
        """
        device = getattr(problem, "device", None)
        if device is None:  # a machine's default target may appear later
            return self._choose(problem, variant)
        memo, caps = _switches.current().memo, capabilities(device)
        key = (self, problem, variant)
        asked, chosen = memo.get(key, (None, None))
        # Another snapshot: the driver has said which GPU this is, or Triton or its settings have changed.
        if chosen is None or asked is not caps or self._why_aside(chosen, problem):
            chosen = self._choose(problem, variant)
            memo[key] = caps, chosen
        return cast(Variant[P], chosen)

    def explain(self, problem: P | None = None, variant: str | None = None, *, device: Any = None) -> Trace:
        """The full trace of the choice. Without a problem only capabilities and switches are asked, for ``device``."""
        hash(problem)  # TypeError for what cannot be remembered
        variant = variant or self._named_by_switch()
        self._settle()
        if variant is not None and variant not in self.variants:
            raise ValueError(f"variant: {self.name} has no variant {variant!r}; {nearest(variant, self.variants)}")
        caps = capabilities(getattr(problem, "device", device))
        chosen, steps = None, []
        for candidate in self.variants.values():
            reason = None if variant in (None, candidate.name) else f"{variant} is named"
            reason = reason or self._why_not(candidate, problem, caps, named=variant is not None)
            if reason is None and chosen is None:
                chosen = candidate.name
            words = caps.joined(candidate.requires) or "needs nothing"
            if reason is None and problem is not None and (loaded := self.loaded(candidate.name, problem)):
                words = f"{words}; {loaded}"
            steps.append(Step(candidate.name, reason is None, reason or words))
        trace = Trace(chosen, tuple(steps))
        if variant is not None or problem is None or chosen is None:
            return trace
        measured = self._measured(problem, trace)
        return trace if measured is None else _by_time(trace, self._contenders(trace), measured)

    def _why_not(self, candidate: Variant[P], problem: P | None, caps: Any, *, named: bool) -> str | None:
        failing = [name for name in candidate.requires if not caps[name]]
        if failing:
            return str(caps.joined(failing))
        if aside := self._why_aside(candidate, problem):
            return aside
        if problem is None:
            return None
        rules = {"accepts": candidate.accepts, "unless_named": None if named else candidate.unless_named}
        for rule, ask in rules.items():
            if ask and (reason := checked_reason(ask(problem), f"{self.name}: {rule} of variant {candidate.name!r}")):
                return reason
        return None

    def _why_aside(self, candidate: Variant[P], problem: P | None) -> str | None:
        """Why ``candidate`` was set aside for ``problem``; strict switches and other settings of Triton try it again."""
        reason = self._set_aside and self._set_aside.get((candidate.name, problem, _probes.settings()))
        return None if not reason or _switches.current().strict else reason

    def _named_by_switch(self) -> str | None:
        named = _switches.current().variants
        for operation in named:
            if operation not in _registry.REGISTERED and operation not in (known := _registry.operations()):
                switch = "CAPGATE_VARIANT or override(variant=...)"
                raise _switches.SwitchError(f"{switch}: no operation {operation!r}; {nearest(operation, known)}")
        return named.get(self.name)

    def _choose(self, problem: P, variant: str | None) -> Variant[P]:
        trace = self.explain(problem, variant)
        named = variant or self._named_by_switch()
        if trace.variant is None:
            why = next(
                (f"variant {named!r}: {step.reason}" for step in trace.steps if step.variant == named), f"no variant: {trace}"
            )
            raise CapabilityError(f"{self.name} cannot run {why}")
        chosen = self.variants[trace.variant]
        unexpected = chosen.last_resort and named is None and target_of(getattr(problem, "device", None)).is_gpu
        LOG.log(logging.WARNING if unexpected else logging.DEBUG, "%s takes %s; %s", self.name, chosen.name, trace)
        return chosen

    def _fall_back(self, failed: Variant[P], problem: P, variant: str | None, what: str, error: BaseException) -> None:
        """Set ``failed`` aside for ``problem`` and say so once, or raise ``error`` where falling back is not wanted."""
        if _switches.current().strict or failed.name in (variant, self._named_by_switch()):
            raise error
        reason = f"set aside: {what}: {summary(error)}"
        if self._set_aside.setdefault((failed.name, problem, _probes.settings()), reason) is reason:
            LOG.warning("%s: %s %s for %s; CAPGATE_STRICT=1 raises instead", self.name, failed.name, reason, problem)


def _by_time(trace: Trace, contenders: list[str], measured: Measurement) -> Trace:
    """The trace where the time decides, with the times."""
    times = {name: measured.times[name] for name in contenders}
    fastest = min(times, key=times.__getitem__)

    def said(step: Step) -> Step:
        if step.variant not in times:
            return step
        rank = ", the fastest" if step.variant == fastest else ""
        return step._replace(reason=f"{step.reason}; measured {times[step.variant]:.1f} us{rank}")

    return Trace(fastest, tuple(map(said, trace.steps)))


def _in_compiler(error: Exception) -> bool:
    """Whether ``error`` left Triton before a kernel was launched: out of its compiler, or for lack of resources."""
    if any(kind.__module__.startswith("triton.") and kind.__name__ == "OutOfResources" for kind in type(error).__mro__):
        return True
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if frame.f_code.co_name == "compile" and frame.f_globals.get("__name__") == "triton.compiler.compiler":
            return True
        step = step.tb_next
    return False
