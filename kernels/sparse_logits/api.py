"""The public functions of keys in fp8. What becomes of a call: :mod:`.calls`."""

import torch

from ..common.schedule.operation import CHUNK_KEYS
from .calls import Calls, call
from .operands import DENSE, PAGED, Dense, Paged
from .operation import dense, paged

DENSE_CALLS, PAGED_CALLS = Calls(dense, DENSE), Calls(paged, PAGED)


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
        Take this variant ("gluon_cdna4", "gluon_hopper", "classic", "reference") or raise.

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
    return call(DENSE_CALLS, inputs, out, relative, candidate_block, clean_logits, schedule_chunk_keys, logits_dtype, variant)


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
        Take this variant ("gluon_cdna4", "classic", "reference") or raise.

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
    return call(PAGED_CALLS, inputs, out, layout, candidate_block, clean_logits, schedule_chunk_keys, logits_dtype, variant)
