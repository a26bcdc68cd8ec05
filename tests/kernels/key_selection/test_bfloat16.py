"""Selection from bfloat16 logits: by their own values, which many of them share."""

import pytest
import torch

from capgate.kernels import select_from_logits
from support import selection

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

STARTS, ENDS = torch.tensor([0, 3, 150], dtype=torch.int32), torch.tensor([300, 299, 290], dtype=torch.int32)


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["normal", "few-values", "zeros", "nans", "infinities", "wide"])
def test_equal_logits_go_to_the_lower_index(variant: str, kind: str) -> None:
    logits = selection.make_logits(kind, 3, 300).bfloat16()
    if kind == "normal":
        assert len(logits[0].unique()) < 300, "some are equal only now"
    selection.check(logits, STARTS, ENDS, 60, variant, alone=False)


@pytest.mark.parametrize("layout", [{"gap": 8}, {"gap": 7, "offset": 9}, {"order": (1, 0)}], ids=["vectors", "cells", "turned"])
def test_layouts(variant: str, layout: dict[str, object]) -> None:
    """Whole vectors are 8 bytes here; what lies between the rows is NaN."""
    memory = selection.judge.laid_out(torch.full((3, 300), float("nan")).bfloat16(), **layout)
    selection.check(memory.copy_(selection.make_logits("skewed", 3, 300)), STARTS, ENDS, 60, variant, alone=False)


def test_rows_that_are_cut(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are float32, and the same ones."""
    selection.shorten_blocks(monkeypatch)
    logits = selection.make_logits("few-values", 1, 600).bfloat16()
    selection.check(logits, None, torch.tensor([590], dtype=torch.int32), 60, variant, alone=False)


@pytest.mark.any_triton
def test_the_values_are_not_rounded() -> None:
    """As the same values in float32 do, scores too."""
    logits = selection.make_logits("normal", 3, 300).bfloat16()
    for one, other in zip(
        *(select_from_logits(x, STARTS, ENDS, top_k=40, return_scores=True) for x in (logits, logits.float())), strict=True
    ):
        assert torch.equal(one, other)
