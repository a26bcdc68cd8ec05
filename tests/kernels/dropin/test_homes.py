"""Where engines have DeepGEMM's functions from: packages, copies of them, globals that are filled late, and caches."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from capgate.kernels import dropin
from support import engine_sources, upstream
from support.dropins import activate, held, is_ours, ours

VENDORED = "vllm/third_party/deep_gemm/__init__.py"


@pytest.fixture
def vllm(site: Path) -> Path:
    """vLLM with a copy of DeepGEMM, and nothing else."""
    upstream.write_packages(site, {VENDORED: upstream.CURRENT})
    upstream.write_module(site / engine_sources.VLLM_FILE, engine_sources.VLLM)
    return site


def wrappers() -> Any:
    return importlib.import_module("vllm.utils.deep_gemm")


def filled() -> list[Any]:
    """What stands in the globals that vLLM's wrappers call."""
    return [getattr(wrappers(), name) for name in engine_sources.VLLM_GLOBALS]


def test_the_copy_in_vllm_is_found(vllm: Path) -> None:
    report = dropin.install("deep_gemm")
    assert {home for home, _ in held("deep_gemm")} == {"vllm.third_party.deep_gemm"}
    assert all(map(is_ours, held("deep_gemm").values()))
    assert "vllm.utils.deep_gemm" not in sys.modules, "nobody needed it"
    makers = {f"get_{kind}mqa_logits_metadata" for kind in ("paged_", "sparse_", "paged_sparse_")}
    assert {one.functions[0] for one in report.taken} == makers | {"fp8_fp4_mqa_logits"}


def test_a_package_of_its_own_comes_before_the_copy(vllm: Path) -> None:
    """As in vLLM; the copy is replaced as soon as somebody imports it."""
    upstream.write_packages(vllm, {"deep_gemm/__init__.py": upstream.INTERMEDIATE})
    dropin.install("deep_gemm")
    assert {home for home, _ in held("deep_gemm")} == {"deep_gemm"}
    copy = importlib.import_module("vllm.third_party.deep_gemm")
    assert is_ours(copy.fp8_fp4_mqa_logits)
    dropin.uninstall("deep_gemm")
    assert copy.fp8_fp4_mqa_logits.__module__ == "vllm.third_party.deep_gemm"


def test_a_package_that_fails_leaves_the_copy(vllm: Path, said: Callable[[], list[str]]) -> None:
    upstream.write_module(vllm / "deep_gemm/__init__.py", "raise OSError('no CUDA')")
    report = dropin.install("deep_gemm")
    (message,) = said()
    assert "(deep_gemm does not import: OSError: no CUDA)" in message
    assert "deep_gemm does not import: OSError: no CUDA" in {one.reason for one in report.left}
    assert all(map(is_ours, held("deep_gemm").values()))


@pytest.mark.parametrize("when", ["filled", "unfilled", "imported later"])
@pytest.mark.parametrize("variable", [True, False], ids=["variable", "install"])
def test_vllm_s_globals(vllm: Path, monkeypatch: pytest.MonkeyPatch, when: str, variable: bool) -> None:
    """They are filled once, at the first call: ours is there then, and theirs again afterwards, whenever the drop-in comes."""
    if when != "imported later":
        initialise = wrappers()._lazy_init
    if when == "filled":
        wrappers()._lazy_init()
    if variable:
        activate(monkeypatch, "deep_gemm")
    else:
        dropin.install("deep_gemm")
    wrappers()._lazy_init()
    assert all(map(is_ours, filled()))
    wrappers()._lazy_init()
    assert all(map(is_ours, filled()))
    if when != "imported later":
        assert wrappers()._lazy_init is initialise, "which has done its work"
    places = {place for one in dropin.states()["deep_gemm"]["taken"] for place in one["places"]}
    assert places >= {f"vllm.utils.deep_gemm.{name}" for name in engine_sources.VLLM_GLOBALS}
    dropin.uninstall("deep_gemm")
    copy = sys.modules["vllm.third_party.deep_gemm"]
    assert filled() == [copy.fp8_fp4_mqa_logits, copy.fp8_fp4_paged_mqa_logits, copy.get_paged_mqa_logits_metadata]
    assert not any(map(is_ours, filled()))


def test_vllm_s_globals_that_are_not_filled_yet(vllm: Path) -> None:
    module = wrappers()
    initialise = module._lazy_init
    report = dropin.install("deep_gemm")
    assert filled() == [None, None, None]
    assert any("vllm.utils.deep_gemm once _lazy_init has run" in one.places for one in report.taken)
    dropin.uninstall("deep_gemm")
    assert module._lazy_init is initialise
    module._lazy_init()
    assert not any(map(is_ours, filled()))


def test_vllm_s_globals_that_got_ours_by_themselves(vllm: Path) -> None:
    """Somebody who held the function that fills them has called it: what they were filled from was ours already."""
    initialise = wrappers()._lazy_init
    dropin.install("deep_gemm")
    initialise()
    assert all(map(is_ours, filled()))
    places = {place for one in dropin.states()["deep_gemm"]["taken"] for place in one["places"]}
    assert places >= {f"vllm.utils.deep_gemm.{name}" for name in engine_sources.VLLM_GLOBALS}
    assert "vllm.utils.deep_gemm once _lazy_init has run" not in places
    dropin.uninstall("deep_gemm")
    assert not any(map(is_ours, filled()))
    assert wrappers()._lazy_init is initialise


