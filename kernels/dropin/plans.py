"""What replacing a family at one of its sites would change."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from .binding import bind, original_of
from .holders import holders
from .parameters import Function, fitting, parameters, with_defaults
from .sites import Slot, Target, loaded, slot_at, slots_of


class Place(NamedTuple):
    """Where a function of ours stands, what stood there before, and how a person calls it."""

    holder: Any
    attribute: str
    original: Any
    ours: Any
    name: str


class Plan(NamedTuple):
    """What is about to be replaced for a target."""

    target: Target
    originals: dict[str, Any]  # by function
    places: dict[tuple[int, str], Place]  # by holder and attribute
    changes: bool  # whether one of them is not ours yet


def plan_of(name: str, target: Target, slots: dict[str, Slot]) -> Plan:
    """What replacing a target would change."""
    own = import_module(f".{name}", __package__)
    generations: dict[str, tuple[Function, ...]] = getattr(own, "GENERATIONS", {})
    sites = {(id(slot.holder), slot.attribute) for one in loaded(name) for slot in slots_of(one).values()}
    places: dict[tuple[int, str], Place] = {}
    for function, slot in slots.items():
        original = original_of(slot.value)
        ours = _generation(target, function, original, generations.get(function, (getattr(own, function),)))
        mine = bind(ours, original).function
        where = f"{target.module.__name__}.{target.site.path.format(function)}"
        places[id(slot.holder), slot.attribute] = Place(slot.holder, slot.attribute, original, mine, where)
        for holder, attribute in holders(original):
            if (id(holder), attribute) not in sites:  # which have a plan of their own, or are left for a reason
                where = f"{holder.__name__}.{attribute}"
                places.setdefault((id(holder), attribute), Place(holder, attribute, original, mine, where))
    changes = any(getattr(place.holder, place.attribute) is not place.ours for place in places.values())
    return Plan(target, {function: original_of(slot.value) for function, slot in slots.items()}, places, changes)


def _generation(target: Target, function: str, original: Any, candidates: Sequence[Function]) -> Function:
    """Which of ours takes what callers pass at this site, with the original's defaults."""
    theirs, caller = parameters(original), None
    if target.site.called_by is not None:
        caller = slot_at(target.module, target.site.called_by.format(function))
    ours = fitting(candidates, theirs if caller is None else parameters(caller.value))
    return with_defaults(ours, theirs.defaults)
