"""An engine's process on a GPU that is not here: ``python -m support.engine_start``, a request (JSON) on standard input.

The public functions are called, with tensors of the CPU, whose device is taken for the target; Triton's part after the compile
is played: nothing is loaded or launched. Prints, as JSON, ``asked``: for each compile that Triton was asked for the kernel and
whether its cache had it, and ``folders``: how many its cache has gained.

With ``deployment`` in the request nothing is compiled: Triton's keys are compared with those of what ``capgate warm`` would
compile. Printed are ``known``, how many kernels that is, and ``unknown``: the calls that have another key.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver

from capgate.compat import targets
from capgate.compat.offline.absent import set_absent_gpu
from capgate.compat.offline.jobs import operation_of
from capgate.kernels import (
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    gather_keys,
    paged_mqa_schedule,
    paged_mqa_workers,
    quantize_keys_to_cache,
    select_from_logits,
    select_keys,
    select_paged_keys,
)
from capgate.kernels.common.hardware import suppose_multiprocessors
from capgate.kernels.dropin import deep_gemm, vllm
from capgate.kernels.key_cache.api import gather_keys_between
from capgate.kernels.tools.warm.calls import call_of
from capgate.kernels.tools.warm.deployment import Deployment, shapes_of

CPU = torch.device("cpu")


def pretend(target: targets.Target, multiprocessors: int) -> None:
    """The CPU is the target's GPU, and Triton's driver has found it and launches nothing."""
    targets.of_device = lambda device: target
    suppose_multiprocessors(CPU, multiprocessors)
    set_absent_gpu(target)
    driver.active.launcher_cls = lambda source, metadata: lambda *given: None
    driver.active.utils = SimpleNamespace(
        load_binary=lambda *given: (None, 0, 0, 0, 2**16),
        get_device_properties=lambda device: {"max_shared_mem": 2**18},
    )


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of the CPU, 64-byte aligned as torch's are."""
    return torch.zeros(shape, dtype=dtype)


def dense(fp8: torch.dtype, rows: int, keys: int, heads: int, dim: int) -> tuple[torch.Tensor, ...]:
    """The operands of a prefill."""
    window = zeros(rows, dtype=torch.int32), zeros(rows, dtype=torch.int32)
    return zeros(rows, heads, dim).to(fp8), zeros(keys, dim).to(fp8), zeros(keys), zeros(rows, heads), *window


