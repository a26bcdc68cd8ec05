"""Compares two folders of saved instructions, file by file."""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path


def compare(before: Path, after: Path) -> int:
    """Print every difference, with counts of instructions; returns 1 if there is one, and 2 where nothing can be compared."""
    found = [{file.relative_to(folder): file.read_text() for file in folder.rglob("*.txt")} for folder in (before, after)]
    for folder, texts in zip((before, after), found, strict=True):
        if not texts:
            print(f"{folder}: nothing is saved there", file=sys.stderr)
            return 2
    old, new = found
    names = sorted(old.keys() | new.keys())
    differing = [name for name in names if old.get(name) != new.get(name)]
    for name in differing:
        if name not in old or name not in new:
            print(f"{name}: only in {before if name in old else after}")
        else:
            print(f"{name}: {difference(old[name].splitlines(), new[name].splitlines())}")
    print(f"{len(names)} calls, {len(differing)} of them differ")
    return 1 if differing else 0


def difference(old: Sequence[str], new: Sequence[str]) -> str:
    """How a call's instructions have changed, in words."""
    counts = [Counter(mnemonic(line) for line in text if not line.startswith(";")) for text in (old, new)]
    change = {name: counts[1][name] - counts[0][name] for name in sorted(counts[0].keys() | counts[1].keys())}
    changes = ", ".join(f"{by:+d} {name}" for name, by in change.items() if by) or "as many of each"
    number, (was, now) = next((number, pair) for number, pair in enumerate(zip_longest(old, new), 1) if pair[0] != pair[1])
    totals = " -> ".join(str(count.total()) for count in counts)
    return f"{totals} instructions ({changes}); first in line {number}: {was!r} -> {now!r}"


def mnemonic(line: str) -> str:
    """Of a line of an instruction, behind its guard if it has one."""
    first, *others = line.split()
    return others[0] if first.startswith("@") else first
