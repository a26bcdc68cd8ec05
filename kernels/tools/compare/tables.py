"""A comparison of stacks for people: a table for the terminal, the same in Markdown, and a picture."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from capgate.compat.markdown import escape
from capgate.compat.markdown import table as markdown_table
from capgate.compat.terminal import console as plain_console

from ..bench.plot import picture
from ..bench.tables import ACCURACY_WORDS, SERVING_WORDS
from .stacks import Comparison, Delta, Metric, Stack


class Line(NamedTuple):
    """A line of the table: a metric's values, or its deltas to one baseline; a cell for each stack.

    within : for each cell whether it is a delta that its noise explains
    """

    label: str
    cells: list[str]
    is_delta: bool
    within: list[bool]


def lines(comparison: Comparison) -> Iterator[Line]:
    """Every metric with the deltas to each baseline below it, where there are any."""
    for metric, row in comparison.values.items():
        values = [_value(metric, row[stack].median) if stack in row else "" for stack in comparison.stacks]
        yield Line(f"{metric.workload}, {metric.name}", values, False, [False] * len(values))
        for baseline in comparison.baselines:
            deltas = [comparison.delta(metric, stack, baseline) for stack in comparison.stacks]
            if any(deltas):
                within = [bool(delta and delta.noise is not None and abs(delta.change) <= delta.noise) for delta in deltas]
                cells = [_delta(metric, delta) if delta else "" for delta in deltas]
                yield Line(f"vs Triton {baseline.triton}", cells, True, within)


def _value(metric: Metric, value: float) -> str:
    if metric.is_part:
        return f"{value:.4f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _delta(metric: Metric, delta: Delta) -> str:
    form = "+.4f" if metric.is_part else "+.2%"
    noise = "?" if delta.noise is None else format(delta.noise, form[1:])
    return f"{delta.change:{form}} ±{noise}"


def notes(comparison: Comparison) -> list[str]:
    """What the figures mean, in sentences."""
    stacks = list(comparison.stacks.values())
    builds = {stack["triton"]: stack for stack in stacks}
    texts = [f"Measured on {stacks[0]['device']} ({stacks[0]['target']})."]
    for name, build in builds.items():
        parts = {"torch": build["torch"], "runtime": build["runtime"], "driver": build["driver"], "Python": build["python"]}
        texts.append(f"Triton {name}: {', '.join(f'{part} {version}' for part, version in parts.items() if version)}.")
    texts += [f"vs Triton {base.triton}: its {base.variant} variant with {base.lines()[2]}." for base in comparison.baselines]
    counts = {value.rounds for row in comparison.values.values() for value in row.values()}
    texts.append(
        f"±: half the distance between the lowest and the highest of {' or '.join(map(str, sorted(counts)))} medians, of both "
        "stacks together; ±? where there was one. A higher figure is better in every line."
    )
    if any(metric.name.endswith("tok/s") for metric in comparison.values):
        texts.append(f"tok/s: the indexer's share of a serving run. {SERVING_WORDS}")
    if any(metric.is_part for metric in comparison.values):
        texts.append(f"top keys: {ACCURACY_WORDS[0].lower()}{ACCURACY_WORDS[1:]}")
    return texts


def show(comparison: Comparison) -> None:
    """Print the table; deltas within their noise are dim."""
    show_lines([stack.lines() for stack in comparison.stacks], list(lines(comparison)), notes(comparison))


def show_lines(heads: Sequence[Sequence[str]], found: Sequence[Line], texts: Sequence[str]) -> None:
    """Print a table, whose columns' heads are of some lines each, and notes below it."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column("\n".join(head), justify="right", no_wrap=True)
    for line, following in zip(found, [*found[1:], None], strict=True):
        pairs = zip(line.cells, line.within, strict=True)
        cells = [Text(cell, _style(cell, within) if line.is_delta else "bold") for cell, within in pairs]
        ends = following is None or not following.is_delta
        table.add_row(f"  {line.label}" if line.is_delta else line.label, *cells, end_section=ends)
    # A pipe has 80 columns, and would cut figures short.
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    console.print(table)
    for text in texts:
        console.print(Text(text, "dim"), soft_wrap=True)


