"""Add what the emulator finds to a result of ``capgate compile --json``, for its table in Markdown.

    capgate compile fp8_mqa_logits --target hip:gfx950 --json > 3.6.0.json
    python tests/gfx950/emulated.py 3.6.0.json
    capgate compile --from 3.6.0.json --markdown

The same Triton compiles the variants again, for small calls; every case runs with copies landing late and early.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, as pytest has it there
from capgate.kernels.mqa_logits.operation import MODES
from capgate.kernels.mx_logits.operation import MODES as MX_MODES
from capgate.kernels.mx_paged_logits.operation import MODES as MX_PAGED_MODES
from support import emulated_mqa as mqa
from support import emulated_mx as mx
from support import emulated_paged_mqa as paged_mqa
from support.mx_paged import make_call as make_mx_call
from support.paged import make_call

LANDINGS = ("late", "early")


def dense_cases(heads: int, dim: int, mode: str) -> dict[str, mqa.Case]:
    """Calls of 5 rows and 300 keys by the names of their windows."""
    clean_logits, compressed = MODES[mode]
    return {
        name: mqa.Case(mqa.windowed(rows, heads, dim), clean_logits, 130 if compressed else None)
        for name, rows in mqa.WINDOWS.items()
    }


def paged_cases(heads: int, dim: int, mode: str) -> dict[str, paged_mqa.PagedCase]:
    """Batches with one row for each request and blocks of 64 keys by the names of their lengths."""
    return {
        name: paged_mqa.PagedCase(make_call(lens, 1, heads, dim), max(*lens, 1), mode == "clean")
        for name, lens in paged_mqa.LENGTHS.items()
    }


def mx_cases(heads: int, dim: int, mode: str) -> dict[str, mx.MxCase]:
    """As :func:`dense_cases`, of MX formats."""
    q_format, k_format, clean_logits, compressed = MX_MODES[mode]
    return {
        name: mx.MxCase(mx.windowed(rows, heads, dim, (q_format, k_format)), clean_logits, 130 if compressed else None)
        for name, rows in mqa.WINDOWS.items()
    }


def mx_paged_cases(heads: int, dim: int, mode: str) -> dict[str, mx.MxPagedCase]:
    """As :func:`paged_cases`, of MX formats."""
    q_format, k_format, clean_logits = MX_PAGED_MODES[mode]
    return {
        name: mx.MxPagedCase(make_mx_call(lens, 1, heads, dim, pair=(q_format, k_format)), max(*lens, 1), clean_logits)
        for name, lens in paged_mqa.LENGTHS.items()
    }


OPERATIONS = {
    "fp8_mqa_logits": (mqa.VARIANTS, dense_cases),
    "fp8_paged_mqa_logits": (paged_mqa.VARIANTS, paged_cases),
    "mx_mqa_logits": (mx.VARIANTS, mx_cases),
    "mx_paged_mqa_logits": (mx.PAGED_VARIANTS, mx_paged_cases),
}


def emulated(variant: mqa.Variant, cases: dict[str, Any]) -> dict[str, Any]:
    """LDS cycles of the case "full", and the worst error of all cases as a part of the magnitudes."""
    errors = []
    for name, case in cases.items():
        prepared = mqa.prepare(variant, case)
        for landing in LANDINGS:
            result = mqa.execute(prepared, landing=landing)
            errors.append(mqa.worst_error(prepared))
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
    variants, cases_of = OPERATIONS[result["operation"]]
    for row in result["variants"]:
        if row["compiled"] and row["variant"] in variants:
            row["emulated"] = emulated(variants[row["variant"]], cases_of(row["heads"], row["dim"], row["mode"]))
    path.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
