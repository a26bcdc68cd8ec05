"""How the cells of a grid of tests are shared out among the lanes of several Tritons: for tests/conftest.py."""

from collections.abc import Mapping, Sequence
from typing import Any


def hand(text: str) -> tuple[int, int]:
    """(number, hands) of "1/3": the first of three."""
    number, hands = map(int, text.split("/"))
    if not 1 <= number <= hands:
        raise ValueError(f"hand: got {text}, needs a number of 1 to {hands}")
    return number, hands


def in_hand(cells: Sequence[Mapping[str, Any]], kept: Sequence[str], number: int, hands: int) -> list[int]:
    """Which of a grid's cells, given as the values of their parameters, a hand gets: every so manieth, and the first cell of
    each value of the ``kept`` parameters that it would lack.
    """
    mine = set(range(number - 1, len(cells), hands))
    for name in kept:
        held = {repr(cells[place][name]) for place in mine}
        for place, cell in enumerate(cells):
            if (value := repr(cell[name])) not in held:
                held.add(value)
                mine.add(place)
    return sorted(mine)
