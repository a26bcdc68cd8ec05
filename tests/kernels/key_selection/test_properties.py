"""Any logits, windows, strides and top_k: the variants agree with sorted integers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import selection

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
common = {"deadline": None, "derandomize": True, "database": None}


@st.composite
def problems(draw: st.DrawFn, most_rows: int, most_columns: int) -> dict[str, Any]:
    rows, columns = draw(st.integers(0, most_rows)), draw(st.integers(0, most_columns))
    num_keys = draw(st.one_of(st.none(), st.integers(0, 2 * most_columns)))
    keys = columns if num_keys is None else num_keys
    end = st.one_of(st.integers(-keys - 3, 2 * keys + 3), st.sampled_from([-(2**31), 2**31 - 1, 0, keys]))
    values = st.floats(width=32) if draw(st.booleans()) else st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan")])
    return {
        "shape": (rows, columns),
        "values": draw(st.lists(values, min_size=1, max_size=12)),
        "seed": draw(st.integers(0, 99)),
        "starts": draw(st.lists(end, min_size=rows, max_size=rows)),
        "ends": draw(st.lists(end, min_size=rows, max_size=rows)),
        "top_k": draw(st.one_of(st.integers(1, 2 * most_columns), st.integers(1, 20))),
        "options": {"num_keys": num_keys, "relative": draw(st.booleans())},
        "layout": {
            "order": draw(st.permutations(range(2))),
            "gap": draw(st.sampled_from([0, 0, 1, 7])),
            "step": draw(st.sampled_from([1, 1, 2, 3])),
            "offset": draw(st.sampled_from([0, 1, 16])),
        },
    }


def holds(drawn: dict[str, Any], variant: str) -> None:
    rows, columns = drawn["shape"]
    generator = torch.Generator().manual_seed(drawn["seed"])
    values = torch.tensor(drawn["values"])
    logits = values[torch.randint(0, len(values), (rows, columns), generator=generator)]
    logits = selection.judge.laid_out(logits, **drawn["layout"])
    starts, ends = (torch.tensor(drawn[name], dtype=torch.int32) for name in ("starts", "ends"))
    selection.check(logits, starts, ends, drawn["top_k"], variant, alone=variant == "reference", **drawn["options"])


@pytest.mark.any_triton
@settings(max_examples=200, **common)
@given(drawn=problems(8, 60))
def test_reference_holds_for_any_logits(drawn: dict[str, Any]) -> None:
    holds(drawn, "reference")


@settings(max_examples=25, **common)
@given(drawn=problems(3, 250))
def test_classic_holds_for_any_logits(interpreter: None, drawn: dict[str, Any]) -> None:
    holds(drawn, "classic")


@settings(max_examples=8, **common)
@given(drawn=problems(2, 1100), top_k=st.integers(1, 256))
def test_classic_holds_for_rows_that_are_cut(interpreter: None, drawn: dict[str, Any], top_k: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        selection.shorten_blocks(patch)
        holds(drawn | {"top_k": top_k}, "classic")