def test_vllm_passes_what_its_wrapper_says(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hands the longest window on in the sixth place, also to a DeepGEMM that has clean_logits there."""
    upstream.write_packages(vllm, {"deep_gemm/__init__.py": upstream.INTERMEDIATE})
    library, module = importlib.import_module("deep_gemm"), wrappers()
    module._lazy_init()
    dropin.install("deep_gemm")
    names = [list(inspect.signature(one.fp8_fp4_mqa_logits).parameters)[5] for one in (library,)]
    names.append(list(inspect.signature(module._fp8_fp4_mqa_logits_impl).parameters)[5])
    assert names == ["clean_logits", "max_seqlen_k"]
    assert list(inspect.signature(module._fp8_fp4_paged_mqa_logits_impl).parameters)[7] == "indices"
    dropin.uninstall("deep_gemm")
    assert module._fp8_fp4_mqa_logits_impl is library.fp8_fp4_mqa_logits


def test_vllm_s_globals_of_which_one_is_missing(vllm: Path, said: Callable[[], list[str]]) -> None:
    """A schedule without its reader is left, wherever it is."""
    upstream.write_packages(vllm, {"deep_gemm/__init__.py": (upstream.SCHEDULE,)})
    wrappers()._lazy_init()
    dropin.install("deep_gemm")
    assert not any(map(is_ours, filter(None, filled())))
    assert any("vllm.utils.deep_gemm offers no function that reads its schedules" in message for message in said())


def test_caches_that_hold_a_function_are_cleared(engines: Path) -> None:
    """SGLang asks once and keeps the answer. What no function is in is not touched."""
    upstream.write_module(engines / engine_sources.SGLANG_FILE, engine_sources.SGLANG)
    module = importlib.import_module("sglang.srt.layers.attention.dsa.utils")
    resolvers = [
        module.resolve_fp8_mqa_logits_fn,
        module.resolve_fp8_paged_mqa_logits_fn,
        module.resolve_paged_mqa_logits_metadata_fn,
    ]
    originals, processors = [resolve() for resolve in resolvers], module.resolve_num_sms()
    for _ in range(2):
        dropin.install("deep_gemm")
        assert all(is_ours(resolve()) for resolve in resolvers)
        dropin.uninstall("deep_gemm")
        assert [resolve() for resolve in resolvers] == originals
    assert module.resolve_num_sms() is processors


def test_a_cache_that_holds_the_library_is_cleared(vllm: Path) -> None:
    found = wrappers()._import_deep_gemm
    found()
    dropin.install("deep_gemm")
    assert found.cache_info().currsize == 0
    assert found() is sys.modules["vllm.third_party.deep_gemm"]


def test_sgl_deep_gemm_s_defaults_and_names(engines: Path) -> None:
    """It does not clean unless it is asked to, and calls the windows otherwise than DeepGEMM."""
    library = importlib.import_module("sgl_deep_gemm")
    wanted = {
        name: [(one.name, one.default) for one in inspect.signature(getattr(library, name)).parameters.values()][:6]
        for name in ("fp8_mqa_logits", "fp8_fp4_mqa_logits")
    }
    dropin.install("deep_gemm")
    for name, parameters in wanted.items():
        found = inspect.signature(getattr(library, name)).parameters.values()
        assert [(one.name, one.default) for one in found][:6] == parameters


def test_what_is_not_served_goes_to_the_library(engines: Path, said: Callable[[], list[str]]) -> None:
    """Its functions here fail when they are called; ours would have said what is wrong with the operands."""
    codes = torch.zeros(2, 1, 4, 16, dtype=torch.int8)
    for name in upstream.HOMES.values():
        importlib.import_module(name)
    dropin.install("deep_gemm")
    before = len(said())
    for name in upstream.HOMES.values():
        library = sys.modules[name]
        for _ in range(2):
            with pytest.raises(AssertionError):
                library.fp8_fp4_mqa_logits((codes, None), None, None, None, None, 1)
            with pytest.raises(AssertionError):
                library.fp8_fp4_paged_mqa_logits((codes, None), None, None, None, None, None, 1)
    assert len(said()) - before <= 2, "once for each function, and in a process"


def test_an_operator_of_a_namespace(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site may be a path from a module: here, to what a module's torch has in a namespace of operators."""
    from capgate.kernels.dropin.families import Family, Site

    source = "class torch:\n    class ops:\n        class _C:\n            scores = print\n"
    upstream.write_module(site / "vllm/_custom_ops.py", source)
    family = Family(("fp8_mqa_logits",), (Site("vllm._custom_ops", "torch.ops._C.scores"),))
    monkeypatch.setitem(dropin.DROPINS, "deep_gemm", (family,))
    report = dropin.install("deep_gemm")
    namespace = sys.modules["vllm._custom_ops"].torch.ops._C
    assert namespace.scores.__wrapped__ is ours("deep_gemm", "fp8_mqa_logits")
    assert report.taken[0].places == ("vllm._custom_ops.torch.ops._C.scores",)
    dropin.uninstall("deep_gemm")
    assert namespace.scores is print
