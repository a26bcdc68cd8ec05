"""Paged MQA logits in the emulator: the cases of decode, for what emulated_mqa does with a case."""

from typing import Any, NamedTuple

import torch

from capgate.compat import Kernel, Launch
from capgate.kernels import paged_mqa_schedule
from capgate.kernels.paged_mqa_logits import classic
from capgate.kernels.paged_mqa_logits.api import describe
from capgate.kernels.paged_mqa_logits.operands import Inputs

from .emulated_mqa import TARGET, Variant, output
from .emulated_mqa import VARIANTS as DENSE
from .paged import PagedCall, formula

VARIANTS = {"classic": Variant(classic.kernel)}
if "gluon_cdna4" in DENSE:
    from capgate.kernels.paged_mqa_logits import gluon_cdna4

    VARIANTS["gluon_cdna4"] = Variant(gluon_cdna4.kernel, DENSE["gluon_cdna4"].make_source)


def paged_launch(
    kernel: Kernel[Any],
    call: PagedCall,
    schedule: torch.Tensor,
    out: torch.Tensor,
    clean_logits: bool,
    layout: str = "flat",
    chunk_keys: int = 128,
) -> Launch:
    """The launch for the target; tensors may be meta tensors."""
    inputs = Inputs(*call, schedule)
    problem = describe(inputs, clean_logits, out.dtype, layout)._replace(device=TARGET)
    options = {"clean_logits": clean_logits, "layout": layout, "chunk_keys": chunk_keys}
    (launch,) = kernel.prepare(problem, inputs, out, **options)
    return launch


# Keys of each request of a batch.
LENGTHS = {
    "full": [300] * 5,
    "empty": [0, 0, 0],
    "edges": [1, 63, 64, 65, 127, 128, 129],
    "one long": [3, 0, 900, 17],
}


class PagedCase(NamedTuple):
    """A call with the width of its output, its output mode, the workers that share its keys, and how blocks hold them.

    chunk_keys, schedule : what a chunk of the schedule is, and the schedule, if it is not capgate's
    """

    call: PagedCall
    columns: int
    clean_logits: bool
    workers: int = 3
    dtype: torch.dtype = torch.float32  # of the output
    aligned: bool = False  # its rows, as a new one's
    layout: str = "flat"
    chunk_keys: int = 128
    schedule: tuple[tuple[int, int], ...] = ()

    def output(self) -> torch.Tensor:
        return output(self.call.q.shape[0] * self.call.q.shape[1], self.columns, self.dtype, self.aligned)

    def launch(self, kernel: Kernel[Any], out: torch.Tensor) -> Launch:
        schedule = paged_mqa_schedule(self.call.context_lens, 64, self.workers, chunk_keys=self.chunk_keys)
        if self.schedule:
            schedule = torch.tensor(self.schedule, dtype=torch.int32)
        return paged_launch(kernel, self.call, schedule, out, self.clean_logits, self.layout, self.chunk_keys)

    def answer(self) -> Any:
        return formula(self.call, self.columns, self.layout)
