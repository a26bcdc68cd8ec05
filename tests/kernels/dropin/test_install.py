"""Putting drop-ins in place and taking them away: in whole processes' worth of fake engines."""

import importlib
import importlib.util
import inspect
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from capgate.compat import SwitchError
from capgate.kernels import dropin
from support import upstream

DENSE = "aiter.ops.triton.attention.fp8_mqa_logits"
PAGED = "aiter.ops.triton.attention.pa_mqa_logits"
OLD_DENSE = "aiter.ops.triton.fp8_mqa_logits"
ROCM = "vllm.v1.attention.ops.rocm_aiter_mla_sparse"

# As aiter's: an old name imports the new module and hands out its spec, by which Python then runs it once more.
RENAMED = """
import importlib, sys
from types import SimpleNamespace

def find_spec(fullname, path, target=None):
    if fullname in ("aiter.ops.triton.fp8_mqa_logits", "aiter.ops.triton.pa_mqa_logits"):
        new = fullname.replace("triton.", "triton.attention.")
        sys.modules[fullname] = importlib.import_module(new)
        return importlib.util.find_spec(new)
    return None

sys.meta_path.insert(0, SimpleNamespace(find_spec=find_spec))
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """The folder of the engines' packages."""
    with upstream.only_from(tmp_path):
        yield tmp_path


@pytest.fixture
def engines(site: Path) -> Path:
    """aiter, DeepGEMM and vLLM with what the drop-ins replace."""
    upstream.write_packages(site)
    return site


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings of logger ``capgate`` so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def held(name: str) -> dict[tuple[str, str], Any]:
    """What now stands where a drop-in's functions do, by module and function."""
    return {
        (home, function): getattr(sys.modules[home], function)
        for function, homes in dropin.DROPINS[name].items()
        for home in homes
        if home in sys.modules
    }


def ours(name: str, function: str) -> Any:
    return getattr(importlib.import_module(f"capgate.kernels.dropin.{name}"), function)


@pytest.mark.parametrize("name", dropin.DROPINS)
def test_install_and_uninstall(engines: Path, name: str, said: Callable[[], list[str]]) -> None:
    for homes in dropin.DROPINS[name].values():
        importlib.import_module(homes[0])
    originals = held(name)
    assert originals

    dropin.install(name)
    assert held(name) == {(home, function): ours(name, function) for home, function in originals}
    (message,) = said()
    assert message.startswith(f"drop-in {name}: ")
    assert all(f"{home}.{function}" in message for home, function in originals)

    dropin.install(name)
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
    assert all(function.__module__ == "capgate.kernels.dropin.deep_gemm" for function in held("deep_gemm").values())


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
    assert early[0].scores is early[1].scores is late.scores is ours("aiter", "fp8_mqa_logits")
    assert early[2].scores is original
    dropin.uninstall("aiter")
    assert all(module.scores is original for module in (*early, late))
    del sys.modules["my_benchmark"]


def test_a_release_before_the_modules_moved(site: Path) -> None:
    files = {f"aiter/ops/triton/{name}.py": functions for name, functions in _aiters().items()}
    upstream.write_packages(site, files)
    dropin.install("aiter")
    assert sys.modules[OLD_DENSE].fp8_mqa_logits is ours("aiter", "fp8_mqa_logits")
    dropin.uninstall("aiter")
    assert sys.modules[OLD_DENSE].fp8_mqa_logits.__module__ == OLD_DENSE


def _aiters() -> dict[str, tuple[str, ...]]:
    return {Path(file).stem: functions for file, functions in upstream.FILES.items() if file.startswith("aiter")}


@pytest.fixture
def renaming(engines: Path) -> Path:
    (engines / "aiter/ops/triton/__init__.py").write_text(RENAMED)
    return engines


