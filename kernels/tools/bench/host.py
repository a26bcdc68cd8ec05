"""What a call costs on the host: ours, ours in DeepGEMM's place, the same kernels launched plainly, and other libraries' calls.

Microseconds from a call to its return, medians; the device is waited for between the calls, and not timed.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from capgate import compat
from capgate.compat.terminal import console, print_whole
from capgate.compat.thirdparty import Raised

from ...common.schedule import operands as scheduled
from ...common.schedule import operation as scheduling
from ...common.schedule.operation import DEEP_GEMM_KEYS
from ...dropin import deep_gemm
from ...dropin.binding import bind
from ...key_selection import api as selection
from ...key_selection import operands as selected
from ...key_selection.operation import Problem as Selecting
from ...key_selection.operation import operation as selecting
from ...mqa_logits import api as dense
from ...mqa_logits import operands as dense_operands
from ...mqa_logits.operation import operation as dense_operation
from ...paged_mqa_logits import api as paged
from ...paged_mqa_logits import operands as paged_operands
from ...paged_mqa_logits.operation import operation as paged_operation
from ..workloads.batch import Call
from ..workloads.decode import Decode, DecodeBatch, given
from ..workloads.prefill import Prefill, PrefillBatch, causal
from .other_libraries import PEERS
from .tables import empty, note
from .trial import Trial, try_peer

OURS, PLACED, PLAIN, PEER = COLUMNS = ("capgate", "drop-in", "kernel[grid]", "peer")
WARM_UP = 5  # calls: compiled kernels are found, and calls that repeat are kept
WORDS = (
    "us of the host for a call, medians of {repeats}. drop-in: ours in DeepGEMM's place, making its output; kernel[grid]: "
    "Triton's plain launch of the same kernels, nothing checked or prepared; peer: DeepGEMM, of select_from_logits torch.topk."
)
KEPT: tuple[compat.Calls[Any], ...] = (
    dense.REPEATS,
    paged.REPEATS,
    paged.SCHEDULE_REPEATS,
    selection.REPEATS,
    selection.PAGED_REPEATS,
    selection.LOGITS_REPEATS,
)


class Sizes(NamedTuple):
    """Of the calls: rows and keys of two prefills, requests and their keys of two decodes, and the keys that are selected."""

    prefills: tuple[tuple[int, int], ...] = ((64, 8192), (16, 512))
    decodes: tuple[tuple[int, int], ...] = ((1, 4096), (64, 8192))
    top_k: int = 2048


Rows = dict[str, dict[str, Call]]


def rows(device: torch.device, sizes: Sizes = Sizes()) -> Rows:  # noqa: B008 - it cannot be changed
    """For each call by name the ways to make it, by column; those that this machine has."""
    dtype = getattr(torch, dense_operation.example(device).dtype)  # type: ignore[misc] # it has an example
    found: Rows = {}
    for number, (count, keys) in enumerate(sizes.prefills):
        batch = Prefill("", "", count, keys, 64, 128, causal(count, keys)).make(device, dtype)
        found[f"fp8_mqa_logits, {count} x {keys}"] = _dense(batch)
        if number == 0:
            selections = _selections(batch, min(sizes.top_k, keys // 2))
    for count, keys in sizes.decodes:
        decode = Decode("", "", count, given([keys] * count)).make(device, dtype)
        found[f"fp8_paged_mqa_logits, {count} x {keys}"], schedule = _paged(decode)
    return {**found, f"paged_mqa_schedule, {count}": schedule, **selections, **checks(device, dtype)}


def checks(device: torch.device, dtype: torch.dtype) -> Rows:
    """The checks of operands alone; of these only shapes, dtypes and device matter."""

    def of(table: Any, *shapes: tuple[tuple[int, ...], torch.dtype]) -> dict[str, Call]:
        tensors = [torch.empty(shape, dtype=kind, device=device) for shape, kind in shapes]
        return {OURS: partial(table.check, table.inputs(*tensors), "the logits")}

    real, whole = torch.float32, torch.int32
    rows, keys, heads, dim = 64, 8192, 64, 128
    queries = ((rows, heads, dim), dtype), ((keys, dim), dtype), ((keys,), real), ((rows, heads), real)
    cache = ((rows, 64, 1, dim + 4), torch.uint8)
    table, schedule = ((rows, 8), whole), ((133, 2), whole)
    return {
        "checks of fp8_mqa_logits": of(dense_operands.OPERANDS, *queries, ((rows,), whole), ((rows,), whole)),
        "checks of fp8_paged_mqa_logits": of(
            paged_operands.OPERANDS,
            *(((rows, 1, heads, dim), dtype), cache, ((rows, heads), real), ((rows,), whole), table, schedule),
        ),
    }


def _plain(operation: compat.Operation[Any], problem: Any, *operands: Any, **options: Any) -> dict[str, Call]:
    """Triton's own launch of what a call of the operation launches; none where a variant has no kernel."""
    kernel = operation.load(operation.select(problem))
    if not isinstance(kernel, compat.Kernel):
        return {}
    launches = kernel.prepare(problem, *operands, **options)
    return {PLAIN: lambda: [launch() for launch in launches]}


