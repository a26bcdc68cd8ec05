"""``capgate verify``: every variant that this machine takes, held against float64 and timed, as a file and a page."""

import argparse
import datetime
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from capgate import compat
from capgate.compat.command import asking, printing, prints_to_stderr
from capgate.compat.offline.answers import TIMEOUT
from capgate.compat.outputs import Outputs
from capgate.compat.spelling import nearest
from capgate.compat.terminal import console, print_whole

from . import document, page, verdicts
from .document import CPU, DOCUMENT, GPU, INTERPRETER, Run, without_names
from .jobs import Job, Runner, groups_of
from .verdicts import Row

JSON, MARKDOWN = "capgate-verify.json", "capgate-verify.md"
NO_GPU = {
    CPU: "There is no GPU here. Verified was the reference on the CPU; with TRITON_INTERPRET=1 classic kernels run, too.",
    INTERPRETER: "There is no GPU here. Verified were the reference, and the classic kernels in Triton's interpreter.",
}
MOST_WORKERS = 16  # processes at once
WORKER_BYTES = 3 * 2**30  # of the GPU's memory that one of them may hold: its context, and the formula's float64 values
TOGETHER = 5  # cases that one process compiles and judges
TOGETHER_IN_TORCH = 40  # where nothing is compiled, starting a process takes longer than what it judges
FLUSH_BYTES = 8 * 10**9  # before each timed call, as capgate bench has it
MOST_FLUSHED = 1 / 8  # of the GPU's memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate verify``."""
    parser.add_argument("operations", nargs="*", metavar="operation", help="only this operation, such as fp8_mqa_logits")
    parser.add_argument("--quick", action="store_true", help="a few cases of each operation, and few times")
    parser.add_argument("--variants", help="only these, with commas between them")
    parser.add_argument("--no-times", action="store_true", help="judge, and time nothing")
    parser.add_argument("--json", metavar="FILE", default=JSON, help=f"the file with all that was found ({JSON})")
    parser.add_argument("--markdown", metavar="FILE", default=MARKDOWN, help=f"the page ({MARKDOWN})")
    parser.add_argument(
        "--workers", type=int, help=f"processes that compile and judge side by side (cores, up to {MOST_WORKERS})"
    )
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help=f"seconds that one case may take ({TIMEOUT:g})")
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
    outputs: Outputs[Run] = Outputs()
    with asking(), prints_to_stderr():
        outputs.add("--json", arguments.json, lambda run: json.dumps(run, indent=1))
        outputs.add("--markdown", arguments.markdown, page.page)
        if arguments.workers is not None and arguments.workers < 1:
            raise ValueError(f"--workers: got {arguments.workers}, needs 1 or more")
        verification = Verification(
            arguments.operations,
            arguments.variants.split(",") if arguments.variants else [],
            quick=arguments.quick,
            timed=not arguments.no_times,
        )
    with prints_to_stderr():
        for known in verification.go_on(arguments.workers or verification.usual_workers(), arguments.timeout):
            with outputs.written(known):
                pass
        found = verification.found
    with outputs.written(found):
        show(found, arguments.json, arguments.markdown)
    return document.status(found)


def _one_case(operation: str, variant: str, name: str) -> int:
    """Run a case in this process, where a debugger may look at it."""
    from ..bench.timing import this_device
    from . import catalogue
    from .child import Child

    device = this_device()
    with asking():
        try:
            catalogue.find(operation, name, small=device.type != "cuda")
        except LookupError as error:
            raise ValueError(str(error)) from error
    with prints_to_stderr():
        child = Child(device, small=device.type != "cuda", flush_bytes=0)
        row = child.judge({"operation": operation, "variant": variant, "case": name})
    with printing():
        print(row.get("traceback", ""), end="")
        print(f"{operation}, {variant}, {name}: {row['verdict']}{': ' if row['words'] else ''}{row['words']}")
    return 1 if row["verdict"] != verdicts.AGREES else 0


