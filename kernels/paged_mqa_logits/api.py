"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

from functools import partial

import torch

from capgate import compat

from ..common.cache import check_address, check_blocks, copies_directly, keys_of
from ..common.checks import (
    check_among,
    check_apart,
    check_choice,
    check_flag,
    check_integer,
    check_output,
    check_variant,
)
from ..common.key_formats import BLOCK_SIZES, BLOCK_WORDS
from ..common.logits import FLOATS, FP8, LOGITS, empty_logits, mappable
from ..common.schedule import operands as scheduled
from ..common.schedule import operation as scheduling
from ..common.schedule.operation import CHUNK_KEYS, CHUNKS, workers_of
from ..common.torch_ops import register
from .operands import OPERANDS, SHAPED, Inputs, Shaped
from .operation import Problem, operation

REPEATS, SCHEDULE_REPEATS = compat.Repeats(operation), compat.Repeats(scheduling.operation)
MAX_CONTEXT = 2**30  # so that a position and the end of its tile are 32 bits wide


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    max_context_len: int,
    clean_logits: bool = False,
    layout: str = "flat",
    schedule: torch.Tensor | None = None,
    schedule_chunk_keys: int = CHUNK_KEYS,
    logits_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache, for the sparse-attention indexer's decode.

    ``logits[b * next_n + t, j] = scale[b, j] * sum_h weights[b * next_n + t, h] * relu(dot(q[b, t, h], key[b, j]))``

    for ``0 <= j < seen[b, t]``, where key j of request b is position ``j % block`` of block ``block_table[b, j // block]``.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries; their scale is folded into ``weights``. next_n is 1 to 65535, H is 1 to 128, D is 32, 64 or 128.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        Keys in q's dtype and their scales. The bytes of a block are flat: block * D of keys, then block * 4 of float32 scales.
        ``stride(0)`` may be larger than that. block is 1 or a multiple of 16 up to 256.
    weights : torch.Tensor, shape (B * next_n, H), float32 or bfloat16
        Weight of each head; may be negative.
    context_lens : torch.Tensor, shape (B,) or (B, next_n), int32
        How many keys a row sees: (B, next_n) says it for each row; (B,) for the last one, and row t of next_n then sees
        ``context_lens[b] - next_n + t + 1``. Rows that see 0 keys or less are empty; more than ``max_context_len``, or than
        the table has room for, is cut.
    block_table : torch.Tensor, shape (B, max_blocks), int32
        Each request's blocks in order. What lies past the keys that a request's rows see is not looked at. A block that the
        cache does not have (below 0, or num_blocks and more) is never read: the logits of its keys are -inf.
    max_context_len : int
        Columns of the output, 0 to 2**30.
    clean_logits : bool
        True sets every cell that a row does not see to -inf. False leaves those cells as they are, which saves writing them.
    layout : str
        Of the keys in a block: "flat", one behind the other, or "preshuffled", as engines on AMD have them: in tiles of 16
        keys, which hold bytes 0 to 15 of each, then bytes 16 to 31 of each, and so on. Blocks are then of a multiple of 16
        keys.
    schedule : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        What :func:`paged_mqa_schedule` returned for the same ``context_lens``, so that num_workers + 1 is 2 or more; made by
        the call otherwise. With other contents some cells may stay unwritten or be written more than once, never with anything
        else than their logits.
    schedule_chunk_keys : int
        Keys in a chunk of ``schedule``, 128 or 256: ``chunk_keys`` of what made it.
    logits_dtype : torch.dtype
        Of a new output, as in :func:`fp8_mqa_logits`: float32 or bfloat16.
    out : torch.Tensor, shape (B * next_n, max_context_len), float32 or bfloat16, optional
        Where to write. A new one is allocated otherwise, with rows padded to 1024 bytes: ``stride(0)`` need not be
        ``max_context_len``.
    variant : str, optional
        Take this variant ("classic", "reference", ...) or raise.

    All tensors are on one device. Those but ``kv_cache`` and ``schedule`` may have any strides, except that ``out`` may share
    memory with no other tensor, and its rows not with each other. Logits have no gradients, as in :func:`fp8_mqa_logits`.
    Nothing is read back from the device, so that the call can be captured in a GPU graph and replayed with
    other contents of every tensor.

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
    inputs = Inputs(q, kv_cache, weights, context_lens, block_table, schedule)
    call = REPEATS.call((*inputs, out), max_context_len, clean_logits, layout, schedule_chunk_keys, logits_dtype, variant)
    if call is not None:
        done: torch.Tensor | None = REPEATS.launched(call, out, partial(_empty, inputs, max_context_len, logits_dtype))
        if done is not None:
            return done
    OPERANDS.check(inputs, "the logits")
    check_blocks(kv_cache, layout)
    scheduled.check_given(schedule)
    max_context_len = check_integer("max_context_len", max_context_len, 0, MAX_CONTEXT)
    check_flag("clean_logits", clean_logits)
    schedule_chunk_keys = check_among("schedule_chunk_keys", schedule_chunk_keys, CHUNKS)
    check_choice("logits_dtype", logits_dtype, LOGITS)
    check_variant("variant", variant, operation)
    options = (clean_logits, variant, schedule_chunk_keys, layout)
    if out is None:
        logits: torch.Tensor = torch.ops.capgate.fp8_paged_mqa_logits(*inputs, max_context_len, logits_dtype, *options)
    else:
        check_output(out, (q.shape[0] * q.shape[1], max_context_len), q.device, logits_dtype, LOGITS)
        torch.ops.capgate.fp8_paged_mqa_logits_out(*inputs, out, *options)
        logits = out
    if call is not None:
        problem = partial(describe, inputs, clean_logits, logits.dtype, layout)
        kept = {"clean_logits": clean_logits, "chunk_keys": schedule_chunk_keys, "layout": layout}
        REPEATS.keep(call, problem, (inputs, logits), variant, **kept)
    return logits


def paged_mqa_schedule(
    context_lens: torch.Tensor,
    block_size: int,
    num_workers: int,
    *,
    chunk_keys: int = CHUNK_KEYS,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Share the keys of a batch out among workers, for :func:`fp8_paged_mqa_logits` calls with the same lengths.

    Parameters
    ----------
    context_lens : torch.Tensor, shape (B,) or (B, next_n), int32
        As in :func:`fp8_paged_mqa_logits`; next_n is 1 to 65535.
    block_size : int
        Keys in a block of the cache: 1 or a multiple of 16 up to 256.
    num_workers : int
        How many workers share the keys, at least 1: what :func:`paged_mqa_workers` says for the calls to come.
    chunk_keys : int
        Keys in a chunk, 128 or 256; the logits are then asked for with ``schedule_chunk_keys`` of as many. 256 makes, word for
        word, what DeepGEMM's kernels for sm90 read.
    out : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        Where to write: contiguous, and no memory of ``context_lens``. A new tensor is allocated otherwise.

    Returns
    -------
    torch.Tensor
        ``out``, or a new tensor of its shape on the device of ``context_lens``. Worker w begins at request ``schedule[w, 0]``
        and its chunk ``schedule[w, 1]``, and ends where the next one begins. A request has the chunks that its last row's keys
        fill; what another row of it sees beyond goes with the last of them. All workers have the same number of chunks; where
        they do not come out even, those in front one less. A worker begins at a chunk that the request has, or, where none is
        left, at request B and its chunk 0, as the last entry says.

    Nothing is read back from the device, so that the call can be captured in a GPU graph.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    """
    call = SCHEDULE_REPEATS.call((context_lens, out), block_size, num_workers, chunk_keys)
    if call is not None:
        done: torch.Tensor | None = SCHEDULE_REPEATS.launched(call, out, partial(_empty_schedule, context_lens, num_workers))
        if done is not None:
            return done
    inputs = scheduled.Inputs(context_lens)
    scheduled.OPERANDS.check(inputs, "the schedule")
    if check_integer("block_size", block_size, 1) not in BLOCK_SIZES:
        raise ValueError(f"block_size: got {block_size}, needs {BLOCK_WORDS}")
    num_workers = check_integer("num_workers", num_workers, 1)
    chunk_keys = check_among("chunk_keys", chunk_keys, CHUNKS)
    if out is None:
        result: torch.Tensor = torch.ops.capgate.paged_mqa_schedule(context_lens, num_workers, chunk_keys)
    else:
        scheduled.check_out(out, num_workers, context_lens.device, "context_lens's")
        torch.ops.capgate.paged_mqa_schedule_out(context_lens, out, chunk_keys)
        result = out
    if call is not None:
        problem = partial(scheduling.Problem, context_lens.device)
        SCHEDULE_REPEATS.keep(call, problem, (inputs, result), None, chunk_keys=chunk_keys)
    return result


def paged_mqa_workers(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    *,
    clean_logits: bool = False,
    layout: str = "flat",
    variant: str | None = None,
) -> int:
    """How many workers a schedule should have for :func:`fp8_paged_mqa_logits` calls with operands of these shapes.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
    clean_logits : bool
    layout : str
    variant : str, optional
        As the calls will have them: next_n is 1 to 65535, H is 1 to 128, D is 32, 64 or 128, block is 1 or a multiple of 16
        up to 256. B and num_blocks do not matter, nor do contents, so that once is enough.

    Returns
    -------
    int
        ``num_workers`` of :func:`paged_mqa_schedule`, as the variant that takes the calls has it where it makes the schedule
        itself. Any other number gives the same logits, in another time.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    capgate.compat.CapabilityError
        The variant that ``variant`` or CAPGATE_VARIANT names cannot run here.
    """
    shaped = Shaped(q, kv_cache)
    SHAPED.check(shaped, "the logits")
    check_blocks(kv_cache, layout)
    check_flag("clean_logits", clean_logits)
    check_variant("variant", variant, operation)
    return workers_of(operation, describe(_ordinary(shaped), clean_logits, layout=layout), variant)


def _ordinary(shaped: Shaped) -> Inputs:
    """A call with these queries and this cache, whose other operands lie as they usually do."""
    requests, next_n, heads, _ = shaped.q.shape
    weights = torch.empty((requests * next_n, heads), device="meta")
    table = torch.empty((requests, 1), dtype=torch.int32, device="meta")
    return Inputs(*shaped, weights, table[:, 0], table)


def kept(
    inputs: Inputs,
    out: torch.Tensor,
    clean_logits: bool,
    variant: str | None,
    chunk_keys: int = CHUNK_KEYS,
    layout: str = "flat",
) -> compat.Bound | None:
    """The kept launches of calls like this one, which has run; None where there are none."""
    problem = describe(inputs, clean_logits, out.dtype, layout)
    options = {"clean_logits": clean_logits, "chunk_keys": chunk_keys, "layout": layout}
    return operation.kept(problem, inputs, out, variant=variant, **options)


def describe(inputs: Inputs, clean_logits: bool, logits_dtype: torch.dtype = torch.float32, layout: str = "flat") -> Problem:
    """The class of calls that one with these operands and an output of this dtype belongs to."""
    q, kv_cache, weights = inputs.q, inputs.kv_cache, inputs.weights
    check_address(kv_cache)
    requests, next_n, heads, dim = q.shape
    direct_keys = copies_directly(kv_cache, weights, inputs.block_table)
    even = requests == 1 or next_n == 1 or q.stride(0) == next_n * q.stride(1)
    tensor_maps = even and all(mappable(operand) for operand in (q, keys_of(kv_cache), weights))  # scales lie as the keys do
    sizes = (heads, dim, FP8[q.dtype], clean_logits, kv_cache.shape[1], next_n)
    return Problem(q.device, *sizes, direct_keys, tensor_maps, layout, FLOATS[weights.dtype], FLOATS[logits_dtype])


def _launch_into(
    inputs: Inputs,
    out: torch.Tensor,
    clean_logits: bool,
    variant: str | None,
    chunk_keys: int = CHUNK_KEYS,
    layout: str = "flat",
) -> None:
    """Operator ``capgate::fp8_paged_mqa_logits_out``: as :func:`_launch`, ``out`` being the caller's."""
    check_apart("out", out, inputs)
    _launch(inputs, out, clean_logits, variant, chunk_keys, layout)


def _launch(inputs: Inputs, out: torch.Tensor, clean_logits: bool, variant: str | None, chunk_keys: int, layout: str) -> None:
    """Run the chosen variant, unless there is no cell to write."""
    problem = describe(inputs, clean_logits, out.dtype, layout)
    if out.numel() == 0:  # a variant that cannot run is an error for empty calls too, but no operand can be in its way
        operation.select(problem._replace(direct_keys=True, tensor_maps=True), variant)
        return
    operation(problem, inputs, out, variant=variant, clean_logits=clean_logits, chunk_keys=chunk_keys, layout=layout)


def _launch_new(
    inputs: Inputs,
    max_context_len: int,
    logits_dtype: torch.dtype,
    clean_logits: bool,
    variant: str | None,
    chunk_keys: int = CHUNK_KEYS,
    layout: str = "flat",
) -> torch.Tensor:
    """Operator ``capgate::fp8_paged_mqa_logits``: the same into a new tensor."""
    out = _empty(inputs, max_context_len, logits_dtype)
    _launch(inputs, out, clean_logits, variant, chunk_keys, layout)
    return out


def _empty(inputs: Inputs, max_context_len: int, logits_dtype: torch.dtype, *options: object) -> torch.Tensor:
    return empty_logits((inputs.q.shape[0] * inputs.q.shape[1], max_context_len), inputs.q.device, logits_dtype)


def _schedule_into(inputs: scheduled.Inputs, out: torch.Tensor, chunk_keys: int = CHUNK_KEYS) -> None:
    """Operator ``capgate::paged_mqa_schedule_out``."""
    check_apart("out", out, inputs)
    scheduling.operation(scheduling.Problem(inputs.context_lens.device), inputs, out, chunk_keys=chunk_keys)


def _schedule(inputs: scheduled.Inputs, num_workers: int, chunk_keys: int = CHUNK_KEYS) -> torch.Tensor:
    """Operator ``capgate::paged_mqa_schedule``: the same into a new tensor."""
    schedule = _empty_schedule(inputs.context_lens, num_workers)
    _schedule_into(inputs, schedule, chunk_keys)
    return schedule


def _empty_schedule(context_lens: torch.Tensor, num_workers: int) -> torch.Tensor:
    return context_lens.new_empty((num_workers + 1, 2))


def _fake_schedule(inputs: scheduled.Inputs, num_workers: int, chunk_keys: int = CHUNK_KEYS) -> torch.Tensor:
    return _empty_schedule(inputs.context_lens, num_workers)


_OPTIONS = f"bool clean_logits, str? variant, int schedule_chunk_keys={CHUNK_KEYS}, str layout='flat'"
_SCHEDULES = f"int chunk_keys={CHUNK_KEYS}"
_NEW = f"SymInt max_context_len, ScalarType logits_dtype, {_OPTIONS}"
register("fp8_paged_mqa_logits", OPERANDS, _NEW, "Tensor", _launch_new, _empty)
register("fp8_paged_mqa_logits_out", OPERANDS, f"Tensor(a!) out, {_OPTIONS}", "()", _launch_into)
_WORKERS, _INTO, _WINDOWS = f"SymInt num_workers, {_SCHEDULES}", f"Tensor(a!) out, {_SCHEDULES}", ("starts",)
register("paged_mqa_schedule", scheduled.OPERANDS, _WORKERS, "Tensor", _schedule, _fake_schedule, left_out=_WINDOWS)
register("paged_mqa_schedule_out", scheduled.OPERANDS, _INTO, "()", _schedule_into, left_out=_WINDOWS)
