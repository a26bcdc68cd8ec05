"""``capgate verify`` with its kernels in the emulator: what a machine with a gfx950 would run, by the command's own entry.

    python tests/support/emulated_verify.py FILE.json [operation ...]

writes the file of a run whose cases were executed in the emulator. Tensors lie on the CPU and are taken for a gfx950's, and a
kernel that would be launched is compiled for it and executed instruction by instruction.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, as pytest has it there

import pytest
import torch
from triton.compiler import ASTSource

from capgate.compat import Kernel, targets
from capgate.kernels.tools.verify.child import Child, answer
from capgate.kernels.tools.verify.document import EMULATOR, Run
from capgate.kernels.tools.verify.jobs import Job
from capgate.kernels.tools.verify.verdicts import Row
from capgate.kernels.tools.verify.verification import Verification
from emulator import parse, run
from support.emulated_mqa import TARGET
from support.emulation import bound, compile_launch

CPU = torch.device("cpu")


@contextmanager
def gfx950_in_the_emulator() -> Iterator[None]:
    """The CPU is taken for a gfx950, and launches go to the emulator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "of_device", lambda device: TARGET)
        patch.setattr(Kernel, "launch", _launch)
        yield


def _launch(kernel: Kernel[Any], problem: Any, *operands: Any, **options: Any) -> None:
    for launch in kernel.prepare(problem, *operands, **options):
        compiled = compile_launch(launch, _source_of(launch.kernel))
        arguments, lds = bound(compiled, launch.arguments), compiled.metadata.shared
        run(parse(compiled.asm["amdgcn"]), launch.grid, arguments, lds_bytes=lds, measure=False)


def _source_of(kernel: Any) -> Any:
    if not getattr(kernel, "is_gluon", lambda: False)():
        return ASTSource
    from capgate.compat.gluon import GluonASTSource

    return GluonASTSource


class InProcess:
    """Runs jobs one after the other in this process, in the place of :class:`.jobs.Runner`."""

    def __init__(self) -> None:
        self._child = Child(CPU, small=True, flush_bytes=0)

    def side_by_side(self, groups: Sequence[Sequence[Job]], workers: int) -> Iterator[tuple[Job, Row]]:
        for job in (job for group in groups for job in group):
            *_, row = answer(self._child, job)
            yield job, row


def verified(operations: Sequence[str], variants: Sequence[str], *, quick: bool) -> Run:
    """What the command finds of these operations' variants, every case executed in the emulator."""
    with gfx950_in_the_emulator():
        verification = Verification(operations, variants, quick=quick, timed=False)
        verification.found["executed"] = EMULATOR
        verification.found["stack"]["device"] = "gfx950"
        for _ in verification.go_on(InProcess(), 1):
            pass
    return verification.found


if __name__ == "__main__":
    file, *names = sys.argv[1:]
    kernels = ("gluon_cdna4", "classic")  # the reference is torch's, which the emulator does not execute
    Path(file).write_text(json.dumps(verified(names, kernels, quick=True), indent=1))
