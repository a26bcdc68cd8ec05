"""MQA logits in MX formats in the emulator: what :mod:`.emulated_mqa` does, of mx_mqa_logits and mx_paged_mqa_logits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from capgate.compat import Kernel, Launch
from capgate.kernels import paged_mqa_schedule
from capgate.kernels.mx_logits import classic
from capgate.kernels.mx_logits.api import describe
from capgate.kernels.mx_logits.operands import Inputs
from capgate.kernels.mx_paged_logits import api as paged_api
from capgate.kernels.mx_paged_logits import classic as paged_classic
from capgate.kernels.mx_paged_logits.operands import Inputs as PagedInputs

from . import mx_paged
from .emulated_mqa import TARGET, Variant, on_gfx942, output
from .emulated_mqa import VARIANTS as DENSE
from .judge import formula
from .mx_logits import PAIRS, MxCall, make_call, meaning

VARIANTS = {"classic": Variant(classic.kernel)}
PAGED_VARIANTS = {"classic": Variant(paged_classic.kernel)}
if "gluon_cdna4" in DENSE:
    from capgate.kernels.mx_logits import gluon_cdna4
    from capgate.kernels.mx_paged_logits import gluon_cdna4 as paged_gluon_cdna4

    VARIANTS["gluon_cdna4"] = Variant(gluon_cdna4.kernel, DENSE["gluon_cdna4"].make_source)
    PAGED_VARIANTS["gluon_cdna4"] = Variant(paged_gluon_cdna4.kernel, DENSE["gluon_cdna4"].make_source)
GFX942_VARIANTS = {"dense": on_gfx942(VARIANTS["classic"]), "paged": on_gfx942(PAGED_VARIANTS["classic"])}


class MxCase(NamedTuple):
    """A call, its output mode and its output, with cells that must keep their bits."""

    call: MxCall
    clean_logits: bool
    max_window: int | None = None
    dtype: torch.dtype = torch.float32  # of the output
    aligned: bool = False  # its rows, as a new one's

    def output(self) -> torch.Tensor:
        return output(self.call.q.shape[0], self.max_window or self.call.k.shape[0], self.dtype, self.aligned)

    def launch(self, kernel: Kernel[Any], out: torch.Tensor) -> Launch:
        compressed = self.max_window is not None
        inputs = Inputs(*self.call)
        problem = describe(inputs, out, self.clean_logits, compressed)._replace(device=TARGET)
        (launch,) = kernel.prepare(problem, inputs, out, clean_logits=self.clean_logits, compressed=compressed)
        return launch

    def answer(self) -> Any:
        return formula(meaning(self.call), self.max_window)


def windowed(
    rows: Sequence[tuple[int, int]], heads: int, dim: int, pair: tuple[str, str] = PAIRS[0], keys: int = 300
) -> MxCall:
    """Random operands under the given windows."""
    starts, ends = (torch.tensor(column, dtype=torch.int32) for column in zip(*rows, strict=True))
    return make_call(len(rows), keys, heads, dim, pair, "full")._replace(starts=starts, ends=ends)


class MxPagedCase(NamedTuple):
    """A call with the width of its output, its output mode, and where blocks hold their bytes."""

    call: mx_paged.MxPagedCall
    columns: int
    clean_logits: bool
    layout: str = "flat"
    dtype: torch.dtype = torch.float32  # of the output

    def output(self) -> torch.Tensor:
        return output(self.call.q.shape[0] * self.call.q.shape[1], self.columns, self.dtype, False)

    def launch(self, kernel: Kernel[Any], out: torch.Tensor) -> Launch:
        inputs = PagedInputs(*self.call, paged_mqa_schedule(self.call.context_lens, 64, 3))
        if self.layout == "flydsl":  # its call is of a flat cache, by which it is judged
            kv_cache, kv_scale = mx_paged.apart(self.call, gap=16)
            inputs = inputs._replace(kv_cache=kv_cache, kv_scale=kv_scale)
        problem = paged_api.describe(inputs, self.clean_logits, out.dtype, self.layout)._replace(device=TARGET)
        (launch,) = kernel.prepare(problem, inputs, out, clean_logits=self.clean_logits, layout=self.layout)
        return launch

    def answer(self) -> Any:
        return mx_paged.formula(self.call, self.columns, "flat" if self.layout == "flydsl" else self.layout)


# Layout, formats, dims, keys of a block, next_n, heads.
PAGED = [
    ("flat", PAIRS[0], 128, 64, 1, 64),
    ("flat", PAIRS[1], 64, 48, 2, 16),
    ("preshuffled", PAIRS[2], 128, 16, 1, 32),
    ("gluon-16", PAIRS[0], 128, 64, 3, 16),
    ("gluon-32", PAIRS[0], 128, 64, 1, 32),
]
APART = ("flydsl", PAIRS[0], 128, 64, 1, 64)


def paged_case(
    layout: str, pair: tuple[str, str], dim: int, block: int, next_n: int, heads: int, lens: Sequence[int] = (1, 65, 0, 200)
) -> MxPagedCase:
    """Requests with one row each, or more; clean output where a tile lies in one block."""
    call = mx_paged.make_call(lens, next_n, heads, dim, block, pair, layout=layout, gap=16)
    return MxPagedCase(call, max(lens), block == 64, layout)
