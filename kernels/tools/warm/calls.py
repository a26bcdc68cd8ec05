"""Calls of a deployment's shapes, of meta tensors: made of what the functions themselves are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from capgate import compat

from ...common.hardware import multiprocessors
from ...common.logits import ROW_ALIGNMENT, empty_logits
from ...common.rules import BF16, native_fp8
from ...common.schedule import operands as scheduled
from ...common.schedule import operation as scheduling
from ...common.schedule.operation import CHUNK_KEYS, DEEP_GEMM_KEYS, workers_of
from ...key_cache import operation as caching
from ...key_cache.operands import Between, Gathered, Written
from ...key_selection import operands as selected
from ...key_selection import operators
from ...key_selection.results import new_results
from ...mqa_logits import api as dense_api
from ...mqa_logits import operands as dense
from ...mqa_logits.operation import MODES as DENSE
from ...paged_mqa_logits import api as paged_api
from ...paged_mqa_logits import operands as paged
from ...paged_mqa_logits.operation import MODES as PAGED
from ...paged_mqa_logits.operation import operation as paged_operation
from .deployment import Deployment, Shape

META = torch.device("meta")


class Call(NamedTuple):
    """A call of an operation, as its variants' ``prepare`` takes it."""

    problem: Any
    operands: tuple[Any, ...]
    options: dict[str, Any]


def call_of(
    operation: compat.Operation[Any], target: compat.Target, deployment: Deployment, shape: Shape, variant: str | None
) -> Call:
    """The call of a shape; of an operation that is not known here its example.

    variant : that is named; None for what is chosen
    """
    if operation.name in CALLS:
        return CALLS[operation.name](target, deployment, shape, variant)
    assert operation.examples is not None  # or it would have no shapes
    problem = operation.examples.problem(target, deployment.heads, deployment.dim, shape["mode"], deployment.dtype)
    call = operation.examples.call(problem)
    return Call(problem, call.operands, call.options)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def _integers(*shape: int) -> torch.Tensor:
    return _meta(*shape, dtype=torch.int32)


def _fp8(target: compat.Target, deployment: Deployment) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, deployment.dtype or native_fp8(target))
    return dtype


def _floats(mode: str) -> torch.dtype:
    return torch.bfloat16 if mode.endswith(BF16) else torch.float32


def _dense(target: compat.Target, deployment: Deployment, shape: Shape, variant: str | None) -> Call:
    rows, keys, mode = shape["rows"], shape["keys"], shape["mode"]
    (clean_logits, compressed), fp8 = DENSE[mode.removesuffix(BF16)], _fp8(target, deployment)
    inputs = dense.Inputs(
        q=_meta(rows, deployment.heads, deployment.dim, dtype=fp8),
        k=_meta(keys, deployment.dim, dtype=fp8),
        k_scale=_meta(keys),
        weights=_meta(rows, deployment.heads, dtype=_floats(mode)),
        starts=_integers(rows),
        ends=_integers(rows),
    )
    out = empty_logits((rows, shape["width"] if compressed else keys), META, _floats(mode))
    problem = dense_api.describe(inputs, out, clean_logits, compressed)._replace(device=target)
    return Call(problem, (inputs, out), {"clean_logits": clean_logits, "compressed": compressed})


