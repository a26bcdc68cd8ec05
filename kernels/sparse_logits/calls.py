"""What becomes of a call: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

from functools import partial
from typing import Any

import torch

from capgate import compat

from ..common.cache import check_address, check_blocks
from ..common.checks import (
    check_among,
    check_apart,
    check_choice,
    check_flag,
    check_output,
    check_shared,
    check_variant,
)
from ..common.logits import FLOATS, FP8, LOGITS, empty_logits, mappable
from ..common.mx_cache import check_cache, format_of
from ..common.mx_operands import FORMAT_OF, check_dims, dim_of
from ..common.operands import Operands
from ..common.rules import MAX_HEADS, MAX_NEXT
from ..common.schedule import operands as scheduled
from ..common.schedule.operation import CHUNKS
from ..common.torch_ops import register
from .operands import Cached, Dense, Inputs, Mx, MxDense, MxPaged, Packed, Paged
from .operation import CANDIDATE_BLOCKS, MOST_ROWS, Problem

MAX_CELLS = 2**30  # of a row, so that a cell and the end of its tile are 32 bits wide
_OPTIONS = "SymInt candidate_block, bool clean_logits, str? variant, int schedule_chunk_keys"


class Calls:
    """One of the functions: its operation, which calls of it are kept, its table of operands, and its operators."""

    def __init__(self, operation: compat.Operation[Problem], operands: Operands[Any]) -> None:
        self.operation, self.operands, self.repeats = operation, operands, compat.Repeats(operation)
        name, cached = operation.name, issubclass(operands.inputs, Cached)
        options = f"{_OPTIONS}, {'str layout' if cached else 'bool relative'}"
        register(name, operands, f"ScalarType logits_dtype, {options}", "Tensor", self._launch_new, _empty)
        register(f"{name}_out", operands, f"Tensor(a!) out, {options}", "()", self._launch_into)
        self.new, self.into = getattr(torch.ops.capgate, name), getattr(torch.ops.capgate, f"{name}_out")

    def _launch(
        self,
        inputs: Inputs,
        out: torch.Tensor,
        candidate_block: int,
        clean_logits: bool,
        variant: str | None,
        chunk_keys: int,
        place: bool | str,
    ) -> None:
        """Run the chosen variant, unless there is no cell to write."""
        problem = describe(inputs, out.dtype, candidate_block, clean_logits, place)
        if out.numel() == 0:  # a variant that cannot run is an error for empty calls too, but no operand can be in its way
            self.operation.select(problem._replace(direct_keys=True, tensor_maps=True), variant)
            return
        self.operation(problem, inputs, out, variant=variant, **_kept(inputs, candidate_block, clean_logits, chunk_keys, place))

    def _launch_into(self, inputs: Inputs, out: torch.Tensor, *options: Any) -> None:
        """The operator whose output is the caller's."""
        check_apart("out", out, inputs)
        self._launch(inputs, out, *options)

    def _launch_new(self, inputs: Inputs, logits_dtype: torch.dtype, candidate_block: int, *options: Any) -> torch.Tensor:
        """The operator that makes a new output."""
        out = _new(inputs, candidate_block, logits_dtype)
        self._launch(inputs, out, candidate_block, *options)
        return out


def call(
    calls: Calls,
    inputs: Inputs,
    out: torch.Tensor | None,
    place: bool | str,
    candidate_block: int,
    clean_logits: bool,
    chunk_keys: int,
    logits_dtype: torch.dtype,
    variant: str | None,
) -> torch.Tensor:
    """The logits of a public function's arguments.

    place : ``relative`` of packed keys, ``layout`` of a cache
    """
    arguments = (place, candidate_block, clean_logits, chunk_keys, logits_dtype, variant)
    again = calls.repeats.call((*inputs, out), *arguments)
    if again is not None:
        done: torch.Tensor | None = calls.repeats.launched(again, out, partial(_new, inputs, candidate_block, logits_dtype))
        if done is not None:
            return done
    calls.operands.check(inputs, "the logits")
    _check_keys(inputs, place)
    options = _check(inputs, candidate_block, clean_logits, chunk_keys, logits_dtype, variant, calls.operation)
    if isinstance(inputs, Dense) and inputs.k_scale.ndim == 2:
        inputs = inputs._replace(k_scale=inputs.k_scale[:, 0])
    if out is None:
        logits: torch.Tensor = calls.new(*inputs, logits_dtype, *options, place)
    else:
        check_output(out, _shape(inputs, options[0]), inputs.q.device, logits_dtype, LOGITS)
        calls.into(*inputs, out, *options, place)
        logits = out
    if again is not None:
        problem = partial(describe, inputs, logits.dtype, options[0], clean_logits, place)
        kept = _kept(inputs, options[0], clean_logits, options[3], place)
        calls.repeats.keep(again, problem, (inputs, logits), variant, **kept)
    return logits


