"""Workloads of fp8_mqa_logits: shapes with their windows, and the batches of tensors that they stand for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from ...common.logits import empty_logits
from ...mqa_logits import fp8_mqa_logits
from ...mqa_logits.operands import Inputs
from ...mqa_logits.operation import operation
from ...quantize import quantize_keys, quantize_queries
from .batch import Call

Windows = Callable[[], tuple[torch.Tensor, torch.Tensor]]


class PrefillBatch(NamedTuple):
    """The operands of one call, in the order of the operation's arguments, and the columns of a compressed output."""

    q: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor
    max_window: int | None = None

    @property
    def operands(self) -> Inputs:
        """The tensors."""
        return Inputs(self.q, self.k, self.k_scale, self.weights, self.starts, self.ends)

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
        return int(4 * written + sum(tensor.numel() * tensor.itemsize for tensor in self.operands))

    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first column of the output that each row sees, and the first one that it does not see any more, int32 [S]."""
        starts, ends = self.starts.clamp(min=0), self.ends.clamp(max=self.k.shape[0])
        return (starts, ends) if self.max_window is None else (torch.zeros_like(starts), ends - starts)

    def output(self) -> torch.Tensor:
        """A new output, which the calls of all variants may share."""
        return empty_logits((self.q.shape[0], self.k.shape[0] if self.max_window is None else self.max_window), self.q.device)

    def prepare(self, variant: str, clean_logits: bool) -> None:
        """None: a prefill step makes nothing for its layers to share."""

    def call(self, variant: str | None, clean_logits: bool, out: torch.Tensor) -> Call | None:
        """The call of one variant into ``out``; None for a compressed output that would be cleaned."""
        if clean_logits and self.max_window is not None:
            return None
        keywords: dict[str, Any] = {"clean_logits": clean_logits, "max_window": self.max_window, "variant": variant}
        return partial(fp8_mqa_logits, *self.operands, out=out, **keywords)


@dataclass(frozen=True)
class Prefill:
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

    operation: ClassVar = operation
    operations: ClassVar = (operation,)
    moves: ClassVar = "copy"

    @property
    def size(self) -> str:
        return f"{self.rows}x{self.keys}"

    def facts(self) -> dict[str, int]:
        """Its sizes by name."""
        return {name: getattr(self, name) for name in ("rows", "keys", "heads", "dim")}

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PrefillBatch:
        """Random activations, really quantised, with the workload's windows, on ``device``."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

        weights = torch.randn((self.rows, self.heads), generator=generator, device=device)
        q, weights = quantize_queries(normal(self.rows, self.heads, self.dim), weights, dtype)
        k, k_scale = quantize_keys(normal(self.keys, self.dim), dtype, scale_format="ue8m0")
        starts, ends = self.windows()
        return PrefillBatch(q, k, k_scale, weights, starts.to(device), ends.to(device), self.max_window)


def causal(rows: int, keys: int) -> Windows:
    """The last ``rows`` positions of one sequence of ``keys``: each sees every key up to its own."""

    def windows() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(rows, dtype=torch.int32), torch.arange(keys - rows + 1, keys + 1, dtype=torch.int32)

    return windows


def full(rows: int, keys: int) -> Windows:
    """Every row sees every key."""

    def windows() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(rows, dtype=torch.int32), torch.full((rows,), keys, dtype=torch.int32)

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


def prompts(lengths: tuple[int, ...]) -> Prefill:
    """A packed prefill batch of DeepSeek-V4-Flash's indexer: 64 heads, 128 dims, one key per 4 tokens."""
    rows, keys = sum(lengths), sum(length // 4 for length in lengths)
    return Prefill("prompts", f"{len(lengths)} prompts in one batch", rows, keys, 64, 128, compressed_prefill(lengths))
