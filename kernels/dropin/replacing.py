"""The exchange of a library's functions for ours in loaded modules, family by family, and back."""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capgate import compat
from capgate.compat.spelling import nearest

from .families import DROPINS, Family
from .holders import forget_results, holders, named_holders
from .plans import Place, Plan, plan_of
from .readers import without_their_readers
from .reports import Left, Report, Taken
from .sites import Key, Target, imported, incomplete, is_unfilled, is_whole, loaded, slots_of

LOG = logging.getLogger("capgate")


class DropinError(RuntimeError):
    """A library offers nothing that a drop-in could replace; under CAPGATE_STRICT=1 also: not all of what it should.

    No ImportError: engines take that for a library they lack.
    """


class _State:
    """How things stand with one drop-in, by a family and the module of one of its sites."""

    def __init__(self) -> None:
        self.places: dict[Key, dict[tuple[int, str], Place]] = {}
        self.waiting: dict[Key, Place] = {}  # where a module's own function stood before one that replaces once it has run
        self.refused: dict[Key, str] = {}
        self.absent: dict[Key, str] = {}

    def standing(self, family: Family) -> list[Place]:
        """Where the family is in force, besides who has imported it since: not in what a failed import has left."""
        found = [places for key, places in self.places.items() if key.family == family and is_whole(key.module)]
        return [place for places in found for place in places.values()]

    def report(self, name: str) -> Report:
        taken, left = [], []
        since: dict[int, list[str]] = {}  # where ours stands that was imported from one of its places, or copied
        for where, ours in named_holders([place.ours for places in self.places.values() for place in places.values()]):
            since.setdefault(id(ours), []).append(where)
        for family in DROPINS[name]:
            standing = self.standing(family)
            names = [place.name for place in standing]
            names += [where for place in standing for where in since.get(id(place.ours), ())]
            names += self._awaited(family, names)
            if names:
                replaced = {place.ours.__name__ for place in standing} or set(family.names)
                functions = tuple(function for function in family.names if function in replaced)
                taken.append(Taken(functions, tuple(dict.fromkeys(names))))
            reasons = [reason for key, reason in self.refused.items() if key.family == family]
            reasons += self._halves(family)
            if not names and not reasons:
                reasons = [reason for key, reason in self.absent.items() if key.family == family] or [_nowhere(family)]
            left += [Left(family.names, reason) for reason in dict.fromkeys(reasons)]
        return Report(name, tuple(taken), tuple(left))

    def _awaited(self, family: Family, names: Sequence[str]) -> list[str]:
        """What will put ours where it is not yet."""
        waiting = [(key.module, place) for key, place in self.waiting.items() if key.family == family]
        filled = {module for module, _ in waiting if any(name.startswith(f"{module}.") for name in names)}
        return [f"{place.name} has run" for module, place in waiting if module not in filled]

    def _halves(self, family: Family) -> list[str]:
        """Why it is not in force where it was put."""
        keys = [key for key, places in self.places.items() if key.family == family and places]
        return [f"{key.module} is what a failed import has left" for key in keys if not is_whole(key.module)]


_states: dict[str, _State] = {}


def _nowhere(family: Family) -> str:
    return f"no module {' or '.join(site.module for site in family.sites if not site.waits)} is there"


def unknown(name: str) -> str | None:
    """None for a drop-in's name, else what to say of it."""
    return None if name in DROPINS else f"no drop-in {name!r}; {nearest(name, DROPINS)}"


def is_installed(name: str) -> bool:
    """Whether functions of ours stand in the place of the library's in this process."""
    return name in _states and any(map(_states[name].standing, DROPINS[name]))


def report(name: str) -> Report:
    """What is replaced in this process, and what was left. Nothing of either before the first attempt."""
    return _states[name].report(name) if name in _states else Report(name, (), ())


def install(name: str) -> Report:
    """Import the drop-in's library, and replace what is there. DropinError where nothing is."""
    failed = imported(name)
    reasons = {key: f"{key.module} does not import: {_words(error)}" for key, error in failed.items()}
    before = replace(name, loaded(name), reasons)
    found = report(name)
    if found.taken:
        _say(before, found)
        return found
    restore(name)
    raise DropinError(_cannot(name, found.left)) from next(iter(failed.values()), None)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def _cannot(name: str, left: Iterable[Left]) -> str:
    return f"{name}: cannot replace " + "; ".join(f"{', '.join(one.functions)}: {one.reason}" for one in left)


