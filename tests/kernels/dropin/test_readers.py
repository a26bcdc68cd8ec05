"""A schedule's maker is replaced with all that read its schedules, or not at all."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capgate.kernels import dropin
from support import upstream
from support.dropins import activate, held, is_ours

MAKER = "get_paged_mqa_logits_metadata"
DENSE = {"fp8_mqa_logits", "fp8_fp4_mqa_logits"}


def deep_gemm_with(site: Path, source: str, file: str = "deep_gemm/__init__.py") -> None:
    """DeepGEMM with what the drop-in replaces, and more."""
    name = site / file
    upstream.write_module(name, (name.read_text() if name.exists() else "") + source)


def replaced() -> set[str]:
    """The functions of DeepGEMM that are ours."""
    return {function for (_, function), value in held("deep_gemm").items() if is_ours(value)}


def reason_of(report: dropin.Report) -> str:
    """Why the schedule's family was left."""
    (left,) = (one for one in report.left if MAKER in one.functions)
    return left.reason


@pytest.mark.parametrize("generation", upstream.GENERATIONS)
def test_each_generation_is_replaced_whole(site: Path, generation: str) -> None:
    functions = upstream.GENERATIONS[generation]
    upstream.write_packages(site, {"deep_gemm/__init__.py": functions})
    report = dropin.install("deep_gemm")
    assert replaced() == {function.partition("(")[0] for function in functions}
    assert not any("would go on" in one.reason for one in report.left)


@pytest.mark.parametrize("missing", ["maker", "readers"])
def test_half_a_family_is_left(site: Path, missing: str) -> None:
    """Of the maker and its readers neither is taken alone."""
    wanted = (MAKER, "fp8_mqa_logits") if missing == "readers" else ("fp8_paged", "fp8_fp4", "fp8_mqa_logits")
    functions = tuple(function for function in upstream.INTERMEDIATE if function.startswith(wanted))
    upstream.write_packages(site, {"deep_gemm/__init__.py": functions})
    report = dropin.install("deep_gemm")
    assert replaced() == {"fp8_mqa_logits"} | ({"fp8_fp4_mqa_logits"} if missing == "maker" else set())
    what = MAKER if missing == "maker" else "function that reads its schedules"
    assert reason_of(report) == f"deep_gemm offers no {what}"


def compiled_reader(documentation: str) -> str:
    """A function of which only its documentation says what it takes."""
    return f"class _Compiled:\n    __doc__ = {documentation!r}\n    __signature__ = 'none'\n    def __call__(self): pass\n"


READERS = {
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
def test_a_reader_that_nobody_knows_keeps_the_schedule_s_family(engines: Path, reader: str, source: str) -> None:
    """The functions of dense logits are replaced all the same."""
    deep_gemm_with(engines, source)
    originals = held("deep_gemm")
    report = dropin.install("deep_gemm")
    assert f"deep_gemm.{reader}" in reason_of(report)
    assert f"would go on reading the schedules of {MAKER}" in reason_of(report)
    assert replaced() == DENSE
    dropin.uninstall("deep_gemm")
    assert held("deep_gemm").items() >= originals.items()


def test_a_reader_of_metadata_that_nobody_knows_keeps_its_family(site: Path) -> None:
    """Metadata of packed keys' lists; that of cached ones has readers of its own."""
    upstream.write_packages(site, {"deep_gemm/__init__.py": upstream.CURRENT})
    deep_gemm_with(site, "def bf16_sparse_mqa_logits(q, metadata): pass\ndef paged_sparse_mqa_logits_of_an_engine(): pass")
    report = dropin.install("deep_gemm")
    (left,) = (one for one in report.left if "fp8_fp4_sparse_mqa_logits" in one.functions)
    assert left.reason.startswith("deep_gemm.bf16_sparse_mqa_logits would go on reading")
    assert not replaced() & set(left.functions)
    assert replaced() >= {"get_paged_sparse_mqa_logits_metadata", "fp8_fp4_paged_sparse_mqa_logits"}


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "later"])
def test_the_variable_leaves_the_schedule_to_its_other_reader(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]], loaded: bool
) -> None:
    deep_gemm_with(engines, READERS["bf16_paged_mqa_logits"])
    if loaded:
        importlib.import_module("deep_gemm")
    activate(monkeypatch, "deep_gemm")
    importlib.import_module("deep_gemm")
    assert replaced() == DENSE
    (message,) = said()
    assert "deep_gemm.bf16_paged_mqa_logits" in message