def _dense(batch: PrefillBatch) -> dict[str, Call]:
    inputs, out = dense_operands.Inputs(*batch.operands), batch.output()
    problem = dense.describe(inputs, out, False, False)
    pair = (batch.k, batch.k_scale)
    return {
        OURS: partial(dense.fp8_mqa_logits, *inputs, clean_logits=False, out=out),
        PLACED: partial(_dropin(deep_gemm.fp8_mqa_logits), batch.q, pair, batch.weights, batch.starts, batch.ends, False),
        **_plain(dense_operation, problem, inputs, out, clean_logits=False, compressed=False),
        **_peer("fp8_mqa_logits", batch, out),
    }


def _paged(batch: DecodeBatch) -> tuple[dict[str, Call], dict[str, Call]]:
    """The ways to call the logits, and those to make their schedule, in chunks as DeepGEMM has them."""
    lens, block, out = batch.context_lens, batch.kv_cache.shape[1], batch.output()
    workers = deep_gemm.get_num_sms()
    schedule = paged.paged_mqa_schedule(lens, block, workers, chunk_keys=DEEP_GEMM_KEYS)
    q, cache, weights, _, table = batch.operands
    inputs, width = paged_operands.Inputs(q, cache, weights, lens, table, schedule), batch.max_context_len
    options = {"clean_logits": False, "chunk_keys": DEEP_GEMM_KEYS, "layout": "flat"}
    keywords = {"max_context_len": width, "schedule": schedule, "schedule_chunk_keys": DEEP_GEMM_KEYS, "out": out}
    logits: dict[str, Call] = {
        OURS: partial(paged.fp8_paged_mqa_logits, *batch.operands, **keywords),
        PLACED: partial(_dropin(deep_gemm.fp8_paged_mqa_logits), *batch.operands, schedule, width),
        **_plain(paged_operation, paged.describe(inputs, False), inputs, out, **options),
        **_peer("fp8_paged_mqa_logits", batch, out),
    }
    sharing = scheduling.Problem(lens.device)
    made: dict[str, Call] = {
        OURS: partial(paged.paged_mqa_schedule, lens, block, workers, chunk_keys=DEEP_GEMM_KEYS),
        PLACED: partial(_dropin(deep_gemm.get_paged_mqa_logits_metadata), lens, block, workers),
        **_plain(scheduling.operation, sharing, scheduled.Inputs(lens), schedule, chunk_keys=DEEP_GEMM_KEYS),
    }
    module, theirs = PEERS["fp8_paged_mqa_logits"]["deep_gemm"].find(), logits.get(PEER)
    if isinstance(module, ModuleType) and theirs is not None:
        as_taken = theirs.args[3]  # type: ignore[attr-defined] # lengths as this version takes them
        made[PEER] = partial(module.get_paged_mqa_logits_metadata, as_taken, block, workers)
    return logits, made


def _selections(batch: PrefillBatch, top_k: int) -> Rows:
    logits = dense.fp8_mqa_logits(*batch.operands)
    inputs = selected.Inputs(logits, batch.starts, batch.ends)
    out = torch.empty((len(logits), top_k), dtype=torch.int32, device=logits.device)
    options = {"num_keys": None, "relative": False}
    size = f"{len(logits)} x {logits.shape[1]}"
    return {
        f"select_from_logits, {size}": {
            OURS: partial(selection.select_from_logits, logits, batch.starts, batch.ends, top_k=top_k, out=out),
            **_plain(selecting, Selecting(logits.device, top_k), inputs, out, None, **options),
            PEER: partial(torch.topk, logits, top_k, dim=1, sorted=False),
        },
        f"select_keys, {size}": {OURS: partial(selection.select_keys, *batch.operands, top_k=top_k)},
    }