class Verification:
    """A run: what is to be done, and what was found so far.

    operations, variants : names of those that are meant; all of them where none is
    quick : a few cases of each operation
    timed : whether times are taken, which takes a GPU

    Raises ValueError for names that do not exist here.
    """

    def __init__(self, operations: Sequence[str], variants: Sequence[str], *, quick: bool, timed: bool) -> None:
        from ..bench.environment import describe
        from ..bench.timing import this_device
        from . import catalogue

        self.device = this_device()
        on_gpu = self.device.type == "cuda"
        self._cases = catalogue.cases(small=not on_gpu, quick=quick)
        every = {case.operation.name: case.operation for case in self._cases}
        for name in operations:
            if name not in every:
                raise ValueError(f"operation: no operation {name!r}; {nearest(name, every)}")
        self._operations = {name: each for name, each in every.items() if not operations or name in operations}
        known = {name for operation in self._operations.values() for name in operation.variants}
        for name in variants:
            if name not in known:
                raise ValueError(f"--variants: no variant {name!r}; {nearest(name, known)}")
        self._variants = set(variants) or known
        self._timed = timed and on_gpu
        self._began = time.perf_counter()
        interpreted = bool(compat.capabilities(self.device).interpreter)
        stack = {name: value for name, value in describe(self.device).items() if name != "serial"}  # which tells a machine
        self.found: Run = {
            "verify": 1,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "executed": GPU if on_gpu else INTERPRETER if interpreted else CPU,
            "quick": quick,
            "complete": False,
            "seconds": 0.0,
            "stack": stack,
            "variants": list(self._rows_of_variants()),
            "cases": [],
            "asked": [],
            "ceilings": None,
            "times": [],
            "first_failure": None,
        }

    def go_on(self, workers: int, timeout: float) -> Iterator[Run]:
        """Judge, then time; gives what is known after each of a run's parts, and as it is found."""
        runner = Runner(str(self.device), flush_bytes=self._flush_bytes(), timeout=timeout)
        yield from self._judge(runner, workers)
        if self._timed:
            yield from self._time(runner)
        self.found["complete"] = True
        self._note()

    def usual_workers(self) -> int:
        """How many processes judge side by side: one for each core, and no more than the GPU has memory for."""
        room = [os.cpu_count() or 1, MOST_WORKERS]
        if self.device.type == "cuda":
            room.append(self._gpu_bytes() // WORKER_BYTES)
        return max(1, min(room))

    def _rows_of_variants(self) -> Iterator[Row]:
        for operation in self._operations.values():
            for variant in operation.variants:
                if variant not in self._variants:
                    continue
                trace = operation.explain(operation.example(self.device) if operation.example else None, variant)
                step = next(step for step in trace.steps if step.variant == variant)
                reason = without_names(step.reason)[: document.WORDS]
                yield {"operation": operation.name, "variant": variant, "taken": step.accepted, "reason": reason}

    def _taken(self) -> list[tuple[str, str]]:
        return [(row["operation"], row["variant"]) for row in self.found["variants"] if row["taken"]]

    def _judge(self, runner: Runner, workers: int) -> Iterator[Run]:
        jobs: list[Job] = []
        for operation, variant in self._taken():
            names = {"operation": operation, "variant": variant}
            jobs += [
                {"what": "judge", **names, "case": case.name}
                for case in self._cases
                if case.operation.name == operation and (not case.asks or _may_ask(case.asks, self.device))
            ]
            jobs += [{"what": "prepare", **names, "call": call} for call in self._calls(operation, variant)]
        groups = groups_of(jobs, lambda job: TOGETHER_IN_TORCH if job["variant"] == "reference" else TOGETHER)
        rows: dict[tuple[Any, ...], Row] = {}
        with _progress("compiling and judging", len(jobs)) as advance:
            for job, row in runner.side_by_side(groups, workers):
                advance(f"{job['operation']} {job['variant']}", _alarm(job, row))
                if job["what"] == "judge":
                    rows[job["operation"], job["variant"], job["case"]] = row
                    self._keep(jobs, rows)
                    yield self.found
        asks = {(case.operation.name, case.name): case.asks for case in self._cases if case.asks}
        self.found["asked"] = document.answers(self.found["cases"], asks)

    def _keep(self, jobs: Sequence[Job], rows: dict[tuple[Any, ...], Row]) -> None:
        """The verdicts so far, in the order of the catalogue."""
        cases: list[Row] = []
        for job in jobs:
            if (row := rows.get((job["operation"], job["variant"], job.get("case")))) is not None:
                texts = {"words": without_names(row["words"])[: document.WORDS]}
                if "traceback" in row:
                    texts["traceback"] = without_names(row["traceback"])
                names = {name: job[name] for name in ("operation", "variant", "case")}
                cases.append({**names, "verdict": row["verdict"], "seconds": row.get("seconds"), **texts})
        self.found["cases"] = cases
        self._note()

    def _note(self) -> None:
        self.found["seconds"] = round(time.perf_counter() - self._began, 1)
        self.found["first_failure"] = document.first_failure(self.found["cases"])

    def _calls(self, operation: str, variant: str) -> list[str]:
        """What is timed of a variant: nothing of a last resort on a GPU, which may take a thousand times as long as others."""
        from .timed import timed

        if not self._timed or variant == "reference":
            return []
        return [each.name for each in timed(self.found["quick"]) if each.operation.name == operation]

    def _time(self, runner: Runner) -> Iterator[Run]:
        jobs = [
            {"what": "time", "operation": operation, "variant": variant, "call": call}
            for operation, variant in self._taken()
            for call in self._calls(operation, variant)
        ]
        with _progress("timing", len(jobs) + 1) as advance:
            first: Job = {"what": "ceilings", "operation": "ceilings", "variant": ""}
            for job, row in runner.in_order([first, *jobs]):
                if job["what"] == "ceilings":
                    self.found["ceilings"] = row.get("ceilings")
                else:
                    self.found["times"].append(_time_of(job, row, self.found["ceilings"]))
                advance(f"{job['operation']} {job['variant']}", _alarm(job, row))
                self._note()
                yield self.found

    def _flush_bytes(self) -> int:
        return min(FLUSH_BYTES, int(MOST_FLUSHED * self._gpu_bytes())) if self._timed else 0

    def _gpu_bytes(self) -> int:
        import torch

        return int(torch.cuda.get_device_properties(self.device).total_memory)


def _may_ask(capability: str, device: Any) -> bool:
    """Whether a capability that no hardware has shown may hold on a device."""
    with compat.override(enable=[capability]):
        return bool(compat.capabilities(device)[capability])


def _time_of(job: Job, row: Row, known: Any) -> Row:
    from ..bench.ceilings import Ceilings

    figures = {name: row.get(name) for name in ("median_ms", "low_ms", "high_ms")}
    floor = None
    if known and row.get("median_ms") is not None and (row["flops"] or row["bytes"]):
        floor = Ceilings(**known).floor_ms(row["flops"], row["bytes"], row["moves"])
    names = {name: job[name] for name in ("operation", "variant", "call")}
    work = {name: row.get(name) for name in ("flops", "bytes", "moves")}
    return {**names, "words": without_names(row["words"])[: document.WORDS], **figures, "floor_ms": floor, **work}


def _alarm(job: Job, row: Row) -> str:
    """What is worth a line while the run goes on."""
    what = job.get("case") or job.get("call") or job["what"]
    if row.get("verdict") in (*verdicts.FAILURES, verdicts.NOT_JUDGED):
        return f"{job['operation']} {job['variant']}, {what}: {row['verdict']}: {row['words']}"
    return f"{job['operation']} {job['variant']}, {what}: {row['words']}" if "verdict" not in row and row["words"] else ""


@contextmanager
def _progress(words: str, total: int) -> Iterator[Callable[[str, str], None]]:
    """A bar on the terminal, elsewhere a line for each tenth; gives what says that one more is done, and what went wrong."""
    from rich.console import Console
    from rich.progress import Progress

    terminal, began = sys.stderr.isatty(), time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True, disable=not terminal) as bar:
        task, done = bar.add_task(words, total=total), Counter[str]()

        def advance(what: str, alarm: str) -> None:
            done[words] += 1
            bar.update(task, advance=1, description=f"{words}: {what}")
            if alarm:
                (bar.console.print if terminal else _say)(alarm)
            elif not terminal and (done[words] * 10 // max(total, 1)) > ((done[words] - 1) * 10 // max(total, 1)):
                _say(f"{words}: {done[words]} of {total}, {time.perf_counter() - began:.0f} s")

        yield advance


def _say(text: str) -> None:
    print(f"capgate: {text}", file=sys.stderr, flush=True)


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
    if found["first_failure"]:
        printer.print(Text(f"again: {found['first_failure']['reproducer']}"))
    note(printer, f"{found['seconds']:.0f} s; written to {json_file} and {markdown_file}")
