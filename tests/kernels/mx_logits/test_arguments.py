"""What mx_mqa_logits refuses beyond its table of operands, and its operators."""

import re

import pytest
import torch

from capgate.kernels import mx_mqa_logits
from support import judge
from support.mx_logits import PAIRS, make_call

pytestmark = pytest.mark.any_triton


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": torch.zeros(20, 64, dtype=torch.uint8)}, "k: got D 128 in mxfp4 (torch.uint8), needs 64, as q has"),
        ({"q": torch.zeros(5, 16, 16 * 8, dtype=torch.uint8)}, "q: got D 256 in mxfp4 (torch.uint8), needs 64 or 128"),
        (
            {"k": torch.zeros(20, 32, dtype=torch.float8_e4m3fn)},
            "k: got D 32 in mxfp8 (torch.float8_e4m3fn), needs 64, as q has",
        ),
    ],
)
def test_dims_that_a_format_lacks_or_that_differ_are_refused(changes: dict[str, torch.Tensor], words: str) -> None:
    call, out = make_call(5, 20, 16, 64), torch.full((5, 20), 7.0)
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        mx_mqa_logits(*call._replace(**changes), out=out)
    assert (out == 7.0).all()


def test_compressed_rows_are_not_cleaned_and_an_out_shares_no_memory() -> None:
    call = make_call(5, 20, 16, 64)
    with pytest.raises(ValueError, match="clean_logits: got True with max_window"):
        mx_mqa_logits(*call, max_window=4)
    memory = torch.zeros(5 * 20, dtype=torch.int32)
    with pytest.raises(ValueError, match="out: shares memory with k_scale"):
        mx_mqa_logits(*call._replace(k_scale=memory[:20]), out=memory.view(torch.float32).view(5, 20))


def test_empty_calls_write_nothing() -> None:
    call = make_call(3, 5, 16, 64)
    none = call._replace(k=call.k[:0], k_scale=call.k_scale[:0])
    assert mx_mqa_logits(*none).shape == (3, 0)
    assert torch.isneginf(mx_mqa_logits(*call._replace(ends=torch.zeros(3, dtype=torch.int32)))).all()
    assert (mx_mqa_logits(*none, clean_logits=False, max_window=4, out=torch.full((3, 4), 7.0)) == 7.0).all()


@pytest.mark.parametrize("max_window", [None, 11])
def test_operators_pass_opcheck_and_compile(max_window: int | None) -> None:
    call, compressed = make_call(3, 11, 16, 64, PAIRS[0], "full"), max_window is not None
    options = (max_window is None, max_window, torch.float32, "reference")
    torch.library.opcheck(torch.ops.capgate.mx_mqa_logits, (*call, *options))
    out = torch.zeros(3, 14)[:, :11]
    torch.library.opcheck(torch.ops.capgate.mx_mqa_logits_out, (*call, out, not compressed, compressed, "reference"))

    def scored(*operands: torch.Tensor) -> torch.Tensor:
        return mx_mqa_logits(*operands, clean_logits=not compressed, max_window=max_window) * 2

    torch._dynamo.reset()
    compiled = torch.compile(scored, backend="eager", fullgraph=True)(*call)
    inside = judge.formula(judge.Call(torch.zeros(3, 1, 4), torch.zeros(11, 4), torch.ones(11), *call[4:]), max_window).inside
    assert torch.equal(compiled[inside], scored(*call)[inside])
