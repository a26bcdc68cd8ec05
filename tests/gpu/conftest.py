"""What the tests on a GPU share: NVIDIA or AMD, whatever branches the operation has here."""

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from capgate.kernels.mqa_logits.function import describe
from capgate.kernels.mqa_logits.operation import Problem, operation

JUDGE = Path(__file__).parents[1] / "kernels" / "judge.py"


def pytest_runtest_setup() -> None:
    """Every test of the folder skips for one reason; a hook, so that the summary shows one line."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch.cuda.is_available() is False")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs a GPU: TRITON_INTERPRET=1 runs Triton's kernels in the interpreter")


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU, its driver started."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _memory_goes_back() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"capgate_tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def judge() -> ModuleType:
    """tests/kernels/judge.py, loaded by its path."""
    return _load(JUDGE)


@pytest.fixture(scope="session")
def paged() -> ModuleType:
    """tests/kernels/paged.py, loaded by its path."""
    return _load(JUDGE.with_name("paged.py"))


@pytest.fixture(scope="session")
def selection() -> ModuleType:
    """tests/kernels/selection.py, loaded by its path."""
    return _load(JUDGE.with_name("selection.py"))


@pytest.fixture(scope="session")
def fp8(gpu: torch.device) -> torch.dtype:
    """The fp8 format that the GPU's matrix instructions read."""
    return getattr(torch, operation.example(gpu).dtype)


@pytest.fixture(params=list(operation.variants))
def branch(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    """Every branch that takes a serving call on this GPU."""
    return taken(request.param, operation.example(gpu))


def taken(branch: str, problem: Problem) -> str:
    """``branch``, if it takes the problem; otherwise the test skips with its reason."""
    trace = operation.explain(problem, variant=branch)
    if trace.variant is None:
        pytest.skip(next(f"{step.variant}: {step.reason}" for step in trace.steps if step.variant == branch))
    return branch


@pytest.fixture
def take(branch: str) -> Callable[[Any], None]:
    """Skips the test where the branch does not take a clean call with these operands."""
    return lambda call: taken(branch, describe(call.q, call.k, call.k_scale, call.weights, True, False)) and None


@pytest.fixture
def check(judge: ModuleType, branch: str) -> Callable[..., torch.Tensor]:
    """judge.check with the branch, where it takes such a call."""

    def check_branch(call: Any, *, clean_logits: bool = True, max_window: int | None = None, **keywords: Any) -> torch.Tensor:
        k_scale = call.k_scale[:, 0] if call.k_scale.ndim == 2 else call.k_scale
        problem = describe(call.q, call.k, k_scale, call.weights, clean_logits, max_window is not None)
        keywords |= {"clean_logits": clean_logits, "max_window": max_window}
        return judge.check(call, taken(branch, problem), **keywords)

    return check_branch
