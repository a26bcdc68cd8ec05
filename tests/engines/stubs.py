"""What the engines' sessions cannot have on a CPU, in one place: each stub says what it stands for.

All else is the real packages. A stub of a compiled function does nothing but say that it was reached: whatever a test gets
without that, the engine's own Python and capgate have computed.
"""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

SMS = 132  # multiprocessors of the H100 that is stood in for


class Reached(Exception):  # noqa: N818 - where it is expected, it is no error
    """A compiled function of a library was called: its name, and what it got."""

    def __init__(self, name: str, *arguments: Any, **keywords: Any) -> None:
        super().__init__(name)
        self.name, self.arguments, self.keywords = name, arguments, keywords


def only_in_the_session_of(engine: str) -> None:
    """Skip a test module anywhere else: the stubs are for one process, and the engine is not installed there."""
    if os.environ.get("ENGINE_UNDER_TEST") != engine:
        pytest.skip(f"needs {engine} itself: nox -s 'engines({engine})' installs it", allow_module_level=True)


def module(name: str, **attributes: Any) -> ModuleType:
    """A module that is found under this name from now on."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, is_package=True)
    made.__path__ = []
    made.__file__ = __file__
    vars(made).update(attributes)
    sys.modules[name] = made
    return made


def anything(name: str) -> None:
    """A module whose every attribute is a class of that name, for what is imported and not used."""
    module(name, __getattr__=lambda attribute: _class(attribute))


def _class(attribute: str) -> type:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return type(attribute, (), {})


class _Compiled:
    """A compiled function."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def default(self) -> "_Compiled":
        """The overload of this name, as an operator of torch has it."""
        return self

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        raise Reached(self._name, *arguments, **keywords)


class _Operators:
    """A namespace of compiled operators.

    harmless : those that are called while the library is imported, with what they return
    """

    def __init__(self, name: str, **harmless: Any) -> None:
        self._name, self._harmless = name, harmless

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if attribute in self._harmless:
            function: Any = lambda *_: self._harmless[attribute]  # noqa: E731 - it gets an attribute
            function.default = function
        else:
            function = _Compiled(f"{self._name}.{attribute}")
        setattr(self, attribute, function)
        return function


@functools.cache
def for_deep_gemm() -> None:
    """DeepGEMM's extension modules (sgl-deep-gemm's _C.so, vLLM's _C_extension.abi3.so), which are linked with CUDA."""
    called_at_import = dict.fromkeys(("init", "shutdown", "set_num_sms", "set_pdl", "set_mlopart_callbacks"))
    operators = _Operators("deep_gemm", **called_at_import, get_num_sms=SMS, get_pdl=True)
    torch.ops.deep_gemm = operators
    load = torch.ops.load_library
    torch.ops.load_library = lambda path: None if "deep_gemm" in Path(path).parts else load(path)
    if not (Path(os.environ.get("CUDA_HOME", "")) / "bin").exists():
        os.environ["CUDA_HOME"] = "/usr"  # it is asked for at import; nothing is compiled


# The schemas are vLLM's own (csrc/libtorch_stable/torch_bindings.cpp). There is no kernel for the CPU behind them.
_VLLM_OPERATORS = {
    "_C": (
        "top_k_per_row_prefill(Tensor logits, Tensor rowStarts, Tensor rowEnds, Tensor! indices, int numRows, int stride0, "
        "int stride1, int topK) -> ()",
        "top_k_per_row_decode(Tensor logits, int next_n, Tensor seq_lens, Tensor! indices, int numRows, int stride0, "
        "int stride1, int topK) -> ()",
        "persistent_topk(Tensor logits, Tensor lengths, Tensor! output, Tensor workspace, int k, int max_seq_len) -> ()",
        "cooperative_topk(Tensor logits, Tensor lengths, Tensor! output, Tensor workspace, int k, int max_seq_len) -> ()",
    ),
    "_C_cache_ops": (
        "indexer_k_quant_and_cache(Tensor k, Tensor! kv_cache, Tensor slot_mapping, int quant_block_size, "
        "str kv_cache_dtype) -> ()",
        "cp_gather_indexer_k_quant_cache(Tensor kv_cache, Tensor! dst_k, Tensor! dst_scale, Tensor block_table, "
        "Tensor cu_seq_lens) -> ()",
    ),
}
_libraries: list[torch.library.Library] = []  # an operator lasts as long as the library that defines it


