"""Bad input to the selection: the right error, and it names the argument."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import select_from_logits, select_keys, select_paged_keys
from support import judge, paged

ROWS, COLUMNS = 3, 20
INT, FN = torch.int32, torch.float8_e4m3fn


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


# What replaces good arguments, the error, and the argument that it names.
COMMON: dict[str, tuple[dict[str, Callable[[], Any]], type[Exception], str]] = {
    "top_k-none": ({"top_k": lambda: 0}, ValueError, "top_k"),
    "top_k-negative": ({"top_k": lambda: -1}, ValueError, "top_k"),
    "top_k-fraction": ({"top_k": lambda: 2.0}, TypeError, "top_k"),
    "top_k-bool": ({"top_k": lambda: True}, TypeError, "top_k"),
    "return_scores-number": ({"return_scores": lambda: 1}, TypeError, "return_scores"),
    "variant-unknown": ({"variant": lambda: "clasic"}, ValueError, "variant"),
    "variant-empty": ({"variant": lambda: ""}, ValueError, "variant"),
    "variant-number": ({"variant": lambda: 3}, TypeError, "variant"),
}
LOGITS: dict[str, tuple[dict[str, Callable[[], Any]], type[Exception], str]] = {
    **COMMON,
    "logits-list": ({"logits": lambda: [1.0]}, TypeError, "logits"),
    "logits-one-dimensional": ({"logits": lambda: zeros(COLUMNS)}, ValueError, "logits"),
    "logits-half": ({"logits": lambda: zeros(ROWS, COLUMNS, dtype=torch.float16)}, TypeError, "logits"),
    "logits-requires-grad": ({"logits": lambda: zeros(ROWS, COLUMNS).requires_grad_()}, ValueError, "logits"),
    "logits-sparse": ({"logits": lambda: zeros(ROWS, COLUMNS).to_sparse()}, TypeError, "logits"),
    "logits-too-wide": ({"logits": lambda: zeros(ROWS, 1).expand(ROWS, 2**29 + 1)}, ValueError, "logits"),
    "starts-list": ({"starts": lambda: [0] * ROWS}, TypeError, "starts"),
    "starts-long": ({"starts": lambda: zeros(ROWS + 1, dtype=INT)}, ValueError, "starts"),
    "starts-int64": ({"starts": lambda: zeros(ROWS, dtype=torch.int64)}, TypeError, "starts"),
    "starts-other-device": ({"starts": lambda: zeros(ROWS, dtype=INT, device="meta")}, ValueError, "starts"),
    "ends-none": ({"ends": lambda: None}, TypeError, "ends"),
    "ends-column": ({"ends": lambda: zeros(ROWS, 1, dtype=INT)}, ValueError, "ends"),
    "ends-float": ({"ends": lambda: zeros(ROWS)}, TypeError, "ends"),
    "ends-other-device": ({"ends": lambda: zeros(ROWS, dtype=INT, device="meta")}, ValueError, "ends"),
    "num_keys-negative": ({"num_keys": lambda: -1}, ValueError, "num_keys"),
    "num_keys-too-many": ({"num_keys": lambda: 2**31}, ValueError, "num_keys"),
    "num_keys-fraction": ({"num_keys": lambda: 5.0}, TypeError, "num_keys"),
    "num_keys-bool": ({"num_keys": lambda: True}, TypeError, "num_keys"),
    "ends-without-starts": ({"ends": lambda: zeros(ROWS + 1, dtype=INT), "starts": lambda: None}, ValueError, "ends"),
    "num_keys-without-starts": ({"num_keys": lambda: 5, "starts": lambda: None}, ValueError, "num_keys"),
    "relative-text": ({"relative": lambda: "yes"}, TypeError, "relative"),
}
CHUNKED: dict[str, tuple[dict[str, Callable[[], Any]], type[Exception], str]] = {
    **COMMON,
    "logits_budget_bytes-small": ({"logits_budget_bytes": lambda: 1023}, ValueError, "logits_budget_bytes"),
    "logits_budget_bytes-negative": ({"logits_budget_bytes": lambda: -1}, ValueError, "logits_budget_bytes"),
    "logits_budget_bytes-fraction": ({"logits_budget_bytes": lambda: 1e9}, TypeError, "logits_budget_bytes"),
    "logits_budget_bytes-bool": ({"logits_budget_bytes": lambda: True}, TypeError, "logits_budget_bytes"),
    "logits_variant-empty": ({"logits_variant": lambda: ""}, ValueError, "logits_variant"),
    "logits_variant-unknown": ({"logits_variant": lambda: "clasic"}, ValueError, "logits_variant"),
    "logits_variant-number": ({"logits_variant": lambda: 3}, TypeError, "logits_variant"),
}
DENSE = {
    **CHUNKED,
    "q-list": ({"q": lambda: [1.0]}, TypeError, "q"),
    "k-other-dim": ({"k": lambda: zeros(COLUMNS, 64, dtype=FN)}, ValueError, "k"),
    "weights-half": ({"weights": lambda: zeros(ROWS, 16, dtype=torch.float16)}, TypeError, "weights"),
    "max_window-negative": ({"max_window": lambda: -1}, ValueError, "max_window"),
    "max_window-fraction": ({"max_window": lambda: 2.5}, TypeError, "max_window"),
    "max_window-bool": ({"max_window": lambda: True}, TypeError, "max_window"),
    "q-requires-grad": ({"q": lambda: zeros(ROWS, 16, 32, dtype=FN).requires_grad_()}, ValueError, "q"),
    "max_window-too-wide": ({"max_window": lambda: 2**29 + 1}, ValueError, "max_window"),
    "relative-text": ({"relative": lambda: "yes"}, TypeError, "relative"),
}
PAGED = {
    **CHUNKED,
    "q-three-dimensional": ({"q": lambda: zeros(ROWS, 16, 32, dtype=FN)}, ValueError, "q"),
    "block_table-int64": ({"block_table": lambda: zeros(ROWS, 2, dtype=torch.int64)}, TypeError, "block_table"),
    "max_context_len-bool": ({"max_context_len": lambda: True}, TypeError, "max_context_len"),
    "max_context_len-negative": ({"max_context_len": lambda: -1}, ValueError, "max_context_len"),
    "max_context_len-too-many": ({"max_context_len": lambda: 2**29 + 1}, ValueError, "max_context_len"),
}


def refused(function: Callable[..., Any], arguments: dict[str, Any], bad: tuple[Any, Any, str]) -> None:
    replacements, error, argument = bad
    function(**arguments)  # is fine
    with pytest.raises(error, match=f"^{argument}: "):
        function(**(arguments | {name: make() for name, make in replacements.items()}))


@pytest.mark.parametrize("bad", LOGITS.values(), ids=LOGITS)
def test_bad_logits_are_refused_by_name(bad: tuple[Any, Any, str]) -> None:
    windows = {"starts": zeros(ROWS, dtype=INT), "ends": zeros(ROWS, dtype=INT) + 9}
    refused(select_from_logits, {"logits": zeros(ROWS, COLUMNS), "top_k": 4, **windows}, bad)


@pytest.mark.parametrize("bad", DENSE.values(), ids=DENSE)
def test_bad_queries_and_keys_are_refused_by_name(bad: tuple[Any, Any, str]) -> None:
    refused(select_keys, judge.make_call(ROWS, COLUMNS, 16, 32)._asdict() | {"top_k": 4}, bad)


@pytest.mark.parametrize("bad", PAGED.values(), ids=PAGED)
def test_bad_cached_keys_are_refused_by_name(bad: tuple[Any, Any, str]) -> None:
    refused(select_paged_keys, paged.make_call([70, 5, 64])._asdict() | {"top_k": 4, "max_context_len": 70}, bad)


@pytest.mark.parametrize("rows", [0, ROWS])
def test_an_impossible_variant_is_refused_with_its_reason(rows: int) -> None:
    call = judge.make_call(rows, COLUMNS, 16, 32)
    with compat.override(disable=["triton"]):
        for name, operation in (("variant", "select_keys"), ("logits_variant", "fp8_mqa_logits")):
            with pytest.raises(compat.CapabilityError, match=f"{operation} cannot run variant 'classic': .*disabled by"):
                select_keys(*call, top_k=3, **{name: "classic"})


@pytest.mark.usefixtures("interpreter")
def test_more_than_half_a_block_is_for_the_reference() -> None:
    ends = torch.full((2,), 9, dtype=INT)
    with pytest.raises(compat.CapabilityError, match="needs top_k of at most 8192: found 8193"):
        select_from_logits(zeros(2, 9), None, ends, top_k=8193, variant="classic")
    assert select_from_logits(zeros(2, 9), None, ends, top_k=8193).shape == (2, 8193)


def test_logits_that_require_grad_serve_where_grad_is_off(variant: str) -> None:
    logits, ends = torch.randn(2, 30), torch.full((2,), 30, dtype=INT)
    expected = select_from_logits(logits, None, ends, top_k=3, variant=variant)
    with torch.no_grad():
        assert torch.equal(select_from_logits(logits.requires_grad_(), None, ends, top_k=3, variant=variant), expected)
