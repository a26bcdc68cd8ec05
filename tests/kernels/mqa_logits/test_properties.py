"""Any shape, any strides, any windows: the variants agree with the formula and write only what they should."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import judge

HEADS = st.one_of(st.sampled_from([1, 3, 16, 32, 64, 100, 128]), st.integers(1, 128))
common = {"deadline": None, "derandomize": True, "database": None}


def window_ends(keys: int) -> st.SearchStrategy[int]:
    near = st.integers(-keys - 3, 2 * keys + 3)
    return st.one_of(near, near, st.sampled_from([-(2**31), -(2**31) + 1, 2**31 - 1, 0, keys, keys - 1]))


def layouts(dimensions: int) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of judge.laid_out: transposed, padded, sliced, and starting anywhere in its storage."""
    return st.fixed_dictionaries(
        {
            "order": st.permutations(range(dimensions)),
            "gap": st.sampled_from([0, 0, 1, 7]),
            "step": st.sampled_from([1, 1, 2, 3]),
            "offset": st.sampled_from([0, 1, 16]),
        }
    )


@st.composite
def calls(draw: st.DrawFn, most_rows: int, most_keys: int) -> dict[str, Any]:
    rows, keys = draw(st.integers(0, most_rows)), draw(st.integers(0, most_keys))
    ends = st.lists(window_ends(keys), min_size=rows, max_size=rows)
    max_window = draw(st.one_of(st.none(), st.integers(0, keys + 3)))
    dimensions = {"q": 3, "k": 2, "k_scale": draw(st.sampled_from([1, 2])), "weights": 2, "starts": 1, "ends": 1, "out": 2}
    return {
        "shape": (rows, keys, draw(HEADS), draw(st.sampled_from([32, 64, 128]))),
        "starts": draw(ends),
        "ends": draw(ends),
        "max_window": max_window,
        "clean_logits": draw(st.booleans()) if max_window is None else False,
        "layouts": {name: draw(layouts(count)) for name, count in dimensions.items()},
    }


def holds(drawn: dict[str, Any], variant: str, dtype: torch.dtype = torch.float8_e4m3fn) -> None:
    call = judge.make_call(*drawn["shape"], dtype=dtype)
    call = call._replace(
        starts=torch.tensor(drawn["starts"], dtype=torch.int32), ends=torch.tensor(drawn["ends"], dtype=torch.int32)
    )
    if len(drawn["layouts"]["k_scale"]["order"]) == 2:
        call = call._replace(k_scale=call.k_scale[:, None])
    call = call._replace(**{name: judge.laid_out(getattr(call, name), **drawn["layouts"][name]) for name in call._fields})
    rows, keys = drawn["shape"][:2]
    out = judge.sentinels(rows, keys if drawn["max_window"] is None else drawn["max_window"], **drawn["layouts"]["out"])
    judge.check(call, variant, clean_logits=drawn["clean_logits"], max_window=drawn["max_window"], out=out)


@pytest.mark.any_triton
@settings(max_examples=200, **common)
@given(drawn=calls(12, 60), dtype=st.sampled_from([torch.float8_e4m3fn, torch.float8_e4m3fnuz]))
def test_reference_holds_for_any_call(drawn: dict[str, Any], dtype: torch.dtype) -> None:
    holds(drawn, "reference", dtype)


@pytest.mark.dealt
@settings(max_examples=40, **common)
@given(drawn=calls(6, 300))
def test_classic_holds_for_any_call(interpreter: None, drawn: dict[str, Any]) -> None:
    holds(drawn, "classic")
