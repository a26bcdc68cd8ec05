"""A benchmark's results as tables for a terminal."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from capgate.compat.terminal import console as plain_console
from capgate.compat.terminal import plain, print_whole

Row = dict[str, Any]
Results = dict[str, Any]

SELECTION_WORDS = (
    "logits: of all rows at once; selection: the keys from those; x read: of a device read of the logits in the windows; topk: "
    "torch.topk of the same logits; whole: both steps within the budget, a peer's with its own logits and our selection; "
    "fused: both in one kernel, by that variant; peak MB: memory besides operands and result, of the selection and topk "
    "besides the logits, too; slow paths, of the fused call: selections from its lists that made room, in which equal logits "
    "were told apart, rows that were closed because all that they kept are NaN, and selections of gluon_hopper that read their "
    "lists in passes."
)
SERVING_WORDS = (
    "Not a serving engine: the run's tokens over the GPU time of the indexer's logits alone, in all of its layers; prefill and "
    "decode steps from a fixed schedule."
)
ACCURACY_WORDS = (
    "The part of float32's top keys that the variant's own top keys hold, and of the attention (softmax of the float32 logits) "
    "that they carry; synthetic bfloat16 activations, quantised to fp8."
)


def tflops(row: Row) -> float:
    """TFLOP/s over the cells that a row sees."""
    return float(row["flops"] / row["median_ms"] / 1e9)


def gigabytes(row: Row) -> float:
    """GB/s of the fewest bytes that the call can move."""
    return float(row["least_bytes"] / row["median_ms"] / 1e6)


class Form(NamedTuple):
    """How an operation's rows are shown.

    size : what the sizes are
    columns : heading and text of each figure that follows the time
    rate, unit : the figure of a plot's bars
    ceiling, words : the line above them, from the results' ceilings and in that unit
    """

    size: str
    columns: dict[str, Callable[[Row, Results], str]]
    rate: Callable[[Row], float]
    unit: str
    ceiling: Callable[[dict[str, float]], float]
    words: str


def _floors(row: Row, results: Results) -> str:
    return f"{row['median_ms'] / row['floor_ms']:.2f}" if row["floor_ms"] else ""


def _of_read(row: Row, results: Results) -> str:
    return f"{1e9 * gigabytes(row) / results['ceilings']['read']:.1%}" if results["ceilings"] else ""


def _schedule(row: Row, results: Results) -> str:
    return f"{row['schedule_ms']:.4g}" if row["schedule_ms"] is not None else ""


FORMS = {
    "fp8_mqa_logits": Form(
        "S x N",
        {
            "TFLOP/s": lambda row, results: f"{tflops(row):.0f}",
            "GB/s": lambda row, results: f"{gigabytes(row):.4g}",
            "x floor": _floors,
        },
        tflops,
        "TFLOP/s",
        lambda ceilings: ceilings["flops"] / 1e12,
        "fp8 matmul of 8192",
    ),
    "fp8_paged_mqa_logits": Form(
        "B x next_n x keys",
        {
            "GB/s": lambda row, results: f"{gigabytes(row):.4g}",
            "of read": _of_read,
            "schedule\nms": _schedule,
        },
        gigabytes,
        "GB/s",
        lambda ceilings: ceilings["read"] / 1e9,
        "device read",
    ),
}


def show_stack(stack: dict[str, Any]) -> None:
    """Print the line that says where it ran."""
    builds = f"{stack['device']} ({stack['target']}), Triton {stack['triton']}, torch {stack['torch']}"
    plain_console().print(plain(builds), soft_wrap=True)


def show(results: Results) -> None:
    """Print the stack, a table for each operation, and what the figures mean."""
    stack, console = results["stack"], plain_console()
    show_stack(stack)
    if stack["target"] == "cpu":
        how = "Triton's interpreter" if stack["interpreter"] else "no Triton variant"
        console.print(
            f"On the CPU: small sizes, torch reference and {how}; these times say nothing about a GPU.", soft_wrap=True
        )
    for operation, form in FORMS.items():
        rows = [row for row in results["rows"] if row["operation"] == operation]
        missing = [remark for remark in _unmeasured(results) if remark["operation"] == operation]
        if rows or missing:
            print_whole(console, _table(operation, form, rows, missing, results))
    if results["rows"]:
        _explain(console, results)
    if results["selection"]:
        _show_selection(console, results)
    if results["serving"]:
        _show_serving(console, results)
    if results["accuracy"]:
        _show_accuracy(console, results)
    _show_remarks(console, results)


def _unmeasured(results: Results) -> list[Row]:
    return [remark for remark in results.get("remarks", []) if not remark["measured"]]


LEFT = ("shape", "run", "variant", "call", "step")  # columns of words


def empty(title: str, columns: Iterable[str]) -> Any:
    """A table without rows."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
    return table


