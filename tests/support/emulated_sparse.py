"""Sparse logits in the emulator: the cases of prefill and of decode from lists, for what emulated_mqa does with a case."""

from typing import Any, NamedTuple

import torch

from capgate.compat import Kernel, Launch
from capgate.kernels import sparse_mqa_schedule
from capgate.kernels.sparse_logits.calls import describe
from capgate.kernels.sparse_logits.operands import Dense, MxDense, MxPaged, Paged

from .emulated_mqa import TARGET, Variant, output
from .emulated_mqa import VARIANTS as DENSE
from .sparse import MxPagedSparseCall, MxSparseCall, PagedSparseCall, SparseCall, formula

VARIANTS, PACKED_VARIANTS = {}, {}
if "gluon_cdna4" in DENSE:
    from capgate.kernels.sparse_logits import gluon_cdna4, gluon_cdna4_packed

    VARIANTS["gluon_cdna4"] = Variant(gluon_cdna4.kernel, DENSE["gluon_cdna4"].make_source)
    PACKED_VARIANTS["gluon_cdna4"] = Variant(gluon_cdna4_packed.kernel, DENSE["gluon_cdna4"].make_source)


class SparseCase(NamedTuple):
    """A call with its candidate blocks, its output mode, and the workers that share its listed keys."""

    call: PagedSparseCall | MxPagedSparseCall
    block: int = 8
    clean_logits: bool = False
    workers: int = 3
    dtype: torch.dtype = torch.float32  # of the output
    layout: str = "flat"

    def output(self) -> torch.Tensor:
        return output(len(self.call.weights), self.call.candidates.shape[1] * self.block, self.dtype, False)

    def launch(self, kernel: Kernel[Any], out: torch.Tensor) -> Launch:
        lens, shared = self.call.context_lens, len(self.call.candidates) < len(self.call.weights)
        next_n = 1 if shared or lens.ndim == 2 else self.call.q.shape[1]
        schedule = sparse_mqa_schedule(lens, self.workers, most_keys=out.shape[1], next_n=next_n)
        inputs = (MxPaged if isinstance(self.call, MxPagedSparseCall) else Paged)(*self.call, schedule)
        problem = describe(inputs, out.dtype, self.block, self.clean_logits, self.layout)._replace(device=TARGET)
        options = {"clean_logits": self.clean_logits, "candidate_block": self.block, "layout": self.layout}
        (launch,) = kernel.prepare(problem, inputs, out, **options)
        return launch

    def answer(self) -> Any:
        return formula(self.call, self.block, relative=True, layout=self.layout)


class PackedSparseCase(NamedTuple):
    """As :class:`SparseCase` of packed keys."""

    call: SparseCall | MxSparseCall
    block: int = 8
    clean_logits: bool = False
    workers: int = 3
    dtype: torch.dtype = torch.float32  # of the output
    relative: bool = True

    def output(self) -> torch.Tensor:
        return output(len(self.call.weights), self.call.candidates.shape[1] * self.block, self.dtype, False)

    def launch(self, kernel: Kernel[Any], out: torch.Tensor) -> Launch:
        last = slice(len(out) // len(self.call.candidates) - 1, None, len(out) // len(self.call.candidates))
        starts, ends = self.call.starts[last], self.call.ends[last]
        schedule = sparse_mqa_schedule(ends, self.workers, most_keys=out.shape[1], starts=starts)
        inputs = (MxDense if isinstance(self.call, MxSparseCall) else Dense)(*self.call, schedule)
        problem = describe(inputs, out.dtype, self.block, self.clean_logits, self.relative)._replace(device=TARGET)
        options = {"clean_logits": self.clean_logits, "candidate_block": self.block, "relative": self.relative}
        (launch,) = kernel.prepare(problem, inputs, out, **options)
        return launch

    def answer(self) -> Any:
        return formula(self.call, self.block, relative=self.relative)
