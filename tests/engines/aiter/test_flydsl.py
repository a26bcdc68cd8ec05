"""aiter's own tests of its FlyDSL functions, on the CPU, over ours: its quantiser and writer, schedules, windows and answers.

FlyDSL itself is the real package, without which aiter's modules do not import; its kernels are not reached, for they would be
launched on an AMD GPU.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from engines import stubs

stubs.only_in_the_session_of("aiter")
stubs.for_aiter()
with stubs.aiter_arch("gfx950"):
    import aiter  # noqa: A004 - a library's name
    from aiter.ops import flydsl

from capgate import compat  # noqa: E402 - after the stubs
from capgate.kernels import dropin  # noqa: E402

FUNCTIONS = ("flydsl_pa_mqa_logits_fp4", "flydsl_pa_mqa_logits_fp4_prefill")
OP_TESTS = Path(aiter.__file__).parents[1] / "op_tests"


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    dropin.install("aiter")
    assert all(getattr(flydsl, name).__module__.startswith("capgate.") for name in FUNCTIONS)
    yield
    dropin.uninstall("aiter")
    assert not any(getattr(flydsl, name).__module__.startswith("capgate.") for name in FUNCTIONS)


@pytest.fixture(params=["reference", "classic"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with compat.override(variant={"mx_paged_mqa_logits": request.param}):
        yield request.param


def upstream_of(function: str) -> ModuleType:
    """The file of aiter's that tests a function, with its tensors on the CPU."""
    spec = importlib.util.spec_from_file_location(f"op_test_of_{function}", OP_TESTS / f"test_{function}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with stubs.aiter_arch("gfx950"):
        spec.loader.exec_module(module)
    module.dev = "cpu"
    return module


@pytest.mark.parametrize(("heads", "next_n"), [(64, 1), (16, 2)])
def test_decode(variant: str, heads: int, next_n: int) -> None:
    """As ATOM calls it: into logits that are there, by a schedule that aiter has made before."""
    upstream_of(FUNCTIONS[0]).test_pa_mqa_logits_fp4_qfp4_kvfp4(2, 256, next_n=next_n, heads=heads, bench=False)


def test_prefill(variant: str) -> None:
    """Windows from the first key and from later ones, in one request and in two."""
    upstream_of(FUNCTIONS[1]).run_case(2, [[64, 1, 200], [(70, 130), 256]], heads=32, bench=False)


def test_rows_of_different_numbers(variant: str) -> None:
    """aiter's function for them makes the windows, and hands them on to that for prefill in its module: ours."""
    upstream_of(FUNCTIONS[1]).run_varqlen_case([2, 1, 3], [130, 5, 66], heads=16, bench=False)
