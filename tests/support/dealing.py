"""How the cells of a grid of tests are shared out among the lanes of several Tritons: for tests/conftest.py."""

from collections.abc import Mapping, Sequence
from typing import Any


def hand(text: str) -> tuple[int, int]:
    """(number, hands) of "1/3": the first of three."""
    number, hands = map(int, text.split("/"))
    if not 1 <= number <= hands:
        raise ValueError(f"hand: got {text}, needs a number of 1 to {hands}")
    return number, hands


def in_hand(
    cells: Sequence[Mapping[str, Any]],
    kept: Sequence[str],
    number: int,
    hands: int,
    *,
    together: Sequence[str] = (),
    first: int = 0,
) -> list[int]:
    """Which of a grid's cells, given as the values of their parameters, a hand gets: every so manieth, beginning with the
    hand after ``first`` others, and the first cell of each value of the ``kept`` parameters that it would lack. Cells that
    agree in the ``together`` parameters, where there are any, count as one and go to one hand.
    """
    groups: dict[Any, list[int]] = {}
    for place, cell in enumerate(cells):
        groups.setdefault(tuple(repr(cell[name]) for name in together) or place, []).append(place)
    mine = {place for count, group in enumerate(groups.values()) if (count + first) % hands == number - 1 for place in group}
    for name in kept:
        held = {repr(cells[place][name]) for place in mine}
        for place, cell in enumerate(cells):
            if (value := repr(cell[name])) not in held:
                held.add(value)
                mine.add(place)
    return sorted(mine)
