"""Paged MQA logits in the emulator: the cases of decode, for what mqa.py does with a case."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from capgate.kernels.launch import Launch
from capgate.kernels.paged_mqa_logits import classic, reference

from .judge import sentinels
from .mqa import BRANCHES as DENSE
from .mqa import TARGET, Branch
from .paged import PagedCall, formula

BRANCHES = {"classic": Branch(classic.prepare)}
if "gluon_cdna4" in DENSE:
    from capgate.kernels.paged_mqa_logits import gluon_cdna4

    BRANCHES["gluon_cdna4"] = Branch(gluon_cdna4.prepare, DENSE["gluon_cdna4"].make_source)


# Keys of each request of a batch.
LENGTHS = {
    "full": [300] * 5,
    "empty": [0, 0, 0],
    "edges": [1, 63, 64, 65, 127, 128, 129],
    "one long": [3, 0, 900, 17],
}


class PagedCase(NamedTuple):
    """A call with the width of its output, its output mode, and the workers that share its keys."""

    call: PagedCall
    columns: int
    clean_logits: bool
    workers: int = 3

    def output(self) -> torch.Tensor:
        return sentinels(self.call.q.shape[0] * self.call.q.shape[1], self.columns)

    def launch(self, prepare: Callable[..., Launch], out: torch.Tensor) -> Launch:
        schedule = reference.make_schedule(self.call.context_lens, self.workers)
        return prepare(*self.call, schedule, out, clean_logits=self.clean_logits, target=TARGET)

    def answer(self) -> Any:
        return formula(self.call, self.columns)
