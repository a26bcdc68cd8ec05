"""The public functions: checks, allocation, and dispatch through operators that torch.compile and GPU graphs understand."""

from operator import mul

import torch

from capgate import compat

from ..common.cache import BLOCK_SIZES, CACHE, check_address, check_blocks, keys_of, with_scale
from ..common.checks import (
    Derived,
    Limit,
    Operand,
    Operands,
    check_apart,
    check_flag,
    check_integer,
    check_output,
    check_variant,
)
from ..common.logits import FP8, QUERY_SIZES, empty_logits, mappable
from ..common.rules import MAX_HEADS
from ..common.schedule import operation as scheduling
from ..common.torch_ops import register
from .operation import MAX_NEXT, Problem, operation

MAX_CONTEXT = 2**30  # so that a position and the end of its tile are 32 bits wide

_NEXT = Limit("next_n", 1, MAX_NEXT)
QUERIES = Operand(
    "q",
    (("B", "next_n", "H", "D"),),
    tuple(FP8),
    (_NEXT, *QUERY_SIZES),
    (Derived("B * next_n", mul, ("B", "next_n")), Derived("D + 4", with_scale, ("D",))),
)
LENGTHS = Operand("context_lens", (("B",), ("B", "next_n")), (torch.int32,), (_NEXT,))
TABLE = Operand("block_table", (("B", "max_blocks"),), (torch.int32,))
WORKERS = "num_workers + 1"
OPERANDS = Operands(QUERIES, CACHE, Operand("weights", (("B * next_n", "H"),), (torch.float32,)), LENGTHS, TABLE)
SCHEDULED = Operands(*OPERANDS.operands, Operand("schedule", ((WORKERS, 2),), (torch.int32,), (Limit(WORKERS, 2),)))
_OF_WORKERS, _OF_SCHEDULE = Operands(QUERIES, CACHE), Operands(LENGTHS)


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    max_context_len: int,
    clean_logits: bool = False,
    schedule: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache, for the sparse-attention indexer's decode.

    ``logits[b * next_n + t, j] = scale[b, j] * sum_h weights[b * next_n + t, h] * relu(dot(q[b, t, h], key[b, j]))``

    for ``0 <= j < seen[b, t]``, where key j of request b is position ``j % block`` of block ``block_table[b, j // block]``.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries; their scale is folded into ``weights``. next_n is 1 to 8, H is 1 to 128, D is 32, 64 or 128.
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
        Keys in q's dtype and their scales. The bytes of a block are flat: block * D of keys, then block * 4 of float32 scales.
        ``stride(0)`` may be larger than that. block is 1, 16, 32, 64 or 128.
    weights : torch.Tensor, shape (B * next_n, H), float32
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
    schedule : torch.Tensor, shape (num_workers + 1, 2), int32, optional
        What :func:`paged_mqa_schedule` returned for the same ``context_lens``; made by the call otherwise. With other contents
        some cells may stay unwritten or be written more than once, never with anything else than their logits.
    out : torch.Tensor, shape (B * next_n, max_context_len), float32, optional
        Where to write. A new one is allocated otherwise, with rows padded to 256 elements: ``stride(0)`` need not be
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
    tensors = (q, kv_cache, weights, context_lens, block_table)
    if schedule is None:
        OPERANDS.check(tensors, "the logits")
    else:
        SCHEDULED.check((*tensors, schedule), "the logits")
    check_blocks(kv_cache)
    if schedule is not None and not schedule.is_contiguous():
        raise ValueError(f"schedule: got strides {tuple(schedule.stride())}, needs it contiguous, as it was made")
    max_context_len = check_integer("max_context_len", max_context_len, 0, MAX_CONTEXT)
    check_flag("clean_logits", clean_logits)
    check_variant("variant", variant, operation)
    if out is not None:
        check_output(out, (q.shape[0] * q.shape[1], max_context_len), q.device)
    if out is None:
        logits: torch.Tensor = torch.ops.capgate.fp8_paged_mqa_logits(
            *tensors, schedule, max_context_len, clean_logits, variant
        )
        return logits
    torch.ops.capgate.fp8_paged_mqa_logits_out(*tensors, schedule, out, clean_logits, variant)
    return out


def paged_mqa_schedule(context_lens: torch.Tensor, block_size: int, num_workers: int) -> torch.Tensor:
    """Share the keys of a batch out among workers, for :func:`fp8_paged_mqa_logits` calls with the same lengths.

    Parameters
    ----------
    context_lens : torch.Tensor, shape (B,) or (B, next_n), int32
        As in :func:`fp8_paged_mqa_logits`.
    block_size : int
        Keys in a block of the cache: 1, 16, 32, 64 or 128.
    num_workers : int
        How many workers share the keys, at least 1: what :func:`paged_mqa_workers` says for the calls to come.

    Returns
    -------
    torch.Tensor
        Shape (num_workers + 1, 2), int32, on the device of ``context_lens``. Worker w begins at request ``schedule[w, 0]``
        and its chunk ``schedule[w, 1]``, and ends where the next one begins. Chunks are of equal size, and any two workers
        have the same number of them but for one. What a chunk is may change: pass the schedule on and do not look into it.

    Nothing is read back from the device, so that the call can be captured in a GPU graph.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    """
    _OF_SCHEDULE.check((context_lens,), "the schedule")
    if check_integer("block_size", block_size, 1) not in BLOCK_SIZES:
        raise ValueError(f"block_size: got {block_size}, needs one of {', '.join(map(str, BLOCK_SIZES))}")
    num_workers = check_integer("num_workers", num_workers, 1)
    result: torch.Tensor = torch.ops.capgate.paged_mqa_schedule(context_lens, num_workers)
    return result


def paged_mqa_workers(
    q: torch.Tensor, kv_cache: torch.Tensor, *, clean_logits: bool = False, variant: str | None = None
) -> int:
    """How many workers a schedule should have for :func:`fp8_paged_mqa_logits` calls with operands of these shapes.

    Parameters
    ----------
    q : torch.Tensor, shape (B, next_n, H, D), float8_e4m3fn or float8_e4m3fnuz
    kv_cache : torch.Tensor, shape (num_blocks, block, 1, D + 4), uint8
    clean_logits : bool
    variant : str, optional
        As the calls will have them. B and num_blocks do not matter, nor do contents, so that once is enough.

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
    _OF_WORKERS.check((q, kv_cache), "the logits")
    check_blocks(kv_cache)
    check_flag("clean_logits", clean_logits)
    check_variant("variant", variant, operation)
    problem = describe(q, kv_cache, None, None, clean_logits)
    chosen = operation.select(problem, variant)
    kernel = operation.load(chosen)
    return kernel.workers(problem) if isinstance(kernel, compat.Kernel) and kernel.workers else 1  # torch looks at no schedule


def copies_directly(kv_cache: torch.Tensor, weights: torch.Tensor | None, block_table: torch.Tensor | None) -> bool:
    """Whether keys, weights and table entries can go straight to LDS: keys in 16-byte chunks, all at offsets of 32 bits.

    Blocks of 64 keys and more may lie anywhere: each is a tile's only one, and then the base of its offsets.
    """
    (blocks, block), step = kv_cache.shape[:2], kv_cache.stride(0)
    aligned = kv_cache.data_ptr() % 16 == 0 and step % 16 == 0
    row, head = weights.stride() if weights is not None else (0, 0)
    entry = block_table.stride(1) if block_table is not None else 0
    farthest = max(4 * (MAX_NEXT * row + MAX_HEADS * head), 4 * 64 * entry, 0 if block >= 64 else blocks * step)
    return bool(aligned and farthest < 2**31)


def describe(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor | None,
    block_table: torch.Tensor | None,
    clean_logits: bool,
) -> Problem:
    """The class of calls that one with these operands belongs to; without weights or a table, with ordinary ones."""
    check_address(kv_cache)
    requests, next_n, heads, dim = q.shape
    direct_keys = copies_directly(kv_cache, weights, block_table)
    even = requests == 1 or next_n == 1 or q.stride(0) == next_n * q.stride(1)
    operands = (q, keys_of(kv_cache), *(() if weights is None else (weights,)))  # scales lie as the keys do
    tensor_maps = even and all(mappable(operand) for operand in operands)
    sizes = (heads, dim, FP8[q.dtype], clean_logits, kv_cache.shape[1], next_n)
    return Problem(q.device, *sizes, direct_keys=direct_keys, tensor_maps=tensor_maps)


def _launch_into(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule: torch.Tensor | None,
    out: torch.Tensor,
    clean_logits: bool,
    variant: str | None,
) -> None:
    """Operator ``capgate::fp8_paged_mqa_logits_out``: as :func:`_launch`, ``out`` being the caller's."""
    check_apart("out", out, SCHEDULED.operands, (q, kv_cache, weights, context_lens, block_table, schedule))
    _launch(q, kv_cache, weights, context_lens, block_table, schedule, out, clean_logits, variant)


def _launch(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule: torch.Tensor | None,
    out: torch.Tensor,
    clean_logits: bool,
    variant: str | None,
) -> None:
    """Run the chosen variant, unless there is no cell to write."""
    problem = describe(q, kv_cache, weights, block_table, clean_logits)
    if out.numel() == 0:  # a variant that cannot run is an error for empty calls too, but no operand can be in its way
        operation.select(problem._replace(direct_keys=True, tensor_maps=True), variant)
        return
    arguments = (q, kv_cache, weights, context_lens, block_table, schedule, out)
    operation(problem, *arguments, variant=variant, clean_logits=clean_logits)


def _launch_new(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule: torch.Tensor | None,
    max_context_len: int,
    clean_logits: bool,
    variant: str | None,
) -> torch.Tensor:
    """Operator ``capgate::fp8_paged_mqa_logits``: the same into a new tensor."""
    out = empty_logits((q.shape[0] * q.shape[1], max_context_len), q.device)
    _launch(q, kv_cache, weights, context_lens, block_table, schedule, out, clean_logits, variant)
    return out


def _fake_new(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule: torch.Tensor | None,
    max_context_len: int,
    clean_logits: bool,
    variant: str | None,
) -> torch.Tensor:
    return empty_logits((q.shape[0] * q.shape[1], max_context_len), q.device)


def _schedule(context_lens: torch.Tensor, num_workers: int) -> torch.Tensor:
    """Operator ``capgate::paged_mqa_schedule``."""
    schedule = _fake_schedule(context_lens, num_workers)
    scheduling.operation(scheduling.Problem(context_lens.device), context_lens, schedule)
    return schedule


def _fake_schedule(context_lens: torch.Tensor, num_workers: int) -> torch.Tensor:
    return context_lens.new_empty((num_workers + 1, 2))


_INPUTS = "Tensor q, Tensor kv_cache, Tensor weights, Tensor context_lens, Tensor block_table, Tensor? schedule"
register(
    f"fp8_paged_mqa_logits({_INPUTS}, SymInt max_context_len, bool clean_logits, str? variant) -> Tensor",
    _launch_new,
    _fake_new,
)
register(f"fp8_paged_mqa_logits_out({_INPUTS}, Tensor(a!) out, bool clean_logits, str? variant) -> ()", _launch_into)
register("paged_mqa_schedule(Tensor context_lens, SymInt num_workers) -> Tensor", _schedule, _fake_schedule)
