"""Selections as libraries ask for them: logits by address, windows by length, positions beside slots."""

from typing import Any, cast

import torch

from capgate import compat

from ..common.checks import check_integer, check_strided
from ..key_selection import select_from_logits
from ..key_selection.reference import slots_of
from ..key_selection.results import bytes_of
from ..key_selection.scratch import scratch_bytes


def rows_at(logits: torch.Tensor, num_rows: int, stride0: int, stride1: int) -> torch.Tensor:
    """The first rows of a matrix that begins where ``logits`` does, as long as those of ``logits``, with these strides."""
    check_strided("logits", logits)
    num_rows = check_integer("numRows", num_rows, 0)
    strides = check_integer("stride0", stride0, 0), check_integer("stride1", stride1, 0)
    if logits.ndim != 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, needs two dimensions")
    if num_rows <= logits.shape[0] and strides == logits.stride():
        return first_of(logits, num_rows)
    columns, held = logits.shape[1], logits.untyped_storage().nbytes() // logits.itemsize - logits.storage_offset()
    if num_rows and columns and (needed := (num_rows - 1) * strides[0] + (columns - 1) * strides[1] + 1) > held:
        raise ValueError(
            f"numRows: got {num_rows} rows with strides {strides}, needs a tensor of {needed} elements, not {held}"
        )
    return logits.as_strided((num_rows, columns), strides)


def columns_of(name: str, tensor: torch.Tensor, rows: int, top_k: int) -> torch.Tensor:
    """Where to write ``rows`` rows of ``top_k``: the first ones of the caller's tensor."""
    if isinstance(tensor, torch.Tensor) and tensor.shape == (rows, top_k):
        return tensor
    check_strided(name, tensor)
    top_k = check_integer("k", top_k, 1)
    if tensor.ndim != 2 or tensor.shape[0] < rows or tensor.shape[1] < top_k:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, needs [{rows}, {top_k}] or more")
    return tensor[:rows, :top_k]


def first_of(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The first ``rows`` of a tensor: itself, where it has no more, for a view takes a microsecond. Others have to refuse what
    is no tensor of rows."""
    return tensor[:rows] if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[0] > rows else tensor


def ends_of(lens: torch.Tensor, next_n: int, rows: int) -> torch.Tensor:
    """How many keys each of the first ``rows`` rows sees, where draft t of a request sees ``len - next_n + t + 1``."""
    if next_n == 1:
        return first_of(lens, rows)
    back = torch.arange(1 - next_n, 1, dtype=lens.dtype, device=lens.device)
    return (lens[:, None] + back).flatten()[:rows]


def room_in(workspace: torch.Tensor, logits: torch.Tensor, top_k: int) -> torch.Tensor | None:
    """The workspace, where a selection takes one and this has room for it; otherwise the selection allocates what it takes."""
    check_strided("workspace", workspace)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or not workspace.is_contiguous():
        return None
    rows, columns = logits.shape
    needed = rows * scratch_bytes(compat.capabilities(logits.device).target, columns, check_integer("k", top_k, 1))
    memory = bytes_of(workspace)
    return workspace if memory is not None and 0 < needed <= len(memory) else None


def window(lengths: torch.Tensor, starts: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Starts and ends of windows that are given by their lengths."""
    return starts, lengths if starts is None else starts + lengths


def indices_of(
    logits: torch.Tensor, starts: torch.Tensor | None, ends: torch.Tensor, top_k: int, **options: Any
) -> torch.Tensor:
    """What :func:`capgate.kernels.select_from_logits` returns where no scores are asked for."""
    return cast(torch.Tensor, select_from_logits(logits, starts, ends, top_k=top_k, **options))


def select_slots(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    top_k: int,
    page_table: torch.Tensor,
    page_size: int,
    out: torch.Tensor | None,
    positions: torch.Tensor | None,
    *,
    relative: bool = True,
    offsets: torch.Tensor | None = None,
    requests: torch.Tensor | None = None,
) -> torch.Tensor:
    """Slots of the selected keys, and into ``positions``, where given, the keys' numbers in their windows.

    Without ``positions`` the kernel looks slots up; with them that takes some small torch operations more, which allocate
    several times what the result takes.
    """
    if positions is None:
        placed: dict[str, Any] = {"relative": relative, "offsets": offsets, "page_table": page_table, "requests": requests}
        return indices_of(logits, starts, ends, top_k, page_size=page_size, out=out, **placed)
    select_from_logits(logits, starts, ends, top_k=top_k, relative=True, out=positions)
    first = offsets if relative else starts
    looked_up = positions if first is None else torch.where(positions < 0, -1, positions + first[:, None])
    if requests is None:
        requests = torch.arange(len(positions), device=positions.device)
    slots = slots_of(looked_up, page_table, requests.long(), page_size)
    return slots if out is None else out.copy_(slots)