def replace(name: str, targets: Sequence[Target], failed: Mapping[Key, str] | None = None, *, strict: bool = False) -> Report:
    """Put ours in the place of the targets' functions, and of the same objects in the callers' modules. What stood before.

    A family that is not whole, or of which a reader of schedules would stay, is left, and what stands of it there taken away.
    failed : why modules of the drop-in's are not among the targets
    strict : DropinError where one is left so, or none is there, and nothing is replaced
    """
    state = _states.setdefault(name, _State())
    before = state.report(name)
    plans: list[Plan] = []
    waiting: list[Target] = []
    absent: dict[Key, str] = {}
    refused: dict[Key, str] = dict(failed or {})
    for target in targets:
        slots = slots_of(target)
        if slots and (reason := incomplete(target, slots)):
            refused[target.key] = reason
        elif slots:
            plans.append(plan_of(name, target, slots))
        elif is_unfilled(target):
            waiting.append(target)
        elif not target.site.waits:
            absent[target.key] = f"{target.site.module} offers no such function"
    refused |= without_their_readers(name, plans)
    plans = [plan for plan in plans if plan.target.key not in refused]
    if strict and (refused or not (plans or waiting or all(target.site.waits for target in targets))):
        raise DropinError(_cannot(name, [Left(key.family.names, why) for key, why in (refused or absent).items()]))
    for key in refused:
        _take_away(state.places.pop(key, {}).values())
    for plan in plans:
        _put(state, plan)
    for target in waiting:
        _wait(name, state, target)
    for target in targets:
        state.refused.pop(target.key, None)
        state.absent.pop(target.key, None)
    state.refused |= refused
    state.absent |= absent
    return before


def _say(before: Report, after: Report) -> None:
    """One warning for what is taken now and was not, and what is left now and was not."""
    places = {place for one in after.taken for place in one.places} - {place for one in before.taken for place in one.places}
    left = [str(one) for one in after.left if one not in before.left] if after.left != before.left else []
    words = []
    if places:
        words.append(f"capgate's functions are in the place of {', '.join(sorted(places))}")
    if left:
        words.append(f"left as they are: {', '.join(left)}")
    if places:
        words.append(f"capgate.kernels.dropin.uninstall({after.name!r}) undoes it")
    if words:
        LOG.warning("drop-in %s: %s", after.name, "; ".join(words))


# --- putting and taking away -----------------------------------------------------------------------------------------------


def _put(state: _State, plan: Plan) -> None:
    standing = state.places.setdefault(plan.target.key, {})
    for where, place in plan.places.items():
        setattr(place.holder, place.attribute, place.ours)
        standing[where] = place
    if plan.changes:
        forget_results([*plan.originals.values(), plan.target.module])


def _take_away(places: Iterable[Place]) -> None:
    """Put back what stood in these places, and in what has imported ours from them since."""
    places = list(places)
    for place in places:
        if getattr(place.holder, place.attribute, None) is place.ours:
            setattr(place.holder, place.attribute, place.original)
    for place in places:
        for holder, attribute in holders(place.ours):
            setattr(holder, attribute, place.original)
    forget_results([place.ours for place in places])


def _wait(name: str, state: _State, target: Target) -> None:
    """Replace at the site as soon as its module's own function has put something there."""
    attribute = target.site.filled_by or ""
    filler = getattr(target.module, attribute)
    if known := next((place for place in state.waiting.values() if place.ours is filler), None):
        state.waiting[target.key] = known
        return

    @functools.wraps(filler)
    def fill(*args: Any, **kwargs: Any) -> Any:
        result = filler(*args, **kwargs)
        if state.waiting and any(slots_of(one) for one in filled):
            for key in [key for key, place in state.waiting.items() if place.ours is fill]:
                del state.waiting[key]
            if getattr(target.module, attribute) is fill:
                setattr(target.module, attribute, filler)
            replace_or_warn(name, filled)
        return result

    filled = [one for one in loaded(name) if one.module is target.module]
    where = f"{target.site.module} once {attribute}"
    state.waiting[target.key] = Place(target.module, attribute, filler, fill, where)
    setattr(target.module, attribute, fill)


def replace_or_warn(name: str, targets: Sequence[Target]) -> None:
    """As :func:`replace`, for code that runs inside an engine's: what goes wrong is a warning, but for CAPGATE_STRICT=1."""
    try:
        before = replace(name, targets, strict=compat.strict())
        _say(before, report(name))
    except DropinError:
        raise
    except Exception:  # whatever it is: an engine that imports its library must not fail for us
        LOG.warning("drop-in %s: nothing is replaced in %s", name, _names(targets), exc_info=True)


def _names(targets: Sequence[Target]) -> str:
    return ", ".join(dict.fromkeys(target.site.module for target in targets))


def restore(name: str) -> None:
    """Put back what stood in every place, and into the callers' modules that have imported ours since."""
    state = _states.pop(name, _State())
    places = [place for standing in state.places.values() for place in standing.values()]
    for place in [*places, *state.waiting.values()]:
        if getattr(place.holder, place.attribute, None) not in (place.ours, place.original):
            LOG.warning("%s is not capgate's any more and stays as it is", place.name)
    _take_away([*places, *state.waiting.values()])
