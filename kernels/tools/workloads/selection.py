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
from ...key_selection.operators import problem_of
from ...key_selection.results import Results
from ...mqa_logits import fp8_mqa_logits
from .batch import Call
from .decode import Decode
from .prefill import Prefill, PrefillBatch


class Choice(NamedTuple):
    """One call, with how it selects: in one kernel, or in two steps.

    inputs : its operands
    select : select_keys or select_paged_keys with everything but what is said here
    top_k, budget : keys of every row, and bytes for logits or lists
    fused : True where one kernel is asked for whatever the rule says, None where it is left to that
    trace : which variant would score and select in one kernel, and why not the others
    counting : what the programs of the fused call count; None where there is nothing
    """

    inputs: operands.Dense | operands.Paged
    select: "partial[Any]"
    top_k: int
    budget: int
    fused: bool | None
    trace: "compat.Trace"
    counting: Callable[[], fusing.Counts | None]

    @property
    def fused_variant(self) -> str | None:
        """Which variant scores and selects in one kernel; None where two steps are taken."""
        return None if self.trace.variant == "reference" and self.fused is None else self.trace.variant

    @property
    def why_two_steps(self) -> str | None:
        """The reason of the variant that is tried last before the reference; None where the fused way is taken."""
        return None if self.fused_variant else self.trace.steps[-2].reason

    @property
    def max_context_len(self) -> int | None:
        """Of a paged call."""
        limit: int | None = self.select.keywords.get("max_context_len")
        return limit

    def output(self) -> torch.Tensor:
        """A new result, [rows, top_k]."""
        return torch.empty((len(self.inputs.weights), self.top_k), dtype=torch.int32, device=self.inputs.q.device)


def choose(inputs: operands.Dense, top_k: int, budget: int, fused: bool | None) -> Choice:
    """The choice for packed keys."""
    select = partial(select_keys, *inputs[:6], top_k=top_k, logits_budget_bytes=budget)
    arguments: tuple[Any, ...] = (_results(inputs, top_k, "meta"), budget, fused)  # shapes alone matter
    trace = fusing.explain(inputs, *arguments, max_window=None)

    def count() -> fusing.Counts | None:
        return fusing.count(inputs, _results(inputs, top_k), *arguments[1:], max_window=None)

    return Choice(inputs, select, top_k, budget, fused, trace, count)


def choose_paged(inputs: operands.Paged, top_k: int, budget: int, fused: bool | None, max_context_len: int) -> Choice:
    """As :func:`choose` for cached keys."""
    options: dict[str, Any] = {"max_context_len": max_context_len}
    select = partial(select_paged_keys, *inputs[:5], top_k=top_k, logits_budget_bytes=budget, **options)
    options["layout"] = "flat"
    arguments: tuple[Any, ...] = (_results(inputs, top_k, "meta"), budget, fused)
    trace = fusing.explain_paged(inputs, *arguments, **options)

    def count() -> fusing.Counts | None:
        return fusing.count_paged(inputs, _results(inputs, top_k), *arguments[1:], **options)

    return Choice(inputs, select, top_k, budget, fused, trace, count)


def _results(inputs: operands.Dense | operands.Paged, top_k: int, device: Any = None) -> Results:
    return Results(torch.empty((len(inputs.weights), top_k), dtype=torch.int32, device=device or inputs.q.device), None)


