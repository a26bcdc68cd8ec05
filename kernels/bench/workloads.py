"""Named workloads of fp8_mqa_logits, and the batches of tensors that they stand for."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..quantize import quantize_keys, quantize_queries

Windows = Callable[[], tuple[torch.Tensor, torch.Tensor]]


class Workload(NamedTuple):
    """A shape with its windows.

    rows, keys, heads, dim : S, N, H and D of the operation
    windows : makes starts and ends, int32 [S] on the CPU
    max_window : columns of a compressed output, None for a full one
    """

    name: str
    words: str
    rows: int
    keys: int
    heads: int
    dim: int
    windows: Windows
    max_window: int | None = None


class Batch(NamedTuple):
    """The operands of one call, in the order of the operation's arguments."""

    q: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor

    @property
    def cells(self) -> int:
        """How many logits lie inside a window; reads the windows back from the device."""
        inside = self.ends.clamp(max=self.k.shape[0]) - self.starts.clamp(min=0)
        return int(inside.clamp(min=0).sum())

    @property
    def flops(self) -> int:
        """Two for each of the D products of a head's dot, over the cells inside the windows."""
        return int(2 * self.q.shape[1] * self.q.shape[2] * self.cells)

    def least_bytes(self, clean_logits: bool) -> int:
        """The fewest bytes a call moves: every operand once, and every cell it has to write once."""
        written = self.q.shape[0] * self.k.shape[0] if clean_logits else self.cells
        return int(4 * written + sum(tensor.numel() * tensor.itemsize for tensor in self))


def causal(rows: int, keys: int) -> Windows:
    """The last ``rows`` positions of one sequence of ``keys``: each sees every key up to its own."""

    def windows() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(rows, dtype=torch.int32), torch.arange(keys - rows + 1, keys + 1, dtype=torch.int32)

    return windows


def packed(requests: int, rows: int, keys: int) -> Windows:
    """``requests`` sequences side by side, each with its last ``rows`` positions as queries and ``keys`` keys of its own."""

    def windows() -> tuple[torch.Tensor, torch.Tensor]:
        starts, ends = causal(rows, keys)()
        first = (torch.arange(requests, dtype=torch.int32) * keys)[:, None]
        return (first + starts).flatten(), (first + ends).flatten()

    return windows


def compressed_prefill(lengths: tuple[int, ...], ratio: int = 4) -> Windows:
    """Whole prompts of ``lengths`` tokens with one key per ``ratio`` tokens, as DeepSeek-V4 stores them.

    Position p of a prompt whose keys begin at ``start`` sees ``end = start + (p + 1) // ratio``; its first positions see none.
    """

    def windows() -> tuple[torch.Tensor, torch.Tensor]:
        starts, ends, first = [], [], 0
        for length in lengths:
            seen = torch.arange(1, length + 1, dtype=torch.int32) // ratio
            starts.append(torch.full((length,), first, dtype=torch.int32))
            ends.append(first + seen)
            first += length // ratio
        return torch.cat(starts), torch.cat(ends)

    return windows


def serving(lengths: tuple[int, ...]) -> Workload:
    """A packed prefill batch of DeepSeek-V4-Flash's indexer: 64 heads, 128 dims, one key per 4 tokens."""
    rows, keys = sum(lengths), sum(length // 4 for length in lengths)
    return Workload("serving", f"{len(lengths)} prompts in one batch", rows, keys, 64, 128, compressed_prefill(lengths))


# The shapes on which the published kernels have been compared (a to f), causal unless their words say otherwise.
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("a", "causal", 4096, 4096, 64, 128, causal(4096, 4096)),
        Workload("b", "last rows of a long sequence", 2048, 8192, 64, 128, causal(2048, 8192)),
        Workload("c", "causal", 8192, 8192, 64, 128, causal(8192, 8192)),
        Workload("d1", "16 requests of 1024", 16384, 16384, 64, 128, packed(16, 1024, 1024)),
        Workload("d2", "4 requests of 8192 keys", 8192, 32768, 64, 128, packed(4, 2048, 8192)),
        Workload("d3", "64 requests of 1024, compressed", 65536, 65536, 64, 128, packed(64, 1024, 1024), 1024),
        Workload("e-a", "causal, 32 heads", 4096, 4096, 32, 128, causal(4096, 4096)),
        Workload("e-c", "causal, 32 heads", 8192, 8192, 32, 128, causal(8192, 8192)),
        Workload("f", "few rows", 64, 8192, 64, 128, causal(64, 8192)),
        Workload("f32", "few rows, 32 heads", 64, 8192, 32, 128, causal(64, 8192)),
    )
}

# The same kinds of window, small enough for a CPU.
SMALL = {
    workload.name: workload
    for workload in (
        Workload("a", "causal, small", 256, 256, 64, 128, causal(256, 256)),
        Workload("b", "last rows, small", 64, 512, 64, 128, causal(64, 512)),
        Workload("d1", "4 requests of 64, small", 256, 256, 64, 128, packed(4, 64, 64)),
        Workload("e-a", "causal, 32 heads, small", 256, 256, 32, 128, causal(256, 256)),
        Workload("f", "few rows, small", 8, 1024, 64, 128, causal(8, 1024)),
    )
}


def make(workload: Workload, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Batch:
    """Random activations, really quantised, with the workload's windows, on ``device``."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    weights = torch.randn((workload.rows, workload.heads), generator=generator, device=device)
    q, weights = quantize_queries(normal(workload.rows, workload.heads, workload.dim), weights, dtype)
    k, k_scale = quantize_keys(normal(workload.keys, workload.dim), dtype, scale_format="ue8m0")
    starts, ends = workload.windows()
    return Batch(q, k, k_scale, weights, starts.to(device), ends.to(device))
