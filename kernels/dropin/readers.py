"""Who reads the schedules that a function makes: nobody may be left who does, once ours makes them."""

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from .binding import original_of
from .families import DROPINS, Schedule
from .holders import CALLERS, modules, package
from .parameters import parameters
from .plans import Plan
from .sites import Key


def without_their_readers(name: str, plans: Sequence[Plan]) -> dict[Key, str]:
    """Why some of the plans cannot be: somebody else would go on reading the schedules that ours then makes."""
    refused: dict[Key, str] = {}
    while True:
        good = [plan for plan in plans if plan.target.key not in refused]
        replaced = {id(original) for plan in good for original in plan.originals.values()}
        for plan in good:
            schedule = plan.target.family.schedule
            if schedule and plan.changes and (left := sorted(set(_left_behind(name, plan, schedule, replaced)))):
                words = f"{', '.join(left)} would go on reading the schedules of {schedule.maker} and need not end on ours"
                refused[plan.target.key] = words
        if len(good) == len(plans) - len(refused):
            return refused


def _left_behind(name: str, plan: Plan, schedule: Schedule, replaced: set[int]) -> Iterator[str]:
    """Which functions would read a schedule of ours and stay as they are, once ``plan`` is in place."""
    family, site, _ = plan.target
    maker = plan.originals[schedule.maker]
    others = {function for one in DROPINS[name] if one is not family for function in one.names}
    known = {function for one in DROPINS[name] for function in one.names}
    readers = {id(original) for function, original in plan.originals.items() if function != schedule.maker}
    for module_name, module in modules():
        held = [(attribute, original_of(value)) for attribute, value in list(vars(module).items())]
        makes = any(value is maker for _, value in held)
        library = not site.waits and (module_name == site.module or module_name.startswith(f"{site.module}."))
        if library or (makes and package(module_name) in CALLERS):
            # A caller's function of a replaced one's name hands on to that what it is given.
            skipped = others if library else known
            found = _readers(module, schedule, skipped)
            yield from (f"{module_name}.{attribute}" for attribute, value in found if id(original_of(value)) not in replaced)
        elif not makes and package(module_name) not in CALLERS:
            # It keeps the originals that it holds: a reader without its maker would be given what ours makes.
            yield from (f"{module_name}.{attribute}" for attribute, value in held if id(value) in readers)


def _readers(module: ModuleType, schedule: Schedule, skipped: set[str]) -> Iterator[tuple[str, Any]]:
    """The module's functions that read a schedule, by their names or their parameters'."""
    held = vars(module)
    for attribute in {*held, *dir(module)} - skipped:  # a module with __getattr__ and __dir__ may have more than it holds
        named = schedule.reader.search(attribute)
        value = getattr(module, attribute, None) if named else held.get(attribute)
        if callable(value) and (named or schedule.parameter.search(" ".join(parameters(value).names))):
            yield attribute, value
