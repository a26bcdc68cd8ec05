"""Which program of a dense Gluon kernel for AMD scores what: into how many parts keys are cut, and who has which.

Why it is so, and what was computed for it: docs/design/cdna4.md.
"""

from functools import cache
from math import gcd
from typing import Any, NamedTuple

from .hardware import multiprocessors, xcds

UNSPECIALISED = ("splits", "xcds", "classes", "cells")  # arguments that no kernel is compiled anew for
FILLS = 3  # times that all places of a GPU are taken, at most, before rows alone would take them once
TILES_EACH = 20  # of a program at least where places are taken more than once: starting one costs as much as one or two
GAIN = 1.1  # of the places that are taken, to take them once more


class Order(NamedTuple):
    """What :func:`.device.windows.work_of` makes rows and keys of a program's number from.

    programs : of the grid; those that find no group have nothing to do
    splits : parts that the keys of each group of rows are cut into
    xcds : dies that workgroups go to in turn, 1 where it does not matter
    classes : of groups, by their number: so many groups lie from one to the next in a class
    cells : pairs of a part and a class that each die scores, of splits * classes
    """

    programs: int
    splits: int
    xcds: int
    classes: int
    cells: int


def order_for(device: Any, groups: int, tiles: int, resident: int) -> Order:
    """The order on a device whose compute units hold so many programs each; groups and tiles as :func:`work_order`."""
    return work_order(groups, tiles, multiprocessors(device) * resident, xcds(device))


def order_with(groups: int, splits: int, dies: int) -> Order:
    """The order in which each die has parts of its own: as many classes as it takes to deal out the parts evenly."""
    classes = dies // gcd(splits, dies)
    return Order(-(-groups // classes) * classes * splits, splits, dies, classes, splits * classes // dies)


@cache
def work_order(groups: int, tiles: int, places: int, dies: int) -> Order:
    """The order with most places taken: ``groups`` of rows that see ``tiles`` tiles of keys at most, ``places`` for programs.

    Groups that take all places are not cut.
    """
    best = order_with(groups, 1, dies)
    taken = groups / max(places, groups)
    for fills in range(1, FILLS + 1) if groups < places else ():
        most = max(1, min(fills * places // groups, tiles if fills == 1 else tiles // TILES_EACH))
        for splits in range(most, max(0, most - dies), -1):
            order = order_with(groups, splits, dies)
            now = groups * splits / (fills * places)
            if order.programs <= fills * places and now > taken * (1 if fills == 1 else GAIN):
                best, taken = order, now
    return best
