"""What is said on standard error while a run goes on."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import verdicts
from .jobs import Job
from .verdicts import Row


def alarm(job: Job, row: Row) -> str:
    """What is worth a line while the run goes on."""
    what = job.get("case") or job.get("call") or job["what"]
    if row.get("verdict") in (*verdicts.FAILURES, verdicts.NOT_JUDGED):
        return f"{job['operation']} {job['variant']}, {what}: {row['verdict']}: {row['words']}"
    return f"{job['operation']} {job['variant']}, {what}: {row['words']}" if "verdict" not in row and row["words"] else ""


@contextmanager
def progress(words: str, total: int) -> Iterator[Callable[[str, str], None]]:
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
