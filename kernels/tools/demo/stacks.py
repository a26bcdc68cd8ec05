"""Which variant would run on which stack, and why: by the reports of other Tritons for named targets."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from capgate.compat import targets
from capgate.compat.offline.children import Child
from capgate.compat.releases import parse_release

OPERATION, DECODE = "fp8_mqa_logits", "fp8_paged_mqa_logits"

# Which Gluon capability a reader looks for on each target of the table of stacks; the last one is a machine without a GPU.
TARGETS = {"hip:gfx942": "gluon_cdna4", "hip:gfx950": "gluon_cdna4", "cuda:90": "gluon_hopper", "cpu": "gluon"}


def collect(folders: list[str]) -> list[dict[str, Any]]:
    """The reports of this Triton and of those in ``folders`` for each of TARGETS, by child processes, two at a time."""
    asked = [(folder, target) for folder in [*folders, ""] for target in TARGETS]
    reports = []
    with ExitStack() as stack:
        children: list[Child] = []
        for number in range(len(asked)):
            children += [stack.enter_context(_report(*question)) for question in asked[len(children) : number + 2]]
            said, _ = children[number].communicate()
            if children[number].returncode:
                raise subprocess.CalledProcessError(children[number].returncode, children[number].args)
            reports.append(json.loads(said))
    rows = [
        {
            "triton": found["triton"],
            "target": found["target"],
            "operation": OPERATION,
            **found["operations"][OPERATION],
            "decode": found["operations"][DECODE],
            "gluon": {"capability": TARGETS[found["target"]], **found["capabilities"][TARGETS[found["target"]]]},
        }
        for found in reports
    ]
    return sorted(rows, key=lambda row: parse_release(row["triton"] or ""))


def _report(folder: str, target: str) -> Child:
    """What prints the report of the Triton in a folder, or of this one where that is "", for a target."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(part for part in (folder and os.path.abspath(folder), path) if part)
    command = [sys.executable, "-m", "capgate.compat", "--json", "--target", target]
    return Child(command, env=environment, stdout=subprocess.PIPE)


def show(console: Any, rows: list[dict[str, Any]]) -> None:
    """Print what :func:`collect` found: the variants of prefill and decode, and why prefill takes its."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_lines=False)
    table.title, table.title_justify, table.title_style = "Which variant would run, and could it be Gluon", "left", "bold"
    for column in ("Triton", "target", "prefill", "decode"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", ratio=1)
    for row in rows:
        gluon, target = row["gluon"], targets.parse(row["target"])
        taken = next((step["reason"] for step in row["trace"] if step["variant"] == row["variant"]), "nothing accepts it")
        passed_over = [f"not {step['variant']}: {step['reason']}" for step in row["trace"] if not step["accepted"]]
        lines = [taken, *passed_over]
        if not any(step["variant"] == gluon["capability"] for step in row["trace"]):  # otherwise its variant has said so
            lines.append(f"{gluon['capability']} {'holds' if gluon['available'] else 'does not hold'}: {gluon['reason']}")
        variants = (row["variant"] or "none", row["decode"]["variant"] or "none")
        table.add_row(row["triton"] or "none", target.label, *variants, "\n".join(lines))
        table.add_section()
    console.print(table)
