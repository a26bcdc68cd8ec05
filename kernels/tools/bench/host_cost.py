"""What a call costs on the host: ours called directly, ours through DeepGEMM's signature, and DeepGEMM where it is installed.

    python -m capgate.kernels.tools.bench.host_cost [--calls 200]

Microseconds from a call to its return, medians; the device is waited for between the calls, and not timed. Each call makes the
tensor that it returns, as DeepGEMM's do.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch

from capgate.compat.thirdparty import Raised

from ...common.schedule.operation import DEEP_GEMM_KEYS
from ...dropin import deep_gemm
from ...dropin.binding import bind
from ...mqa_logits import fp8_mqa_logits
from ...mqa_logits.operation import example
from ...paged_mqa_logits import fp8_paged_mqa_logits, paged_mqa_schedule
from ..markdown import table
from ..workloads.batch import Call
from ..workloads.catalogue import SMALL, WORKLOADS
from .other_libraries import PEERS
from .timing import this_device
from .trial import Trial, try_peer

COLUMNS = ("directly", "through the drop-in", "DeepGEMM's own")
WARM_UP = 5  # calls: compiled kernels are found, and calls that repeat are kept


def calls(device: torch.device) -> dict[str, dict[str, Call]]:
    """For each of DeepGEMM's functions the calls to time, by column."""
    known = WORKLOADS if device.type == "cuda" else SMALL
    dtype = getattr(torch, example(device).dtype)
    prefill, decode = (known[name].make(device, dtype) for name in ("f", "decode-8k"))
    pair, windows = (prefill.k, prefill.k_scale), (prefill.starts, prefill.ends)
    lens, block, workers = decode.context_lens, decode.kv_cache.shape[1], deep_gemm.get_num_sms()
    schedule = paged_mqa_schedule(lens, block, workers, chunk_keys=DEEP_GEMM_KEYS)
    width, keywords = decode.max_context_len, {"schedule": schedule, "schedule_chunk_keys": DEEP_GEMM_KEYS}
    found: dict[str, dict[str, Call]] = {
        "fp8_mqa_logits": {
            COLUMNS[0]: partial(fp8_mqa_logits, *prefill.operands, clean_logits=False),
            COLUMNS[1]: partial(_dropin(deep_gemm.fp8_mqa_logits), prefill.q, pair, prefill.weights, *windows, False),
        },
        "fp8_paged_mqa_logits": {
            COLUMNS[0]: partial(fp8_paged_mqa_logits, *decode.operands, max_context_len=width, **keywords),
            COLUMNS[1]: partial(_dropin(deep_gemm.fp8_paged_mqa_logits), *decode.operands, schedule, width),
        },
        "get_paged_mqa_logits_metadata": {
            COLUMNS[0]: partial(paged_mqa_schedule, lens, block, workers, chunk_keys=DEEP_GEMM_KEYS),
            COLUMNS[1]: partial(_dropin(deep_gemm.get_paged_mqa_logits_metadata), lens, block, workers),
        },
    }
    for name, batch in (("fp8_mqa_logits", prefill), ("fp8_paged_mqa_logits", decode)):
        peer = PEERS[name]["deep_gemm"]
        trial = try_peer(peer, batch, False, found[name][COLUMNS[0]]())
        if isinstance(trial, Trial):
            found[name][COLUMNS[2]] = trial.call
        elif isinstance(trial, Raised):
            print(f"capgate: DeepGEMM's {name}: {trial.words}", file=sys.stderr)
        module = peer.find()
        if isinstance(module, ModuleType) and name == "fp8_paged_mqa_logits" and isinstance(trial, Trial):
            theirs = trial.call.args[3]  # type: ignore[attr-defined] # lengths as this version takes them
            metadata = partial(module.get_paged_mqa_logits_metadata, theirs, block, workers)
            found["get_paged_mqa_logits_metadata"][COLUMNS[2]] = metadata
    return found


def _dropin(function: Callable[..., Any]) -> Callable[..., Any]:
    """As it stands in the library's place."""
    return bind(function, _not_called).function


def _not_called(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("the drop-in left a call to the library")


def medians(timed: Mapping[str, Call], count: int, wait: Callable[[], object]) -> dict[str, float]:
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


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200, help="timed calls for each median (%(default)s)")
    count = parser.parse_args(arguments).calls
    if count < 1:
        parser.error(f"--calls: got {count}, needs 1 or more")
    device = this_device()
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    rows = []
    for name, timed in calls(device).items():
        taken = medians(timed, count, wait)
        rows.append([f"`{name}`", *(f"{taken[column]:.1f}" if column in taken else "" for column in COLUMNS)])
    print(f"us of the host for a call, medians of {count}\n")
    print(table(["function", *COLUMNS], ["---", *["---:"] * len(COLUMNS)], rows))


def _nothing() -> None:
    """The CPU is done when a call returns."""


if __name__ == "__main__":
    main()
