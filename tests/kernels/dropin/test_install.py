"""Putting drop-ins in place and taking them away."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capgate.kernels import dropin
from support import upstream
from support.dropins import activate, functions, held, homes, is_ours, ours

DENSE = "aiter.ops.triton.attention.fp8_mqa_logits"
PAGED = "aiter.ops.triton.attention.pa_mqa_logits"
OLD_DENSE = "aiter.ops.triton.fp8_mqa_logits"


def stands(value: Any, name: str, function: str) -> bool:
    """Whether ours of this drop-in stands there."""
    return is_ours(value) and value.__wrapped__ is ours(name, function)


@pytest.mark.parametrize("name", dropin.DROPINS)
def test_install_and_uninstall(engines: Path, name: str, said: Callable[[], list[str]]) -> None:
    for modules in homes(name).values():
        importlib.import_module(modules[0])
    originals = held(name)
    assert originals

    report = dropin.install(name)
    assert all(map(is_ours, held(name).values()))
    assert {place for one in report.taken for place in one.places} == {f"{home}.{function}" for home, function in originals}
    assert {function for one in report.taken for function in one.functions} == {function for _, function in originals}
    (message,) = said()
    assert message.startswith(f"drop-in {name}: ")
    assert all(f"{home}.{function}" in message for home, function in originals)

    assert dropin.install(name) == report
    assert len(said()) == 1, "it says so once"
    dropin.uninstall(name)
    assert all(held(name)[place] is original for place, original in originals.items())
    dropin.uninstall(name)
    assert len(said()) == 1


def test_one_drop_in_leaves_the_others_alone(engines: Path) -> None:
    dropin.install("vllm_rocm")
    assert not any(module.startswith(("aiter", "deep_gemm")) for module in sys.modules)
    dropin.install("deep_gemm")
    dropin.uninstall("vllm_rocm")
    assert all(function.__module__.startswith("capgate.kernels.dropin.deep_gemm") for function in held("deep_gemm").values())


def test_num_sms_stays_deep_gemm_s(engines: Path) -> None:
    """Its matmuls use them too."""
    file = engines / "deep_gemm/__init__.py"
    file.write_text(file.read_text() + "def get_num_sms(): return 5\ndef set_num_sms(n): pass\n")
    import deep_gemm

    before = deep_gemm.get_num_sms, deep_gemm.set_num_sms
    dropin.install("deep_gemm")
    assert (deep_gemm.get_num_sms, deep_gemm.set_num_sms) == before


def test_engines_that_hold_the_function_already(engines: Path) -> None:
    """They get ours and the very original back, also those that import it in between; nobody else's globals are touched."""
    source = f"from {DENSE} import fp8_mqa_logits as scores"
    for name in ("atom/models/deepseek.py", "vllm/utils/wrapper.py", "sglang/indexer.py"):
        upstream.write_module(engines / name, source)
    (engines / "my_benchmark.py").write_text(source)
    early = [importlib.import_module(name) for name in ("atom.models.deepseek", "vllm.utils.wrapper", "my_benchmark")]
    original = early[0].scores

    dropin.install("aiter")
    late = importlib.import_module("sglang.indexer")
    assert early[0].scores is early[1].scores is late.scores
    assert stands(late.scores, "aiter", "fp8_mqa_logits")
    assert early[2].scores is original
    places = {place for one in dropin.states()["aiter"]["taken"] for place in one["places"]}
    assert places >= {"atom.models.deepseek.scores", "sglang.indexer.scores"}
    dropin.uninstall("aiter")
    assert all(module.scores is original for module in (*early, late))
    del sys.modules["my_benchmark"]


def test_a_release_before_the_modules_moved(site: Path) -> None:
    files = {f"aiter/ops/triton/{name}.py": found for name, found in _aiters().items()}
    upstream.write_packages(site, files)
    dropin.install("aiter")
    assert stands(sys.modules[OLD_DENSE].fp8_mqa_logits, "aiter", "fp8_mqa_logits")
    dropin.uninstall("aiter")
    assert sys.modules[OLD_DENSE].fp8_mqa_logits.__module__ == OLD_DENSE


def _aiters() -> dict[str, tuple[str, ...]]:
    return {Path(file).stem: found for file, found in upstream.FILES.items() if file.startswith("aiter/ops/triton")}


@pytest.mark.parametrize("first", [DENSE, OLD_DENSE])
def test_modules_under_an_old_and_a_new_name(renaming: Path, first: str) -> None:
    """Python runs such a module twice, so that there are two originals."""
    importlib.import_module(first)
    importlib.import_module(OLD_DENSE)
    originals = {sys.modules[name].fp8_mqa_logits for name in (DENSE, OLD_DENSE)}
    assert len(originals) == 2, "the fake is not like aiter"
    dropin.install("aiter")
    assert all(map(is_ours, held("aiter").values()))
    dropin.uninstall("aiter")
    assert {sys.modules[name].fp8_mqa_logits for name in (DENSE, OLD_DENSE)} == originals


# What is left


def test_a_module_without_the_function_leaves_the_others_replaced(engines: Path, said: Callable[[], list[str]]) -> None:
    (engines / "aiter/ops/triton/attention/pa_mqa_logits.py").write_text("deepgemm_fp8_paged_mqa_logits = None\n")
    report = dropin.install("aiter")
    assert stands(sys.modules[DENSE].fp8_mqa_logits, "aiter", "fp8_mqa_logits")
    assert (("deepgemm_fp8_paged_mqa_logits",), f"{PAGED} offers no such function") in report.left
    (message,) = said()
    assert f"left as they are: deepgemm_fp8_paged_mqa_logits ({PAGED} offers no such function)" in message
    assert "  left:  deepgemm_fp8_paged_mqa_logits" in str(report)


