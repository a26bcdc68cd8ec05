"""MQA logits in the emulator: a variant's compiled kernel, launched on a call and held against the formula in float64.

For gfx1250 there is no emulator: the LLVM IR of which its machine code is made is executed instead.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from triton.compiler import ASTSource

from capgate.compat import Kernel, Launch, Target, capabilities
from capgate.kernels.mqa_logits import classic
from capgate.kernels.mqa_logits.api import describe
from capgate.kernels.mqa_logits.operands import Inputs
from emulator import Program, Result, parse, run

from . import llvm_execution
from .emulation import GFX942, GFX950, GFX1250, bound, compile_launch
from .judge import BF16_ROUNDING, WORDS, Call, formula, make_call, sentinels, storage_of

TARGET = Target("hip", "gfx950", 64)
LIMIT = 1e-6  # of a cell's error, as a part of the sum of magnitudes


class Variant(NamedTuple):
    """A variant's kernel, the kind of source that it is, and what it is compiled for."""

    kernel: Kernel[Any]
    make_source: Callable[..., Any] = ASTSource
    target: Any = GFX950


def _on(target: Any, variant: Variant) -> Variant:
    """The variant as a call on the target would launch it."""

    def prepare_there(problem: Any, *operands: Any, **options: Any) -> Any:
        device = Target(target.backend, target.arch, target.warp_size)
        return variant.kernel.prepare(problem._replace(device=device), *operands, **options)

    return variant._replace(kernel=Kernel(prepare_there), target=target)


def on_gfx942(variant: Variant) -> Variant:
    return _on(GFX942, variant)


def on_gfx1250(variant: Variant) -> Variant:
    return _on(GFX1250, variant)


def turned(call: Any) -> Any:
    """The call with the heads of a row's queries side by side, and not their dims."""
    return call._replace(q=call.q.transpose(-1, -2).contiguous().transpose(-1, -2))


def spills_nothing(prepared: "Prepared") -> bool:
    """Whether the compiled kernel keeps no register in memory."""
    return not re.search(r"gpr_spill_count: +[1-9]", prepared.compiled.asm["amdgcn"])


def with_64_bit_offsets(variant: Variant) -> Variant:
    """The variant as calls beyond 2 GiB launch it, for small ones."""

    def prepare_wide(*arguments: Any, **options: Any) -> Any:
        from capgate.compat.gluon import gl

        (launch,) = variant.kernel.prepare(*arguments, **options)
        return launch._replace(keywords={**launch.keywords, "INDEX": gl.int64})

    return variant._replace(kernel=Kernel(prepare_wide))


VARIANTS = {"classic": Variant(classic.kernel)}
if capabilities(TARGET).gluon_cdna4:
    from capgate.compat.gluon import GluonASTSource
    from capgate.kernels.mqa_logits import gluon_cdna4

    VARIANTS["gluon_cdna4"] = Variant(gluon_cdna4.kernel, GluonASTSource)


