"""Which variant would run on which stack, and why: by the reports of other Tritons for named targets."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from capgate.compat import report, targets
from capgate.compat.command import prints_to_stderr
from capgate.compat.offline.children import Child
from capgate.compat.releases import parse_release

from .working import working

OPERATION, DECODE = "fp8_mqa_logits", "fp8_paged_mqa_logits"

# Which Gluon capability a reader looks for on each target of the table of stacks; the last one is a machine without a GPU.
TARGETS = {"hip:gfx942": "gluon_cdna3", "hip:gfx950": "gluon_cdna4", "cuda:90": "gluon_hopper", "cpu": "gluon"}


def collect(folders: list[str]) -> list[dict[str, Any]]:
    """The reports of this Triton and of those in ``folders`` for each of TARGETS, by a child process each."""
    reports = []
    with ExitStack() as stack:
        children = [stack.enter_context(_reports(folder)) for folder in [*folders, ""]]
        for child, folder in zip(children, [*folders, "this Triton"], strict=True):
            with working(f"the reports of {folder}"):
                said, _ = child.communicate()
            if child.returncode:
                raise subprocess.CalledProcessError(child.returncode, child.args)
            reports += json.loads(said)
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


def _reports(folder: str) -> Child:
    """What prints the reports of the Triton in a folder, or of this one where that is "", as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(part for part in (folder and os.path.abspath(folder), path) if part)
    return Child([sys.executable, "-m", __name__], env=environment, stdout=subprocess.PIPE)


def decisive(row: dict[str, Any]) -> str:
    """The one reason that decides a row: why its Gluon variant is taken, or what stands against it.

    Where both the build and the target stand against it, the target does: no other Triton would change that. A machine without
    a GPU has no Gluon variant; there it is what stands against the classic one.
    """
    gluon = row["gluon"]
    if row["target"] == "cpu":
        classic: str = next(step["reason"] for step in row["trace"] if step["variant"] == "classic")
        return classic.partition("; ")[0]
    reason: str = gluon["reason"]
    return reason if gluon["available"] else reason.split("; ")[-1]


def show(console: Any, rows: list[dict[str, Any]]) -> None:
    """Print what :func:`collect` found: the variants of prefill and decode, and the reason that decides."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.title, table.title_justify, table.title_style = "Which variant would run, and why", "left", "bold"
    for column in ("Triton", "target", "prefill", "decode"):
        table.add_column(column, no_wrap=True)
    table.add_column("why")
    for row in rows:
        variants = (row["variant"] or "none", row["decode"]["variant"] or "none")
        table.add_row(row["triton"] or "none", targets.parse(row["target"]).label, *variants, decisive(row))
    console.print(table)
    console.print(
        "Every reason of a row: capgate report --target hip:gfx950, with that Triton's folder on PYTHONPATH.", style="dim"
    )


if __name__ == "__main__":
    with prints_to_stderr():
        found = [report.collect(target) for target in TARGETS]
    json.dump(found, sys.stdout)