def _add(table: Any, lines: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows of one shape, with the lines that name it beside them; the last row is as high as the lines that are left."""
    named = [*lines[: len(rows) - 1], "\n".join(lines[len(rows) - 1 :])]
    for number, row in enumerate(rows):
        table.add_row(named[number] if number < len(named) else "", *row)


def _table(operation: str, form: Form, rows: list[Row], missing: list[Row], results: Results) -> Any:
    table = empty(f"{operation} ({form.size})", ("shape", "variant", "clean", "ms", "noise", *form.columns))
    for workload in results["workloads"]:
        lines: list[str] = []
        timed = []
        for row in (row for row in [*rows, *missing] if row["workload"] == workload):
            clean = "yes" if row["clean_logits"] else "no"
            if "median_ms" not in row:
                timed.append((row["variant"], clean, "none"))
                continue
            lines = [row["size"], f"{row['heads']} heads"]
            noise = f"{(row['high_ms'] - row['low_ms']) / row['median_ms']:.1%}"
            figures = (text(row, results) for text in form.columns.values())
            timed.append((row["variant"], clean, f"{row['median_ms']:.4g}", noise, *figures))
        if timed:
            _add(table, [workload, *lines], timed)
    return table


def _explain(console: Any, results: Results) -> None:
    lines = [
        f"ms: median of {results['repeats']} calls, and of {results['rounds']} such rounds; noise: between the first and third "
        "quartile; GB/s: the fewest bytes the call can move."
    ]
    if any(row["schedule_ms"] is not None for row in results["rows"]):
        lines.append("Decode is timed with its schedule given, as the layers of a step share one; schedule: making it.")
    if ceilings := results["ceilings"]:
        flops, copy, read = ceilings["flops"] / 1e12, ceilings["copy"] / 1e12, ceilings["read"] / 1e12
        lines.append(
            f"floor: the time at {flops:.4g} TFLOP/s (fp8 matmul of 8192) and {copy:.4g} TB/s (device copy); of read: of "
            f"{read:.4g} TB/s (device read); all measured in this run."
        )
    for line in lines:
        note(console, line)


def note(console: Any, line: str) -> None:
    """A line below a table."""
    console.print(line, style="dim", soft_wrap=True)


def _show_remarks(console: Any, results: Results) -> None:
    """Why there is no time, and whose logits are others; each reason once, with the workloads that it is of."""
    places: dict[tuple[str, ...], list[str]] = {}
    for remark in results.get("remarks", []):
        clean = "" if not remark["operation"] else ", clean" if remark["clean_logits"] else ", unclean"
        what = "timed, but" if remark["measured"] else "not timed:"
        named = places.setdefault((f"{remark['variant']}{clean}", what, remark["words"]), [])
        named += [] if remark["workload"] in named else [remark["workload"]]
    for (who, what, words), named in places.items():
        console.print(plain(f"{who}: {what} {words} ({', '.join(named)})"), style="yellow", soft_wrap=True)


def range_of(rounds: list[float]) -> str:
    """From the fastest to the slowest round, as a part of their median."""
    return f"{(max(rounds) - min(rounds)) / statistics.median(rounds):.1%}"


def _show_selection(console: Any, results: Results) -> None:
    table = empty(
        "Selecting the keys",
        ("shape", "variant", "call", "ms", "x logits", "x read", "noise", "peak MB", "slow paths"),
    )
    for row in results["selection"]:
        logits = statistics.median(row["logits_ms"])
        rows = []
        for peer, rounds in row["peers_ms"].items():
            took = statistics.median(rounds)
            rows.append((peer, "whole", f"{took:.4g}", f"{took / logits:.2f}", "", range_of(rounds), "", ""))
        counts = row["counts"] or {}
        for name in ("logits", "selection", "topk", "whole", *(["fused"] if row["fused"] else [])):
            rounds, of_read = row[f"{name}_ms"], name == "selection" and row["read_ms"]
            took = statistics.median(rounds)
            rows.append(
                (
                    row["fused"] if name == "fused" else row["variant"] if name in ("selection", "whole") else "",
                    name,
                    f"{took:.4g}",
                    f"{took / logits:.2f}",
                    f"{took / row['read_ms']:.2f}" if of_read else "",
                    range_of(rounds),
                    f"{row['peak_bytes'][name] / 1e6:.1f}" if row["peak_bytes"] else "",
                    " / ".join(str(number) for number in counts.values()) if name == "fused" else "",
                )
            )
        _add(table, [row["workload"], row["size"], f"top {row['top_k']}"], rows)
    print_whole(console, table)
    note(
        console,
        f"{SELECTION_WORDS} Medians of {results['repeats']} calls and {results['rounds']} rounds; noise: between the fastest "
        "and the slowest round.",
    )
    places: dict[str, list[str]] = {}
    for row in results["selection"]:
        if row["why_two_steps"]:
            named = places.setdefault(row["why_two_steps"], [])
            named += [] if row["workload"] in named else [row["workload"]]
    for words, named in places.items():
        note(console, f"not fused: {words} ({', '.join(named)})")


def _show_serving(console: Any, results: Results) -> None:
    names = list(results["serving"][0]["metrics"])
    table = empty("The indexer's share of a serving run", ("run", "variant", "clean", *names, "prefill s", "decode s", "noise"))
    for row in results["serving"]:
        totals = [prefill + decode for prefill, decode in zip(row["prefill_s"], row["decode_s"], strict=True)]
        table.add_row(
            row["workload"],
            row["variant"],
            "yes" if row["clean_logits"] else "no",
            *(f"{statistics.median(row['metrics'][name]):,.0f}" for name in names),
            *(f"{statistics.median(row[name]):.4g}" for name in ("prefill_s", "decode_s")),
            range_of(totals),
        )
    print_whole(console, table)
    for name, facts in results["workloads"].items():
        if "share" in facts:
            note(
                console,
                f"{name}: {facts['requests']} requests in flight, {facts['input_tokens']} tokens in and "
                f"{facts['output_tokens']} out, {facts['layers']} indexer layers, {facts['heads']} heads of {facts['dim']}, "
                f"one key per {facts['ratio']} tokens, prefill of at most {facts['batch_tokens']} tokens.",
            )
    note(console, f"{SERVING_WORDS} noise: between the fastest and the slowest of {results['rounds']} rounds.")


def _show_accuracy(console: Any, results: Results) -> None:
    names = list(results["accuracy"][0]["metrics"])
    table = empty("Top keys, against float32", ("run", "variant", "clean", *names))
    for row in results["accuracy"]:
        figures = (f"{statistics.median(row['metrics'][name]):.5f}" for name in names)
        table.add_row(row["workload"], row["variant"], "yes" if row["clean_logits"] else "no", *figures)
    print_whole(console, table)
    note(console, ACCURACY_WORDS)
