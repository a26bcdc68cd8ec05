"""Workloads of select_keys: the keys of a prefill's largest logits, held against the logits alone and a read of them."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from ...key_selection import select_from_logits, select_keys
from ...key_selection.operation import operation
from ...mqa_logits import fp8_mqa_logits
from .batch import Call
from .prefill import Prefill, PrefillBatch


class SelectionBatch(NamedTuple):
    """The operands of one call, and a buffer with the logits of all of its rows, -inf outside the windows."""

    prefill: PrefillBatch
    logits: torch.Tensor
    top_k: int
    budget: int

    @property
    def least_bytes(self) -> int:
        """The logits in the windows, once."""
        return 4 * self.prefill.cells

    def calls(self, variant: str) -> dict[str, Call]:
        """What is timed, by name, with one variant of the selection; the logits' variant is chosen as always.

        logits : the logits of all rows, into a buffer that is kept
        selection : the keys from those
        topk : torch.topk of the same, whose indices are int64 and in no promised order
        whole : select_keys within the budget
        """
        operands, columns = self.prefill.operands, self.logits.shape[1]
        keywords: dict[str, Any] = {"top_k": self.top_k, "variant": variant}
        return {
            "logits": partial(fp8_mqa_logits, *operands, clean_logits=False, out=self.logits),
            "selection": partial(select_from_logits, self.logits, self.prefill.starts, self.prefill.ends, **keywords),
            "topk": partial(torch.topk, self.logits, min(self.top_k, columns), dim=1, sorted=False),
            "whole": partial(select_keys, *operands, logits_budget_bytes=self.budget, **keywords),
        }

    def peak_bytes(self, variant: str) -> int | None:
        """The most memory that the whole call holds besides operands and result; None on the CPU, where torch counts none."""
        device = self.logits.device
        if device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        indices: Any = self.calls(variant)["whole"]()
        return int(torch.cuda.max_memory_allocated(device) - before - indices.nbytes)


@dataclass(frozen=True)
class Selection:
    """The ``top_k`` keys of every row of a prefill, within ``budget`` bytes for logits; it has the prefill's name."""

    prefill: Prefill
    top_k: int
    budget: int = 2**28

    operations: ClassVar = (operation,)

    @property
    def name(self) -> str:
        return self.prefill.name

    @property
    def size(self) -> str:
        return self.prefill.size

    def facts(self) -> dict[str, int]:
        """Its sizes by name."""
        return {**self.prefill.facts(), "top_k": self.top_k, "budget": self.budget}

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> SelectionBatch:
        """As the prefill's, with its logits."""
        batch = self.prefill.make(device, dtype, seed)
        logits = fp8_mqa_logits(*batch.operands, clean_logits=True, out=batch.output())
        return SelectionBatch(batch, logits, self.top_k, self.budget)
