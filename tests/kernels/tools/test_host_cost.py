"""The table of what calls cost on the host: every function in every way that is there."""

import sys
from types import ModuleType

import pytest
import torch

from capgate.kernels.dropin import deep_gemm
from capgate.kernels.tools.bench import host_cost

NAMES = ("fp8_mqa_logits", "fp8_paged_mqa_logits", "get_paged_mqa_logits_metadata")
CPU = torch.device("cpu")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DeepGEMM whose functions are those of the drop-in."""
    module = ModuleType("deep_gemm")
    for name in NAMES:
        setattr(module, name, getattr(deep_gemm, name))
    monkeypatch.setitem(sys.modules, "deep_gemm", module)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deep_gemm", None)


@pytest.mark.usefixtures("no_library")
def test_a_row_for_each_function(capsys: pytest.CaptureFixture[str]) -> None:
    host_cost.main(["--calls", "1"])
    head, rule, *rows = capsys.readouterr().out.splitlines()[2:]
    assert head == "| function | directly | through the drop-in | DeepGEMM's own |"
    assert rule == "| --- | ---: | ---: | ---: |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == [f"`{name}`" for name in NAMES]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 and row[3] == "" for row in cells)


@pytest.mark.usefixtures("library")
def test_all_ways_return_the_same() -> None:
    found = host_cost.calls(CPU)
    assert {name: tuple(timed) for name, timed in found.items()} == dict.fromkeys(NAMES, host_cost.COLUMNS)
    for name, (directly, *others) in ((name, timed.values()) for name, timed in found.items()):
        inside = torch.tensor(True)
        if name != NAMES[2]:  # what lies outside of the windows is left as it was allocated
            inside = directly.func(*directly.args, **{**directly.keywords, "clean_logits": True}).isfinite()
        for other in others:
            assert inside.any()
            assert ((other() == directly()) | ~inside).all(), name


def test_no_calls_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        host_cost.main(["--calls", "0"])
    assert "--calls: got 0, needs 1 or more" in capsys.readouterr().err
