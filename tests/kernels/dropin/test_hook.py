"""CAPGATE_DROPIN and the import hook: what engines import later is replaced, and no import of theirs fails for us."""

import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capgate import compat
from capgate.compat import SwitchError
from capgate.kernels import dropin
from support import upstream
from support.dropins import activate, is_ours

DENSE = "aiter.ops.triton.attention.fp8_mqa_logits"
PAGED = "aiter.ops.triton.attention.pa_mqa_logits"
OLD_DENSE = "aiter.ops.triton.fp8_mqa_logits"
ROCM = "vllm.v1.attention.ops.rocm_aiter_mla_sparse"


def test_without_the_variable_nothing_happens(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPGATE_DROPIN", raising=False)
    before = list(sys.meta_path)
    dropin.activate()
    activate(monkeypatch, " , ")
    assert sys.meta_path == before


def test_the_hook_replaces_what_is_imported_later(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    before = list(sys.meta_path)
    for _ in range(2):
        activate(monkeypatch, "aiter, vllm_rocm")
    assert not any(module.partition(".")[0] in upstream.PACKAGES for module in sys.modules), "it imports no library"
    assert len(sys.meta_path) == len(before) + 1

    import deep_gemm
    from aiter.ops.triton.attention.fp8_mqa_logits import fp8_mqa_logits

    assert is_ours(fp8_mqa_logits)
    assert PAGED not in sys.modules
    rocm = importlib.import_module(ROCM)
    assert is_ours(rocm.rocm_fp8_paged_mqa_logits)
    assert deep_gemm.fp8_mqa_logits.__module__ == "deep_gemm", "it was not named"
    assert [message.partition(":")[0] for message in said()] == ["drop-in aiter", "drop-in vllm_rocm"]

    dropin.uninstall("aiter")
    dropin.uninstall("vllm_rocm")
    assert sys.meta_path == before
    assert sys.modules[DENSE].fp8_mqa_logits.__module__ == DENSE
    assert importlib.import_module(PAGED).deepgemm_fp8_paged_mqa_logits.__module__ == PAGED


def test_what_is_loaded_already_is_replaced_at_once(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    import deep_gemm

    before = deep_gemm.fp8_mqa_logits
    activate(monkeypatch, "deep_gemm")
    assert is_ours(deep_gemm.fp8_mqa_logits)
    importlib.reload(deep_gemm)
    assert is_ours(deep_gemm.fp8_mqa_logits)
    dropin.uninstall("deep_gemm")
    assert deep_gemm.fp8_mqa_logits.__module__ == "deep_gemm"
    assert deep_gemm.fp8_mqa_logits is not before, "it is the reloaded module's"
    assert all(message.startswith("drop-in deep_gemm: ") for message in said())


def test_what_is_imported_after_an_install_follows(engines: Path) -> None:
    """Also a module that is renewed: taken out of the list of modules and imported again."""
    dropin.install("deep_gemm")
    first = sys.modules.pop("deep_gemm")
    assert is_ours(importlib.import_module("deep_gemm").fp8_mqa_logits)
    upstream.write_packages(engines, {"sgl_deep_gemm/__init__.py": upstream.SGL})
    assert is_ours(importlib.import_module("sgl_deep_gemm").fp8_mqa_logits)
    dropin.uninstall("deep_gemm")
    modules = (first, sys.modules["deep_gemm"], sys.modules["sgl_deep_gemm"])
    assert not any(is_ours(value) for module in modules for value in vars(module).values() if inspect.isfunction(value))


@pytest.mark.parametrize("first", [DENSE, OLD_DENSE])
def test_the_hook_with_modules_under_two_names(renaming: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """aiter's own finder comes before the hook, and both runs of the module are to be seen."""
    activate(monkeypatch, "aiter")
    names = [first, *({DENSE, OLD_DENSE} - {first})]
    found = []
    for name in names:
        scope: dict[str, Any] = {}
        exec(f"from {name} import fp8_mqa_logits", scope)
        found.append(scope["fp8_mqa_logits"])
    found += [sys.modules[name].fp8_mqa_logits for name in names]
    assert all(map(is_ours, found))


def test_a_module_found_through_the_hook_is_as_it_was(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = engines / "deep_gemm/__init__.py"
    file.write_text(file.read_text() + "def documented():\n    return 'a source'\n")
    activate(monkeypatch, "deep_gemm")
    spec = importlib.util.find_spec("deep_gemm")
    assert spec.origin == str(file)
    assert "deep_gemm" not in sys.modules, "a question imports nothing"
    import deep_gemm

    assert "a source" in inspect.getsource(deep_gemm.documented)
    assert deep_gemm.__spec__.loader.get_source("deep_gemm") == file.read_text()
    assert deep_gemm.__spec__.submodule_search_locations == [str(file.parent)]


# What is left is one warning


def test_what_is_left_is_a_warning(engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]) -> None:
    """An engine's import does not fail for it; what was replaced stays so."""
    (engines / "aiter/ops/triton/attention/pa_mqa_logits.py").write_text("")
    activate(monkeypatch, "aiter")
    dense = importlib.import_module(DENSE)
    importlib.import_module(PAGED)
    importlib.reload(sys.modules[PAGED])
    assert is_ours(dense.fp8_mqa_logits)
    words = f"left as they are: deepgemm_fp8_paged_mqa_logits ({PAGED} offers no such function)"
    assert said()[1:] == [f"drop-in aiter: {words}"], "it says so once"
    assert not issubclass(dropin.DropinError, ImportError), "install()'s error is none of an absent library"


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "later"])
def test_a_library_with_nothing_of_it_is_a_warning(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]], loaded: bool
) -> None:
    (engines / "deep_gemm/__init__.py").write_text("")
    if loaded:
        importlib.import_module("deep_gemm")
    activate(monkeypatch, "deep_gemm")
    importlib.import_module("deep_gemm")
    (message,) = said()
    assert message.count("deep_gemm offers no such function") == len(dropin.DROPINS["deep_gemm"])