def test_a_module_that_fails_leaves_the_others_replaced(engines: Path) -> None:
    """As aiter's paged module does on a Triton that is too old for its Gluon package."""
    (engines / "aiter/ops/triton/attention/pa_mqa_logits.py").write_text("raise RuntimeError('wants Triton 3.6')")
    report = dropin.install("aiter")
    assert stands(sys.modules[DENSE].fp8_mqa_logits, "aiter", "fp8_mqa_logits")
    (left,) = (one for one in report.left if one.functions == ("deepgemm_fp8_paged_mqa_logits",))
    assert left.reason == f"{PAGED} does not import: RuntimeError: wants Triton 3.6"


@pytest.mark.parametrize("name", dropin.DROPINS)
def test_the_states_have_what_was_taken_and_what_was_left(engines: Path, name: str) -> None:
    assert dropin.states()[name]["taken"] == dropin.states()[name]["left"] == []
    report = dropin.install(name)
    state = dropin.states()[name]
    assert state["installed"]
    assert [one["functions"] for one in state["taken"]] == [list(one.functions) for one in report.taken]
    assert [one["reason"] for one in state["left"]] == [one.reason for one in report.left]
    assert json.loads(json.dumps(state)) == state
    dropin.uninstall(name)
    assert dropin.states()[name]["taken"] == []


# Refusals


@pytest.mark.parametrize("name", dropin.DROPINS)
def test_a_library_that_is_not_there(site: Path, name: str) -> None:
    module = dropin.DROPINS[name][0].sites[0].module
    with pytest.raises(dropin.DropinError, match=f"^{name}: cannot replace .*: no module {module}.* is there") as raised:
        dropin.install(name)
    assert all(function in str(raised.value) for function in functions(name))
    assert not upstream.hooks()


@pytest.mark.parametrize(
    ("source", "why"),
    [("raise OSError('no GPU')", "OSError: no GPU"), ("import absent_package", "No module named 'absent_package'")],
)
def test_a_library_that_does_not_import(site: Path, source: str, why: str) -> None:
    upstream.write_module(site / "deep_gemm/__init__.py", source)
    with pytest.raises(dropin.DropinError, match=f"fp8_mqa_logits: deep_gemm does not import: .*{why}") as raised:
        dropin.install("deep_gemm")
    assert raised.value.__cause__ is not None


def test_a_library_with_nothing_of_it(site: Path, said: Callable[[], list[str]]) -> None:
    upstream.write_module(site / "deep_gemm/__init__.py", "")
    with pytest.raises(dropin.DropinError, match="deep_gemm offers no such function"):
        dropin.install("deep_gemm")
    assert not dropin.states()["deep_gemm"]["installed"]
    assert said() == [], "the error says it"


HALF = """
import aiter.ops.topk, aiter.ops.cache, sys
if not hasattr(sys, "rocm"): raise RuntimeError("no ROCm")
"""


def test_what_a_failed_import_has_left_is_not_taken(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules stay loaded without the package, and a next attempt would find them."""
    (engines / "aiter/__init__.py").write_text(HALF)
    with pytest.raises(RuntimeError, match="no ROCm"):
        importlib.import_module("aiter")
    half = sys.modules["aiter.ops.topk"]
    words = "top_k_per_row_prefill: aiter.ops.topk does not import: RuntimeError: no ROCm"
    with pytest.raises(dropin.DropinError, match=words):
        dropin.install("aiter")
    assert not is_ours(half.top_k_per_row_prefill)
    assert not dropin.states()["aiter"]["installed"]
    monkeypatch.setattr(sys, "rocm", "7.0", raising=False)
    dropin.install("aiter")
    assert is_ours(half.top_k_per_row_prefill)


def test_an_import_that_fails_behind_ours(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the variable, ours is in a package's modules before the package has failed; nothing is in force then."""
    (engines / "aiter/__init__.py").write_text(HALF)
    activate(monkeypatch, "aiter")
    with pytest.raises(RuntimeError, match="no ROCm"):
        importlib.import_module("aiter")
    state = dropin.states()["aiter"]
    assert not state["installed"]
    assert state["taken"] == []
    assert "aiter.ops.topk is what a failed import has left" in {one["reason"] for one in state["left"]}
    monkeypatch.setattr(sys, "rocm", "7.0", raising=False)
    importlib.import_module("aiter")
    state = dropin.states()["aiter"]
    assert state["installed"]
    assert "aiter.ops.topk.top_k_per_row_prefill" in {place for one in state["taken"] for place in one["places"]}


@pytest.mark.parametrize("function", [dropin.install, dropin.uninstall])
@pytest.mark.parametrize("name", [None, ["aiter"], 3])
def test_what_is_no_name(function: Callable[[Any], None], name: Any) -> None:
    with pytest.raises(TypeError, match=f"^name: got {type(name).__name__}, needs a str"):
        function(name)


@pytest.mark.parametrize("function", [dropin.install, dropin.uninstall])
def test_a_name_that_does_not_exist(function: Callable[[str], None]) -> None:
    with pytest.raises(ValueError, match="name: no drop-in 'aitr'; the nearest are aiter"):
        function("aitr")


def test_what_somebody_else_put_over_ours_stays(engines: Path, said: Callable[[], list[str]]) -> None:
    import deep_gemm

    original = deep_gemm.fp8_paged_mqa_logits
    dropin.install("deep_gemm")
    theirs = deep_gemm.fp8_mqa_logits = lambda *arguments: None
    dropin.uninstall("deep_gemm")
    assert deep_gemm.fp8_mqa_logits is theirs
    assert deep_gemm.fp8_paged_mqa_logits is original
    assert said()[1:] == ["deep_gemm.fp8_mqa_logits is not capgate's any more and stays as it is"]
