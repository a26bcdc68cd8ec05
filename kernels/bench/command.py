"""``capgate bench``: time the branches of fp8_mqa_logits on this machine."""

import argparse
import json
import platform
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from capgate import compat
from capgate.compat import versions

from ..launch import multiprocessors
from ..mqa_logits.operation import example, operation
from .peers import PEERS, installed
from .plot import files_of, plot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate bench``."""
    parser.add_argument("--workload", default="all", help="names separated by commas (a, b, c, d1, d2, e-a, ...), or all")
    parser.add_argument(
        "--variants",
        default="",
        help=f"branches, and other libraries ({', '.join(PEERS)}), separated by commas; all that can run here otherwise",
    )
    parser.add_argument("--clean", choices=("both", "on", "off"), default="both", help="clean_logits")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls for each median (20)")
    parser.add_argument("--flush-gb", type=float, default=8.0, help="gigabytes written before each timed call on a GPU (8)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the results and the whole stack's description, - for standard output"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw TFLOP/s against the ceiling: .png, .svg, or both without a suffix")


def run(arguments: argparse.Namespace) -> int:
    """Time what the parsed ``arguments`` ask for and print it; returns the exit status."""
    import torch

    from .ceilings import measure
    from .timing import Timer, this_device
    from .workloads import SMALL, WORKLOADS

    try:
        pictures = files_of(arguments.plot) if arguments.plot else []
    except ValueError as error:
        print(f"capgate: {error}", file=sys.stderr)
        return 2
    if pictures and find_spec("matplotlib") is None:
        print("capgate: --plot: needs matplotlib (pip install capgate[plot])", file=sys.stderr)
        return 2

    device = this_device()
    known = WORKLOADS if device.type == "cuda" else SMALL
    names = list(known) if arguments.workload == "all" else arguments.workload.split(",")
    peers = installed() if device.type == "cuda" else {}
    variants = arguments.variants.split(",") if arguments.variants else [*_runnable(device), *peers]
    for argument, given, allowed in (("--workload", names, known), ("--variants", variants, [*operation.variants, *peers])):
        for name in given:
            if name not in allowed:
                print(f"capgate: {argument}: got {name!r}, needs one of {', '.join(allowed)} on {device.type}", file=sys.stderr)
                return 2
    timer = Timer(device, repeats=arguments.repeats, flush_bytes=int(arguments.flush_gb * 1e9))
    cleans = {"both": (False, True), "on": (True,), "off": (False,)}[arguments.clean]
    ceilings = measure(timer, getattr(torch, example(device).dtype))
    results = {
        "stack": {**describe(device), **peers},
        "repeats": arguments.repeats,
        "flush_gb": arguments.flush_gb if device.type == "cuda" else 0,
        "ceilings": ceilings._asdict() if ceilings else None,
        "rows": _measure(timer, ceilings, [known[name] for name in names], variants, cleans),
    }
    if pictures:
        plot(results, pictures)
    if arguments.json == "-":
        print(json.dumps(results, indent=2))
        return 0
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)
    show(results)
    return 0


def describe(device: Any) -> dict[str, Any]:
    """The stack that a result belongs to."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "capgate": _installed_version("capgate"),
        **{name: versions.find(name).text for name in ("triton", "triton_kernels", "torch")},
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "target": str(compat.capabilities(device).target),
        "multiprocessors": multiprocessors(device),
        "runtime": torch.version.cuda or torch.version.hip,
        "driver": _driver(),
        "interpreter": bool(compat.capabilities(device).interpreter),
        "python": platform.python_version(),
    }


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from a source tree
        return None


