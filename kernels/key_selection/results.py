"""Where a selection writes: new tensors, or the caller's and the memory that he lends."""

from typing import NamedTuple, TypeAlias

import torch

from ..common.checks import Inputs, check_apart, check_memory, check_strided

Selected: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

WORDS = ("the operands'", "the selection does")
ALIGNMENT = 16  # bytes: what is read and written in whole vectors begins so


class Results(NamedTuple):
    """What a call writes.

    out : indices, [S, top_k], int32
    out_scores : as ``out``, float32; None where they are not wanted
    workspace : bytes to work in; None where they are allocated
    """

    out: torch.Tensor
    out_scores: torch.Tensor | None
    workspace: torch.Tensor | None = None

    @property
    def selected(self) -> Selected:
        """As the functions return them."""
        return self.out if self.out_scores is None else (self.out, self.out_scores)


def new_results(rows: int, top_k: int, return_scores: bool, device: torch.device) -> Results:
    """New tensors, and no workspace."""
    return results_or_new(rows, top_k, return_scores, device, None, None, None)


def check_results(
    rows: int,
    top_k: int,
    return_scores: bool,
    device: torch.device,
    out: torch.Tensor | None,
    out_scores: torch.Tensor | None,
    workspace: torch.Tensor | None,
) -> None:
    """Raise TypeError or ValueError for memory of the caller's that cannot take the results, or be worked in."""
    if out is not None:
        _check("out", out, (rows, top_k), torch.int32, device)
    if out_scores is not None:
        if not return_scores:
            raise ValueError("out_scores: got a tensor, needs return_scores to be True")
        _check("out_scores", out_scores, (rows, top_k), torch.float32, device)
    if workspace is not None:
        _check_workspace(workspace, device)


def results_or_new(
    rows: int,
    top_k: int,
    return_scores: bool,
    device: torch.device,
    out: torch.Tensor | None,
    out_scores: torch.Tensor | None,
    workspace: torch.Tensor | None,
) -> Results:
    """What the caller gives, and new tensors for the rest."""
    if out is None:
        out = torch.empty((rows, top_k), dtype=torch.int32, device=device)
    if out_scores is None and return_scores:
        out_scores = torch.empty((rows, top_k), dtype=torch.float32, device=device)
    return Results(out, out_scores, workspace)


def check_results_apart(results: Results, inputs: Inputs) -> None:
    """Raise ValueError where something that is written shares memory with what is read, or with something else written."""
    for name, written in zip(results._fields, results, strict=True):
        if written is not None:
            check_apart(name, written, inputs)
            check_apart(name, written, results)


def bytes_of(workspace: torch.Tensor | None) -> torch.Tensor | None:
    """The workspace's bytes from the first aligned one on."""
    if workspace is None:
        return None
    memory = workspace.view(-1).view(torch.uint8)
    return memory if memory.is_meta else memory[-memory.data_ptr() % ALIGNMENT :]


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    check_strided(name, tensor)
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, needs {list(shape)}")
    rows, columns = shape
    apart = rows <= 1 or tensor.stride(0) >= columns
    if tensor.numel() and not (apart and (columns == 1 or tensor.stride(1) == 1)):
        raise ValueError(f"{name}: got strides {tuple(tensor.stride())}, needs rows of adjacent elements that do not overlap")
    check_memory(name, tensor, (dtype,), device, *WORDS)


def _check_workspace(workspace: torch.Tensor, device: torch.device) -> None:
    check_strided("workspace", workspace)
    if not workspace.is_contiguous():
        raise ValueError(f"workspace: got strides {tuple(workspace.stride())}, needs a contiguous tensor")
    check_memory("workspace", workspace, (torch.uint8, torch.float32), device, *WORDS)
