"""The matrix of history lengths: selections of a number of queries behind every length of history, a call each."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...key_selection import operands
from ...key_selection.operation import operation
from .batch import sizes
from .prefill import Prefill, causal
from .selection import Choice, choose


@dataclass(frozen=True)
class Cell:
    """The queries of a row of the matrix behind ``history`` positions: each sees all of those, and the queries up to itself."""

    matrix: "Matrix"
    history: int

    operations: ClassVar = (operation,)

    @property
    def name(self) -> str:
        return f"{self.matrix.queries}x{self.history}"

    def facts(self) -> dict[str, int]:
        """Its sizes by name."""
        matrix = self.matrix
        return {"queries": matrix.queries, "history": self.history, "top_k": matrix.top_k, "budget": matrix.budget}

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Choice:
        """Random activations, really quantised, on ``device``; no logits."""
        matrix, keys = self.matrix, self.history + self.matrix.queries
        prefill = Prefill(self.name, "", matrix.queries, keys, matrix.heads, matrix.dim, causal(matrix.queries, keys))
        batch = prefill.make(device, dtype, seed)
        return choose(operands.Dense(*batch.operands), matrix.top_k, matrix.budget, matrix.fused)


@dataclass(frozen=True)
class Matrix:
    """A row of the matrix: ``queries`` behind each of ``histories``, ``top_k`` keys of each within ``budget`` bytes for logits
    or lists.

    fused : True times cells in one kernel wherever one can, None where the operation takes it by itself
    """

    name: str
    words: str
    queries: int
    histories: tuple[int, ...]
    top_k: int
    heads: int = 64
    dim: int = 128
    budget: int = 2**28
    fused: bool | None = None

    operations: ClassVar = (operation,)

    def facts(self) -> dict[str, Any]:
        """Its sizes by name."""
        return sizes(self)

    def cells(self) -> list[Cell]:
        """The calls."""
        return [Cell(self, history) for history in self.histories]