def paged(
    fp8: torch.dtype, requests: int, blocks: int, heads: int, dim: int, next_n: int, max_context: int
) -> tuple[torch.Tensor, ...]:
    """The operands of decode, blocks of 64 keys."""
    return (
        zeros(requests, next_n, heads, dim).to(fp8),
        zeros(blocks, 64, 1, dim + 4, dtype=torch.uint8),
        zeros(requests * next_n, heads),
        zeros(requests, dtype=torch.int32),
        zeros(requests, -(-max_context // 64), dtype=torch.int32),
    )


def call(fp8: torch.dtype, function: str, sizes: dict[str, int], options: dict[str, Any]) -> None:
    """One call of a public function; of decode with the schedule that its layers share."""
    if "tables" in options:  # slots are selected
        tables = zeros(options["tables"], 8192 // options["page_size"], dtype=torch.int32)
        looking = {"requests": zeros(sizes["rows"], dtype=torch.int32)} if function == "select_keys" else {}
        options = {**{name: value for name, value in options.items() if name != "tables"}, "page_table": tables, **looking}
    if function == "fp8_mqa_logits":
        fp8_mqa_logits(*dense(fp8, **sizes), **options)
    elif function == "vllm_prefill":
        vllm_prefill(dense(fp8, **sizes), **options)
    elif function == "vllm_decode":
        vllm_decode(paged(fp8, **sizes), max_context=sizes["max_context"], **options)
    elif function == "quantize_keys_to_cache":
        keys, slots = zeros(sizes["rows"], 128, dtype=torch.bfloat16), zeros(sizes["rows"], dtype=torch.int64)
        quantize_keys_to_cache(keys, zeros(sizes["blocks"], 64, 1, 132, dtype=torch.uint8), slots, dtype=fp8, **options)
    elif function == "gather_keys":
        _, cache, _, lens, table = paged(fp8, **sizes)
        gather_keys(cache, table, lens, dtype=fp8, **options)
        found, ends = (zeros(options["total"], 128).to(fp8), zeros(options["total"])), zeros(len(lens) + 1, dtype=torch.int32)
        gather_keys_between(cache, table, ends, *found)
    elif function == "select_keys":
        select_keys(*dense(fp8, **sizes), **options)
    elif function == "select_paged_keys":
        select_paged_keys(*paged(fp8, **sizes), max_context_len=sizes["max_context"], **options)
    elif function == "select_from_logits":
        rows, columns = sizes["rows"], sizes["columns"]
        logits = zeros(rows, -(-columns // 256) * 256)[:, :columns]
        select_from_logits(logits, None, zeros(rows, dtype=torch.int32), **options)
    else:
        q, cache, *rest = paged(fp8, **sizes)
        schedule = paged_mqa_schedule(rest[1], 64, paged_mqa_workers(q, cache, **options))
        fp8_paged_mqa_logits(q, cache, *rest, max_context_len=sizes["max_context"], schedule=schedule, **options)


def vllm_prefill(operands: tuple[torch.Tensor, ...], columns: int, top_k: int) -> None:
    """As vLLM calls the drop-ins of DeepGEMM's functions and of its own."""
    q, k, k_scale, weights, starts, ends = operands
    logits = deep_gemm.fp8_fp4_mqa_logits((q, None), (k, k_scale), weights, starts, ends, columns)
    indices = zeros(len(q), top_k, dtype=torch.int32)
    vllm.top_k_per_row_prefill(logits, starts, ends, indices, len(q), *logits.stride(), top_k)


def vllm_decode(operands: tuple[torch.Tensor, ...], processors: int, max_context: int, top_k: int) -> None:
    """As :func:`vllm_prefill`; lengths are given for each row."""
    q, cache, weights, lens, table = operands
    lens = lens[:, None].repeat(1, q.shape[1])
    schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, 64, processors)
    logits = deep_gemm.fp8_fp4_paged_mqa_logits((q, None), cache, weights, lens, table, schedule, max_context)
    indices = zeros(len(logits), top_k, dtype=torch.int32)
    vllm.top_k_per_row_decode(logits, q.shape[1], lens, indices, len(logits), *logits.stride(), top_k)


def warm_up(name: str, target: targets.Target, deployment: dict[str, Any]) -> None:
    """As ``capgate warm`` prepares an operation's launches."""
    operation, given = operation_of(name), Deployment(**deployment)
    for shape in shapes_of(operation, target, given, ()):
        problem, operands, options = call_of(operation, target, given, shape, None)
        for launch in operation.load(operation.select(problem)).prepare(problem, *operands, **options):
            launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)


def keys(calls: dict[str, Callable[[], None]]) -> dict[str, set[Any]]:
    """The keys by which Triton looks for the kernels of each of these; none is compiled."""
    found: dict[str, set[Any]] = {}
    for name, make in calls.items():
        took = found[name] = set()
        knobs.runtime.jit_cache_hook = lambda *, key, fn, took=took, **rest: not took.add((fn.name, key))
        make()
    return found


def main() -> None:
    """Make the request's calls."""
    request = json.load(sys.stdin)
    target = targets.parse(request["target"])
    pretend(target, request["multiprocessors"])
    fp8 = torch.float8_e4m3fnuz if target.label == "gfx942" else torch.float8_e4m3fn
    calls = {json.dumps(one): (lambda one=one: call(fp8, *one)) for one in request["calls"]}
    if "deployment" in request:
        suppose_multiprocessors(target, request["multiprocessors"])
        warm = {name: (lambda name=name: warm_up(name, target, request["deployment"])) for name in request["operations"]}
        known = set[Any]().union(*keys(warm).values())
        print(
            json.dumps({"known": len(known), "unknown": [one for one, took in keys(calls).items() if not took or took - known]})
        )
        return
    asked: list[tuple[str, bool]] = []
    knobs.compilation.listener = lambda *, src, cache_hit, **rest: asked.append((src.name, cache_hit))
    cache = Path(knobs.cache.dir)
    before = len(list(cache.iterdir()))
    for make in calls.values():
        make()
    print(json.dumps({"asked": asked, "folders": len(list(cache.iterdir())) - before}))


if __name__ == "__main__":
    main()