@pytest.mark.parametrize("first", [DENSE, OLD_DENSE])
def test_modules_under_an_old_and_a_new_name(renaming: Path, first: str) -> None:
    """Python runs such a module twice, so that there are two originals."""
    importlib.import_module(first)
    importlib.import_module(OLD_DENSE)
    originals = {sys.modules[name].fp8_mqa_logits for name in (DENSE, OLD_DENSE)}
    assert len(originals) == 2, "the fake is not like aiter"
    dropin.install("aiter")
    assert set(held("aiter").values()) == {ours("aiter", function) for function in dropin.DROPINS["aiter"]}
    dropin.uninstall("aiter")
    assert {sys.modules[name].fp8_mqa_logits for name in (DENSE, OLD_DENSE)} == originals


# Refusals


@pytest.mark.parametrize("name", dropin.DROPINS)
def test_a_library_that_is_not_there(site: Path, name: str) -> None:
    function, homes = next(iter(dropin.DROPINS[name].items()))
    with pytest.raises(dropin.DropinError, match=f"{name}: cannot replace {function}: no module {homes[0]}.* is importable"):
        dropin.install(name)


def test_a_module_without_the_function_and_nothing_is_replaced(engines: Path, said: Callable[[], list[str]]) -> None:
    (engines / "aiter/ops/triton/attention/pa_mqa_logits.py").write_text("deepgemm_fp8_paged_mqa_logits = None\n")
    original = importlib.import_module(DENSE).fp8_mqa_logits
    message = f"cannot replace deepgemm_fp8_paged_mqa_logits: {PAGED} offers no such function"
    with pytest.raises(dropin.DropinError, match=message):
        dropin.install("aiter")
    assert sys.modules[DENSE].fp8_mqa_logits is original
    assert said() == []


@pytest.mark.parametrize(
    ("source", "why"),
    [("raise OSError('no GPU')", "OSError: no GPU"), ("import absent_package", "No module named 'absent_package'")],
)
def test_a_module_that_does_not_import(engines: Path, source: str, why: str) -> None:
    (engines / "deep_gemm/__init__.py").write_text(source)
    with pytest.raises(dropin.DropinError, match=f"fp8_mqa_logits: deep_gemm does not import: .*{why}") as raised:
        dropin.install("deep_gemm")
    assert raised.value.__cause__ is not None


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


# CAPGATE_DROPIN and the import hook