def _peer(operation: str, batch: Any, ours: torch.Tensor) -> dict[str, Call]:
    """DeepGEMM's call where it is installed and its logits are those of ours."""
    trial = try_peer(PEERS[operation]["deep_gemm"], batch, False, ours)
    if isinstance(trial, Raised):
        print(f"capgate: DeepGEMM's {operation}: {trial.words}", file=sys.stderr)
    return {PEER: trial.call} if isinstance(trial, Trial) else {}


def _dropin(function: Callable[..., Any]) -> Callable[..., Any]:
    """As it stands in the library's place."""
    return bind(function, _not_called).function


def _not_called(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("the drop-in left a call to the library")


# --- what is measured -------------------------------------------------------------------------------------------------------


def measure(device: torch.device, repeats: int, calls: int) -> dict[str, Any]:
    """The medians of every row and the growth over ``calls`` calls; without a GPU only the checks are timed.

    Keys: ``repeats``; ``rows``, each with ``row`` and ``us``, the medians by column; ``growth``, of :func:`growth`, or None
    """
    if device.type == "cuda":
        timed, wait = rows(device), torch.cuda.synchronize
    else:
        timed, wait = checks(torch.device("meta"), torch.float8_e4m3fn), _nothing
    medians = [{"row": name, "us": medians_of(ways, repeats, wait)} for name, ways in timed.items()]
    ours = [ways[OURS] for ways in timed.values()]
    return {"repeats": repeats, "rows": medians, "growth": growth(ours, calls, wait)}


def medians_of(timed: Mapping[str, Call], count: int, wait: Callable[[], object]) -> dict[str, float]:
    """Microseconds of each of the calls, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(WARM_UP + count):
        for name, call in timed.items():
            wait()
            begin = time.perf_counter()
            call()
            if number >= WARM_UP:
                times[name].append((time.perf_counter() - begin) * 1e6)
    wait()
    return {name: statistics.median(taken) for name, taken in times.items()}


def growth(functions: Iterable[Call], calls: int, wait: Callable[[], object]) -> dict[str, Any]:
    """What is there before and after so many calls, which the functions take in turn.

    Keys: ``calls``; ``before`` and ``after``, each with ``resident_bytes`` of the process, ``objects`` that the garbage
    collector knows, and ``kept``, the calls whose launches are kept
    """
    functions = list(functions)
    for function in functions * WARM_UP:
        function()
    before = _state(wait)
    for _ in range(-(-calls // len(functions))):
        for function in functions:
            function()
    return {"calls": calls, "before": before, "after": _state(wait)}


def _state(wait: Callable[[], object]) -> dict[str, int]:
    wait()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    objects = len(gc.get_objects())
    return {"resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"), "objects": objects, "kept": sum(map(len, KEPT))}


def _nothing() -> None:
    """The CPU is done when a call returns."""


def show(results: dict[str, Any]) -> None:
    """Print the medians and the growth."""
    printer = console()
    columns = [column for column in COLUMNS if any(column in row["us"] for row in results["rows"])]
    table = empty("Host cost", ("call", *columns))
    for row in results["rows"]:
        table.add_row(row["row"], *(f"{row['us'][column]:.1f}" if column in row["us"] else "" for column in columns))
    print_whole(printer, table)
    if columns == [OURS]:
        note(printer, f"Without a GPU, checks alone, medians of {results['repeats']}: calls need one to launch on.")
    else:
        note(printer, WORDS.format(repeats=results["repeats"]))
    growth, (before, after) = results["growth"], (results["growth"][when] for when in ("before", "after"))
    memory = " to ".join(f"{state['resident_bytes'] / 2**20:.1f}" for state in (before, after))
    counts = ", ".join(
        f"{words} {before[key]} to {after[key]}" for key, words in (("objects", "objects"), ("kept", "kept calls"))
    )
    note(printer, f"Over {growth['calls']} calls: resident MiB {memory}, {counts}.")
