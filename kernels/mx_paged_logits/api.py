"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

from functools import partial

import torch

from capgate import compat

from ..common.cache import check_address, copies_directly
from ..common.checks import check_among, check_apart, check_choice, check_flag, check_integer, check_output, check_variant
from ..common.key_formats import LAYOUTS
from ..common.logits import FLOATS, LOGITS, empty_logits
from ..common.mx_cache import any_format_of, block_of, check_apart_cache, check_cache, check_no_scales
from ..common.mx_operands import FORMAT_OF, dim_of
from ..common.schedule import operands as scheduled
from ..common.schedule.operation import CHUNK_KEYS, CHUNKS, workers_of
from ..common.torch_ops import register
from .operands import APART, OPERANDS, OPERATOR, SHAPED, Inputs, Shaped
from .operation import Problem, operation

REPEATS = compat.Repeats(operation)
MAX_CONTEXT = 2**30  # so that a position and the end of its tile are 32 bits wide


def mx_paged_mqa_logits(
    q: torch.Tensor,
    q_scale: torch.Tensor,
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
    kv_scale: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache, both in MX formats.

    ``logits[b * next_n + t, j] = sum_h weights[b * next_n + t, h] * relu(dot(q[b, t, h], key[b, j]))``

    for ``0 <= j < seen[b, t]``, where key j of request b is position ``j % block`` of block ``block_table[b, j // block]``, and
    q and keys are values times their scales.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, Dq), float8_e4m3fn or uint8
        Queries, in mxfp8 or mxfp4, as in :func:`mx_mqa_logits`. next_n is 1 to 65535, H is 1 to 128, Dq is 32, 64 or 128.
    q_scale : torch.Tensor, shape (B, next_n, H), int32
        Four UE8M0 bytes, the first lowest.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, W), uint8
        Keys of q's D, in either format, and their scales: W is 36, 68 or 132, in mxfp8 D + 4 and in mxfp4 D / 2 + 4. The bytes
        of a block are its keys' values, then their scales, as :func:`quantize_keys_to_cache` writes them. ``stride(0)`` may be
        larger than that. block is 1 or a multiple of 16 up to 256. In layout "flydsl" it is (num_blocks, 1, 4, 64, 16).
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
        Where a block holds its bytes: "flat" or "preshuffled", of mxfp4 keys of 128 dims also "gluon-16", "gluon-32" or
        "flydsl". See ``docs/key-formats.md``; blocks are of whole tiles.
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
    kv_scale : torch.Tensor, shape (num_blocks, 1, 4, 64), uint8, optional
        The scales of layout "flydsl"; other layouts have none.
    variant : str, optional
        Take this variant ("classic", "reference", ...) or raise.

    All tensors are on one device. Those but ``kv_cache``, ``kv_scale`` and ``schedule`` may have any strides, except that
    ``out`` may share memory with no other tensor, and its rows not with each other. NaN and very small or large values are as
    in :func:`mx_mqa_logits`. Logits have no gradients, as in :func:`fp8_mqa_logits`.
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
    inputs = Inputs(q, q_scale, kv_cache, weights, context_lens, block_table, schedule, kv_scale)
    call = REPEATS.call((*inputs, out), max_context_len, clean_logits, layout, schedule_chunk_keys, logits_dtype, variant)
    if call is not None:
        done: torch.Tensor | None = REPEATS.launched(call, out, partial(_empty, inputs, max_context_len, logits_dtype))
        if done is not None:
            return done
    check_choice("layout", layout, tuple(LAYOUTS))
    if LAYOUTS[layout].apart:
        APART.check(inputs, "the logits")
        check_apart_cache(q, kv_cache, inputs.kv_scale, layout)
    else:
        check_no_scales(layout, kv_scale)
        OPERANDS.check(inputs[:-1], "the logits")
        check_cache(q, kv_cache, layout)
    scheduled.check_given(schedule)
    max_context_len = check_integer("max_context_len", max_context_len, 0, MAX_CONTEXT)
    check_flag("clean_logits", clean_logits)
    schedule_chunk_keys = check_among("schedule_chunk_keys", schedule_chunk_keys, CHUNKS)
    check_choice("logits_dtype", logits_dtype, LOGITS)
    check_variant("variant", variant, operation)
    options = (clean_logits, variant, schedule_chunk_keys, layout)
    if out is None:
        logits: torch.Tensor = torch.ops.capgate.mx_paged_mqa_logits(*inputs, max_context_len, logits_dtype, *options)
    else:
        check_output(out, (q.shape[0] * q.shape[1], max_context_len), q.device, logits_dtype, LOGITS)
        torch.ops.capgate.mx_paged_mqa_logits_out(*inputs, out, *options)
        logits = out
    if call is not None:
        problem = partial(describe, inputs, clean_logits, logits.dtype, layout)
        kept = {"clean_logits": clean_logits, "chunk_keys": schedule_chunk_keys, "layout": layout}
        REPEATS.keep(call, problem, (inputs, logits), variant, **kept)
    return logits


