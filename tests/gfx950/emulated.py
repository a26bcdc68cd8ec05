"""Add what the emulator finds to a result of ``capgate compile --json``, for its table in Markdown.

    capgate compile fp8_mqa_logits --target hip:gfx950 --json > 3.6.0.json
    python tests/gfx950/emulated.py 3.6.0.json
    capgate compile --from 3.6.0.json --markdown

The same Triton compiles the branches again, for small calls; every window case runs with copies landing late and early.
"""

import json
import sys
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - makes this folder importable as gfx950
from gfx950.mqa import BRANCHES, WINDOWS, Case, execute, prepare, windowed, worst_error

from capgate.kernels.mqa_logits.operation import MODES

LANDINGS = ("late", "early")


def emulated(variant: str, heads: int, dim: int, mode: str) -> dict[str, Any]:
    """LDS cycles of full windows (5 rows of 300 keys), and the worst error of all windows as a part of the magnitudes."""
    clean_logits, compressed = MODES[mode]
    errors = []
    for name, rows in WINDOWS.items():
        case = Case(windowed(rows, heads, dim), clean_logits, 130 if compressed else None)
        prepared = prepare(BRANCHES[variant], case)
        for landing in LANDINGS:
            result = execute(prepared, landing=landing)
            errors.append(worst_error(prepared))
            if name == "full":
                cycles = result.counters
    return {
        "lds_cycles": cycles.lds_cycles,
        "lds_ideal_cycles": cycles.lds_ideal_cycles,
        "worst_error": max(errors),
        "cases": len(errors),
    }


def main(file: str) -> None:
    path = Path(file)
    result = json.loads(path.read_text())
    for row in result["variants"]:
        if row["compiled"] and row["variant"] in BRANCHES:
            row["emulated"] = emulated(row["variant"], row["heads"], row["dim"], row["mode"])
    path.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