def _style(cell: str, within: bool) -> str:
    return "dim" if within or cell.endswith("?") else "red" if cell.startswith("-") else "green"


def markdown(comparison: Comparison) -> str:
    """The table and its notes in Markdown; metrics are bold, their deltas follow."""
    return markdown_lines([str(stack) for stack in comparison.stacks], list(lines(comparison)), notes(comparison))


def markdown_lines(heads: Sequence[str], found: Sequence[Line], texts: Sequence[str]) -> str:
    """As :func:`show_lines`, in Markdown."""
    rows = []
    for line in found:
        label = escape(line.label.strip())
        rows.append([label if line.is_delta else f"**{label}**", *line.cells])
    table = markdown_table(["", *map(escape, heads)], ["---", *("---:" for _ in heads)], rows)
    return "\n\n".join([table, " ".join(map(escape, texts))])


def rates(comparison: Comparison) -> list[Metric]:
    """What :func:`plot` draws of each workload: where it has several rates, which are of one time, the first stands for all.

    Raises ValueError where there is no rate that the oldest Triton's baseline has too.
    """
    base = comparison.baselines[-1]
    found: dict[str, Metric] = {}
    for metric, row in comparison.values.items():
        if not metric.is_part and base in row:
            found.setdefault(metric.workload, metric)
    if not found:
        raise ValueError(f"--plot: no workload has a rate for {base}, which the bars are parts of")
    return list(found.values())


def plot(kind: str, comparison: Comparison) -> bytes:
    """Bars of each workload's rate as a part of the oldest Triton's baseline, with the spread of the rounds.

    kind : of the picture, "png" or "svg"

    Needs matplotlib. Raises ValueError where there is no rate to draw.
    """
    base, metrics = comparison.baselines[-1], rates(comparison)
    width = 0.8 / len(comparison.stacks)
    device = next(iter(comparison.stacks.values()))["device"]
    share = "The indexer's share of a serving run, " if all(metric.name.endswith("tok/s") for metric in metrics) else ""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, stack in enumerate(comparison.stacks):
            _bars(axes, comparison, metrics, stack, base, (number + 0.5) * width - 0.4, width)
        axes.axhline(1, color="black", linewidth=1.2, linestyle="--")
        names = [f"{metric.workload}\n{metric.name.removeprefix('output ')}" for metric in metrics]
        axes.set_xticks(range(len(metrics)), names, fontsize="small")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2, frameon=False, fontsize="small")
        figure.suptitle(f"{share}{device}\n100% is {base}", x=0.01, ha="left", fontsize="medium")

    bars = len(metrics) * len(comparison.stacks)
    return picture(kind, (max(9.0, 1.5 + 0.8 * bars), 6.2), draw)


def _bars(
    axes: Any, comparison: Comparison, metrics: list[Metric], stack: Stack, base: Stack, offset: float, width: float
) -> None:
    """One stack's bars, and on each how far its rounds lie apart."""
    own = [(place, comparison.values[metric]) for place, metric in enumerate(metrics) if stack in comparison.values[metric]]
    heights = [row[stack].median / row[base].median for _, row in own]
    below = [(row[stack].median - row[stack].low) / row[base].median for _, row in own]
    above = [(row[stack].high - row[stack].median) / row[base].median for _, row in own]
    places = [place + offset for place, _ in own]
    axes.bar(places, heights, width, yerr=[below, above], capsize=2, label=str(stack))
    for place, height in zip(places, heights, strict=True):
        axes.annotate(f"{height:.0%}", (place, height), (0, 3), textcoords="offset points", ha="center", fontsize="small")