def output(rows: int, columns: int, dtype: torch.dtype, aligned: bool) -> torch.Tensor:
    """Sentinels whose rows lie anyhow, or begin at multiples of 1024 bytes."""
    return sentinels(rows, columns, dtype=dtype, **{"gap": -columns % (1024 // dtype.itemsize)} if aligned else {})


class Case(NamedTuple):
    """A call, its output mode and its output, with cells that must keep their bits."""

    call: Call
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
        return formula(self.call, self.max_window)


WINDOWS: dict[str, Sequence[tuple[int, int]]] = {
    "full": [(0, 300)] * 5,
    "empty": [(0, 0), (7, 7), (300, 300), (128, 128), (0, 0)],
    "inverted": [(200, 100), (1, 0), (300, 0), (0, 300), (299, 2)],
    "past the ends": [(-5, 20), (250, 1000), (-(2**31), 2**31 - 1), (400, 500), (299, 301)],
    "extremes": [(0, -(2**31)), (2**31 - 1, 2**31 - 1), (2**31 - 1, -(2**31)), (-(2**31), 1), (299, 2**31 - 1)],
    "start > 0": [(1, 300), (129, 130), (127, 257), (17, 200), (255, 300)],
    "neighbours": [(0, 90), (90, 140), (140, 141), (141, 270), (270, 300)],
}


def windowed(
    rows: Sequence[tuple[int, int]],
    heads: int,
    dim: int,
    keys: int = 300,
    seed: int = 0,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> Call:
    """Random operands under the given windows."""
    starts, ends = (torch.tensor(column, dtype=torch.int32) for column in zip(*rows, strict=True))
    return make_call(len(rows), keys, heads, dim, "full", seed=seed, dtype=dtype)._replace(starts=starts, ends=ends)


class Prepared(NamedTuple):
    """A case's launch: everything but the emulator's switches."""

    case: Any  # a Case, or what has its methods
    compiled: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    out: torch.Tensor
    answer: Any  # what the formula gives


def prepare(variant: Variant, case: Any) -> Prepared:
    out = case.output()
    launch = case.launch(variant.kernel, out)
    return Prepared(
        case, compile_launch(launch, variant.make_source, variant.target), launch.grid, launch.arguments, out, case.answer()
    )


class Disagreement(AssertionError):  # noqa: N818
    """The kernel ran, and wrote something else than the formula asks for."""


def fresh(prepared: Prepared) -> torch.Tensor:
    """Sentinels in all of the output's memory, and a copy of them."""
    case, out = prepared.case, prepared.out
    memory = storage_of(out, WORDS[out.dtype])
    memory.copy_(storage_of(case.output(), WORDS[out.dtype]))
    return memory.clone()


def place_of_output(prepared: Prepared) -> int:
    return next(number for number, argument in enumerate(prepared.arguments) if argument is prepared.out)


def execute(prepared: Prepared, program: Program | None = None, **emulation: Any) -> Result:
    """Launch into fresh sentinels and check every byte of the output.

    program : another version of the compiled kernel's code
    """
    before = fresh(prepared)
    result = run(
        program or parse(prepared.compiled.asm["amdgcn"]),
        prepared.grid,
        bound(prepared.compiled, prepared.arguments, [prepared.out]),
        lds_bytes=prepared.compiled.metadata.shared,
        **emulation,
    )
    check(prepared, before, result.written[place_of_output(prepared)])
    return result


def execute_llvm_ir(prepared: Prepared, **execution: Any) -> None:
    """As :func:`execute`, of the LLVM IR of a kernel for gfx1250."""
    before = fresh(prepared)
    arguments = bound(prepared.compiled, prepared.arguments, [prepared.out])
    written = llvm_execution.run(prepared.compiled, prepared.grid, arguments, **execution)
    check(prepared, before, written[place_of_output(prepared)])


def worst_error(prepared: Prepared) -> float:
    """Of the cells that the last execution wrote, the largest error as a part of the cell's sum of magnitudes."""
    answer = prepared.answer
    errors = (prepared.out.double() - answer.logits).abs()[answer.inside]
    return float((errors / answer.magnitude[answer.inside].clamp_min(1e-30)).max()) if len(errors) else 0.0


def check(prepared: Prepared, before: torch.Tensor, written: np.ndarray | None) -> None:
    """Every cell of the windows agrees, others are -inf or untouched, and so is what lies between the rows."""
    case, out, answer = prepared.case, prepared.out, prepared.answer
    expected = answer.inside | case.clean_logits
    address = torch.arange(before.numel()).as_strided(out.shape, out.stride(), out.storage_offset())
    cells = torch.zeros(before.numel(), dtype=torch.bool)
    cells[address[expected]] = True
    assert written is not None
    stored = torch.from_numpy(written.reshape(-1, out.itemsize).any(axis=1))
    if not torch.equal(stored, cells):
        raise Disagreement(
            f"{int((stored & ~cells).sum())} words stored to no cell, {int((cells & ~stored).sum())} cells not stored"
        )
    if case.clean_logits and not torch.isneginf(out[~answer.inside]).all():
        raise Disagreement("a cell outside the windows is not -inf")
    limit = LIMIT * answer.magnitude
    if out.dtype == torch.bfloat16:
        limit = limit + BF16_ROUNDING * answer.logits.abs()
    close = (out.double() - answer.logits).abs() <= limit  # a NaN is not
    right = (close | (out == answer.logits))[answer.inside]  # -inf where a key is not in the cache
    if not right.all():
        raise Disagreement(f"{int((~right).sum())} cells of {right.numel()} disagree with the formula")