def describe(inputs: Inputs, logits_dtype: torch.dtype, candidate_block: int, clean_logits: bool, place: bool | str) -> Problem:
    """The class of calls that one with these operands and an output of this dtype belongs to."""
    q, heads = inputs.q, inputs.q.shape[-2]
    together = len(inputs.weights) // max(1, len(inputs.candidates))
    list_rows = min(1 << max(0, together - 1).bit_length(), MOST_ROWS)
    floats = FLOATS[inputs.weights.dtype], FLOATS[logits_dtype]
    if isinstance(inputs, Mx):
        dim, dtype = dim_of(q), FORMAT_OF[q.dtype]
        k_format = FORMAT_OF[inputs.k.dtype] if isinstance(inputs, MxDense) else format_of(inputs.kv_cache, dim)
    else:
        dim, dtype, k_format = q.shape[-1], FP8[q.dtype], None
    problem = Problem(q.device, heads, dim, dtype, clean_logits, candidate_block, list_rows=list_rows, k_format=k_format)
    problem = problem._replace(weights_dtype=floats[0], logits_dtype=floats[1])
    if isinstance(inputs, Cached):
        check_address(inputs.kv_cache)
        direct, block = copies_directly(inputs), inputs.kv_cache.shape[1]
        return problem._replace(next_n=q.shape[1], block_size=block, layout=str(place), direct_keys=direct)
    problem = problem._replace(direct_keys=packed_copy_directly(inputs))
    if isinstance(inputs, MxDense):
        return problem
    step, element = inputs.k.stride()
    words = element == 1 and step % 4 == 0 and inputs.k.data_ptr() % 4 == 0
    tensor_maps = all(mappable(operand) for operand in (q, inputs.k, inputs.weights))
    return problem._replace(packed_words=words, tensor_maps=tensor_maps)


def copies_directly(inputs: Cached) -> bool:
    """Whether what a call reads can go straight to LDS: keys in 16-byte chunks, all at offsets of 32 bits."""
    kv_cache, weights, table, candidates = inputs.kv_cache, inputs.weights, inputs.block_table, inputs.candidates
    step, (row, head) = kv_cache.stride(0), weights.stride()
    farthest = max(
        kv_cache.shape[0] * step,
        weights.itemsize * (MOST_ROWS * row + MAX_HEADS * head),
        4 * table.shape[1] * table.stride(1),
        4 * candidates.shape[1] * candidates.stride(1),
    )
    return bool(kv_cache.data_ptr() % 16 == 0 and step % 16 == 0 and farthest < 2**31)


def packed_copy_directly(inputs: Packed) -> bool:
    """As :func:`copies_directly`, of packed keys."""
    k, k_scale, weights, candidates = inputs.k, inputs.k_scale, inputs.weights, inputs.candidates
    (step, element), (row, head) = k.stride(), weights.stride()
    farthest = max(
        k.shape[0] * step,
        k_scale.itemsize * k.shape[0] * k_scale.stride(0),
        weights.itemsize * (MOST_ROWS * row + MAX_HEADS * head),
        4 * candidates.shape[1] * candidates.stride(1),
    )
    return bool(element == 1 and k.data_ptr() % 16 == 0 and step % 16 == 0 and farthest < 2**31)


def _kept(
    inputs: Inputs, candidate_block: int, clean_logits: bool, chunk_keys: int, place: bool | str
) -> dict[str, bool | int | str]:
    """The keywords of a variant."""
    name = "layout" if isinstance(inputs, Cached) else "relative"
    return {"candidate_block": candidate_block, "clean_logits": clean_logits, "chunk_keys": chunk_keys, name: place}


def _check_keys(inputs: Inputs, place: Any) -> None:
    """Raise TypeError or ValueError for keys that do not lie as they should, or not go with the queries, and for ``place``."""
    if isinstance(inputs, Paged):
        check_blocks(inputs.kv_cache, place)
    elif isinstance(inputs, MxPaged):
        check_cache(inputs.q, inputs.kv_cache, place)
    else:
        check_flag("relative", place)
        if isinstance(inputs, MxDense):
            check_dims(inputs.q, inputs.k)


def _check(
    inputs: Inputs,
    candidate_block: int,
    clean_logits: bool,
    chunk_keys: int,
    logits_dtype: torch.dtype,
    variant: str | None,
    operation: compat.Operation[Problem],
) -> tuple[int, bool, str | None, int]:
    """The options of the functions as the operators take them; TypeError or ValueError for what they do not take."""
    candidate_block = check_among("candidate_block", candidate_block, CANDIDATE_BLOCKS)
    rows, lists = len(inputs.weights), len(inputs.candidates)
    if isinstance(inputs, Cached) and lists not in (rows, len(inputs.q)):
        raise ValueError(f"candidates: got {lists} lists, needs {rows}, one for each row, or {len(inputs.q)} of requests")
    check_shared("candidates", inputs.candidates, rows)
    if rows > MAX_NEXT * lists:
        raise ValueError(f"candidates: got a list for {rows // lists} rows each, needs {MAX_NEXT} rows at most to share one")
    if inputs.candidates.shape[1] * candidate_block > MAX_CELLS:
        raise ValueError(f"candidates: got {inputs.candidates.shape[1]} blocks, needs {MAX_CELLS // candidate_block} at most")
    scheduled.check_given(inputs.schedule)
    check_flag("clean_logits", clean_logits)
    chunk_keys = check_among("schedule_chunk_keys", chunk_keys, CHUNKS)
    check_choice("logits_dtype", logits_dtype, LOGITS)
    check_variant("variant", variant, operation)
    return candidate_block, clean_logits, variant, chunk_keys


def _shape(inputs: Inputs, candidate_block: int) -> tuple[int, int]:
    return len(inputs.weights), inputs.candidates.shape[1] * candidate_block


def _new(inputs: Inputs, candidate_block: int, logits_dtype: torch.dtype) -> torch.Tensor:
    return empty_logits(_shape(inputs, candidate_block), inputs.q.device, logits_dtype)


def _empty(inputs: Inputs, logits_dtype: torch.dtype, candidate_block: int, *options: object) -> torch.Tensor:
    return _new(inputs, candidate_block, logits_dtype)