def _paged_inputs(target: compat.Target, deployment: Deployment, shape: Shape) -> paged.Inputs:
    requests, next_n = shape["requests"], shape["next_n"]
    return paged.Inputs(
        q=_meta(requests, next_n, deployment.heads, deployment.dim, dtype=_fp8(target, deployment)),
        kv_cache=_cache(deployment, shape.get("blocks", 1)),
        weights=_meta(requests * next_n, deployment.heads, dtype=_floats(shape["mode"])),
        context_lens=_lens(deployment, shape),
        block_table=_integers(requests, -(-deployment.max_context // deployment.block)),
    )


def _cache(deployment: Deployment, blocks: int) -> torch.Tensor:
    return _meta(blocks, deployment.block, 1, deployment.dim + 4, dtype=torch.uint8)


def _lens(deployment: Deployment, shape: Shape) -> torch.Tensor:
    requests, next_n = shape["requests"], shape["next_n"]
    return _integers(requests, next_n) if deployment.row_lens else _integers(requests)


def _paged_problem(target: compat.Target, deployment: Deployment, shape: Shape, inputs: paged.Inputs) -> Any:
    mode = shape["mode"]
    clean_logits = PAGED[mode.removesuffix(BF16)]
    return paged_api.describe(inputs, clean_logits, _floats(mode), deployment.layout)._replace(device=target)


def _workers(target: compat.Target, deployment: Deployment, problem: Any, variant: str | None) -> int:
    """Of a schedule that a call of this problem is given."""
    if deployment.schedule == "deep_gemm":
        return multiprocessors(target)
    return workers_of(paged_operation, problem, variant)


def _chunk_keys(deployment: Deployment) -> int:
    return DEEP_GEMM_KEYS if deployment.schedule == "deep_gemm" else CHUNK_KEYS


def _paged(target: compat.Target, deployment: Deployment, shape: Shape, variant: str | None) -> Call:
    inputs = _paged_inputs(target, deployment, shape)
    problem = _paged_problem(target, deployment, shape, inputs)
    if shape["scheduled"]:
        inputs = inputs._replace(schedule=_integers(_workers(target, deployment, problem, variant) + 1, 2))
    out = empty_logits((len(inputs.weights), deployment.max_context), META, _floats(shape["mode"]))
    options = {"clean_logits": problem.clean_logits, "layout": deployment.layout, "chunk_keys": _chunk_keys(deployment)}
    return Call(problem, (inputs, out), options)


def _schedule(target: compat.Target, deployment: Deployment, shape: Shape, variant: str | None) -> Call:
    problem = _paged_problem(target, deployment, shape, _paged_inputs(target, deployment, shape))
    schedule = _integers(_workers(target, deployment, problem, shape["logits_variant"]) + 1, 2)
    inputs = scheduled.Inputs(_lens(deployment, shape))
    return Call(scheduling.Problem(target), (inputs, schedule), {"chunk_keys": _chunk_keys(deployment)})


def _selection(target: compat.Target, deployment: Deployment, shape: Shape, variant: str | None) -> Call:
    """From a buffer of logits, as select_keys and select_paged_keys have it, or where all keys are selected from none."""
    columns, next_n, requests = shape["columns"], shape["next_n"], shape["requests"]
    rows = shape["rows"]
    results = new_results(rows, shape["top_k"], shape["mode"] == "scores", META)
    if shape["listed"]:
        logits = operators.no_logits(rows, columns, META)
    else:
        dtype = torch.bfloat16 if shape["half"] else torch.float32
        step = ROW_ALIGNMENT * -(-columns // ROW_ALIGNMENT)
        logits = _meta(max(rows, -(-shape["storage"] // (step * dtype.itemsize))), step, dtype=dtype)
        logits = logits[:rows, :columns]
    page_size = deployment.page_size
    table = None if page_size is None else _integers(requests, -(-deployment.max_context // page_size))
    of_rows = _integers(rows)
    inputs = selected.Inputs(
        logits,
        starts=of_rows if next_n is None else None,
        ends=of_rows,
        page_table=table,
        requests=of_rows if table is not None and next_n is None else None,
    )
    problem = operators.problem_of(inputs, results.out, target)
    options = {
        "num_keys": shape["keys"],
        "relative": deployment.relative and next_n is None,
        "page_size": page_size or 1,
        "rows_per_request": next_n or 1,
    }
    return Call(problem, (inputs, *results[:2]), options)


def _writing(target: compat.Target, deployment: Deployment, shape: Shape, variant: str | None) -> Call:
    keys = shape["keys"]
    inputs = Written(
        _meta(keys, deployment.dim, dtype=torch.bfloat16),
        _cache(deployment, shape["blocks"]),
        _meta(keys, dtype=torch.int64),
    )
    options = {
        "dtype": _fp8(target, deployment),
        "scale_format": shape["scale_format"],
        "layout": deployment.layout,
        "largest": deployment.largest,
    }
    return Call(caching.Problem(target), (inputs,), options)


def _gathering(target: compat.Target, deployment: Deployment, shape: Shape, variant: str | None) -> Call:
    requests, keys = shape["requests"], shape["keys"]
    table = _integers(requests, -(-deployment.max_context // deployment.block))
    cache = _cache(deployment, shape["blocks"])
    lens = _integers(requests + 1) if shape["between"] else _integers(requests)
    inputs = Between(cache, table, lens) if shape["between"] else Gathered(cache, table, lens)
    results = (_meta(keys, deployment.dim, dtype=torch.uint8), _meta(keys))
    return Call(caching.Problem(target), (inputs, *results), {"layout": deployment.layout})


CALLS: dict[str, Callable[[compat.Target, Deployment, Shape, str | None], Call]] = {
    "fp8_mqa_logits": _dense,
    "fp8_paged_mqa_logits": _paged,
    "paged_mqa_schedule": _schedule,
    "select_keys": _selection,
    "quantize_keys_to_cache": _writing,
    "gather_keys": _gathering,
}
