"""Workloads of the selections: the keys of every row's largest logits, held against the logits alone and a read of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from capgate import compat

from ...fused_selection import calls as fusing
from ...key_selection import operands, select_from_logits, select_keys, select_paged_keys
from ...key_selection.operation import operation
from ...key_selection.results import Results
from ...mqa_logits import fp8_mqa_logits
from .batch import Call
from .decode import Decode
from .prefill import Prefill


class SelectionBatch(NamedTuple):
    """The operands of one call, and a buffer with the logits of all of its rows, -inf outside the windows.

    logits : [rows, columns]
    starts, ends : the columns that each row sees, int32 [rows]; starts are None where they are 0
    score : writes the logits into the buffer
    select : select_keys or select_paged_keys with everything but what is said here
    cells : how many logits lie inside a window
    fused : True where it is asked for whatever the rule says, None where it is left to that
    trace : which variant would score and select in one kernel, and why not the others
    """

    logits: torch.Tensor
    starts: torch.Tensor | None
    ends: torch.Tensor
    score: Call
    select: Callable[..., Any]
    cells: int
    fused: bool | None
    trace: "compat.Trace"

    @property
    def least_bytes(self) -> int:
        """The logits in the windows, once."""
        return 4 * self.cells

    @property
    def fused_variant(self) -> str | None:
        """Which variant scores and selects in one kernel; None where two steps are taken."""
        return None if self.trace.variant == "reference" and self.fused is None else self.trace.variant

    @property
    def why_two_steps(self) -> str | None:
        """The reason of the variant that is tried last before the reference; None where the fused way is taken."""
        return None if self.fused_variant else self.trace.steps[-2].reason

    def calls(self, variant: str) -> dict[str, Call]:
        """What is timed, by name, with one variant of the selection; the variants of what else runs are chosen as always.

        logits : the logits of all rows, into a buffer that is kept
        selection : the keys from those
        topk : torch.topk of the same, whose indices are int64 and in no promised order
        whole : both steps, within the budget
        fused : both in one kernel, where that is taken
        """
        top_k = self.select.keywords["top_k"]  # type: ignore[attr-defined]
        calls: dict[str, Call] = {
            "logits": self.score,
            "selection": partial(select_from_logits, self.logits, self.starts, self.ends, top_k=top_k, variant=variant),
            "topk": partial(torch.topk, self.logits, min(top_k, self.logits.shape[1]), dim=1, sorted=False),
            "whole": partial(self.select, variant=variant, fused=False),
        }
        return calls if self.fused_variant is None else {**calls, "fused": partial(self.select, fused=self.fused)}

    def peak_bytes(self, variant: str) -> dict[str, int] | None:
        """The most memory that each of the calls holds besides operands and result, by name; the logits' is their buffer, and
        the selection's and torch.topk's come on top of it. None on the CPU, where torch counts none."""
        device = self.logits.device
        if device.type != "cuda":
            return None
        peaks = {}
        for name, call in self.calls(variant).items():
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            result: Any = call()
            tensors = result if isinstance(result, tuple) else (result,)
            made = 0 if name == "logits" else sum(tensor.nbytes for tensor in tensors)
            peaks[name] = int(torch.cuda.max_memory_allocated(device) - before - made)
            del result, tensors
        return {**peaks, "logits": self.logits.nbytes}


@dataclass(frozen=True)
class Selection:
    """The ``top_k`` keys of every row of a prefill, within ``budget`` bytes for logits or lists; it has the prefill's name.

    fused : True times it in one kernel wherever one can, None where the operation takes it by itself
    """

    prefill: Prefill
    top_k: int
    budget: int = 2**28
    fused: bool | None = None

    operations: ClassVar = (operation,)

    @property
    def name(self) -> str:
        return self.prefill.name

    @property
    def size(self) -> str:
        return self.prefill.size

    @property
    def rows(self) -> int:
        return self.prefill.rows

    def facts(self) -> dict[str, int]:
        """Its sizes by name."""
        return {**self.prefill.facts(), "top_k": self.top_k, "budget": self.budget}

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> SelectionBatch:
        """As the prefill's, with its logits."""
        batch = self.prefill.make(device, dtype, seed)
        logits = fp8_mqa_logits(*batch.operands, clean_logits=True, out=batch.output())
        score = partial(fp8_mqa_logits, *batch.operands, clean_logits=False, out=logits)
        select = partial(select_keys, *batch.operands, top_k=self.top_k, logits_budget_bytes=self.budget)
        results = _results(len(batch.q), self.top_k)
        trace = fusing.explain(operands.Dense(*batch.operands), results, self.budget, self.fused, max_window=None)
        return SelectionBatch(logits, batch.starts, batch.ends, score, select, batch.cells, self.fused, trace)


@dataclass(frozen=True)
class DecodeSelection:
    """As :class:`Selection` of requests in decode."""

    decode: Decode
    top_k: int
    budget: int = 2**28
    fused: bool | None = None

    operations: ClassVar = (operation,)

    @property
    def name(self) -> str:
        return self.decode.name

    @property
    def size(self) -> str:
        return self.decode.size

    @property
    def rows(self) -> int:
        return self.decode.requests * self.decode.next_n

    def facts(self) -> dict[str, int]:
        """Its sizes by name."""
        return {**self.decode.facts(), "top_k": self.top_k, "budget": self.budget}

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> SelectionBatch:
        """As the decode's, with its logits, which are timed with their schedule made beforehand."""
        batch = self.decode.make(device, dtype, seed)
        logits = batch.output()
        batch.call(None, True, logits)()
        score = batch.call(None, False, logits)
        options: dict[str, Any] = {"max_context_len": batch.max_context_len}
        select = partial(select_paged_keys, *batch.operands, top_k=self.top_k, logits_budget_bytes=self.budget, **options)
        results = _results(len(logits), self.top_k)
        inputs = operands.Paged(*batch.operands)
        trace = fusing.explain_paged(inputs, results, self.budget, self.fused, layout="flat", **options)
        ends = batch.seen.flatten().int()
        return SelectionBatch(logits, None, ends, score, select, int(ends.sum()), self.fused, trace)


def _results(rows: int, top_k: int) -> Results:
    """Those of a call, whose choice is asked for: shapes alone."""
    return Results(torch.empty((rows, top_k), dtype=torch.int32, device="meta"), None)
