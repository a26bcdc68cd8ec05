"""What the tests of the kernels share. They run on CPU tensors; the Triton variant does so in Triton's interpreter."""

import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Skips the test where Triton kernels cannot run on CPU tensors."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs a Triton kernel on CPU tensors: needs TRITON_INTERPRET=1 in the environment")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands take the CPU and its small sizes, also where a GPU is at hand."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The tensors are too small to share out: on two busy cores the threads would mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _language_is_patched_once_a_launch() -> Iterator[None]:
    """Triton's interpreter puts its functions into triton.language, and does so anew at every call of a device function, which
    is a quarter of its time: what a launch has patched stays so until it ends."""
    if os.environ.get("TRITON_INTERPRET") != "1" or sys.modules.get("triton", ...) is None:
        yield
        return
    from triton import language as tl
    from triton.runtime import interpreter

    patch, call = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[frozenset[int]] = set()  # the modules that a function names triton.language, or its core

    def patch_once(function: Any) -> Any:
        modules = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
        if modules in patched:
            return None
        patched.add(modules)
        return patch(function)

    def launch(self: Any, *arguments: Any, **keywords: Any) -> Any:
        patched.clear()
        return call(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(interpreter, "_patch_lang", patch_once)
        replaced.setattr(interpreter.GridExecutor, "__call__", launch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_computed_that_nobody_reads() -> Iterator[None]:
    """Where it does not debug, Triton's interpreter computes for each sum, difference and product of integers whether it
    overflows, and drops the answer; and for each array it makes a table of all dtypes. Both are nearly half of its time."""
    if os.environ.get("TRITON_INTERPRET") != "1" or sys.modules.get("triton", ...) is None:
        yield
        return
    from triton.runtime import interpreter

    semantic, dtype_of = type(interpreter.interpreter_semantic), interpreter._get_np_dtype
    check, dtypes = semantic.binary_op_sanitize_overflow_impl, dict[str, Any]()

    def check_where_it_is_said(self: Any, *operands: Any) -> None:
        if self.builder is not interpreter.interpreter_builder or self.builder.options.debug:
            check(self, *operands)

    def known_dtype(of: Any) -> Any:
        if (name := of.scalar.name) not in dtypes:
            dtypes[name] = dtype_of(of)
        return dtypes[name]

    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(semantic, "binary_op_sanitize_overflow_impl", check_where_it_is_said)
        replaced.setattr(interpreter, "_get_np_dtype", known_dtype)
        yield


@pytest.fixture(autouse=True)
def _interpreters_own_warning() -> Iterator[None]:
    """The interpreters of Triton 3.5 and 3.6 use what numpy 2.4 took away, and numpy 2.3 warns of it at every loop."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Conversion of an array with ndim > 0", DeprecationWarning, r"triton\.runtime\.interpreter"
        )
        yield


@pytest.fixture(params=[pytest.param("reference", marks=pytest.mark.any_triton), "classic"])
def variant(request: pytest.FixtureRequest) -> str:
    """Every variant that can run on CPU tensors."""
    if request.param == "classic":
        request.getfixturevalue("interpreter")
    return request.param