class SelectionBatch(NamedTuple):
    """The operands of one call, and a buffer with the logits of all of its rows, -inf outside the windows.

    logits : [rows, columns]
    starts, ends : the columns that each row sees, int32 [rows]; starts are None where they are 0
    score : writes the logits into the buffer
    choice : the call
    cells : how many logits lie inside a window
    """

    logits: torch.Tensor
    starts: torch.Tensor | None
    ends: torch.Tensor
    score: Call
    choice: Choice
    cells: int

    @property
    def least_bytes(self) -> int:
        """The logits in the windows, once."""
        return 4 * self.cells

    def takes(self, variant: str) -> bool:
        """Whether that variant selects from these logits: some are for few long rows alone."""
        into = torch.empty((len(self.ends), self.choice.top_k), dtype=torch.int32, device="meta")
        problem = problem_of(operands.Inputs(self.logits, self.starts, self.ends), into)
        return operation.explain(problem, variant).variant is not None

    def calls(self, variant: str) -> dict[str, Call]:
        """What is timed, by name, with one variant of the selection; the variants of what else runs are chosen as always.

        logits : the logits of all rows, into a buffer that is kept
        selection : the keys from those
        topk : torch.topk of the same, whose indices are int64 and in no promised order
        whole : both steps, within the budget
        fused : both in one kernel, where that is taken
        """
        top_k, select, fused = self.choice.top_k, self.choice.select, self.choice.fused
        calls: dict[str, Call] = {
            "logits": self.score,
            "selection": partial(select_from_logits, self.logits, self.starts, self.ends, top_k=top_k, variant=variant),
            "topk": partial(torch.topk, self.logits, min(top_k, self.logits.shape[1]), dim=1, sorted=False),
            "whole": partial(select, variant=variant, fused=False),
        }
        return calls if self.choice.fused_variant is None else {**calls, "fused": partial(select, fused=fused)}

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
        batch = self.batch(device, dtype, seed)
        logits = fp8_mqa_logits(*batch.operands, clean_logits=True, out=batch.output())
        score = partial(fp8_mqa_logits, *batch.operands, clean_logits=False, out=logits)
        choice = choose(operands.Dense(*batch.operands), self.top_k, self.budget, self.fused)
        return SelectionBatch(logits, batch.starts, batch.ends, score, choice, batch.cells)

    def batch(self, device: torch.device, dtype: torch.dtype, seed: int) -> PrefillBatch:
        """The operands of its logits."""
        return self.prefill.make(device, dtype, seed)


def alike(batch: PrefillBatch) -> PrefillBatch:
    """All logits of a row are equal."""
    return batch._replace(k=batch.k[:1].repeat(len(batch.k), 1), k_scale=batch.k_scale[:1].repeat(len(batch.k)))


def ascending(batch: PrefillBatch) -> PrefillBatch:
    """In every row each logit lies above the one in front of it: keys are alike, their scales grow, no weight is negative."""
    scales = torch.linspace(1, 2, len(batch.k), device=batch.k.device)
    return alike(batch)._replace(k_scale=scales, weights=batch.weights.abs())


def in_step(batch: PrefillBatch) -> PrefillBatch:
    """Rows see all keys, whose quarters ascend in step: to a kernel that visits these in turn, every key is a new best."""
    batch, quarter = ascending(batch), -(-len(batch.k) // 4)
    visited = torch.arange(4 * quarter, device=batch.k.device).view(4, quarter).t().flatten()
    place = visited[visited < len(batch.k)].argsort()  # of each key among those visited
    ends = torch.full_like(batch.ends, len(batch.k))
    return batch._replace(k_scale=batch.k_scale[place], starts=torch.zeros_like(ends), ends=ends)


def rising(batch: PrefillBatch) -> PrefillBatch:
    """Random keys, the later ones' logits three times the first ones' on average: a model that looks at what is recent."""
    scales = torch.linspace(1, 3, len(batch.k), device=batch.k.device)
    return batch._replace(k_scale=batch.k_scale * scales, weights=batch.weights.abs())


@dataclass(frozen=True)
class Ordered(Selection):
    """A selection from logits in an order that costs a filter more than a random one does.

    arrange : makes the prefill's operands those of such logits
    """

    arrange: Callable[[PrefillBatch], PrefillBatch] = alike

    def batch(self, device: torch.device, dtype: torch.dtype, seed: int) -> PrefillBatch:
        """The operands of its logits."""
        return self.arrange(super().batch(device, dtype, seed))


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
        choice = choose_paged(operands.Paged(*batch.operands), self.top_k, self.budget, self.fused, batch.max_context_len)
        ends = batch.seen.flatten().int()
        return SelectionBatch(logits, None, ends, score, choice, int(ends.sum()))
