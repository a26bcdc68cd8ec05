"""``capgate warm``: what a deployment will launch, compiled into Triton's cache beforehand."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from capgate import compat
from capgate.compat import versions
from capgate.compat.command import asking, printing, prints_to_stderr
from capgate.compat.offline.answers import TIMEOUT, Answers, environment
from capgate.compat.offline.jobs import operation_of
from capgate.compat.spelling import nearest
from capgate.compat.terminal import console as plain_console
from capgate.compat.terminal import print_whole

from ...common.key_formats import BLOCK_SIZES, BLOCK_WORDS, LAYOUTS, layouts_of
from ...common.rules import MAX_NEXT, check_sizes
from .deployment import KNOWN_MODES, SCHEDULES, Deployment, Shape, shapes_of

Row = dict[str, Any]
Job = tuple[str, Shape, str | None]  # an operation, a shape of its calls, and the variant that is named

# Of the models that are served on them; others, such as the PCIe H100 or the MI300A, have fewer.
MULTIPROCESSORS = {
    "sm90": 132,  # H100 SXM, H200, GH200
    "gfx942": 304,  # MI300X, MI325X
    "gfx950": 256,  # MI350X, MI355X
}
COMPILED, WAS_THERE, FAILED, REFUSED = "compiled", "was there", "does not compile", "cannot run there"
SETTINGS = tuple(Deployment._fields)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate warm``."""
    usual = Deployment()
    parser.add_argument("operations", nargs="*", metavar="operation", help="an operation, such as fp8_mqa_logits")
    parser.add_argument("--target", help="hip:gfx950, cuda:90, ...; this machine's first GPU otherwise")
    parser.add_argument("--variants", help="these of them that an operation has, with commas; the one that would run otherwise")
    parser.add_argument(
        "--multiprocessors",
        type=int,
        help="SMs or CUs of the GPU; this machine's, or those of an H200, MI300X or MI355X otherwise",
    )
    parser.add_argument("--heads", type=int, default=usual.heads, help=f"heads of a query ({usual.heads})")
    parser.add_argument("--dim", type=int, default=usual.dim, help=f"dims of a head ({usual.dim})")
    parser.add_argument(
        "--dtype", choices=("float8_e4m3fn", "float8_e4m3fnuz"), help="what the target's matrix instructions read otherwise"
    )
    parser.add_argument(
        "--modes",
        help="outputs: of logits unclean, clean and compressed (unclean), each also with -bf16 behind it for bfloat16 weights "
        "and logits; of selections indices and scores (indices)",
    )
    parser.add_argument("--max-rows", type=int, default=usual.max_rows, help=f"query rows of a prefill step ({usual.max_rows})")
    parser.add_argument(
        "--max-requests", type=int, default=usual.max_requests, help=f"requests in decode ({usual.max_requests})"
    )
    parser.add_argument(
        "--max-context",
        type=int,
        default=usual.max_context,
        help=f"keys of the longest context, which is how many columns decode has ({usual.max_context})",
    )
    parser.add_argument("--max-window", help="columns of compressed logits, with commas; any otherwise")
    parser.add_argument("--block", type=int, default=usual.block, help=f"keys in a block of the cache ({usual.block})")
    parser.add_argument(
        "--layout", choices=layouts_of("fp8"), default=usual.layout, help=f"of the keys in a block ({usual.layout})"
    )
    parser.add_argument("--cache-blocks", help="blocks of the cache, with commas; multiples of 16 and others otherwise")
    parser.add_argument("--next-n", default="1", help="rows of a request in decode, drafts included, with commas (1)")
    parser.add_argument("--row-lens", action="store_true", help="lengths are given for each row of a request")
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default=usual.schedule,
        help="that decode is given: of as many workers as paged_mqa_workers says (own), as DeepGEMM's callers make it, none",
    )
    parser.add_argument("--top-k", default="2048", help="keys that are selected, with commas (2048)")
    parser.add_argument("--relative", action="store_true", help="a prefill's indices count from its rows' windows, as in vLLM")
    parser.add_argument("--page-size", type=int, help="slots are selected: positions of a page of the page table")
    parser.add_argument("--largest", type=float, help="that quantize_keys_to_cache scales keys to; the dtype's own otherwise")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, help=f"seconds that the compiles of one call may take ({TIMEOUT:g})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with stable keys")