def activate(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CAPGATE_DROPIN", value)
    dropin.activate()


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

    assert fp8_mqa_logits is ours("aiter", "fp8_mqa_logits")
    assert PAGED not in sys.modules
    rocm = importlib.import_module(ROCM)
    assert rocm.rocm_fp8_paged_mqa_logits is ours("vllm_rocm", "rocm_fp8_paged_mqa_logits")
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
    assert deep_gemm.fp8_mqa_logits is ours("deep_gemm", "fp8_mqa_logits")
    importlib.reload(deep_gemm)
    assert deep_gemm.fp8_mqa_logits is ours("deep_gemm", "fp8_mqa_logits")
    dropin.uninstall("deep_gemm")
    assert deep_gemm.fp8_mqa_logits.__module__ == "deep_gemm"
    assert deep_gemm.fp8_mqa_logits is not before, "it is the reloaded module's"
    assert all(message.startswith("drop-in deep_gemm: ") for message in said())


@pytest.mark.parametrize("first", [DENSE, OLD_DENSE])
def test_the_hook_with_modules_under_two_names(renaming: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """aiter's own finder comes before the hook, and both runs of the module are to be seen."""
    activate(monkeypatch, "aiter")
    names = [first, *({DENSE, OLD_DENSE} - {first})]
    modules = []
    for name in names:
        scope: dict[str, Any] = {}
        exec(f"from {name} import fp8_mqa_logits", scope)
        modules.append(scope["fp8_mqa_logits"])
    modules += [sys.modules[name].fp8_mqa_logits for name in names]
    assert set(modules) == {ours("aiter", "fp8_mqa_logits")}


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


def test_the_hook_only_warns_of_what_it_refuses(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """An engine's import does not fail for it, and nothing of the drop-in stays or is replaced later."""
    (engines / "aiter/ops/triton/attention/pa_mqa_logits.py").write_text("")
    activate(monkeypatch, "aiter")
    dense = importlib.import_module(DENSE)
    assert dense.fp8_mqa_logits is ours("aiter", "fp8_mqa_logits")
    importlib.import_module(PAGED)
    assert dense.fp8_mqa_logits.__module__ == DENSE
    importlib.reload(dense)
    assert dense.fp8_mqa_logits.__module__ == DENSE
    words = f"aiter: cannot replace deepgemm_fp8_paged_mqa_logits: {PAGED} offers no such function"
    assert said()[1:] == [f"CAPGATE_DROPIN: nothing is replaced: {words}"]
    assert not issubclass(dropin.DropinError, ImportError), "install()'s error is none of an absent library"


def test_a_loaded_module_without_the_function_is_warned_of(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    (engines / "deep_gemm/__init__.py").write_text("")
    importlib.import_module("deep_gemm")
    activate(monkeypatch, "deep_gemm")
    assert not upstream.hooks()
    (message,) = said()
    assert "deep_gemm offers no such function" in message


# A schedule and all that read it


def deep_gemm_with(site: Path, source: str, file: str = "deep_gemm/__init__.py") -> None:
    """DeepGEMM with what the drop-in replaces, and more."""
    name = site / file
    upstream.write_module(name, (name.read_text() if name.exists() else "") + source)


def compiled_reader(documentation: str) -> str:
    """A function of which only its documentation says what it takes."""
    return f"class _Compiled:\n    __doc__ = {documentation!r}\n    __signature__ = 'none'\n    def __call__(self): pass\n"


READERS = {
    "fp8_fp4_paged_mqa_logits": "def fp8_fp4_paged_mqa_logits(*args): pass",
    "bf16_paged_mqa_logits": "from functools import partial\nbf16_paged_mqa_logits = partial(print)",
    "paged_mqa_logits_for_later": "def paged_mqa_logits_for_later(): pass",
    "_hidden": "def _hidden(q, schedule_meta): pass",
    "indexer": "def indexer(q, *, schedule_metadata=None): pass",
    "Indexer": "class Indexer:\n    def __init__(self, schedule_meta_data): pass",
    "lazy_paged_mqa_logits": """
def __dir__(): return ["lazy_paged_mqa_logits"]
def __getattr__(name):
    if name == "lazy_paged_mqa_logits": return print
    raise AttributeError(name)
""",
    "compiled": compiled_reader("compiled(q: torch.Tensor, schedule_meta: torch.Tensor) -> torch.Tensor")
    + "compiled = _Compiled()",
}


@pytest.mark.parametrize(("reader", "source"), READERS.items(), ids=READERS)
def test_a_reader_of_the_schedule_that_would_stay_is_refused(
    engines: Path, said: Callable[[], list[str]], reader: str, source: str
) -> None:
    deep_gemm_with(engines, source)
    importlib.import_module("deep_gemm")
    originals = held("deep_gemm")
    with pytest.raises(dropin.DropinError, match=f"cannot replace get_paged_mqa_logits_metadata: .*deep_gemm.{reader}.* would"):
        dropin.install("deep_gemm")
    assert held("deep_gemm") == originals
    assert said() == []


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "later"])
def test_the_variable_leaves_the_schedule_to_its_other_reader(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]], loaded: bool
) -> None:
    deep_gemm_with(engines, READERS["fp8_fp4_paged_mqa_logits"])
    if loaded:
        importlib.import_module("deep_gemm")
    activate(monkeypatch, "deep_gemm")
    importlib.import_module("deep_gemm")
    assert {function.__module__ for function in held("deep_gemm").values()} == {"deep_gemm"}
    (message,) = said()
    assert "deep_gemm.fp8_fp4_paged_mqa_logits" in message


def test_a_library_s_other_functions_read_no_schedule(engines: Path) -> None:
    """Nor does a submodule that holds the very functions that are replaced, or makes other schedules."""
    deep_gemm_with(engines, "def get_paged_mqa_logits_metadata_v2(n): pass\ndef fp8_fp4_mqa_logits(q): pass\nschedule_meta = 3")
    deep_gemm_with(engines, "from . import fp8_paged_mqa_logits as paged_mqa_logits", "deep_gemm/again.py")
    importlib.import_module("deep_gemm.again")
    dropin.install("deep_gemm")
    assert sys.modules["deep_gemm.again"].paged_mqa_logits is ours("deep_gemm", "fp8_paged_mqa_logits")