@functools.cache
def for_vllm(capability: tuple[int, int] = (9, 0)) -> None:
    """A CUDA device of this capability, and vLLM's extension modules.

    Tensors are on the CPU: the platform says so where it is asked for a dispatch key, and else answers as on an H100.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that vLLM takes Triton although no driver is active
    for name in ("_C_stable_libtorch", "_moe_C_stable_libtorch"):  # CUDA extensions; the operators that count are below
        module(f"vllm.{name}")
    for namespace, schemas in _VLLM_OPERATORS.items():
        library = torch.library.Library(namespace, "FRAGMENT")
        for schema in schemas:
            library.define(schema)
        _libraries.append(library)
    # Grammars for structured output: compiled, and nothing of the indexer's.
    for name in ("llguidance", "xgrammar", "xgrammar.structural_tag", "xgrammar.openai_tool_call_schema"):
        anything(name)
    for_deep_gemm()
    torch.accelerator.empty_cache = lambda: None  # an accelerator's allocator, which vLLM's workspaces make room in
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Platform(NonNvmlCudaPlatform):
        """A CUDA device without a driver."""

        dispatch_key = "CPU"

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*capability)

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return SMS

        @classmethod
        def is_pin_memory_available(cls) -> bool:
            return False

    vllm.platforms._current_platform = Platform()


@functools.cache
def for_sglang() -> None:
    """What SGLang's import needs of CUDA."""
    for_deep_gemm()


@functools.cache
def for_sgl_kernel() -> None:
    """sgl_kernel, which is compiled and half a gigabyte: three of its names, where SGLang imports them from."""
    names = ("fast_topk_v2", "fast_topk_transform_fused", "fast_topk_transform_ragged_fused")
    functions = {name: _Compiled(f"sgl_kernel.{name}") for name in names}
    module("sgl_kernel", top_k=module("sgl_kernel.top_k", **functions), **functions)


@contextmanager
def aiter_arch(arch: str) -> Iterator[None]:
    """An AMD driver with a GPU of this architecture, which aiter asks for when it is imported."""
    import triton

    target = SimpleNamespace(backend="hip", arch=arch, warp_size=64)
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))
    try:
        yield
    finally:
        triton.runtime.driver.set_active(before)


_ENUMERATIONS = ("ActivationType", "QuantType", "MlaVersion")


@functools.cache
def for_aiter() -> None:
    """A ROCm installation with an MI355X, and the enumerations that aiter compiles with hipcc when it is first imported."""
    folder = Path(tempfile.mkdtemp(prefix="rocm-"))
    atexit.register(shutil.rmtree, folder)
    (folder / ".info").mkdir()
    (folder / ".info" / "version").write_text("7.0.0\n")
    (folder / "bin").mkdir()
    rocminfo = folder / "bin" / "rocminfo"  # as far as aiter reads its answer
    lines = ("Agent 1", "  Name: gfx950", "  Compute Unit: 256", "  Device Type: GPU")
    rocminfo.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    rocminfo.chmod(0o755)
    os.environ |= {"ROCM_HOME": str(folder), "GPU_ARCHS": "gfx950", "CU_NUM": "256", "AITER_LOG_LEVEL": "WARNING"}
    module("aiter.jit.module_aiter_core", **{name: _enumeration(name) for name in _ENUMERATIONS})


def _enumeration(name: str) -> type:
    """An enumeration as pybind11 makes it: aiter knows one by how its documentation begins. It has any member."""

    def member(kind: type, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return kind()

    of_class = type("Enumeration", (type,), {"__getattr__": member})
    return of_class(name, (), {"__init__": lambda self, value=0: None, "__doc__": "Members:", "value": 0, "name": name})
