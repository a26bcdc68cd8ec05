"""``capgate bench``: time the variants of every operation on this machine."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from capgate.compat.command import asking, prints_to_stderr
from capgate.compat.outputs import Outputs

from .plot import add_pictures, plot
from .tables import Results, show, show_stack

HOST_REPEATS = 200  # a call takes tens of microseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate bench``."""
    parser.add_argument(
        "--workload",
        default="all",
        help="names separated by commas (a, decode-8k, top512, 1k1k, ...), or groups: prefill, decode, selection, "
        "decode-selection, serving, all; and besides: orders, selections from logits that are no random ones, and matrix, "
        "selections behind 19 lengths of history, minutes on a GPU",
    )
    parser.add_argument(
        "--variants",
        default="",
        help="variants, and other libraries (deep_gemm, aiter, tilelang), separated by commas; otherwise all that "
        "can run here, without the reference on a GPU",
    )
    parser.add_argument("--clean", choices=("both", "on", "off"), default="both", help="clean_logits")
    parser.add_argument(
        "--fused",
        action="store_true",
        help="of selections and the matrix: time scoring and selecting in one kernel wherever one can; otherwise where it is "
        "taken by itself",
    )
    parser.add_argument("--repeats", type=int, help="timed calls for each median (20 on a GPU, 3 on the CPU)")
    parser.add_argument("--rounds", type=int, default=3, help="medians of each variant, which take turns (3)")
    parser.add_argument("--flush-gb", type=float, default=8.0, help="gigabytes written before each timed call on a GPU (8)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the results and the whole stack's description, - for standard output"
    )
    parser.add_argument(
        "--host",
        action="store_true",
        help="in place of workloads: what calls cost the host, us, and what many of them leave behind; on the CPU checks alone",
    )
    parser.add_argument(
        "--calls", type=int, default=10_000, help="with --host: calls between two looks at memory, up to 1000000 say (10000)"
    )
    parser.add_argument(
        "--first",
        action="store_true",
        help="in place of workloads: seconds from a process's start to its first result, Triton's cache empty and filled",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw rates against the ceiling: .png, .svg, or both without a suffix")


def run(arguments: argparse.Namespace) -> int:
    """Time what the parsed ``arguments`` ask for and print it; returns 1 when a call of ours could not be timed."""
    if arguments.host or arguments.first:
        return _run_host(arguments)
    from ..workloads.catalogue import GROUPS, SMALL, WORKLOADS, select
    from . import matrix
    from .other_libraries import NAMES
    from .timing import this_device

    outputs: Outputs[Results] = Outputs()
    device = this_device()
    known = WORKLOADS if device.type == "cuda" else SMALL
    with asking(), prints_to_stderr():
        if arguments.plot is not None:
            add_pictures(outputs, arguments.plot, plot)
        if arguments.json not in (None, "-"):
            outputs.add("--json", arguments.json, _as_json)
        if arguments.repeats is None:
            arguments.repeats = 20 if device.type == "cuda" else 3
        for name in ("repeats", "rounds"):
            if getattr(arguments, name) < 1:
                raise ValueError(f"--{name}: got {getattr(arguments, name)}, needs 1 or more")
        if not 0 <= arguments.flush_gb < float("inf"):
            raise ValueError(f"--flush-gb: got {arguments.flush_gb}, needs 0 or more")
        workloads = select(_listed("--workload", arguments.workload, [*GROUPS, *known], device), known)
        if arguments.plot is not None and not any(hasattr(workload, "operation") for workload in workloads):
            raise ValueError("--plot: draws kernels, and no workload is one; capgate compare draws serving runs")
        operations = list(dict.fromkeys(operation for workload in workloads for operation in workload.operations))
        variants = _variants(arguments.variants, operations, device)
    with prints_to_stderr():
        results = _measure(device, workloads, variants, arguments)
    with outputs.written(results):
        if arguments.json == "-":
            print(_as_json(results))
        else:
            show(results)
            if results["matrix"]:
                matrix.show(results)
    return 1 if any(not remark["measured"] and remark["variant"] not in NAMES for remark in results["remarks"]) else 0


def _run_host(arguments: argparse.Namespace) -> int:
    """Time calls on the host, or a process's first one, or both."""
    from . import first, host
    from .environment import describe
    from .timing import this_device

    outputs: Outputs[Results] = Outputs()
    device = this_device()
    with asking():
        if arguments.json not in (None, "-"):
            outputs.add("--json", arguments.json, _as_json)
        for name, given in (
            ("workload", arguments.workload != "all"),
            ("variants", arguments.variants),
            ("plot", arguments.plot),
        ):
            if given:
                raise ValueError(f"--{name}: is of workloads, and goes with neither --host nor --first")
        for name, least in (("repeats", arguments.repeats), ("calls", arguments.calls)):
            if least is not None and least < 1:
                raise ValueError(f"--{name}: got {least}, needs 1 or more")
    with prints_to_stderr():
        results: Results = {"stack": describe(device)}
        if arguments.first:
            results["first"] = first.measure()
        if arguments.host:
            results["host"] = host.measure(device, arguments.repeats or HOST_REPEATS, arguments.calls)
    with outputs.written(results):
        if arguments.json == "-":
            print(_as_json(results))
            return 0
        show_stack(results["stack"])
        if arguments.first:
            first.show(results["first"])
        if arguments.host:
            host.show(results["host"])
    return 0


def _as_json(results: Results) -> str:
    return json.dumps(results, indent=2)


def _measure(
    device: Any, workloads: list[Any], variants: dict[str, list[str]], arguments: argparse.Namespace
) -> dict[str, Any]:
    import torch

    from ...mqa_logits.operation import example
    from ..workloads.accuracy import Accuracy
    from ..workloads.decode import Decode
    from ..workloads.matrix import Matrix
    from ..workloads.prefill import Prefill
    from ..workloads.selection import DecodeSelection, Selection
    from ..workloads.serving import Serving
    from .ceilings import measure
    from .environment import describe
    from .matrix import matrix_rows, summary
    from .measure import Plan, accuracy_rows, kernel_rows, selection_rows, serving_rows
    from .other_libraries import installed
    from .timing import Timer

    timer = Timer(device, repeats=arguments.repeats, flush_bytes=int(arguments.flush_gb * 1e9))
    cleans = {"both": (False, True), "on": (True,), "off": (False,)}[arguments.clean]
    plan = Plan(timer, getattr(torch, example(device).dtype), variants, cleans, arguments.rounds)
    kernels = [workload for workload in workloads if isinstance(workload, (Prefill, Decode))]
    fused = True if arguments.fused else None
    selections = [replace(each, fused=fused) for each in workloads if isinstance(each, (Selection, DecodeSelection))]
    matrices = [replace(workload, fused=fused) for workload in workloads if isinstance(workload, Matrix)]
    runs = [workload for workload in workloads if isinstance(workload, Serving)]
    accuracies = [workload for workload in workloads if isinstance(workload, Accuracy)]
    _say_what_is_left_out(plan, [*runs, *accuracies])
    ceilings = measure(timer, plan.dtype) if kernels or selections else None
    results = {
        "stack": {**describe(device), **(installed() if device.type == "cuda" else {})},
        "repeats": arguments.repeats,
        "rounds": arguments.rounds,
        "flush_gb": arguments.flush_gb if device.type == "cuda" else 0,
        "workloads": {workload.name: workload.facts() for workload in workloads},
        "ceilings": ceilings._asdict() if ceilings else None,
        "rows": kernel_rows(plan, ceilings, kernels),
        "selection": selection_rows(plan, ceilings, selections),
        "matrix": None,
        "serving": serving_rows(plan, runs),
        "accuracy": accuracy_rows(plan, accuracies),
    }
    if matrices:
        cells = matrix_rows(plan, matrices)
        results["matrix"] = {"rows": cells, "summary": summary(cells)}
    return {**results, "remarks": [remark._asdict() for remark in plan.remarks]}


def _say_what_is_left_out(plan: Any, workloads: list[Any]) -> None:
    """A run of several operations needs a variant in each of them."""
    for workload in workloads:
        used = plan.variants_of(workload.operations)
        for operation in workload.operations:
            for name in plan.variants[operation.name]:
                if name not in used:
                    print(f"capgate: {workload.name} leaves out {name}: only {operation.name} has it here", file=sys.stderr)


def _variants(given: str, operations: Sequence[Any], device: Any) -> dict[str, list[str]]:
    """The variants and peers to time for each operation: those named, or all that can run here.

    On a GPU a last resort is timed only where it is named: it may take a thousand times as long as the others.

    Raises ValueError for a name that no operation has here, and for a named variant that cannot run.
    """
    from .other_libraries import PEERS, installed

    peers = installed() if device.type == "cuda" else {}
    offered = {
        operation.name: [*operation.variants, *(name for name in PEERS[operation.name] if name in peers)]
        for operation in operations
    }
    every = list(dict.fromkeys(name for names in offered.values() for name in names))
    chosen: dict[str, list[str]] = {name: [] for name in offered}
    for name in _listed("--variants", given, every, device) if given else every:
        for operation in operations:
            why_not = _why_not(operation, name, device) if name in operation.variants else None
            if why_not and given:
                raise ValueError(f"--variants: {name} cannot run {operation.name} here: {why_not}")
            slow = name in operation.variants and operation.variants[name].last_resort and device.type == "cuda"
            if name in offered[operation.name] and not why_not and (given or not slow):
                chosen[operation.name].append(name)
    return chosen


def _why_not(operation: Any, variant: str, device: Any) -> str | None:
    """Why a variant takes none of the operation's example problems here, even when it is named; None where it takes one."""
    made = operation.examples
    problems = [operation.example(device), *(made.problem(device, 64, 128, mode, None) for mode in made.modes)]
    traces = [operation.explain(problem, variant) for problem in problems]
    if any(trace.variant for trace in traces):
        return None
    reason: str = next(step.reason for step in traces[0].steps if step.variant == variant)
    return reason


def _listed(argument: str, given: str, allowed: Iterable[str], device: Any) -> list[str]:
    names = given.split(",")
    for name in names:
        if name not in allowed:
            raise ValueError(f"{argument}: got {name!r}, needs one of {', '.join(allowed)} on {device.type}")
    return names