def test_a_reader_in_a_submodule_is_refused(engines: Path) -> None:
    deep_gemm_with(engines, "def fp8_paged_mqa_logits(*args): pass", "deep_gemm/other.py")
    importlib.import_module("deep_gemm.other")
    with pytest.raises(dropin.DropinError, match=r"deep_gemm\.other\.fp8_paged_mqa_logits would"):
        dropin.install("deep_gemm")


WRAPPERS = """
from deep_gemm import get_paged_mqa_logits_metadata as _metadata_impl, fp8_paged_mqa_logits as _impl
def get_paged_mqa_logits_metadata(*args): return _metadata_impl(*args)
def fp8_paged_mqa_logits(q, schedule_metadata): return _impl(q, schedule_metadata)
"""


def test_an_engine_s_wrappers_go_with_what_they_wrap(engines: Path) -> None:
    """But not those of a function that is not replaced, beside the schedule that is."""
    upstream.write_module(engines / "vllm/utils/deep_gemm.py", WRAPPERS)
    module = importlib.import_module("vllm.utils.deep_gemm")
    dropin.install("deep_gemm")
    assert module._metadata_impl is ours("deep_gemm", "get_paged_mqa_logits_metadata")
    assert module._impl is ours("deep_gemm", "fp8_paged_mqa_logits")
    dropin.uninstall("deep_gemm")
    module._fp8_fp4_paged_mqa_logits_impl = lambda *arguments: None
    with pytest.raises(dropin.DropinError, match=r"vllm\.utils\.deep_gemm\._fp8_fp4_paged_mqa_logits_impl would"):
        dropin.install("deep_gemm")


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("from deep_gemm import fp8_paged_mqa_logits", True),
        ("from deep_gemm import fp8_paged_mqa_logits, get_paged_mqa_logits_metadata", False),
        ("from deep_gemm import get_paged_mqa_logits_metadata", False),  # ours reads theirs
        ("import deep_gemm", False),
    ],
)
def test_what_others_imported_before(engines: Path, source: str, refused: bool) -> None:
    """Their originals stay: a reader may do so together with its maker, or it would be given schedules of ours."""
    (engines / "my_engine.py").write_text(source)
    module = importlib.import_module("my_engine")
    before = dict(vars(module))
    try:
        if refused:
            with pytest.raises(dropin.DropinError, match=r"my_engine\.fp8_paged_mqa_logits would"):
                dropin.install("deep_gemm")
        else:
            dropin.install("deep_gemm")
        assert dict(vars(module)) == before
    finally:
        del sys.modules["my_engine"]


def test_a_reload_that_brings_a_reader_takes_ours_away(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """Also from the engines that had imported ours."""
    activate(monkeypatch, "deep_gemm")
    upstream.write_module(engines / "sglang/indexer.py", "from deep_gemm import get_paged_mqa_logits_metadata")
    engine, library = importlib.import_module("sglang.indexer"), importlib.import_module("deep_gemm")
    assert engine.get_paged_mqa_logits_metadata is ours("deep_gemm", "get_paged_mqa_logits_metadata")
    deep_gemm_with(engines, "# another size, so that it is read again\n" + READERS["fp8_fp4_paged_mqa_logits"])
    importlib.reload(library)
    assert engine.get_paged_mqa_logits_metadata.__module__ == "deep_gemm"
    assert {function.__module__ for function in held("deep_gemm").values()} == {"deep_gemm"}
    assert sum("fp8_fp4_paged_mqa_logits would" in message for message in said()) == 1


def test_a_name_in_the_variable_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.meta_path)
    with pytest.raises(SwitchError, match=r"^CAPGATE_DROPIN: no drop-in 'vllm'; the nearest are vllm_rocm"):
        activate(monkeypatch, "aiter,vllm")
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
    assert second.split() == ["True", "False", "capgate.kernels.dropin.vllm_rocm"]
    assert f"drop-in vllm_rocm: capgate's functions are in the place of {ROCM}.rocm_fp8_mqa_logits" in done.stderr