def mx_paged_mqa_workers(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    *,
    clean_logits: bool = False,
    layout: str = "flat",
    variant: str | None = None,
) -> int:
    """How many workers a schedule should have for :func:`mx_paged_mqa_logits` calls with operands of these shapes.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, Dq), float8_e4m3fn or uint8
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, W), uint8
    clean_logits : bool
    layout : str
        Any but "flydsl".
    variant : str, optional
        As the calls will have them: next_n is 1 to 65535, H is 1 to 128, Dq is 32, 64 or 128, W is 36, 68 or 132, block is 1
        or a multiple of 16 up to 256. B and num_blocks do not matter, nor do contents, so that once is enough.

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
    check_cache(q, kv_cache, layout)
    check_flag("clean_logits", clean_logits)
    check_variant("variant", variant, operation)
    return workers_of(operation, describe(_ordinary(shaped), clean_logits, layout=layout), variant)


def _ordinary(shaped: Shaped) -> Inputs:
    """A call with these queries and this cache, whose other operands lie as they usually do."""
    requests, next_n, heads, _ = shaped.q.shape
    weights = torch.empty((requests * next_n, heads), device="meta")
    table = torch.empty((requests, 1), dtype=torch.int32, device="meta")
    return Inputs(shaped.q, table[:, 0], shaped.kv_cache, weights, table[:, 0], table)


def describe(inputs: Inputs, clean_logits: bool, logits_dtype: torch.dtype = torch.float32, layout: str = "flat") -> Problem:
    """The class of calls that one with these operands and an output of this dtype belongs to."""
    q, kv_cache, dim = inputs.q, inputs.kv_cache, dim_of(inputs.q)
    check_address(kv_cache)
    direct_keys = inputs.kv_scale is None and copies_directly(kv_cache, inputs.weights, inputs.block_table)
    formats = (FORMAT_OF[q.dtype], any_format_of(kv_cache, dim))
    sizes = (q.shape[2], dim, *formats, clean_logits, block_of(kv_cache), q.shape[1])
    return Problem(q.device, *sizes, direct_keys, layout, FLOATS[inputs.weights.dtype], FLOATS[logits_dtype])


def _launch_into(
    inputs: Inputs,
    out: torch.Tensor,
    clean_logits: bool,
    variant: str | None,
    chunk_keys: int = CHUNK_KEYS,
    layout: str = "flat",
) -> None:
    """Operator ``capgate::mx_paged_mqa_logits_out``: as :func:`_launch`, ``out`` being the caller's."""
    check_apart("out", out, inputs)
    _launch(inputs, out, clean_logits, variant, chunk_keys, layout)


def _launch(inputs: Inputs, out: torch.Tensor, clean_logits: bool, variant: str | None, chunk_keys: int, layout: str) -> None:
    """Run the chosen variant, unless there is no cell to write."""
    problem = describe(inputs, clean_logits, out.dtype, layout)
    if out.numel() == 0:  # a variant that cannot run is an error for empty calls too, but no operand can be in its way
        operation.select(problem._replace(direct_keys=True), variant)
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
    """Operator ``capgate::mx_paged_mqa_logits``: the same into a new tensor."""
    out = _empty(inputs, max_context_len, logits_dtype)
    _launch(inputs, out, clean_logits, variant, chunk_keys, layout)
    return out


def _empty(inputs: Inputs, max_context_len: int, logits_dtype: torch.dtype, *options: object) -> torch.Tensor:
    return empty_logits((inputs.q.shape[0] * inputs.q.shape[1], max_context_len), inputs.q.device, logits_dtype)


_OPTIONS = f"bool clean_logits, str? variant, int schedule_chunk_keys={CHUNK_KEYS}, str layout='flat'"
_NEW = f"SymInt max_context_len, ScalarType logits_dtype, {_OPTIONS}"
register("mx_paged_mqa_logits", OPERATOR, _NEW, "Tensor", _launch_new, _empty)
register("mx_paged_mqa_logits_out", OPERATOR, f"Tensor(a!) out, {_OPTIONS}", "()", _launch_into)
