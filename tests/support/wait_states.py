"""Whether compiled kernels keep the wait states that their GPU needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from emulator import parse
from emulator.hazards import dependences, described


def wait_states(assembly: str) -> dict[str, Any]:
    """``hazards`` and those that LLVM ``overlooked``, in words, and the smallest ``margin`` in wait states: of all, and of what
    touches inline assembly.

    Where the compiler put in s_nop there is no margin; None where nothing lies close together.
    """
    program = parse(assembly)
    found = dependences(program)
    short = [dependence for dependence in found if dependence.margin < 0]
    return {
        "hazards": [described(program, dependence) for dependence in short if not dependence.overlooked_by_llvm],
        "overlooked": [described(program, dependence) for dependence in short if dependence.overlooked_by_llvm],
        "margin": min((dependence.margin for dependence in found), default=None),
        "inline_margin": min((dependence.margin for dependence in found if dependence.inline), default=None),
    }


def check_wait_states(row: dict[str, Any]) -> None:
    """The last thing that a test asks of a row: what LLVM overlooks is nobody's fault here, and shows in the report."""
    assert row["hazards"] == []
    if row["overlooked"]:
        pytest.xfail(f"LLVM looks 19 wait states back, where 20 are needed: {'; '.join(row['overlooked'])}")


def with_wait_states(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of saved compiles with the keys of :func:`wait_states`, in place of the files, which nobody reads after that."""
    checked = []
    for row in rows:
        assembly = next((file for file in row.get("files", ()) if file.endswith(".amdgcn")), None)
        found = wait_states(Path(assembly).read_text()) if assembly else {}
        checked.append({**{key: value for key, value in row.items() if key != "files"}, **found})
    return checked
