"""``capgate verify``: every variant that this machine takes, held against float64 and timed, as a file and a page."""

import argparse
import json
from collections import Counter
from typing import Any

from capgate.compat.command import asking, printing, prints_to_stderr
from capgate.compat.offline.answers import TIMEOUT
from capgate.compat.outputs import Outputs
from capgate.compat.spelling import nearest
from capgate.compat.terminal import console, print_whole

from . import document, page, verdicts
from .document import CPU, DOCUMENT, GPU, INTERPRETER, Run

JSON, MARKDOWN = "capgate-verify.json", "capgate-verify.md"
NO_GPU = {
    CPU: "There is no GPU here. Verified was the reference on the CPU; with TRITON_INTERPRET=1 classic kernels run, too.",
    INTERPRETER: "There is no GPU here. Verified were the reference, and the classic kernels in Triton's interpreter.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate verify``."""
    parser.add_argument("operations", nargs="*", metavar="operation", help="only this operation, such as fp8_mqa_logits")
    parser.add_argument("--quick", action="store_true", help="a few cases of each operation, and few times")
    parser.add_argument("--variants", help="only these, with commas between them")
    parser.add_argument("--no-times", action="store_true", help="judge, and time nothing")
    parser.add_argument("--json", metavar="FILE", default=JSON, help=f"the file with all that was found ({JSON})")
    parser.add_argument("--markdown", metavar="FILE", default=MARKDOWN, help=f"the page ({MARKDOWN})")
    parser.add_argument("--workers", type=int, help="processes that judge side by side; one for each core otherwise, up to 16")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help=f"seconds that one case may take ({TIMEOUT:g})")
    parser.add_argument(
        "--tune",
        metavar="FILE",
        help="then try tunings around the tables' on this GPU, some minutes more, and write what is faster for CAPGATE_TUNINGS",
    )
    parser.add_argument(
        "--case", nargs=3, metavar=("OPERATION", "VARIANT", "CASE"), help="one case alone, with all that its failure says"
    )
    parser.add_argument(
        "--merge", nargs="+", metavar="FILE", help="run nothing; print the page of docs for files of earlier runs"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the parsed ``arguments`` ask for.

    Returns 0 where every case agrees on a GPU, 1 where one fails or nothing was judged, 3 where there is no GPU.
    """
    if arguments.merge:
        with asking():
            made = page.merged([DOCUMENT.read(file) for file in arguments.merge])
        with printing():
            print(made, end="")
        return 0
    if arguments.case:
        return _one_case(*arguments.case)
    from .verification import Verification

    outputs: Outputs[Run] = Outputs()
    with asking(), prints_to_stderr():
        outputs.add("--json", arguments.json, lambda run: json.dumps(run, indent=1))
        outputs.add("--markdown", arguments.markdown, page.page)
        tuned: Outputs[dict[str, Any]] = Outputs()
        if arguments.tune:
            tuned.add("--tune", arguments.tune, lambda tunings: json.dumps(tunings, indent=1))
        if arguments.workers is not None and arguments.workers < 1:
            raise ValueError(f"--workers: got {arguments.workers}, needs 1 or more")
        verification = Verification(
            arguments.operations,
            arguments.variants.split(",") if arguments.variants else [],
            quick=arguments.quick,
            timed=not arguments.no_times or arguments.tune is not None,
        )
        if arguments.tune and verification.found["executed"] != GPU:
            raise ValueError("--tune: found no GPU, needs one to take times on")
    with prints_to_stderr():
        workers = arguments.workers or verification.usual_workers()
        runner = verification.runner(arguments.timeout)
        for known in verification.go_on(runner, workers):
            with outputs.written(known):
                pass
        found = verification.found
        for _ in verification.tune(runner, workers) if arguments.tune else ():
            with tuned.written(verification.tunings()), outputs.written(found):
                pass
    with tuned.written(verification.tunings()), outputs.written(found):
        show(found, arguments.json, arguments.markdown)
    return document.status(found)


def _one_case(operation: str, variant: str, name: str) -> int:
    """Run a case in this process, where a debugger may look at it."""
    from . import catalogue
    from .child import Child
    from .verification import where

    device = where()
    with asking():
        known = catalogue.find(operation, name, small=device.type != "cuda").operation.variants
        if variant not in known:
            raise ValueError(f"--case: {operation} has no variant {variant!r}; {nearest(variant, known)}")
    with prints_to_stderr():
        child = Child(device, small=device.type != "cuda", flush_bytes=0)
        row = child.judge({"operation": operation, "variant": variant, "case": name})
    with printing():
        print(row.get("traceback", ""), end="")
        print(f"{operation}, {variant}, {name}: {row['verdict']}{': ' if row['words'] else ''}{row['words']}")
    return 1 if row["verdict"] != verdicts.AGREES else 0


def show(found: Run, json_file: str, markdown_file: str) -> None:
    """Print what was found for people."""
    from rich.text import Text

    from ..bench.tables import empty, note

    printer, stack = console(), found["stack"]
    title = f"{stack['device']} ({stack['target']}), Triton {stack['triton']}: executed {found['executed']}"
    table = empty(title, ("operation", "variant", "agree", "fail", "not taken", "us"))
    for row in found["variants"]:
        if not row["taken"]:
            continue
        names = (row["operation"], row["variant"])
        mine = [case for case in found["cases"] if (case["operation"], case["variant"]) == names]
        said = Counter(case["verdict"] for case in mine)
        failed = sum(said[verdict] for verdict in (*verdicts.FAILURES, verdicts.NOT_JUDGED))
        times = [
            f"{1e3 * each['median_ms']:.4g}"
            for each in found["times"]
            if (each["operation"], each["variant"]) == names and each["median_ms"]
        ]
        figures = (str(said[verdicts.AGREES]), str(failed), str(said[verdicts.NOT_TAKEN]), ", ".join(times))
        table.add_row(*names, *figures, style="red" if failed else "")
    print_whole(printer, table)
    for case in found["cases"]:
        if case["verdict"] in verdicts.FAILURES:
            where = f"{case['operation']}, {case['variant']}, {case['case']}"
            printer.print(Text(f"{where}: {case['verdict']}: {case['words']}", "red"))
    if found["executed"] != GPU:
        printer.print(Text(NO_GPU.get(found["executed"], ""), "bold"))
    for answer in found["asked"]:
        printer.print(Text(f"{answer['capability']}: {answer['words']}"))
    for row in found["tuned"]:
        changes = ", ".join(f"{name} {value}" for name, value in row["fields"].items())
        words = f"{row['operation']}, {row['variant']}, {row['call']}: {changes}: "
        printer.print(Text(f"{words}{1e3 * row['before_ms']:.4g} to {1e3 * row['after_ms']:.4g} us"))
    if found["first_failure"]:
        printer.print(Text(f"again: {found['first_failure']['reproducer']}"))
    note(printer, f"{found['seconds']:.0f} s; written to {json_file} and {markdown_file}")