def run(arguments: argparse.Namespace) -> int:
    """Compile and print what the parsed ``arguments`` ask for; returns 1 when something does not compile."""
    with asking(), prints_to_stderr():
        result = warm(
            list(dict.fromkeys(arguments.operations)),
            compat.capabilities(arguments.target).target,
            _deployment(arguments),
            variants=_split(arguments.variants),
            multiprocessors=arguments.multiprocessors,
            timeout=arguments.timeout,
        )
    with printing():
        if arguments.json:
            print(json.dumps(result, indent=2))
        else:
            show(result)
    return 1 if any(row["state"] in (FAILED, REFUSED) for row in result["kernels"]) else 0


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _deployment(arguments: argparse.Namespace) -> Deployment:
    given = {name: getattr(arguments, name) for name in SETTINGS} | {"modes": _split(arguments.modes)}
    for name in ("max_window", "cache_blocks", "next_n", "top_k"):
        given[name] = tuple(_count(name, part) for part in _split(given[name]))
    return Deployment(**given)


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}: got {text!r}, needs whole numbers from 1 on, with commas between them")
    return int(text)


def _check(deployment: Deployment) -> None:
    check_sizes(deployment.heads, deployment.dim)
    for name in ("max_rows", "max_requests", "max_context", "page_size"):
        value = getattr(deployment, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, needs 1 or more")
    if deployment.block not in BLOCK_SIZES or deployment.block % LAYOUTS[deployment.layout].tile:
        raise ValueError(f"block: got {deployment.block} of a {deployment.layout} cache, needs {BLOCK_WORDS}")
    if deployment.largest is not None and not deployment.largest > 0:
        raise ValueError(f"largest: got {deployment.largest}, needs more than 0")
    if not deployment.next_n or max(deployment.next_n) > MAX_NEXT:
        raise ValueError(f"next_n: got {list(deployment.next_n)}, needs 1 to {MAX_NEXT}")


def warm(
    operations: Sequence[str],
    target: compat.Target,
    deployment: Deployment,
    *,
    variants: Sequence[str] = (),
    multiprocessors: int | None = None,
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """Compile what a deployment will launch into Triton's cache, in a process of its own.

    operations : names of them
    variants : those of them that an operation has; none for the one that would run
    multiprocessors : SMs or CUs of the GPU; None for this machine's, or those of the usual model
    timeout : seconds for the compiles of one call

    Returns JSON types: ``triton``, ``torch`` (versions), ``target``, ``multiprocessors``, ``cache`` (the folder), ``seconds``
    (of all), and ``kernels``: a row for each with ``operation``, ``variant``, ``kernel`` (None where a variant has none, or did
    not get so far), ``shape`` (of the first call that took it), ``state`` ("compiled", "was there", "does not compile", "cannot
    run there"), ``seconds``, ``error``. ``launchers`` says what a C compiler built beside them, as :class:`.Launchers` has it:
    how many were ``built``, and the ``error`` that kept one from it, or None.

    Raises ValueError for a name or size that does not exist, CapabilityError where Triton or torch is missing.
    """
    if not operations:
        raise ValueError("operation: none named, needs one such as fp8_mqa_logits")
    if not target.is_gpu:
        raise ValueError(f"target: got {target}, needs a GPU such as hip:gfx950 or cuda:90")
    from . import calls  # noqa: F401 - it defines the operations, installed or not

    _check(deployment)
    found = {name: operation_of(name) for name in operations}
    modes = KNOWN_MODES.union(*(operation.examples.modes for operation in found.values() if operation.examples))
    for mode in deployment.modes:
        if mode not in modes:
            raise ValueError(f"modes: no mode {mode!r}; {nearest(mode, modes)}")
    for needed in ("triton", "torch"):
        compat.capabilities(target).require(needed)
    jobs = [
        (name, shape, variant)
        for name, operation in found.items()
        for variant in _variants(operation, variants)
        for shape in shapes_of(operation, target, deployment, _variants_of_logits(variants))
    ]
    request = {
        "target": str(target),
        "multiprocessors": _multiprocessors(target, multiprocessors),
        "modules": [operation.module for operation in found.values()],
        "deployment": deployment._asdict(),
    }
    began = time.perf_counter()
    launchers: Row = {"built": 0, "error": None}
    rows = list(_rows(request, jobs, timeout, launchers))
    return {
        "triton": versions.find("triton").text,
        "torch": versions.find("torch").text,
        "target": str(target),
        "multiprocessors": request["multiprocessors"],
        "cache": _cache(),
        "seconds": round(time.perf_counter() - began, 3),
        "launchers": launchers,
        "kernels": rows,
    }


def _variants(operation: compat.Operation[Any], named: Sequence[str]) -> Sequence[str | None]:
    has = [name for name in named if name in operation.variants]
    if named and not has:
        raise ValueError(f"variants: {operation.name} has none of {', '.join(named)}; {nearest(named[0], operation.variants)}")
    return has or [None]


def _variants_of_logits(named: Sequence[str]) -> list[str]:
    """Those for which schedules are made."""
    return [name for name in named if name in operation_of("fp8_paged_mqa_logits").variants]


def _multiprocessors(target: compat.Target, given: int | None) -> int:
    if given is not None:
        if given < 1:
            raise ValueError(f"multiprocessors: got {given}, needs 1 or more")
        return given
    import torch

    from ...common.hardware import multiprocessors

    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        if compat.capabilities(device).target == target:
            return multiprocessors(device)
    if target.label not in MULTIPROCESSORS:
        raise ValueError(f"multiprocessors: none given, needs how many SMs or CUs the GPU has: it is no {_known()}")
    return MULTIPROCESSORS[target.label]


def _known() -> str:
    return " or ".join(MULTIPROCESSORS)


def _cache() -> str:
    from triton import knobs

    return str(knobs.cache.dir)


def _rows(request: dict[str, Any], jobs: Sequence[Job], timeout: float, launchers: Row) -> Iterator[Row]:
    """A row for each kernel, and for each variant that has none; one whose compiler dies is left then.

    launchers : what the last process said of them, which is put there
    """
    said: set[Any] = set()
    with _progress() as started:
        while jobs:
            with Answers(f"{__package__}.child", {**request, "jobs": jobs}, environment()) as child:
                for number, job in enumerate(jobs):
                    operation, shape, named = job
                    started(operation, shape)
                    answer = child.answer(timeout)
                    launchers |= answer.get("launchers", {})
                    yield from _of_answer(job, answer, said)
                    if child.gone:
                        jobs = [left for left in jobs[number + 1 :] if (left[0], left[2]) != (operation, named)]
                        break
                else:
                    return


def _of_answer(job: Job, answer: Row, said: set[Any]) -> Iterator[Row]:
    operation, shape, named = job
    row = {"operation": operation, "variant": named, "shape": shape}
    for kernel in answer.get("kernels", ()):
        state = FAILED if kernel["error"] else WAS_THERE if kernel["was_there"] else COMPILED
        yield {**row, "state": state, **{key: kernel[key] for key in ("variant", "kernel", "seconds", "error")}}
    if answer["compiled"] or any(kernel["error"] for kernel in answer.get("kernels", ())):
        return
    why = (operation, named, answer["error"])
    if why not in said:  # once, and not for every shape
        said.add(why)
        state = REFUSED if answer.get("accepted") is False else FAILED
        yield {**row, "state": state, "kernel": None, "seconds": None, "error": answer["error"]}


@contextmanager
def _progress() -> Iterator[Any]:
    """A line on the terminal that says what is being compiled; gives the function that changes it."""
    from rich.console import Console

    if not sys.stderr.isatty():
        yield lambda operation, shape: None
        return
    with Console(stderr=True).status("starting a compiler") as line:
        yield lambda operation, shape: line.update(f"{operation}: {_words(shape)}")


def _words(shape: Shape) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items() if value not in (None, False, 0))


def show(result: dict[str, Any]) -> None:
    """Print the kernels for people; plain text when the output is not a terminal."""
    from rich.text import Text

    from ..bench.tables import empty, note

    console, rows = plain_console(), result["kernels"]
    title = f"For {result['target']} by Triton {result['triton']}, into {result['cache']}; nothing was run"
    table = empty(title, ("operation", "variant", "kernel", "first of", "", "seconds"))
    for row in rows:
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.2f}"
        names = (row["operation"], row["variant"] or "-", row["kernel"] or "-")
        table.add_row(*names, _words(row["shape"]), row["state"], seconds, style="red" if row["error"] else "")
    print_whole(console, table)
    for row in rows:
        if row["error"]:
            console.print(
                Text(f"{row['operation']}, {row['variant'] or 'no variant'}, {_words(row['shape'])}: {row['error']}", "red")
            )
    compiled, there = (sum(row["state"] == state for row in rows) for state in (COMPILED, WAS_THERE))
    failed = len(rows) - compiled - there
    note(console, f"{compiled} compiled, {there} were there, {failed} could not be compiled; {result['seconds']:.1f} s")
    launchers = result["launchers"]
    if launchers["error"]:
        note(console, f"What launches them is left to the first process that does: {launchers['error']}")
    else:
        note(console, f"{launchers['built']} modules that launch them were built by the C compiler")
