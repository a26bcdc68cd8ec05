"""Who scores which listed keys: the public functions that make a schedule, and say how many workers it should have."""

from functools import partial

import torch

from capgate import compat

from ..common.checks import check_among, check_apart, check_integer, check_variant
from ..common.logits import FP8
from ..common.mx_operands import FORMAT_OF, check_dim
from ..common.rules import MAX_NEXT
from ..common.schedule import operands as scheduled
from ..common.schedule import operation as scheduling
from ..common.schedule.operation import CHUNK_KEYS, CHUNKS, workers_of
from ..common.torch_ops import register
from .operands import MX_QUERIED, QUERIED, SHARED, MxQueried, Queried, Shared
from .operation import CANDIDATE_BLOCKS, Problem, dense, mx_dense, mx_paged, paged

REPEATS = compat.Repeats(scheduling.operation)


def sparse_mqa_schedule(
    ends: torch.Tensor,
    num_workers: int,
    *,
    most_keys: int,
    starts: torch.Tensor | None = None,
    next_n: int = 1,
    chunk_keys: int = CHUNK_KEYS,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Share the listed keys of rows out among workers, for calls of :func:`sparse_mqa_logits` with the same windows, or of
    :func:`paged_sparse_mqa_logits` with the same lengths. It asks for no list: every layer with lists of one length can use it.

    Parameters
    ----------
    ends : torch.Tensor, shape (S,) or (B, next_n), int32
        Where each row's window ends; of a paged cache its ``context_lens``. next_n is 1 to 65535.
    num_workers : int
        How many workers share the keys, at least 1: what :func:`sparse_mqa_workers` says for the calls to come.
    most_keys : int
        Keys that a row lists at most, 1 or more: C times ``candidate_block`` of those calls.
    starts : torch.Tensor, shape (S,), int32, optional
        Where each row's window begins; of a paged cache None.
    next_n : int
        Rows of a request, where ``ends`` has one length for each: row t of them then sees ``ends[b] - next_n + t + 1`` keys.
    chunk_keys : int
        Keys in a chunk, 128 or 256; the logits are then asked for with ``schedule_chunk_keys`` of as many.
    out : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        Where to write: contiguous, and no memory of ``ends`` or ``starts``. A new tensor is allocated otherwise.

    Returns
    -------
    torch.Tensor
        ``out``, or a new tensor of its shape: as :func:`paged_mqa_schedule` returns it, of rows in place of requests, each with
        the chunks that its listed keys fill.

    Nothing is read back from the device, so that the call can be captured in a GPU graph.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    """
    call = REPEATS.call((ends, starts, out), num_workers, most_keys, next_n, chunk_keys)
    if call is not None:
        done: torch.Tensor | None = REPEATS.launched(call, out, partial(_new, ends, num_workers))
        if done is not None:
            return done
    SHARED.check(Shared(ends, starts), "the schedule")
    num_workers = check_integer("num_workers", num_workers, 1)
    most_keys = check_integer("most_keys", most_keys, 1, scheduling.MOST)
    next_n = check_integer("next_n", next_n, 1, MAX_NEXT)
    if next_n > 1 and (starts is not None or ends.ndim == 2):
        why = "ends is [B, next_n]" if ends.ndim == 2 else "starts are given"
        raise ValueError(f"next_n: got {next_n}, needs 1 where {why}")
    if starts is not None and ends.ndim == 2:
        raise ValueError(f"starts: got a tensor with ends of shape {tuple(ends.shape)}, needs None: requests begin at key 0")
    rows = ends.shape[1] if ends.ndim == 2 else next_n
    chunk_keys = check_among("chunk_keys", chunk_keys, CHUNKS)
    if out is None:
        result: torch.Tensor = torch.ops.capgate.sparse_mqa_schedule(ends, starts, num_workers, rows, most_keys, chunk_keys)
    else:
        scheduled.check_out(out, num_workers, ends.device, "ends's")
        torch.ops.capgate.sparse_mqa_schedule_out(ends, starts, out, rows, most_keys, chunk_keys)
        result = out
    if call is not None:
        operands = (scheduled.Inputs(ends, starts), result)
        problem = partial(scheduling.Problem, ends.device)
        REPEATS.keep(call, problem, operands, None, chunk_keys=chunk_keys, rows=rows, most=most_keys)
    return result


def sparse_mqa_workers(q: torch.Tensor, *, candidate_block: int = 8, variant: str | None = None) -> int:
    """How many workers a schedule should have for calls with queries of this shape.

    Parameters
    ----------
    q : torch.Tensor, shape (S, H, D) or (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
        Of :func:`sparse_mqa_logits`, or of :func:`paged_sparse_mqa_logits`. H is 1 to 128, D is 32, 64 or 128. How many rows
        there are does not matter, nor do contents, so that once is enough.
    candidate_block : int
    variant : str, optional
        As the calls will have them.

    Returns
    -------
    int
        ``num_workers`` of :func:`sparse_mqa_schedule`, as the variant that takes the calls has it where it makes the schedule
        itself and each row has its own list. Any other number gives the same logits, in another time.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    capgate.compat.CapabilityError
        The variant that ``variant`` or CAPGATE_VARIANT names cannot run here.
    """
    QUERIED.check(Queried(q), "the logits")
    return _workers(q, paged if q.ndim == 4 else dense, candidate_block, variant, q.shape[-1], FP8[q.dtype])


def mx_sparse_mqa_workers(q: torch.Tensor, *, candidate_block: int = 8, variant: str | None = None) -> int:
    """As :func:`sparse_mqa_workers` for queries in MX formats, and keys in the queries' format.

    Parameters
    ----------
    q : torch.Tensor, shape (S, H, Dq) or (B, next_n, H, Dq), float8_e4m3fn or uint8
        Of :func:`mx_sparse_mqa_logits`, or of :func:`mx_paged_sparse_mqa_logits`. H is 1 to 128, Dq is 32, 64 or 128.
    candidate_block : int
    variant : str, optional
        As the calls will have them.

    Returns
    -------
    int
        ``num_workers`` of :func:`sparse_mqa_schedule`.

    Raises
    ------
    TypeError, ValueError, capgate.compat.CapabilityError
        As :func:`sparse_mqa_workers`.
    """
    MX_QUERIED.check(MxQueried(q), "the logits")
    key_format = FORMAT_OF[q.dtype]
    return _workers(
        q, mx_paged if q.ndim == 4 else mx_dense, candidate_block, variant, check_dim("q", q), key_format, key_format
    )


def _workers(
    q: torch.Tensor,
    operation: compat.Operation[Problem],
    candidate_block: int,
    variant: str | None,
    dim: int,
    dtype: str,
    k_format: str | None = None,
) -> int:
    check_variant("variant", variant, operation)
    candidate_block = check_among("candidate_block", candidate_block, CANDIDATE_BLOCKS)
    next_n = q.shape[1] if q.ndim == 4 else None
    problem = Problem(q.device, q.shape[-2], dim, dtype, False, candidate_block, next_n, k_format=k_format)
    return workers_of(operation, problem, variant)


def _into(inputs: Shared, out: torch.Tensor, rows: int, most_keys: int, chunk_keys: int) -> None:
    """Operator ``capgate::sparse_mqa_schedule_out``."""
    check_apart("out", out, inputs)
    problem, operands = scheduling.Problem(inputs.ends.device), scheduled.Inputs(*inputs)
    scheduling.operation(problem, operands, out, chunk_keys=chunk_keys, rows=rows, most=most_keys)


def _schedule(inputs: Shared, num_workers: int, rows: int, most_keys: int, chunk_keys: int) -> torch.Tensor:
    """Operator ``capgate::sparse_mqa_schedule``: the same into a new tensor."""
    schedule = _new(inputs.ends, num_workers)
    _into(inputs, schedule, rows, most_keys, chunk_keys)
    return schedule


def _new(ends: torch.Tensor, num_workers: int) -> torch.Tensor:
    return ends.new_empty((num_workers + 1, 2))


def _fake(inputs: Shared, num_workers: int, *options: object) -> torch.Tensor:
    return _new(inputs.ends, num_workers)


_OPTIONS = "SymInt rows, SymInt most_keys, int chunk_keys"
register("sparse_mqa_schedule", SHARED, f"SymInt num_workers, {_OPTIONS}", "Tensor", _schedule, _fake)
register("sparse_mqa_schedule_out", SHARED, f"Tensor(a!) out, {_OPTIONS}", "()", _into)
