"""What a check found: for people, in Markdown, and as JUnit's XML."""

from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ..markdown import escape
from ..markdown import table as markdown_table
from ..terminal import console as plain_console
from ..terminal import plain, print_whole

Result = dict[str, Any]
Row = dict[str, Any]

FIGURES = ("vgprs", "agprs", "spills", "lds_bytes")
LEGEND = "A cell: registers of a lane/spills/bytes of shared memory or LDS; = as in the first Triton; no N: cause N."


class Line(NamedTuple):
    """A subject on a target, with a row for each Triton."""

    subject: int
    target: str
    rows: tuple[Row, ...]


def lines(result: Result) -> Iterator[Line]:
    """The rows by subject and target, in their order; lines that apply to no Triton are left out."""
    width = len(result["tritons"])
    rows = result["rows"]
    for start in range(0, len(rows), width):
        of_line = tuple(rows[start : start + width])
        if any(row["applies"] for row in of_line):
            yield Line(of_line[0]["subject"], of_line[0]["target"], of_line)


def changes(first: Row, row: Row) -> list[str]:
    """What differs from the first Triton, in words."""
    if first["compiled"] != row["compiled"]:
        return ["compiles now" if row["compiled"] else "compiles no more"]
    if not row["compiled"]:
        return []
    labels = {"vgprs": "registers", "agprs": "AGPRs", "spills": "spills", "lds_bytes": "shared bytes"}
    return [
        f"{label} {_figure(first.get(key))} -> {_figure(row.get(key))}"
        for key, label in labels.items()
        if first.get(key) != row.get(key)
    ]


def failures(result: Result) -> list[Row]:
    """Rows that did not compile: of configurations that an autotuner only tries, and passes over, none."""
    return [row for row in result["rows"] if _failed(row) and not result["subjects"][row["subject"]]["trial"]]


def causes(result: Result) -> dict[str, int]:
    """The causes, each with its number from 1, in the order of the table."""
    found = dict.fromkeys(row["error"] for row in result["rows"] if _failed(row))
    return {cause: number for number, cause in enumerate(found, 1)}


def _failed(row: Row) -> bool:
    return row["applies"] and not row["compiled"]


def _figure(value: Any) -> str:
    return "-" if value is None else str(value)


def _cells(result: Result, line: Line) -> list[str]:
    known = causes(result)
    cells = []
    for row in line.rows:
        if not row["applies"]:
            cells.append("")
        elif not row["compiled"]:
            cells.append(f"no {known[row['error']]}")
        elif row is not line.rows[0] and not changes(line.rows[0], row):
            cells.append("=")
        else:
            registers = f"{row['vgprs']}+{row['agprs']}" if row.get("agprs") else _figure(row.get("vgprs"))
            cells.append(f"{registers}/{_figure(row.get('spills'))}/{_figure(row.get('lds_bytes'))}")
    return cells


def _counts(result: Result) -> str:
    rows = [row for row in result["rows"] if row["applies"]]
    made = sum(row["compiled"] for row in rows)
    spilling = sum(bool(row.get("spills")) for row in rows)
    cached = sum(row["cached"] for row in rows)
    return f"{made} of {len(rows)} compiled, {spilling} with spills, {cached} known from before; nothing was run."


def show(result: Result) -> None:
    """Print it for people; plain text when the output is not a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel", overflow="fold")
    for head in ("target", *result["tritons"]):
        table.add_column(head, no_wrap=True, justify="left" if head == "target" else "right")
    for line in lines(result):
        cells = [
            Text(cell, "red" if not row["compiled"] else "yellow" if row.get("spills") else "")
            for cell, row in zip(_cells(result, line), line.rows, strict=True)
        ]
        table.add_row(result["subjects"][line.subject]["title"], line.target, *cells)
    print_whole(console, table)
    for cause, number in causes(result).items():
        console.print(Text(f"{number}: {plain(cause)}", "red"))
    console.print(Text(LEGEND, "dim"))
    console.print(Text(_counts(result)))


def markdown(result: Result) -> str:
    """A table with a row for each subject and target, and the causes below it."""
    head = ["kernel", "target", *map(escape, result["tritons"])]
    cells = ([escape(result["subjects"][line.subject]["title"]), line.target, *_cells(result, line)] for line in lines(result))
    table = markdown_table(head, ["---"] * 2 + ["---:"] * len(result["tritons"]), cells)
    listed = "\n".join(f"{number}. {escape(plain(cause))}" for cause, number in causes(result).items())
    return "\n\n".join(part for part in (table, f"{LEGEND} {_counts(result)}", listed) if part) + "\n"


def junit(result: Result) -> str:
    """JUnit's XML: a suite for each Triton and target, a case for each subject, and what changed as its output."""
    root = ElementTree.Element("testsuites", name="capgate check")
    for triton in result["tritons"]:
        for target in result["targets"]:
            suite = ElementTree.SubElement(root, "testsuite", name=f"Triton {triton}, {target}")
            counted: list[Row] = []
            for line in lines(result):
                if line.target != target:
                    continue
                row = line.rows[result["tritons"].index(triton)]
                counted.append(row)
                _case(suite, result, line, row)
            suite.set("tests", str(len(counted)))
            suite.set("failures", str(len(failures({**result, "rows": counted}))))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, result: Result, line: Line, row: Row) -> None:
    subject = result["subjects"][line.subject]
    case = ElementTree.SubElement(suite, "testcase", classname=suite.get("name", ""), name=subject["title"])
    case.set("time", str(row.get("seconds") or 0))
    if not row["compiled"]:
        kind = "failure" if row["applies"] and not subject["trial"] else "skipped"
        ElementTree.SubElement(case, kind, message=plain(row["error"]))
    ElementTree.SubElement(case, "system-out").text = plain("; ".join([*subject["told"], *changes(line.rows[0], row)]))
