"""Any lengths, tables and strides: the variants agree with the formula and write only what they should."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capgate.kernels import paged_mqa_schedule
from support import paged

common = {"deadline": None, "derandomize": True, "database": None}


@st.composite
def calls(draw: st.DrawFn, most_requests: int, most_keys: int) -> dict[str, Any]:
    next_n, requests = draw(st.integers(1, 8)), draw(st.integers(0, most_requests))
    length = st.one_of(st.integers(-2, most_keys), st.sampled_from([0, 1, 63, 64, 65, 128, 129]))
    row = st.lists(length, min_size=next_n, max_size=next_n) if draw(st.booleans()) else length
    layout = st.fixed_dictionaries(
        {
            "order": st.permutations(range(2)),
            "gap": st.sampled_from([0, 0, 1, 7]),
            "step": st.sampled_from([1, 1, 2, 3]),
            "offset": st.sampled_from([0, 1, 16]),
        }
    )
    return {
        "call": {
            "lens": draw(st.lists(row, min_size=requests, max_size=requests)),
            "next_n": next_n,
            "heads": draw(st.one_of(st.sampled_from([1, 3, 16, 32, 64]), st.integers(1, 128))),
            "dim": draw(st.sampled_from([32, 64, 128])),
            "block": draw(st.sampled_from([1, 16, 32, 64, 128])),
            "gap": draw(st.sampled_from([0, 4, 12, 100])),
            "spare_entries": draw(st.sampled_from([0, 1, 5])),
            "seed": draw(st.integers(0, 99)),
        },
        "columns": draw(st.integers(0, most_keys + 20)),
        "clean_logits": draw(st.booleans()),
        "workers": draw(st.one_of(st.none(), st.integers(1, 20))),
        "table": draw(layout),
        "out": draw(layout),
    }


def holds(drawn: dict[str, Any], variant: str) -> None:
    call, columns = paged.make_call(**drawn["call"]), drawn["columns"]
    call = call._replace(block_table=paged.judge.laid_out(call.block_table, **drawn["table"]))
    out = paged.judge.sentinels(call.q.shape[0] * call.q.shape[1], columns, **drawn["out"])
    workers = drawn["workers"]
    schedule = None if workers is None else paged_mqa_schedule(call.context_lens, drawn["call"]["block"], workers)
    paged.check(call, variant, columns, clean_logits=drawn["clean_logits"], schedule=schedule, out=out)


@pytest.mark.any_triton
@settings(max_examples=80, **common)
@given(drawn=calls(6, 150))
def test_reference_holds_for_any_call(drawn: dict[str, Any]) -> None:
    holds(drawn, "reference")


@pytest.mark.dealt
@settings(max_examples=20, **common)
@given(drawn=calls(4, 300))
def test_classic_holds_for_any_call(interpreter: None, drawn: dict[str, Any]) -> None:
    holds(drawn, "classic")