def test_a_library_s_other_functions_read_no_schedule(engines: Path) -> None:
    """Nor does a submodule that holds the very functions that are replaced, or makes other schedules."""
    deep_gemm_with(engines, "def get_paged_mqa_logits_metadata_v2(n): pass\ndef fp8_paged(q): pass\nschedule_meta = 3")
    deep_gemm_with(engines, "from . import fp8_paged_mqa_logits as paged_mqa_logits", "deep_gemm/again.py")
    again = importlib.import_module("deep_gemm.again")
    dropin.install("deep_gemm")
    assert again.paged_mqa_logits is sys.modules["deep_gemm"].fp8_paged_mqa_logits
    assert is_ours(again.paged_mqa_logits)


def test_a_reader_in_a_submodule_keeps_them(engines: Path) -> None:
    deep_gemm_with(engines, "def fp8_paged_mqa_logits(*args): pass", "deep_gemm/other.py")
    importlib.import_module("deep_gemm.other")
    assert "deep_gemm.other.fp8_paged_mqa_logits would" in reason_of(dropin.install("deep_gemm"))


WRAPPERS = """
from deep_gemm import get_paged_mqa_logits_metadata as _metadata, fp8_paged_mqa_logits as _logits
def get_paged_mqa_logits_metadata(*args): return _metadata(*args)
def fp8_paged_mqa_logits(q, schedule_metadata): return _logits(q, schedule_metadata)
"""


def test_an_engine_s_wrappers_go_with_what_they_wrap(engines: Path) -> None:
    """But not those of a function that is not replaced, beside the schedule that is. What counts its parts reads none."""
    counting = "def _paged_mqa_logits_schedule_slots(num_sms, next_n): return num_sms"
    upstream.write_module(engines / "vllm/wrappers.py", WRAPPERS + counting)
    module = importlib.import_module("vllm.wrappers")
    dropin.install("deep_gemm")
    assert is_ours(module._metadata)
    assert is_ours(module._logits)
    dropin.uninstall("deep_gemm")
    module._bf16_paged_mqa_logits_impl = lambda *arguments: None
    assert "vllm.wrappers._bf16_paged_mqa_logits_impl would" in reason_of(dropin.install("deep_gemm"))


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("from deep_gemm import fp8_paged_mqa_logits", True),
        ("from deep_gemm import fp8_fp4_paged_mqa_logits", True),
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
        report = dropin.install("deep_gemm")
        assert (MAKER not in replaced()) == refused
        if refused:
            assert "my_engine." in reason_of(report)
        assert dict(vars(module)) == before
    finally:
        del sys.modules["my_engine"]


def test_a_reload_that_brings_a_reader_takes_ours_away(
    engines: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """Also from the engines that had imported ours; other families stay."""
    activate(monkeypatch, "deep_gemm")
    upstream.write_module(engines / "sglang/indexer.py", f"from deep_gemm import {MAKER}, fp8_mqa_logits")
    engine, library = importlib.import_module("sglang.indexer"), importlib.import_module("deep_gemm")
    assert is_ours(engine.get_paged_mqa_logits_metadata)
    deep_gemm_with(engines, "# another size, so that it is read again\n" + READERS["bf16_paged_mqa_logits"])
    importlib.reload(library)
    assert engine.get_paged_mqa_logits_metadata.__module__ == "deep_gemm"
    assert is_ours(engine.fp8_mqa_logits)
    assert replaced() == DENSE
    assert sum("bf16_paged_mqa_logits would" in message for message in said()) == 1


def test_what_the_family_of_a_drop_in_is_made_of() -> None:
    """The table: each function is in one family of its drop-in, and a schedule's maker is needed."""
    for families in dropin.DROPINS.values():
        names: list[Any] = [function for family in families for function in family.names]
        assert len(names) == len(set(names))
        assert all(family.functions and family.sites for family in families)
        assert all(family.schedule is None or family.schedule.maker in family.functions for family in families)
