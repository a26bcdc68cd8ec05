"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

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
from ..common.logits import FLOATS, FP8, LOGITS, empty_logits
from ..common.rules import MAX_NEXT
from ..common.schedule import operands as scheduled
from ..common.schedule.operation import CHUNK_KEYS, CHUNKS
from ..common.torch_ops import register
from .operands import DENSE, PAGED, Dense, Inputs, Paged
from .operation import CANDIDATE_BLOCKS, MOST_ROWS, Problem, dense, paged

REPEATS, PAGED_REPEATS = compat.Repeats(dense), compat.Repeats(paged)
MAX_CELLS = 2**30  # of a row, so that a cell and the end of its tile are 32 bits wide


def sparse_mqa_logits(
    q: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    candidates: torch.Tensor,
    *,
    candidate_block: int = 8,
    relative: bool = False,
    clean_logits: bool = False,
    schedule: torch.Tensor | None = None,
    schedule_chunk_keys: int = CHUNK_KEYS,
    logits_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """Score every query against the keys of some blocks of its window alone: the second level of DeepSeek-V4.1's indexer.

    ``logits[i, j * c + o] = k_scale[n] * sum_h weights[i, h] * relu(dot(q[i, h], k[n]))``

    for key ``n = first + (candidates[i * L // S, j] - first_block) * c + o``, c being ``candidate_block``, and ``first`` the
    row's first key, ``max(starts[i], 0)``. ``first_block`` is ``first // c``, or 0 if ``relative``.

    Parameters
    ----------
    q : torch.Tensor, shape (S, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries; their scale is folded into ``weights``. H is 1 to 128, D is 32, 64 or 128.
    k : torch.Tensor, shape (N, D), q's dtype
        Keys.
    k_scale : torch.Tensor, shape (N,) or (N, 1), float32
        One scale for each key.
    weights : torch.Tensor, shape (S, H), float32 or bfloat16
        Weight of each head; may be negative.
    starts, ends : torch.Tensor, shape (S,), int32
        Each row's window of keys, which begins a block: its blocks lie behind one another from the first key on, and the last
        one may be short. Empty and inverted windows, starts below 0 and ends above N are fine.
    candidates : torch.Tensor, shape (L, C), int32
        Each row's blocks, in any order, also several times. Of a row whose window has fewer than C blocks only as many entries
        are looked at. L is a divisor of S; with L below S adjacent rows share a list, S / L of them and 65535 at most, and read
        its keys together. A block that the window does not have (-1, or one past its end) is never read: its cells are -inf.
    candidate_block : int
        Keys in a block: 8, 16, 32 or 64.
    relative : bool
        True counts a row's blocks from its window's first, as :func:`select_candidate_blocks` does; False from the block in
        which key 0 lies, as DeepGEMM does: the window's first block is then number ``max(starts[i], 0) // candidate_block``.
    clean_logits : bool
        True sets every cell behind those of the entries that are looked at to -inf. False leaves them as they are.
    schedule : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        What :func:`sparse_mqa_schedule` returned for the same windows, so that num_workers + 1 is 2 or more; made by the call
        otherwise. Where rows share lists, work is even with one for the windows of each list's last row alone. With other
        contents some cells may stay unwritten or be written more than once, never with anything else than their logits.
    schedule_chunk_keys : int
        Keys in a chunk of ``schedule``, 128 or 256: ``chunk_keys`` of what made it.
    logits_dtype : torch.dtype
        Of a new output, as in :func:`fp8_mqa_logits`: float32 or bfloat16.
    out : torch.Tensor, shape (S, C * candidate_block), float32 or bfloat16, optional
        Where to write. A new one is allocated otherwise, with rows padded to 1024 bytes.
    variant : str, optional
        Take this variant ("classic", "reference") or raise.

    Every cell of an entry that is looked at is written: where a block reaches past the row's window, with -inf. All tensors are
    on one device and may have any strides, except for ``schedule``, and that ``out`` may share memory with no other tensor, and
    its rows not with each other. Logits have no gradients, as in :func:`fp8_mqa_logits`. Nothing is read back from the device,
    so that the call can be captured in a GPU graph and replayed with other contents of every tensor.

    Returns
    -------
    torch.Tensor
        ``out``, or the new tensor of its shape.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; nothing has been written.
    capgate.compat.CapabilityError
        The variant that ``variant`` or CAPGATE_VARIANT names cannot run here.
    """
    inputs = Dense(q, k, k_scale, weights, starts, ends, candidates, schedule)
    arguments = (candidate_block, relative, clean_logits, schedule_chunk_keys, logits_dtype, variant)
    call = REPEATS.call((*inputs, out), *arguments)
    if call is not None:
        done: torch.Tensor | None = REPEATS.launched(call, out, partial(_new, inputs, candidate_block, logits_dtype))
        if done is not None:
            return done
    DENSE.check(inputs, "the logits")
    check_flag("relative", relative)
    options = _check(inputs, candidate_block, clean_logits, schedule_chunk_keys, logits_dtype, variant, dense)
    if k_scale.ndim == 2:
        inputs = inputs._replace(k_scale=k_scale[:, 0])
    if out is None:
        logits: torch.Tensor = torch.ops.capgate.sparse_mqa_logits(*inputs, logits_dtype, *options, relative)
    else:
        check_output(out, _shape(inputs, options[0]), q.device, logits_dtype, LOGITS)
        torch.ops.capgate.sparse_mqa_logits_out(*inputs, out, *options, relative)
        logits = out
    if call is not None:
        problem = partial(describe, inputs, logits.dtype, options[0], clean_logits)
        kept = {"candidate_block": options[0], "clean_logits": clean_logits, "chunk_keys": options[3], "relative": relative}
        REPEATS.keep(call, problem, (inputs, logits), variant, **kept)
    return logits


def paged_sparse_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    candidates: torch.Tensor,
    *,
    candidate_block: int = 8,
    clean_logits: bool = False,
    layout: str = "flat",
    schedule: torch.Tensor | None = None,
    schedule_chunk_keys: int = CHUNK_KEYS,
    logits_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """As :func:`sparse_mqa_logits` for the last queries of requests, whose keys are in a paged cache.

    ``logits[b * next_n + t, j * c + o]`` is the logit of query t of request b for its key ``block * c + o``, ``block`` being
    entry j of its list and c ``candidate_block``: a key and its logit are as in :func:`fp8_paged_mqa_logits`.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries; their scale is folded into ``weights``. next_n is 1 to 65535, H is 1 to 128, D is 32, 64 or 128.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        Keys in q's dtype and their scales, laid out as in :func:`fp8_paged_mqa_logits`. block is 1 or a multiple of 16 up to
        256, whatever ``candidate_block`` is.
    weights : torch.Tensor, shape (B * next_n, H), float32 or bfloat16
        Weight of each head; may be negative.
    context_lens : torch.Tensor, shape (B,) or (B, next_n), int32
        How many keys a row sees, as in :func:`fp8_paged_mqa_logits`; more than the table has room for is cut.
    block_table : torch.Tensor, shape (B, max_blocks), int32
        Each request's blocks of the cache in order. Only entries of listed keys are looked at. A block that the cache does not
        have is never read: the logits of its keys are -inf.
    candidates : torch.Tensor, shape (L, C), int32
        Each row's candidate blocks, as in :func:`sparse_mqa_logits`, counted from the request's first key. L is B * next_n, or
        B for lists that the rows of a request share.
    candidate_block : int
        Keys in a candidate block: 8, 16, 32 or 64.
    clean_logits : bool
        True sets every cell behind those of the entries that are looked at to -inf. False leaves them as they are.
    layout : str
        Of the keys in a block of the cache, "flat" or "preshuffled", as in :func:`fp8_paged_mqa_logits`.
    schedule : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        As in :func:`sparse_mqa_logits`, for the same ``context_lens``; num_workers + 1 is 2 or more. Where the rows of a
        request share a list, work is even with one for the lengths of the last rows, [B], with ``next_n`` of 1.
    schedule_chunk_keys : int
        Keys in a chunk of ``schedule``, 128 or 256: ``chunk_keys`` of what made it.
    logits_dtype : torch.dtype
        Of a new output, as in :func:`fp8_mqa_logits`: float32 or bfloat16.
    out : torch.Tensor, shape (B * next_n, C * candidate_block), float32 or bfloat16, optional
        Where to write. A new one is allocated otherwise, with rows padded to 1024 bytes.
    variant : str, optional
        Take this variant ("classic", "reference") or raise.

    Which cells are written, strides, memory, gradients and graphs are as in :func:`sparse_mqa_logits`; blocks of ``kv_cache``
    are of adjacent bytes.

    Returns
    -------
    torch.Tensor
        ``out``, or the new tensor of its shape.

    Raises
    ------
    TypeError, ValueError, capgate.compat.CapabilityError
        As :func:`sparse_mqa_logits`.
    """
    inputs = Paged(q, kv_cache, weights, context_lens, block_table, candidates, schedule)
    arguments = (candidate_block, clean_logits, layout, schedule_chunk_keys, logits_dtype, variant)
    call = PAGED_REPEATS.call((*inputs, out), *arguments)
    if call is not None:
        done: torch.Tensor | None = PAGED_REPEATS.launched(call, out, partial(_new, inputs, candidate_block, logits_dtype))
        if done is not None:
            return done
    PAGED.check(inputs, "the logits")
    check_blocks(kv_cache, layout)
    options = _check(inputs, candidate_block, clean_logits, schedule_chunk_keys, logits_dtype, variant, paged)
    if out is None:
        logits: torch.Tensor = torch.ops.capgate.paged_sparse_mqa_logits(*inputs, logits_dtype, *options, layout)
    else:
        check_output(out, _shape(inputs, options[0]), q.device, logits_dtype, LOGITS)
        torch.ops.capgate.paged_sparse_mqa_logits_out(*inputs, out, *options, layout)
        logits = out
    if call is not None:
        problem = partial(describe, inputs, logits.dtype, options[0], clean_logits, layout)
        kept = {"candidate_block": options[0], "clean_logits": clean_logits, "chunk_keys": options[3], "layout": layout}
        PAGED_REPEATS.keep(call, problem, (inputs, logits), variant, **kept)
    return logits


def describe(
    inputs: Inputs, logits_dtype: torch.dtype, candidate_block: int, clean_logits: bool, layout: str = "flat"
) -> Problem:
    """The class of calls that one with these operands and an output of this dtype belongs to."""
    q, (heads, dim) = inputs.q, inputs.q.shape[-2:]
    together = len(inputs.weights) // max(1, len(inputs.candidates))
    list_rows = min(1 << max(0, together - 1).bit_length(), MOST_ROWS)
    floats = FLOATS[inputs.weights.dtype], FLOATS[logits_dtype]
    problem = Problem(q.device, heads, dim, FP8[q.dtype], clean_logits, candidate_block, list_rows=list_rows)
    problem = problem._replace(weights_dtype=floats[0], logits_dtype=floats[1])
    if isinstance(inputs, Paged):
        check_address(inputs.kv_cache)
        return problem._replace(next_n=q.shape[1], block_size=inputs.kv_cache.shape[1], layout=layout)
    step, element = inputs.k.stride()
    words = element == 1 and step % 4 == 0 and inputs.k.data_ptr() % 4 == 0
    return problem._replace(packed_words=words)


def _check(
    inputs: Inputs,
    candidate_block: int,
    clean_logits: bool,
    chunk_keys: int,
    logits_dtype: torch.dtype,
    variant: str | None,
    operation: compat.Operation[Problem],
) -> tuple[int, bool, str | None, int]:
    """The options of both functions as the operators take them; TypeError or ValueError for what they do not take."""
    candidate_block = check_among("candidate_block", candidate_block, CANDIDATE_BLOCKS)
    rows, lists = len(inputs.weights), len(inputs.candidates)
    if isinstance(inputs, Paged) and lists not in (rows, len(inputs.q)):
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


def _launch(
    inputs: Inputs,
    out: torch.Tensor,
    candidate_block: int,
    clean_logits: bool,
    variant: str | None,
    chunk_keys: int,
    place: bool | str,
) -> None:
    """Run the chosen variant, unless there is no cell to write.

    place : ``relative`` of packed keys, ``layout`` of a cache
    """
    options: dict[str, Any] = {"candidate_block": candidate_block, "clean_logits": clean_logits, "chunk_keys": chunk_keys}
    if isinstance(inputs, Paged):
        operation, options["layout"] = paged, place
        problem = describe(inputs, out.dtype, candidate_block, clean_logits, str(place))
    else:
        operation, options["relative"] = dense, place
        problem = describe(inputs, out.dtype, candidate_block, clean_logits)
    if out.numel() == 0:  # a variant that cannot run is an error for empty calls too
        operation.select(problem, variant)
        return
    operation(problem, inputs, out, variant=variant, **options)


def _launch_into(inputs: Inputs, out: torch.Tensor, *options: Any) -> None:
    """Operators ``capgate::sparse_mqa_logits_out`` and ``capgate::paged_sparse_mqa_logits_out``: ``out`` is the caller's."""
    check_apart("out", out, inputs)
    _launch(inputs, out, *options)


def _launch_new(inputs: Inputs, logits_dtype: torch.dtype, candidate_block: int, *options: Any) -> torch.Tensor:
    """Operators ``capgate::sparse_mqa_logits`` and ``capgate::paged_sparse_mqa_logits``: the same into a new tensor."""
    out = _new(inputs, candidate_block, logits_dtype)
    _launch(inputs, out, candidate_block, *options)
    return out


_OPTIONS = "SymInt candidate_block, bool clean_logits, str? variant, int schedule_chunk_keys"
_RELATIVE, _LAYOUT = f"{_OPTIONS}, bool relative", f"{_OPTIONS}, str layout"
register("sparse_mqa_logits", DENSE, f"ScalarType logits_dtype, {_RELATIVE}", "Tensor", _launch_new, _empty)
register("sparse_mqa_logits_out", DENSE, f"Tensor(a!) out, {_RELATIVE}", "()", _launch_into)
register("paged_sparse_mqa_logits", PAGED, f"ScalarType logits_dtype, {_LAYOUT}", "Tensor", _launch_new, _empty)
register("paged_sparse_mqa_logits_out", PAGED, f"Tensor(a!) out, {_LAYOUT}", "()", _launch_into)
