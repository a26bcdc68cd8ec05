"""``capgate verify`` as a machine with a gfx950 would run it: kernels executed in the emulator, by the command's own entry."""

from typing import Any

import pytest

from capgate import compat
from capgate.compat import Kernel
from capgate.kernels.tools.verify import catalogue, document, page, verdicts
from support import emulated_verify
from support.emulated_mqa import TARGET

CASES = {
    "fp8_mqa_logits": ("rows 3 keys 150 heads 64 dim 128 packed clean", "packed_relu rows 3 keys 150 heads 64 dim 128 nan"),
    "fp8_paged_mqa_logits": ("lens 140+0+64+1 next_n 1 heads 64 dim 128 block 64 unclean preshuffled",),
    "gather_keys": ("lens 140+0+64+1 dim 128 block 64",),
}


@pytest.fixture(autouse=True)
def _few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [catalogue.find(operation, name, small=True) for operation, names in CASES.items() for name in names]
    monkeypatch.setattr(catalogue, "cases", lambda small, quick=False: few)


@pytest.mark.dealt
def test_every_variant_is_verified_in_the_emulator() -> None:
    run = emulated_verify.verified((), ("gluon_cdna4", "classic"), quick=True)
    logits, paged, gathered = CASES.values()
    expected = [
        ("gluon_cdna4", logits[0]),
        ("gluon_cdna4", logits[1]),
        ("classic", logits[0]),
        ("gluon_cdna4", *paged),
        ("classic", *paged),
        ("classic", *gathered),
    ]
    if not compat.capabilities(TARGET).gluon_cdna4:
        expected = [pair for pair in expected if pair[0] == "classic"]
    assert [(case["variant"], case["case"], case["verdict"], case["words"]) for case in run["cases"]] == [
        (*pair, verdicts.AGREES, "") for pair in expected
    ]
    (asked,) = run["asked"]
    assert asked["holds"] is None, "no emulator turns on what no hardware has shown"
    assert document.status(run) == 3
    assert "executed in the emulator" in page.page(run)
    assert "No GPU ran anything of this." in page.page(run)


def test_a_kernel_that_writes_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(kernel: Kernel[Any], problem: Any, *operands: Any, **options: Any) -> None:
        assert kernel.prepare(problem, *operands, **options)

    monkeypatch.setattr(emulated_verify, "_launch", launch)
    run = emulated_verify.verified(("fp8_paged_mqa_logits", "gather_keys"), ("gluon_cdna4", "classic"), quick=True)
    assert {case["verdict"] for case in run["cases"]} == {verdicts.DISAGREES}
    assert document.status(run) == 1