def _driver() -> str | None:
    """The version of NVIDIA's driver, or of the kernel with AMD's module; None without either."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        amd = Path("/sys/module/amdgpu/version")
        return amd.read_text().strip() if amd.exists() else None


def _runnable(device: Any) -> list[str]:
    """Every branch that could take the example problem, also those that wait to be named."""
    problem = example(device)
    return [name for name in operation.variants if operation.explain(problem, name).variant == name]


def _measure(
    timer: Any, ceilings: Any, workloads: list[Any], variants: list[str], cleans: tuple[bool, ...]
) -> list[dict[str, Any]]:
    import torch
    from rich.progress import Progress

    from .workloads import make

    device, rows = timer.device, []
    dtype = getattr(torch, example(device).dtype)
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("timing", total=len(workloads) * len(variants) * len(cleans))
        for workload in workloads:
            batch = make(workload, device, dtype)
            for clean in cleans:
                facts = {
                    **{name: getattr(workload, name) for name in ("rows", "keys", "heads", "dim")},
                    "flops": batch.flops,
                    "least_bytes": batch.least_bytes(clean),
                    "floor_ms": ceilings.floor_ms(batch, clean) if ceilings else None,
                }
                for variant in variants:
                    progress.update(task, advance=1, description=f"{workload.name} {variant} clean={clean}")
                    call = _call(workload, batch, variant, clean)
                    if call is not None:
                        times = {f"{name}_ms": value for name, value in timer(call)._asdict().items()}
                        rows.append({"workload": workload.name, "variant": variant, "clean_logits": clean, **facts, **times})
                    del call
            del batch
    return rows


def _call(workload: Any, batch: Any, variant: str, clean: bool) -> Any:
    """What to time: ours into a buffer that is kept, a peer's with the buffer that it allocates; None if there is no such."""
    from ..mqa_logits import fp8_mqa_logits

    if clean and workload.max_window is not None:
        return None  # a compressed output is never cleaned
    if variant in PEERS:
        peer = PEERS[variant]
        return peer.bind(peer.find(), batch, clean, workload.max_window)
    keywords = {"clean_logits": clean, "max_window": workload.max_window, "variant": variant}
    return partial(fp8_mqa_logits, *batch, out=fp8_mqa_logits(*batch, **keywords), **keywords)


def show(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stack = results["stack"]
    console = Console(highlight=False)
    console.width = max(console.width, 100)  # what the table needs: a pipe has 80 columns, and would cut figures short
    console.print(f"{stack['device']} ({stack['target']}), Triton {stack['triton']}, torch {stack['torch']}", soft_wrap=True)
    if stack["target"] == "cpu":
        how = "Triton's interpreter" if stack["interpreter"] else "no Triton branch"
        console.print(
            f"On the CPU: small sizes, torch reference and {how}; these times say nothing about a GPU.", soft_wrap=True
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("shape", "S x N", "H", "branch", "clean", "ms", "noise", "TFLOP/s", "GB/s", "x floor"):
        table.add_column(column, justify="left" if column in ("shape", "branch") else "right", no_wrap=True)
    for row in results["rows"]:
        seconds = row["median_ms"] / 1e3
        table.add_row(
            row["workload"],
            f"{row['rows']}x{row['keys']}",
            str(row["heads"]),
            row["variant"],
            "yes" if row["clean_logits"] else "no",
            f"{row['median_ms']:.4g}",
            f"{(row['high_ms'] - row['low_ms']) / row['median_ms']:.1%}",
            f"{row['flops'] / seconds / 1e12:.3g}",
            f"{row['least_bytes'] / seconds / 1e9:.4g}",
            f"{row['median_ms'] / row['floor_ms']:.2f}" if row["floor_ms"] else "",
        )
    console.print(table)
    console.print("[dim]ms: median; noise: between the first and third quartile; GB/s: the fewest bytes the call can move.[/]")
    if results["ceilings"]:
        flops, bytes_ = results["ceilings"]["flops"] / 1e12, results["ceilings"]["bytes"] / 1e12
        console.print(
            f"[dim]floor: the time at {flops:.4g} TFLOP/s (fp8 matmul of 8192) and {bytes_:.4g} TB/s (device copy), both "
            "measured in this run.[/]",
            soft_wrap=True,
        )