def test_what_goes_wrong_with_us_is_a_warning(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """Whatever it is: here, our own module does not import."""
    monkeypatch.setitem(sys.modules, "capgate.kernels.dropin.vllm_rocm", None)
    activate(monkeypatch, "vllm_rocm")
    assert importlib.import_module(ROCM).rocm_fp8_mqa_logits.__module__ == ROCM
    assert said() == [f"drop-in vllm_rocm: nothing is replaced in {ROCM}"]


@pytest.mark.parametrize("file", ["attention/fp8_mqa_logits.py", "attention/pa_mqa_logits.py"])
def test_strictly_it_is_an_error_and_nothing_is_replaced(engines: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    (engines / "aiter/ops/triton" / file).write_text("")
    activate(monkeypatch, "aiter")
    with compat.override(strict=True), pytest.raises(dropin.DropinError, match=r"^aiter: cannot replace .* offers no such"):
        importlib.import_module(f"aiter.ops.triton.{file.removesuffix('.py').replace('/', '.')}")


@pytest.mark.parametrize("generation", upstream.GENERATIONS)
def test_strictly_every_generation_is_served(site: Path, monkeypatch: pytest.MonkeyPatch, generation: str) -> None:
    """That one has no functions of another's is nothing that falls short."""
    upstream.write_packages(site, {"deep_gemm/__init__.py": upstream.GENERATIONS[generation]})
    activate(monkeypatch, "deep_gemm")
    with compat.override(strict=True):
        module = importlib.import_module("deep_gemm")
    assert all(is_ours(value) for value in vars(module).values() if inspect.isfunction(value))


# The variable


def test_a_name_in_the_variable_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.meta_path)
    with pytest.raises(SwitchError, match=r"^CAPGATE_DROPIN: no drop-in 'vllm_roc'; the nearest are vllm_rocm"):
        activate(monkeypatch, "aiter,vllm_roc")
    assert sys.meta_path == before, "no other name of the variable takes effect"


def test_the_hook_goes_with_the_last_drop_in(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activate(monkeypatch, "aiter,deep_gemm")
    dropin.uninstall("aiter")
    assert len(upstream.hooks()) == 1
    dropin.uninstall("deep_gemm")
    assert not upstream.hooks()


def test_neither_torch_nor_a_library_is_imported_before_its_time(engines: Path) -> None:
    """In a new process, started as vLLM starts its own: it calls every entry point of its plugin group."""
    code = f"""
import sys
from importlib.metadata import entry_points

def loaded():
    return sorted(name for name in ("aiter", "deep_gemm", "torch", "triton", "vllm") if name in sys.modules)

(plugin,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "capgate"]
plugin.load()()
print(loaded())
from {ROCM} import rocm_fp8_mqa_logits
print("torch" in loaded(), "aiter" in loaded(), rocm_fp8_mqa_logits.__module__)
"""
    environment = {"PATH": "/usr/bin", "CAPGATE_DROPIN": "vllm_rocm,aiter", "PYTHONPATH": f"{engines}:{':'.join(sys.path)}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "[]"
    assert second.split()[:2] == ["True", "False"]
    assert second.split()[2].startswith("capgate.kernels.dropin.vllm_rocm")
    assert f"drop-in vllm_rocm: capgate's functions are in the place of {ROCM}." in done.stderr
    assert f"{ROCM}.rocm_fp8_mqa_logits" in done.stderr
