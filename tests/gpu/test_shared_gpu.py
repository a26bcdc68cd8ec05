"""Right in every cell while other processes run kernels on the same GPU, which stops programs anywhere and resumes them.

What is wrong in shared memory may never show on a GPU of one's own. By itself: pytest -m gpu tests/gpu/test_shared_gpu.py
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

import pytest
import torch

from capgate import compat
from support.processes import environment

pytestmark = pytest.mark.gpu

SCORERS = 6
PASSING = 3  # processes that come and go all the time: as one ends, or is killed, the others' kernels are stopped and resumed
SECONDS = 75.0  # of calls in each scorer
STARTING = 150.0  # seconds for what comes before: processes, operands, compiles
GIGABYTES = 4.0  # of GPU memory for each process


class Sharer:
    """A running support.sharing; ``said`` is what it has printed so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: IO[bytes]) -> None:
        self.process, self._output = process, output

    def said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")


def share(kinds: Sequence[str], device: str, seconds: float, patience: float) -> list[str]:
    """Run support.sharing once for each of the kinds, side by side; what each of them printed at its end.

    Beside them runs one that is "busy", and PASSING of them that end by themselves and are followed by others. The first that
    fails, or all that are not done after ``patience`` seconds, are a failure of the test. None outlives it.
    """
    with ExitStack() as stack:

        def start(kind: str) -> Sharer:
            output = stack.enter_context(tempfile.TemporaryFile())
            command = [sys.executable, "-m", "support.sharing", kind, device, str(seconds)]
            process = subprocess.Popen(
                command, env=environment(), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
            )
            stack.enter_context(process)  # waits for it, at last
            stack.callback(process.kill)  # before that
            return Sharer(process, output)

        busy, scorers, passing = start("busy"), [start(kind) for kind in kinds], [start("passing") for _ in range(PASSING)]
        deadline = time.monotonic() + patience
        while any(scorer.process.poll() is None for scorer in scorers):
            failed = [each for each in scorers if each.process.returncode]
            assert not failed, failed[0].said()[-3000:]
            assert busy.process.poll() is None, busy.said()[-3000:]
            waiting = [each.said()[-500:] for each in scorers if each.process.returncode is None]
            assert time.monotonic() < deadline, f"not done after {patience:g} s: {len(waiting)} processes, which said {waiting}"
            for number, each in enumerate(passing):
                if each.process.poll() is not None:
                    assert not each.process.returncode, each.said()[-3000:]
                    passing[number] = start("passing")
            time.sleep(0.2)
        failed = [each for each in scorers if each.process.returncode]
        assert not failed, failed[0].said()[-3000:]
        assert busy.process.poll() is None, busy.said()[-3000:]
        return [scorer.said() for scorer in scorers]


@pytest.mark.parametrize("kind", ["clean", "others"])
def test_every_cell_beside_other_processes(gpu: torch.device, kind: str) -> None:
    """The variant that an engine gets: with -inf outside the windows, and in all other ways."""
    caps = compat.capabilities(gpu)
    if not (caps.fp8_e4m3fn or caps.fp8_e4m3fnuz):
        pytest.skip(caps.why("fp8_e4m3fn"))
    needed = GIGABYTES * (SCORERS + 1 + PASSING)
    free, _ = torch.cuda.mem_get_info()
    if free < needed * 1e9:
        pytest.skip(f"needs {needed:g} GB of GPU memory, {free / 1e9:.1f} GB are free")
    for said in share([kind] * SCORERS, str(gpu), SECONDS, SECONDS + STARTING):
        calls, _, rest = said.splitlines()[-1].partition(" ")
        assert rest == "calls", said[-3000:]
        assert int(calls) >= 100, said[-3000:]
