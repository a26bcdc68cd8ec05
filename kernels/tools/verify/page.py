"""Runs of ``capgate verify`` as Markdown: the page of one, and the page of docs that several make."""

from collections import Counter
from collections.abc import Iterator, Sequence

from capgate.compat.markdown import escape, table

from . import verdicts
from .document import GPU, Run
from .verdicts import Row

HEAD = """# Verified

`capgate verify` ran on these machines; the files that it wrote are in [verified](verified). A case *agrees* where every cell
that a variant wrote is what the formula gives in float64, and nothing else was written: see [verify.md](verify.md). This page
is made from the files:

```sh
capgate verify --merge docs/verified/*.json > docs/verified.md
```
"""
NONE = "No file is there yet."


def merged(runs: Sequence[Run]) -> str:
    """The page of docs for these runs, by GPU and Triton."""
    ordered = sorted(runs, key=lambda run: (run["stack"]["target"], run["stack"]["device"], str(run["stack"]["triton"])))
    if not ordered:
        return f"{HEAD}\n{NONE}\n"
    head = ["GPU", "target", "Triton", "torch", "run", "cases that agree", "cases that fail"]
    rows = []
    for run in ordered:
        stack, said = run["stack"], _counts(run["cases"])
        names = (stack["device"], stack["target"], stack["triton"] or "none", stack["torch"] or "none")
        when = f"{run['date']}, {run['executed']}{', quick' if run['quick'] else ''}"
        rows.append([*map(escape, map(str, (*names, when))), str(said[verdicts.AGREES]), str(_failed(said))])
    parts = [HEAD, table(head, ["---"] * 5 + ["---:"] * 2, rows)]
    return "\n".join([*parts, "", *("\n".join(_body(run, "##")) for run in ordered)]).rstrip() + "\n"


def page(run: Run) -> str:
    """The page of one run."""
    return "\n".join(_body(run, "#")).rstrip() + "\n"


def _counts(cases: Sequence[Row]) -> Counter[str]:
    return Counter(case["verdict"] for case in cases)


def _failed(said: Counter[str]) -> int:
    return sum(said[verdict] for verdict in verdicts.FAILURES)


def _body(run: Run, level: str) -> Iterator[str]:
    stack = run["stack"]
    yield f"{level} {escape(str(stack['device']))}, Triton {escape(str(stack['triton']))}"
    yield ""
    yield _summary(run)
    yield ""
    facts = {"capgate": "capgate", "target": "target", "torch": "torch", "runtime": "CUDA or HIP", "driver": "driver"}
    named = [f"{words} {escape(str(stack[name]))}" for name, words in facts.items() if stack[name]]
    yield f"{', '.join(named)}, Python {escape(stack['python'])}; {escape(run['date'])}, {run['seconds']:.0f} s."
    yield from ("", f"{level}# Verdicts", "")
    yield _verdicts(run)
    untaken = [row for row in run["variants"] if not row["taken"]]
    if untaken:
        yield from ("", "Not run here:", "")
        yield from (f"* {row['variant']} of {row['operation']}: {escape(row['reason'])}" for row in untaken)
    yield from _failures(run, level)
    for answer in run["asked"]:
        yield from ("", f"May `CAPGATE_ENABLE={answer['capability']}` be set on this GPU? {_sentence(answer['words'])}")
    if run["times"]:
        yield from ("", f"{level}# Times", "")
        yield from _times(run)
    if run.get("tuned"):
        yield from ("", f"{level}# Tunings that are faster than the tables'", "")
        yield _tunings(run)
    yield ""


def _tunings(run: Run) -> str:
    rows = []
    for row in run["tuned"]:
        where = ", ".join(f"{name} {value}" for name, value in row["where"].items())
        fields = ", ".join(f"{name} {value}" for name, value in row["fields"].items())
        texts = (row["operation"], row["variant"], where, fields, row["call"])
        rows.append([*map(escape, texts), _time(row["before_ms"]), _time(row["after_ms"])])
    head = ["operation", "variant", "problems", "fields", "call", "us before", "us after"]
    return table(head, ["---"] * 5 + ["---:"] * 2, rows)


def _summary(run: Run) -> str:
    said = _counts(run["cases"])
    agreeing, failing = said[verdicts.AGREES], _failed(said)
    judged = sum(said.values()) - said[verdicts.NOT_TAKEN]
    words = f"{agreeing} of {judged} cases agree with float64, {failing} fail"
    if said[verdicts.NOT_JUDGED]:
        words += f", {said[verdicts.NOT_JUDGED]} not judged"
    words = f"**{words}**; executed {run['executed']}"
    words += ", in a short run." if run["quick"] else "."
    if run["executed"] != GPU:
        words += " No GPU ran anything of this."
    return words if run["complete"] else f"{words} The run did not end: this is what is known so far."


def _verdicts(run: Run) -> str:
    rows = []
    for variant in run["variants"]:
        if not variant["taken"]:
            continue
        cases = [
            case for case in run["cases"] if (case["operation"], case["variant"]) == (variant["operation"], variant["variant"])
        ]
        said = _counts(cases)
        figures = (said[verdicts.AGREES], _failed(said) + said[verdicts.NOT_JUDGED], said[verdicts.NOT_TAKEN])
        rows.append([variant["operation"], variant["variant"], *map(str, figures)])
    return table(["operation", "variant", "agree", "fail", "not taken"], ["---", "---", "---:", "---:", "---:"], rows)


def _failures(run: Run, level: str) -> Iterator[str]:
    failed = [case for case in run["cases"] if case["verdict"] in (*verdicts.FAILURES, verdicts.NOT_JUDGED)]
    if not failed:
        return
    yield from ("", f"{level}# Failures", "")
    for case in failed:
        where = f"{case['operation']}, {case['variant']}, {case['case']}"
        yield f"* {escape(where)}: {case['verdict']}: {escape(case['words'])}"
    if run["first_failure"]:
        yield from ("", "The first one again, alone:", "", "```sh", run["first_failure"]["reproducer"], "```")


def _sentence(words: str) -> str:
    return f"{escape(words[:1].upper() + words[1:])}."


def _times(run: Run) -> Iterator[str]:
    if run["ceilings"]:
        flops, copy, read = (run["ceilings"][name] for name in ("flops", "copy", "read"))
        yield (
            f"In the same run: an fp8 matmul of 8192 does {flops / 1e12:.0f} TFLOP/s, a copy {copy / 1e12:.2f} TB/s, "
            f"a read {read / 1e12:.2f} TB/s. Medians of 20 calls, cache cold; *x floor* is over what those ceilings allow."
        )
        yield ""
    rows = []
    for row in run["times"]:
        names = (row["operation"], row["variant"], row["call"])
        if row["median_ms"] is None:
            rows.append([*map(escape, names), f"no time: {escape(row['words'])}", "", ""])
            continue
        spread = f"{_time(row['low_ms'])} to {_time(row['high_ms'])}"
        floor = f"{row['median_ms'] / row['floor_ms']:.2f}" if row["floor_ms"] else ""
        rows.append([*map(escape, names), _time(row["median_ms"]), spread, floor])
    yield table(
        ["operation", "variant", "call", "us", "quartiles", "x floor"], ["---", "---", "---", "---:", "---:", "---:"], rows
    )


def _time(milliseconds: float) -> str:
    return f"{1e3 * milliseconds:.4g}"
