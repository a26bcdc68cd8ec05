"""``capgate compile``: what each variant of an operation becomes on a GPU that need not be here."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from capgate import compat
from capgate.compat.command import asking, printing, prints_to_stderr
from capgate.compat.foreign import TEXT, Document, Schema, list_of, map_of, object_with, or_none
from capgate.compat.markdown import escape
from capgate.compat.markdown import table as markdown_table
from capgate.compat.offline.answers import TIMEOUT
from capgate.compat.offline.jobs import Job, compile_variants
from capgate.compat.outputs import look_at_folder
from capgate.compat.terminal import console as plain_console

Result = dict[str, Any]

_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**62}
_FIGURE: Schema = {"type": "number", "minimum": 0, "maximum": 1e30}
_EMULATED: Schema = {
    "type": "object",
    "properties": dict.fromkeys(("lds_cycles", "lds_ideal_cycles", "worst_error", "cases"), _FIGURE),
    "dependencies": {"lds_cycles": ["lds_ideal_cycles"], "worst_error": ["cases"]},
}

LOOP = ("total", "valu", "salu", "mfma", "lds", "vmem")

# What is shown of a result; what else there is stays unread.
DOCUMENT = Document(
    "capgate compile --json prints",
    object_with(
        **dict.fromkeys(("operation", "target"), TEXT),
        triton=or_none(TEXT),
        variants=list_of(
            object_with(
                **dict.fromkeys(("variant", "mode"), TEXT),
                **dict.fromkeys(("heads", "dim", "vgprs", "agprs", "sgprs", "spills"), or_none(_COUNT)),
                **dict.fromkeys(("scratch_bytes", "lds_bytes", "code_bytes"), or_none(_COUNT)),
                **dict.fromkeys(("waves_per_simd", "seconds"), or_none(_FIGURE)),
                dtype=or_none(TEXT),
                error=or_none({"type": "string"}),
                accepted=or_none({"type": "boolean"}),
                compiled={"type": "boolean"},
                tuning=or_none({"type": "object"}),
                hot_loop=or_none(object_with(keys=or_none(_FIGURE), **dict.fromkeys(LOOP, _COUNT))),
                matrix_instructions=or_none(map_of(_COUNT)),
            )
        ),
    ),
)
_ROW = DOCUMENT.schema["properties"]["variants"]["items"]["properties"]
_ROW |= {"emulated": or_none(_EMULATED), "files": list_of(TEXT)}  # which not every row has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate compile``."""
    parser.add_argument("operation", nargs="?", help="the operation, such as fp8_mqa_logits")
    parser.add_argument("--target", help="hip:gfx950, cuda:90, ...; this machine's first GPU otherwise")
    parser.add_argument(
        "--variant", help="this variant alone, or an error that says why not; otherwise every one that could run"
    )
    parser.add_argument("--heads", type=int, default=64, help="heads of a query (64)")
    parser.add_argument("--dim", type=int, default=128, help="dims of a head (128)")
    parser.add_argument(
        "--dtype", choices=("float8_e4m3fn", "float8_e4m3fnuz"), help="what the target's matrix instructions read otherwise"
    )
    parser.add_argument(
        "--modes",
        help="outputs: of logits unclean, clean and compressed (unclean,clean), each also with -bf16 behind it for bfloat16 "
        "weights and logits; of others what the operation has",
    )
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help=f"seconds that one compile may take ({TIMEOUT:g})")
    parser.add_argument("--save", metavar="DIR", help="keep each assembly, TTGIR and argument order there")
    parser.add_argument(
        "--from", dest="files", nargs="+", metavar="FILE", help="compile nothing; show what earlier runs with --json found"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON with stable keys")
    form.add_argument("--markdown", action="store_true", help="print a table in Markdown, one row for each compile")


def run(arguments: argparse.Namespace) -> int:
    """Compile and print what the parsed ``arguments`` ask for.

    Returns 1 when a variant that the target could take does not compile, or cannot be saved, 2 when nothing could be asked.
    """
    with asking(), prints_to_stderr():
        if arguments.save is not None:
            look_at_folder("--save", arguments.save)
        results = _load(arguments) if arguments.files else [_compile(arguments)]
    with printing():
        if arguments.json:
            print(json.dumps(results[0], indent=2))  # --from, which may give several, excludes it
        elif arguments.markdown:
            print(markdown(results))
        else:
            for result in results:
                show(result)
    rows = [row for result in results for row in result["variants"]]
    failed = [row for row in rows if row["accepted"] is not False and (row["error"] or not row["compiled"])]
    return 1 if failed else 0


def _compile(arguments: argparse.Namespace) -> Result:
    if not arguments.operation:
        raise ValueError("operation: none named, needs one such as fp8_mqa_logits (or --from with earlier results)")
    with _progress() as started:
        return compile_variants(
            arguments.operation,
            compat.capabilities(arguments.target).target,
            variant=arguments.variant,
            heads=arguments.heads,
            dim=arguments.dim,
            dtype=arguments.dtype,
            modes=arguments.modes.split(",") if arguments.modes else None,
            timeout=arguments.timeout,
            save=arguments.save,
            started=started,
        )


def _load(arguments: argparse.Namespace) -> list[Result]:
    if arguments.operation or arguments.json:
        raise ValueError("--from: shows what was compiled earlier, and takes neither an operation nor --json")
    return [DOCUMENT.read(file) for file in arguments.files]


@contextmanager
def _progress() -> Iterator[Callable[[Job], None]]:
    """A line on the terminal that says what is being compiled; gives the function that changes it."""
    from rich.console import Console

    if not sys.stderr.isatty():
        yield lambda job: None
        return
    with Console(stderr=True).status("starting a compiler") as line:
        yield lambda job: line.update(f"compiling {job.variant}, {job.mode}")


# --- figures --------------------------------------------------------------------------------------------------------------


def vector_per_32_keys(row: Result) -> float | None:
    """Vector instructions that a wave spends on 32 keys of one row of 64 heads (other head counts are scaled)."""
    loop = row["hot_loop"]
    if not loop or not loop["keys"] or not row["heads"]:
        return None
    figure: float = loop["valu"] * 32 / loop["keys"] * 64 / row["heads"]
    return figure


def _registers(row: Result) -> str:
    return f"{row['vgprs']} + {row['agprs']}" if row["agprs"] else _figure(row["vgprs"])


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# --- a terminal -----------------------------------------------------------------------------------------------------------


def show(result: Result) -> None:
    """Print one result for people; plain text when the output is not a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    rows = [row for row in result["variants"] if row["compiled"]]
    what = f"{result['operation']} {'compiled' if rows else 'does not compile'} for {result['target']}"
    console.print(Text(f"{what} by Triton {result['triton']}; nothing was run", "bold"))
    if rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for row in rows:
            table.add_column(f"{row['variant']}\n{row['mode']}", justify="right", overflow="fold")
        lines = [dict(_lines(row, result["target"])) for row in rows]
        for label in lines[0]:
            if any(line[label] != _figure(None) for line in lines) or any(row.get("unread") for row in rows):
                table.add_row(label, *(line[label] for line in lines))
        console.print(table)
        if any(row["hot_loop"] for row in rows):
            console.print(
                Text("Hot loop: a wave's instructions in one pass. / 32 keys: of one row, scaled to 64 heads.", "dim")
            )
    for row in result["variants"]:
        if not row["compiled"]:
            what, style = ("cannot run there", "") if row["accepted"] is False else ("does not compile", "red")
            console.print(Text(f"{row['variant']}, {row['mode']}: {what}: {row['error']}", style))
        elif row["error"]:
            console.print(Text(f"{row['variant']}, {row['mode']}: {row['error']}", "red"))
    for row in rows:
        for words in row.get("unread") or ():
            console.print(Text(f"{row['variant']}, {row['mode']}: not read, {words}"))
    for file in (file for row in rows for file in row.get("files", ())):
        console.print(Text(f"saved {file}", "dim"))


def _lines(row: Result, target: str) -> Iterator[tuple[str, str]]:
    """The figures of a row, each with its label."""
    cuda = target.startswith("cuda")
    yield "heads x dims", f"{row['heads']} x {row['dim']}" if row["heads"] else _figure(None)
    yield "tuning", "\n".join(f"{name} {value}" for name, value in (row["tuning"] or {}).items() if value not in ([], None))
    yield ("registers" if cuda else "VGPRs + AGPRs"), _registers(row)
    if not cuda:
        yield "SGPRs", _figure(row["sgprs"])
    yield ("spills, bytes" if cuda else "spills, registers"), _figure(row["spills"])
    yield "scratch, bytes", _figure(row["scratch_bytes"])
    yield ("shared memory, bytes" if cuda else "LDS, bytes"), _figure(row["lds_bytes"])
    yield ("warps / sub-partition" if cuda else "waves / SIMD"), _figure(row["waves_per_simd"])
    loop = row["hot_loop"] or {}
    names = {"total": "hot loop, all", "valu": "vector", "salu": "scalar", "mfma": "matrix", "lds": "LDS", "vmem": "memory"}
    for key, label in names.items():
        yield label if key == "total" else f"  {label}", _figure(loop.get(key))
    yield "  keys", _figure(loop.get("keys"))
    yield "  vector / 32 keys", _figure(vector_per_32_keys(row))
    matrix = row["matrix_instructions"]
    counts = "\n".join(f"{count} {name}" for name, count in (matrix or {}).items())
    yield "matrix instructions", _figure(None) if matrix is None else counts or "none"
    yield "code, bytes", _figure(row["code_bytes"])
    yield "compile, seconds", _figure(row["seconds"])


# --- Markdown -------------------------------------------------------------------------------------------------------------


def markdown(results: list[Result]) -> str:
    """A table with a row for each compile, and the words that say what it is not.

    A row of a result may have the key ``emulated``, from executing the compiled code in an emulator: ``lds_cycles``,
    ``lds_ideal_cycles``, ``worst_error`` (a part of the sum of magnitudes), ``cases``.
    """
    rows = [{**row, "triton": result["triton"], "target": result["target"]} for result in results for row in result["variants"]]
    facets = {"target": "target", "mode": "output", "heads": "heads", "dim": "dims", "dtype": "dtype"}
    varying = [key for key in facets if len({row[key] for row in rows}) > 1]
    same = ", ".join(f"{label} {rows[0][key]}" for key, label in facets.items() if rows and key not in varying)
    header = [
        *("Triton", "variant", *(facets[key] for key in varying), "compiles"),
        *("vector / 32 keys", "LDS cycles / ideal", "registers", "waves / SIMD", "spills", "emulator"),
    ]
    cells = [[row["triton"], row["variant"], *(str(row[key]) for key in varying), *_cells(row)] for row in rows]
    table = markdown_table(header, ["---"] * len(header), ([escape(str(cell)) for cell in line] for line in cells))
    shared = f"{escape(same[:1].upper() + same[1:])}. " if same else ""
    return f"{table}\n\n{shared}{_caveat(rows)}"


def _cells(row: Result) -> list[str]:
    emulated = row.get("emulated") or {}
    if not row["compiled"]:
        return [f"no: {row['error']}", *[""] * 6]
    cycles = f"{emulated['lds_cycles']} / {emulated['lds_ideal_cycles']}" if "lds_cycles" in emulated else "not emulated"
    error = f"{emulated['worst_error']:.1e} in {emulated['cases']} cases" if "worst_error" in emulated else "not emulated"
    return [
        *("yes", _figure(vector_per_32_keys(row)), cycles, _registers(row)),
        *(_figure(row["waves_per_simd"]), _figure(row["spills"]), error),
    ]


def _caveat(rows: list[Result]) -> str:
    words = (
        "This is no run on hardware: code was compiled, the instructions of its hot loop were counted (a wave's vector "
        "instructions for 32 keys of one row of 64 heads), and no time was measured."
    )
    if any(row.get("emulated") for row in rows):
        words += (
            " LDS cycles and the worst error, as a part of the sum of magnitudes, are those of an emulator that executed the "
            "compiled code."
        )
    unread = [
        f"{row['variant']}, {row['mode']}, Triton {row['triton']}: {why}" for row in rows for why in row.get("unread") or ()
    ]
    if unread:
        words += f" Not read: {'; '.join(unread)}."
    return words
