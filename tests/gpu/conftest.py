"""What the tests on a GPU share: NVIDIA or AMD, whatever variants the operation has here."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from capgate.kernels.common.logits import empty_logits
from capgate.kernels.mqa_logits.api import describe
from capgate.kernels.mqa_logits.operands import Inputs
from capgate.kernels.mqa_logits.operation import operation
from support import judge
from support.processes import environment
from support.taking import taken

FOLDER = Path(__file__).parent


def why_not() -> str:
    """Why no test of the folder can run here, or ""."""
    if not torch.cuda.is_available():
        return "needs a GPU: torch.cuda.is_available() is False"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "needs a GPU: TRITON_INTERPRET=1 runs Triton's kernels in the interpreter"
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where none can run, one test of each function says so: thousands of reports would take longer than many a test."""
    if not why_not():
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        first.setdefault(item.nodeid.partition("[")[0] if FOLDER in item.path.parents else item.nodeid, item)
    kept = set(first.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = first.values()


def pytest_runtest_setup() -> None:
    """Every test of the folder skips for one reason; a hook, so that the summary shows one line."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU, its driver started."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _memory_goes_back() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def fp8(gpu: torch.device) -> torch.dtype:
    """The fp8 format that the GPU's matrix instructions read."""
    return getattr(torch, operation.example(gpu).dtype)


@pytest.fixture(params=list(operation.variants))
def variant(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    """Every variant that takes a serving call on this GPU."""
    return taken(operation, operation.example(gpu), request.param)


@pytest.fixture
def take(variant: str) -> Callable[[Any], None]:
    """Skips the test where the variant does not take a clean call with these operands into a new tensor."""

    def take_call(call: Any) -> None:
        out = empty_logits((call.q.shape[0], call.k.shape[0]), call.q.device)
        taken(operation, describe(Inputs(*call), out, True, False), variant)

    return take_call


@pytest.fixture
def check(variant: str) -> Callable[..., torch.Tensor]:
    """judge.check with the variant, where it takes such a call; into rows on 16-byte boundaries unless ``out`` is given."""

    def check_variant(
        call: Any,
        *,
        clean_logits: bool = True,
        max_window: int | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, columns = call.q.shape[0], call.k.shape[0] if max_window is None else max_window
        out = judge.sentinels(rows, columns, "cuda", gap=-columns % 4 + 4, offset=4) if out is None else out
        k_scale = call.k_scale[:, 0] if call.k_scale.ndim == 2 else call.k_scale
        inputs = Inputs(*call)._replace(k_scale=k_scale)
        problem = describe(inputs, out, clean_logits, max_window is not None)
        keywords = {"clean_logits": clean_logits, "max_window": max_window, "out": out}
        return judge.check(call, taken(operation, problem, variant), **keywords)

    return check_variant


# Options of each of compute-sanitizer's tools, and how its last line begins when it has found nothing. racecheck looks at
# shared memory, which PyTorch's kernels use too, at length: it follows ours alone. And not gluon_hopper's, whose specialised
# warps meet at mbarriers: racecheck does not see these order anything, and reports even the words by which Triton starts the
# warps.
SANITIZERS = {
    "memcheck": (["--padding", "1024"], "ERROR SUMMARY: 0 errors"),
    "racecheck": (["--kernel-name", "kns=mqa_logits"], "RACECHECK SUMMARY: 0 hazards"),
}


class Sanitizer:
    """compute-sanitizer with one of its tools."""

    def __init__(self, tool: str, path: str) -> None:
        self.tool, self._path = tool, path

    def passes(self, code: str, *arguments: str, calls: int) -> None:
        """Python code runs with the tool's name and ``arguments`` behind it, says that it made so many calls at least, and the
        tool finds nothing. Every tensor is an allocation of its own, so that a read or write past its end is seen.
        """
        options, clean = SANITIZERS[self.tool]
        command = [self._path, "--tool", self.tool, *options, "--error-exitcode", "9"]
        run = subprocess.run(
            [*command, sys.executable, "-c", code, self.tool, *arguments],
            capture_output=True,
            text=True,
            timeout=1200,
            env=environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        )
        said = run.stdout + run.stderr
        assert run.returncode == 0, said[-6000:]
        assert clean in said, said[-6000:]
        assert int(run.stdout.partition(" calls")[0].split()[-1]) >= calls


@pytest.fixture(params=list(SANITIZERS))
def sanitizer(request: pytest.FixtureRequest) -> Sanitizer:
    """Each of the tools, where compute-sanitizer is installed; otherwise the test skips."""
    path = shutil.which("compute-sanitizer")
    if path is None:
        pytest.skip("compute-sanitizer is not on PATH")
    return Sanitizer(request.param, path)
